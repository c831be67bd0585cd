"""The manifest of a built dataset: every source, version, count and reason; and the way back, `load_chain_graphs`.

Reads and writes only inside a dataset's directory:

    manifest.json     written last; a directory without it is not a dataset
    README.md         the dataset card (`card.py`)
    dataset_dict.json, train/, validation/, test/     a `datasets.DatasetDict`, one row per file
    tokenizer/        the tokenizer that made the rows
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..code_graph.schema import RELATION_NAMES
from .languages import DEFAULT_LANGUAGES
from .sources import BuildError, SkippedFile

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_DIR = "tokenizer"
_LIBRARIES = ("datasets", "pyarrow", "tokenizers", "transformers", "tree-sitter")


def versions(languages: Iterable[str] = DEFAULT_LANGUAGES) -> dict[str, str]:
    """Versions of this package and of the libraries that shape a dataset of some languages."""
    grammars = [f"tree-sitter-{language}" for language in languages]
    return {name: version(name) for name in ("graphmert", *_LIBRARIES, *grammars)}


class Tally:
    """Counts of a build, by source, by split and by language."""

    def __init__(self):
        self.by_source: dict[str, Counter] = defaultdict(Counter)
        self.by_split: dict[str, Counter] = defaultdict(Counter)
        self.by_language: dict[str, Counter] = defaultdict(Counter)
        self.triples_by_source: dict[str, Counter] = defaultdict(Counter)
        self.triples_by_split: dict[str, Counter] = defaultdict(Counter)
        self.triples_by_language: dict[str, Counter] = defaultdict(Counter)
        self.linking: Counter = Counter()
        self.facts_not_made: Counter = Counter()
        self.syntax_errors: Counter = Counter()
        self.annotations_hidden = 0
        self.skipped: list[SkippedFile] = []

    def add(self, report: dict, split: str) -> bool:
        """Count one file's report (see `RowMaker.make`); False if the file was left out."""
        if "reason" in report:
            self.skipped.append(SkippedFile(report["source"], report["path"], report["reason"]))
            return False
        counts = {"files": 1, "characters": report["characters"], "tokens": report["linking"]["tokens"]}
        for by, triples, key in (
            (self.by_source, self.triples_by_source, report["source"]),
            (self.by_split, self.triples_by_split, split),
            (self.by_language, self.triples_by_language, report["language"]),
        ):
            by[key].update(counts)
            triples[key].update(report["triples"])
        self.linking.update(report["linking"])
        self.facts_not_made.update(report["facts_not_made"])
        self.syntax_errors.update(errors=report["syntax_errors"], files=int(report["syntax_errors"] > 0))
        self.annotations_hidden += report["annotations_hidden"]
        return True


def make_manifest(
    tally: Tally,
    sources: list[dict],
    assignment: dict[str, str],
    arguments: dict,
    tokenizer: dict,
    near_duplicates: dict,
    overlap: dict,
) -> dict:
    """Put a build's record together.

    Args:
        tally: counts of the files that became rows, and the skipped files.
        sources: description of each source, with its `spec`.
        assignment: split of each project.
        arguments: what the user asked for, as far as it shapes the dataset.
        tokenizer: name, vocabulary size and hash.
        near_duplicates: how many files were left out for what they repeat, and where those stood.
        overlap: facts of held-out splits that stand word for word in training, by split and relation.

    Returns:
        The manifest, ready for JSON. It holds no times and no machine's names, so equal inputs give equal manifests.
    """
    skipped_by_source = defaultdict(Counter)
    for item in tally.skipped:
        skipped_by_source[item.source][item.reason] += 1
    splits = [name for name in ("train", "validation", "test") if name in assignment.values()]
    return {
        "format_version": FORMAT_VERSION,
        "created_by": versions(arguments["languages"]),
        "arguments": arguments,
        "relation_names": list(RELATION_NAMES),
        "sources": [
            source
            | _counts(tally.by_source[source["spec"]], tally.triples_by_source[source["spec"]])
            | {"skipped": dict(skipped_by_source[source["spec"]].most_common())}
            for source in sources
        ],
        "splits": {
            split: _counts(tally.by_split[split], tally.triples_by_split[split])
            | {"projects": sorted(project for project, where in assignment.items() if where == split)}
            for split in splits
        },
        "languages": {
            language: _counts(tally.by_language[language], tally.triples_by_language[language])
            for language in arguments["languages"]
        },
        "skipped": {
            "by_reason": dict(Counter(item.reason for item in tally.skipped).most_common()),
            "files": [
                {name: value for name, value in asdict(item).items() if value is not None} for item in tally.skipped
            ],
        },
        "extraction": {
            "syntax_errors": dict(tally.syntax_errors),
            "facts_not_made": dict(tally.facts_not_made.most_common()),
            "files_with_annotations_hidden": tally.annotations_hidden,
        },
        "linking": dict(tally.linking),
        "tokenizer": tokenizer,
        "near_duplicates": near_duplicates,
        "overlap_with_training": overlap,
    }


