"""Excerpts: a function as a piece of its file, with the facts that the graph of the whole file hangs on it.

An excerpt can have names masked. Text and graph are masked alike and before anything is tokenised, by the same table of
placeholders, so that no leaf can tell a name that the text hides.
"""

import builtins
import functools
import keyword
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

from datasets import Dataset
from tree_sitter import Query, QueryCursor

from ..chain_graphs.linking import ROW_COLUMNS, LeafEncoder, link_file
from ..code_graph import CodeGraph, Triple, extract
from ..code_graph.syntax import grammar
from .functions import Function

MASKS = ("none", "name", "all")
NAME_PLACEHOLDER = "func"
# Text kept on each side of a function where raw context is asked for: more than the tokens that 896 leaves hold.
CONTEXT_CHARACTERS = 6000

_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_DUNDER = re.compile(r"__\w+__")
# The vocabulary of the language, which is no name of the program's.
LANGUAGE_WORDS = frozenset([*keyword.kwlist, *dir(builtins), "self", "cls"])


class Excerpt(NamedTuple):
    """A function with its facts, and text around it.

    Attributes:
        text: the function, and text before and after it if that was asked for.
        start, end: the function within `text`.
        triples: the facts with an end in the function, with places in `text`; a tail's place outside is None.
        boundaries: where windows may be cut, offsets in `text`.
        identifiers: (start, end) of each name in `text`.
    """

    text: str
    start: int
    end: int
    triples: list[Triple]
    boundaries: list[tuple[int, int]]
    identifiers: list[tuple[int, int]]

    @property
    def code(self) -> str:
        """The function's text."""
        return self.text[self.start : self.end]


@functools.cache
def _identifiers_query() -> Query:
    return Query(grammar("python").language, "(identifier) @name")


def cut_excerpts(
    functions: Sequence[Function],
    context_characters: int = 0,
    graph: Callable[[str], CodeGraph] = extract,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[Excerpt]:
    """Cut functions out of their files together with the facts of the files' graphs.

    Args:
        functions: each file is read once where its functions stand together.
        context_characters: how much text to keep on each side.
        graph: what reads the graph of a file.
        progress: wraps the functions, for a progress bar.

    Returns:
        One excerpt for each function.
    """
    excerpts: list[Excerpt] = []
    file, read, root = None, CodeGraph(), None
    for function in progress(functions):
        if root is None or function.file is not file:
            file = function.file
            read, root = graph(file), grammar("python").parse(file)
        low = max(0, function.start - context_characters)
        high = min(len(file), function.end + context_characters)
        cursor = QueryCursor(_identifiers_query())
        cursor.set_byte_range(low, high)
        names = sorted((node.start_byte, node.end_byte) for node in cursor.captures(root).get("name", []))
        excerpts.append(
            Excerpt(
                text=file[low:high],
                start=function.start - low,
                end=function.end - low,
                triples=_facts_within(read.triples, function.start, function.end, low),
                boundaries=[(at - low, depth) for at, depth in read.boundaries if function.start <= at < function.end],
                identifiers=[(a - low, b - low) for a, b in names if low <= a and b <= high and a < b],
            )
        )
    return excerpts


def _facts_within(triples: Iterable[Triple], start: int, end: int, origin: int) -> list[Triple]:
    """The facts with an end between `start` and `end`, with places counted from `origin`."""
    found = []
    for triple in triples:
        has_site = triple.tail_start is not None and start <= triple.tail_start and triple.tail_end <= end
        if has_site or (start <= triple.head_start and triple.head_end <= end):
            site = (triple.tail_start - origin, triple.tail_end - origin) if has_site else (None, None)
            # A head outside keeps its place outside, where no token of the function is.
            moved = (triple.head, triple.head_start - origin, triple.head_end - origin)
            found.append(Triple(*moved, triple.relation, triple.tail, *site, triple.is_use))
    return found


def mask_names(excerpt: Excerpt, masking: str, name: str = "") -> Excerpt:
    """Replace names by placeholders, in the text and in the facts alike.

    `"name"` replaces one name, wherever it stands as an identifier, by `func`. `"all"` replaces every identifier but the
    vocabulary of the language (keywords, builtins, `self`, `cls`, names in double underscores) by `v0`, `v1`, ... in the
    order in which the function names them; equal names keep equal placeholders. Strings and comments stay as they are.

    Args:
        excerpt: what to mask.
        masking: one of `MASKS`.
        name: the function's name, for `"name"`.

    Raises:
        ValueError: another `masking`.
    """
    if masking not in MASKS:
        raise ValueError(f"masking must be one of {', '.join(MASKS)}, got {masking!r}")
    if masking == "none":
        return excerpt
    table: dict[str, str] = {}

    def placeholder(word: str) -> str:
        if masking == "name":
            return NAME_PLACEHOLDER if word == name else word
        if word in LANGUAGE_WORDS or _DUNDER.fullmatch(word):
            return word
        return table.setdefault(word, f"v{len(table)}")

    inside = [span for span in excerpt.identifiers if excerpt.start <= span[0] and span[1] <= excerpt.end]
    for a, b in inside:
        placeholder(excerpt.text[a:b])
    pieces, identifiers, ends, shifts = [], [], [0], [0]
    position = 0
    for a, b in excerpt.identifiers:
        word = placeholder(excerpt.text[a:b])
        begin = a + shifts[-1]
        identifiers.append((begin, begin + len(word)))
        pieces += [excerpt.text[position:a], word]
        position = b
        ends.append(b)
        shifts.append(shifts[-1] + len(word) - (b - a))

    def moved(offset: int | None) -> int | None:
        # Offsets outside the text stay outside.
        if offset is None or not 0 <= offset <= len(excerpt.text):
            return None if offset is None else offset if offset < 0 else offset + shifts[-1]
        return offset + shifts[bisect_right(ends, offset) - 1]

    def reworded(text: str) -> str:
        return _IDENTIFIER.sub(lambda match: placeholder(match.group()), text)

    triples = [
        Triple(
            reworded(t.head), moved(t.head_start), moved(t.head_end), t.relation,
            reworded(t.tail), moved(t.tail_start), moved(t.tail_end), t.is_use,
        )
        for t in excerpt.triples
    ]  # fmt: skip
    return Excerpt(
        "".join([*pieces, excerpt.text[position:]]),
        moved(excerpt.start),
        moved(excerpt.end),
        triples,
        [(moved(at), depth) for at, depth in excerpt.boundaries],
        identifiers,
    )


def link_excerpts(excerpts: Iterable[Excerpt], tokenizer) -> Dataset:
    """Rows as in a data set of chain graphs, one for each excerpt: `WindowDataset` cuts them into windows.

    Args:
        excerpts: the functions; what stands around them is left out.
        tokenizer: a fast tokenizer.
    """
    encoder = LeafEncoder(tokenizer)
    columns: dict[str, list] = {name: [] for name in ROW_COLUMNS}
    for excerpt in excerpts:
        start = excerpt.start
        triples = [
            t._replace(
                head_start=t.head_start - start,
                head_end=t.head_end - start,
                tail_start=None if t.tail_start is None else t.tail_start - start,
                tail_end=None if t.tail_end is None else t.tail_end - start,
            )
            for t in excerpt.triples
        ]
        boundaries = [(at - start, depth) for at, depth in excerpt.boundaries]
        graph = SimpleNamespace(triples=triples, boundaries=boundaries)
        row, _ = link_file(excerpt.code, graph, tokenizer, encoder)
        for name, values in row.items():
            columns[name].append(values)
    return Dataset.from_dict(columns)
