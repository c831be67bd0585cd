"""Type prediction: what type has a parameter, what does a function return, where no annotation says so?

All annotations are taken out of a file before it is read (`code_graph.annotations.hide_annotations`), so that a hidden
type's annotation stands neither in a window's text nor in a leaf. One type is asked for at a time, in one of two ways:

    leaf    a leaf with the relation `has_type` or `returns` and masked words is hung on the name
    text    an annotation of mask tokens is put in its place in the text; any checkpoint can be asked so

Candidates (`type_candidates`) are the types of the training corpus, the classes that the file names outside its imports and
hidden annotations, and the classes and type aliases that other files of the project define (`--type-project-classes`), by
themselves and in the forms that the training corpus makes of such names (`--type-class-forms`); the baselines choose among
the same ones. How the checkpoint scores them is told in `type_scoring`.

With `--type-steps` a copy of the checkpoint is first fine-tuned on the training corpus, likewise without its annotations
(`type_fine_tuning`); the checkpoint as it is then stands beside it as `zero-shot`. With `--type-table` the scores are
combined with what a table of the training corpus knows of the name, and with `--type-signs` also with what the code does
(`type_signs`); `type_ranker` tells how. Checkpoint, table and signs without each other stand beside it.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from transformers.utils import logging

from ..chain_graphs.linking import LeafEncoder
from ..code_graph.schema import RETURNS
from .base import Task, TaskContext, TaskResult
from .type_candidates import Candidates, DeclaredTypes
from .type_fine_tuning import TypeTuningSettings, fine_tune_types
from .type_queries import find_queries, is_shown, read_files
from .type_ranker import MODEL, SIGNS, TABLE, TypePools
from .type_scoring import LEAF, TEXT, Questions, score_types
from .type_signs import TypeSigns

logger = logging.get_logger(__name__)

_TABLE, _BOTH = "the table", "table and signs"
TOP = 5
MAX_TOKENS = 7
TABLE_TYPES = 800
"""Hidden types that the weights of model and table are fitted on, at most."""
TABLE_PROJECTS = 0.1
"""Share of the training corpus's projects that they are taken from."""


