"""Constrained decoding: which of a closed set of names do the masked leaf tokens spell?

A leaf of K mask tokens gives K distributions over the vocabulary. Names are held in one trie for each number of tokens;
walking it level by level gives every name its exact log-probability, with work for a shared prefix done once. Names of
different lengths come from different questions (K masks each) and are compared through the log-probability of the length.
"""

from collections.abc import Callable, Iterable

import numpy as np


class TailTrie:
    """A closed set of names as tries over their tokens, one trie for each number of tokens.

    Args:
        names: the names; repeats are dropped.
        encode: text -> token ids of a leaf (`chain_graphs.linking.LeafEncoder`).
        max_tokens: longer names are cut to so many tokens, as the leaves of long tails are. Names that the cut makes
            equal share their probability evenly.

    Attributes:
        names: the distinct names that have tokens; scores follow this order.
        lengths: the numbers of tokens that occur, ascending.
        num_tokens: int array `(names,)`, tokens of each name after the cut.

    Raises:
        ValueError: not a single name.
    """

    def __init__(self, names: Iterable[str], encode: Callable[[str], list[int]], max_tokens: int):
        encoded = {name: tuple(encode(name)[:max_tokens]) for name in dict.fromkeys(names)}
        self.names = [name for name, tokens in encoded.items() if tokens]
        if not self.names:
            raise ValueError("constrained decoding needs at least one name that a tail may be")
        self.num_tokens = np.array([len(encoded[name]) for name in self.names])
        self.lengths = sorted(set(self.num_tokens.tolist()))
        shared: dict[tuple[int, ...], int] = {}
        for name in self.names:
            shared[encoded[name]] = shared.get(encoded[name], 0) + 1
        self._log_share = -np.log([shared[encoded[name]] for name in self.names])
        # For each length: per level the parent of each node on the level before, and its token; the names of each leaf.
        self._levels: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._ends: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for length in self.lengths:
            members = np.flatnonzero(self.num_tokens == length)
            self._build(length, members, [encoded[self.names[k]] for k in members])

    def _build(self, length: int, members: np.ndarray, tokens: list[tuple[int, ...]]) -> None:
        nodes: dict[tuple[int, ...], int] = {(): 0}
        levels = []
        for level in range(length):
            below: dict[tuple[int, ...], int] = {}
            parents, ids = [], []
            for sequence in tokens:
                prefix = sequence[: level + 1]
                if prefix not in below:
                    below[prefix] = len(below)
                    parents.append(nodes[prefix[:-1]])
                    ids.append(prefix[-1])
            levels.append((np.array(parents), np.array(ids)))
            nodes = below
        self._levels[length] = levels
        self._ends[length] = (members, np.array([nodes[sequence] for sequence in tokens]))

    def __len__(self) -> int:
        return len(self.names)

    def score(self, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of all names of one length.

        Args:
            log_probs: float array `(K, V)`, the log-probabilities at the K masks.

        Returns:
            Indices into `names`, and the log-probability of each.
        """
        length = len(log_probs)
        reached = np.zeros(1)
        for (parents, ids), row in zip(self._levels[length], log_probs, strict=True):
            reached = reached[parents] + row[ids]
        members, ends = self._ends[length]
        return members, reached[ends] + self._log_share[members]


def length_prior(counts: Iterable[int] | None, max_tokens: int) -> np.ndarray:
    """Log-probability of each number of tokens, add-one smoothed.

    Args:
        counts: how many tails had 1, 2, ... tokens; None for no preference.
        max_tokens: K of the longest.

    Returns:
        float array `(max_tokens + 1,)`; entry 0 is unused.
    """
    smoothed = np.ones(max_tokens + 1)
    if counts is not None:
        counts = np.asarray(list(counts), dtype=np.float64)[:max_tokens]
        smoothed[1 : len(counts) + 1] += counts
    smoothed[0] = 1.0
    return np.log(smoothed / smoothed[1:].sum())
