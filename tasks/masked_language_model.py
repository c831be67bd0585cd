"""Masked language modelling on projects never trained on, with controls for what the leaves give away.

Every checkpoint is scored at the same masked tokens: windows and masks depend on the corpus, `--mlm-roots`, `--max-examples`
and `--seed`, never on the graph. Tokens are told apart by the corpus's own graph, so the groups are the same too:

    in_leaf       the token's word stands in a leaf of the window
    not_in_leaf   it does not
    clean         moreover no leaf hangs on the masked words around it: nothing in the graph can give the token away

That a token is clean says of its word that it stands in no leaf: a model that reads leaves, and rightly expects some of
their words, loses by having expected them. `loss_clean_excluding` tells every checkpoint and control the same: it is
-log p(token | it stands in no leaf of the window), with the words of the corpus's own leaves taken out of the softmax.

Controls put the same checkpoint before changed leaves: their words swapped for those of other files' leaves with the same
relation, direction and length; all relations hidden; no leaves; and, where leaves on masked spans were kept or hidden in
training, those dropped. A checkpoint without leaves but with more roots than `--mlm-roots` reads so many tokens more before
the window (after it where the file begins too soon), unmasked.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ..chain_graphs.windows import WindowDataset, canonical_ids
from ..collator import GraphMertCollator
from .base import Task, TaskContext, TaskResult
from .corpora import Corpus
from .queries import without_facts

SHUFFLED, HIDDEN, REMOVED, DROPPED = (
    "leaf words shuffled",
    "relations hidden",
    "leaves removed",
    "leaves on masked spans dropped",
)
NUM_RESAMPLES = 1000


@dataclass
class MaskedLanguageModelOptions:
    """Options of `masked_language_model`."""

    _argument_group_name: ClassVar[str] = "masked_language_model"

    mlm_roots: int = field(
        default=128, metadata={"help": "Roots of the windows, the same for every checkpoint compared."}
    )
    mlm_leaves: int = field(
        default=7,
        metadata={"help": "Leaf slots per root of the graph that tells tokens apart, whatever the model is given."},
    )
    mlm_share: float = field(default=0.15, metadata={"help": "Share of a window's tokens that are masked."})
    mlm_controls: bool = field(
        default=True,
        metadata={"help": "Score a checkpoint with leaves before changed leaves too: four times as long."},
    )


class MaskedLanguageModel(Task):
    """Cross-entropy (nats) and accuracy of masked root tokens."""

    name = "masked_language_model"
    options_class = MaskedLanguageModelOptions

    def run(self, context: TaskContext, options: MaskedLanguageModelOptions) -> TaskResult:
        config, limit = context.config, context.arguments.max_examples
        if config.num_roots < options.mlm_roots or (context.use_graph and config.num_roots != options.mlm_roots):
            raise ValueError(
                f"the checkpoint has {config.num_roots} roots, the windows --mlm-roots {options.mlm_roots}; give "
                f"--mlm-roots {config.num_roots} for every checkpoint that is compared"
            )
        whole_graph = {
            "leaves_per_root": options.mlm_leaves,
            "include_uses": True,
            "include_site_anchors": True,
            "exclude_relations": (),
            "edge_relations": (),
        }
        windows = context.windows(context.test, limit, num_roots=options.mlm_roots, **whole_graph)
        targets = collect_targets(context, options, windows)
        trained = {name: context.recipe.get(name, default) for name, default in _TRAINED_WITH.items()}
        scores = {}
        if context.use_graph:
            own = context.windows(context.test, limit, num_roots=options.mlm_roots)
            conditions = {"model": {}}
            if options.mlm_controls:
                conditions |= {SHUFFLED: {}, HIDDEN: {}, REMOVED: {}}
                if trained["masked_span_leaves"] != "drop":
                    conditions[DROPPED] = {"masked_span_leaves": "drop"}
            for condition, change in conditions.items():
                batches = GraphBatches(context, options, own, condition, {**trained, **change})
                scores[condition] = score(context, batches, windows, targets, condition)
        else:
            batches = TextBatches(context, options, windows, context.test)
            scores["model"] = score(context, batches, windows, targets, "masked_language_model")
        unigram = unigram_scores(context, windows, targets)
        model = scores.pop("model")
        files = windows.file_index[targets["window"]]
        differences = {
            condition: {
                "loss" + suffix: paired_interval(
                    (other[name] - model[name])[chosen], files[chosen], context.generator(condition)
                )
                for kind, suffix, name, chosen in measures_of(model, targets)
                if kind == "loss" and chosen.any()
            }
            for condition, other in scores.items()
        }
        return TaskResult(
            figures=figures_of(model, targets),
            controls={condition: figures_of(other, targets) for condition, other in scores.items()},
            baselines={"unigram": figures_of(unigram, targets)},
            counts={
                "windows": len(windows),
                **{"masked_tokens" + suffix: int(chosen.sum()) for suffix, chosen in groups_of(targets).items()},
            },
            details={"trained_with": trained, "loss_above_model": differences},
            examples=sums_by_window({"model": model, **scores}, targets, windows),
        )


_TRAINED_WITH = {"masked_span_leaves": "drop", "mask_visible_copies": False}


def collect_targets(context: TaskContext, options: MaskedLanguageModelOptions, windows: WindowDataset) -> dict:
    """The masked tokens of all windows, window by window, and the groups that they belong to.

    Args:
        context: gives tokenizer and seed.
        options: the share of masked tokens.
        windows: with the corpus's whole graph.

    Returns:
        Arrays over all masked tokens: `window`, `column`, `token` int64, `in_leaf`, `clean` bool.
    """
    collator = _collator(context, options, windows.leaves_per_root, masked_span_leaves="keep")
    size, parts = context.arguments.batch_size, []
    for start in context.progress(range(0, len(windows), size), "masking"):
        indices = np.arange(start, min(start + size, len(windows)))
        batch = {name: value.numpy() for name, value in collator([windows[int(i)] for i in indices]).items()}
        row, column = np.nonzero(batch["labels"] >= 0)
        in_leaf = batch["label_in_leaf"][row, column] > 0
        parts.append(
            (
                indices[row],
                column,
                batch["labels"][row, column],
                in_leaf,
                ~in_leaf & ~on_leaf_span(batch)[row, column],
            )
        )
    return dict(
        zip(
            ("window", "column", "token", "in_leaf", "clean"),
            map(np.concatenate, zip(*parts, strict=True)),
            strict=True,
        )
    )


def on_leaf_span(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Masked roots in whose run of masked roots a leaf hangs on any root.

    Args:
        batch: of a collator that keeps such leaves.

    Returns:
        bool (B, N).
    """
    masked = (batch["labels"] >= 0) & (batch["leaf_index"] < 0)
    hung = np.zeros((masked.shape[0], masked.shape[1] + 1), dtype=np.int64)
    row, column = np.nonzero((batch["leaf_index"] >= 0) & (batch["attention_mask"] > 0))
    start = batch["head_start"][row, column]
    np.add.at(hung, (row, start), 1)
    np.add.at(hung, (row, start + batch["head_length"][row, column]), -1)
    hung = (np.cumsum(hung, axis=1)[:, :-1] > 0) & masked
    # Runs are numbered over the whole batch: a run never reaches over a row's last column, which is no masked root.
    begins = masked & ~np.concatenate([np.zeros((len(masked), 1), dtype=bool), masked[:, :-1]], axis=1)
    run = np.cumsum(begins.ravel()).reshape(masked.shape)
    touched = np.zeros(run.max(initial=0) + 1, dtype=bool)
    touched[run[hung]] = True
    return touched[run] & masked


