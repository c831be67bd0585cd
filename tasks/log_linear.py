"""Log-linear pools: several opinions on the same candidates made one.

    log p(candidate) = sum_k w_k f_k(candidate) + const

f are log probabilities of the model and of tables, or other features. With few weights, fitted by maximum likelihood (a
conditional logit), a pool learns how far each opinion is to be trusted, and of two that know the same that one is enough;
it must be fitted on projects that neither model nor tables have seen, as those of the test.
"""

from collections.abc import Sequence

import numpy as np

_PULL = 1e-3


def merge_equal(found: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Candidates that no weights can tell apart made one, which a question with thousands of them is fitted faster with.

    Args:
        found: float (candidates, K).
        place: of the right candidate.

    Returns:
        float (different candidates, K), how many each stands for, and the place of the right one.
    """
    rows, places, counts = np.unique(found, axis=0, return_inverse=True, return_counts=True)
    return rows, counts, int(places.reshape(-1)[place])


def fit_weights(
    features: Sequence[np.ndarray], right: Sequence[int], counts: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Weights of greatest likelihood, slightly pulled towards 0.

    Args:
        features: for each question float (candidates, K).
        right: for each question the place of the right candidate.
        counts: for each question int (candidates,): equal candidates that each stands for (`merge_equal`). Default: one.

    Returns:
        float64 (K,).

    Raises:
        ValueError: no question.
    """
    from scipy.optimize import minimize

    if not len(features):
        raise ValueError("there is no question to fit weights on whose answer is among its candidates")

    numbers = [np.float64(1.0)] * len(features) if counts is None else counts

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = 0.0, np.zeros(len(weights))
        for found, place, number in zip(features, right, numbers, strict=True):
            logits = found @ weights
            highest = logits.max()
            shares = np.exp(logits - highest) * number
            total = shares.sum()
            value += highest + np.log(total) - logits[place]
            slope += shares @ found / total - found[place]
        pull = _PULL * weights
        return value / len(features) + float(pull @ weights), slope / len(features) + 2 * pull

    start = np.zeros(features[0].shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
