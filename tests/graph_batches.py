"""Batches of leafy chain graphs in all layouts, written down slowly; the real collator has its own tests."""

import random
from dataclasses import dataclass, field

import torch

FIELDS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "root_index",
    "leaf_index",
    "relation_ids",
    "relation_reversed",
    "head_start",
    "head_length",
    "labels",
    "relation_labels",
)
PAD_ID = 1


@dataclass
class Anchor:
    """One triple's tail tokens in consecutive slots of one root."""

    root: int
    first_slot: int
    tokens: list[int]
    relation: int
    head_start: int
    head_length: int
    reversed: int = 0
    relation_label: int = -100
    token_labels: list[int] = field(default_factory=list)


@dataclass
class Graph:
    roots: list[int]
    anchors: list[Anchor]
    root_labels: list[int] = field(default_factory=list)


def _root_nodes(graph: Graph) -> list[dict]:
    labels = graph.root_labels or [-100] * len(graph.roots)
    return [
        dict(
            input_ids=token,
            attention_mask=1,
            token_type_ids=0,
            root_index=i,
            leaf_index=-1,
            relation_ids=-1,
            relation_reversed=0,
            head_start=0,
            head_length=0,
            labels=labels[i],
            relation_labels=-100,
        )
        for i, token in enumerate(graph.roots)
    ]


def _leaf_nodes(graph: Graph) -> list[dict]:
    nodes = []
    for anchor in graph.anchors:
        labels = anchor.token_labels or [-100] * len(anchor.tokens)
        for k, token in enumerate(anchor.tokens):
            nodes.append(
                dict(
                    input_ids=token,
                    attention_mask=1,
                    token_type_ids=1,
                    root_index=anchor.root,
                    leaf_index=anchor.first_slot + k,
                    relation_ids=anchor.relation,
                    relation_reversed=anchor.reversed,
                    head_start=anchor.head_start,
                    head_length=anchor.head_length,
                    labels=labels[k],
                    relation_labels=anchor.relation_label if k == 0 else -100,
                )
            )
    return nodes


def _empty(root: int = 0, leaf: int = -1, token_type: int = 0) -> dict:
    return dict(
        input_ids=PAD_ID,
        attention_mask=0,
        token_type_ids=token_type,
        root_index=root,
        leaf_index=leaf,
        relation_ids=-1,
        relation_reversed=0,
        head_start=0,
        head_length=0,
        labels=-100,
        relation_labels=-100,
    )


def _to_tensors(rows: list[list[dict]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([[node[name] for node in row] for row in rows]) for name in FIELDS}


def compact_batch(graphs: list[Graph], permute_leaves: random.Random | None = None) -> dict[str, torch.Tensor]:
    """Existing nodes only: roots, then leaves (in slot order, or shuffled), then padding."""
    rows = []
    for graph in graphs:
        leaves = sorted(_leaf_nodes(graph), key=lambda node: (node["root_index"], node["leaf_index"]))
        if permute_leaves is not None:
            permute_leaves.shuffle(leaves)
        rows.append(_root_nodes(graph) + leaves)
    longest = max(len(row) for row in rows)
    return _to_tensors([row + [_empty()] * (longest - len(row)) for row in rows])


def padded_batch(graphs: list[Graph], num_roots: int, leaves_per_root: int) -> dict[str, torch.Tensor]:
    """All canonical slots: leaf j of root i at column R + L i + j."""
    rows = []
    for graph in graphs:
        roots = _root_nodes(graph)
        row = roots + [_empty(root=i) for i in range(len(roots), num_roots)]
        row += [_empty(i, j, token_type=1) for i in range(num_roots) for j in range(leaves_per_root)]
        for node in _leaf_nodes(graph):
            row[num_roots + leaves_per_root * node["root_index"] + node["leaf_index"]] = node
        rows.append(row)
    return _to_tensors(rows)


def packed_batch(
    graphs: list[Graph], row_of_graph: list[int] | None = None, padding: int = 0
) -> dict[str, torch.Tensor]:
    """Many graphs in a row: those of `row_of_graph` one after the other, `padding` nodes after the longest row."""
    row_of_graph = row_of_graph or [0] * len(graphs)
    rows = [[] for _ in range(max(row_of_graph) + 1)]
    for number, (graph, row) in enumerate(zip(graphs, row_of_graph, strict=True)):
        leaves = sorted(_leaf_nodes(graph), key=lambda node: (node["root_index"], node["leaf_index"]))
        rows[row] += [{**node, "graph_ids": number} for node in _root_nodes(graph) + leaves]
    longest = max(len(row) for row in rows) + padding
    rows = [row + [{**_empty(), "graph_ids": -1}] * (longest - len(row)) for row in rows]
    return {name: torch.tensor([[node[name] for node in row] for row in rows]) for name in (*FIELDS, "graph_ids")}


def random_graph(
    rng: random.Random,
    num_roots: int,
    leaves_per_root: int,
    num_relations: int,
    vocab_size: int = 90,
    density: float = 0.5,
    with_labels: bool = True,
) -> Graph:
    """A graph with triples on about `density` of its roots; some relations masked, some slots empty between leaves."""
    roots = [rng.randrange(4, vocab_size) for _ in range(num_roots)]
    anchors = []
    for root in range(num_roots):
        slot = 0
        while slot < leaves_per_root and rng.random() < density:
            slot += rng.random() < 0.2
            length = min(rng.randint(1, 3), leaves_per_root - slot)
            if length < 1:
                break
            start = rng.randrange(max(0, root - 2), root + 1)
            masked = rng.random() < 0.3
            relation = rng.randrange(num_relations)
            anchors.append(
                Anchor(
                    root=root,
                    first_slot=slot,
                    tokens=[rng.randrange(4, vocab_size) for _ in range(length)],
                    relation=num_relations if masked else relation,
                    head_start=start,
                    head_length=rng.randint(1, num_roots - start),
                    reversed=rng.randrange(2),
                    relation_label=relation if masked and with_labels else -100,
                    token_labels=[rng.randrange(4, vocab_size) if rng.random() < 0.3 else -100 for _ in range(length)]
                    if with_labels
                    else [],
                )
            )
            slot += length
    labels = [rng.randrange(4, vocab_size) if rng.random() < 0.3 else -100 for _ in range(num_roots)]
    return Graph(roots, anchors, labels if with_labels else [])
