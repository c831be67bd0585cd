"""What a hidden type is by signs of use alone: no encoder reads the text, but what the code does is counted.

Two kinds of opinions on a candidate, both made from `code_graph.usage`:

    signs    log P(candidate | signs): how the parameter is used where it is read, what the function returns, the words of
             its name, what calls give it, and how other functions of the project use the same name. A classifier with one
             hidden layer, fitted on the declared types of the training corpus, whose annotations are taken out likewise.
             A project's own classes are one answer to it, in each of their forms ("{} | None").
    classes  which of the project's classes it is: one that has the attributes that are read on it, one whose instances are
             returned, one that the docstring names, one whose name shares words with its own.

Both enter the log-linear pool of `type_ranker` as features of the candidates.
"""

import warnings
from collections import ChainMap, Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..code_graph.annotations import RELATION_OF, strip_annotations
from ..code_graph.project_usage import ProjectUsage
from ..code_graph.schema import RETURNS
from ..code_graph.usage import Usage, read_usage, words_of
from .base import TaskContext
from .queries import Query
from .type_candidates import Candidates, DeclaredTypes, Own, form_of

HIDDEN_UNITS = 96
EPOCHS, LEAST_STEPS = 3, 300
BATCH_SIZE = 256
_LEAST_SIGNS, _LEAST_TYPES = 8, 20
"""Times that the training corpus must show a sign, and a type that is an answer of its own."""
_REST = "other"
_UNSEEN = 0.3


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


class SignClassifier:
    """log P(type or form | signs), fitted on hidden types whose signs are known.

    Answers that are too rare to be learned share what the classifier gives to all of them, by how often they were seen.

    Args:
        signs: of each hidden type.
        answers: its text, or its form where a class of its project is in it.
        seed: of the weights and the order.

    Raises:
        ValueError: there is nothing to learn from.
    """

    def __init__(self, signs: Sequence[Sequence[str]], answers: Sequence[str], seed: int = 0):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.neural_network import MLPClassifier

        counts = Counter(answers)
        # In a small corpus everything is rare.
        least = min(_LEAST_TYPES, max(1, len(answers) // 100))
        self._rare = {text: count for text, count in counts.items() if count < least}
        self._vectorizer = CountVectorizer(
            analyzer=list, min_df=min(_LEAST_SIGNS, max(1, len(answers) // 100)), binary=True, dtype=np.float32
        )
        try:
            presence = self._vectorizer.fit_transform(signs)
        except ValueError as error:
            raise ValueError("no signs of types to learn from") from error
        steps = -(-len(answers) // BATCH_SIZE)
        self._classifier = MLPClassifier(
            (HIDDEN_UNITS,),
            batch_size=min(BATCH_SIZE, len(answers)),
            max_iter=max(EPOCHS, -(-LEAST_STEPS // steps)),
            random_state=seed,
        )
        with warnings.catch_warnings():
            # It is not meant to converge: later epochs are learned by heart.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._classifier.fit(presence, [_REST if text in self._rare else text for text in answers])
        self._columns = {text: column for column, text in enumerate(self._classifier.classes_)}

    def log_p(self, signs: Sequence[Sequence[str]]) -> np.ndarray:
        """Log probability of each answer that is not rare and of all rare ones together, float64 (hidden types, answers)."""
        return np.log(self._classifier.predict_proba(self._vectorizer.transform(signs)) + 1e-9)

    def places(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where answers are found.

        Args:
            texts: types or forms.

        Returns:
            The column of each in `log_p`, int64, and the log of the share of it that is the answer's.
        """
        rest, total = self._columns.get(_REST, -1), sum(self._rare.values()) + 1.0
        columns = np.array([self._columns.get(text, rest) for text in texts], dtype=np.int64)
        shares = [1.0 if text in self._columns else self._rare.get(text, _UNSEEN) / total for text in texts]
        return columns, np.log(shares)


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
        signs, answers = [], []
        bar = iter(context.progress(range(sum(map(len, by_project.values()))), "reading signs of types"))
        for project, numbers in by_project.items():
            files, hidden = [], []
            for number in numbers:
                next(bar)
                text, slots = strip_annotations(rows[number]["code"])
                files.append(read_usage(text))
                usages = {(usage.relation, usage.start): usage for usage in files[-1].usages}
                found = ((usages.get((RELATION_OF[slot.kind], slot.start)), slot.annotation) for slot in slots)
                hidden += [(usage, type_) for usage, type_ in found if usage is not None]
            together = ProjectUsage(files)
            for usage, type_ in hidden:
                signs.append(together.signs(usage))
                answers.append(form_of(type_, declared.names[project]) or type_)
        next(bar, None)
        return cls(SignClassifier(signs, answers, context.arguments.seed))

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
