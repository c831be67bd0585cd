"""Probabilities from counts: a lookup that says how sure it is.

With a lookup's keys k_1, ..., k_n from the most general to the most specific and c the counts of the facts that agree with a
question in a key's columns,

    p_0(t) = 1 / T,    p_i(t) = (c_i(t) + s p_{i-1}(t)) / (c_i + s)

interpolated back-off, the mean of a hierarchical Dirichlet prior (MacKay and Peto 1995, "A hierarchical Dirichlet language
model", eq. 39): a key that was met often decides, one that was met once or twice leans on the more general one, one that was
never met says what that one says.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from scipy.sparse import csr_matrix

STRENGTH = 1.0


@dataclass(frozen=True)
class BackOff:
    """A lookup's counts for some questions.

    Attributes:
        levels: for each key, the most general first, counts (groups, T), and the group of each question, int64
            (questions,).
        strength: s, how many facts the more general key is worth.
    """

    levels: list[tuple["csr_matrix", np.ndarray]]
    strength: float = STRENGTH

    @classmethod
    def of(
        cls,
        counted: "pd.DataFrame",
        asked: "pd.DataFrame",
        keys: tuple[tuple[str, ...], ...],
        target: str,
        num_targets: int,
        strength: float = STRENGTH,
        apart: str | None = None,
    ) -> "BackOff":
        """Count for some questions.

        Args:
            counted: the facts that are counted.
            asked: the questions, with the columns of the keys.
            keys: columns of both tables, from the most specific to the most general, as in `baselines.RELATION_BASELINES`.
            target: column of `counted`, integers in [0, T).
            num_targets: T.
            strength: s, above 0.
            apart: column of both tables; facts that agree with a question in it are not counted for it.
        """
        from scipy.sparse import csr_matrix

        if apart is not None and not all(keys):
            raise ValueError(f"every key needs a column where facts are counted apart by {apart!r}")
        levels = []
        for key in reversed(keys):
            columns, aside = list(key), [] if apart is None else [apart]
            # Without columns there is one group, of all facts and questions.
            groups = asked[columns + aside].drop_duplicates().reset_index(drop=True) if key else asked.iloc[:1][[]]
            numbered = groups.assign(group=np.arange(len(groups)))
            if key:
                met = counted[[*columns, *aside, target]].merge(numbered, on=columns, suffixes=("", " asked"))
                if apart is not None:
                    met = met[met[apart] != met[f"{apart} asked"]]
                group = asked[columns + aside].merge(numbered, on=columns + aside, how="left")["group"].to_numpy()
            else:
                met, group = counted[[target]].assign(group=0), np.zeros(len(asked), dtype=np.int64)
            places = (met["group"].to_numpy(), met[target].to_numpy())
            # Places that are named twice add up.
            counts = csr_matrix((np.ones(len(met), dtype=np.float32), places), shape=(len(groups), num_targets))
            levels.append((counts, group))
        return cls(levels, strength)

    def log_p(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Log probabilities of all targets for the questions from `start` to `stop`, float32 (questions, T)."""
        counts, group = self.levels[0]
        number, num_targets = len(group[start:stop]), counts.shape[1]
        shares = np.full((number, num_targets), 1 / num_targets, dtype=np.float32)
        for counts, group in self.levels:
            found = counts[group[start:stop]]
            total = np.asarray(found.sum(axis=1))
            shares *= self.strength
            shares += found.toarray()
            shares /= (total + self.strength).astype(np.float32)
        return np.log(shares)
