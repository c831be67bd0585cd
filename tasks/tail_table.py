"""What a table of the training corpus says of hidden tails: lookups, and how probable each first token is by them.

As for relations (`relation_table`) the counts are made probabilities (`back_off`), and a pool (`log_linear`) judges by them
and by the checkpoint: of tails whose first token stands nowhere in the window, which cannot be copied. Beside the training
corpus the other files of the tail's own project are counted: what a window does not show may stand there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..chain_graphs.back_off import BackOff
from ..chain_graphs.baselines import by_frequency, table_of
from ..chain_graphs.windows import WindowDataset
from .log_linear import fit_weights

_RELATION = ("relation", "reversed")
_ALL = ((*_RELATION, "length"), _RELATION, ())
LOOKUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "majority": (("length",), ()),
    "relation": ((*_RELATION, "length"), _RELATION, ("length",), ()),
    "relation and head": ((*_RELATION, "head", "length"), (*_RELATION, "head"), *_ALL),
}
"""Each lookup's keys, from the most specific to the one it falls back to last."""
EXPERTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "relation and head": LOOKUPS["relation and head"],
    "relation and the head's last token": ((*_RELATION, "head_last", "length"), (*_RELATION, "head_last"), *_ALL),
    "relation and the head's first token": ((*_RELATION, "head_first", "length"), (*_RELATION, "head_first"), *_ALL),
}
"""Lookups whose probabilities are pooled, likewise."""
ELSEWHERE = "relation and head in the project's other files"
_ELSEWHERE_KEYS = (("project", *_RELATION, "head", "length"), ("project", *_RELATION, "head"))
COLUMNS = (*_RELATION, "head", "head_first", "head_last", "length", "first", "tail")
# Big-endian, so that bytes are in the order of their tokens.
TOKEN = ">i8"
TOP = 5
_CANDIDATES = 50
_AT_ONCE = 256


def tails_table(windows: Iterable[dict], canonical: np.ndarray) -> pd.DataFrame:
    """All facts of some windows, as lookups count them: what they are told, `first` and `tail`, and the window's number.

    Args:
        windows: items of a `WindowDataset` with leaves.
        canonical: int (vocab_size,), one id for a word with and without a space in front (`windows.canonical_ids`).
    """
    parts = []
    for number, item in enumerate(windows):
        ids, tails = item["input_ids"].astype(TOKEN), item["leaf_ids"].astype(TOKEN)
        start, end = item["head_start"], item["head_start"] + item["head_length"]
        last = np.cumsum(item["leaf_length"])
        first = (last - item["leaf_length"]).astype(np.int64)
        parts.append(
            {
                "window": np.full(len(start), number),
                "relation": item["relation"],
                "reversed": item["reversed"],
                "head": _pieces(ids, start, end),
                "head_first": canonical[ids[start]],
                "head_last": canonical[ids[end - 1]],
                "length": item["leaf_length"],
                "first": tails[first].astype(np.int64),
                "tail": _pieces(tails, first, last),
            }
        )
    return table_of(parts)


def with_files(facts: pd.DataFrame, windows: WindowDataset, projects: Sequence[str]) -> pd.DataFrame:
    """Facts with the columns `file` and `project`.

    Args:
        facts: with the number of a `window`.
        windows: that they are from.
        projects: of each file of the corpus.
    """
    files = windows.file_index[facts["window"].to_numpy()]
    numbers, _ = pd.factorize(np.asarray(projects, dtype=object))
    return facts.assign(file=files, project=numbers[files])


