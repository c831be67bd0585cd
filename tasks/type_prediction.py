"""Type prediction: what type has a parameter, what does a function return, where no annotation says so?

All annotations are taken out of a file before it is read (`code_graph.annotations.hide_annotations`), so that a hidden
type's annotation stands neither in a window's text nor in a leaf. One type is asked for at a time, in one of two ways:

    leaf    a leaf with the relation `has_type` or `returns` and masked words is hung on the name
    text    an annotation of mask tokens is put in its place in the text; any checkpoint can be asked so

Candidates are the types of the training corpus and the classes that the file names outside its imports and hidden
annotations; the baselines choose among the same ones. A candidate of n tokens is scored before n masks:

    log P(n | relation) + sum_i log P(token_i | n masks),    P(n | relation) counted on the training corpus
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from ..chain_graphs.linking import LeafEncoder
from ..chain_graphs.windows import WindowDataset
from ..code_graph import CodeGraph, Triple
from ..code_graph.annotations import HiddenType, declared_types, hide_annotations
from ..code_graph.schema import IMPORTED_FROM, IMPORTS, INHERITS, INSTANTIATES, RELATION_IDS, RETURNS
from .base import Task, TaskContext, TaskResult
from .queries import Query, ask_in_leaf, ask_in_text

TOP = 5
LEAF, TEXT = "asked in a leaf", "asked in the text"
_CLASS_NAME = re.compile(r"_?[A-Z]\w*")
_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)", re.MULTILINE)


@dataclass
class TypePredictionOptions:
    """Options of `type_prediction`."""

    _argument_group_name: ClassVar[str] = "type_prediction"

    type_max_tokens: int = field(
        default=4, metadata={"help": "Longest candidate; each length costs a forward pass for each hidden type."}
    )
    type_min_count: int = field(
        default=2, metadata={"help": "Times that a type must be written in the training corpus to be a candidate."}
    )
    type_controls: bool = field(
        default=True, metadata={"help": "Also ask in the other way, in the text or in a leaf (twice the time)."}
    )

    def __post_init__(self):
        for name in ("type_max_tokens", "type_min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


class TypePrediction(Task):
    """Top-1 and top-5 of hidden types, exactly as they were written, beside frequencies for the same name."""

    name = "type_prediction"
    options_class = TypePredictionOptions

    def run(self, context: TaskContext, options: TypePredictionOptions) -> TaskResult:
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
        used = {number: place for place, number in enumerate(sorted({number for number, _ in chosen}))}
        rows = context.rows_of_sources([files[n].text for n in used], graphs=[files[n].graph for n in used])
        windows = WindowDataset(rows, context.tokenizer, **context.window_options())
        queries = [
            query
            for query in (
                locate(context, rows, windows, used[number], files[number], hidden) for number, hidden in chosen
            )
            if query is not None
        ]
        counts["asked"], counts["across_window_edge"] = len(queries), len(chosen) - len(queries)
        candidates = Candidates(trained_types(context), LeafEncoder(context.tokenizer), options)
        counts["candidates_from_training"] = len(candidates.types)
        own = [candidates.of_file(query.classes) for query in queries]
        ways = [LEAF, TEXT] if context.use_graph else [TEXT]
        # A checkpoint that never learned to name tails is asked in the text first.
        if context.use_graph and context.config.mnm_target == "relation":
            ways.reverse()
        ranks = {
            way: rank_types(context, windows, queries, own, candidates, way)
            for way in (ways if options.type_controls else ways[:1])
        }
        groups = self._groups(queries, own, candidates)
        counts.update({"asked" + suffix: int(members.sum()) for suffix, members in groups.items() if suffix})
        counts["candidates_per_query"] = round(float(np.mean([len(candidates.types) + len(names) for names in own])))
        projects = np.array([query.project for query in queries])
        return TaskResult(
            figures=figures_of(ranks[ways[0]], groups),
            controls={way: figures_of(rank, groups) for way, rank in ranks.items() if way != ways[0]},
            baselines={
                name: figures_of(np.array(rank), groups) for name, rank in candidates.baselines(queries, own).items()
            },
            counts=counts,
            details={
                "asked": ways[0],
                "trained_to_predict_tails": context.use_graph and context.config.mnm_target != "relation",
                "by_project": {
                    str(name): {
                        "asked": int((projects == name).sum()),
                        **figures_of(ranks[ways[0]], {"": projects == name}),
                    }
                    for name in np.unique(projects)
                },
            },
            examples={
                "file_number": np.array([query.file for query in queries]),
                "start": np.array([query.hidden.start for query in queries]),
                "is_return": groups["_return"],
                **{f"rank {'model' if way == ways[0] else way}": rank for way, rank in ranks.items()},
            },
        )

    @staticmethod
    def _groups(queries: list[Query], own: list[dict], candidates: "Candidates") -> dict[str, np.ndarray]:
        is_return = np.array([query.hidden.relation == RETURNS for query in queries])
        seen = np.array([candidates.is_seen(query.hidden) for query in queries])
        among = np.array(
            [
                query.hidden.type in candidates.types or query.hidden.type in names
                for query, names in zip(queries, own, strict=True)
            ]
        )
        shown = np.array([query.is_shown for query in queries])
        return {
            "": np.ones(len(queries), dtype=bool),
            "_parameter": ~is_return,
            "_return": is_return,
            "_seen_name": seen,
            "_unseen_name": ~seen,
            "_among_candidates": among,
            "_not_in_window": ~shown,
        }


@dataclass
class File:
    """A file without annotations.

    Attributes:
        project: that it belongs to.
        text, graph: without annotations.
        hidden: the types that were taken out.
    """

    project: str
    text: str
    graph: CodeGraph
    hidden: list[HiddenType]


def read_files(context: TaskContext, rows, description: str) -> tuple[list[File], dict[str, int]]:
    """Take the annotations out of the Python files of a corpus.

    Returns:
        The files that have any, and the numbers of files read and left out, by reason.
    """
    files, counts = [], Counter(files=len(rows))
    columns = rows.select_columns(["project", "language", "code"])
    for row in context.progress(columns, description, total=len(rows)):
        if row["language"] != "python":
            counts["files_in_other_languages"] += 1
            continue
        try:
            text, hidden, graph = hide_annotations(row["code"])
        except ValueError:
            counts["files_with_annotations_that_cannot_be_hidden"] += 1
            continue
        counts["files_without_types"] += not hidden
        if hidden:
            files.append(File(row["project"], text, graph, hidden))
    return files, dict(counts)


def trained_types(context: TaskContext) -> list[Triple]:
    """The declared types of the training corpus's Python files."""
    rows = context.training.rows.select_columns(["language", "code"])
    types = []
    for row in context.progress(rows, "counting types", total=len(rows)):
        if row["language"] == "python":
            types += declared_types(row["code"])
    return types


