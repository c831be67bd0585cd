"""Where things stand in a batch: graphs, leaves by relation, head tokens, labelled nodes.

How many there are depends on the data. The collator knows it without asking a device, so it can hand the positions
over and the model never waits; without them the model works them out.

Shape suffixes: B rows, N nodes of a row, S = B*N, G graphs, P nodes of the longest graph, M leaves with a relation,
C relations + 1 (the last one is the masked relation), Q most leaves of one relation, E pairs of a leaf and a token of its
head.
"""

import torch


def batch_indices(inputs: dict[str, torch.Tensor], num_relations: int) -> dict[str, torch.Tensor]:
    """Positions in the flattened rows (row * N + column) of a batch.

    Roots of a graph stand one after the other: root i of a row that is one graph in column i; in rows of many graphs
    (`graph_ids`) the nodes of a graph are neighbours, roots first. A span of roots that reaches beyond its graph's roots is
    cut there.

    Args:
        inputs: `root_index`, `leaf_index`, and, where they matter, `attention_mask`, `graph_ids`, `relation_ids` with
            `head_start` and `head_length`, `labels`: int64 (B, N).
        num_relations: relations without the masked one.

    Returns:
        A dict of int64 tensors, with those whose inputs are given:
        `graph_nodes` (G, P): nodes of each graph, -1 where it has fewer (with `graph_ids`);
        `leaf_nodes` (M,): leaves with a relation, in the order of the relations;
        `leaf_grid` (C, Q): for each relation the places of its leaves in `leaf_nodes`, M where it has fewer;
        `head_pairs` (2, E): for each token of a leaf's head the leaf's place in `leaf_nodes`, and the token;
        `labelled_nodes` (T,): nodes with a label, in row-major order.

    Raises:
        ValueError: the nodes of a graph are not neighbours.
    """
    result = {}
    root_index, leaf_index = inputs["root_index"].flatten(), inputs["leaf_index"].flatten()
    num_nodes = inputs["root_index"].shape[1]
    mask = inputs.get("attention_mask")
    real = torch.ones_like(root_index, dtype=torch.bool) if mask is None else mask.flatten() != 0
    graph = torch.arange(len(root_index), device=root_index.device) // num_nodes
    first_node = graph * num_nodes
    if inputs.get("graph_ids") is not None:
        graph = inputs["graph_ids"].flatten()
        result["graph_nodes"] = graph_nodes(inputs["graph_ids"])
        first_node = result["graph_nodes"][:, 0][graph.clamp(min=0)]
    if inputs.get("relation_ids") is not None:
        relation = inputs["relation_ids"].flatten()
        leaves = ((leaf_index >= 0) & real & (relation >= 0)).nonzero().squeeze(1)
        leaves = leaves[relation[leaves].argsort(stable=True)]
        result["leaf_nodes"] = leaves
        result["leaf_grid"] = _grid(relation[leaves], num_relations + 1)
        start = inputs["head_start"].flatten()[leaves]
        length = inputs["head_length"].flatten()[leaves].clamp(min=0)
        pair_leaf = torch.arange(len(leaves), device=leaves.device).repeat_interleave(length)
        within = torch.arange(len(pair_leaf), device=leaves.device) - (length.cumsum(0) - length)[pair_leaf]
        root = start[pair_leaf] + within
        node = (first_node[leaves[pair_leaf]] + root).clamp(max=len(root_index) - 1)
        found = real[node] & (leaf_index[node] < 0) & (root_index[node] == root)
        found &= graph[node] == graph[leaves[pair_leaf]]
        result["head_pairs"] = torch.stack([pair_leaf[found], node[found]])
    if inputs.get("labels") is not None:
        result["labelled_nodes"] = (inputs["labels"] != -100).flatten().nonzero().squeeze(1)
    return result


def graph_nodes(graph_ids: torch.Tensor) -> torch.Tensor:
    """The nodes of each graph.

    Args:
        graph_ids: int64 (B, N), 0..G-1, -1 for padding.

    Returns:
        int64 (G, P): positions in the flattened rows, in rising order, -1 where a graph has fewer than the longest.

    Raises:
        ValueError: the nodes of a graph are not neighbours, or a number between 0 and G-1 is missing.
    """
    graph = graph_ids.flatten()
    starts = torch.ones_like(graph, dtype=torch.bool)
    starts[1:] = graph[1:] != graph[:-1]
    # A graph that ends a row and one that begins the next are two.
    starts[:: graph_ids.shape[1]] = True
    first = (starts & (graph >= 0)).nonzero().squeeze(1)
    numbers = graph[first]
    if not torch.equal(numbers.sort().values, torch.arange(len(numbers), device=graph.device)):
        raise ValueError("graph_ids must number the graphs 0, 1, 2, ..., and the nodes of a graph must be neighbours.")
    sizes = torch.bincount(graph[graph >= 0], minlength=len(numbers))
    by_number = torch.empty_like(first)
    by_number[numbers] = first
    column = torch.arange(int(sizes.max()) if len(sizes) else 0, device=graph.device)
    return torch.where(column < sizes[:, None], by_number[:, None] + column, -1)