def _pieces(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bytes of some spans, object (spans,): in the order of their tokens."""
    pieces = np.empty(len(starts), dtype=object)
    pieces[:] = [tokens[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]
    return pieces


def score_tail_lookups(counted: pd.DataFrame, asked: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each lookup answers: the most frequent tails of its most specific key that was counted.

    Answers that are left over among the first `TOP` come from the next keys.

    Args:
        counted: of `tails_table`.
        asked: hidden tails, with the same columns.

    Returns:
        By lookup the rank of the tail's first token, `TOP` where it is not among the answers, int64 (asked,), and whether
        the whole tail is right, bool (asked,).
    """
    # Numbers in the order of the bytes are counted faster.
    for name in ("head", "tail"):
        numbers, _ = pd.factorize(pd.concat([counted[name], asked[name]]), sort=True)
        counted = counted.assign(**{name: numbers[: len(counted)]})
        asked = asked.assign(**{name: numbers[len(counted) :]})
    answers = {}
    for key in {key for keys in LOOKUPS.values() for key in keys}:
        firsts, wholes = by_frequency(counted, key, "first"), by_frequency(counted, key, "tail")
        if key:
            columns = list(key)
            firsts = firsts.merge(asked[columns].drop_duplicates(), on=columns)
            firsts = firsts.groupby(columns, sort=False).head(TOP).groupby(columns, sort=False)["first"].agg(list)
            wholes = wholes.drop_duplicates(columns).set_index(columns)["tail"]
            found = asked[columns].join(firsts, on=columns).join(wholes, on=columns)
            answers[key] = found["first"].tolist(), found["tail"].tolist()
        else:
            first, whole = firsts["first"].head(TOP).tolist(), wholes["tail"].iloc[0]
            answers[key] = [first] * len(asked), [whole] * len(asked)
    scores = {}
    for name, keys in LOOKUPS.items():
        ranks, rights = [], []
        for place, (first, tail) in enumerate(zip(asked["first"], asked["tail"], strict=True)):
            found = [(firsts[place], wholes[place]) for firsts, wholes in (answers[key] for key in keys)]
            # Where a key was not counted the join leaves NaN.
            found = [(firsts, whole) for firsts, whole in found if isinstance(firsts, list)]
            tokens = list(dict.fromkeys(token for firsts, _ in found for token in firsts))[:TOP]
            ranks.append(tokens.index(first) if first in tokens else TOP)
            rights.append(bool(found) and found[0][1] == tail)
        scores[name] = np.array(ranks), np.array(rights)
    return scores


@dataclass(frozen=True)
class Opinions:
    """What checkpoint and table think of the first tokens of some tails that stand nowhere in their windows.

    Attributes:
        candidates: for each tail the tokens that one of them likes best, int64 (candidates,), ascending; none of them stands
            in the window.
        features: for each tail the log probabilities of the checkpoint, of `EXPERTS` and of `ELSEWHERE`, float32
            (candidates, 2 + experts).
        first: the right tokens, int64 (tails,).
        projects: numbers of the projects that the tails are from, int64 (tails,).
    """

    candidates: list[np.ndarray]
    features: list[np.ndarray]
    first: np.ndarray
    projects: np.ndarray

    @classmethod
    def of(
        cls,
        log_p: np.ndarray,
        shown: list[np.ndarray],
        canonical: np.ndarray,
        counted: pd.DataFrame,
        asked: pd.DataFrame,
        elsewhere: pd.DataFrame,
    ) -> "Opinions":
        """Collect opinions.

        Args:
            log_p: of the checkpoint, float (tails, vocab_size).
            shown: for each tail the canonical ids of what stands in its window and leaves.
            canonical: int (vocab_size,).
            counted: of `tails_table`, of the training corpus.
            asked: the tails, `with_files`.
            elsewhere: facts of the projects of these tails, likewise; those of a tail's own file do not count.
        """
        experts = [BackOff.of(counted, asked, keys, "first", len(canonical)) for keys in EXPERTS.values()]
        experts.append(BackOff.of(elsewhere, asked, _ELSEWHERE_KEYS, "first", len(canonical), apart="file"))
        candidates, features = [], []
        for start in range(0, len(asked), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(asked))
            found = np.stack(
                [log_p[start:stop].astype(np.float32), *(expert.log_p(start, stop) for expert in experts)]
            )
            for row, place in enumerate(range(start, stop)):
                allowed = np.flatnonzero(~np.isin(canonical, shown[place]))
                values, number = found[:, row, allowed], min(_CANDIDATES, len(allowed))
                chosen = np.unique(np.argpartition(-values, number - 1, axis=1)[:, :number])
                candidates.append(allowed[chosen])
                features.append(values[:, chosen].T)
        return cls(candidates, features, asked["first"].to_numpy(), asked["project"].to_numpy())

    @property
    def projects_to_weigh_on(self) -> set[int]:
        """Projects with a tail whose first token is a candidate; weights are fitted on such tails."""
        found = zip(self.candidates, self.first, self.projects.tolist(), strict=True)
        return {project for tokens, first, project in found if first in tokens}

    def only(self, *experts: int) -> "Opinions":
        """Those of some experts, by their column in `features`."""
        return replace(self, features=[found[:, experts] for found in self.features])

    def of_tails(self, chosen: np.ndarray) -> "Opinions":
        """Those on some tails, bool (tails,)."""
        places = np.flatnonzero(chosen)
        return Opinions(
            [self.candidates[i] for i in places],
            [self.features[i] for i in places],
            self.first[places],
            self.projects[places],
        )

    def fit(self) -> np.ndarray:
        """Weights of the pool, fitted on the tails whose first token is a candidate, float64 (experts,)."""
        features, right = [], []
        for tokens, found, first in zip(self.candidates, self.features, self.first, strict=True):
            at = np.flatnonzero(tokens == first)
            if len(at):
                features.append(found)
                right.append(int(at[0]))
        return fit_weights(features, right)

    def cross_fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """The tails of each project judged by a pool whose weights are fitted on those of all other projects.

        Returns:
            The rank of each tail's first token, int64 (tails,), and the mean of the weights, float64 (experts,).

        Raises:
            ValueError: fewer than two `projects_to_weigh_on`.
        """
        ranks, weights = np.zeros(len(self.first), dtype=np.int64), []
        for project in np.unique(self.projects):
            own = self.projects == project
            weights.append(self.of_tails(~own).fit())
            ranks[own] = self.of_tails(own).ranks(weights[-1])
        return ranks, np.mean(weights, axis=0)

    def ranks(self, weights: Sequence[float]) -> np.ndarray:
        """Rank of each tail's first token in the pool, int64 (tails,).

        `TOP` or more where it is no candidate; ties count against it.
        """
        ranks = []
        for tokens, found, first in zip(self.candidates, self.features, self.first, strict=True):
            scores, at = found @ np.asarray(weights), np.flatnonzero(tokens == first)
            ranks.append(int((scores >= scores[at[0]]).sum()) - 1 if len(at) else max(TOP, len(tokens)))
        return np.array(ranks)