def _counts(counts: Counter, triples: Counter) -> dict:
    return {name: counts[name] for name in ("files", "characters", "tokens")} | {
        "triples": {name: triples[name] for name in RELATION_NAMES},
        "num_triples": triples.total(),
    }


def summary(manifest: dict) -> str:
    """The manifest as a table for the terminal."""
    splits = manifest["splits"]
    names = list(splits)
    lines = [" " * 20 + "".join(f"{name:>14}" for name in [*names, "all"])]

    def row(label: str, values: list[int]) -> None:
        lines.append(f"{label:<20}" + "".join(f"{value:>14,}" for value in [*values, sum(values)]))

    row("projects", [len(splits[name]["projects"]) for name in names])
    for field in ("files", "characters", "tokens", "num_triples"):
        row(field.removeprefix("num_"), [splits[name][field] for name in names])
    for relation in manifest["relation_names"]:
        row(f"  {relation}", [splits[name]["triples"][relation] for name in names])
    # Datasets built before languages were counted have no such entry.
    for language, counts in manifest.get("languages", {}).items():
        texts = (f"{counts[name]:,} {name}" for name in ("files", "characters", "tokens"))
        lines.append(f"{language:<20}{', '.join(texts)}, {counts['num_triples']:,} triples")
    linking = manifest["linking"]
    if linking.get("heads"):
        lines.append(f"heads linked        {linking['heads_linked'] / linking['heads']:>14.2%}")
    if linking.get("anchors"):
        lines.append(f"anchors straddling  {linking['anchors_straddling'] / linking['anchors']:>14.2%}")
    hidden = manifest["extraction"].get("files_with_annotations_hidden", 0)
    if hidden:
        lines.append(f"files whose text has lost its annotations {hidden:,}")
    for split, relations in manifest["overlap_with_training"].items():
        occurrences = relations["all"]["occurrences"]
        share = relations["all"]["occurrences_in_training"] / max(occurrences, 1)
        lines.append(f"{split} triples that stand word for word in training {share:.2%}")
    by_reason = manifest["skipped"]["by_reason"]
    lines.append(f"skipped files       {sum(by_reason.values()):>14,}")
    lines.extend(f"  {count:>8,}  {reason}" for reason, count in by_reason.items())
    return "\n".join(lines)


def write_manifest(manifest: dict, directory: Path) -> None:
    """Write `manifest.json` into a dataset's directory."""
    (directory / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_text(manifest: dict) -> str:
    """The text of `manifest.json`."""
    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"


def read_manifest(path: str | Path) -> dict:
    """Read and check the manifest of a dataset.

    Args:
        path: the dataset's directory.

    Raises:
        BuildError: a `ValueError`: no such dataset, another format version, or other relations than this version's schema.
    """
    path = Path(path)
    file = path / MANIFEST_FILE
    if not path.is_dir():
        raise BuildError(
            f"dataset {path} does not exist; build one with python -m graphmert.chain_graphs.build --output {path}"
        )
    if not file.is_file():
        raise BuildError(
            f"{path} is not a chain-graph dataset (no {MANIFEST_FILE}); build one with graphmert.chain_graphs.build"
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(f"{file} is not JSON ({error}); build the dataset again") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise BuildError(
            f"dataset {path} has format version {found}, this version reads {FORMAT_VERSION}; build it again"
        )
    names = manifest.get("relation_names")
    if names != list(RELATION_NAMES):
        raise BuildError(
            f"dataset {path} was built with the relations {names}, this version has {list(RELATION_NAMES)}; build it again"
        )
    return manifest


def load_chain_graphs(path: str | Path) -> tuple["DatasetDict", dict, "PreTrainedTokenizerFast"]:
    """Load a dataset made by `python -m graphmert.chain_graphs.build`.

    Args:
        path: its directory.

    Returns:
        The splits (one row per file, memory-mapped), the manifest, and the tokenizer that made the rows.

    Raises:
        ValueError: the directory is not such a dataset, is incomplete, or does not fit this version.
    """
    path = Path(path)
    manifest = read_manifest(path)

    from datasets import load_from_disk

    from .tokenizer import load_tokenizer, tokenizer_sha256

    try:
        splits = load_from_disk(str(path))
        sha256 = tokenizer_sha256(path / TOKENIZER_DIR)
    except (OSError, ValueError) as error:
        raise BuildError(f"dataset {path} is incomplete ({type(error).__name__}: {error}); build it again") from error
    missing = [name for name in manifest["splits"] if name not in splits]
    if missing:
        raise BuildError(
            f"dataset {path} lacks the split(s) {', '.join(missing)} that its manifest names; build it again"
        )
    if sha256 != manifest["tokenizer"]["sha256"]:
        raise BuildError(
            f"dataset {path}: {TOKENIZER_DIR}/tokenizer.json is not the one that made the rows; build it again"
        )
    return splits, manifest, load_tokenizer(str(path / TOKENIZER_DIR))
