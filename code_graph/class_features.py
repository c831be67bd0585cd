"""How well classes fit a parameter or result whose type no annotation states: by attributes, instances, words.

Made from `usage` and `project_usage`, without an encoder.
"""

from collections import ChainMap, Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .project_usage import ProjectUsage
from .schema import RETURNS
from .usage import Usage, words_of


@dataclass(frozen=True)
class ClassNames:
    """Names of classes, found by their words.

    Attributes:
        names: the names.
    """

    names: Sequence[str]

    @cached_property
    def _by_words(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.names:
            found["".join(words_of(name))].append(name)
        return found

    @cached_property
    def _by_word(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.names:
            for word in dict.fromkeys(words_of(name)):
                found[word].append(name)
        return found

    @cached_property
    def _by_beginning(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for name in self.names:
            words = words_of(name)
            for text in ("".join(words), *words[-1:]):
                for size in range(2, len(text) + 1):
                    found[text[:size]].add(name)
        return found

    def within(self, words: Sequence[str]) -> dict[str, float]:
        """Classes whose words stand one after the other among others, and how many words they are."""
        found = {}
        for start in range(len(words)):
            for stop in range(start + 1, len(words) + 1):
                for name in self._by_words.get("".join(words[start:stop]), ()):
                    found[name] = max(found.get(name, 0.0), float(stop - start))
        return found

    def sharing(self, words: Sequence[str]) -> dict[str, float]:
        """Classes that share words with a name: the shared words' share of all of both."""
        shared = Counter(name for word in dict.fromkeys(words) for name in self._by_word.get(word, ()))
        return {name: n / (len({*words, *words_of(name)})) for name, n in shared.items()}

    def beginning(self, words: Sequence[str]) -> set[str]:
        """Classes that a name is short for: whose name, or its last word, begins as the name or its last word."""
        return self._by_beginning.get("".join(words), set()) | self._by_beginning.get("".join(words[-1:]), set())


CLASS_FEATURES = (
    "its attributes",
    "its attributes in the project",
    "an instance is made",
    "in the function's name",
    "the class around",
    "in the docstring",
    "words shared",
    "short for it",
)


def class_features(usage: Usage, project: ProjectUsage, names: Sequence[ClassNames]) -> list[dict[str, float]]:
    """How well classes fit a hidden type by `CLASS_FEATURES`: for each a value by class, 0 for those left out.

    Args:
        usage: the parameter or result.
        project: it belongs to.
        names: classes to find by their words.
    """
    words, function = words_of(usage.name), words_of(usage.function)
    # A parameter is hardly what a function's first word says that it does.
    telling = function if usage.relation == RETURNS else function[1:]
    return [
        project.fitting(Counter(usage.attributes)),
        project.fitting(project.attributes(usage.relation, usage.name)),
        dict.fromkeys(usage.made, 1.0),
        dict(ChainMap(*(some.within(telling) for some in names))),
        {usage.owner: 1.0} if usage.owner else {},
        dict.fromkeys(usage.mentioned, 1.0),
        dict(ChainMap(*(some.sharing(words) for some in names))),
        dict.fromkeys(set().union(*(some.beginning(words) for some in names)), 1.0) if words else {},
    ]
