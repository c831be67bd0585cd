"""Staged files in, rows out: what a worker process does with one batch. Each call writes one file, whole or not at all."""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ..code_graph.schema import RELATION_IDS
from . import linking
from .encoding import TextPieces
from .staging import FILE_COLUMNS, is_whole, read_batch, write_part
from .survey import Survey, read_survey, survey_path

if TYPE_CHECKING:
    from .worker import Guard

# For the overlap of splits; these columns are not part of the dataset.
FACT_COLUMNS = {"fact_hash": np.uint64, "fact_relation": np.int8, "fact_count": np.int32}
_HEAD, _TAIL, _RELATION = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_MAX_TEXTS = 200_000


def default_extract(code: str, language: str):
    """`graphmert.code_graph.extract`, imported in the process that uses it."""
    from ..code_graph import extract

    return extract(code, language)


class RowMaker:
    """Turns batches of files into tables of rows; one lives in each worker process.

    Args:
        tokenizer_json: a fast tokenizer in the form of `tokenizer.json`.
        extract: `(code, language) -> CodeGraph`. Where it has a method `of_file`, that gets the whole staged file
            instead (`projects.ProjectExtractor`).
        hide_annotations: share of the Python files with annotations that lose them from their text, not from their graph.
    """

    def __init__(self, tokenizer_json: str, extract: Callable = default_extract, hide_annotations: float = 0.0):
        backend = linking.corpus_backend(tokenizer_json)
        self.extract = getattr(extract, "of_file", None) or (lambda file: extract(file["code"], file["language"]))
        # What linking needs of a tokenizer; a worker need not load transformers.
        self.tokenizer = SimpleNamespace(is_fast=True, backend_tokenizer=backend)
        self.leaf_encoder = linking.LeafEncoder(self.tokenizer)
        self._hide_annotations = hide_annotations
        self._text_hashes: dict[str, int] = {}

    def make(
        self, files: list[dict], dropped: set[int], guard: "Guard", skip: dict[int, str], survey: Survey | None = None
    ) -> pa.Buffer:
        """Extract and link the files of one batch.

        Args:
            files: dictionaries of `FILE_COLUMNS`.
            dropped: positions of files that are left out without a report.
            guard: is told which file is being read.
            skip: reason by position, for files that are reported but not read.
            survey: of this batch.

        Returns:
            An Arrow stream with the rows; in its metadata as JSON under `reports`, for each file its source, project,
            path, language, characters; `reason` where it gave no row, else counts (`linking`, `triples` by relation,
            `facts_not_made`, `syntax_errors`, `annotations_hidden` 1 where the text has lost its annotations).
        """
        kept, rows, reports = [], [], []
        distinct = survey.distinct.to_pylist() if survey else []
        for position, file in guard.files(files):
            if position in dropped:
                continue
            report = {name: file[name] for name in ("source", "project", "path", "language")} | {
                "characters": len(file["code"])
            }
            reports.append(report)
            if position in skip:
                report["reason"] = skip[position]
                continue
            try:
                graph = self.extract(file)
                known = survey.pieces[position] if survey else None
                hidden = self._hidden(file, graph)
                if hidden is not None:
                    # The survey's pieces are those of the text that it was.
                    (code, graph), known = hidden, None
                    file = file | {"code": code}
                pieces = None if known is None else TextPieces(known, distinct)
                columns, stats = linking.link_file(
                    file["code"], graph, self.tokenizer, self.leaf_encoder, pieces, file["language"]
                )
                columns |= self.fact_columns(graph.triples)
            except (ValueError, RecursionError, MemoryError) as error:
                message = str(error).strip().split("\n")[0][:120]
                report["reason"] = f"extraction failed: {type(error).__name__}" + (f": {message}" if message else "")
                continue
            report["linking"] = stats
            report["triples"] = dict(Counter(triple.relation for triple in graph.triples))
            report["facts_not_made"] = dict(graph.num_skipped)
            report["syntax_errors"] = graph.num_errors
            report["annotations_hidden"] = int(hidden is not None)
            kept.append(file)
            rows.append(columns)
        table = rows_to_table(kept, rows)
        return table_to_bytes(table.replace_schema_metadata({"reports": json.dumps(reports, ensure_ascii=False)}))

    def _hidden(self, file: dict, graph) -> tuple[str, object] | None:
        """Text and graph of a file that loses its annotations, chosen by a hash of its text; None for any other."""
        if not self._hide_annotations or file["language"] != "python":
            return None
        digest = hashlib.blake2b(file["code"].encode("utf-8", "surrogatepass"), digest_size=8).digest()
        if int.from_bytes(digest, "little") >= self._hide_annotations * 2**64:
            return None
        from ..code_graph.annotations import hide_in_graph

        return hide_in_graph(file["code"], graph)

    def fact_columns(self, triples: list) -> dict[str, np.ndarray]:
        """The distinct facts (head text, relation, tail text) of a file, as numbers that are equal for equal facts."""
        counts = Counter((triple.head, triple.relation, triple.tail) for triple in triples)
        heads, relations, tails = zip(*counts, strict=True) if counts else ((), (), ())
        relation = np.array([RELATION_IDS[name] for name in relations], dtype=np.uint64)
        head, tail = (np.array([self._hash(text) for text in column], dtype=np.uint64) for column in (heads, tails))
        return {
            "fact_hash": head * _HEAD + tail * _TAIL + (relation + np.uint64(1)) * _RELATION,
            "fact_relation": relation.astype(np.int8),
            "fact_count": np.fromiter(counts.values(), dtype=np.int32, count=len(counts)),
        }

    def _hash(self, text: str) -> int:
        number = self._text_hashes.get(text)
        if number is None:
            if len(self._text_hashes) >= _MAX_TEXTS:
                self._text_hashes.clear()
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = self._text_hashes[text] = int.from_bytes(digest, "little")
        return number


def rows_to_table(files: list[dict], rows: list[dict[str, np.ndarray]]) -> pa.Table:
    """Join the text columns and the list columns of a batch into one Arrow table."""
    columns = {name: pa.array([file[name] for file in files], pa.string()) for name in FILE_COLUMNS}
    for name, dtype in (linking.ROW_COLUMNS | FACT_COLUMNS).items():
        lengths = [len(row[name]) for row in rows]
        values = np.concatenate([row[name] for row in rows]) if rows else np.zeros(0, dtype)
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))
    return pa.table(columns)


def table_to_bytes(table: pa.Table) -> pa.Buffer:
    """An Arrow stream in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


_maker: tuple[tuple[Path, bytes, float], RowMaker] | None = None


def write_rows(
    staged: Path,
    out: Path,
    dropped: set[int],
    tokenizer_file: Path,
    extract: Callable,
    hide_annotations: float,
    guard: "Guard",
    skip: dict[int, str],
) -> None:
    """Rows of a batch, see `RowMaker.make`, put into `out`; its survey is used where it stands beside the batch."""
    global _maker
    # By its pickled form: an extractor with a state of its own arrives as a new object with each task.
    key = (tokenizer_file, pickle.dumps(extract), hide_annotations)
    if _maker is None or _maker[0] != key:
        _maker = (key, RowMaker(tokenizer_file.read_text(encoding="utf-8"), extract, hide_annotations))
    survey = survey_path(staged)
    known = read_survey(survey) if is_whole(survey) else None
    write_part(out, _maker[1].make(read_batch(staged), dropped, guard, skip, known))
