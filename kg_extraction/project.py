"""The files that a knowledge graph is made of: their code graphs, tokens and windows."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..chain_graphs.layout import Candidates, find_visible, is_extra, place
from ..chain_graphs.linking import LeafEncoder, link_file
from ..chain_graphs.sources import ReadOptions, SkippedFile, SourceFile, parse_source
from ..chain_graphs.windows import canonical_ids, cut_windows
from ..code_graph import CodeGraph, ProjectIndex, extract
from ..code_graph.schema import RELATION_IDS


class Anchor(NamedTuple):
    """Where a fact hangs in a window, and its leaf.

    Attributes:
        fact: index into `CodeFile.facts`.
        start, length: the span it hangs on, in root indices.
        relation: relation id.
        reversed: whether the leaf carries the owner's name.
        leaf: the leaf's tokens, whole.
    """

    fact: int
    start: int
    length: int
    relation: int
    reversed: bool
    leaf: list[int]


class Placed(NamedTuple):
    """An anchor that got leaf slots `slot .. slot + num_tokens - 1` of a root."""

    candidate: Anchor
    root: int
    slot: int
    num_tokens: int


@dataclass
class Window:
    """A window of a file as the model sees it.

    Attributes:
        file: number of the file in its corpus.
        start, end: tokens of the file that it holds; root i of the window is token `start + i - 1`.
        input_ids: int array `(end - start + 2,)`, with the ids of `<s>` and `</s>`.
        placed: the facts that have leaves; the fact of each is an index into `CodeFile.facts`.
    """

    file: int
    start: int
    end: int
    input_ids: np.ndarray
    placed: list[Placed]


@dataclass
class CodeFile:
    """One file of a corpus.

    Attributes:
        project, path, language, code: as read.
        graph: its triples.
        columns: its tokens and anchors (`chain_graphs.linking.ROW_COLUMNS`).
        facts: number of each fact (head text, relation, tail text).
        windows: numbers of its windows in the corpus.
        line_starts: first character of each line.
    """

    project: str
    path: str
    language: str
    code: str
    graph: CodeGraph
    columns: dict[str, np.ndarray]
    facts: dict[tuple[str, str, str], int]
    windows: list[int] = field(default_factory=list)
    line_starts: list[int] = field(default_factory=list)

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """The tokens that overlap a span of characters, as (first, one past the last)."""
        first = int(np.searchsorted(self.columns["char_ends"], start, side="right"))
        last = int(np.searchsorted(self.columns["char_starts"], end, side="left"))
        return first, last

    def line_of(self, offset: int) -> int:
        """Line of a character, from 1."""
        return int(np.searchsorted(self.line_starts, offset, side="right"))


def read_sources(specs: Iterable[str], options: ReadOptions) -> tuple[list[SourceFile], list[SkippedFile]]:
    """All files of some sources, and those that were left out with the reason.

    Raises:
        BuildError: a source does not exist or cannot be understood.
    """
    read: list[SourceFile] = []
    skipped: list[SkippedFile] = []
    for spec in specs:
        for file in parse_source(spec, options).files():
            (read if isinstance(file, SourceFile) else skipped).append(file)
    return read, skipped


class Corpus:
    """Files with their graphs, cut into windows as the model was trained on them.

    Args:
        files: (project, path, language, text) of each file.
        tokenizer: the checkpoint's tokenizer.
        num_roots, leaves_per_root, include_uses, include_site_anchors, exclude_relations: as in the checkpoint's
            configuration.

    Attributes:
        files: the `CodeFile`s.
        windows: all windows.
        indices: the `ProjectIndex` of each project, by which names are followed across its files.
        counts: `windows`, `facts_without_room` and `facts_cut` among the leaves.
    """

    def __init__(
        self,
        files: Iterable[tuple[str, str, str, str]],
        tokenizer,
        num_roots: int = 128,
        leaves_per_root: int = 7,
        include_uses: bool = True,
        include_site_anchors: bool = True,
        exclude_relations: Iterable[str] = (),
    ):
        self.num_roots, self.leaves_per_root = num_roots, leaves_per_root
        self._include_uses, self._include_site_anchors = include_uses, include_site_anchors
        self._excluded = [RELATION_IDS[name] for name in exclude_relations]
        self.tokenizer = tokenizer
        # Code may hold the text "<mask>" or "</s>"; here it is text. A saved tokenizer may also carry a truncation.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.encode_special_tokens = True
        self.encode = LeafEncoder(tokenizer)
        self._canonical = canonical_ids(tokenizer)
        bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        self._edges = (bos, eos)
        self.files: list[CodeFile] = []
        self.windows: list[Window] = []
        self.indices: dict[str, ProjectIndex] = {}
        self.counts = {"windows": 0, "facts_without_room": 0, "facts_cut": 0}
        for project, path, language, code in files:
            self._add(project, path, language, code)

    def _add(self, project: str, path: str, language: str, code: str) -> None:
        graph = extract(code, language)
        columns, _ = link_file(code, graph, self.tokenizer, self.encode, language=language)
        facts: dict[tuple[str, str, str], int] = {}
        for triple in graph.triples:
            facts.setdefault((triple.head, triple.relation, triple.tail), len(facts))
        line_starts = [0, *(index + 1 for index, character in enumerate(code) if character == "\n")]
        file = CodeFile(project, path, language, code, graph, columns, facts, line_starts=line_starts)
        if language == "python":
            self.indices.setdefault(project, ProjectIndex()).add(path, code)
        number = len(self.files)
        self.files.append(file)
        max_tokens = self.num_roots - 2
        ranges = cut_windows(
            len(columns["input_ids"]), columns["boundary_token"], columns["boundary_depth"], max_tokens
        )
        bos, eos = self._edges
        for (start, end), placed in zip(ranges, self._placed(columns, np.array(ranges).reshape(-1, 2)), strict=True):
            file.windows.append(len(self.windows))
            input_ids = np.concatenate([[bos], columns["input_ids"][start:end], [eos]]).astype(np.int64)
            self.windows.append(Window(number, start, end, input_ids, placed))

    def _placed(self, columns: dict[str, np.ndarray], ranges: np.ndarray) -> list[list[Placed]]:
        """The leaves of a file's windows, placed by the rules of `WindowDataset`."""
        result: list[list[Placed]] = [[] for _ in ranges]
        self.counts["windows"] += len(ranges)
        if not len(ranges) or not self.leaves_per_root:
            return result
        begin, end = ranges[:, 0], ranges[:, 1]
        token, length = columns["anchor_start"].astype(np.int64), columns["anchor_length"].astype(np.int64)
        window = np.searchsorted(begin, token, side="right") - 1
        triple, is_reversed = columns["anchor_triple"], columns["anchor_reversed"].astype(bool)
        # Which facts the checkpoint was trained on.
        taken = token + length <= end[window]
        taken &= self._include_uses | ~columns["anchor_is_use"].astype(bool)
        taken &= self._include_site_anchors | ~is_reversed
        kept = np.flatnonzero(taken & ~np.isin(columns["anchor_relation"], self._excluded))
        token, length, window = token[kept], length[kept], window[kept]
        # Where each triple's tail stands, -1 for those without a place.
        site = np.full(int(triple.max(initial=-1)) + 1, -1, dtype=np.int64)
        if self._include_site_anchors:
            site[triple[is_reversed]] = columns["anchor_start"][is_reversed]
        site, is_reversed = site[triple[kept]], is_reversed[kept]
        relation, leaf_ids = columns["anchor_relation"][kept], columns["leaf_ids"]
        leaf_begin = columns["leaf_offsets"][:-1].astype(np.int64)[kept]
        leaf_length = np.diff(columns["leaf_offsets"]).astype(np.int64)[kept]
        canonical_leaves, canonical = self._canonical[leaf_ids], self._canonical[columns["input_ids"]]
        candidates = Candidates(
            window=window,
            fact=columns["anchor_fact"][kept],
            # Root 0 is <s>.
            start=token - begin[window] + 1,
            length=length,
            relation=relation,
            reversed=is_reversed,
            visible=find_visible(leaf_begin, leaf_length, canonical_leaves, window, canonical, begin, end),
            extra=is_extra(relation, is_reversed, site >= 0, (begin[window] <= site) & (site < end[window])),
            leaf_begin=leaf_begin,
            leaf_length=leaf_length,
        )
        found = place(candidates, leaf_ids, self.leaves_per_root)
        self.counts["facts_without_room"] += found.num_dropped
        slots = zip(*(column.tolist() for column in found[:4]), strict=True)
        for k, root, slot, num_tokens in slots:
            first, size = int(leaf_begin[k]), int(leaf_length[k])
            fields = (int(column[k]) for column in candidates[1:5])
            anchor = Anchor(*fields, bool(is_reversed[k]), leaf_ids[first : first + size].tolist())
            result[window[k]].append(Placed(anchor, root, slot, num_tokens))
            self.counts["facts_cut"] += num_tokens < size
        return result

    def index_of(self, file: CodeFile) -> ProjectIndex | None:
        """The index of a file's project; None for languages whose names are not followed across files."""
        return self.indices.get(file.project) if file.language == "python" else None

    def window_at(self, file: int, token: int) -> int | None:
        """Number of the window of a file that holds a token; None where the file ends before it."""
        for number in self.files[file].windows:
            if self.windows[number].start <= token < self.windows[number].end:
                return number
        return None
