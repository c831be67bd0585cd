"""Token ids and character spans of whole files, each distinct piece of text encoded once.

`tokenizers` cuts a text into pieces with its own regular expressions and encodes each occurrence of a piece: more than
half of a build's time. Code repeats itself, so here Python's `re` cuts and a table holds the tokens of every piece met so
far; that gives the same tokens five times as fast. Where the pieces of a text are known from an earlier look at it
(`survey.py`), it is not even cut again. All this holds for ASCII text and for the tokenizers of `tokenizer.py`, whose
pattern both engines read alike; lines with other characters, and other tokenizers, go to `tokenizers` itself.
"""

import json
import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from .pieces import PIECES

# The table is emptied when it holds so many tokens, so that memory does not grow with the corpus.
MAX_TABLE_TOKENS = 4_000_000
# A longer piece (a rule of dashes, a run of digits) is encoded each time.
_MAX_PIECE_CHARS = 200
# A piece that begins with a line break never reaches over a character that is no space: here a text may be cut.
_CUT = re.compile(r"(?<=[!-~])(?=\n)")
_find_pieces = re.compile(PIECES, re.ASCII).findall
_split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")


def cut_into_pieces(text: str) -> list[str]:
    """The pieces that the tokenizers of `tokenizer.py` cut a text into, one after the other."""
    if text.isascii():
        return _find_pieces(text)
    pieces: list[str] = []
    for part in _ascii_and_other(text):
        pieces += _find_pieces(part) if part.isascii() else [piece for piece, _ in _split.pre_tokenize_str(part)]
    return pieces


class TextPieces(NamedTuple):
    """The pieces of a text, cut before: `distinct[numbers[0]]`, `distinct[numbers[1]]`, ..."""

    numbers: np.ndarray
    distinct: list[str]

    def ends(self) -> np.ndarray:
        """The character at which each piece ends, int64."""
        return np.cumsum(np.fromiter(map(len, self.distinct), dtype=np.int64)[self.numbers])


