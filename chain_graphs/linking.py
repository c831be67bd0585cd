"""From character spans to tokens: one file's code and code graph become one row of a chain-graph dataset.

A triple may be anchored at either end. The forward anchor hangs on the head's span and carries the tail's text; the
reversed anchor hangs on the tail's span (the place of use) and carries the head's text, under the same relation read
backwards. Both are stored; `windows.py` chooses at most one anchor for each fact in a window.
"""

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerFast

from ..code_graph.schema import RELATION_IDS

if TYPE_CHECKING:
    from ..code_graph import CodeGraph

# SpanBERT's longest span here is 7 tokens (the setup's leaves per root): a longer word is masked in pieces of this size.
MAX_WORD_TOKENS = 7

_WORD = re.compile(r"\w+")
_SPACE_MARKS = ("Ġ", "▁")

ROW_COLUMNS = {
    "input_ids": np.int32,
    "char_starts": np.int32,
    "char_ends": np.int32,
    "word_starts": np.int8,
    "boundary_token": np.int32,
    "boundary_depth": np.int8,
    "anchor_start": np.int32,
    "anchor_length": np.int32,
    "anchor_relation": np.int8,
    "anchor_reversed": np.int8,
    "anchor_triple": np.int32,
    "anchor_fact": np.int32,
    "anchor_is_use": np.int8,
    "leaf_offsets": np.int32,
    "leaf_ids": np.int32,
}
"""Columns that `link_file` makes, with the integer type of their elements (each is a list per file)."""


