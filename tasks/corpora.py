"""The corpora of an evaluation: what is tested on, what was trained on, and that the two share no project."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..chain_graphs.manifest import load_chain_graphs, manifest_text, read_manifest

TRAINING_SPLIT = "train"


class Corpus:
    """A data set of chain graphs (`python -m graphmert.chain_graphs.build`) and the splits of it that are used.

    Args:
        path: its directory.
        splits: names of splits; None takes all.

    Attributes:
        path, manifest, tokenizer: of the data set.
        splits: the names used.
        rows: the rows of these splits, one after the other (`datasets.Dataset`, one row per file).
        projects: the projects of these splits.
        fingerprint: changes with the content of the data, not with its place on disk.

    Raises:
        ValueError: no such data set or split.
    """

    def __init__(self, path: str | Path, splits: Sequence[str] | None = None):
        from datasets import concatenate_datasets

        self.path = Path(path)
        stored, self.manifest, self.tokenizer = load_chain_graphs(self.path)
        self.splits = list(stored) if splits is None else list(splits)
        missing = [name for name in self.splits if name not in stored]
        if missing or not self.splits:
            raise ValueError(
                f"data set {path} has the splits {', '.join(stored)}, not {', '.join(missing) or 'none at all'}"
            )
        self.rows = concatenate_datasets([stored[name] for name in self.splits])
        self.projects = projects_of(self.manifest, self.splits)
        self.fingerprint = fingerprint_of(self.manifest)

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens, file by file: offsets int64 (files + 1,) and token ids int32."""
        offsets, values = [np.zeros(1, dtype=np.int64)], []
        for chunk in self.rows.data.column("input_ids").chunks:
            bounds = chunk.offsets.to_numpy().astype(np.int64)
            values.append(chunk.values.to_numpy(zero_copy_only=False)[bounds[0] : bounds[-1]])
            offsets.append(offsets[-1][-1] + bounds[1:] - bounds[0])
        return np.concatenate(offsets), np.concatenate(values)

    def description(self) -> dict:
        """What a report says of the corpus."""
        return {
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "splits": self.splits,
            "projects": self.projects,
            "num_files": len(self.rows),
            "sources": [
                {key: source.get(key) for key in ("spec", "version", "sha256")} for source in self.manifest["sources"]
            ],
        }


def fingerprint_of(manifest: dict) -> str:
    """A number for the content of a data set: its sources with their hashes, its tokenizer, arguments and counts.

    Args:
        manifest: of the data set.

    Returns:
        16 hexadecimal digits. The tokenizer counts by its content, not by its path.
    """
    content = {**manifest, "arguments": {**manifest["arguments"], "tokenizer": None}}
    content["tokenizer"] = {key: value for key, value in manifest["tokenizer"].items() if key != "name"}
    return hashlib.sha256(manifest_text(content).encode()).hexdigest()[:16]


def projects_of(manifest: dict, splits: Sequence[str] | None = None) -> list[str]:
    """The projects of some splits of a data set (all without `splits`), sorted."""
    names = manifest["splits"] if splits is None else splits
    return sorted({project for name in names for project in manifest["splits"][name]["projects"]})


def shared_projects(test_projects: Sequence[str], training_projects: Sequence[str]) -> list[str]:
    """Projects that stand in both lists, however their names are spelt (PyPI: `-`, `_`, `.` and case do not count)."""

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    trained = {plain(name) for name in training_projects}
    return sorted(name for name in test_projects if plain(name) in trained)


def check_nothing_shared(test_manifest: dict, test_splits: Sequence[str], training_manifest: dict) -> None:
    """Refuse to test on a project that was trained on.

    Args:
        test_manifest: of the corpus that is tested on.
        test_splits: its splits that are used.
        training_manifest: of the corpus that the model was trained on; its split `train` counts.

    Raises:
        ValueError: names the projects, or says that a source of the test corpus is the very file that was trained on.
    """
    trained = projects_of(training_manifest, [TRAINING_SPLIT])
    shared = shared_projects(projects_of(test_manifest, test_splits), trained)
    if shared:
        raise ValueError(
            f"the model was trained on {', '.join(shared)}, which the test corpus holds too; test on other projects "
            "(--splits chooses splits of the corpus), or allow it with --allow-shared-projects"
        )


def training_manifest_of(model_dir: Path) -> dict | None:
    """The manifest of the corpus that a checkpoint was trained on, which `run_pretraining.py` leaves beside it."""
    for directory in (model_dir, model_dir.parent):
        if (directory / "manifest.json").is_file():
            return read_manifest(directory)
        # A checkpoint of a run (`checkpoint-100`) has its manifest one directory up; any other directory does not.
        if not re.fullmatch(r"checkpoint-\d+", model_dir.name):
            return None
    return None
