"""The corpus on disk while it is built: each source is read once into a staging file, without exact duplicates.

Every later pass (near-duplicates, split, tokenizer, rows) reads the same texts from here, one batch at a time, so memory
stays bounded. Touches only the directory that it is given; `build.py` decides where that lies.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .sources import SkippedFile, SourceFile

# Characters of code in one batch: small enough to share work evenly, large enough to make sending it cheap.
BATCH_CHARS = 400_000
FILE_COLUMNS = ("source", "project", "path", "language", "code")
_SCHEMA = pa.schema([(name, pa.string()) for name in FILE_COLUMNS])

DUPLICATE = "duplicate of a file read before"


class Batch(NamedTuple):
    """A place in the staging files: batch `index` of file `path`; `first` is the number of its first file in the corpus."""

    path: Path
    index: int
    first: int


class Staging:
    """The staged sources of one build. A source is staged whole or not at all; staged ones are not read again.

    Args:
        directory: where the staging files lie; made if missing.

    Attributes:
        batches: places of all batches, in the order of the corpus.
        num_files: files kept so far.
        skipped: files left out.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.batches: list[Batch] = []
        self.num_files = 0
        self.skipped: list[SkippedFile] = []
        self._first_path: dict[bytes, str] = {}

    def add(self, number: int, items: Callable[[], Iterable[SourceFile | SkippedFile]]) -> int:
        """Stage one source, unless that has been done.

        Args:
            number: of the source.
            items: gives what the source yields, in order; of files with the same text the first is kept.

        Returns:
            Files that the source holds, kept or skipped.
        """
        path = self.directory / f"{number:04d}.arrow"
        record = path.with_suffix(".json")
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            self.skipped.extend(SkippedFile(**item) for item in found["skipped"])
            self._take_up(path, remember=True)
            return found["num_files"]
        first_skipped, num_files = len(self.skipped), self.num_files
        self._write(path, items())
        self._take_up(path, remember=False)
        skipped = self.skipped[first_skipped:]
        found = {
            "num_files": self.num_files - num_files + len(skipped),
            "skipped": [asdict(item) for item in skipped],
        }
        write_whole(record, json.dumps(found, ensure_ascii=False).encode())
        return found["num_files"]

    def _write(self, path: Path, items: Iterable[SourceFile | SkippedFile]) -> None:
        pending: list[SourceFile] = []
        pending_chars = 0
        partial = path.with_suffix(".partial")
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:

            def flush() -> None:
                columns = [
                    pa.array([getattr(f, "text" if c == "code" else c) for f in pending], pa.string())
                    for c in FILE_COLUMNS
                ]
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                pending.clear()

            for item in items:
                if isinstance(item, SkippedFile):
                    self.skipped.append(item)
                    continue
                digest = _digest(item.text)
                if digest in self._first_path:
                    self.skipped.append(SkippedFile(item.source, item.path, DUPLICATE, self._first_path[digest]))
                    continue
                self._first_path[digest] = item.path
                pending.append(item)
                pending_chars += len(item.text)
                if pending_chars >= BATCH_CHARS:
                    flush()
                    pending_chars = 0
            if pending:
                flush()
        os.replace(partial, path)

    def _take_up(self, path: Path, remember: bool) -> None:
        with pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                self.batches.append(Batch(path, index, self.num_files))
                self.num_files += batch.num_rows
                if remember:
                    for file in batch.to_pylist():
                        self._first_path[_digest(file["code"])] = file["path"]

    def places(self, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
        """`source`, `project` and `path` of some files, by their numbers in the corpus."""
        wanted = set(numbers)
        return {
            number: {name: text for name, text in file.items() if name != "code"}
            for number, file in enumerate(self.files())
            if number in wanted
        }

    def files(self) -> Iterator[dict[str, str]]:
        """`FILE_COLUMNS` of every file, in the order of the corpus."""
        for batch in self.batches:
            yield from read_batch(batch.path, batch.index)

    def sizes(self, dropped: set[int] | dict[int, int]) -> dict[str, int]:
        """Characters per project, without the dropped files."""
        sizes: Counter[str] = Counter()
        for number, file in enumerate(self.files()):
            if number not in dropped:
                sizes[file["project"]] += len(file["code"])
        return dict(sizes)

    def texts(self, projects: set[str], dropped: dict[int, int], every: int = 1) -> Iterator[str]:
        """Texts of the files of some projects, in order, without the dropped ones; of the rest each `every`-th."""
        count = 0
        for number, file in enumerate(self.files()):
            if file["project"] in projects and number not in dropped:
                count += 1
                if count % every == 0:
                    yield file["code"]


def read_batch(path: Path, index: int) -> list[dict[str, str]]:
    """One batch of a staging file, a dictionary of `FILE_COLUMNS` for each file."""
    # Not memory-mapped: pages of a mapped file count as this process's memory.
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(index).to_pylist()


def copy_batch(path: Path, index: int) -> bytes:
    """A staging file that holds only one batch of another."""
    with pa.OSFile(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(index)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]
