"""Model, table and signs together: log-linear pools (`log_linear`) over the candidates of a hidden type.

    log p(candidate) = sum_k w_k f_k(candidate) + const
    f = (max(s - max s, -8), what is known before a model reads the code)

s are the model's scores. How far it thinks a candidate is behind its best one tells nothing beyond a few nats: it may never
have met a project's class, and one such name among the right answers would take all weight from its scores.

The few weights w are fitted by maximum likelihood on hidden types of projects that neither the fine-tuning nor table nor
signs have seen, as those of the test.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from .log_linear import fit_weights, merge_equal
from .type_candidates import Candidates
from .type_scoring import Questions
from .type_signs import TypeSigns

_FURTHEST = 8.0
OPINIONS = ("model", *Candidates.FEATURES, *TypeSigns.FEATURES)
MODEL, TABLE, SIGNS = (
    [0],
    [*range(1, 1 + len(Candidates.FEATURES))],
    [*range(1 + len(Candidates.FEATURES), len(OPINIONS))],
)
"""Places in `OPINIONS`."""


class TypePools:
    """Pools of some of the opinions, by name.

    Args:
        questions: of projects that neither model nor table nor signs have seen.
        scores: of the model (`score_types`).
        pools: by name the opinions that take part, places in `OPINIONS`.

    Attributes:
        weights: by name those of its opinions, in their order.

    Raises:
        ValueError: no hidden type is among its candidates.
    """

    def __init__(self, questions: Questions, scores: Sequence[np.ndarray], pools: Mapping[Hashable, Sequence[int]]):
        self._pools = pools
        merged = [
            merge_equal(found, place)
            for found, place in zip(_opinions(questions, scores), questions.right(), strict=True)
            if place is not None
        ]
        features, counts, right = zip(*merged, strict=True) if merged else ((), (), ())
        self.weights = {
            name: fit_weights([found[:, columns].astype(np.float64) for found in features], right, counts)
            for name, columns in pools.items()
        }

    def weights_by_name(self, name: Hashable) -> dict[str, float]:
        """A pool's weights by what they belong to (`OPINIONS`), to three places."""
        opinions = [OPINIONS[place] for place in self._pools[name]]
        return dict(zip(opinions, self.weights[name].round(3).tolist(), strict=True))

    def ranks(self, questions: Questions, scores: Sequence[np.ndarray]) -> dict[Hashable, np.ndarray]:
        """Ranks of the hidden types in each pool, int64 (queries,), as `Questions.ranks` gives them."""
        pooled: dict[Hashable, list[np.ndarray]] = {name: [] for name in self._pools}
        for found in _opinions(questions, scores):
            for name, columns in self._pools.items():
                pooled[name].append(found[:, columns] @ self.weights[name])
        return {name: questions.ranks(values) for name, values in pooled.items()}


def _opinions(questions: Questions, scores: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """For each query float32 (candidates, OPINIONS), without those by signs where they are not asked for."""
    for values, known in zip(scores, questions.known(), strict=True):
        yield np.column_stack([clipped(values), known])


def clipped(scores: np.ndarray) -> np.ndarray:
    """Scores below the best one, at most `_FURTHEST`."""
    return np.maximum(scores - scores.max(), -_FURTHEST)
