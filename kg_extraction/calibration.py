"""Probabilities that mean what they say: temperature scaling with a share for "none of these".

A closed set of answers with scores s_i (log-probabilities of names, or logits of relations) becomes

    p_i = exp(s_i / T) / (sum_j exp(s_j / T) + exp(o))

T is the temperature (Guo et al. 2017, arXiv 1706.04599). `o` is the score of the answer "something else": the right type is
not among the names, the two names have no relation at all. Both are fitted by maximum likelihood on facts that the
parser knows and the model was not shown, one pair for each mode and relation.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

MIN_EXAMPLES = 50
NUM_BINS = 10
# Scores beyond the best few hundred have no weight, whatever the temperature.
_MAX_SCORES = 512
_FORMAT = 1


@dataclass(frozen=True)
class Example:
    """One hidden fact: the scores of all answers, and which is right.

    Attributes:
        scores: float `(answers,)`.
        gold: number of the right answer, -1 where it is none of them.
        group: what must not stand on both sides of a split (its file).
    """

    scores: np.ndarray
    gold: int
    group: int = 0


@dataclass(frozen=True)
class Scaling:
    """Temperature and the score of "something else"; the defaults change nothing."""

    temperature: float = 1.0
    other: float = -math.inf

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of the answers; what they lack to 1 is "something else".

        Args:
            scores: float `(..., answers)`.

        Returns:
            float64 of the same shape.
        """
        scaled = np.asarray(scores, dtype=np.float64) / self.temperature
        top = np.maximum(scaled.max(axis=-1, keepdims=True), self.other)
        weights = np.exp(scaled - top)
        return weights / (weights.sum(axis=-1, keepdims=True) + np.exp(self.other - top))


@dataclass
class Calibration:
    """The scalings of a checkpoint, as `calibration.json` holds them.

    Attributes:
        scalings: by key, "tail:has_type"; "tail" or "relation" alone serves relations with too few facts.
        length_counts: by key, how many tails had 1, 2, ... tokens.
        figures: by key, what the fit was made of: `examples`, `in_candidates`, `accuracy`, `ece_before`, `ece` (on the half
            of the files that the scaling was not fitted on).
        source: what the facts were taken from.
    """

    scalings: dict[str, Scaling] = field(default_factory=dict)
    length_counts: dict[str, list[int]] = field(default_factory=dict)
    figures: dict[str, dict] = field(default_factory=dict)
    source: str | None = None

    def scaling(self, mode: str, relation: str) -> Scaling:
        """The scaling of a relation, of its mode, or none."""
        return self.scalings.get(f"{mode}:{relation}", self.scalings.get(mode, Scaling()))

    def save(self, path: Path) -> None:
        """Write as JSON; an infinite `other` is null there."""
        scalings = {
            key: {"temperature": value.temperature, "other": None if math.isinf(value.other) else value.other}
            for key, value in self.scalings.items()
        }
        data = {"format": _FORMAT, **asdict(self), "scalings": scalings}
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
                    float(value["temperature"]), -math.inf if value["other"] is None else float(value["other"])
                )
                for key, value in data["scalings"].items()
            }
            if data["format"] != _FORMAT or any(not value.temperature > 0 for value in scalings.values()):
                raise ValueError("another format, or a temperature that is not above 0")
            return cls(scalings, dict(data["length_counts"]), dict(data["figures"]), data["source"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--calibration {path}: not a calibration.json of this command ({type(error).__name__}: {reason}); make one "
                "with --calibrate"
            ) from error


def fit(examples: Sequence[Example]) -> Scaling:
    """Temperature and "something else" of greatest likelihood.

    Args:
        examples: at least one.

    Raises:
        ValueError: no example.
    """
    from scipy.optimize import minimize

    if not examples:
        raise ValueError("calibration needs at least one hidden fact")
    width = min(_MAX_SCORES, max(len(example.scores) for example in examples))
    scores = np.full((len(examples), width), -np.inf)
    gold = np.full(len(examples), -np.inf)
    for row, example in enumerate(examples):
        kept = example.scores
        if len(kept) > width:
            kept = np.partition(kept, len(kept) - width)[-width:]
        scores[row, : len(kept)] = kept
        if example.gold >= 0:
            gold[row] = example.scores[example.gold]
    is_other = np.isinf(gold)
    finite_gold = np.where(is_other, 0.0, gold)
    top = scores.max(axis=1, keepdims=True)

    def loss(parameters: np.ndarray) -> float:
        temperature, other = math.exp(parameters[0]), parameters[1]
        highest = np.maximum(top[:, 0] / temperature, other)
        total = np.exp(scores / temperature - highest[:, None]).sum(axis=1) + np.exp(other - highest)
        chosen = np.where(is_other, other, finite_gold / temperature)
        # A slight pull towards T = 1, so that a handful of facts cannot send it anywhere.
        return float(np.mean(np.log(total) + highest - chosen)) + 1e-3 * parameters[0] ** 2

    start = np.array([0.0, float(np.median(top)) - 1.0])
    steps = np.array([start, start + np.array([0.5, 0.0]), start + np.array([0.0, 2.0])])
    found = minimize(
        loss, start, method="Nelder-Mead", options={"initial_simplex": steps, "xatol": 1e-3, "fatol": 1e-6}
    )
    return Scaling(float(np.exp(np.clip(found.x[0], -3, 4))), float(np.clip(found.x[1], -60, 60)))


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
        probabilities = scaling.probabilities(example.scores)
        best = int(probabilities.argmax())
        confidence[row], correct[row] = probabilities[best], best == example.gold
    return confidence, correct


def fit_key(examples: Sequence[Example]) -> tuple[Scaling, dict]:
    """The scaling of all examples, and figures of a scaling fitted on half of the groups and scored on the other."""
    halves = ([], [])
    order = {group: number for number, group in enumerate(sorted({example.group for example in examples}))}
    for example in examples:
        halves[order[example.group] % 2].append(example)
    checked = halves[1] or halves[0]
    half = fit(halves[0] or halves[1])
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
    return fit(examples), figures


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
        if len(found) >= (MIN_EXAMPLES if ":" in key else 1):
            calibration.scalings[key], calibration.figures[key] = fit_key(found)