class TextEncoder:
    """Encodes texts as `backend.encode(text, add_special_tokens=False)` does.

    Args:
        backend: a fast tokenizer's backend.
    """

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        pattern = split_pattern(backend)
        self._find = re.compile(pattern, re.ASCII).findall if pattern else None
        self._added = [token.content for token in backend.get_added_tokens_decoder().values()]
        if self._find:
            alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            self._byte_level = {point: alphabet.pre_tokenize_str(chr(point))[0][0] for point in range(128)}
        self._clear()

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        # Tokens of piece k: those from begin[k] to begin[k + 1].
        self._begin, self._ids, self._lengths = array("q", [0]), array("i"), array("i")
        # The texts whose places in the table were looked up last, and those places.
        self._looked_up: tuple[list[str] | None, np.ndarray | None] = (None, None)

    def ids(self, text: str) -> list[int]:
        """Token ids of a short text."""
        if not (self._is_plain(text) and text.isascii()):
            return self._backend.encode(text, add_special_tokens=False).ids
        result: list[int] = []
        for piece in self._find(text):
            number = self._number(piece)
            result.extend(self._ids[self._begin[number] : self._begin[number + 1]])
        return result

    def encode(self, text: str, pieces: TextPieces | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of a text.

        Args:
            text: of any length.
            pieces: what `cut_into_pieces` makes of it, if that is known.

        Returns:
            Token ids, first characters and ends: three int64 arrays `(tokens,)`.
        """
        if not self._is_plain(text):
            return self._encode_whole(text)
        if text.isascii():
            return self._encode_pieces(text, pieces)
        parts, begin = [], 0
        piece_ends = None if pieces is None else pieces.ends()
        for part in _ascii_and_other(text):
            if part.isascii():
                known = None
                if pieces is not None:
                    first, last = np.searchsorted(piece_ends, (begin, begin + len(part)), side="right")
                    known = TextPieces(pieces.numbers[first:last], pieces.distinct)
                ids, starts, ends = self._encode_pieces(part, known)
            else:
                ids, starts, ends = self._encode_whole(part)
            parts.append((ids, starts + begin, ends + begin))
            begin += len(part)
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _is_plain(self, text: str) -> bool:
        """Whether the table may be used: a known pattern, nothing cut off or filled up, no added tokens in the text."""
        if self._find is None or self._backend.truncation is not None or self._backend.padding is not None:
            return False
        return self._backend.encode_special_tokens or not any(token in text for token in self._added)

    def _encode_whole(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return np.array(encoding.ids, dtype=np.int64), offsets[:, 0].copy(), offsets[:, 1].copy()

    def _encode_pieces(self, text: str, pieces: TextPieces | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if len(self._ids) > MAX_TABLE_TOKENS:
            self._clear()
        if pieces is None:
            number = np.array(list(map(self._number, self._find(text))), dtype=np.int64)
        else:
            number = self._places(pieces.distinct)[pieces.numbers]
        begin = np.frombuffer(self._begin, dtype=np.int64)
        count = begin[number + 1] - begin[number]
        total = np.cumsum(count)
        # Where each token lies in the table: its piece's place there, and its place in the piece.
        place = np.repeat(begin[number] - total + count, count) + np.arange(total[-1] if len(total) else 0)
        ids = np.frombuffer(self._ids, dtype=np.int32)[place].astype(np.int64) if len(place) else place
        lengths = np.frombuffer(self._lengths, dtype=np.int32)[place].astype(np.int64) if len(place) else place
        ends = np.cumsum(lengths)
        return ids, ends - lengths, ends

    def _places(self, distinct: list[str]) -> np.ndarray:
        """The place of each piece in the table; -1 for those beyond ASCII, which never stand in an ASCII text."""
        if self._looked_up[0] is not distinct:
            numbers = [self._number(piece) if piece.isascii() else -1 for piece in distinct]
            self._looked_up = (distinct, np.array(numbers, dtype=np.int64))
        return self._looked_up[1]

    def _number(self, piece: str) -> int:
        """The piece's place in the table, where it is put if it is new."""
        number = self._numbers.get(piece)
        if number is None:
            tokens = self._backend.model.tokenize(piece.translate(self._byte_level))
            number = len(self._begin) - 1
            self._ids.extend([token.id for token in tokens])
            # In the byte-level alphabet a character stands for one byte, and so, in ASCII, for one character.
            self._lengths.extend([len(token.value) for token in tokens])
            self._begin.append(len(self._ids))
            if len(piece) <= _MAX_PIECE_CHARS:
                self._numbers[piece] = number
        return number


def split_pattern(backend: Tokenizer) -> str | None:
    """The pattern that cuts ASCII text into a tokenizer's pieces; None where the tokenizer is not of the known form.

    Known is a byte-level BPE without normalizer, dropout, prefix or suffix whose pieces are the matches of
    `tokenizer.PIECES` and keep their spaces in the offsets.
    """
    model = backend.model
    plain = isinstance(model, models.BPE) and not (
        model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
    )
    if not plain or backend.normalizer is not None or backend.pre_tokenizer is None:
        return None
    steps = json.loads(backend.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, byte_level = steps
    is_known = (
        split["pattern"] == {"Regex": PIECES}
        and split["behavior"] == "Isolated"
        and not split["invert"]
        and not byte_level["add_prefix_space"]
        and not byte_level["use_regex"]
    )
    post = backend.post_processor
    trims = post is not None and json.loads(post.__getstate__()).get("trim_offsets", True)
    return PIECES if is_known and not trims else None


def _ascii_and_other(text: str) -> Iterator[str]:
    """Cuts a text at line ends into stretches of ASCII lines and stretches of others."""
    begin, end, was_ascii = 0, 0, True
    for match in _CUT.finditer(text):
        is_ascii = text[end : match.start()].isascii()
        if is_ascii is not was_ascii and end > begin:
            yield text[begin:end]
            begin = end
        was_ascii, end = is_ascii, match.start()
    is_ascii = text[end:].isascii()
    if is_ascii is not was_ascii and end > begin:
        yield text[begin:end]
        begin = end
    yield text[begin:]
