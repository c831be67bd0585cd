"""Texts in memory to windows with their facts: what a dataset on disk gives a model, without the dataset.

The same steps as a build and its `WindowDataset`: code graph, linking, cutting, placing. A text of no language (a query in
words) becomes windows without facts.
"""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from ..code_graph import CodeGraph, extract
from ..code_graph.schema import RELATION_IDS, RELATION_NAMES
from .languages import normalize_newlines
from .linking import ROW_COLUMNS, LeafEncoder, corpus_backend, link_file
from .windows import WindowDataset, check_relations

# Columns of one entry for each token, and of one entry for each anchor.
_CHARACTER_COLUMNS = ("char_starts", "char_ends")
_TOKEN_COLUMNS = ("input_ids", "word_starts", *_CHARACTER_COLUMNS)
_ANCHOR_COLUMNS = tuple(name for name in ROW_COLUMNS if name.startswith("anchor_"))


class CodeReader:
    """Turns code into windows of root tokens with facts in their leaf slots.

    Args:
        tokenizer: a fast Hugging Face tokenizer; it is not changed.
        num_roots, leaves_per_root: as in `WindowDataset`.
        relation_names: the relations that a model knows, in the order of its ids; facts of others are left out and counted.
        **graph_options: `include_uses`, `include_site_anchors`, `exclude_relations`, `edge_relations` of `WindowDataset`.

    Attributes:
        statistics: counts of what was read, placed and left out in this process.

    Raises:
        ValueError: the tokenizer is not fast, or a relation is not in the schema of code graphs.
    """

    def __init__(
        self, tokenizer, num_roots: int, leaves_per_root: int, relation_names: Sequence[str], **graph_options
    ):
        unknown = [name for name in relation_names if name not in RELATION_IDS]
        if unknown:
            raise ValueError(
                f"relation {unknown[0]!r} is not read from code; the relations are {', '.join(RELATION_NAMES)}"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer and gives no character offsets; "
                "use a directory with a tokenizer.json"
            )
        self.tokenizer, self.num_roots, self.leaves_per_root = tokenizer, num_roots, leaves_per_root
        self._graph_options = graph_options
        check_relations(**{name: graph_options.get(name, ()) for name in ("exclude_relations", "edge_relations")})
        backend = corpus_backend(tokenizer.backend_tokenizer.to_str())
        self._linking_tokenizer = SimpleNamespace(is_fast=True, backend_tokenizer=backend)
        self._leaf_encoder = LeafEncoder(self._linking_tokenizer)
        self._known = frozenset(relation_names)
        # Id of each relation of the schema in the model.
        order = {name: index for index, name in enumerate(relation_names)}
        self._model_id = np.array([order.get(name, -1) for name in RELATION_NAMES], dtype=np.int32)
        self.statistics: Counter = Counter()

    def row(self, code: str, language: str | None) -> dict[str, np.ndarray]:
        """The columns of `linking.ROW_COLUMNS` for one text; characters are counted with line ends as "\\n".

        Args:
            code: the text.
            language: one of `code_graph.LANGUAGES`, or None for a text without a graph.

        Raises:
            ValueError: the text is no string or holds a lone surrogate, or the language is not read.
        """
        if not isinstance(code, str):
            raise ValueError(f"code must be a str (decode bytes first), not {type(code).__name__}")
        try:
            code.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text {code[:40]!r} holds a lone surrogate at character {error.start}, which no tokenizer reads; "
                "take it out"
            ) from error
        # As corpora are read (`sources.py`), so that a model meets no line end that it was not trained on.
        code = normalize_newlines(code)
        graph = CodeGraph() if language is None else extract(code, language)
        if len(self._known) < len(RELATION_NAMES):
            triples = [triple for triple in graph.triples if triple.relation in self._known]
            self.statistics["triples_of_other_relations"] += len(graph.triples) - len(triples)
            graph = CodeGraph(triples, graph.boundaries)
        return link_file(code, graph, self._linking_tokenizer, self._leaf_encoder, language=language or "python")[0]

    def read(self, texts: Sequence[str], languages: Sequence[str | None]) -> list[dict]:
        """The windows of some texts.

        Args:
            texts: code, or words.
            languages: of each text.

        Returns:
            Items as `WindowDataset` gives them, in the order of the texts; `item["text"]` is the text's number. Every text
            has at least one, an empty one that of `<s></s>`.

        Raises:
            ValueError: as in `row`.
        """
        return self.windows([self.row(*pair) for pair in zip(texts, languages, strict=True)])

    def windows(self, rows: Sequence[dict[str, np.ndarray]]) -> list[dict]:
        """The windows of rows (see `row` and `part_of_row`), each with its row's number as `item["text"]`."""
        self.statistics["texts"] += len(rows)
        full = [number for number, row in enumerate(rows) if len(row["input_ids"])]
        items: list[dict] = []
        if full:
            dataset = SimpleNamespace(data=_table([rows[number] for number in full]))
            windows = WindowDataset(
                dataset, self.tokenizer, self.num_roots, self.leaves_per_root, **self._graph_options
            )
            for number, file in enumerate(windows.file_index.tolist()):
                item = windows[number]
                items.append({**item, "relation": self._model_id[item["relation"]], "text": full[file]})
            counts = windows.statistics()
            for name in ("facts_placed", "facts_cut", "facts_dropped_for_room", "extras_without_room"):
                self.statistics[name] += counts[name]
            bos, eos = items[0]["input_ids"][[0, -1]]
        if len(full) < len(rows):
            if not full:
                bos, eos = self._ends()
            has_edges = bool(self._graph_options.get("edge_relations")) and self.leaves_per_root > 0
            empty = sorted(set(range(len(rows))) - set(full))
            items += [_empty_window(number, bos, eos, has_edges) for number in empty]
            items.sort(key=lambda item: item["text"])
        self.statistics["windows"] += len(items)
        return items

    def _ends(self) -> tuple[int, int]:
        tokenizer = self.tokenizer
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            return tokenizer.cls_token_id, tokenizer.sep_token_id
        return tokenizer.bos_token_id, tokenizer.eos_token_id


