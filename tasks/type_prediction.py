"""Type prediction: what type has a parameter, what does a function return, where no annotation says so?

All annotations are taken out of a file before it is read (`code_graph.annotations.hide_annotations`), so that a hidden
type's annotation stands neither in a window's text nor in a leaf. One type is asked for at a time, in one of two ways:

    leaf    a leaf with the relation `has_type` or `returns` and masked words is hung on the name
    text    an annotation of mask tokens is put in its place in the text; any checkpoint can be asked so

Candidates are the types of the training corpus, the classes that the file names outside its imports and hidden
annotations, and the classes that other files of the project define (`--type-project-classes`), by themselves and in the
forms of `CLASS_FORMS` (`--type-class-forms`); the baselines choose among the same ones. A candidate of n tokens is scored
before n masks:

    log P(n | relation) + sum_i log P(token_i | n masks),    P(n | relation) counted on the training corpus

With `--type-steps` a copy of the checkpoint is first fine-tuned on the training corpus, likewise without its annotations
(`type_fine_tuning`); the checkpoint as it is then stands beside it as `zero-shot`.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from ..chain_graphs.linking import LeafEncoder
from ..chain_graphs.windows import WindowDataset
from ..code_graph import Triple
from ..code_graph.annotations import HiddenType, declared_types
from ..code_graph.schema import RELATION_IDS, RETURNS
from .base import Task, TaskContext, TaskResult
from .queries import Query, ask_in_leaf, ask_in_text, labels_at
from .type_fine_tuning import TypeTuningSettings, fine_tune_types
from .type_queries import find_queries, is_shown, read_files

TOP = 5
MAX_TOKENS = 7
LEAF, TEXT = "asked in a leaf", "asked in the text"
CLASS_FORMS = ("{} | None", "Optional[{}]", "list[{}]", "List[{}]", "type[{}]", "Type[{}]")
"""What may be made of a class's name besides itself."""