def locate(
    context: TaskContext, rows, windows: WindowDataset, number: int, file: File, hidden: HiddenType
) -> Query | None:
    """Where a hidden type is asked for: the window that holds its name, and the places in it.

    Returns:
        None where the name, or the name and the place of its annotation, reach over a window's edge.
    """
    row = rows[number]
    starts, ends = np.asarray(row["char_starts"]), np.asarray(row["char_ends"])
    first = int(np.searchsorted(ends, hidden.start, side="right"))
    last = int(np.searchsorted(starts, hidden.end, side="left"))
    # The first token that begins at the annotation's place or behind it.
    place = int(np.searchsorted(ends, hidden.place, side="right"))
    low, high = np.searchsorted(windows.file_index, (number, number + 1))
    index = low + int(np.searchsorted(windows.token_range[low:high, 0], first, side="right")) - 1
    start, end = windows.token_range[index].tolist()
    if last > end or place > end:
        return None
    item = windows[index]
    words = context.tokenizer.decode(item["input_ids"].tolist())
    leaves = context.tokenizer.decode(item["leaf_ids"].tolist())
    pattern = re.compile(rf"(?<!\w){re.escape(hidden.type)}(?!\w)")
    # Root 0 is <s>.
    return Query(
        window=index,
        file=number,
        project=file.project,
        hidden=hidden,
        head=(first - start + 1, last - first),
        place=place - start + 1,
        prefix=prefix_tokens(context.tokenizer, hidden.prefix),
        relation=RELATION_IDS[hidden.relation],
        classes=classes_of(file),
        is_shown=bool(pattern.search(words) or pattern.search(leaves)),
    )


