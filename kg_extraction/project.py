"""The files that a knowledge graph is made of: their code graphs, tokens and windows."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..chain_graphs.layout import Candidate, Placed, is_extra, place
from ..chain_graphs.linking import LeafEncoder, link_file
from ..chain_graphs.sources import ReadOptions, SkippedFile, SourceFile, parse_source
from ..chain_graphs.windows import canonical_ids, cut_windows
from ..code_graph import CodeGraph, ProjectIndex, extract


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
        num_roots, leaves_per_root: as in the checkpoint's configuration.

    Attributes:
        files: the `CodeFile`s.
        windows: all windows.
        indices: the `ProjectIndex` of each project, by which names are followed across its files.
        counts: `windows`, `facts_without_room` and `facts_cut` among the leaves.
    """

    def __init__(
        self, files: Iterable[tuple[str, str, str, str]], tokenizer, num_roots: int = 128, leaves_per_root: int = 7
    ):
        self.num_roots, self.leaves_per_root = num_roots, leaves_per_root
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
        columns, _ = link_file(code, graph, self.tokenizer, self.encode)
        facts: dict[tuple[str, str, str], int] = {}
        for triple in graph.triples:
            facts.setdefault((triple.head, triple.relation, triple.tail), len(facts))
        line_starts = [0, *(index + 1 for index, character in enumerate(code) if character == "\n")]
        file = CodeFile(project, path, language, code, graph, columns, facts, line_starts=line_starts)
        if language == "python":
            self.indices.setdefault(project, ProjectIndex()).add(path, code)
        number = len(self.files)
        self.files.append(file)
        # Where each triple's tail stands, as `WindowDataset` knows it.
        reversed_anchors = np.flatnonzero(columns["anchor_reversed"])
        sites = {int(columns["anchor_triple"][k]): int(columns["anchor_start"][k]) for k in reversed_anchors}
        max_tokens = self.num_roots - 2
        ranges = cut_windows(
            len(columns["input_ids"]), columns["boundary_token"], columns["boundary_depth"], max_tokens
        )
        for start, end in ranges:
            file.windows.append(len(self.windows))
            self.windows.append(self._window(number, columns, sites, start, end))

    def _window(self, file: int, columns: dict, sites: dict[int, int], start: int, end: int) -> Window:
        """The leaves of one window, placed by the rules of `WindowDataset`."""
        tokens = columns["input_ids"][start:end]
        low, high = np.searchsorted(columns["anchor_start"], (start, end), side="left")
        shown = " ".join(map(str, self._canonical[tokens].tolist()))
        candidates = []
        names = ("anchor_start", "anchor_length", "anchor_relation", "anchor_reversed", "anchor_fact", "anchor_triple")
        table = np.stack([columns[name][low:high] for name in names], axis=1).tolist()
        for number, (first, length, relation, is_reversed, fact, triple) in enumerate(table, low):
            if first + length > end:
                continue
            leaf = columns["leaf_ids"][columns["leaf_offsets"][number] : columns["leaf_offsets"][number + 1]].tolist()
            text = " ".join(map(str, self._canonical[leaf].tolist()))
            site = sites.get(triple)
            extra = is_extra(relation, is_reversed, site is not None, site is not None and start <= site < end)
            # Root 0 is <s>.
            candidates.append(
                Candidate(
                    fact, first - start + 1, length, relation, is_reversed, f" {text} " in f" {shown} ", extra, leaf
                )
            )
        placed, dropped, _ = place(candidates, self.leaves_per_root) if self.leaves_per_root else ([], 0, 0)
        self.counts["windows"] += 1
        self.counts["facts_without_room"] += dropped
        self.counts["facts_cut"] += sum(item.num_tokens < len(item.candidate.leaf) for item in placed)
        bos, eos = self._edges
        return Window(file, start, end, np.concatenate([[bos], tokens, [eos]]).astype(np.int64), placed)

    def window_at(self, file: int, token: int) -> int | None:
        """Number of the window of a file that holds a token; None where the file ends before it."""
        for number in self.files[file].windows:
            if self.windows[number].start <= token < self.windows[number].end:
                return number
        return None