@dataclass
class TypePredictionOptions:
    """Options of `type_prediction`."""

    _argument_group_name: ClassVar[str] = "type_prediction"

    type_max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest candidate; each length costs a forward pass for each hidden type. Default: 7, or as many as a "
            "root has leaf slots."
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
            "help": "A class X of file or project is a candidate also as X | None, Optional[X], list[X], type[X]."
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
        files, counts = read_files(context, context.test.rows, "hiding types")
        every = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
        if not every:
            raise ValueError("the test corpus has no Python file with annotated parameters or results")
        counts["hidden_types"] = len(every)
        chosen = [every[i] for i in context.sample(len(every), self.name)]
        windows, queries = find_queries(context, files, chosen)
        counts["asked"], counts["across_window_edge"] = len(queries), len(chosen) - len(queries)
        candidates = Candidates(trained_types(context), LeafEncoder(context.tokenizer), options)
        counts["candidates_from_training"] = len(candidates.types)
        own = candidates.of_queries(queries)
        ways = [LEAF, TEXT] if context.use_graph else [TEXT]
        # A checkpoint that never learned to name tails is asked in the text first.
        if context.use_graph and context.config.mnm_target == "relation":
            ways.reverse()
        ranks, details = {}, {}
        if options.type_steps:
            model, losses, learned = fine_tune_types(context, ways[0] == LEAF, options.fine_tuning())
            ranks[f"fine-tuned, {ways[0]}"] = rank_types(context, windows, queries, own, candidates, ways[0], model)
            counts |= learned
            parts = np.array_split(np.array(losses), min(10, len(losses)))
            details["fine_tuning_loss"] = [round(float(part.mean()), 4) for part in parts]
        for way in ways if options.type_controls else ways[:1]:
            name = f"zero-shot, {way}" if options.type_steps else way
            ranks[name] = rank_types(context, windows, queries, own, candidates, way)
        main = next(iter(ranks))
        shown = [is_shown(context, windows[query.window], query.hidden.type) for query in queries]
        groups = self._groups(queries, own, candidates, np.array(shown))
        counts.update({"asked" + suffix: int(members.sum()) for suffix, members in groups.items() if suffix})
        counts["candidates_per_query"] = round(float(np.mean([len(candidates.types) + len(names) for names in own])))
        projects = np.array([query.project for query in queries])
        return TaskResult(
            figures=figures_of(ranks[main], groups),
            controls={name: figures_of(rank, groups) for name, rank in ranks.items() if name != main},
            baselines={
                name: figures_of(np.array(rank), groups) for name, rank in candidates.baselines(queries, own).items()
            },
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
    def _groups(
        queries: list[Query], own: list[dict], candidates: "Candidates", shown: np.ndarray
    ) -> dict[str, np.ndarray]:
        is_return = np.array([query.hidden.relation == RETURNS for query in queries])
        seen = np.array([candidates.is_seen(query.hidden) for query in queries])
        among = np.array(
            [
                query.hidden.type in candidates.types or query.hidden.type in names
                for query, names in zip(queries, own, strict=True)
            ]
        )
        return {
            "": np.ones(len(queries), dtype=bool),
            "_parameter": ~is_return,
            "_return": is_return,
            "_seen_name": seen,
            "_unseen_name": ~seen,
            "_among_candidates": among,
            "_not_in_window": ~shown,
        }


def trained_types(context: TaskContext) -> list[Triple]:
    """The declared types of the training corpus's Python files."""
    rows = context.training.rows.select_columns(["language", "code"])
    types = []
    for row in context.progress(rows, "counting types", total=len(rows)):
        if row["language"] == "python":
            types += declared_types(row["code"])
    return types


class Candidates:
    """The types to choose from, and how often the training corpus gives each to which name.

    Args:
        declared: the training corpus's types.
        encode: text to leaf tokens.
        options: of the task.

    Attributes:
        types: text -> tokens, of the training corpus.
        length_prior: by relation id, the log of the share of types with 1, 2, ... tokens.
    """

    def __init__(self, declared: list[Triple], encode: LeafEncoder, options: TypePredictionOptions):
        self._encode, self._max_tokens = encode, options.type_max_tokens
        self._project_classes = options.type_project_classes
        self._forms = CLASS_FORMS if options.type_class_forms else ()
        self._by_relation: dict[str, Counter] = defaultdict(Counter)
        self._by_name: dict[tuple[str, str], Counter] = defaultdict(Counter)
        total = Counter(triple.tail for triple in declared)
        kept = (text for text, count in total.items() if count >= options.type_min_count)
        self.types = {text: tokens for text in sorted(kept) if (tokens := self._tokens(text)) is not None}
        lengths = defaultdict(lambda: np.ones(options.type_max_tokens))
        for triple in declared:
            if triple.tail in self.types:
                self._by_relation[triple.relation][triple.tail] += 1
                self._by_name[triple.relation, triple.head][triple.tail] += 1
                lengths[RELATION_IDS[triple.relation]][len(self.types[triple.tail]) - 1] += 1
        if not self.types:
            raise ValueError(
                "the training corpus writes no type often enough to be a candidate; lower --type-min-count or give a "
                "corpus with annotations"
            )
        self.length_prior = defaultdict(
            lambda: np.full(options.type_max_tokens, -np.log(options.type_max_tokens)),
            {relation: np.log(count / count.sum()) for relation, count in lengths.items()},
        )

    def _tokens(self, text: str) -> list[int] | None:
        tokens = self._encode(text)
        return tokens if 1 <= len(tokens) <= self._max_tokens else None

    def of_queries(self, queries: list[Query]) -> list[dict[str, list[int]]]:
        """For each query the classes of its file and project, and their forms, that are no candidates already.

        Returns:
            Texts with their tokens: names of the file, of the project, then forms. Queries of one file share one dict.
        """
        known: dict[str, list[int] | None] = {}
        by_file: dict[int, dict[str, list[int]]] = {}
        for query in queries:
            if query.file not in by_file:
                names = list(
                    dict.fromkeys([*query.classes, *(query.project_classes if self._project_classes else ())])
                )
                texts = [*names, *(form.format(name) for form in self._forms for name in names)]
                for text in texts:
                    if text not in known:
                        known[text] = None if text in self.types else self._tokens(text)
                by_file[query.file] = {text: known[text] for text in texts if known[text] is not None}
        return [by_file[query.file] for query in queries]

    def is_seen(self, hidden: HiddenType) -> bool:
        """Whether the training corpus gives this parameter or function name a candidate type."""
        return (hidden.relation, hidden.name) in self._by_name

    def baselines(self, queries: list[Query], own: list[dict]) -> dict[str, list[int]]:
        """Ranks of the hidden types under each baseline; a type that it does not list has rank `len(types)` or more."""
        ranks: dict[str, list[int]] = {
            "majority": [],
            "frequency for the name": [],
            "class of the name, else frequency": [],
        }
        common = {relation: _most_common(counts) for relation, counts in self._by_relation.items()}
        for query, names in zip(queries, own, strict=True):
            hidden = query.hidden
            majority = common.get(hidden.relation, [])
            by_name = _most_common(self._by_name.get((hidden.relation, hidden.name), Counter()))
            plain = hidden.name.replace("_", "").lower()
            named = [text for text in (*query.classes, *names, *self.types) if text.lower() == plain]
            named = [text for text in named if text in names or text in self.types]
            for name, answers in zip(ranks, ([], by_name, [*named, *by_name]), strict=True):
                answers = list(dict.fromkeys([*answers, *majority]))
                found = hidden.type in answers
                ranks[name].append(answers.index(hidden.type) if found else len(self.types) + len(names))
        return ranks


def _most_common(counts: Counter) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], text))


