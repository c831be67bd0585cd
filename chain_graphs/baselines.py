"""What a table can do: lookups for relations and unigram counts for tokens, on the very masks that a model is scored on.

A model's figure means little without these beside it. Every lookup is told what the model is told (the direction of the
anchor, the masked text), counts on the training windows and backs off from its most specific key to the majority.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from tqdm.auto import tqdm

from .windows import WindowDataset

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


def _facts_of(
    batch: dict[str, np.ndarray], targets: np.ndarray, relations: np.ndarray
) -> Iterator[tuple[dict, int, int]]:
    """(features, relation, whether the leaf stands in the window) of the facts whose first leaves `targets` (B, N) marks."""
    ids = batch["input_ids"]
    visible = batch.get("leaf_in_window", np.zeros_like(ids))
    for row, column in zip(*np.nonzero(targets), strict=True):
        start, length = batch["head_start"][row, column], batch["head_length"][row, column]
        text, end = ids[row], start + length
        features = {
            "reversed": int(batch["relation_reversed"][row, column]),
            "tail": int(text[column]),
            "head": tuple(text[start:end].tolist()),
            "before": int(text[start - 1]),
            "before2": int(text[start - 2]) if start > 1 else -1,
            "after": int(text[end]),
        }
        yield features, int(relations[row, column]), int(visible[row, column])


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
    tables: dict[tuple[str, ...], dict[tuple, Counter]] = {
        key: defaultdict(Counter) for keys in RELATION_BASELINES.values() for key in keys
    }
    for batch in _batches(train_windows, collator.without_masking(), batch_size, "counting relations"):
        relations = batch["relation_ids"]
        first_leaves = (relations >= 0) & (batch["fact_place"] == 0)
        for features, relation, _ in _facts_of(batch, first_leaves, relations):
            for key, table in tables.items():
                table[tuple(features[name] for name in key)][relation] += 1
    answers = {
        key: {
            entry: min(counts, key=lambda relation: (-counts[relation], relation)) for entry, counts in table.items()
        }
        for key, table in tables.items()
    }

    gold, shown, predictions = [], [], {name: [] for name in RELATION_BASELINES}
    for batch in _batches(eval_windows, collator, batch_size, "scoring lookups"):
        labels = batch["relation_labels"]
        for features, relation, visible in _facts_of(batch, labels >= 0, labels):
            gold.append(relation)
            shown.append(visible)
            for name, keys in RELATION_BASELINES.items():
                predictions[name].append(_look_up(answers, keys, features))
    return {name: relation_scores(gold, predicted, shown) for name, predicted in predictions.items()}


def _look_up(answers: dict, keys: tuple[tuple[str, ...], ...], features: dict) -> int:
    for key in keys:
        answer = answers[key].get(tuple(features[name] for name in key))
        if answer is not None:
            return answer
    return 0


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