def part_of_row(row: dict[str, np.ndarray], char_start: int, char_end: int) -> dict[str, np.ndarray]:
    """The part of a file's row between two characters: its tokens, its cut points, and the anchors that lie in it.

    A function read so keeps what only the rest of its file tells (the module of an import, the fields of its class).

    Args:
        row: columns of `linking.ROW_COLUMNS`.
        char_start, char_end: the part, in characters of the file, line ends as "\\n".

    Returns:
        Columns of the same names, counted from the part's first token.
    """
    first = int(np.searchsorted(row["char_ends"], char_start, side="right"))
    last = max(int(np.searchsorted(row["char_starts"], char_end, side="left")), first)
    part = {name: row[name][first:last] for name in _TOKEN_COLUMNS}
    low, high = np.searchsorted(row["boundary_token"], (first, last), side="left")
    part["boundary_token"] = row["boundary_token"][low:high] - first
    part["boundary_depth"] = row["boundary_depth"][low:high]
    inside = (row["anchor_start"] >= first) & (row["anchor_start"] + row["anchor_length"] <= last)
    kept = np.flatnonzero(inside)
    part |= {name: row[name][kept] for name in _ANCHOR_COLUMNS}
    part["anchor_start"] = part["anchor_start"] - first
    lengths = np.diff(row["leaf_offsets"])
    part["leaf_offsets"] = np.concatenate([[0], np.cumsum(lengths[kept])]).astype(row["leaf_offsets"].dtype)
    part["leaf_ids"] = row["leaf_ids"][np.repeat(inside, lengths)]
    return part


def _table(rows: list[dict[str, np.ndarray]]) -> pa.Table:
    """Rows as the list columns that `WindowDataset` reads."""
    columns = {}
    for name, dtype in ROW_COLUMNS.items():
        if name in _CHARACTER_COLUMNS:
            continue
        offsets = np.cumsum([0, *(len(row[name]) for row in rows)]).astype(np.int32)
        values = np.concatenate([row[name] for row in rows]).astype(dtype, copy=False)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    return pa.table(columns)


def _empty_window(text: int, bos: int, eos: int, has_edges: bool) -> dict:
    none = np.zeros(0, dtype=np.int32)
    names = ("head_start", "head_length", "relation", "reversed", "visible", "leaf_root", "leaf_slot", "leaf_length")
    return {
        "index": 0,
        "epoch": 0,
        "input_ids": np.array([bos, eos], dtype=np.int32),
        "word_starts": np.ones(2, dtype=np.int8),
        **{name: none for name in names},
        "leaf_ids": none,
        **({"edges": np.zeros((0, 4), dtype=np.int32)} if has_edges else {}),
        "text": text,
    }