def rank_types(
    context: TaskContext,
    windows: WindowDataset,
    queries: list[Query],
    own: list[dict],
    candidates: Candidates,
    way: str,
    model: torch.nn.Module | None = None,
) -> np.ndarray:
    """Rank of each hidden type among its candidates, 0 for the first; their number where it is none of them.

    Args:
        context: the checkpoint.
        windows: of the texts without annotations.
        queries: what is asked.
        own: for each query the file's candidates.
        candidates: those of the training corpus.
        way: `LEAF` or `TEXT`.
        model: a fine-tuned copy of the checkpoint, in evaluation mode; default the checkpoint.

    Returns:
        int64 (queries,).
    """
    ask = ask_in_leaf if way == LEAF else ask_in_text
    collator, mask = context.collator(), context.tokenizer.mask_token_id
    # Of each query the scores of all candidates, a length and a source at a time, and that of the hidden type.
    scores: list[list[np.ndarray]] = [[] for _ in queries]
    truth = np.full(len(queries), np.nan)
    lengths = windows.lengths[[query.window for query in queries]]
    for size in range(1, candidates.length_prior[0].shape[0] + 1):
        shared = _Table.of(candidates.types, size)
        # Queries of a file share their candidates.
        by_dict = {id(names): names for names in own}
        by_dict = {key: _Table.of(names, size) for key, names in by_dict.items()}
        for chosen in context.batches(lengths, f"{way}, {size} tokens"):
            items, masks = zip(
                *(ask(windows[queries[i].window], queries[i], [mask] * size, context.config) for i in chosen),
                strict=True,
            )
            batch = collator(list(items))
            # Which token a mask's label is does not matter, only where there is one.
            batch["labels"] = labels_at(batch, [[(mask, [0] * size)] for mask in masks])
            log_p = (
                torch.log_softmax(context.predict(batch, model).logits.float(), dim=-1)
                .cpu()
                .view(len(chosen), size, -1)
            )
            for row, index in enumerate(chosen):
                query = queries[index]
                prior = candidates.length_prior[query.relation][size - 1]
                for table in (shared, by_dict[id(own[index])]):
                    values = log_p[row, torch.arange(size), table.tokens].sum(-1).numpy() + prior
                    scores[index].append(values)
                    if query.hidden.type in table.places:
                        truth[index] = values[table.places[query.hidden.type]]
    # Ties count against the model.
    return np.array(
        [
            sum(map(len, parts)) if np.isnan(value) else sum(int((part >= value).sum()) for part in parts) - 1
            for parts, value in zip(scores, truth, strict=True)
        ]
    )


class _Table(NamedTuple):
    """Candidates of one length: their places by text, and their tokens, int64 (candidates, length)."""

    places: dict[str, int]
    tokens: torch.Tensor

    @classmethod
    def of(cls, types: dict[str, list[int]], size: int) -> "_Table":
        chosen = [text for text, tokens in types.items() if len(tokens) == size]
        tokens = torch.tensor([types[text] for text in chosen], dtype=torch.int64).view(-1, size)
        return cls({text: place for place, text in enumerate(chosen)}, tokens)


def figures_of(rank: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of types ranked first and among the first five, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
    return figures


TASK = TypePrediction