@dataclass
class TypePredictionOptions:
    """Options of `type_prediction`."""

    _argument_group_name: ClassVar[str] = "type_prediction"

    type_max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest candidate; before fine-tuning each length costs a forward pass for each hidden type. Default: "
            "7, or a root's leaf slots where they are fewer."
        },
    )
    type_min_count: int = field(
        default=2, metadata={"help": "Times that a type must be written in the training corpus to be a candidate."}
    )
    type_project_classes: bool = field(
        default=True,
        metadata={
            "help": "Classes that other files of the project define are candidates too, not only the file's own."
        },
    )
    type_class_forms: bool = field(
        default=True,
        metadata={
            "help": "A name X of file or project is a candidate also in the forms that many projects of the training corpus "
            "write: X | None, list[X] ..."
        },
    )
    type_table: bool = field(
        default=True,
        metadata={
            "help": "Judge candidates by the checkpoint together with a table of the training corpus's types, weighed on "
            "a tenth of its projects, which fine-tuning leaves out; the checkpoint alone stands beside it."
        },
    )
    type_signs: bool = field(
        default=True,
        metadata={
            "help": "With --type-table: judge candidates also by signs of use, what the code does with a parameter and what "
            "a function returns, learned from the training corpus without an encoder; table and checkpoint without them "
            "stand beside it."
        },
    )
    type_controls: bool = field(
        default=True, metadata={"help": "Also ask in the other way, in the text or in a leaf (twice the time)."}
    )
    type_steps: int = field(
        default=0,
        metadata={
            "help": "Steps of fine-tuning on types of the training corpus that are hidden too; 0: zero-shot only."
        },
    )
    type_batch_size: int = field(default=16, metadata={"help": "Windows in each step of fine-tuning."})
    type_learning_rate: float = field(default=5e-4, metadata={"help": "Highest learning rate of fine-tuning."})
    type_files: int | None = field(
        default=None, metadata={"help": "Files of the training corpus to fine-tune on. Default: all."}
    )
    type_bf16: bool = field(
        default=False,
        metadata={"help": "Fine-tune in bfloat16 autocast; half the time on processors and GPUs that multiply in it."},
    )

    def __post_init__(self):
        lowest = {"type_max_tokens": 1, "type_min_count": 1, "type_steps": 0, "type_batch_size": 1, "type_files": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
        if self.type_learning_rate <= 0:
            raise ValueError(f"--type-learning-rate must be above 0, got {self.type_learning_rate}")

    def candidates(self, declared: DeclaredTypes, context: TaskContext) -> Candidates:
        """The candidates that a corpus gives."""
        return Candidates(
            declared,
            LeafEncoder(context.tokenizer),
            self.type_max_tokens,
            self.type_min_count,
            self.type_project_classes,
            self.type_class_forms,
        )

    def fine_tuning(self) -> TypeTuningSettings:
        """The settings of the fine-tuning."""
        return TypeTuningSettings(
            self.type_steps,
            self.type_batch_size,
            self.type_learning_rate,
            self.type_files,
            self.type_max_tokens,
            self.type_bf16,
        )


class TypePrediction(Task):
    """Top-1 and top-5 of hidden types, exactly as they were written, beside frequencies for the same name."""

    name = "type_prediction"
    options_class = TypePredictionOptions

    def run(self, context: TaskContext, options: TypePredictionOptions) -> TaskResult:
        if options.type_max_tokens is None:
            slots = context.config.leaves_per_root if context.use_graph else MAX_TOKENS
            options = replace(options, type_max_tokens=min(MAX_TOKENS, slots))
        if context.use_graph and options.type_max_tokens > context.config.leaves_per_root:
            raise ValueError(
                f"--type-max-tokens must be at most {context.config.leaves_per_root}, a root's leaf slots"
            )
        with_signs = options.type_table and options.type_signs
        files, counts = read_files(context, context.test.rows, "hiding types", with_usage=with_signs)
        every = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
        if not every:
            raise ValueError("the test corpus has no Python file with annotated parameters or results")
        counts["hidden_types"] = len(every)
        chosen = [every[i] for i in context.sample(len(every), self.name)]
        windows, queries = find_queries(context, files, chosen)
        counts["asked"], counts["across_window_edge"] = len(queries), len(chosen) - len(queries)
        declared = DeclaredTypes.of(context)
        ways = [LEAF, TEXT] if context.use_graph else [TEXT]
        # A checkpoint that never learned to name tails is asked in the text first.
        if context.use_graph and context.config.mnm_target == "relation":
            ways.reverse()
        left_out = _projects_left_out(context, declared) if options.type_table else []
        signs = TypeSigns.of(context, declared, left_out) if left_out and with_signs else None
        questions = Questions.of(windows, queries, options.candidates(declared, context), signs)
        # Before the fine-tuning, which would be lost if there were nothing to weigh on.
        weighed_on = _questions_of_projects(context, declared, left_out, options, signs) if left_out else None
        details, name, model = {}, ways[0], None
        if options.type_steps:
            name = f"fine-tuned, {ways[0]}"
            model, losses, learned = fine_tune_types(context, ways[0] == LEAF, options.fine_tuning(), left_out)
            counts |= learned
            parts = np.array_split(np.array(losses), min(10, len(losses)))
            details["fine_tuning_loss"] = [round(float(part.mean()), 4) for part in parts]
        ranks, baselines = {}, questions.candidates.baselines(queries, questions.own)
        by_end = model is not None
        scores = score_types(context, questions, ways[0], model, by_end)
        if weighed_on is not None:
            counts["types_to_weigh_on"] = len(weighed_on.queries)
            pools = TypePools(
                weighed_on, score_types(context, weighed_on, ways[0], model, by_end), _pools(signs is not None)
            )
            found = pools.ranks(questions, scores)
            ranks |= {f"{name}, with {rest}": found[rest, True] for rest in (_BOTH, _TABLE) if (rest, True) in found}
            baselines |= {rest: found[rest, False] for rest in (_TABLE, _BOTH) if (rest, False) in found}
            details["weights"] = {"projects": left_out} | pools.weights_by_name(next(iter(found)))
        ranks[name] = questions.ranks(scores)
        for way in ways if options.type_controls else ways[:1]:
            zero_shot = f"zero-shot, {way}" if options.type_steps else way
            if zero_shot not in ranks:
                ranks[zero_shot] = questions.ranks(score_types(context, questions, way))
        main = next(iter(ranks))
        shown = [is_shown(context, windows[query.window], query.hidden.type) for query in queries]
        groups = self._groups(questions, np.array(shown))
        counts.update({"asked" + suffix: int(members.sum()) for suffix, members in groups.items() if suffix})
        counts["candidates_from_training"] = len(questions.candidates.types)
        counts["candidates_per_query"] = round(float(np.mean([len(values) for values in scores])))
        projects = np.array([query.project for query in queries])
        return TaskResult(
            figures=figures_of(ranks[main], groups),
            controls={name: figures_of(rank, groups) for name, rank in ranks.items() if name != main},
            baselines={name: figures_of(np.array(rank), groups) for name, rank in baselines.items()},
            counts=counts,
            details={
                "asked": main,
                **details,
                "trained_to_predict_tails": context.use_graph and context.config.mnm_target != "relation",
                "by_project": {
                    str(name): {
                        "asked": int((projects == name).sum()),
                        **figures_of(ranks[main], {"": projects == name}),
                    }
                    for name in np.unique(projects)
                },
            },
            examples={
                "file_number": np.array([query.file for query in queries]),
                "start": np.array([query.hidden.start for query in queries]),
                "is_return": groups["_return"],
                **{f"rank {'model' if name == main else name}": rank for name, rank in ranks.items()},
            },
        )

    @staticmethod
    def _groups(questions: Questions, shown: np.ndarray) -> dict[str, np.ndarray]:
        queries = questions.queries
        is_return = np.array([query.hidden.relation == RETURNS for query in queries])
        seen = np.array([questions.candidates.is_seen(query.hidden) for query in queries])
        among = np.array([place is not None for place in questions.right()])
        return {
            "": np.ones(len(queries), dtype=bool),
            "_parameter": ~is_return,
            "_return": is_return,
            "_seen_name": seen,
            "_unseen_name": ~seen,
            "_among_candidates": among,
            "_not_in_window": ~shown,
        }


def _pools(with_signs: bool) -> dict[tuple[str, bool], list[int]]:
    """Opinions that are pooled, by what is pooled and whether the checkpoint takes part; all of them first."""
    parts = {_BOTH: [*TABLE, *SIGNS], _TABLE: TABLE} if with_signs else {_TABLE: TABLE}
    return {
        (name, use_model): [*(MODEL if use_model else ()), *places]
        for use_model in (True, False)
        for name, places in parts.items()
    }


def _projects_left_out(context: TaskContext, declared: DeclaredTypes) -> list[str]:
    """Projects of the training corpus that model and table do not learn from, so that they can be weighed there."""
    annotated = sorted(project for project, found in declared.triples.items() if found)
    if len(annotated) < 2:
        logger.warning(
            "--type-table: the table is weighed on other projects than it counts, but only one project of the training "
            "corpus has annotations; the checkpoint is judged alone"
        )
        return []
    number = max(1, round(TABLE_PROJECTS * len(annotated)))
    return [annotated[i] for i in context.sample(len(annotated), "projects to weigh on", number)]


def _questions_of_projects(
    context: TaskContext,
    declared: DeclaredTypes,
    projects: list[str],
    options: TypePredictionOptions,
    signs: TypeSigns | None = None,
) -> Questions:
    """Hidden types of some projects of the training corpus, with the candidates that its other projects give."""
    rows = context.training.rows
    rows = rows.select([i for i, project in enumerate(rows["project"]) if project in set(projects)])
    files, _ = read_files(context, rows, "hiding types to weigh on", with_usage=signs is not None)
    every = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
    chosen = [every[i] for i in context.sample(len(every), "types to weigh on", TABLE_TYPES)]
    questions = Questions.of(
        *find_queries(context, files, chosen), options.candidates(declared.without(projects), context), signs
    )
    if all(place is None for place in questions.right()):
        raise ValueError(
            f"--type-table has nothing to be weighed on: no hidden type of {', '.join(projects)} is a candidate of the "
            "other projects; give a larger training corpus, or --type-table false"
        )
    return questions


def figures_of(rank: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of types ranked first and among the first five, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
    return figures


TASK = TypePrediction
