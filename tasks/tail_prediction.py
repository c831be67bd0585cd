"""Tail prediction: all words of a leaf are hidden, its relation and head are shown, and the LM head names them.

Every token of the leaf becomes the mask token, so the number of masks tells the tail's length; lookups are told it too. The
tokens are predicted at once, in one forward pass. Tails are told apart by where else they stand:

    visible     the leaf's words stand one after the other in the window's text
    invisible   they do not
    no_copy     moreover the leaf's first word stands nowhere in the text nor in another leaf that is shown
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from ..chain_graphs.windows import WindowDataset, canonical_ids
from .base import NotApplicable, Task, TaskContext, TaskResult

LOOKUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "majority": (("length",), ()),
    "relation": (("relation", "length"), ("relation",), ("length",), ()),
    "relation and head": (
        ("relation", "head", "length"),
        ("relation", "head"),
        ("relation", "length"),
        ("relation",),
        (),
    ),
}
"""Each lookup's keys, from the most specific to the one it falls back to last; `relation` includes the direction."""
TOP = 5


@dataclass
class TailPredictionOptions:
    """Options of `tail_prediction`."""

    _argument_group_name: ClassVar[str] = "tail_prediction"

    tail_share: float = field(default=0.15, metadata={"help": "Share of a window's facts whose tail is hidden."})


class TailPrediction(Task):
    """First token top-1 and top-5, and the whole tail exactly."""

    name = "tail_prediction"
    options_class = TailPredictionOptions

    def run(self, context: TaskContext, options: TailPredictionOptions) -> TaskResult:
        if not context.use_graph:
            raise NotApplicable("without leaves there is no tail to predict")
        windows = context.windows(context.test, context.arguments.max_examples)
        tails, features = predict_tails(context, windows, options.tail_share)
        groups = {
            "": np.ones_like(tails["visible"]),
            "_visible": tails["visible"],
            "_invisible": ~tails["visible"],
            "_no_copy": tails["no_copy"],
        }
        lookups = Lookups(context.progress(context.windows(context.training), "counting tails"))
        baselines = {}
        for name in LOOKUPS:
            rank, whole = zip(*(lookups.score(name, *fact) for fact in features), strict=True)
            baselines[name] = figures_of(np.array(rank), np.array(whole), groups)
        by_relation = {}
        for index, name in enumerate(context.config.relation_names):
            chosen = tails["relation"] == index
            if chosen.any():
                figures = figures_of(tails["first_rank"], tails["whole"], {"": chosen})
                by_relation[name] = {"tails": int(chosen.sum()), **figures}
        return TaskResult(
            figures=figures_of(tails["first_rank"], tails["whole"], groups),
            baselines=baselines,
            counts={
                "windows": len(windows),
                **{"hidden_tails" + suffix: int(chosen.sum()) for suffix, chosen in groups.items()},
            },
            details={
                "trained_to_predict_tails": context.config.mnm_target != "relation",
                "by_relation": by_relation,
            },
            examples=tails,
        )


def predict_tails(context: TaskContext, windows: WindowDataset, share: float) -> tuple[dict[str, np.ndarray], list]:
    """Hide a share of the tails and predict them.

    Args:
        context: the checkpoint.
        windows: with leaves.
        share: of a window's facts.

    Returns:
        Arrays (tails,) in the order of windows and columns: `window`, `column`, `relation` int64; `visible`, `no_copy`;
        `first_rank`: other tokens that the model likes at least as well as the tail's first; `whole`: all tokens are the
        model's first choice. And for each tail what a lookup is told, with the tail's tokens.

    Raises:
        ValueError: not a single tail was hidden.
    """
    collator = context.collator(mnm_probability=share, mnm_target="tail")
    canonical, mask = canonical_ids(context.tokenizer), context.tokenizer.mask_token_id
    rows, features = [], []
    for indices in context.batches(windows.lengths, "tail_prediction"):
        batch = collator([windows[int(i)] for i in indices])
        hidden = batch["labels"] >= 0
        # The collator leaves 10 % of the tails as they are and makes 10 % random, which is for training only.
        batch["input_ids"] = torch.where(hidden, mask, batch["input_ids"])
        logits = context.predict(batch).logits.float()
        labels = batch["labels"][hidden].to(logits.device)
        rank = (logits >= logits.gather(1, labels[:, None])).sum(1).cpu().numpy() - 1
        right = (logits.argmax(1) == labels).cpu().numpy()
        row, column = hidden.numpy().nonzero()
        arrays = {name: value.numpy() for name, value in batch.items()}
        begins = np.flatnonzero(arrays["fact_place"][row, column] == 0)
        for low, high in pairwise([*begins.tolist(), len(row)]):
            r, c = row[low], column[low]
            ids, tail = arrays["input_ids"][r], arrays["labels"][r, column[low:high]].tolist()
            fact = facts_of_node(arrays, r, c, ids, high - low)
            shown = canonical[ids[arrays["attention_mask"][r] > 0]]
            visible = arrays["leaf_in_window"][r, c] > 0
            no_copy = not visible and canonical[tail[0]] not in shown
            relation = arrays["relation_ids"][r, c]
            rows.append((indices[r], c, relation, visible, no_copy, rank[low], right[low:high].all()))
            features.append((fact, tuple(tail)))
    if not rows:
        raise ValueError("no tail was hidden: the corpus has no facts, or too few windows were taken")
    order = sorted(range(len(rows)), key=lambda i: rows[i][:2])
    names = ("window", "column", "relation", "visible", "no_copy", "first_rank", "whole")
    columns = zip(*(rows[i] for i in order), strict=True)
    tails = {name: np.array(values) for name, values in zip(names, columns, strict=True)}
    return tails, [features[i] for i in order]


