"""Facts of a knowledge graph: triples with a probability, where they come from, and how they were found."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

EXTRACTED, PREDICTED = "extracted", "predicted"
PARSER = "parser"


@dataclass(frozen=True, order=True)
class Place:
    """Where a fact hangs in the text: the head's span, in characters of the file; `line` counts from 1."""

    project: str
    path: str
    line: int
    start: int
    end: int


@dataclass
class Fact:
    """One fact.

    Attributes:
        project: the project whose text states or suggests it.
        head, relation, tail: full names and the relation's name; a tail that is no single name is its text.
        head_name, tail_name: as they are written.
        head_kind, tail_kind: function, class, parameter, variable, field, import, type, module or name.
        status: EXTRACTED where the parser saw it, PREDICTED where the model filled it in.
        mode: PARSER, or the mode of the prediction.
        probability: 1 for extracted facts, calibrated for predicted ones.
        model_probability: what the model gives an extracted fact that it is not shown; None where it was not asked.
        rank: 1 for the model's best answer to a question; None for extracted facts.
        places: every place that it was found at.
    """

    project: str
    head: str
    relation: str
    tail: str
    head_name: str
    tail_name: str
    head_kind: str
    tail_kind: str
    status: str
    mode: str
    probability: float
    model_probability: float | None = None
    rank: int | None = None
    places: list[Place] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two findings the same fact."""
        return self.project, self.head, self.relation, self.tail

    @property
    def triple(self) -> tuple[str, str, str]:
        """(head, relation, tail)."""
        return self.head, self.relation, self.tail

    @property
    def id(self) -> str:
        """A short name that depends on the key only."""
        return hashlib.blake2b("\0".join(self.key).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def merge(findings: Iterable[Fact]) -> list[Fact]:
    """One fact for each key: findings of the same fact in several windows, places or modes come together.

    All places are kept. A fact that the parser saw stays extracted, whatever the model says; the model's word about it
    becomes `model_probability`. Of several predictions the highest probability counts: windows of one file and
    questions about one name are no independent witnesses, so that a noisy-or would count the same evidence again.

    Args:
        findings: in any order.

    Returns:
        The facts, extracted ones first, predicted ones by falling probability, then by name.
    """
    merged: dict[tuple, Fact] = {}
    places: dict[tuple, dict[Place, None]] = {}
    for fact in findings:
        seen = places.setdefault(fact.key, {})
        seen.update(dict.fromkeys(fact.places))
        known = merged.get(fact.key)
        if known is None:
            merged[fact.key] = fact
            continue
        winner, other = known, fact
        if (fact.status == EXTRACTED, fact.probability) > (known.status == EXTRACTED, known.probability):
            winner, other = fact, known
        said = [value for value in (winner.model_probability, other.model_probability) if value is not None]
        if winner.status == EXTRACTED and other.status == PREDICTED:
            said.append(other.probability)
        winner.model_probability = max(said, default=None)
        if winner.rank is not None and other.rank is not None:
            winner.rank = min(winner.rank, other.rank)
        merged[fact.key] = winner
    for key, fact in merged.items():
        fact.places = sorted(places[key])
    return sorted(merged.values(), key=lambda fact: (fact.status != EXTRACTED, -fact.probability, fact.key))
