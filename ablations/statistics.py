"""Means, spreads, and paired differences with their intervals.

Runs with the same seed are pairs: they start with the same weights where they have the same parts, and see the same
windows in the same order with the same masked tokens. Two intervals of 95 % are given for the mean difference to the
baseline:

    over seeds       Student's t interval over the differences of the pairs
    over both        a bootstrap that draws seeds and, independently, examples with replacement; every seed is judged on the
                     same examples, so seeds and examples are crossed (Owen 2007, "The pigeonhole bootstrap")

A difference is claimed only where every interval that could be computed leaves out zero, on the same side.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP = "bootstrap over seeds and examples"
# Resamples whose example weights are held in memory at a time.
_CHUNK = 250


@dataclass(frozen=True)
class Difference:
    """A row against the baseline in one metric.

    Attributes:
        mean: of the paired differences, row minus baseline.
        by_seed: difference of each pair, by seed.
        t_interval: (low, high) over seeds; None with fewer than two pairs.
        bootstrap_interval: (low, high) over seeds and examples; None without results by example.
        verdict: "better", "worse", or "not shown".
    """

    mean: float
    by_seed: dict[int, float]
    t_interval: tuple[float, float] | None
    bootstrap_interval: tuple[float, float] | None
    verdict: str

    def as_json(self) -> dict:
        """For run.json."""
        return {**asdict(self), "by_seed": {str(seed): value for seed, value in self.by_seed.items()}}


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds (n - 1); no deviation of a single value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def t_interval(differences: list[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of a mean.

    Args:
        differences: one for each pair.
        confidence: between 0 and 1.

    Returns:
        (low, high), or None with fewer than two values.
    """
    if len(differences) < 2:
        return None
    mean, error = np.mean(differences), stats.sem(differences)
    half = float(error * stats.t.ppf((1 + confidence) / 2, len(differences) - 1))
    return float(mean - half), float(mean + half)


def bootstrap_interval(
    ours: np.ndarray,
    theirs: np.ndarray,
    figure: Callable[[np.ndarray], np.ndarray],
    resamples: int = 5000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Interval of a mean paired difference, over seeds and examples.

    Args:
        ours, theirs: float (seeds, examples, columns): what each example adds to the sums of a figure, for the row and
            the baseline, with the same seeds and examples in the same order.
        figure: sums (..., columns) -> figure (...); for instance a loss divided by a count.
        resamples: how many.
        seed: of the resamples.
        confidence: between 0 and 1.

    Returns:
        (low, high), the quantiles of the resampled mean differences.

    Raises:
        ValueError: shapes that do not fit.
    """
    if ours.shape != theirs.shape or ours.ndim != 3 or 0 in ours.shape:
        raise ValueError(
            f"results by example have shapes {ours.shape} and {theirs.shape}: they are not of the same pairs"
        )
    num_seeds, num_examples, num_columns = ours.shape
    both = np.stack([ours, theirs]).astype(np.float64)
    # (examples, everything else): sums under resampled examples are one matrix product.
    table = np.moveaxis(both, 2, 0).reshape(num_examples, -1)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = generator.multinomial(num_examples, np.full(num_examples, 1 / num_examples), size=size)
        sums = (weights @ table).reshape(size, 2, num_seeds, num_columns)
        values = figure(sums)
        drawn = generator.integers(num_seeds, size=(size, num_seeds))
        differences = values[:, 0] - values[:, 1]
        found.append(np.take_along_axis(differences, drawn, axis=1).mean(1))
    edge = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(found), [edge, 1 - edge])
    return float(low), float(high)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """The figure of two columns: the first sum over the second; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def macro_f1_of_sums(sums: np.ndarray) -> np.ndarray:
    """The figure of C * C columns, a confusion matrix (rows are labels): mean F1 of the classes that occur."""
    size = math.isqrt(sums.shape[-1])
    confusion = sums.reshape(*sums.shape[:-1], size, size)
    labels, predictions = confusion.sum(-1), confusion.sum(-2)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    f1 = 2 * right / np.maximum(labels + predictions, 1)
    present = labels > 0
    return (f1 * present).sum(-1) / np.maximum(present.sum(-1), 1)


def verdict(intervals: list[tuple[float, float] | None], higher_is_better: bool) -> str:
    """Whether a difference may be claimed.

    Args:
        intervals: of the difference; None for one that could not be computed.
        higher_is_better: of the metric.

    Returns:
        "better" or "worse" where every interval leaves out zero on the same side and one of them is over seeds;
        "not shown" elsewhere.
    """
    known = [interval for interval in intervals if interval is not None and all(map(math.isfinite, interval))]
    if not known or len(known) < len([interval for interval in intervals if interval is not None]):
        return "not shown"
    if all(low > 0 for low, _ in known):
        return "better" if higher_is_better else "worse"
    if all(high < 0 for _, high in known):
        return "worse" if higher_is_better else "better"
    return "not shown"


def compare(
    ours: dict[int, float],
    theirs: dict[int, float],
    higher_is_better: bool,
    bootstrap: tuple[float, float] | None = None,
) -> Difference | None:
    """A row against the baseline over the seeds that both have.

    Args:
        ours, theirs: the metric by seed.
        higher_is_better: of the metric.
        bootstrap: interval of `bootstrap_interval`, if results by example are kept.

    Returns:
        None without a pair.
    """
    by_seed = {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}
    if not by_seed:
        return None
    values = list(by_seed.values())
    over_seeds = t_interval(values)
    # One pair says nothing about seeds, whatever its examples say.
    claim = "not shown" if over_seeds is None else verdict([over_seeds, bootstrap], higher_is_better)
    return Difference(float(np.mean(values)), by_seed, over_seeds, bootstrap, claim)


def higher_is_better(metric: str) -> bool:
    """Losses, perplexities and ranks fall as a model gets better, all else rises."""
    name = metric.rsplit("/", 1)[-1]
    return not any(
        part in name for part in ("loss", "perplexity", "mean_rank", "median_rank", "cross_entropy", "nats")
    )