def _collator(context: TaskContext, options: MaskedLanguageModelOptions, leaves: int, **settings) -> GraphMertCollator:
    return context.collator(
        num_roots=options.mlm_roots, leaves_per_root=leaves, mlm_probability=options.mlm_share, **settings
    )


class GraphBatches:
    """Batches of windows with the leaves that the checkpoint was trained with, changed by one condition.

    Args:
        context, options: of the task.
        windows: with leaves.
        condition: "model" for no change, or a control.
        settings: of the collator.
    """

    def __init__(self, context, options, windows: WindowDataset, condition: str, settings: dict):
        self.windows, self.condition = windows, condition
        self.num_relations = context.config.num_relations
        self.mask_token_id = context.tokenizer.mask_token_id
        self.collator = _collator(context, options, windows.leaves_per_root, **settings)
        if condition == SHUFFLED:
            # Which leaves are hidden as copies goes by their true words.
            unhidden = {**settings, "mask_visible_copies": False}
            self.plain_collator = _collator(context, options, windows.leaves_per_root, **unhidden)
            self.words = shuffled_leaf_words(windows, context.generator(SHUFFLED))

    def __call__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        examples = [self.windows[int(i)] for i in indices]
        if self.condition == REMOVED:
            examples = [without_facts(example) for example in examples]
        batch = self.collator(examples)
        is_leaf = (batch["leaf_index"] >= 0) & (batch["attention_mask"] > 0)
        if self.condition == HIDDEN:
            batch["relation_ids"] = torch.where(is_leaf, self.num_relations, batch["relation_ids"])
        elif self.condition == SHUFFLED:
            others = self.plain_collator(
                [{**example, "leaf_ids": self.words[int(i)]} for i, example in zip(indices, examples, strict=True)]
            )
            shown = is_leaf & (batch["input_ids"] != self.mask_token_id)
            batch["input_ids"] = torch.where(shown, others["input_ids"], batch["input_ids"])
        return batch


