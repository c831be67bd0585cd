"""What every task is made of: its arguments, the opened checkpoint and corpora, and its report.

A task is a module `tasks/NAME.py` with a class `TASK`, a subclass of `Task`:

    @dataclass
    class Options:                      # becomes --pool-size; no two tasks may share a name
        _argument_group_name: ClassVar[str] = "code_search"
        pool_size: int = field(default=1000, metadata={"help": "Candidates that each query is ranked against."})

    class CodeSearch(Task):
        name = "code_search"            # listed with one line in tasks/__init__.py
        options_class = Options

        def run(self, context: TaskContext, options: Options) -> TaskResult:
            ...
            return TaskResult(figures={"mrr": 0.5}, baselines={"BM25": {"mrr": 0.4}}, counts={"queries": 2000})

    TASK = CodeSearch

`context` opens what it is asked for once: `model()`, `tokenizer`, `test` and `training` corpora, `windows(...)`,
`counted(...)`, `collator(...)`, `batches(lengths)`, `progress(...)`, `generator(...)`. A checkpoint that cannot do a task
makes it raise `NotApplicable`; the report then says so in place of figures. Everything depends on `arguments.seed` alone.
"""

import hashlib
import inspect
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..chain_graphs.tokenizer import check_tokenizer, read_tokenizer
from ..chain_graphs.windows import WindowDataset
from ..collator import GraphMertCollator
from ..command_line import check_output_file
from ..configuration_graphmert import GraphMertConfig
from ..loading_graphmert import damage_named
from ..modeling_graphmert import GraphMertForPreTraining, GraphMertForPreTrainingOutput, parameter_counts
from ..pretraining_metrics import DIAGNOSTIC_INPUTS
from ..run_summary import environment, file_sha256
from . import TASKS
from .corpora import (
    TRAINING_SPLIT,
    Corpus,
    check_nothing_shared,
    projects_of,
    shared_projects,
    training_manifest_of,
)
from .counted import kept_table

if TYPE_CHECKING:
    import pandas as pd

logger = logging.get_logger(__name__)

REPORT_VERSION = 1


class NotApplicable(Exception):
    """The checkpoint cannot do the task (a graph task without leaves, for instance); the message says why."""


