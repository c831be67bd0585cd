"""From character spans to tokens: one file's code and code graph become one row of a chain-graph dataset.

A triple may be anchored at either end. The forward anchor hangs on the head's span and carries the tail's text; the
reversed anchor hangs on the tail's span (the place of use) and carries the head's text, under the same relation read
backwards. Both are stored; `windows.py` chooses at most one anchor for each fact in a window.
"""

import re
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from ..code_graph.schema import RELATION_IDS
from .encoding import TextEncoder, TextPieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from ..code_graph import CodeGraph

# SpanBERT's longest span here is 7 tokens (the setup's leaves per root): a longer word is masked in pieces of this size.
MAX_WORD_TOKENS = 7

_SPACE_MARKS = "Ġ▁"
_WORD = re.compile(r"\w")
_FIELDS = attrgetter("head", "head_start", "head_end", "relation", "tail", "tail_start", "tail_end", "is_use")
# A leaf encoder forgets what it knows when it holds this many texts, so that memory does not grow with the corpus.
_MAX_LEAF_TEXTS = 200_000

# For the code points below 128, and one entry more that stands for all others.
_SPACE_TABLE = np.isin(np.arange(129), (9, 10, 11, 12, 13, 32))
_WORD_TABLE = np.array([bool(_WORD.match(chr(c))) for c in range(128)] + [False])

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

    Attributes:
        encoder: encodes whole texts, and shares what it knows of them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._backend = tokenizer.backend_tokenizer
        self.encoder = TextEncoder(self._backend)
        self._cache: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids = self._cache.get(text)
        if ids is None:
            ids = self.encoder.ids(" " + text)
            if ids and not self._backend.id_to_token(ids[0]).lstrip(_SPACE_MARKS):
                ids = ids[1:]
            if len(self._cache) >= _MAX_LEAF_TEXTS:
                self._cache.clear()
            self._cache[text] = ids
        return ids