def facts_of_node(arrays: dict[str, np.ndarray], row: int, column: int, ids: np.ndarray, length: int) -> dict:
    """What a lookup is told of a hidden tail: relation with direction, head tokens, length."""
    start = arrays["head_start"][row, column]
    return {
        "relation": (int(arrays["relation_ids"][row, column]), int(arrays["relation_reversed"][row, column])),
        "head": tuple(ids[start : start + arrays["head_length"][row, column]].tolist()),
        "length": length,
    }


def figures_of(rank: np.ndarray, whole: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of first tokens ranked first and among the first five, and of whole tails, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["first_top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"first_top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
            figures["whole" + suffix] = float(whole[chosen].mean())
    return figures


class Lookups:
    """Counts of tails in training windows, by each key of `LOOKUPS`.

    Args:
        windows: items of a `WindowDataset` with leaves.
    """

    def __init__(self, windows: Iterable[dict]):
        keys = {key for lookup in LOOKUPS.values() for key in lookup}
        first: dict[tuple, dict[tuple, Counter]] = {key: defaultdict(Counter) for key in keys}
        tails: dict[tuple, dict[tuple, Counter]] = {key: defaultdict(Counter) for key in keys}
        for item in windows:
            ids, leaf_ids = item["input_ids"].tolist(), item["leaf_ids"].tolist()
            names = ("relation", "reversed", "head_start", "head_length", "leaf_length")
            position = 0
            for relation, is_reversed, start, size, length in zip(
                *(item[name].tolist() for name in names), strict=True
            ):
                tail = tuple(leaf_ids[position : position + length])
                position += length
                fact = {
                    "relation": (relation, is_reversed),
                    "head": tuple(ids[start : start + size]),
                    "length": length,
                }
                for key in keys:
                    entry = tuple(fact[name] for name in key)
                    first[key][entry][tail[0]] += 1
                    tails[key][entry][tail] += 1
        # Ties go to the smaller token, so that no order of counting matters.
        self._first = {
            key: {
                entry: sorted(counts, key=lambda token, counts=counts: (-counts[token], token))[:TOP]
                for entry, counts in table.items()
            }
            for key, table in first.items()
        }
        self._tail = {
            key: {
                entry: min(counts, key=lambda tail, counts=counts: (-counts[tail], tail))
                for entry, counts in table.items()
            }
            for key, table in tails.items()
        }

    def score(self, name: str, fact: dict, tail: tuple[int, ...]) -> tuple[int, bool]:
        """Rank of the tail's first token among the answers (`TOP` where it is none), and whether the whole tail is right.

        Answers come from the most specific key that was counted; places left over are filled from the next ones.
        """
        answers: list[int] = []
        whole = None
        for key in LOOKUPS[name]:
            entry = tuple(fact[part] for part in key)
            answers += [token for token in self._first[key].get(entry, []) if token not in answers]
            whole = self._tail[key].get(entry) if whole is None else whole
        rank = answers.index(tail[0]) if tail[0] in answers else TOP
        return min(rank, TOP), whole == tail


TASK = TailPrediction