def _grid(sorted_groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Places of the elements of each group: (num_groups, largest group), filled up with the number of elements."""
    sizes = torch.bincount(sorted_groups, minlength=num_groups)
    column = torch.arange(int(sizes.max()), device=sizes.device)
    begin = sizes.cumsum(0) - sizes
    return torch.where(column < sizes[:, None], begin[:, None] + column, len(sorted_groups))


def values_at_hand(tensor: torch.Tensor) -> bool:
    """Whether looking at values neither waits for a device nor breaks a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_graph_inputs(
    config, shape, root_index, leaf_index, relation_ids, head_start, head_length, graph_ids
) -> None:
    """Refuse graph inputs that the model would misread or crash on; values on the CPU only.

    Args:
        config: the model's configuration.
        shape: (B, N) of the input.
        Others: as in `GraphMertModel.forward`.

    Raises:
        ValueError: names the input and what it may be.
    """
    given = {
        "root_index": root_index,
        "leaf_index": leaf_index,
        "relation_ids": relation_ids,
        "head_start": head_start,
        "head_length": head_length,
        "graph_ids": graph_ids,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if root_index is None and given:
        raise ValueError(f"Graph inputs need root_index; only {', '.join(given)} given.")
    # Leaves that share their root's position need none of their own.
    shared = root_index is not None and config.leaf_position != "slot"
    limit = config.num_nodes if shared else config.num_usable_positions
    if graph_ids is None and shape[1] > limit:
        raise ValueError(
            f"The input has {shape[1]} tokens, but the model has positions for {limit}: cut the code (truncation=True, "
            f"max_length={limit}) or raise max_position_embeddings."
        )
    reads_heads = config.use_hgat or config.head_memory_keys
    if relation_ids is not None and reads_heads and (head_start is None or head_length is None):
        raise ValueError("relation_ids need head_start and head_length: the span of roots that each leaf hangs on.")
    limits = {
        "root_index": (0, config.num_roots - 1, "num_roots"),
        "leaf_index": (-1, config.leaves_per_root - 1, "leaves_per_root"),
        "relation_ids": (-1, config.num_relations, "num_relations"),
        "head_start": (0, config.num_roots - 1, "num_roots"),
        "head_length": (0, config.num_roots, "num_roots"),
    }
    for name, value in given.items():
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, but the input has {tuple(shape)}.")
        if name not in limits or value.numel() == 0 or not values_at_hand(value):
            continue
        lowest, highest, field = limits[name]
        found = torch.stack(value.aminmax()).tolist()
        wrong = [number for number in found if not lowest <= number <= highest]
        if wrong:
            raise ValueError(
                f"{name} holds {wrong[-1]}, outside {lowest}..{highest}: the model has {field} = {getattr(config, field)}."
            )


def check_root_distance(config, shape, root_index, graph_ids, root_distance) -> None:
    """Refuse shortest paths between roots that the model would misread; values on the CPU only.

    Args:
        config: the model's configuration.
        shape: (B, N) of the input.
        root_index, graph_ids, root_distance: as in `GraphMertModel.forward`.

    Raises:
        ValueError: says what is wrong.
    """
    if root_distance is None:
        return
    if root_index is None:
        raise ValueError("root_distance needs root_index: it says which rows of it belong to which node.")
    if config.decay_mode is None:
        raise ValueError("root_distance acts on the attention decay, but the model has decay_mode=None.")
    sizes = tuple(root_distance.shape)
    if len(sizes) != 3 or sizes[1] != sizes[2] or root_distance.is_floating_point():
        raise ValueError(f"root_distance must be integers (graphs, roots, roots), got {root_distance.dtype} {sizes}.")
    if graph_ids is None and sizes[0] != shape[0]:
        raise ValueError(f"root_distance holds {sizes[0]} graphs, but the input has {shape[0]} rows.")
    if not values_at_hand(root_distance):
        return
    if graph_ids is not None and sizes[0] <= int(graph_ids.max()):
        raise ValueError(f"root_distance holds {sizes[0]} graphs, but graph_ids count {int(graph_ids.max()) + 1}.")
    if sizes[1] <= int(root_index.max()):
        raise ValueError(f"root_distance holds {sizes[1]} roots, but root_index goes up to {int(root_index.max())}.")
    lowest, highest = (int(value) for value in root_distance.aminmax())
    diagonal = root_distance.diagonal(dim1=1, dim2=2)
    if lowest < 0 or highest > config.num_roots - 1 or diagonal.any() or (root_distance == 0).sum() > diagonal.numel():
        raise ValueError(
            f"root_distance must be 0 on the diagonal and 1..{config.num_roots - 1} elsewhere; it holds {lowest}..{highest}."
        )