def corpus_backend(tokenizer_json: str) -> "Tokenizer":
    """The backend of a tokenizer as linking needs it: whole files, and no text of theirs taken for a special token.

    Args:
        tokenizer_json: the text of a `tokenizer.json`.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer_json)
    # A tokenizer.json may carry the truncation that its last user chose, which would cut files silently.
    backend.no_truncation()
    backend.no_padding()
    # Code may hold the text "<mask>" or "</s>"; in a corpus it is text.
    backend.encode_special_tokens = True
    return backend


class _Characters:
    """Properties of each character of a text, looked up by its index; one past the end counts as neither."""

    def __init__(self, code: str):
        points = np.frombuffer(code.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        small = np.minimum(points, 128).astype(np.int16)
        self.is_space = np.append(_SPACE_TABLE[small], False)
        self.is_word = np.append(_WORD_TABLE[small], False)
        if not code.isascii():
            other = np.flatnonzero(points >= 128)
            distinct, index = np.unique(points[other], return_inverse=True)
            self.is_word[other] = np.array([bool(_WORD.match(chr(c))) for c in distinct.tolist()])[index]


def word_starts(characters: _Characters, text_starts: np.ndarray, char_ends: np.ndarray) -> np.ndarray:
    """Mark the tokens that begin a word: a run of letters, digits and underscores is one word, any other token is its own.

    Args:
        characters: of the text.
        text_starts, char_ends: int arrays `(tokens,)`, the tokens' character spans without the space in front.

    Returns:
        int8 array `(tokens,)`, 1 where a word begins; a word of more than `MAX_WORD_TOKENS` tokens is cut into such pieces.
    """
    if len(text_starts) == 0:
        return np.zeros(0, dtype=np.int8)
    # A token goes on with a word where the character before its own text belongs to the same run.
    continues = characters.is_word[text_starts] & characters.is_word[text_starts - 1] & (text_starts > 0)
    # Pieces of one character (bytes of a non-ASCII letter) share their offsets with the piece before.
    continues[1:] |= (text_starts[1:] == text_starts[:-1]) & (char_ends[1:] == char_ends[:-1])
    continues[0] = False
    starts = (~continues).astype(np.int8)
    index = np.arange(len(starts))
    word_begin = np.maximum.accumulate(np.where(continues, 0, index))
    starts[(index - word_begin) % MAX_WORD_TOKENS == 0] = 1
    return starts


def link_file(
    code: str,
    graph: "CodeGraph",
    tokenizer: "PreTrainedTokenizerFast",
    leaf_encoder: LeafEncoder | None = None,
    pieces: TextPieces | None = None,
    language: str = "python",
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Tokenise one file and hang its triples on its tokens (leafy chain graph, sparse form).

    Args:
        code: the file's text.
        graph: its code graph, with character offsets into `code`.
        tokenizer: a fast tokenizer; its offsets place the triples.
        leaf_encoder: shared over files to encode each name once; made here if not given.
        pieces: of `code`, if they are known (see `TextEncoder.encode`).
        language: of the file. Outside Python a name may begin or end with signs (`$name`, `run!`, `'./path'`, `List<T>`),
            which share their tokens with what stands beside them: `_trim` leaves those tokens out of the anchor.

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
    ids, starts, ends = leaf_encoder.encoder.encode(code, pieces)
    characters = _Characters(code)
    text_starts = _skip_leading_space(characters, starts, ends)

    anchors = _list_anchors(graph.triples, leaf_encoder)
    first = np.searchsorted(ends, anchors.start, side="right")
    last = np.searchsorted(starts, anchors.end, side="left")
    if language != "python":
        first, last = _trim(characters, anchors, first, last, text_starts, ends)
    is_linked = (last > first) & (anchors.leaf_length > 0)
    # Anchors are sorted by place, so that a window's anchors are one slice of the row.
    linked = np.flatnonzero(is_linked)
    linked = linked[np.argsort(first[linked], kind="stable")]
    first, last = first[linked], last[linked]
    straddling = (text_starts[first] < anchors.start[linked]) | (ends[last - 1] > anchors.end[linked])
    leaf_length = anchors.leaf_length[linked]
    leaf_offsets = np.concatenate([[0], np.cumsum(leaf_length)])
    # Where each leaf token lies among the tokens of the file's distinct texts.
    within = np.arange(leaf_offsets[-1]) - np.repeat(leaf_offsets[:-1], leaf_length)
    leaf_ids = anchors.text_ids[np.repeat(anchors.leaf_begin[linked], leaf_length) + within]

    boundaries = _flat(graph.boundaries).reshape(-1, 2)
    boundary_token, keep = np.unique(np.searchsorted(text_starts, boundaries[:, 0], side="left"), return_index=True)
    columns = {
        "input_ids": ids,
        "char_starts": starts,
        "char_ends": ends,
        "word_starts": word_starts(characters, text_starts, ends),
        "boundary_token": boundary_token,
        "boundary_depth": boundaries[keep, 1],
        "anchor_start": first,
        "anchor_length": last - first,
        "anchor_relation": anchors.relation[linked],
        "anchor_reversed": anchors.is_reversed[linked],
        "anchor_triple": anchors.triple[linked],
        "anchor_fact": anchors.fact[linked],
        "anchor_is_use": anchors.is_use[linked],
        "leaf_offsets": leaf_offsets,
        "leaf_ids": leaf_ids,
    }
    columns = {name: np.asarray(columns[name]).astype(dtype) for name, dtype in ROW_COLUMNS.items()}
    num_triples = len(graph.triples)
    stats = {
        "tokens": len(starts),
        "triples": num_triples,
        "triples_linked": int(np.count_nonzero(np.bincount(columns["anchor_triple"], minlength=1))),
        "heads": num_triples,
        "heads_linked": int(is_linked[~anchors.is_reversed].sum()),
        "anchors": len(linked),
        "anchors_straddling": int(straddling.sum()),
        "leaf_tokens": int(leaf_offsets[-1]),
    }
    return columns, stats


def _trim(
    characters: _Characters, anchors: "_Anchors", first: np.ndarray, last: np.ndarray, text_starts, ends
) -> tuple[np.ndarray, np.ndarray]:
    """Leaves out a token at the edge of an anchor that reaches beyond it and holds only signs of it.

    Args:
        characters: of the text.
        anchors: with their spans.
        first, last: int arrays `(anchors,)`, the tokens that overlap each span.
        text_starts, ends: int arrays `(tokens,)`, the tokens' spans without the space in front.

    Returns:
        `first` and `last` anew; at least one token of an anchor is left, and none goes that holds a letter or digit of it.
    """
    words_before = np.concatenate([[0], np.cumsum(characters.is_word)])
    first, last = first.copy(), last.copy()
    several = np.flatnonzero(last - first > 1)
    token = first[several]
    inside = np.minimum(ends[token], anchors.end[several])
    reaches = text_starts[token] < anchors.start[several]
    first[several[reaches & (words_before[inside] == words_before[anchors.start[several]])]] += 1
    several = np.flatnonzero(last - first > 1)
    token = last[several] - 1
    inside = np.maximum(text_starts[token], anchors.start[several])
    reaches = ends[token] > anchors.end[several]
    last[several[reaches & (words_before[anchors.end[several]] == words_before[inside])]] -= 1
    return first, last


class _Anchors:
    """The anchors of a file, one array element for each: the span, the leaf's tokens in `text_ids`, and its triple."""

    start: np.ndarray
    end: np.ndarray
    relation: np.ndarray
    is_reversed: np.ndarray
    triple: np.ndarray
    fact: np.ndarray
    is_use: np.ndarray
    leaf_begin: np.ndarray
    leaf_length: np.ndarray
    text_ids: np.ndarray


