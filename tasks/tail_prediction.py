"""Tail prediction: all words of a leaf are hidden, its relation and head are shown, and the LM head names them.

Every token of the leaf becomes the mask token, so the number of masks tells the tail's length; lookups are told it too. The
tokens are predicted at once, in one forward pass. Tails are told apart by where else they stand:

    visible     the leaf's words stand one after the other in the window's text
    invisible   they do not
    no_copy     moreover the leaf's first word stands nowhere in the text nor in another leaf that is shown
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pandas as pd
import torch

from ..chain_graphs.baselines import by_frequency, table_of
from ..chain_graphs.windows import WindowDataset, canonical_ids
from .base import NotApplicable, Task, TaskContext, TaskResult

_RELATION = ("relation", "reversed")
LOOKUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "majority": (("length",), ()),
    "relation": ((*_RELATION, "length"), _RELATION, ("length",), ()),
    "relation and head": (
        (*_RELATION, "head", "length"),
        (*_RELATION, "head"),
        (*_RELATION, "length"),
        _RELATION,
        (),
    ),
}
"""Each lookup's keys, from the most specific to the one it falls back to last."""
_COLUMNS = (*_RELATION, "head", "length", "first", "tail")
# Big-endian, so that bytes are in the order of their tokens.
_TOKEN = ">i8"
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
        tails, asked = predict_tails(context, windows, options.tail_share)
        groups = {
            "": np.ones_like(tails["visible"]),
            "_visible": tails["visible"],
            "_invisible": ~tails["visible"],
            "_no_copy": tails["no_copy"],
        }
        trained = context.windows(context.training)
        counted = tails_table(context.progress(trained, "counting tails", total=len(trained)))
        lookups = score_tail_lookups(counted, asked)
        baselines = {name: figures_of(*found, groups) for name, found in lookups.items()}
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


def predict_tails(
    context: TaskContext, windows: WindowDataset, share: float
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Hide a share of the tails and predict them.

    Args:
        context: the checkpoint.
        windows: with leaves.
        share: of a window's facts.

    Returns:
        Arrays (tails,) in the order of windows and columns: `window`, `column`, `relation` int64; `visible`, `no_copy`;
        `first_rank`: other tokens that the model likes at least as well as the tail's first; `whole`: all tokens are the
        model's first choice. And the columns of `tails_table` of each tail.

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
            shown = canonical[ids[arrays["attention_mask"][r] > 0]]
            visible = arrays["leaf_in_window"][r, c] > 0
            no_copy = not visible and canonical[tail[0]] not in shown
            relation = arrays["relation_ids"][r, c]
            rows.append((indices[r], c, relation, visible, no_copy, rank[low], right[low:high].all()))
            start = arrays["head_start"][r, c]
            head = ids[start : start + arrays["head_length"][r, c]].astype(_TOKEN).tobytes()
            whole = np.array(tail, dtype=_TOKEN).tobytes()
            features.append((relation, arrays["relation_reversed"][r, c], head, len(tail), tail[0], whole))
    if not rows:
        raise ValueError("no tail was hidden: the corpus has no facts, or too few windows were taken")
    order = sorted(range(len(rows)), key=lambda i: rows[i][:2])
    names = ("window", "column", "relation", "visible", "no_copy", "first_rank", "whole")
    columns = zip(*(rows[i] for i in order), strict=True)
    tails = {name: np.array(values) for name, values in zip(names, columns, strict=True)}
    return tails, pd.DataFrame([features[i] for i in order], columns=_COLUMNS)


def figures_of(rank: np.ndarray, whole: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Shares of first tokens ranked first and among the first five, and of whole tails, by group."""
    figures = {}
    for suffix, chosen in groups.items():
        if chosen.any():
            figures["first_top1" + suffix] = float((rank[chosen] < 1).mean())
            figures[f"first_top{TOP}" + suffix] = float((rank[chosen] < TOP).mean())
            figures["whole" + suffix] = float(whole[chosen].mean())
    return figures


def tails_table(windows: Iterable[dict]) -> pd.DataFrame:
    """All facts of some windows, as lookups count them: what they are told, `first` and `tail`.

    Args:
        windows: items of a `WindowDataset` with leaves.
    """
    parts = []
    for item in windows:
        ids, tails = item["input_ids"].astype(_TOKEN), item["leaf_ids"].astype(_TOKEN)
        start, end = item["head_start"], item["head_start"] + item["head_length"]
        last = np.cumsum(item["leaf_length"])
        first = (last - item["leaf_length"]).astype(np.int64)
        parts.append(
            {
                "relation": item["relation"],
                "reversed": item["reversed"],
                "head": _pieces(ids, start, end),
                "length": item["leaf_length"],
                "first": tails[first].astype(np.int64),
                "tail": _pieces(tails, first, last),
            }
        )
    return table_of(parts)


def _pieces(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bytes of some spans, object (spans,): in the order of their tokens."""
    pieces = np.empty(len(starts), dtype=object)
    pieces[:] = [tokens[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
    return pieces


def score_tail_lookups(counted: pd.DataFrame, asked: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each lookup answers: the most frequent tails of its most specific key that was counted.

    Answers that are left over among the first `TOP` come from the next keys.

    Args:
        counted: of `tails_table`.
        asked: hidden tails, with the same columns.

    Returns:
        By lookup the rank of the tail's first token, `TOP` where it is not among the answers, int64 (asked,), and whether
        the whole tail is right, bool (asked,).
    """
    # Numbers in the order of the bytes are counted faster.
    for name in ("head", "tail"):
        numbers, _ = pd.factorize(pd.concat([counted[name], asked[name]]), sort=True)
        counted = counted.assign(**{name: numbers[: len(counted)]})
        asked = asked.assign(**{name: numbers[len(counted) :]})
    answers = {}
    for key in {key for keys in LOOKUPS.values() for key in keys}:
        firsts, wholes = by_frequency(counted, key, "first"), by_frequency(counted, key, "tail")
        if key:
            columns = list(key)
            firsts = firsts.merge(asked[columns].drop_duplicates(), on=columns)
            firsts = firsts.groupby(columns, sort=False).head(TOP).groupby(columns, sort=False)["first"].agg(list)
            wholes = wholes.drop_duplicates(columns).set_index(columns)["tail"]
            found = asked[columns].join(firsts, on=columns).join(wholes, on=columns)
            answers[key] = found["first"].tolist(), found["tail"].tolist()
        else:
            first, whole = firsts["first"].head(TOP).tolist(), wholes["tail"].iloc[0]
            answers[key] = [first] * len(asked), [whole] * len(asked)
    scores = {}
    for name, keys in LOOKUPS.items():
        ranks, rights = [], []
        for place, (first, tail) in enumerate(zip(asked["first"], asked["tail"], strict=True)):
            found = [(firsts[place], wholes[place]) for firsts, wholes in (answers[key] for key in keys)]
            # Where a key was not counted the join leaves NaN.
            found = [(firsts, whole) for firsts, whole in found if isinstance(firsts, list)]
            tokens = list(dict.fromkeys(token for firsts, _ in found for token in firsts))[:TOP]
            ranks.append(tokens.index(first) if first in tokens else TOP)
            rights.append(bool(found) and found[0][1] == tail)
        scores[name] = np.array(ranks), np.array(rights)
    return scores


TASK = TailPrediction
