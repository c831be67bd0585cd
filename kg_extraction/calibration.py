"""Probabilities that mean what they say: temperature scaling with a share for "none of these".

A closed set of answers with scores s_i (log-probabilities of names, or logits of relations) becomes

    p_i = exp(s_i / T + w . q_i) / (sum_j exp(s_j / T + w . q_j) + exp(o))

T is the temperature (Guo et al. 2017, arXiv 1706.04599). q_i is what is known of the answer without the model (for types
only, `type_evidence`): what a table of the training corpus says, and what signs of use say; w are their weights. `o` is the
score of the answer "something else": the right type is not among the names, the two names have no relation at all. All are
fitted by maximum likelihood on facts that the parser knows and the model was not shown, once for each mode and relation.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .sign_classifier import SignClassifier
from .type_table import TypeTable

MIN_EXAMPLES = 50
NUM_BINS = 10
# Scores beyond the best few hundred have no weight, whatever the temperature.
_MAX_SCORES = 512
_FORMAT = 3
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
        prior: float `(answers, K)`, what is known of each answer without the model, the table's log-probability first;
            None for nothing.
    """

    scores: np.ndarray
    gold: int
    group: int = 0
    prior: np.ndarray | None = None


@dataclass(frozen=True)
class Scaling:
    """Temperature, the score of "something else", and the weights of what else is known; the defaults change nothing.

    An infinite temperature leaves the model out. Columns of `prior` beyond the weights have no weight.
    """

    temperature: float = 1.0
    other: float = -math.inf
    prior_weights: tuple[float, ...] = ()

    def logits(self, scores: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
        """s / T + w . q, float64 `(..., answers)`."""
        scaled = np.asarray(scores, dtype=np.float64)
        # Not a division: an impossible answer's score may be -inf.
        scaled = np.zeros_like(scaled) if math.isinf(self.temperature) else scaled / self.temperature
        if prior is None or not any(self.prior_weights):
            return scaled
        return scaled + prior[..., : len(self.prior_weights)] @ np.array(self.prior_weights)

    def probabilities(self, scores: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
        """Probabilities of the answers; what they lack to 1 is "something else".

        Args:
            scores: float `(..., answers)`.
            prior: what is known without the model, float `(..., answers, K)`; None for nothing.

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
        scalings: by key, "tail:has_type"; "tail" or "relation" alone serves relations with too few facts. Where table and
            signs took part there is one for each of `PARTS`, such as "tail:has_type:table", fitted with these alone.
        length_counts: by key, how many tails had 1, 2, ... tokens.
        figures: by key, what the fit was made of: `examples`, `in_candidates`, `accuracy`, `ece_before`, `ece` (on the half
            of the files that the scaling was not fitted on).
        source: what the facts were taken from.
        types: the table of declared types; None where there was no training split to count in.
        signs: what types are by signs of use; None where there was no training split to learn from. It is saved beside the
            JSON file, under the same name with the ending `.safetensors`.
    """

    scalings: dict[str, Scaling] = field(default_factory=dict)
    length_counts: dict[str, list[int]] = field(default_factory=dict)
    figures: dict[str, dict] = field(default_factory=dict)
    source: str | None = None
    types: TypeTable | None = None
    signs: SignClassifier | None = field(default=None, compare=False)

    def scaling(self, mode: str, relation: str, part: str | None = None) -> Scaling:
        """The scaling of a relation, of its mode, or none; `part`, one of `PARTS`, for one of these opinions alone."""
        if part is not None:
            return self.scalings.get(f"{mode}:{relation}:{part}", Scaling())
        return self.scalings.get(f"{mode}:{relation}", self.scalings.get(mode, Scaling()))

    def save(self, path: Path) -> None:
        """Write as JSON, in which an infinite number is null, and signs as safetensors beside it."""
        path = Path(path)
        data = {
            "format": _FORMAT,
            "source": self.source,
            "scalings": {
                key: {
                    name: None if number in (math.inf, -math.inf) else number for name, number in asdict(value).items()
                }
                for key, value in self.scalings.items()
            },
            "length_counts": self.length_counts,
            "figures": self.figures,
            "types": None if self.types is None else self.types.as_json(),
            "signs": None if self.signs is None else _beside(path).name,
        }
        if self.signs is not None:
            self.signs.save(_beside(path))
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            ValueError: the file or the one of its signs is missing, or something else.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            scalings = {
                key: Scaling(
                    math.inf if value["temperature"] is None else float(value["temperature"]),
                    -math.inf if value["other"] is None else float(value["other"]),
                    tuple(map(float, value["prior_weights"])),
                )
                for key, value in data["scalings"].items()
            }
            if data["format"] != _FORMAT or any(not value.temperature > 0 for value in scalings.values()):
                raise ValueError("another format, or a temperature that is not above 0")
            types = None if data["types"] is None else TypeTable.from_json(data["types"])
            # The name in the file is for its readers: what is read is what was written, and nothing elsewhere.
            signs = None if data["signs"] is None else SignClassifier.load(_beside(path))
            return cls(scalings, dict(data["length_counts"]), dict(data["figures"]), data["source"], types, signs)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--calibration {path}: not a calibration.json of this command ({type(error).__name__}: {reason}); make one "
                "with --calibrate"
            ) from error


def _beside(path: Path) -> Path:
    """Where the signs of a calibration are."""
    return path.with_suffix(".safetensors")


def fit(examples: Sequence[Example], use_model: bool = True, num_priors: int | None = None) -> Scaling:
    """Temperature, weights of what else is known and "something else" of greatest likelihood.

    Args:
        examples: at least one.
        use_model: False to leave the model out.
        num_priors: the first so many columns of `prior` take part; by default all. Without any in the examples it makes no
            difference.

    Raises:
        ValueError: no example, or nothing to fit.
    """
    from scipy.optimize import minimize

    if not examples:
        raise ValueError("calibration needs at least one hidden fact")
    known = min(0 if example.prior is None else example.prior.shape[1] for example in examples)
    known = known if num_priors is None else min(known, num_priors)
    if not (use_model or known):
        raise ValueError("neither the model nor a table to calibrate")
    scores, prior, absent, gold = _matrices(examples, known)
    is_other = gold < 0
    rows, columns = np.arange(len(gold)), np.where(is_other, 0, gold)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        other, inverse, weights = parameters[0], parameters[1], parameters[2:]
        logits = inverse * scores + prior @ weights + absent
        highest = np.maximum(logits.max(axis=1), other)
        shares = np.exp(logits - highest[:, None])
        other_share = np.exp(other - highest)
        total = shares.sum(axis=1) + other_share
        chosen = np.where(is_other, other, logits[rows, columns])
        shares /= total[:, None]
        # A slight pull towards T = 1, so that a handful of facts cannot send it anywhere.
        pull = _PULL * (inverse - 1) if use_model else 0.0
        value = float(np.mean(np.log(total) + highest - chosen)) + pull * (inverse - 1)
        right = np.where(is_other, 0.0, 1.0)
        slope = np.mean((shares * scores).sum(axis=1) - right * scores[rows, columns]) + 2 * pull
        slopes = (np.einsum("na,nak->k", shares, prior) - right @ prior[rows, columns]) / len(gold)
        return value, np.array([np.mean(other_share / total - is_other), slope, *slopes])

    # In (o, 1 / T, w) the loss is convex: there is one optimum, whatever the start.
    start_inverse, start_weights = float(use_model), np.full(known, 0.5)
    highest = (start_inverse * scores + prior @ start_weights + absent).max(axis=1)
    start = np.array([float(np.median(highest)) - 1.0, start_inverse, *start_weights])
    lowest, largest = _INVERSE_TEMPERATURES
    inverses = (0.0 if known else lowest, largest) if use_model else (0, 0)
    bounds = [(-60, 60), inverses, *[(0, 10)] * known]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    other, inverse, *weights = map(float, found)
    return Scaling(1 / inverse if inverse > 0 else math.inf, other, tuple(weights))


def _matrices(examples: Sequence[Example], known: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the best answers: scores `(examples, answers)`, the first columns of their priors `(examples, answers, known)`,
    -1e9 where there is no answer, else 0, and the column of the right one, -1 for none."""
    width = min(_MAX_SCORES, max(len(example.scores) for example in examples))
    scores, prior = np.zeros((len(examples), width)), np.zeros((len(examples), width, known))
    absent = np.full(scores.shape, -1e9)
    gold = np.full(len(examples), -1)
    for row, example in enumerate(examples):
        kept = np.arange(len(example.scores))
        if len(kept) > width:
            order = example.scores if example.prior is None else example.scores + example.prior.sum(axis=1)
            kept = np.sort(np.argpartition(order, len(order) - width)[-width:])
            if example.gold >= 0 and example.gold not in kept:
                kept[0] = example.gold
        # Finite, so that no temperature makes it more than impossible.
        scores[row, : len(kept)] = np.maximum(example.scores[kept], -1e9)
        absent[row, : len(kept)] = 0
        if known:
            prior[row, : len(kept)] = example.prior[kept, :known]
        if example.gold >= 0:
            gold[row] = int(np.flatnonzero(kept == example.gold)[0])
    return scores, prior, absent, gold


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


def fit_key(
    examples: Sequence[Example], use_model: bool = True, num_priors: int | None = None
) -> tuple[Scaling, dict]:
    """The scaling of all examples, and figures of a scaling fitted on half of the groups and scored on the other."""
    halves = ([], [])
    order = {group: number for number, group in enumerate(sorted({example.group for example in examples}))}
    for example in examples:
        halves[order[example.group] % 2].append(example)
    checked = halves[1] or halves[0]
    half = fit(halves[0] or halves[1], use_model, num_priors)
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
    return fit(examples, use_model, num_priors), figures


PARTS = {
    "model": {"num_priors": 0},
    "table": {"use_model": False, "num_priors": 1},
    "model and table": {"num_priors": 1},
    "table and signs": {"use_model": False},
}
"""What model, table and signs together are compared with; the last two where there are signs."""
WITHOUT_SIGNS = ("model", "table")


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
            has_signs = all(example.prior.shape[1] > 1 for example in found)
            for part in PARTS if has_signs else WITHOUT_SIGNS:
                name = f"{key}:{part}"
                calibration.scalings[name], calibration.figures[name] = fit_key(found, **PARTS[part])
