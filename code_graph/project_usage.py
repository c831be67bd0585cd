"""What the files of a project say together of their names and classes (`usage`).

A name mostly means one thing in a project: what is done with `options` in one function tells what it is in another.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from .schema import HAS_TYPE
from .usage import FileUsage, Usage, words_of

_SHARED = 0.2
"""Share of a name's functions that must show a sign for it to be one of the name's in the project."""
_MOST_SHARED, _MOST_GIVEN = 15, 6
# Signs of one place that say nothing of the name elsewhere, or nothing new.
_OF_PLACE = ("name:", "word:", "first word:", "last word:", "place:", "way:", "function", "short name", "base:")


class ProjectUsage:
    """What all files of a project say together of its names and classes.

    Args:
        files: of `read_usage`, without annotations.

    Attributes:
        members: by class its methods and fields, those of its bases in the project among them.
        owners: by attribute the classes that have it.
        rarity: by attribute the log of how few of the classes have it.
    """

    def __init__(self, files: Iterable[FileUsage]):
        own, bases = defaultdict(set), {}
        self._by_name: dict[tuple[str, str], list[Usage]] = defaultdict(list)
        self._calls: dict[str, list[tuple[list[str], dict[str, str]]]] = defaultdict(list)
        for file in files:
            for usage in file.usages:
                self._by_name[usage.relation, usage.name].append(usage)
            for name, members in file.members.items():
                own[name] |= members
            bases |= file.bases
            for name, calls in file.calls.items():
                self._calls[name] += calls
        self.members = {name: _with_bases(name, own, bases) for name in own}
        self.owners = defaultdict(list)
        for name, members in self.members.items():
            for attribute in members:
                self.owners[attribute].append(name)
        self.rarity = {
            attribute: float(np.log((1 + len(self.members)) / len(names))) for attribute, names in self.owners.items()
        }
        self._of_names: dict[tuple[str, str], tuple[list[str], Counter]] = {}

    def signs(self, usage: Usage) -> list[str]:
        """Signs of a parameter or result: its own, what calls give it, and what is common for its name in the project."""
        signs = [*usage.signs, f"relation:{usage.relation}"]
        for kind, _ in self.given(usage).most_common(_MOST_GIVEN):
            signs.append(f"given:{kind}")
            what, _, name = kind.partition(":")
            if what in ("name", "attr", "call"):
                signs += [f"given, last word:{word}" for word in words_of(name)[-1:]]
        return [sys.intern(sign) for sign in dict.fromkeys([*signs, *self._of_name(usage.relation, usage.name)[0]])]

    def given(self, usage: Usage) -> Counter:
        """What the project's calls give to a parameter, by `kind_of`, and how often."""
        if usage.relation != HAS_TYPE:
            return Counter()
        is_made = usage.owner is not None and usage.function in ("__init__", "__new__")
        found: Counter = Counter()
        for by_place, by_keyword in self._calls.get(usage.owner if is_made else usage.function, ()):
            if usage.name in by_keyword:
                found[by_keyword[usage.name]] += 1
            elif usage.position is not None and usage.position < len(by_place):
                found[by_place[usage.position]] += 1
        return found

    def attributes(self, relation: str, name: str) -> Counter:
        """Attributes that functions of the project read on parameters of a name, and in how many functions."""
        return self._of_name(relation, name)[1]

    def _of_name(self, relation: str, name: str) -> tuple[list[str], Counter]:
        key = relation, name
        if key not in self._of_names:
            usages = self._by_name.get(key, ())
            signs = Counter(sign for usage in usages for sign in usage.signs if not sign.startswith(_OF_PLACE))
            shared = [
                f"in the project, {sign}" for sign, n in signs.most_common(_MOST_SHARED) if n >= _SHARED * len(usages)
            ]
            self._of_names[key] = shared, Counter(name for usage in usages for name in usage.attributes)
        return self._of_names[key]

    def fitting(self, attributes: Counter) -> dict[str, float]:
        """By class the share of some attributes that it has, rare ones counting for more; classes with none are left out."""
        total = sum(self.rarity.get(name, 0.0) * count for name, count in attributes.items())
        found: dict[str, float] = defaultdict(float)
        if total > 0:
            for name, count in attributes.items():
                for owner in self.owners.get(name, ()):
                    found[owner] += self.rarity[name] * count / total
        return found


def _with_bases(name: str, own: dict[str, set[str]], bases: dict[str, list[str]]) -> set[str]:
    members, waiting, seen = set(), [name], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            members |= own.get(name, set())
            waiting += bases.get(name, ())
    return members
