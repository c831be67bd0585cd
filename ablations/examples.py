"""What each example adds to a figure, from the arrays that tasks keep beside their reports.

A task keeps one array element for each example, in an order that depends on no checkpoint. Figures are sums over examples
put together: a loss over a count, a confusion matrix's macro-F1. Facts are gathered by window, since which of them are
hidden depends on the graph that a row knows while the windows do not.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .statistics import macro_f1_of_sums, ratio_of_sums

# Figures whose arrays have another name.
_ARRAY_OF_FIGURE = {"accuracy": "correct", "mrr": "reciprocal_rank", "map_at_r": "average_precision"}
_FACT_GROUPS = ("visible", "invisible", "no_copy")
# Figures that say how often the right answer came first, in tasks that keep its reciprocal rank.
_FIRST = ("accuracy", "recall_at_1")


class ExampleSums(NamedTuple):
    """Sums by example: float (examples, columns), and the figure that sums (..., columns) make."""

    sums: np.ndarray
    figure: Callable[[np.ndarray], np.ndarray]


def example_sums(figure: str, arrays: Mapping[str, np.ndarray], who: str = "model") -> ExampleSums | None:
    """What each example adds to a figure.

    Args:
        figure: name in the task's report, for instance `loss_clean` or `macro_f1_invisible`.
        arrays: the task's arrays.
        who: the model, or one of its controls.

    Returns:
        None where the arrays do not say.
    """
    base, suffix = _split(figure, arrays)
    name = _ARRAY_OF_FIGURE.get(base, base)
    for key in (f"{who}: {name}{suffix}", f"{name}{suffix}") if who == "model" else (f"{who}: {name}{suffix}",):
        if key in arrays and np.ndim(arrays[key]) == 1:
            return _weighted(np.asarray(arrays[key], dtype=np.float64), arrays.get("count" + suffix))
    reciprocal = f"{who}: reciprocal_rank{suffix}"
    if base in _FIRST and reciprocal in arrays:
        ranks = np.asarray(arrays[reciprocal], dtype=np.float64)
        return _weighted(np.where(np.isfinite(ranks), ranks >= 1, np.nan), None)
    if f"rank {who}" in arrays and base.removeprefix("top").isdigit() and suffix in ("", "_return"):
        chosen = arrays["is_return"] if suffix else np.ones(len(arrays[f"rank {who}"]))
        return _weighted((arrays[f"rank {who}"] < int(base.removeprefix("top"))) * chosen, chosen)
    if who != "model" or "window" not in arrays:
        return None
    chosen = _group(suffix, arrays)
    if chosen is None:
        return None
    if {"relation", "predicted"} <= set(arrays):
        return _relations(base, arrays, chosen)
    if base.startswith("first_top") and "first_rank" in arrays and base.removeprefix("first_top").isdigit():
        return _by_window(arrays["first_rank"] < int(base.removeprefix("first_top")), arrays, chosen)
    if base in arrays and arrays[base].shape == arrays["window"].shape:
        return _by_window(arrays[base], arrays, chosen)
    return None


def _split(figure: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """A figure's name and its group's suffix."""
    suffixes = [name.removeprefix("count") for name in arrays if name.startswith("count_")]
    suffixes += [f"_{group}" for group in _FACT_GROUPS] + ["_name_masked", "_all_masked", "_return"]
    suffix = max((item for item in suffixes if figure.endswith(item)), key=len, default="")
    return figure.removesuffix(suffix), suffix


def _weighted(values: np.ndarray, count: np.ndarray | None) -> ExampleSums:
    # Without a count every example is worth the same, and one that was not scored is worth nothing.
    count = np.isfinite(values) if count is None else count
    return ExampleSums(np.stack([np.nan_to_num(values), np.asarray(count, dtype=np.float64)], axis=1), ratio_of_sums)


def _group(suffix: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    if not suffix:
        return np.ones(len(arrays["window"]), dtype=bool)
    name = suffix[1:]
    if name == "invisible" and "visible" in arrays:
        return ~np.asarray(arrays["visible"], dtype=bool)
    return np.asarray(arrays[name], dtype=bool) if name in arrays else None


def _by_window(right: np.ndarray, arrays: Mapping[str, np.ndarray], chosen: np.ndarray) -> ExampleSums:
    window = np.asarray(arrays["window"])
    columns = [
        np.bincount(window, weights=chosen * np.asarray(values, dtype=np.float64)) for values in (right, chosen)
    ]
    return ExampleSums(np.stack(columns, axis=1), ratio_of_sums)


def _relations(base: str, arrays: Mapping[str, np.ndarray], chosen: np.ndarray) -> ExampleSums | None:
    gold, predicted = np.asarray(arrays["relation"]), np.asarray(arrays["predicted"])
    if base == "accuracy":
        return _by_window(gold == predicted, arrays, chosen)
    if base != "macro_f1":
        return None
    # As many classes as relations are written in any run: the schema's twelve.
    size = max(12, int(gold.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1)
    window = np.asarray(arrays["window"])[chosen]
    sums = np.zeros((int(np.asarray(arrays["window"]).max(initial=-1)) + 1, size * size))
    np.add.at(sums, (window, gold[chosen] * size + predicted[chosen]), 1.0)
    return ExampleSums(sums, macro_f1_of_sums)


def stack(parts: list[ExampleSums]) -> np.ndarray | None:
    """Sums of several runs as one array (runs, examples, columns); None where their examples are not the same.

    Sums by window may end with the last window that has a fact; the others add nothing.
    """
    if len({part.sums.shape[1] for part in parts}) != 1 or len({part.figure for part in parts}) != 1:
        return None
    longest = max(len(part.sums) for part in parts)
    return np.stack([np.pad(part.sums, ((0, longest - len(part.sums)), (0, 0))) for part in parts])
