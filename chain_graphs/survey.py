"""The first look at each batch of files, before anything is split: what they repeat, and the pieces they consist of.

Worker processes leave one file beside each batch's staging file (`write_survey`). From these files the parent finds
near-duplicates and counts the pieces that a tokenizer is trained on; the processes that make rows take the pieces up
again, so that each text is cut into pieces once.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from .duplicates import NUM_HASHES, signature
from .encoding import cut_into_pieces
from .staging import Staging, read_batch, write_part

if TYPE_CHECKING:
    from .worker import Guard

# Not learned from: data in strings. A file of one such run would take the trainer hours.
_LONG_RUN = re.compile(r"\S{1000,}|\s{1000,}")
_HALF_RUN = 500
# Batches whose counts of pieces are held before they are added up.
_MERGED_BATCHES = 64


def survey_path(staged: Path) -> Path:
    """Where the survey of a staging file lies."""
    return staged.with_suffix(".survey")


class Survey(NamedTuple):
    """What `write_survey` has found; one element of each list or row of each array for each file of the batch.

    Attributes:
        signatures: uint32 `(files, NUM_HASHES)`, see `duplicates.signature`; zeros for a file that was not read.
        distinct: the distinct pieces of the batch, an Arrow array of strings.
        pieces: the pieces of each text as numbers in `distinct`, int32; None for a file that was not read.
        learned: those that a tokenizer may learn from: without long runs that are data.
    """

    signatures: np.ndarray
    distinct: pa.ChunkedArray
    pieces: list[np.ndarray | None]
    learned: list[np.ndarray | None]


def write_survey(staged: Path, out: Path, guard: "Guard", skip: dict[int, str]) -> None:
    """Survey a batch.

    Args:
        staged: its staging file.
        out: where the survey is put, an Arrow file whose columns are those of `Survey`.
        guard, skip: see `pool.Task`.
    """
    files = read_batch(staged)
    signatures = np.zeros((len(files), NUM_HASHES), dtype=np.uint32)
    pieces, learned = [], []
    numbers: dict[str, int] = {}
    for position, file in guard.files(files):
        if position in skip:
            pieces.append(None)
            learned.append(None)
            continue
        code = file["code"]
        signatures[position] = signature(code)
        pieces.append(_numbered(cut_into_pieces(code), numbers))
        shorter = _LONG_RUN.sub(" ", code) if has_long_run(code) else code
        learned.append(None if shorter == code else _numbered(cut_into_pieces(shorter), numbers))
    columns = {
        "signature": pa.FixedSizeListArray.from_arrays(pa.array(signatures.ravel()), NUM_HASHES),
        "pieces": _list_array(pieces),
        "learned": _list_array(learned),
    }
    schema = pa.schema([(name, column.type) for name, column in columns.items()])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema))
    distinct = pa.table({"distinct": pa.array(list(numbers), pa.string())})
    with pa.ipc.new_stream(sink, distinct.schema) as writer:
        writer.write_table(distinct)
    write_part(out, sink.getvalue())


def read_survey(path: Path) -> Survey:
    """What `write_survey` has put into a file."""
    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
        distinct = pa.ipc.open_stream(source).read_all()["distinct"]
    pieces, learned = (
        [row.values.to_numpy() if row.is_valid else None for row in table[name]] for name in ("pieces", "learned")
    )
    signatures = table["signature"].combine_chunks().flatten().to_numpy().reshape(-1, NUM_HASHES)
    return Survey(signatures, distinct, pieces, learned)


def has_long_run(text: str) -> bool:
    """Whether a text holds a thousand characters without a space, or a thousand spaces (with line ends), in a row.

    May also say so of a text that has only half as many; it looks at blocks of which such a run covers one.
    """
    for begin in range(0, len(text) - _HALF_RUN + 1, _HALF_RUN):
        block = text[begin : begin + _HALF_RUN]
        if block.isspace() or len(block.split(None, 1)[0]) == _HALF_RUN:
            return True
    return False


def count_pieces(staging: Staging, chosen: Iterable[int]) -> dict[str, int]:
    """How often each piece occurs in some files.

    Args:
        staging: the corpus, with the survey of each of its batches.
        chosen: numbers of files, ascending.
    """
    is_chosen = np.zeros(staging.num_files, dtype=bool)
    is_chosen[np.fromiter(chosen, dtype=np.int64)] = True
    pieces, counts = pa.chunked_array([], pa.string()), np.zeros(0, dtype=np.int64)
    waiting = []
    for index, batch in enumerate(staging.batches):
        survey = read_survey(survey_path(batch.path))
        numbers = staging.numbers_of(index)
        rows = [
            survey.pieces[position] if survey.learned[position] is None else survey.learned[position]
            for position in np.flatnonzero(is_chosen[numbers.start : numbers.stop]).tolist()
        ]
        read = np.concatenate([row for row in rows if row is not None] or [np.zeros(0, np.int32)])
        waiting.append((survey.distinct, np.bincount(read, minlength=len(survey.distinct))))
        if len(waiting) == _MERGED_BATCHES or index + 1 == len(staging.batches):
            pieces, counts = _sum([(pieces, counts), *waiting])
            waiting.clear()
    return {piece: count for piece, count in zip(pieces.to_pylist(), counts.tolist(), strict=True) if count}


def _sum(parts: list[tuple[pa.ChunkedArray, np.ndarray]]) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Counts of the same texts added up."""
    chunks = [chunk for texts, _ in parts for chunk in texts.chunks]
    texts = pa.chunked_array(chunks, pa.string()).combine_chunks().dictionary_encode()
    weights = np.concatenate([counts for _, counts in parts])
    # Doubles hold whole numbers exactly up to 2 ** 53.
    sums = np.bincount(texts.indices.to_numpy(), weights, minlength=len(texts.dictionary)).astype(np.int64)
    return pa.chunked_array([texts.dictionary]), sums


def _numbered(pieces: list[str], numbers: dict[str, int]) -> np.ndarray:
    """Each piece's number; new ones are given the next."""
    for piece in dict.fromkeys(pieces):
        if piece not in numbers:
            numbers[piece] = len(numbers)
    return np.fromiter(map(numbers.__getitem__, pieces), dtype=np.int32, count=len(pieces))


def _list_array(rows: list[np.ndarray | None]) -> pa.ListArray:
    lengths = [0 if row is None else len(row) for row in rows]
    values = np.concatenate([row for row in rows if row is not None] or [np.zeros(0, np.int32)])
    missing = np.array([row is None for row in rows], dtype=bool)
    offsets = pa.array(np.cumsum([0, *lengths]).astype(np.int32), mask=np.append(missing, False))
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
