"""What a table of the training corpus says of hidden relations: lookups, and how probable each relation is by them.

The lookups answer with the most frequent relation of their most specific key (`baselines.score_lookups`). Their counts say
more than that, how often and against what; as probabilities (`back_off`) they can be pooled with each other and with a
checkpoint (`log_linear`), which reads what no table can count but has seen each spelling less often than the table.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..chain_graphs.back_off import BackOff
from ..chain_graphs.baselines import RELATION_BASELINES, asked_table, facts_table, score_lookups
from .base import TaskContext
from .corpora import Corpus
from .leaf_order import NEIGHBOURS, asked_neighbours, neighbour_table
from .log_linear import fit_weights

_HEAD = (("reversed", "before", "head", "after"), ("reversed", "head"), ("reversed",), ())
_AROUND, _PAIR = "tokens around the head with the tail", "(head, tail) tokens"
_SET = "the set of the root's other relations"
EXPERTS = (_AROUND, _PAIR, "head", _SET)
"""Lookups whose probabilities are pooled."""


@dataclass(frozen=True)
class RelationTable:
    """Facts as the lookups are told them.

    Attributes:
        facts: columns of `baselines.RELATION_BASELINES`, `relation`, and of asked ones `visible`.
        neighbours: columns of `leaf_order.NEIGHBOURS`, `relation`, `visible`.
    """

    facts: pd.DataFrame
    neighbours: pd.DataFrame

    @classmethod
    def count(cls, context: TaskContext, corpus: Corpus) -> "RelationTable":
        """All facts of a corpus."""
        facts = context.counted("relations", corpus, facts_table)
        return cls(facts, context.counted("neighbours", corpus, lambda windows: neighbour_table(context, windows)))

    @classmethod
    def ask(cls, context: TaskContext, windows, collator) -> "RelationTable":
        """The relations that `collator` hides, in the order of windows and columns."""
        asked = cls(asked_table(windows, collator), asked_neighbours(context, windows, collator))
        if asked.facts["relation"].tolist() != asked.neighbours["relation"].tolist():
            raise RuntimeError("the lookups were told of other facts, or of the same in another order")
        return asked

    def lookups(self, asked: "RelationTable") -> dict[str, dict[str, float]]:
        """Score the lookups, which count here, as `baselines.relation_baselines`."""
        scores = score_lookups(RELATION_BASELINES, self.facts, asked.facts)
        return scores | score_lookups(NEIGHBOURS, self.neighbours, asked.neighbours)

    def log_p(self, asked: "RelationTable", num_relations: int) -> np.ndarray:
        """How probable each relation is by `EXPERTS`, which count here, float32 (asked, num_relations, experts)."""
        pairs = [
            (self.facts, asked.facts, (*RELATION_BASELINES[_AROUND], ())),
            (self.facts, asked.facts, (*RELATION_BASELINES[_PAIR], ())),
            (self.facts, asked.facts, _HEAD),
            (self.neighbours, asked.neighbours, NEIGHBOURS[_SET]),
        ]
        found = [BackOff.of(*tables, keys, "relation", num_relations).log_p() for *tables, keys in pairs]
        return np.stack(found, axis=-1)


def pooled(log_p: np.ndarray, relations: np.ndarray, asked_log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pool several experts by weights that are fitted on other facts.

    Args:
        log_p: of the facts to fit on, (facts, num_relations, K).
        relations: of these facts, int64 (facts,).
        asked_log_p: of the facts that are asked for, (asked, num_relations, K).

    Returns:
        The relation that the pool names, int64 (asked,), and the weights (K,).
    """
    weights = fit_weights(log_p, relations)
    return (asked_log_p @ weights).argmax(axis=1), weights
