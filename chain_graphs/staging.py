"""The corpus on disk while it is built: each source is read once into staging files, without exact duplicates.

Every later pass (near-duplicates, tokenizer, rows) reads the same texts from here, one batch at a time, so memory stays
bounded. Touches only the directory that it is given; `build.py` decides where that lies.
"""

import hashlib
import json
import os
import shutil
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .sources import SkippedFile, SourceFile

# Characters of code in one batch: small enough to share work evenly, large enough to make sending it cheap.
BATCH_CHARS = 400_000
FILE_COLUMNS = ("source", "project", "path", "language", "code")
_LENGTH_BYTES = 8
_SCHEMA = pa.schema([(name, pa.string()) for name in FILE_COLUMNS])

DUPLICATE = "duplicate of a file read before"


class Batch(NamedTuple):
    """Some files of the corpus in the staging file `path`; `first` is the number of the first of them in the corpus."""

    path: Path
    first: int


class Staging:
    """The staged sources of one build. A source is staged whole or not at all; staged ones are not read again.

    Args:
        directory: where the staging files lie, a directory for each source; made if missing.

    Attributes:
        batches: all batches staged so far, in the order of the corpus.
        num_files: files kept so far.
        num_found: by number of the source, files that it holds, kept or skipped.
        skipped: files left out.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.batches: list[Batch] = []
        self.num_files = 0
        self.num_found: list[int] = []
        self.skipped: list[SkippedFile] = []
        self._first_path: dict[bytes, str] = {}
        # Of each file kept: its project's number and its length.
        self._projects: dict[str, int] = {}
        self._project_of: list[int] = []
        self._num_chars: list[int] = []

    def add(self, number: int, items: Callable[[], Iterable[SourceFile | SkippedFile]]) -> Iterator[Batch]:
        """Stage one source, unless that has been done.

        Args:
            number: of the source.
            items: gives what the source yields, in order; of files with the same text the first is kept.

        Yields:
            Each of its batches as soon as it is on disk. What is put beside a batch's file goes with it when a source that
            was not staged whole is read again.
        """
        directory = self.directory / f"{number:04d}"
        record = directory.with_suffix(".json")
        if record.exists():
            found = json.loads(record.read_text(encoding="utf-8"))
            self.skipped.extend(SkippedFile(**item) for item in found["skipped"])
            for index in range(found["num_batches"]):
                path = directory / f"{index:06d}.arrow"
                files = read_batch(path)
                for file in files:
                    self._first_path[_digest(file["code"])] = file["path"]
                yield self._take_up(path, [(file["project"], len(file["code"])) for file in files])
            self.num_found.append(found["num_files"])
            return
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        first_skipped, first_batch, first_file = len(self.skipped), len(self.batches), self.num_files
        for files in self._batches_of(items()):
            path = directory / f"{len(self.batches) - first_batch:06d}.arrow"
            partial = path.with_suffix(".partial")
            columns = [
                pa.array([getattr(file, "text" if name == "code" else name) for file in files], pa.string())
                for name in FILE_COLUMNS
            ]
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            os.replace(partial, path)
            yield self._take_up(path, [(file.project, len(file.text)) for file in files])
        skipped = self.skipped[first_skipped:]
        self.num_found.append(self.num_files - first_file + len(skipped))
        found = {
            "num_files": self.num_found[-1],
            "num_batches": len(self.batches) - first_batch,
            "skipped": [asdict(item) for item in skipped],
        }
        write_whole(record, json.dumps(found, ensure_ascii=False).encode())

    def _batches_of(self, items: Iterable[SourceFile | SkippedFile]) -> Iterator[list[SourceFile]]:
        pending: list[SourceFile] = []
        pending_chars = 0
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
                yield pending
                pending, pending_chars = [], 0
        if pending:
            yield pending

    def _take_up(self, path: Path, files: list[tuple[str, int]]) -> Batch:
        batch = Batch(path, self.num_files)
        self.batches.append(batch)
        self.num_files += len(files)
        for project, num_chars in files:
            self._project_of.append(self._projects.setdefault(project, len(self._projects)))
            self._num_chars.append(num_chars)
        return batch

    def numbers_of(self, index: int) -> range:
        """The numbers in the corpus of the files of `batches[index]`."""
        last = index + 1 == len(self.batches)
        return range(self.batches[index].first, self.num_files if last else self.batches[index + 1].first)

    def places(self, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
        """`source`, `project`, `path` and `language` of some files, by their numbers in the corpus."""
        firsts = [batch.first for batch in self.batches]
        wanted = defaultdict(list)
        for number in numbers:
            wanted[bisect_right(firsts, number) - 1].append(number)
        found = {}
        for index, inside in sorted(wanted.items()):
            files = read_batch(self.batches[index].path, FILE_COLUMNS[:-1])
            found.update((number, files[number - firsts[index]]) for number in inside)
        return found

    def files(self) -> Iterator[dict[str, str]]:
        """`FILE_COLUMNS` of every file, in the order of the corpus."""
        for batch in self.batches:
            yield from read_batch(batch.path)

    def sizes(self, dropped: set[int] | dict[int, int]) -> dict[str, int]:
        """Characters per project, without the dropped files."""
        names = list(self._projects)
        sizes: Counter[str] = Counter()
        for number, (project, num_chars) in enumerate(zip(self._project_of, self._num_chars, strict=True)):
            if number not in dropped:
                sizes[names[project]] += num_chars
        return dict(sizes)

    def of_projects(self, projects: set[str], dropped: dict[int, int], every: int = 1) -> list[int]:
        """Numbers of the files of some projects, in order, without the dropped ones; of the rest each `every`-th."""
        wanted = {number for name, number in self._projects.items() if name in projects}
        kept = [n for n, project in enumerate(self._project_of) if project in wanted and n not in dropped]
        return kept[every - 1 :: every]


def read_batch(path: Path, columns: tuple[str, ...] = FILE_COLUMNS) -> list[dict[str, str]]:
    """The files of a staging file, a dictionary of `columns` for each."""
    # Not memory-mapped: pages of a mapped file count as this process's memory.
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).get_batch(0).select(list(columns)).to_pylist()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process is killed."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_part(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a part of a build that can be made again, without waiting for the disk; `is_whole` tells whether it stands.

    The content is followed by the length of the file, so that a part that a power failure has cut short is known.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.write((len(content) + _LENGTH_BYTES).to_bytes(_LENGTH_BYTES, "little"))
    os.replace(partial, path)


def is_whole(path: Path) -> bool:
    """Whether `write_part` has written this file, to its end."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LENGTH_BYTES, 0))
            return size >= _LENGTH_BYTES and int.from_bytes(file.read(), "little") == size
    except FileNotFoundError:
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()[:16]
