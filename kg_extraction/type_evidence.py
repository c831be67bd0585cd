"""What is known of each type that may be an answer without asking the model: a table of names, and signs of use.

The first column is the log-probability of the table (`type_table`), the second that of the signs (`sign_classifier`), the
others tell how well the classes in the type fit (`code_graph.class_features`). Their weights are fitted with the
calibration.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..code_graph.class_features import CLASS_FEATURES, ClassNames, class_features
from ..code_graph.project_usage import ProjectUsage
from ..code_graph.type_names import class_names_in, defined_types
from ..code_graph.usage import Usage, read_usage
from .project import Corpus
from .sign_classifier import SignClassifier, answer_of
from .type_table import TypeTable

if TYPE_CHECKING:
    from .extraction import Answer

PRIORS = ("table", "signs", *CLASS_FEATURES)
"""Columns of what is known without the model; without signs the first alone."""
_MOST_ANSWERS = 64
"""Sets of answers that are remembered, each a file's."""


@dataclass(eq=False)
class _Project:
    """A project as signs see it.

    Attributes:
        usages: by file, relation and first character of the name.
        together: of all its files.
        names: of classes and type aliases that its files define.
    """

    usages: dict[tuple[int, str, int], Usage]
    together: ProjectUsage
    names: set[str]


@dataclass(eq=False)
class _Answers:
    """The answers of a file, as signs know them.

    Attributes:
        keys: normalised types.
        columns, shares: of `SignClassifier.places`.
        with_name: by name of a class the answers that have it.
    """

    keys: list[str]
    columns: np.ndarray
    shares: np.ndarray
    with_name: dict[str, np.ndarray]

    @cached_property
    def names(self) -> ClassNames:
        """The classes, found by their words."""
        return ClassNames(list(self.with_name))


class TypeEvidence:
    """Opinions on types, for the files of a corpus.

    Args:
        corpus: the files; annotations in them do not tell a name's own type to anyone here.
        table: of declared types.
        signs: of the same training corpus, or None.
    """

    def __init__(self, corpus: Corpus, table: TypeTable, signs: SignClassifier | None = None):
        self._corpus, self._table, self._signs = corpus, table, signs
        self._projects: dict[str, _Project] = {}
        self._answers: dict[tuple[str, int], _Answers] = {}

    def __call__(self, relation: str, answer: "Answer") -> np.ndarray:
        """What is known of each answer.

        Args:
            relation: has_type or returns.
            answer: to a question about one head.

        Returns:
            float64 (answers, 1 or `PRIORS`).
        """
        table = self._table.log_prior(relation, answer.head, answer.keys)
        if self._signs is None:
            return table[:, None]
        found = np.zeros((len(answer.keys), len(PRIORS)))
        found[:, 0] = table
        project = self._project(self._corpus.files[answer.file].project)
        known = self._known(answer)
        usage = project.usages.get((answer.file, relation, answer.head.start))
        (log_p,) = self._signs.log_p([[] if usage is None else project.together.signs(usage)])
        found[:, 1] = log_p[known.columns] + known.shares
        if usage is not None:
            for column, values in enumerate(class_features(usage, project.together, [known.names]), 2):
                for name in values.keys() & known.with_name.keys():
                    places = known.with_name[name]
                    found[places, column] = np.maximum(found[places, column], values[name])
        return found

    def _project(self, name: str) -> _Project:
        if name not in self._projects:
            usages, files, names = {}, [], set()
            for number, file in enumerate(self._corpus.files):
                if file.project == name and file.language == "python":
                    files.append(read_usage(file.code))
                    usages.update({(number, usage.relation, usage.start): usage for usage in files[-1].usages})
                    names |= defined_types(file.code)
            self._projects[name] = _Project(usages, ProjectUsage(files), names)
        return self._projects[name]

    def _known(self, answer: "Answer") -> _Answers:
        project = self._corpus.files[answer.file].project
        key = (project, id(answer.keys))
        known = self._answers.get(key)
        # The list is held, so that no other one can have its identity.
        if known is None or known.keys is not answer.keys:
            names = self._project(project).names
            with_name = defaultdict(list)
            for place, text in enumerate(answer.keys):
                for name in class_names_in(text):
                    with_name[name].append(place)
            columns, shares = self._signs.places([answer_of(text, names) for text in answer.keys])
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            known = _Answers(answer.keys, columns, shares, {name: np.array(at) for name, at in with_name.items()})
            self._answers[key] = known
        return known
