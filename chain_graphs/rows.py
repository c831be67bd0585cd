"""Files in, rows out: texts are staged in one Arrow file, then each batch of it is extracted and linked, in processes.

The staging file is read once from the sources, so that every later pass (split, tokenizer, rows) sees the same texts and
memory stays bounded: a pass holds one batch. This module touches the staging file only; `build.py` decides where it lies.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from .sources import BuildError, SkippedFile, SourceFile

# Characters of code in one batch: small enough to share work evenly, large enough to make sending it cheap.
BATCH_CHARS = 400_000
FILE_COLUMNS = ("source", "project", "path", "language", "code")
_STAGING_SCHEMA = pa.schema([(name, pa.string()) for name in FILE_COLUMNS])

DUPLICATE = "duplicate of a file read before"


def stage_files(items: Iterable[SourceFile | SkippedFile], path: Path) -> tuple[dict[str, int], list[SkippedFile]]:
    """Write the files that are kept to a staging file, without exact duplicates.

    Args:
        items: what the sources yield, in order; of files with the same text the first is kept.
        path: the staging file to write.

    Returns:
        Characters per project, and the files left out.
    """
    seen: set[bytes] = set()
    sizes: Counter[str] = Counter()
    skipped: list[SkippedFile] = []
    pending: list[SourceFile] = []
    pending_chars = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _STAGING_SCHEMA) as writer:

        def flush() -> None:
            columns = [
                pa.array([getattr(f, "text" if c == "code" else c) for f in pending], pa.string())
                for c in FILE_COLUMNS
            ]
            writer.write_batch(pa.record_batch(columns, schema=_STAGING_SCHEMA))
            pending.clear()

        for item in items:
            if isinstance(item, SkippedFile):
                skipped.append(item)
                continue
            digest = hashlib.sha256(item.text.encode("utf-8")).digest()
            if digest in seen:
                skipped.append(SkippedFile(item.source, item.path, DUPLICATE))
                continue
            seen.add(digest)
            sizes[item.project] += len(item.text)
            pending.append(item)
            pending_chars += len(item.text)
            if pending_chars >= BATCH_CHARS:
                flush()
                pending_chars = 0
        if pending:
            flush()
    return dict(sizes), skipped


def num_staged_batches(path: Path) -> int:
    """Number of batches in a staging file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).num_record_batches