@dataclass
class TaskArguments:
    """Arguments that all tasks share."""

    _argument_group_name: ClassVar[str] = "all tasks"

    model: str = field(metadata={"help": "Directory of a checkpoint: GraphMERT, or RoBERTa (then without a graph)."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Corpus to test on, built by `python -m graphmert.chain_graphs.build` (most tasks need it)."
        },
    )
    training_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Corpus that the model was trained on: baselines count there. Default: as its summary.json says."
        },
    )
    splits: list[str] | None = field(
        default=None,
        metadata={"help": "Splits of --dataset to test on. Default: all, of the training corpus validation."},
    )
    allow_shared_projects: bool = field(
        default=False, metadata={"help": "Test even on projects that the model was trained on."}
    )
    without_graph: bool = field(
        default=False, metadata={"help": "Leave the graph out at test time, of a checkpoint that knows it."}
    )
    max_examples: int | None = field(
        default=None, metadata={"help": "At most so many windows, files, queries ... (each task says of what)."}
    )
    batch_size: int = field(default=32, metadata={"help": "Windows per forward pass; changes no figure."})
    seed: int = field(default=0, metadata={"help": "Of masks, samples and pools."})
    device: str | None = field(default=None, metadata={"help": "torch device. Default: cuda where there is one."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of PyTorch. Default: its own choice."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the report."})
    save_examples: bool = field(
        default=False,
        metadata={"help": "Also save what each example gave, in OUTPUT's name with .NAME.npz in the end."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Keep what the lookups count in a corpus here, for the next checkpoint that is judged on the same."
        },
    )

    def __post_init__(self):
        for name in ("max_examples", "batch_size", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.cache_dir is not None and Path(self.cache_dir).exists() and not Path(self.cache_dir).is_dir():
            raise ValueError(f"--cache-dir {self.cache_dir} is not a directory")
        if self.output is not None:
            check_output_file("--output", self.output)
        if self.save_examples and self.output is None:
            raise ValueError("--save-examples needs --output: its files lie beside the report")


@dataclass
class TaskResult:
    """What a task found. Figures of the model, its controls and the baselines have the same names.

    Attributes:
        figures: of the checkpoint.
        baselines: the same figures of trivial methods on the same examples, by method.
        controls: the same figures of the checkpoint under changed input, by change.
        counts: examples, candidates, what was left out and why.
        details: anything else that JSON holds (figures by relation, settings that were taken from the checkpoint).
        examples: arrays with one element or row for each example, in an order that depends on no checkpoint, so that
            two checkpoints can be compared in pairs.
    """

    figures: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    examples: dict[str, np.ndarray] = field(default_factory=dict)


class Task(ABC):
    """One evaluation of a checkpoint."""

    name: ClassVar[str]
    options_class: ClassVar[type | None] = None

    @abstractmethod
    def run(self, context: "TaskContext", options) -> TaskResult:
        """Evaluate.

        Args:
            context: checkpoint, corpora and common arguments.
            options: an instance of `options_class`, None without one.

        Raises:
            NotApplicable: the checkpoint cannot do the task.
            ValueError: wrong input, in a sentence that names it and the mend.
        """


class TaskContext:
    """A checkpoint and corpora, opened when they are first asked for and shared by the tasks of one command.

    Args:
        arguments: the common arguments.
        show_progress: show progress bars on a terminal.

    Raises:
        ValueError: no checkpoint in `arguments.model`.
    """

    def __init__(self, arguments: TaskArguments, show_progress: bool = True):
        self.arguments = arguments
        self.show_progress = show_progress
        self.model_dir = Path(arguments.model)
        if not (self.model_dir / "config.json").is_file():
            raise ValueError(f"--model {arguments.model}: no checkpoint there (no config.json)")
        if not any((self.model_dir / name).is_file() for name in _WEIGHT_FILES):
            raise ValueError(f"--model {arguments.model}: no weights there (no {_WEIGHT_FILES[0]})")
        has_cuda = torch.cuda.is_available()
        try:
            self.device = torch.device(arguments.device or ("cuda" if has_cuda else "cpu"))
        except RuntimeError as error:
            raise ValueError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error
        if self.device.type == "cuda" and not has_cuda:
            raise ValueError(f"--device {arguments.device}: this machine has no CUDA device")
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        self._windows: dict[tuple, WindowDataset] = {}

    # ---- the checkpoint

    @cached_property
    def _model(self) -> GraphMertForPreTraining:
        model_type = self._model_type()
        try:
            with damage_named(self.model_dir):
                model = self._load_graphmert() if model_type == "graphmert" else self._load_roberta()
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"--model {self.model_dir}: cannot be loaded ({type(error).__name__}: {reason})"
            ) from error
        return model.to(self.device).eval()

    def _model_type(self) -> str:
        """What config.json says, where it is a kind of model that can be judged."""
        try:
            model_type = json.loads((self.model_dir / "config.json").read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"--model {self.model_dir}: config.json cannot be read ({error})") from error
        if model_type not in ("graphmert", "roberta"):
            raise ValueError(f"--model {self.model_dir}: model_type is {model_type!r}, not graphmert or roberta")
        return model_type

    def _load_graphmert(self) -> GraphMertForPreTraining:
        model, report = GraphMertForPreTraining.from_pretrained(self.model_dir, output_loading_info=True)
        # The tied decoder and heads that a task does not use may be missing; the encoder must be whole.
        missing = sorted(name for name in report["missing_keys"] if name.startswith("roberta."))
        if missing:
            raise ValueError(f"the weights lack {', '.join(missing[:3])}")
        self.missing_parameters = sorted(report["missing_keys"])
        return model

    def _load_roberta(self) -> GraphMertForPreTraining:
        # A plain encoder: nothing of the graph, and its own positions.
        return GraphMertForPreTraining.from_roberta(
            str(self.model_dir), verbose=False, use_hgat=False, decay_mode=None, leaves_per_root=0
        )

    missing_parameters: list[str] = []
    """Names of parameters that the checkpoint does not hold, so that they are new and random."""

    def model(self) -> GraphMertForPreTraining:
        """The checkpoint with all heads, in evaluation mode on the device; `.roberta` is its encoder.

        A task that trains must work on a copy (`copy.deepcopy`).
        """
        return self._model

    @property
    def config(self) -> GraphMertConfig:
        """The checkpoint's configuration."""
        return self._model.config

    @cached_property
    def tokenizer(self):
        """The checkpoint's tokenizer."""
        if not (self.model_dir / "tokenizer.json").is_file():
            raise ValueError(f"--model {self.model_dir}: no fast tokenizer there (no tokenizer.json)")
        try:
            tokenizer = read_tokenizer(self.model_dir)
        except ValueError as error:
            raise ValueError(f"--model {error}") from error
        check_tokenizer(tokenizer, str(self.model_dir))
        return tokenizer

    @property
    def use_graph(self) -> bool:
        """Whether the model is given leaves: it knows them and --without-graph was not asked for."""
        return self.config.leaves_per_root > 0 and not self.arguments.without_graph

    @cached_property
    def recipe(self) -> dict:
        """How the checkpoint was trained, as far as `summary.json` beside it says: options of data and model by name."""
        directory = self.model_dir.parent if re.fullmatch(r"checkpoint-\d+", self.model_dir.name) else self.model_dir
        file = directory / "summary.json"
        if not file.is_file():
            return {}
        try:
            arguments = json.loads(file.read_text(encoding="utf-8"))["arguments"]
            return {**arguments.get("model", {}), **arguments.get("data", {})}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{file} is not the summary of a pretraining run ({error}); remove it") from error

    # ---- corpora

    @cached_property
    def test(self) -> Corpus:
        """The corpus to test on.

        Raises:
            ValueError: none given, another tokenizer, or it shares a project with the corpus trained on.
        """
        arguments = self.arguments
        if arguments.dataset is None:
            raise ValueError("this task needs --dataset: a corpus to test on")
        corpus = Corpus(arguments.dataset, arguments.splits)
        self._check_vocabulary(corpus)
        manifest = self.training_manifest
        if manifest is None and not arguments.allow_shared_projects:
            raise ValueError(
                f"nothing says what {self.model_dir} was trained on (no manifest.json there); give --training-dataset, "
                "or --allow-shared-projects"
            )
        if arguments.splits is None and manifest is not None and _same_data(corpus, manifest):
            held_out = [name for name in corpus.splits if name != TRAINING_SPLIT]
            corpus = Corpus(arguments.dataset, held_out)
        if not arguments.allow_shared_projects:
            check_nothing_shared(corpus.manifest, corpus.splits, manifest)
        return corpus

    @cached_property
    def training_manifest(self) -> dict | None:
        """The manifest of the corpus that the model was trained on, from the checkpoint or the training corpus."""
        manifest = training_manifest_of(self.model_dir)
        if manifest is None and self.arguments.training_dataset is not None:
            manifest = self.training.manifest
        return manifest

    @cached_property
    def training(self) -> Corpus:
        """The training split of the corpus that the model was trained on; baselines count there.

        Raises:
            ValueError: none given and none found.
        """
        path = self.arguments.training_dataset or self.recipe.get("dataset")
        own = self.model_dir / "_dataset"
        if path is None and own.is_dir():
            path = own
        if path is None or not Path(path).is_dir():
            reason = "" if path is None else f" (the checkpoint's summary names {path}, which is not there)"
            raise ValueError(f"this task needs --training-dataset: the corpus that baselines count on{reason}")
        corpus = Corpus(path, [TRAINING_SPLIT])
        self._check_vocabulary(corpus)
        return corpus

    def corpus_to_weigh_on(self, option: str) -> Corpus | None:
        """`held_out`, where a checkpoint and a table are weighed; without one a warning that names the option."""
        if self.held_out is None:
            logger.warning(
                f"{option}: checkpoint and table are weighed on projects that were held out of the training corpus, and "
                "there is none that was neither trained on nor is tested on; the checkpoint is judged alone"
            )
        return self.held_out

    @cached_property
    def held_out(self) -> Corpus | None:
        """What was held out of the training corpus: projects that neither checkpoint nor table has learned from.

        None where the training corpus has no such split, or some project of it is tested on or was trained on.
        """
        training = self.training
        splits = [name for name in training.manifest["splits"] if name != TRAINING_SPLIT]
        # By their projects: another build of the corpus that is tested on has another fingerprint.
        if not splits or shared_projects(
            projects_of(training.manifest, splits), [*self.trained_on, *self.test.projects]
        ):
            return None
        return Corpus(training.path, splits)

    @property
    def trained_on(self) -> list[str]:
        """The projects that the checkpoint was trained on, as far as it says."""
        return [] if self.training_manifest is None else projects_of(self.training_manifest, [TRAINING_SPLIT])

    def _check_vocabulary(self, corpus: Corpus) -> None:
        if corpus.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"data set {corpus.path} was built with another tokenizer than that of {self.model_dir}; build it again "
                f"with --tokenizer {self.model_dir}"
            )

    # ---- windows and batches

    def window_options(self, graph: bool | None = None) -> dict:
        """The arguments of `WindowDataset` that the checkpoint was trained with.

        Args:
            graph: with leaves or without; default `use_graph`.
        """
        return {
            "num_roots": self.config.num_roots,
            "leaves_per_root": self.config.leaves_per_root if (self.use_graph if graph is None else graph) else 0,
            # Checkpoints from before the configuration said so have it in their summary alone.
            "include_uses": self.recipe.get("include_uses", self.config.include_uses),
            "include_site_anchors": self.recipe.get("include_site_anchors", self.config.include_site_anchors),
            "exclude_relations": tuple(self.recipe.get("exclude_relations", self.config.exclude_relations)),
            "edge_relations": tuple(self.recipe.get("edge_relations", self.config.edge_relations)),
        }

    def windows(self, corpus: Corpus, max_windows: int | None = None, **options) -> WindowDataset:
        """Windows of a corpus as the model takes them; the same object for the same arguments.

        Args:
            corpus: `test` or `training`.
            max_windows: keep so many, evenly spread.
            **options: arguments of `WindowDataset` in place of `window_options()`.
        """
        options = {**self.window_options(), **options, "max_windows": max_windows}
        key = (str(corpus.path), tuple(corpus.splits), *sorted(options.items()))
        if key not in self._windows:
            self._windows[key] = WindowDataset(corpus.rows, self.tokenizer, progress=self.show_progress, **options)
        return self._windows[key]

    def counted(self, name: str, corpus: Corpus, count: Callable[[WindowDataset], "pd.DataFrame"]) -> "pd.DataFrame":
        """What lookups count in all windows of a corpus; with --cache-dir counted once (`counted.kept_table`).

        Args:
            name: of the table.
            corpus: `test` or `training`.
            count: makes the table of the windows; they are cut only where it has to.
        """
        described_by = {"corpus": corpus.fingerprint, "splits": corpus.splits, "windows": self.window_options()}
        return kept_table(self.arguments.cache_dir, name, described_by, lambda: count(self.windows(corpus)))

    def windows_of_sources(self, sources: Sequence[str], language: str = "python", **options) -> WindowDataset:
        """Windows of texts that are extracted and linked here, for instance of single functions.

        Args:
            sources: the texts; none may be without a single token.
            language: of all of them.
            **options: arguments of `WindowDataset` in place of `window_options()`.

        Returns:
            The windows of all texts; `file_index` says which text a window is of, `token_range` which tokens.
        """
        rows = self.rows_of_sources(sources, language)
        return WindowDataset(rows, self.tokenizer, **{**self.window_options(), **options})

    def rows_of_sources(self, sources: Sequence[str], language: str = "python", graphs: Sequence | None = None):
        """Rows as in a data set of chain graphs (`linking.ROW_COLUMNS`, `datasets.Dataset`), one for each text.

        Args:
            sources, language: as in `windows_of_sources`.
            graphs: the texts' graphs, where they are at hand.
        """
        from datasets import Dataset

        from ..chain_graphs.linking import ROW_COLUMNS, LeafEncoder, link_file
        from ..code_graph import extract

        encoder = LeafEncoder(self.tokenizer)
        columns: dict[str, list] = {name: [] for name in ROW_COLUMNS}
        for number, source in enumerate(self.progress(sources, "reading code")):
            graph = extract(source, language) if graphs is None else graphs[number]
            row, _ = link_file(source, graph, self.tokenizer, encoder, language=language)
            for name, values in row.items():
                columns[name].append(values)
        return Dataset.from_dict(columns)

    def collator(self, **options) -> GraphMertCollator:
        """A collator that fits the checkpoint, masks by `arguments.seed`, with diagnostics.

        Args:
            **options: arguments of `GraphMertCollator`; by default nothing is masked.
        """
        values = {
            "num_roots": self.config.num_roots,
            "leaves_per_root": self.config.leaves_per_root,
            "num_relations": self.config.num_relations,
            "mlm_probability": 0.0,
            "mnm_probability": 0.0,
            "mnm_target": "relation",
            "seed": self.arguments.seed,
            "diagnostics": True,
        }
        return GraphMertCollator(self.tokenizer, **{**values, **options})

    def batches(self, lengths: Sequence[int] | np.ndarray, description: str) -> Iterator[np.ndarray]:
        """Indices of examples in batches of similar length, longest first, with a progress bar.

        Args:
            lengths: length of each example.
            description: of the bar.
        """
        order = np.argsort(-np.asarray(lengths), kind="stable")
        size = self.arguments.batch_size
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        yield from self.progress(parts, description)

    def progress(self, iterable: Iterable, description: str, total: int | None = None) -> Iterable:
        """A progress bar where there is a terminal."""
        return tqdm(iterable, desc=description, total=total, leave=False, disable=None if self.show_progress else True)

    def inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A collator's batch without diagnostics and labels, on the device."""
        left_out = (*DIAGNOSTIC_INPUTS, "labels", "relation_labels", "span_left", "span_right", "span_offset")
        return {name: value.to(self.device) for name, value in batch.items() if name not in left_out}

    def predict(
        self, batch: dict[str, torch.Tensor], model: GraphMertForPreTraining | None = None
    ) -> GraphMertForPreTrainingOutput:
        """Predictions for a collator's batch; with a gradient where the model is in training mode.

        Args:
            batch: with `labels` (B, N).
            model: a copy of the checkpoint that a task has trained. Default: the checkpoint.

        Returns:
            `logits` (M, V) of the labelled nodes in row-major order, `relation_logits` (B, R, L, C), on the device.
        """
        inputs = self.inputs(batch)
        labels = batch["labels"].to(self.device)
        if self.config.span_boundary:
            # Nothing to predict from the spans' ends here, but the model asks for them beside labels.
            nowhere = torch.zeros_like(labels)
            inputs |= {"span_left": nowhere, "span_right": nowhere, "span_offset": nowhere}
        model = self._model if model is None else model
        with torch.set_grad_enabled(model.training):
            return model(**inputs, labels=labels, sparse_prediction=True)

    def generator(self, name: str) -> np.random.Generator:
        """A random generator of the seed and a name, so that one task's draws do not depend on another's."""
        digest = hashlib.sha256(f"{self.arguments.seed} {name}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def sample(self, number: int, name: str, limit: int | None = None) -> np.ndarray:
        """Indices of at most `limit` (default --max-examples) of `number` examples, drawn without repeats, sorted."""
        limit = self.arguments.max_examples if limit is None else limit
        if limit is None or limit >= number:
            return np.arange(number)
        return np.sort(self.generator(name).choice(number, limit, replace=False))

    def description(self) -> dict:
        """What a report says of the checkpoint."""
        config, manifest = self.config.to_diff_dict(), self.training_manifest
        config.pop("auto_map", None)
        weights = next(self.model_dir / name for name in _WEIGHT_FILES if (self.model_dir / name).is_file())
        return {
            "path": str(self.model_dir),
            "weights_sha256": file_sha256(weights),
            "parameters": parameter_counts(self._model)["total"],
            "config": config,
            "uses_graph": self.use_graph,
            "missing_parameters": self.missing_parameters,
            "trained_on": None if manifest is None else sorted(manifest["splits"][TRAINING_SPLIT]["projects"]),
            "recipe": {name: self.recipe.get(name) for name in _RECIPE_FIELDS if name in self.recipe},
        }


_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_RECIPE_FIELDS = (
    "dataset",
    "include_uses",
    "include_site_anchors",
    "exclude_relations",
    "edge_relations",
    "mlm_probability",
    "mnm_probability",
    "mnm_window_probability",
    "masked_span_leaves",
    "mask_visible_copies",
    "mnm_skip_copied_tails",
    "max_train_windows",
)


def _same_data(corpus: Corpus, manifest: dict) -> bool:
    from .corpora import fingerprint_of

    return corpus.fingerprint == fingerprint_of(manifest)


def task_class(name: str) -> type[Task]:
    """The class of a task by its name.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    return import_module(f".{name}", __package__).TASK


def run_tasks(
    names: Sequence[str], arguments: TaskArguments, options: dict | None = None, show_progress: bool = True
) -> dict:
    """Run tasks on one checkpoint, which is loaded once.

    Args:
        names: of `TASKS`.
        arguments: common to all.
        options: values for fields of the tasks' option classes, by field; each task takes those that it has.
        show_progress: show progress bars on a terminal.

    Returns:
        The report, as JSON can hold it: `model`, `dataset`, `training_dataset` (None where not used), `arguments`,
        `environment`, and by task under `tasks`: `figures`, `baselines`, `controls`, `counts`, `details`, `options`,
        `seconds`; or `not_applicable` with the reason. It is also written to `arguments.output`.

    Raises:
        ValueError: wrong input.
    """
    options = dict(options or {})
    classes = {name: task_class(name) for name in names}
    known = {name: _fields(cls.options_class) for name, cls in classes.items()}
    unknown = sorted(set(options) - {field_name for fields in known.values() for field_name in fields})
    if unknown:
        raise ValueError(f"no task of {', '.join(names)} has an option {', '.join(unknown)}")
    context = TaskContext(arguments, show_progress)
    context.model()
    report: dict = {"report_version": REPORT_VERSION, "tasks": {}}
    for name, cls in classes.items():
        own = {key: value for key, value in options.items() if key in known[name]}
        begin = time.perf_counter()
        torch.manual_seed(arguments.seed)
        try:
            result = cls().run(context, cls.options_class(**own) if cls.options_class else None)
        except NotApplicable as reason:
            report["tasks"][name] = {"not_applicable": str(reason)}
            continue
        report["tasks"][name] = {
            **{key: value for key, value in vars(result).items() if key != "examples"},
            "options": asdict(cls.options_class(**own)) if cls.options_class else {},
            "seconds": round(time.perf_counter() - begin, 1),
        }
        if arguments.save_examples and result.examples:
            path = Path(arguments.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path.with_suffix(f".{name}.npz"), **result.examples)
    opened = vars(context)
    report["model"] = context.description()
    for role, attribute in (("dataset", "test"), ("training_dataset", "training")):
        report[role] = opened[attribute].description() if attribute in opened else None
    report["arguments"] = asdict(arguments)
    report["environment"] = environment()
    report = plain(report)
    if arguments.output is not None:
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def run_task(name: str, model: str | Path, dataset: str | Path | None = None, **values) -> dict:
    """Run one task.

    Args:
        name: of `TASKS`.
        model: directory of the checkpoint.
        dataset: the corpus to test on.
        **values: fields of `TaskArguments` and of the task's options.

    Returns:
        As `run_tasks`, with the task's own part in place of `tasks`.

    Example:

        >>> report = run_task("relation_prediction", "runs/small", "corpora/heldout", max_examples=500)
        >>> report["figures"]["accuracy"], report["baselines"]["majority"]["accuracy"]
    """
    common = {key: values.pop(key) for key in list(values) if key in _fields(TaskArguments)}
    arguments = TaskArguments(model=str(model), dataset=None if dataset is None else str(dataset), **common)
    report = run_tasks([name], arguments, values)
    return {"task": name, **report.pop("tasks")[name], **report}


def _fields(cls: type | None) -> set[str]:
    return set() if cls is None else set(inspect.signature(cls).parameters)


def plain(value):
    """Numbers, lists and dictionaries of Python in place of those of numpy; NaN becomes None, which JSON can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
