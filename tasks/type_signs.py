"""What a hidden type is by signs of use alone: no encoder reads the text, but what the code does is counted.

Two kinds of opinions on a candidate, both made from `code_graph.usage`:

    signs    log P(candidate | signs) of a classifier, fitted on the declared types of the training corpus
             (`kg_extraction.sign_classifier`).
    classes  which of the project's classes it is: one that has the attributes that are read on it, one whose instances are
             returned, one that the docstring names, one whose name shares words with its own
             (`code_graph.class_features`).

Both enter the log-linear pool of `type_ranker` as features of the candidates.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from ..code_graph.class_features import CLASS_FEATURES, ClassNames, class_features
from ..code_graph.type_names import form_of
from ..kg_extraction.sign_classifier import SignClassifier, declared_with_signs
from .base import TaskContext
from .queries import Query
from .type_candidates import Candidates, DeclaredTypes, Own


class TypeSigns:
    """Opinions on candidates by signs of use.

    Args:
        classifier: of the training corpus.
    """

    FEATURES = ("signs", *CLASS_FEATURES)

    def __init__(self, classifier: SignClassifier):
        self._classifier = classifier

    @classmethod
    def of(cls, context: TaskContext, declared: DeclaredTypes, left_out: Collection[str] = ()) -> "TypeSigns":
        """Learn from the declared types of the training corpus, its annotations taken out.

        Args:
            context: with the corpus.
            declared: its types, for the names that its projects define.
            left_out: projects that are not learned from.
        """
        rows = context.training.rows.select_columns(["project", "language", "code"])
        by_project = defaultdict(list)
        for number, (project, language) in enumerate(zip(rows["project"], rows["language"], strict=True)):
            if language == "python" and project not in left_out:
                by_project[project].append(number)
        bar = iter(context.progress(range(sum(map(len, by_project.values()))), "reading signs of types"))

        def texts(numbers: list[int]) -> Iterable[str]:
            for number in numbers:
                next(bar)
                yield rows[number]["code"]

        signs, answers = [], []
        projects = ((project, texts(numbers)) for project, numbers in by_project.items())
        for project, found, type_ in declared_with_signs(projects):
            signs.append(found)
            answers.append(form_of(type_, declared.names[project]) or type_)
        next(bar, None)
        return cls(SignClassifier.fit(signs, answers, context.arguments.seed))

    def features(self, candidates: Candidates, queries: Sequence[Query], own: Sequence[Own]) -> Iterator[np.ndarray]:
        """What signs say of each candidate of each query.

        Args:
            candidates: those of the training corpus.
            queries: what is asked, with its usage.
            own: of `Candidates.of_queries`.

        Yields:
            For each query float32 (candidates, FEATURES).
        """
        types, forms = (
            self._classifier.places(list(candidates.types)),
            self._classifier.places(["{}", *candidates.forms]),
        )
        known = [query.project_usage.signs(query.usage) if query.usage else [] for query in queries]
        of_training, of_parts = ClassNames(list(candidates.with_name)), {}
        for query, parts, log_p in zip(queries, own, self._classifier.log_p(known), strict=True):
            opinions = [log_p[types[0]] + types[1]]
            opinions += [(log_p[forms[0]] + forms[1])[part.form] for part in parts]
            columns = np.zeros((sum(map(len, opinions)), len(self.FEATURES)), dtype=np.float32)
            columns[:, 0] = np.concatenate(opinions)
            if query.usage is not None:
                # A part belongs to a project or file, and serves all its queries.
                names = [of_parts.setdefault(id(part), ClassNames(part.names)) for part in parts]
                found = class_features(query.usage, query.project_usage, [of_training, *names])
                for column, values in enumerate(found, 1):
                    columns[:, column] = np.concatenate([part.by_name(values) for part in (candidates, *parts)])
            yield columns