class LeafEncoder:
    """Turns the text of a tail into token ids, each distinct text once.

    The text is encoded as a word that follows a space, the form that RoBERTa's vocabularies know best; where the
    tokenizer keeps the space apart, the space is left out. The result is the same for every occurrence of a name.

    Args:
        tokenizer: a fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = tokenizer.backend_tokenizer
        self._cache: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            encoding = self._backend.encode(" " + text, add_special_tokens=False)
            ids = encoding.ids
            if encoding.tokens and not encoding.tokens[0].lstrip("".join(_SPACE_MARKS)):
                ids = ids[1:]
            self._cache[text] = ids
        return ids


def word_starts(code: str, char_starts: np.ndarray, char_ends: np.ndarray) -> np.ndarray:
    """Mark the tokens that begin a word: a run of letters, digits and underscores is one word, any other token is its own.

    Args:
        code: the text.
        char_starts, char_ends: int arrays `(tokens,)`, the tokens' character spans.

    Returns:
        int8 array `(tokens,)`, 1 where a word begins; a word of more than `MAX_WORD_TOKENS` tokens is cut into such pieces.
    """
    runs = np.array([match.span() for match in _WORD.finditer(code)], dtype=np.int64).reshape(-1, 2)
    # A token may begin with the space before its word; what counts is where its own text begins.
    if len(char_starts) == 0:
        return np.zeros(0, dtype=np.int8)
    run_of = np.searchsorted(runs[:, 1], char_starts, side="right")
    inside = run_of < len(runs)
    run_start = np.where(inside, runs[np.minimum(run_of, len(runs) - 1), 0] if len(runs) else 0, 0)
    continues = inside & (run_start < char_starts)
    # Pieces of one character (bytes of a non-ASCII letter) share their offsets with the piece before.
    continues[1:] |= (char_starts[1:] == char_starts[:-1]) & (char_ends[1:] == char_ends[:-1])
    continues[0] = False
    starts = (~continues).astype(np.int8)
    if continues.any():
        index = np.arange(len(starts))
        word_begin = np.maximum.accumulate(np.where(starts == 1, index, 0))
        starts[(index - word_begin) % MAX_WORD_TOKENS == 0] = 1
    return starts


def link_file(
    code: str, graph: "CodeGraph", tokenizer: PreTrainedTokenizerFast, leaf_encoder: LeafEncoder | None = None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Tokenise one file and hang its triples on its tokens (DESIGN: leafy chain graph, sparse form).

    Args:
        code: the file's text.
        graph: its code graph, with character offsets into `code`.
        tokenizer: a fast tokenizer; its offsets place the triples.
        leaf_encoder: shared over files to encode each name once; made here if not given.

    Returns:
        The row's columns (`ROW_COLUMNS`, numpy arrays) and counts: `triples`, `triples_linked` (at least one anchor),
        `heads`, `heads_linked`, `anchors`, `anchors_straddling` (the anchor's first or last token reaches beyond the
        name, spaces aside), `leaf_tokens`, `tokens`.

    Raises:
        ValueError: the tokenizer has no fast backend.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} is not a fast tokenizer and gives no character offsets; "
            "use a directory with a tokenizer.json"
        )
    leaf_encoder = leaf_encoder or LeafEncoder(tokenizer)
    encoding = tokenizer.backend_tokenizer.encode(code, add_special_tokens=False)
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts, ends = offsets[:, 0].copy(), offsets[:, 1]
    text_starts = _skip_leading_space(code, starts, ends)

    spans, rows, leaves = [], [], []
    facts: dict[tuple[str, str, str], int] = {}
    for number, triple in enumerate(graph.triples):
        fact = facts.setdefault((triple.head, triple.relation, triple.tail), len(facts))
        relation = RELATION_IDS[triple.relation]
        spans.append((triple.head_start, triple.head_end))
        rows.append((relation, 0, number, fact, triple.is_use))
        leaves.append(triple.tail)
        if triple.tail_start is not None and triple.tail_start != triple.head_start:
            spans.append((triple.tail_start, triple.tail_end))
            rows.append((relation, 1, number, fact, triple.is_use))
            leaves.append(triple.head)

    span_array = np.array(spans, dtype=np.int64).reshape(-1, 2)
    row_array = np.array(rows, dtype=np.int64).reshape(-1, 5)
    first = np.searchsorted(ends, span_array[:, 0], side="right")
    last = np.searchsorted(starts, span_array[:, 1], side="left")
    leaf_tokens = [leaf_encoder(text) for text in leaves]
    leaf_lengths = np.array([len(ids) for ids in leaf_tokens], dtype=np.int64)
    linked = (last > first) & (leaf_lengths > 0)
    is_head = row_array[:, 1] == 0

    kept_first, kept_last = first[linked], last[linked]
    straddling = (text_starts[kept_first] < span_array[linked, 0]) | (ends[kept_last - 1] > span_array[linked, 1])
    # Anchors are sorted by place, so that a window's anchors are one slice of the row.
    order = np.argsort(kept_first, kind="stable")
    kept_leaves = [leaf_tokens[i] for i in np.flatnonzero(linked)[order]]
    kept_rows = row_array[linked][order]
    boundary_chars = np.array([offset for offset, _ in graph.boundaries], dtype=np.int64)
    boundary_depth = np.array([depth for _, depth in graph.boundaries], dtype=np.int64)
    boundary_token, keep = np.unique(np.searchsorted(text_starts, boundary_chars, side="left"), return_index=True)

    columns = {
        "input_ids": np.array(encoding.ids),
        "char_starts": starts,
        "char_ends": ends,
        "word_starts": word_starts(code, text_starts, ends),
        "boundary_token": boundary_token,
        "boundary_depth": boundary_depth[keep],
        "anchor_start": kept_first[order],
        "anchor_length": (kept_last - kept_first)[order],
        "anchor_relation": kept_rows[:, 0],
        "anchor_reversed": kept_rows[:, 1],
        "anchor_triple": kept_rows[:, 2],
        "anchor_fact": kept_rows[:, 3],
        "anchor_is_use": kept_rows[:, 4],
        "leaf_offsets": np.cumsum([0, *map(len, kept_leaves)]),
        "leaf_ids": np.array([token for ids in kept_leaves for token in ids]),
    }
    columns = {name: np.asarray(columns[name]).astype(dtype) for name, dtype in ROW_COLUMNS.items()}
    stats = Counter(
        tokens=len(starts),
        triples=len(graph.triples),
        triples_linked=len(np.unique(row_array[linked, 2])),
        heads=int(is_head.sum()),
        heads_linked=int((is_head & linked).sum()),
        anchors=len(kept_rows),
        anchors_straddling=int(straddling.sum()),
        leaf_tokens=int(leaf_lengths[linked].sum()),
    )
    return columns, dict(stats)


def _skip_leading_space(code: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where each token's own text begins: after the spaces that a byte-level token may carry in front."""
    text_starts = starts.copy()
    space = np.frombuffer(code.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_space = np.append(np.isin(space, (9, 10, 11, 12, 13, 32)), False)
    while True:
        move = (text_starts < ends - 1) & is_space[np.minimum(text_starts, len(is_space) - 1)]
        if not move.any():
            return text_starts
        text_starts[move] += 1