def _list_anchors(triples: list, leaf_encoder: LeafEncoder) -> _Anchors:
    """Each triple's forward anchor, then, where its tail has a place of its own in the text, its reversed anchor."""
    heads, head_start, head_end, relations, tails, tail_start, tail_end, is_use = (
        zip(*map(_FIELDS, triples), strict=True) if triples else [()] * 8
    )
    head_start, head_end = _flat_row(head_start), _flat_row(head_end)
    tail_start, tail_end = (_flat_row(-1 if x is None else x for x in column) for column in (tail_start, tail_end))
    relation = _flat_row(map(RELATION_IDS.__getitem__, relations))
    facts: dict[tuple, int] = {}
    fact = _flat_row(facts.setdefault(key, len(facts)) for key in zip(heads, relations, tails, strict=True))
    # Each distinct text is encoded once, and named by its number.
    texts = {text: number for number, text in enumerate(dict.fromkeys(chain(heads, tails)))}
    encoded = [leaf_encoder(text) for text in texts]
    text_length = _flat_row(map(len, encoded))
    text_begin = np.cumsum(text_length) - text_length
    head_text, tail_text = (_flat_row(map(texts.__getitem__, column)) for column in (heads, tails))

    has_site = (tail_start >= 0) & (tail_start != head_start)
    # An anchor's number is twice its triple's, plus one if it is reversed.
    forward, backward = np.arange(len(triples)) * 2, np.flatnonzero(has_site) * 2 + 1
    order = np.argsort(np.concatenate([forward, backward]), kind="stable")

    def both(at_head: np.ndarray, at_site: np.ndarray) -> np.ndarray:
        return np.concatenate([at_head, at_site[has_site]])[order]

    anchors = _Anchors()
    anchors.start, anchors.end = both(head_start, tail_start), both(head_end, tail_end)
    anchors.is_reversed = np.concatenate([np.zeros(len(forward), bool), np.ones(len(backward), bool)])[order]
    number = np.arange(len(triples))
    anchors.relation, anchors.fact, anchors.triple = both(relation, relation), both(fact, fact), both(number, number)
    used = np.array(is_use, dtype=bool)
    anchors.is_use = both(used, used)
    leaf_text = both(tail_text, head_text)
    anchors.leaf_begin, anchors.leaf_length = text_begin[leaf_text], text_length[leaf_text]
    anchors.text_ids = _flat(encoded)
    return anchors


def _flat(rows: list) -> np.ndarray:
    """The numbers of many short lists or tuples, one after the other."""
    return _flat_row(chain.from_iterable(rows))


def _flat_row(values) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _skip_leading_space(characters: _Characters, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where each token's own text begins: after the spaces that a byte-level token may carry in front."""
    text_starts = starts.copy()
    moving = np.arange(len(starts))
    while len(moving):
        moving = moving[characters.is_space[text_starts[moving]] & (text_starts[moving] < ends[moving] - 1)]
        text_starts[moving] += 1
    return text_starts