class TextBatches:
    """Batches of windows without leaves; a checkpoint with more roots gets the tokens around the window too.

    Args:
        context, options: of the task.
        windows: of the corpus.
        corpus: their tokens.
    """

    def __init__(self, context, options, windows: WindowDataset, corpus: Corpus):
        self.windows = windows
        self.room = context.config.num_roots - options.mlm_roots
        self.collator = _collator(context, options, 0)
        self.pad_token_id = context.tokenizer.pad_token_id
        self.offsets, self.tokens = corpus.tokens if self.room else (None, None)

    def __call__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        batch = self.collator([without_facts(self.windows[int(i)]) for i in indices])
        if not self.room:
            return batch
        rows = []
        for row, index in enumerate(indices):
            size = int(batch["attention_mask"][row].sum())
            ids, labels = (batch[name][row, :size].tolist() for name in ("input_ids", "labels"))
            before, after = self._around(int(index), self.room)
            ids = [ids[0], *before, *ids[1:-1], *after, ids[-1]]
            unlabelled = [-100] * len(before), [-100] * len(after)
            rows.append((ids, [labels[0], *unlabelled[0], *labels[1:-1], *unlabelled[1], labels[-1]]))
        longest = max(len(ids) for ids, _ in rows)

        def grid(lists: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([values + [fill] * (longest - len(values)) for values in lists])

        return {
            "input_ids": grid([ids for ids, _ in rows], self.pad_token_id),
            "labels": grid([labels for _, labels in rows], -100),
            "attention_mask": grid([[1] * len(ids) for ids, _ in rows], 0),
        }

    def _around(self, index: int, room: int) -> tuple[list[int], list[int]]:
        """Tokens before the window, as many as there is room for, and after it, where the file begins too soon."""
        base, end = self.offsets[self.windows.file_index[index]], self.offsets[self.windows.file_index[index] + 1]
        start, stop = base + self.windows.token_range[index]
        before = self.tokens[max(base, start - room) : start]
        after = self.tokens[stop : min(end, stop + room - len(before))]
        return before.tolist(), after.tolist()


def score(context: TaskContext, batches, windows: WindowDataset, targets: dict, name: str) -> dict[str, np.ndarray]:
    """Loss and correctness of every masked token.

    Args:
        context: the checkpoint.
        batches: makes the batch of some windows.
        windows: with the corpus's whole graph; their lengths order the batches.
        targets: of `collect_targets`.
        name: of the progress bar.

    Returns:
        `loss` float64, `correct` bool, and `loss_excluding` float64 of clean tokens, NaN for others: in the order of
        `targets`.

    Raises:
        RuntimeError: a batch masks other tokens.
    """
    first = np.searchsorted(targets["window"], np.arange(len(windows) + 1))
    leaf_words = LeafWords(windows, canonical_ids(context.tokenizer), context.config.vocab_size)
    loss, correct = np.full(len(targets["token"]), np.nan), np.zeros(len(targets["token"]), dtype=bool)
    loss_excluding = loss.copy()
    for indices in context.batches(windows.lengths, name):
        batch = batches(indices)
        place = np.concatenate([np.arange(first[i], first[i + 1]) for i in indices])
        row = np.repeat(np.arange(len(indices)), first[indices + 1] - first[indices])
        labels = batch["labels"][batch["labels"] >= 0]
        if not np.array_equal(labels.numpy(), targets["token"][place]):
            raise RuntimeError("the masks of this checkpoint's windows differ from the corpus's own")
        logits = context.predict(batch).logits.float()
        labels = labels.to(logits.device)
        loss[place] = F.cross_entropy(logits, labels, reduction="none").double().cpu().numpy()
        correct[place] = (logits.argmax(-1) == labels).cpu().numpy()
        clean = np.flatnonzero(targets["clean"][place])
        excluded = torch.from_numpy(leaf_words(indices)[row[clean]]).to(logits.device)
        logits, labels = (values[torch.from_numpy(clean).to(values.device)] for values in (logits, labels))
        logits = logits.masked_fill(excluded, -torch.inf)
        loss_excluding[place[clean]] = F.cross_entropy(logits, labels, reduction="none").double().cpu().numpy()
    return {"loss": loss, "correct": correct, "loss_excluding": loss_excluding}


class LeafWords:
    """Which entries of the vocabulary stand in the leaves of a window, with a space in front or without.

    Args:
        windows: with the corpus's whole graph, whatever the checkpoint is given.
        canonical: of `canonical_ids`.
        vocab_size: V, of the checkpoint; at least as many entries as `canonical` has.
    """

    def __init__(self, windows: WindowDataset, canonical: np.ndarray, vocab_size: int):
        self.windows, self.canonical, self.vocab_size = windows, canonical, vocab_size

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """bool (len(indices), V)."""
        found = np.zeros((len(indices), len(self.canonical)), dtype=bool)
        for row, index in enumerate(indices):
            found[row, self.canonical[self.windows[int(index)]["leaf_ids"]]] = True
        return np.pad(found[:, self.canonical], ((0, 0), (0, self.vocab_size - len(self.canonical))))


def shuffled_leaf_words(windows: WindowDataset, generator: np.random.Generator) -> list[np.ndarray]:
    """For each window the words of other files' leaves in place of its own: what is left is the graph's shape.

    A leaf takes the words of a leaf of another file with the same relation, direction and number of tokens; failing that,
    with the same number of tokens. A few that have none in another file stay as they are.

    Args:
        windows: with leaves.
        generator: orders the leaves.

    Returns:
        `leaf_ids` of each window.
    """
    items = [windows[i] for i in range(len(windows))]
    table = np.concatenate(
        [np.stack([item["relation"], item["reversed"], item["leaf_length"]], axis=1) for item in items]
    )
    file = np.repeat(windows.file_index, [len(item["relation"]) for item in items])
    words = np.concatenate([item["leaf_ids"] for item in items])
    start = np.cumsum(table[:, 2]) - table[:, 2]
    donor = _other_files(table, file, generator)
    alone = np.flatnonzero(donor < 0)
    if len(alone):
        by_length = _other_files(table[:, 2:], file, generator)
        donor[alone] = np.where(by_length[alone] < 0, alone, by_length[alone])
    length = table[:, 2]
    within = np.arange(len(words)) - np.repeat(start, length)
    shuffled = words[np.repeat(start[donor], length) + within]
    return np.split(shuffled, np.cumsum([len(item["leaf_ids"]) for item in items])[:-1])


def _other_files(keys: np.ndarray, file: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each fact another one with the same keys in another file, -1 where one file holds more than half of them."""
    _, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.ravel()
    # Facts of one group by file, in random order within a file: shifted by the largest file's number, each meets another.
    order = np.lexsort((generator.random(len(file)), file, group))
    donor = np.full(len(file), -1)
    bounds = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
    for low, high in pairwise(bounds):
        members = order[low:high]
        shift = np.unique(file[members], return_counts=True)[1].max()
        if 2 * shift <= len(members):
            donor[members] = np.roll(members, shift)
    return donor


def unigram_scores(context: TaskContext, windows: WindowDataset, targets: dict) -> dict[str, np.ndarray]:
    """The losses that `score` gives, of the tokens' shares of the training corpus (add-one smoothed)."""
    counts = 1.0 + np.bincount(context.training.tokens[1], minlength=context.config.vocab_size)
    share = counts / counts.sum()
    loss = -np.log(share[targets["token"]])
    leaf_words = LeafWords(windows, canonical_ids(context.tokenizer), context.config.vocab_size)
    size = context.arguments.batch_size
    parts = [np.arange(start, min(start + size, len(windows))) for start in range(0, len(windows), size)]
    excluded = np.concatenate([leaf_words(indices) @ share for indices in parts])
    loss_excluding = np.where(targets["clean"], loss + np.log1p(-excluded[targets["window"]]), np.nan)
    return {"loss": loss, "loss_excluding": loss_excluding}


def groups_of(targets: dict) -> dict[str, np.ndarray]:
    """The groups of masked tokens: suffix of the figure's name -> bool (tokens,)."""
    in_leaf = targets["in_leaf"]
    return {"": np.ones_like(in_leaf), "_in_leaf": in_leaf, "_not_in_leaf": ~in_leaf, "_clean": targets["clean"]}


class Measure(NamedTuple):
    """One score over one group of masked tokens: its kind, the group's suffix, the score's name, and bool (tokens,)."""

    kind: str
    suffix: str
    score: str
    chosen: np.ndarray


def measures_of(scores: dict[str, np.ndarray], targets: dict) -> list[Measure]:
    """What is made of the scores of `score`: each score over each group, and the loss that excludes leaf words."""
    measures = [
        Measure(kind, suffix, kind, chosen)
        for kind in ("loss", "correct")
        if kind in scores
        for suffix, chosen in groups_of(targets).items()
    ]
    return [*measures, Measure("loss", "_clean_excluding", "loss_excluding", targets["clean"])]


def figures_of(scores: dict[str, np.ndarray], targets: dict) -> dict[str, float]:
    """Mean loss and accuracy of each group that has tokens."""
    names = {"loss": "loss", "correct": "accuracy"}
    return {
        names[kind] + suffix: float(scores[name][chosen].mean())
        for kind, suffix, name, chosen in measures_of(scores, targets)
        if chosen.any()
    }


def paired_interval(difference: np.ndarray, cluster: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval, from resampling clusters (files) with replacement.

    Args:
        difference: float (items,).
        cluster: int (items,), the cluster of each item.
        generator: draws the resamples.

    Returns:
        `mean`, `low`, `high`.
    """
    _, cluster = np.unique(cluster, return_inverse=True)
    total, count = np.bincount(cluster, weights=difference), np.bincount(cluster)
    drawn = generator.multinomial(len(count), np.full(len(count), 1 / len(count)), size=NUM_RESAMPLES)
    means = drawn @ total / (drawn @ count)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(difference.mean()), "low": float(low), "high": float(high)}


def sums_by_window(scores: dict[str, dict], targets: dict, windows: WindowDataset) -> dict[str, np.ndarray]:
    """For each window the number of masked tokens and the sums of their losses, by condition and group.

    Returns:
        `window_file`, `window_start` (its first token in the file), `count<group>`, `<condition>: loss<group>`, `: correct`.
    """
    result = {"window_file": windows.file_index, "window_start": windows.token_range[:, 0]}

    def by_window(weights) -> np.ndarray:
        return np.bincount(targets["window"], weights=weights, minlength=len(windows))

    for condition, values in scores.items():
        for kind, suffix, name, chosen in measures_of(values, targets):
            result["count" + suffix] = by_window(chosen).astype(np.int64)
            sums = by_window(np.where(chosen, values[name], 0))
            result[f"{condition}: {kind}{suffix}"] = sums.astype(np.int64) if kind == "correct" else sums
    return result


TASK = MaskedLanguageModel
