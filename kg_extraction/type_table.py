"""How often a corpus gives which type to which name: the prior that constrained decoding is combined with.

P(type | name, default) backs off, each level shrunk towards the one before:

    all annotations of the relation -> kind of the default value -> a word of the name -> the whole name

    P_k(t) = (count_k(t) + s P_{k-1}(t)) / (count_k + s)

The first level keeps a share for types that the corpus never writes (classes of another project), as large as the share of
annotations whose type occurs once (Good and Turing).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from ..code_graph.annotations import PARAMETER, RELATION_OF, Slot, find_slots
from ..code_graph.type_names import normalise_type
from .candidates import ABC_TYPES, BUILTIN_TYPES, TYPING_TYPES, Head

SHRINKAGE = 2.0
_MOST_CANDIDATES = 400
_WORD = re.compile(r"[A-Za-z]+?(?=_|\d|$|(?<=[a-z])[A-Z])")
_NAME = re.compile(r"[^\W\d][\w.]*")
_ANYWHERE = frozenset((*BUILTIN_TYPES, *TYPING_TYPES, *ABC_TYPES, "Optional", "Union", "List", "Dict", "Tuple", "Set"))
_LITERALS = (
    ("None", re.compile(r"None$")),
    ("bool", re.compile(r"(True|False)$")),
    ("int", re.compile(r"[-+]?\d[\d_]*$")),
    ("float", re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?$")),
    ("str", re.compile(r"[rRuUfF]?['\"]")),
    ("bytes", re.compile(r"[bB]['\"]")),
    ("list", re.compile(r"\[")),
    ("dict", re.compile(r"\{")),
    ("tuple", re.compile(r"\(")),
)


def default_kind(slot: Slot | None) -> str:
    """What a slot's default value is by its first characters; "" for none, "return" for a function's return.

    >>> default_kind(find_slots("def f(a=None): ...")[1])
    'None'
    """
    if slot is None or slot.kind != PARAMETER:
        return "return"
    if slot.is_star:
        return "star"
    if slot.default is None:
        return ""
    return next((kind for kind, pattern in _LITERALS if pattern.match(slot.default)), "other")


def word_of(relation: str, name: str) -> str:
    """The word of a name that tells most: a parameter's last (`base_url`), a function's first (`is_open`)."""
    words = _WORD.findall(name)
    return (words[0] if relation == "returns" else words[-1]).lower() if words else name


class TypeTable:
    """Counts of declared types, all spellings of one type together.

    Attributes:
        counts: by level ("", default kind, word, name), by "relation key", the normalised types with their counts.
        spellings: by relation, the most frequent spelling of each type that any file can name, the most frequent first.
    """

    LEVELS = 4

    def __init__(self):
        self.counts: list[dict[str, Counter]] = [defaultdict(Counter) for _ in range(self.LEVELS)]
        self.spellings: dict[str, list[str]] = {}

    @classmethod
    def of(cls, files: Iterable[tuple[str, str, str, str]]) -> "TypeTable":
        """Count the annotations of the Python files among (project, path, language, code)."""
        table = cls()
        written: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
        for _, _, language, code in files:
            for slot in find_slots(code) if language == "python" else ():
                if slot.annotation is None or slot.is_instance:
                    continue
                relation, kind = RELATION_OF[slot.kind], normalise_type(slot.annotation)
                written[relation][kind][slot.annotation] += 1
                for counts, key in zip(table.counts, table._keys(relation, slot.name, slot), strict=True):
                    counts[key][kind] += 1
        for relation, kinds in written.items():
            general = [kind for kind in kinds if set(_NAME.findall(kind)) <= _ANYWHERE and kinds[kind].total() > 1]
            general.sort(key=lambda kind: (-kinds[kind].total(), kind))
            table.spellings[relation] = [
                min(kinds[kind], key=lambda text: (-kinds[kind][text], text)) for kind in general[:_MOST_CANDIDATES]
            ]
        return table

    @staticmethod
    def _keys(relation: str, name: str, slot: Slot | None) -> tuple[str, ...]:
        kind = default_kind(slot)
        return (
            relation,
            f"{relation} {kind}",
            f"{relation} {kind} {word_of(relation, name)}",
            f"{relation} {kind} {name}",
        )

    def log_prior(self, relation: str, head: Head, keys: Sequence[str]) -> np.ndarray:
        """Log-probability of each answer before any code is read.

        Args:
            relation: has_type or returns.
            head: the parameter or function that is asked about.
            keys: normalised types.

        Returns:
            float64 `(keys,)`; types that the corpus does not know share what is kept for the unknown.
        """
        levels = self._keys(relation, head.name, head.slot)
        first = self.counts[0].get(levels[0], Counter())
        total = first.total()
        once = sum(1 for count in first.values() if count == 1) + 1
        known = np.array([first.get(key, 0) for key in keys], dtype=np.float64)
        unknown = max(1, int((known == 0).sum()))
        share = once / (total + 2)
        probability = np.where(known > 0, (1 - share) * known / max(total, 1), share / unknown)
        for counts, key in zip(self.counts[1:], levels[1:], strict=True):
            found = counts.get(key)
            if found:
                here = np.array([found.get(name, 0) for name in keys], dtype=np.float64)
                probability = (here + SHRINKAGE * probability) / (found.total() + SHRINKAGE)
        return np.log(probability)

    def as_json(self) -> dict:
        """What `calibration.json` holds."""
        return {
            "counts": [{key: dict(found) for key, found in level.items()} for level in self.counts],
            "spellings": self.spellings,
        }

    @classmethod
    def from_json(cls, data: dict) -> "TypeTable":
        """Read what `as_json` made."""
        table = cls()
        if len(data["counts"]) != cls.LEVELS:
            raise ValueError("another number of levels")
        for level, found in zip(table.counts, data["counts"], strict=True):
            level.update({key: Counter({name: int(n) for name, n in counts.items()}) for key, counts in found.items()})
        table.spellings = {relation: [str(text) for text in texts] for relation, texts in data["spellings"].items()}
        return table

    def __eq__(self, other) -> bool:
        return isinstance(other, TypeTable) and self.as_json() == other.as_json()
