"""Model and table together: a log-linear pool (`log_linear`) over the candidates of a hidden type.

    log p(candidate) = sum_k w_k f_k(candidate) + const
    f = (max(s - max s, -8), what is known before a model reads the code)

s are the model's scores. How far it thinks a candidate is behind its best one tells nothing beyond a few nats: it may never
have met a project's class, and one such name among the right answers would take all weight from its scores.

The few weights w are fitted by maximum likelihood on hidden types of projects that neither the fine-tuning nor the table has
seen, as those of the test.
"""

import numpy as np

from .log_linear import fit_weights
from .type_scoring import Questions

_FURTHEST = 8.0


class TypeRanker:
    """Weights of the model and of what is known before a model reads the code.

    Args:
        weights: float (K,), the model's first where it takes part.
        use_model: whether it does.
    """

    def __init__(self, weights: np.ndarray, use_model: bool):
        self.weights, self.use_model = weights, use_model

    @classmethod
    def fit(cls, questions: Questions, scores: list[np.ndarray], use_model: bool = True) -> "TypeRanker":
        """Fit on hidden types that are among their candidates.

        Args:
            questions: of projects that neither model nor table has seen.
            scores: of the model (`score_types`).
            use_model: False for the table alone.
        """
        features, right = [], []
        for values, known, place in zip(scores, questions.known(), questions.right(), strict=True):
            if place is not None:
                features.append(np.column_stack([clipped(values), known]) if use_model else known)
                right.append(place)
        return cls(fit_weights(features, right), use_model)

    def scores(self, questions: Questions, scores: list[np.ndarray]) -> list[np.ndarray]:
        """Scores of model and table together, for each query float (candidates,)."""
        first, rest = (self.weights[:1], self.weights[1:]) if self.use_model else (np.zeros(1), self.weights)
        return [
            clipped(values) * first[0] + known @ rest for values, known in zip(scores, questions.known(), strict=True)
        ]


def clipped(scores: np.ndarray) -> np.ndarray:
    """Scores below the best one, at most `_FURTHEST`."""
    return np.maximum(scores - scores.max(), -_FURTHEST)