def prefix_tokens(tokenizer, prefix: str) -> list[int]:
    """The tokens between a name and its type, without those that reach into the type."""
    encoding = tokenizer.backend_tokenizer.encode(prefix + "int", add_special_tokens=False)
    return [token for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if end <= len(prefix)]


def classes_of(file: File) -> list[str]:
    """Names of classes in a text without annotations: defined there, instantiated, inherited from, or imported and used."""
    names = set(_CLASS.findall(file.text))
    for triple in file.graph.triples:
        if triple.relation in (INSTANTIATES, INHERITS) and _CLASS_NAME.fullmatch(triple.tail):
            names.add(triple.tail)
        elif triple.is_use and triple.relation in (IMPORTED_FROM, IMPORTS) and _CLASS_NAME.fullmatch(triple.head):
            names.add(triple.head)
    return sorted(names)


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

    def of_file(self, classes: list[str]) -> dict[str, list[int]]:
        """The classes of a file that are no candidates already, with their tokens."""
        new = {name: self._tokens(name) for name in classes if name not in self.types}
        return {name: tokens for name, tokens in new.items() if tokens is not None}

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
            named = [text for text in (*query.classes, *self.types) if text.lower() == plain]
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
) -> np.ndarray:
    """Rank of each hidden type among its candidates, 0 for the first; their number where it is none of them.

    Args:
        context: the checkpoint.
        windows: of the texts without annotations.
        queries: what is asked.
        own: for each query the file's candidates.
        candidates: those of the training corpus.
        way: `LEAF` or `TEXT`.

    Returns:
        int64 (queries,).
    """
    ask = ask_in_leaf if way == LEAF else ask_in_text
    collator, mask = context.collator(), context.tokenizer.mask_token_id
    scores: list[dict[str, float]] = [{} for _ in queries]
    lengths = windows.lengths[[query.window for query in queries]]
    for size in range(1, candidates.length_prior[0].shape[0] + 1):
        texts = [text for text, tokens in candidates.types.items() if len(tokens) == size]
        table = torch.tensor([candidates.types[text] for text in texts], dtype=torch.int64).view(-1, size)
        for chosen in context.batches(lengths, f"{way}, {size} tokens"):
            items, masks = zip(
                *(ask(windows[queries[i].window], queries[i], [mask] * size, context.config) for i in chosen),
                strict=True,
            )
            batch = collator(list(items))
            batch["labels"] = labels_at(batch, masks, size)
            log_p = torch.log_softmax(context.predict(batch).logits.float(), dim=-1).cpu().view(len(chosen), size, -1)
            place = torch.arange(size)
            shared = log_p[:, place, table].sum(-1)
            for row, index in enumerate(chosen):
                prior = candidates.length_prior[queries[index].relation][size - 1]
                scores[index].update(zip(texts, (shared[row] + prior).tolist(), strict=True))
                for text, tokens in own[index].items():
                    if len(tokens) == size:
                        scores[index][text] = float(log_p[row, place, tokens].sum() + prior)
    ranks = []
    for query, score in zip(queries, scores, strict=True):
        truth = score.get(query.hidden.type)
        # Ties count against the model.
        ranks.append(len(score) if truth is None else sum(value >= truth for value in score.values()) - 1)
    return np.array(ranks)


def labels_at(batch: dict[str, torch.Tensor], masks, size: int) -> torch.Tensor:
    """Labels that ask for a prediction at the masks of each row.

    Args:
        batch: of a collator, compact.
        masks: for each row (root, slot) of its first mask; slot -1: the masks are roots from `root` on.
        size: masks of each row.

    Returns:
        int64 (B, N), 0 at the masks, -100 elsewhere.
    """
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (root, slot) in enumerate(masks):
        if slot < 0:
            labels[row, root : root + size] = 0
        else:
            index = batch["leaf_index"][row]
            at_root = (batch["root_index"][row] == root) & (batch["attention_mask"][row] > 0)
            labels[row, at_root & (index >= slot) & (index < slot + size)] = 0
    return labels


def figures_of(rank: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of types ranked first and among the first five, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
    return figures


TASK = TypePrediction
