"""Probabilities that mean what they say: temperature scaling with a share for "none of these".

A closed set of answers with scores s_i (log-probabilities of names, or logits of relations) becomes

    p_i = exp(s_i / T + w q_i) / (sum_j exp(s_j / T + w q_j) + exp(o))

T is the temperature (Guo et al. 2017, arXiv 1706.04599). q_i is what a table of the training corpus says of the answer
before the code is read (`type_table`, for types only) and w its weight. `o` is the score of the answer "something else": the
right type is not among the names, the two names have no relation at all. All are fitted by maximum likelihood on facts that
the parser knows and the model was not shown, once for each mode and relation.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .type_table import TypeTable

MIN_EXAMPLES = 50
NUM_BINS = 10
# Scores beyond the best few hundred have no weight, whatever the temperature.
_MAX_SCORES = 512
_FORMAT = 2
# Bounds of 1 / T (0 where a table can stand alone), and how strongly it is pulled towards 1.
_INVERSE_TEMPERATURES = (math.exp(-4), math.exp(3))
_PULL = 1e-3


@dataclass(frozen=True)
class Example:
    """One hidden fact: the scores of all answers, and which is right.

    Attributes:
        scores: float `(answers,)`.
        gold: number of the right answer, -1 where it is none of them.
        group: what must not stand on both sides of a split (its file).
        prior: float `(answers,)`, log-probabilities of a table; None for no table.
    """

    scores: np.ndarray
    gold: int
    group: int = 0
    prior: np.ndarray | None = None


@dataclass(frozen=True)
class Scaling:
    """Temperature, the weight of the table, and the score of "something else"; the defaults change nothing.

    An infinite temperature leaves the table alone.
    """

    temperature: float = 1.0
    other: float = -math.inf
    prior_weight: float = 0.0

    def logits(self, scores: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
        """s / T + w q, float64 `(..., answers)`."""
        scaled = np.asarray(scores, dtype=np.float64)
        # Not a division: an impossible answer's score may be -inf.
        scaled = np.zeros_like(scaled) if math.isinf(self.temperature) else scaled / self.temperature
        return scaled if prior is None or not self.prior_weight else scaled + self.prior_weight * prior

    def probabilities(self, scores: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
        """Probabilities of the answers; what they lack to 1 is "something else".

        Args:
            scores: float `(..., answers)`.
            prior: log-probabilities of the table, of the same shape; None for no table.

        Returns:
            float64 of the same shape.
        """
        scaled = self.logits(scores, prior)
        top = np.maximum(scaled.max(axis=-1, keepdims=True), self.other)
        weights = np.exp(scaled - top)
        return weights / (weights.sum(axis=-1, keepdims=True) + np.exp(self.other - top))


@dataclass
class Calibration:
    """The scalings of a checkpoint, as `calibration.json` holds them.

    Attributes:
        scalings: by key, "tail:has_type"; "tail" or "relation" alone serves relations with too few facts. Where a table took
            part there are two more, "tail:has_type:model" and "tail:has_type:table", each fitted without the other.
        length_counts: by key, how many tails had 1, 2, ... tokens.
        figures: by key, what the fit was made of: `examples`, `in_candidates`, `accuracy`, `ece_before`, `ece` (on the half
            of the files that the scaling was not fitted on).
        source: what the facts were taken from.
        types: the table of declared types; None where there was no training split to count in.
    """

    scalings: dict[str, Scaling] = field(default_factory=dict)
    length_counts: dict[str, list[int]] = field(default_factory=dict)
    figures: dict[str, dict] = field(default_factory=dict)
    source: str | None = None
    types: TypeTable | None = None

    def scaling(self, mode: str, relation: str, part: str | None = None) -> Scaling:
        """The scaling of a relation, of its mode, or none; `part` is "model" or "table" for one without the other."""
        if part is not None:
            return self.scalings.get(f"{mode}:{relation}:{part}", Scaling())
        return self.scalings.get(f"{mode}:{relation}", self.scalings.get(mode, Scaling()))

    def save(self, path: Path) -> None:
        """Write as JSON; an infinite `other` is null there."""
        data = {
            "format": _FORMAT,
            "source": self.source,
            "scalings": {
                key: {name: None if math.isinf(number) else number for name, number in asdict(value).items()}
                for key, value in self.scalings.items()
            },
            "length_counts": self.length_counts,
            "figures": self.figures,
            "types": None if self.types is None else self.types.as_json(),
        }
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing, or something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            scalings = {
                key: Scaling(
                    math.inf if value["temperature"] is None else float(value["temperature"]),
                    -math.inf if value["other"] is None else float(value["other"]),
                    float(value["prior_weight"]),
                )
                for key, value in data["scalings"].items()
            }
            if data["format"] != _FORMAT or any(not value.temperature > 0 for value in scalings.values()):
                raise ValueError("another format, or a temperature that is not above 0")
            types = None if data["types"] is None else TypeTable.from_json(data["types"])
            return cls(scalings, dict(data["length_counts"]), dict(data["figures"]), data["source"], types)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--calibration {path}: not a calibration.json of this command ({type(error).__name__}: {reason}); make one "
                "with --calibrate"
            ) from error


def fit(examples: Sequence[Example], use_model: bool = True, use_prior: bool = True) -> Scaling:
    """Temperature, weight of the table and "something else" of greatest likelihood.

    Args:
        examples: at least one.
        use_model: False for the table alone.
        use_prior: False for the model alone; without a table in the examples it makes no difference.

    Raises:
        ValueError: no example, or nothing to fit.
    """
    from scipy.optimize import minimize

    if not examples:
        raise ValueError("calibration needs at least one hidden fact")
    use_prior = use_prior and all(example.prior is not None for example in examples)
    if not (use_model or use_prior):
        raise ValueError("neither the model nor a table to calibrate")
    scores, prior, gold = _matrices(examples)
    is_other = gold < 0
    rows, columns = np.arange(len(gold)), np.where(is_other, 0, gold)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        other, inverse, weight = parameters
        logits = inverse * scores + weight * prior
        highest = np.maximum(logits.max(axis=1), other)
        shares = np.exp(logits - highest[:, None])
        other_share = np.exp(other - highest)
        total = shares.sum(axis=1) + other_share
        chosen = np.where(is_other, other, logits[rows, columns])
        shares /= total[:, None]
        # A slight pull towards T = 1, so that a handful of facts cannot send it anywhere.
        pull = _PULL * (inverse - 1) if use_model else 0.0
        value = float(np.mean(np.log(total) + highest - chosen)) + pull * (inverse - 1)
        slopes = [
            np.mean((shares * values).sum(axis=1) - np.where(is_other, 0.0, values[rows, columns]))
            for values in (scores, prior)
        ]
        slopes[0] += 2 * pull
        return value, np.array([np.mean(other_share / total - is_other), *slopes])

    # In (o, 1 / T, w) the loss is convex: there is one optimum, whatever the start.
    inverse, weight = (1.0 if use_model else 0.0), (0.5 if use_prior else 0.0)
    start = np.array([float(np.median((inverse * scores + weight * prior).max(axis=1))) - 1.0, inverse, weight])
    lowest, highest = _INVERSE_TEMPERATURES
    inverses = (0.0 if use_prior else lowest, highest) if use_model else (0, 0)
    bounds = [(-60, 60), inverses, (0, 10) if use_prior else (0, 0)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    other, inverse, weight = map(float, found)
    return Scaling(1 / inverse if inverse > 0 else math.inf, other, weight)


def _matrices(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and priors of the best answers, `(examples, answers)`, and the column of the right one, -1 for none."""
    width = min(_MAX_SCORES, max(len(example.scores) for example in examples))
    # The lowest score stands for "cannot be": finite, so that no temperature makes it more than that.
    scores, prior = np.full((len(examples), width), -1e9), np.zeros((len(examples), width))
    gold = np.full(len(examples), -1)
    for row, example in enumerate(examples):
        kept = np.arange(len(example.scores))
        if len(kept) > width:
            order = example.scores if example.prior is None else example.scores + example.prior
            kept = np.sort(np.argpartition(order, len(order) - width)[-width:])
            if example.gold >= 0 and example.gold not in kept:
                kept[0] = example.gold
        scores[row, : len(kept)] = np.maximum(example.scores[kept], -1e9)
        if example.prior is not None:
            prior[row, : len(kept)] = example.prior[kept]
            # Columns without an answer must stay impossible where the model has no weight.
            prior[row, len(kept) :] = -1e9
        if example.gold >= 0:
            gold[row] = int(np.flatnonzero(kept == example.gold)[0])
    return scores, prior, gold


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Mean distance between confidence and accuracy over equally wide bins, weighted by their size.

    Args:
        confidence: float `(n,)` in [0, 1].
        correct: bool `(n,)`.
        num_bins: bins.

    Returns:
        The error; 0 for no prediction at all.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if len(confidence) == 0:
        return 0.0
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def top_answers(examples: Sequence[Example], scaling: Scaling) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the best answer of each example, and whether it is right."""
    confidence, correct = np.zeros(len(examples)), np.zeros(len(examples), dtype=bool)
    for row, example in enumerate(examples):
        probabilities = scaling.probabilities(example.scores, example.prior)
        best = int(probabilities.argmax())
        confidence[row], correct[row] = probabilities[best], best == example.gold
    return confidence, correct


def fit_key(examples: Sequence[Example], use_model: bool = True, use_prior: bool = True) -> tuple[Scaling, dict]:
    """The scaling of all examples, and figures of a scaling fitted on half of the groups and scored on the other."""
    halves = ([], [])
    order = {group: number for number, group in enumerate(sorted({example.group for example in examples}))}
    for example in examples:
        halves[order[example.group] % 2].append(example)
    checked = halves[1] or halves[0]
    half = fit(halves[0] or halves[1], use_model, use_prior)
    confidence, correct = top_answers(checked, half)
    plain, _ = top_answers(checked, Scaling())
    figures = {
        "examples": len(examples),
        "in_candidates": float(np.mean([example.gold >= 0 for example in examples])),
        "accuracy": float(correct.mean()),
        "mean_confidence": float(confidence.mean()),
        "ece_before": expected_calibration_error(plain, correct),
        "ece": expected_calibration_error(confidence, correct),
        "scored": len(checked),
    }
    return fit(examples, use_model, use_prior), figures


PARTS = {"model": {"use_prior": False}, "table": {"use_model": False}}
"""What the answers of model and table together are compared with."""


def calibrate(examples: dict[str, list[Example]], calibration: Calibration) -> None:
    """Fit a scaling for each mode and relation with enough facts, and one for each mode.

    Args:
        examples: by key, "tail:has_type".
        calibration: changed in place.
    """
    by_mode: dict[str, list[Example]] = {}
    for key, found in examples.items():
        by_mode.setdefault(key.partition(":")[0], []).extend(found)
    for key, found in {**by_mode, **examples}.items():
        if len(found) < (MIN_EXAMPLES if ":" in key else 1):
            continue
        calibration.scalings[key], calibration.figures[key] = fit_key(found)
        if all(example.prior is not None for example in found):
            for part, options in PARTS.items():
                name = f"{key}:{part}"
                calibration.scalings[name], calibration.figures[name] = fit_key(found, **options)
