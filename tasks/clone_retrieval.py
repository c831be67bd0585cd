"""Clone retrieval: the same function in another version of its package is found among all others, MAP@R.

A function is known by its package, file and qualified name. Versions of it that are equal but for white space are one;
what stays are functions that changed. Docstrings are taken out, because versions share them word for word. Embeddings are
zero-shot: nothing is trained.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..chain_graphs.sources import DEFAULT_CACHE_DIR, ReadOptions, SkippedFile, parse_source
from .base import Task, TaskContext, TaskResult
from .corpora import shared_projects
from .excerpts import cut_excerpts, mask_names
from .functions import MIN_CODE_LINES, Function, read_functions, sample
from .retrieval import TextWindows, bm25_scores, embed, jaccard_scores, load_metric

SUFFIXES = {"none": "", "all": "_all_masked"}
# An older release of packages of the held-out corpus beside the release that stands there.
VERSIONS = (
    "pypi:attrs==22.2.0",
    "pypi:attrs==26.1.0",
    "pypi:httpx==0.23.3",
    "pypi:httpx==0.28.1",
    "pypi:rich==12.6.0",
    "pypi:rich==15.0.0",
    "pypi:scrapy==2.8.0",
    "pypi:scrapy==2.19.0",
    "pypi:networkx==2.8.8",
    "pypi:networkx==3.6.1",
)


@dataclass
class CloneRetrievalOptions:
    """Options of `clone_retrieval`."""

    _argument_group_name: ClassVar[str] = "clone_retrieval"

    clone_versions: list[str] = field(
        default_factory=lambda: list(VERSIONS),
        metadata={
            "help": "Sources that hold versions of the same packages, as for chain_graphs.build: pypi:NAME==VERSION "
            "(versions of one NAME belong together) or dir:PATH (all directories belong together)."
        },
    )
    clone_functions: int = field(
        default=500, metadata={"help": "Functions drawn, each with all its versions (--max-examples lowers it)."}
    )
    clone_windows: int = field(default=4, metadata={"help": "Windows read of each function, from its beginning."})
    clone_masks: list[str] = field(
        default_factory=lambda: list(SUFFIXES), metadata={"help": "Variants: none (as is), all (all names masked)."}
    )
    clone_cache_dir: str = field(default=str(DEFAULT_CACHE_DIR), metadata={"help": "Where wheels are kept."})

    def __post_init__(self):
        wrong = [name for name in self.clone_masks if name not in SUFFIXES]
        if wrong or not self.clone_masks:
            raise ValueError(
                f"--clone-masks must be some of {', '.join(SUFFIXES)}, got {' '.join(self.clone_masks)!r}"
            )
        if self.clone_functions < 1 or self.clone_windows < 1:
            raise ValueError("--clone-functions and --clone-windows must be at least 1")


class CloneRetrieval(Task):
    """MAP@R of versions of the same function."""

    name = "clone_retrieval"
    options_class = CloneRetrievalOptions

    def run(self, context: TaskContext, options: CloneRetrievalOptions) -> TaskResult:
        groups, counts = self._groups(context, options)
        functions = [function for group in groups for function in group]
        group_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        right = [
            np.flatnonzero((group_of == group_of[i]) & (np.arange(len(group_of)) != i)) for i in range(len(functions))
        ]
        excerpts = cut_excerpts(functions, progress=lambda items: context.progress(items, "reading graphs"))
        metric = load_metric("map_at_r")
        found: dict[str, dict[str, float]] = defaultdict(dict)
        examples: dict[str, np.ndarray] = {}

        def add(who: str, mask: str, scores: np.ndarray) -> None:
            scores = scores.copy()
            # A function is no candidate for itself.
            np.fill_diagonal(scores, -np.inf)
            result = metric.compute(predictions=scores, references=right)
            examples[f"{who}: average_precision{SUFFIXES[mask]}"] = np.array(result.pop("average_precisions"))
            found[who].update({f"{name}{SUFFIXES[mask]}": value for name, value in result.items()})

        for mask in options.clone_masks:
            masked = [mask_names(excerpt, mask) for excerpt in excerpts]
            codes = [excerpt.code for excerpt in masked]
            add("BM25", mask, bm25_scores(codes, codes))
            add("Jaccard", mask, jaccard_scores(codes))
            found["random"].update(
                {f"{name}{SUFFIXES[mask]}": value for name, value in chance_map_at_r([len(r) for r in right]).items()}
            )
            extra = "graph" if context.use_graph else "none"
            windows = TextWindows(context, masked, options.clone_windows, extra)
            for who, with_extra in (("model", True), ("without graph", False))[: 1 + context.use_graph]:
                given = embed(context, context.model().roberta, windows, with_extra, f"{who}: functions")
                add(who, mask, (given @ given.T).numpy())
        baselines = {who: found.pop(who) for who in ("BM25", "Jaccard", "random")}
        return TaskResult(
            figures=found.pop("model"),
            baselines=baselines,
            controls=dict(found),
            counts={"functions": len(groups), "queries": len(functions), "candidates": len(functions) - 1},
            details={"versions": options.clone_versions, "left_out": counts},
            examples=examples,
        )

    def _groups(self, context: TaskContext, options: CloneRetrievalOptions) -> tuple[list[list[Function]], dict]:
        """The versions of each function drawn, and what was left out."""
        counts: Counter = Counter()
        # Each function's versions by their text without white space.
        versions: dict[tuple[str, str, str], dict[str, Function]] = defaultdict(dict)
        for spec in context.progress(options.clone_versions, "reading versions"):
            seen = Counter()
            for function in self._read(context, spec, Path(options.clone_cache_dir), counts):
                seen[function.key] += 1
                if sum(1 for line in function.code.splitlines() if line.strip()) < MIN_CODE_LINES:
                    counts[f"fewer than {MIN_CODE_LINES} lines of code"] += 1
                elif seen[function.key] > 1:
                    counts["another function of the same name in its file"] += 1
                else:
                    versions[function.key].setdefault(" ".join(function.code.split()), function)
        groups = [list(versions[key].values()) for key in sorted(versions) if len(versions[key]) > 1]
        counts["without a changed version"] = len(versions) - len(groups)
        limit = min(options.clone_functions, context.arguments.max_examples or options.clone_functions)
        groups = sample(groups, limit, context.arguments.seed)
        if not groups or sum(map(len, groups)) < 3:
            raise ValueError(
                f"--clone-versions {' '.join(options.clone_versions)}: {len(groups)} function(s) differ between versions; "
                "name versions of the same packages that are further apart"
            )
        return groups, dict(counts)

    @staticmethod
    def _read(context: TaskContext, spec: str, cache_dir: Path, counts: Counter) -> Iterator[Function]:
        source = parse_source(spec, ReadOptions(cache_dir=cache_dir))
        package = getattr(source, "name", "") if spec.startswith("pypi:") else ""
        manifest = context.training_manifest
        if manifest is not None and not context.arguments.allow_shared_projects:
            trained = manifest["splits"]["train"]["projects"]
            if package and shared_projects([package], trained):
                raise ValueError(
                    f"--clone-versions {spec}: the model was trained on {package}; name other packages, or allow it with "
                    "--allow-shared-projects"
                )
        for file in source.files():
            if isinstance(file, SkippedFile):
                counts[f"file: {file.reason}"] += 1
            else:
                yield from read_functions(file.text, package, file.path)


def chance_map_at_r(numbers: list[int]) -> dict[str, float]:
    """Expectation of `map_at_r` and `precision_at_1` for a random order of the candidates.

    With M candidates of which R are right, rank i holds a right one with probability R / M, and then a share of
    (1 + (i - 1) (R - 1) / (M - 1)) / i of the ranks up to it is expected to be right.

    Args:
        numbers: R of each query; the queries are each other's candidates.
    """
    candidates = len(numbers) - 1
    expected = []
    for right in numbers:
        ranks = np.arange(1, right + 1)
        precision = (1 + (ranks - 1) * (right - 1) / max(candidates - 1, 1)) / ranks
        expected.append(float(np.sum(precision / candidates)))
    return {"map_at_r": float(np.mean(expected)), "precision_at_1": float(np.mean(numbers)) / candidates}


TASK = CloneRetrieval