def read_staged_batch(path: Path, index: int) -> list[dict[str, str]]:
    """One batch of a staging file, a dictionary of `FILE_COLUMNS` for each file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(index).to_pylist()


def staged_files(path: Path) -> Iterator[dict[str, str]]:
    """All files of a staging file, in order."""
    for index in range(num_staged_batches(path)):
        yield from read_staged_batch(path, index)


def staged_texts(path: Path, projects: set[str]) -> Iterator[str]:
    """Texts of the files of some projects, in order."""
    for file in staged_files(path):
        if file["project"] in projects:
            yield file["code"]


def default_extract(code: str, language: str):
    """`graphmert.code_graph.extract`, imported in the process that uses it."""
    from ..code_graph import extract

    return extract(code, language)


class RowMaker:
    """Turns batches of a staging file into tables of rows; one lives in each worker process.

    Args:
        staging: the staging file.
        tokenizer_dir: a saved fast tokenizer.
        extract: `(code, language) -> CodeGraph`; must be picklable for several processes. Where it has a method `of_file`,
            that is given the whole staged file instead (`projects.ProjectExtractor`).
    """

    def __init__(self, staging: Path, tokenizer_dir: Path, extract: Callable = default_extract):
        from . import linking
        from .tokenizer import load_tokenizer

        self.staging = staging
        self.extract = getattr(extract, "of_file", None) or (lambda file: extract(file["code"], file["language"]))
        self.link_file = linking.link_file
        self.column_types = linking.ROW_COLUMNS
        self.tokenizer = load_tokenizer(str(tokenizer_dir))
        backend = self.tokenizer.backend_tokenizer
        # A tokenizer.json may carry the truncation that its last user chose, which would cut files silently.
        backend.no_truncation()
        backend.no_padding()
        # Code may hold the text "<mask>" or "</s>"; in a corpus it is text.
        backend.encode_special_tokens = True
        self.leaf_encoder = linking.LeafEncoder(self.tokenizer)

    def make(self, index: int) -> tuple[bytes, list[dict]]:
        """Extract and link the files of one batch.

        Returns:
            An Arrow stream with the rows, and for each file of the batch its report: project, source, path, characters;
            `reason` where extraction gave up, else counts (`linking`, `triples` by relation, `facts_not_made`,
            `syntax_errors`).
        """
        files, rows, reports = [], [], []
        for file in read_staged_batch(self.staging, index):
            report = {name: file[name] for name in ("source", "project", "path")} | {"characters": len(file["code"])}
            try:
                graph = self.extract(file)
                columns, stats = self.link_file(file["code"], graph, self.tokenizer, self.leaf_encoder)
            except (ValueError, RecursionError, MemoryError) as error:
                message = str(error).strip().split("\n")[0][:120]
                report["reason"] = f"extraction failed: {type(error).__name__}" + (f": {message}" if message else "")
            else:
                report["linking"] = stats
                report["triples"] = dict(Counter(triple.relation for triple in graph.triples))
                report["facts_not_made"] = dict(graph.num_skipped)
                report["syntax_errors"] = graph.num_errors
                files.append(file)
                rows.append(columns)
            reports.append(report)
        return table_to_bytes(rows_to_table(files, rows, self.column_types)), reports


def rows_to_table(files: list[dict], rows: list[dict[str, np.ndarray]], column_types: dict[str, type]) -> pa.Table:
    """Join the text columns and the list columns of a batch into one Arrow table."""
    columns = {name: pa.array([file[name] for file in files], pa.string()) for name in FILE_COLUMNS}
    for name, dtype in column_types.items():
        lengths = [len(row[name]) for row in rows]
        values = np.concatenate([row[name] for row in rows]) if rows else np.zeros(0, dtype)
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(dtype, copy=False)))
    return pa.table(columns)


def table_to_bytes(table: pa.Table) -> bytes:
    """An Arrow stream: far cheaper to send between processes than pickled lists."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


_maker: RowMaker | None = None


def _start_worker(staging: Path, tokenizer_dir: Path, extract: Callable) -> None:
    global _maker
    # Workers are parallel already; threads inside each would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _maker = RowMaker(staging, tokenizer_dir, extract)


def _work(index: int) -> tuple[bytes, list[dict]]:
    return _maker.make(index)


def make_rows(
    staging: Path, tokenizer_dir: Path, num_proc: int = 1, extract: Callable = default_extract
) -> Iterator[tuple[pa.Table, list[dict]]]:
    """Rows and reports of every batch of a staging file, in order whatever the number of processes.

    Args:
        staging, tokenizer_dir, extract: as in `RowMaker`.
        num_proc: worker processes; with 1 the work is done here.

    Yields:
        What `RowMaker.make` returns, the stream opened as a table.

    Raises:
        BuildError: a worker process was killed.
    """
    num_batches = num_staged_batches(staging)
    if num_proc <= 1 or num_batches <= 1:
        maker = RowMaker(staging, tokenizer_dir, extract)
        for index in range(num_batches):
            data, reports = maker.make(index)
            yield pa.ipc.open_stream(data).read_all(), reports
        return
    # Not fork: this process may hold threads of tokenizers and Arrow. The fork server imports the libraries once.
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["graphmert.chain_graphs.linking", "graphmert.chain_graphs.tokenizer"])
    pool = ProcessPoolExecutor(
        min(num_proc, num_batches),
        mp_context=context,
        initializer=_start_worker,
        initargs=(staging, tokenizer_dir, extract),
    )
    try:
        waiting = deque()
        for index in range(num_batches):
            waiting.append(pool.submit(_work, index))
            # A few batches ahead keep the workers busy; more would only fill memory.
            if len(waiting) > 2 * num_proc:
                data, reports = waiting.popleft().result()
                yield pa.ipc.open_stream(data).read_all(), reports
        while waiting:
            data, reports = waiting.popleft().result()
            yield pa.ipc.open_stream(data).read_all(), reports
    except BrokenProcessPool as error:
        raise BuildError(
            "a worker process was killed, most likely for lack of memory; lower --num-proc or --max-file-bytes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
