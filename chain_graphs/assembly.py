"""Row files of all batches become the splits of a `datasets.DatasetDict`, with counts and the overlap of the splits.

Goes through the row files one batch at a time: memory holds one batch and the distinct facts of the held-out splits.
The facts of training are compared with them in the end, when all of the held-out ones are known.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..code_graph.schema import RELATION_NAMES
from .manifest import Tally
from .rows import FACT_COLUMNS
from .sources import BuildError

SPLITS = ("train", "validation", "test")
# A new data file of a split is begun when the last one holds so much.
SHARD_BYTES = 500_000_000


class Overlap:
    """How many facts of the held-out splits stand word for word in training, by relation.

    A fact is (head text, relation, tail text). It is counted once as a distinct fact, and as often as it occurs.
    """

    def __init__(self):
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)
        self._facts: dict[str, np.ndarray] = {}
        self._in_training: dict[str, np.ndarray] = {}

    def add_held_out(self, split: str, facts: np.ndarray) -> None:
        """Facts of one batch: rows of (hash, relation, count)."""
        self._parts[split].append(facts)
        # Merged now and then, so that memory holds distinct facts only.
        if sum(map(len, self._parts[split])) > 2_000_000:
            self._parts[split] = [_distinct(self._parts[split])]

    def add_training(self, hashes: np.ndarray) -> None:
        """Facts of one batch of the training split; after all of `add_held_out`."""
        for split, parts in self._parts.items():
            if split not in self._facts:
                self._facts[split] = _distinct(parts)
                self._in_training[split] = np.zeros(len(self._facts[split]), dtype=bool)
            self._in_training[split] |= np.isin(self._facts[split]["hash"], hashes)

    def report(self) -> dict:
        """By split and relation: `facts`, `facts_in_training`, `occurrences`, `occurrences_in_training`."""
        result = {}
        for split in sorted(self._facts):
            facts, seen = self._facts[split], self._in_training[split]
            relations = [(name, facts["relation"] == number) for number, name in enumerate(RELATION_NAMES)]
            result[split] = {
                name: {
                    "facts": int(of_relation.sum()),
                    "facts_in_training": int(seen[of_relation].sum()),
                    "occurrences": int(facts["count"][of_relation].sum()),
                    "occurrences_in_training": int(facts["count"][of_relation & seen].sum()),
                }
                for name, of_relation in [("all", np.ones(len(facts), dtype=bool)), *relations]
            }
        return result


_FACT = np.dtype([("hash", np.uint64), ("relation", np.int8), ("count", np.int64)])


def _distinct(parts: list[np.ndarray]) -> np.ndarray:
    facts = np.concatenate(parts)
    _, first, inverse = np.unique(facts["hash"], return_index=True, return_inverse=True)
    result = facts[first]
    result["count"] = np.bincount(inverse, weights=facts["count"], minlength=len(first))
    return result


def _facts_of(table: pa.Table) -> np.ndarray:
    columns = [table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in FACT_COLUMNS]
    result = np.empty(len(columns[0]), dtype=_FACT)
    result["hash"], result["relation"], result["count"] = columns
    return result


class Assembly:
    """The splits' data files, written batch by batch while later batches are still being made.

    Args:
        assignment: split of each project.
        tally: gets the files' reports.
        directory: an empty directory; each split's data files go into a directory of its name.
    """

    def __init__(self, assignment: dict[str, str], tally: Tally, directory: Path):
        self._assignment, self._tally = assignment, tally
        self._row_files: list[Path] = []
        self._overlap = Overlap()
        self._writers = {split: _ShardWriter(directory / split) for split in SPLITS if split in assignment.values()}

    def add(self, row_file: Path) -> None:
        """Take the rows of the next batch in the order of the corpus (see `RowMaker.make`)."""
        self._row_files.append(row_file)
        table, reports = _read(row_file)
        for report in reports:
            self._tally.add(report, self._assignment[report["project"]])
        for split, part in self._by_split(table):
            if split != "train":
                self._overlap.add_held_out(split, _facts_of(part))
            self._writers[split].write(part.drop_columns(list(FACT_COLUMNS)))

    def finish(self) -> tuple[dict[str, list[Path]], dict]:
        """The data files of each split and the overlap of the splits (`Overlap.report`), after the last batch.

        Raises:
            BuildError: no file of a split could be read.
        """
        data_files = {split: writer.close() for split, writer in self._writers.items()}
        for split in self._writers:
            if self._tally.by_split[split]["files"] == 0:
                reasons = "; ".join(dict.fromkeys(item.reason for item in self._tally.skipped[-5:]))
                raise BuildError(f"no file of the {split} split could be extracted; the first reasons: {reasons}")
        for row_file in self._row_files:
            for split, part in self._by_split(_read(row_file)[0]):
                if split == "train":
                    self._overlap.add_training(_facts_of(part)["hash"])
        return data_files, self._overlap.report()

    def _by_split(self, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        where = [self._assignment[project] for project in table["project"].to_pylist()]
        for split in self._writers:
            if split in where:
                is_whole = len(set(where)) == 1
                yield split, table if is_whole else table.filter(pc.equal(pa.array(where), split))


def _read(row_file: Path) -> tuple[pa.Table, list[dict]]:
    with pa.OSFile(str(row_file)) as source:
        table = pa.ipc.open_stream(source).read_all()
    reports = json.loads(table.schema.metadata[b"reports"])
    return table.replace_schema_metadata(None), reports


class _ShardWriter:
    """The data files of one split; they get their final names when their number is known."""

    def __init__(self, directory: Path):
        self._directory = directory
        directory.mkdir(parents=True)
        self._paths: list[Path] = []
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None
        self._num_bytes = 0

    def write(self, table: pa.Table) -> None:
        if self._writer is not None and self._num_bytes >= SHARD_BYTES:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._paths.append(self._directory / f"{len(self._paths)}.partial")
            self._writer = pa.ipc.new_stream(str(self._paths[-1]), table.schema)
            self._num_bytes = 0
        self._num_bytes += table.nbytes
        self._writer.write_table(table.combine_chunks())

    def close(self) -> list[Path]:
        if self._writer is not None:
            self._writer.close()
        names = [self._directory / f"data-{i:05d}-of-{len(self._paths):05d}.arrow" for i in range(len(self._paths))]
        for path, name in zip(self._paths, names, strict=True):
            path.rename(name)
        return names


def write_dataset_files(data_files: dict[str, list[Path]], directory: Path) -> None:
    """Write what `datasets` keeps beside the data files, in the form of `DatasetDict.save_to_disk`, and read it back.

    `save_to_disk` itself would copy all data once more, through mapped memory that counts as this process's own.

    Raises:
        BuildError: the installed `datasets` cannot read the result.
    """
    from datasets import Dataset, load_from_disk

    for split, paths in data_files.items():
        Dataset.from_file(str(paths[0])).info.write_to_directory(str(directory / split))
        state = {
            "_data_files": [{"filename": path.name} for path in paths],
            # The library's own fingerprint holds file times; this one makes equal builds equal to the byte.
            "_fingerprint": _fingerprint(paths),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (directory / split / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
    (directory / "dataset_dict.json").write_text(json.dumps({"splits": list(data_files)}), encoding="utf-8")
    try:
        load_from_disk(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(
            f"the installed datasets library cannot read its own format as written here: {error}"
        ) from error


def _fingerprint(paths: list[Path]) -> str:
    import hashlib

    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def count_duplicates(repeats: dict[int, int], places: dict[int, dict], assignment: dict[str, str]) -> dict:
    """Where near-duplicates stood: in one project, in two projects of one split, or in two splits.

    Args:
        repeats: for each file left out, the file it repeats (`duplicates.near_duplicates`).
        places: project of each file by its number.
        assignment: split of each project that still has files.
    """
    counts = Counter()
    for number, other in repeats.items():
        project, kept = places[number]["project"], places[other]["project"]
        # A project can vanish whole: all its files repeat others.
        split = assignment.get(project)
        kind = (
            "within_project" if project == kept else "within_split" if split == assignment[kept] else "across_splits"
        )
        counts[kind if split else "of_projects_without_other_files"] += 1
    kinds = ("within_project", "within_split", "across_splits", "of_projects_without_other_files")
    return {"files": len(repeats)} | {kind: counts[kind] for kind in kinds}
