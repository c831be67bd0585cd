"""What a table can do: lookups for relations and unigram counts for tokens, on the very masks that a model is scored on.

A model's figure means little without these beside it. Every lookup is told what the model is told (the direction of the
anchor, the masked text), counts on the training windows and backs off from its most specific key to the majority.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from tqdm.auto import tqdm

from .windows import WindowDataset

if TYPE_CHECKING:
    import pandas as pd

RELATION_BASELINES: dict[str, tuple[tuple[str, ...], ...]] = {
    "majority": ((),),
    "tail's first token": (("reversed", "tail"), ("reversed",)),
    "(head, tail) tokens": (("reversed", "head", "tail"), ("reversed", "tail"), ("reversed",)),
    "tokens around the head with the tail": (
        ("reversed", "before2", "before", "after", "tail"),
        ("reversed", "before", "after", "tail"),
        ("reversed", "before", "after"),
        ("reversed", "before"),
        ("reversed",),
    ),
}
"""Each baseline's keys, from the most specific to the one it falls back to last."""


def _batches(windows: WindowDataset, collator, batch_size: int, description: str) -> Iterator[dict[str, np.ndarray]]:
    for start in tqdm(range(0, len(windows), batch_size), desc=description, leave=False, disable=None):
        examples = [windows[i] for i in range(start, min(start + batch_size, len(windows)))]
        yield {name: tensor.numpy() for name, tensor in collator.as_compact()(examples).items()}


def _columns(ids: np.ndarray, heads: np.ndarray, is_reversed: np.ndarray, tails: np.ndarray) -> dict[str, np.ndarray]:
    """What the lookups are told of some facts of one window.

    Args:
        ids: of the window, int64; roots first.
        heads: (facts, 2), the heads' first roots and numbers of roots.
        is_reversed: (facts,), the direction of the anchor.
        tails: (facts,), the first tokens of the leaves.
    """
    start, end = heads[:, 0], heads.sum(axis=1)
    words = np.empty(len(heads), dtype=object)
    words[:] = [ids[low:high].tobytes() for low, high in zip(start, end, strict=True)]
    return {
        "reversed": is_reversed,
        "tail": tails,
        "head": words,
        "before": ids[start - 1],
        "before2": np.where(start > 1, ids[np.maximum(start - 2, 0)], -1),
        "after": ids[end],
    }


def facts_table(windows: WindowDataset) -> "pd.DataFrame":
    """All facts of some windows: what `RELATION_BASELINES` look up, and `relation`.

    Args:
        windows: where the lookups count.
    """
    parts = []
    for number in tqdm(range(len(windows)), desc="counting relations", leave=False, disable=None):
        item = windows[number]
        first = np.cumsum(item["leaf_length"]) - item["leaf_length"]
        heads = np.stack([item["head_start"], item["head_length"]], axis=1).astype(np.int64)
        columns = _columns(
            item["input_ids"].astype(np.int64), heads, item["reversed"], item["leaf_ids"][first.astype(np.int64)]
        )
        parts.append({**columns, "relation": item["relation"]})
    return table_of(parts)


def table_of(parts: list[dict[str, np.ndarray]]) -> "pd.DataFrame":
    """One table of parts with the same columns."""
    import pandas as pd

    return pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def asked_table(windows: WindowDataset, collator, batch_size: int = 64) -> "pd.DataFrame":
    """The relations that `collator` hides, in the order of windows and columns.

    Args:
        windows, collator, batch_size: as for `relation_baselines`.

    Returns:
        What is looked up, `relation`, and `visible` (the leaf stands in the window).
    """
    parts = []
    for batch in _batches(windows, collator, batch_size, "scoring lookups"):
        shown = batch.get("leaf_in_window", np.zeros_like(batch["input_ids"]))
        for row, at in enumerate(batch["relation_labels"] >= 0):
            values = {name: batch[name][row, at] for name in ("head_start", "head_length", "relation_reversed")}
            heads = np.stack([values["head_start"], values["head_length"]], axis=1)
            columns = _columns(
                batch["input_ids"][row], heads, values["relation_reversed"], batch["input_ids"][row, at]
            )
            parts.append({**columns, "relation": batch["relation_labels"][row, at], "visible": shown[row, at]})
    return table_of(parts)


