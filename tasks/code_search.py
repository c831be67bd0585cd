"""Code search: the first paragraph of a docstring finds its function among a pool of candidates (CodeSearchNet's task).

Functions are windows of their files, with the leaves that the graph of the whole file gives them; their docstrings are
taken out of the files first (`functions.py`). Each figure is measured as is, with the function's name masked, and with
all names masked (`excerpts.mask_names`), with the leaves and without them, zero-shot and fine-tuned on the training
corpus. Every checkpoint gets the same functions, pools, pairs and steps from the same seed.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .base import Task, TaskContext, TaskResult
from .corpora import shared_projects
from .excerpts import CONTEXT_CHARACTERS, MASKS, Excerpt, cut_excerpts, mask_names
from .fine_tuning import ContrastiveSettings, fine_tune
from .functions import Function, dataset_functions, read_code_search_net, sample, searchable
from .retrieval import (
    EXTRAS,
    TextWindows,
    bm25_scores,
    chance,
    deal_pools,
    embed,
    plain_excerpt,
    score_pools,
)

BF16_PADDING = 32
SUFFIXES = {"none": "", "name": "_name_masked", "all": "_all_masked"}


@dataclass
class CodeSearchOptions:
    """Options of `code_search`."""

    _argument_group_name: ClassVar[str] = "code_search"

    search_functions: int = field(
        default=1500, metadata={"help": "Functions to be found, drawn from the corpus (--max-examples lowers it)."}
    )
    search_pool: int = field(default=1000, metadata={"help": "Candidates that each question is ranked against."})
    search_rounds: int = field(default=3, metadata={"help": "How often the functions are dealt into pools."})
    search_masks: list[str] = field(
        default_factory=lambda: list(MASKS),
        metadata={"help": "Variants: none (as is), name (function's name masked), all (all names masked)."},
    )
    search_windows: int = field(
        default=2, metadata={"help": "Windows read of each function, from its beginning; their tokens are averaged."}
    )
    search_window_roots: int | None = field(
        default=None, metadata={"help": "Tokens of a window. Default: the checkpoint's num_roots."}
    )
    search_extra: str = field(
        default="auto",
        metadata={
            "help": "What a window gets besides its tokens: graph (leaves), context (as many tokens of the file around it), "
            "none; auto: graph where the checkpoint knows it, else none."
        },
    )
    search_steps: int = field(default=160, metadata={"help": "Steps of contrastive fine-tuning; 0: zero-shot only."})
    search_batch_size: int = field(default=32, metadata={"help": "Pairs in each step of fine-tuning."})
    search_learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate of fine-tuning."})
    search_temperature: float = field(default=0.05, metadata={"help": "Divides the cosines in fine-tuning."})
    search_extra_dropout: float = field(
        default=0.3, metadata={"help": "Share of functions given without leaves (or context) in fine-tuning."}
    )
    search_bf16: bool = field(
        default=False,
        metadata={"help": "Fine-tune in bfloat16 autocast; half the time on processors and GPUs that multiply in it."},
    )
    search_pairs: int | None = field(
        default=None, metadata={"help": "Pairs drawn from the training corpus for fine-tuning. Default: all."}
    )
    search_files: list[str] = field(
        default_factory=list,
        metadata={"help": "CodeSearchNet's own .jsonl or .jsonl.gz files to test on, in place of --dataset."},
    )
    search_training_files: list[str] = field(
        default_factory=list,
        metadata={"help": "CodeSearchNet's own files to fine-tune on, in place of --training-dataset."},
    )

    def __post_init__(self):
        if self.search_extra not in ("auto", *EXTRAS):
            raise ValueError(f"--search-extra must be one of auto, {', '.join(EXTRAS)}, got {self.search_extra!r}")
        wrong = [name for name in self.search_masks if name not in MASKS]
        if wrong or not self.search_masks:
            raise ValueError(f"--search-masks must be some of {', '.join(MASKS)}, got {' '.join(self.search_masks)!r}")
        for name in ("search_functions", "search_pool", "search_windows"):
            if getattr(self, name) < 2 - (name == "search_windows"):
                raise ValueError(f"--{name.replace('_', '-')} is too small: {getattr(self, name)}")
        if self.search_rounds < 1:
            raise ValueError(f"--search-rounds must be at least 1, got {self.search_rounds}")
        self.fine_tuning()

    def fine_tuning(self) -> ContrastiveSettings:
        """The settings of the fine-tuning."""
        return ContrastiveSettings(
            self.search_steps,
            self.search_batch_size,
            self.search_learning_rate,
            self.search_temperature,
            self.search_extra_dropout,
            self.search_bf16,
        )


class CodeSearch(Task):
    """MRR and recall of functions searched by their docstrings."""

    name = "code_search"
    options_class = CodeSearchOptions

    def run(self, context: TaskContext, options: CodeSearchOptions) -> TaskResult:
        extra = options.search_extra
        if extra == "auto":
            extra = "graph" if context.use_graph else "none"
        if extra == "graph" and not context.use_graph:
            raise ValueError("--search-extra graph: the checkpoint has no leaves, or --without-graph was given")
        functions, left_out = test_functions(context, options)
        number = len(functions)
        pools = deal_pools(number, options.search_pool, options.search_rounds, context.generator("code_search pools"))
        excerpts = _excerpts(context, functions, extra)
        variants = {
            mask: [
                mask_names(excerpt, mask, function.name) for excerpt, function in zip(excerpts, functions, strict=True)
            ]
            for mask in options.search_masks
        }
        questions = TextWindows(context, [plain_excerpt(function.docstring) for function in functions])
        texts = {
            mask: TextWindows(context, masked, options.search_windows, extra, options.search_window_roots)
            for mask, masked in variants.items()
        }

        found = _Found(pools, number)
        docstrings = [function.docstring for function in functions]
        for mask, masked in variants.items():
            scores = bm25_scores([excerpt.code for excerpt in masked], docstrings)
            found.add("BM25", mask, lambda pool, scores=scores: scores[np.ix_(pool, pool)])
        encoders = {"zero-shot": context.model().roberta}
        details: dict = {"extra": extra, "windows": {mask: len(windows) for mask, windows in texts.items()}}
        counts = {"functions": number, "pool": len(pools[0]), "pools": len(pools)}
        if options.search_steps:
            pairs, encoders["fine-tuned"], losses = self._fine_tune(context, options, extra)
            counts["training_pairs"] = pairs
            parts = np.array_split(np.array(losses), min(10, len(losses)))
            details["fine_tuning_loss"] = [round(float(part.mean()), 4) for part in parts]
        main = list(encoders)[-1]
        for who, encoder in encoders.items():
            asked = embed(context, encoder, questions, False, f"{who}: questions")
            # What was not fine-tuned stands beside it on the functions as they are.
            masks = texts if who == main else [mask for mask in texts if mask == "none"]
            for mask in masks:
                windows = texts[mask]
                for with_extra in (True, False) if extra != "none" else (True,):
                    given = embed(context, encoder, windows, with_extra, f"{who}: functions")
                    scores = asked @ given.T
                    name = who if with_extra else f"{who}, without {extra}"
                    found.add(name, mask, lambda pool, scores=scores: scores[pool][:, pool].numpy())

        details["left_out"] = left_out
        details["spread_over_pools"] = found.spread
        details["extra_tokens_per_window"] = {mask: w.num_extra / len(w) for mask, w in texts.items()}
        counts |= {f"functions_cut{SUFFIXES[mask]}": windows.num_cut for mask, windows in texts.items()}
        expected = chance(len(pools[0]))
        random = {f"{name}{SUFFIXES[mask]}": value for mask in texts for name, value in expected.items()}
        return TaskResult(
            figures=found.figures[main],
            baselines={"BM25": found.figures["BM25"], "random": random},
            controls={who: figures for who, figures in found.figures.items() if who not in ("BM25", main)},
            counts=counts,
            details=details,
            examples=found.examples,
        )

    def _fine_tune(self, context: TaskContext, options: CodeSearchOptions, extra: str):
        pairs, _ = searchable(_training_functions(context, options))
        pairs = sample(pairs, options.search_pairs, context.arguments.seed)
        # Prepared kernels of bfloat16 want shapes that repeat.
        padding = {"pad_to_multiple_of": BF16_PADDING if options.search_bf16 else None}
        texts = TextWindows(
            context, _excerpts(context, pairs, extra), extra=extra, num_roots=options.search_window_roots, **padding
        )
        questions = TextWindows(context, [plain_excerpt(function.docstring) for function in pairs], **padding)
        encoder, losses = fine_tune(context, questions, texts, options.fine_tuning())
        return len(pairs), encoder, losses


class _Found:
    """Figures of every scorer, their spread over pools, and the reciprocal rank of each question."""

    def __init__(self, pools: list[np.ndarray], number: int):
        self._pools, self._number = pools, number
        self.figures: dict[str, dict[str, float]] = {}
        self.spread: dict[str, dict[str, float]] = {}
        self.examples: dict[str, np.ndarray] = {}

    def add(self, who: str, mask: str, scores) -> None:
        means, spread, reciprocal = score_pools(scores, self._pools, self._number)
        suffix = SUFFIXES[mask]
        self.figures.setdefault(who, {}).update({f"{name}{suffix}": value for name, value in means.items()})
        self.spread.setdefault(who, {}).update({f"{name}{suffix}": value for name, value in spread.items()})
        self.examples[f"{who}: reciprocal_rank{suffix}"] = reciprocal


def _excerpts(context: TaskContext, functions: list[Function], extra: str) -> list[Excerpt]:
    characters = CONTEXT_CHARACTERS if extra == "context" else 0
    return cut_excerpts(functions, characters, progress=lambda items: context.progress(items, "reading graphs"))


def test_functions(context: TaskContext, options: CodeSearchOptions) -> tuple[list[Function], dict[str, int]]:
    """The functions to be found, and how many were left out by reason."""
    counts: Counter = Counter()
    if options.search_files:
        read = _not_trained_on(context, read_code_search_net(options.search_files), counts)
    else:
        read = dataset_functions(context.test.rows, context.show_progress)
    functions, left_out = searchable(read)
    if len(functions) < 2:
        raise ValueError(
            f"the corpus to test on has {len(functions)} documented function(s) after CodeSearchNet's filters; "
            "code search needs at least 2"
        )
    limit = min(options.search_functions, context.arguments.max_examples or options.search_functions)
    return sample(functions, limit, context.arguments.seed), left_out | dict(counts)


def _not_trained_on(context: TaskContext, functions, counts: Counter):
    """Functions of repositories that the checkpoint was not trained on; the last part of a repository's name counts."""
    manifest = None if context.arguments.allow_shared_projects else context.training_manifest
    trained = [] if manifest is None else manifest["splits"]["train"]["projects"]
    shared: dict[str, bool] = {}
    for function in functions:
        repository = function.project.rpartition("/")[2]
        if repository not in shared:
            shared[repository] = bool(shared_projects([repository], trained))
        if shared[repository]:
            counts["repository trained on"] += 1
        else:
            yield function


def _training_functions(context: TaskContext, options: CodeSearchOptions):
    if options.search_training_files:
        return read_code_search_net(options.search_training_files)
    return dataset_functions(context.training.rows, context.show_progress)


TASK = CodeSearch