def relation_baselines(
    train_windows: WindowDataset, eval_windows: WindowDataset, collator, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Score the relation lookups on the relations that `collator` masks in `eval_windows`.

    Args:
        train_windows: where the lookups count.
        eval_windows: where they are scored.
        collator: the evaluation's `GraphMertCollator` with `diagnostics=True`; it fixes the masks.
        batch_size: windows read at a time; changes nothing.

    Returns:
        For each name of `RELATION_BASELINES`: `accuracy`, `macro_f1` (over the relations that occur among the targets),
        both again with `_visible` and `_invisible` for leaves whose text stands in the window or not (absent without
        targets of that kind), and `num_relations_masked`.
    """
    return score_lookups(
        RELATION_BASELINES, facts_table(train_windows), asked_table(eval_windows, collator, batch_size)
    )


def score_lookups(
    lookups: dict[str, tuple[tuple[str, ...], ...]], counted: "pd.DataFrame", asked: "pd.DataFrame"
) -> dict[str, dict[str, float]]:
    """Score lookups: each gives the most frequent relation of its most specific key that was counted.

    Args:
        lookups: by name the keys, columns of both tables, from the most specific to the one it falls back to last.
        counted: the facts that are counted, with `relation`.
        asked: the facts that are asked for, with `relation` and `visible`.

    Returns:
        As `relation_baselines`.
    """
    keys = dict.fromkeys(key for found in lookups.values() for key in found)
    answers = {key: most_frequent(counted, key, asked) for key in keys}
    gold, visible = asked["relation"].tolist(), asked["visible"].tolist()
    scores = {}
    for name, found in lookups.items():
        predicted = np.full(len(asked), -1)
        for key in found:
            predicted = np.where(predicted < 0, answers[key], predicted)
        scores[name] = relation_scores(gold, np.maximum(predicted, 0).tolist(), visible)
    return scores


def most_frequent(counted: "pd.DataFrame", key: tuple[str, ...], asked: "pd.DataFrame") -> np.ndarray:
    """The most frequent relation of the facts that agree with each asked one in a key's columns; the smaller id of two.

    Args:
        counted: with `relation`.
        key: columns; none: of all facts.
        asked: the facts to look up.

    Returns:
        int64 (asked,), -1 where no counted fact agrees.
    """
    found = by_frequency(counted, key, "relation")
    if not key:
        return np.full(len(asked), found["relation"].iloc[0] if len(found) else -1)
    columns = list(key)
    answers = asked[columns].merge(found.drop_duplicates(columns), on=columns, how="left")
    return answers["relation"].fillna(-1).to_numpy(dtype=np.int64)


def by_frequency(counted: "pd.DataFrame", key: tuple[str, ...], target: str) -> "pd.DataFrame":
    """The targets that were counted with each value of a key's columns, the most frequent first, the smaller of two.

    Returns:
        The columns of the key and the target.
    """
    columns = [*key, target]
    found = counted.groupby(columns, sort=False).size().rename("count").reset_index()
    return found.sort_values(["count", target], ascending=[False, True])[columns]


def relation_scores(gold: list[int], predicted: list[int], visible: list[int]) -> dict[str, float]:
    """Accuracy and macro-F1 over all facts, and over those whose leaf stands in the window or not.

    Args:
        gold, predicted: relation ids.
        visible: 1 where the leaf's text stands among the window's roots.

    Returns:
        `num_relations_masked`, `accuracy`, `macro_f1`, and the latter two with `_visible` and `_invisible`.
    """
    gold, predicted, visible = np.array(gold), np.array(predicted), np.array(visible, dtype=bool)
    scores: dict[str, float] = {"num_relations_masked": len(gold)}
    for suffix, chosen in (("", np.ones(len(gold), dtype=bool)), ("_visible", visible), ("_invisible", ~visible)):
        if chosen.any():
            present = np.unique(gold[chosen])
            scores["accuracy" + suffix] = float(accuracy_score(gold[chosen], predicted[chosen]))
            scores["macro_f1" + suffix] = float(
                f1_score(gold[chosen], predicted[chosen], labels=present, average="macro", zero_division=0)
            )
    return scores


def unigram_cross_entropy(
    train_windows: WindowDataset, eval_windows: WindowDataset, collator, batch_size: int = 64
) -> dict[str, float]:
    """Cross-entropy in nats of the masked root tokens under the training windows' token frequencies (add-one smoothed).

    Args:
        train_windows, eval_windows, collator, batch_size: as for `relation_baselines`.

    Returns:
        `num_tokens_masked`, `loss`, and `loss_in_leaf`, `loss_not_in_leaf` for tokens whose word stands in a leaf of
        the input or not (absent without such tokens).
    """
    counts = np.ones(collator.vocab_size, dtype=np.float64)
    np.add.at(counts, train_windows.tokens(), 1)
    surprise = -np.log(counts / counts.sum())
    losses, copied = [], []
    for batch in _batches(eval_windows, collator, batch_size, "scoring unigrams"):
        masked = (batch["labels"] >= 0) & (batch["leaf_index"] < 0)
        losses.append(surprise[batch["labels"][masked]])
        copied.append(batch["label_in_leaf"][masked].astype(bool))
    losses, copied = np.concatenate(losses), np.concatenate(copied)
    result: dict[str, float] = {"num_tokens_masked": len(losses)}
    for suffix, chosen in (("", np.ones(len(losses), dtype=bool)), ("_in_leaf", copied), ("_not_in_leaf", ~copied)):
        if chosen.any():
            result["loss" + suffix] = float(losses[chosen].mean())
    return result
