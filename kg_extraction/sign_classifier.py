"""What a type is by signs of use: a classifier learned from the declared types of a corpus, its annotations taken out.

Signs are those of `code_graph.usage` and `code_graph.project_usage`: how the parameter is used where it is read, what the
function returns, the words of its name, what calls give it, and how other functions of the project use the same name. A
project's own classes are one answer, in each of their forms ("{} | None"): which of them it is, its `class_features` tell.
"""

import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..code_graph.annotations import RELATION_OF, strip_annotations
from ..code_graph.project_usage import ProjectUsage
from ..code_graph.type_names import defined_types, form_of, normalise_type
from ..code_graph.usage import read_usage

HIDDEN_UNITS = 96
EPOCHS, LEAST_STEPS = 3, 300
BATCH_SIZE = 256
_LEAST_SIGNS, _LEAST_TYPES = 8, 20
"""Times that the corpus must show a sign, and a type that is an answer of its own."""
_REST = "other"
_OWN = "_own_"
_UNSEEN = 0.3
_TENSORS = ("sign_weights", "sign_bias", "answer_weights", "answer_bias")
_ROWS = 4096


def declared_with_signs(projects: Iterable[tuple[str, Iterable[str]]]) -> Iterator[tuple[str, list[str], str]]:
    """The declared types of a corpus's Python files, with the signs that are left when annotations are taken out.

    Args:
        projects: the name of each, and the texts of its files, which are read once.

    Yields:
        (project, signs, type) of each annotated parameter or result.
    """
    for project, texts in projects:
        files, hidden = [], []
        for code in texts:
            text, slots = strip_annotations(code)
            files.append(read_usage(text))
            usages = {(usage.relation, usage.start): usage for usage in files[-1].usages}
            found = ((usages.get((RELATION_OF[slot.kind], slot.start)), slot.annotation) for slot in slots)
            hidden += [(usage, type_) for usage, type_ in found if usage is not None]
        together = ProjectUsage(files)
        for usage, type_ in hidden:
            yield project, together.signs(usage), type_


def answer_of(text: str, names: Collection[str]) -> str:
    """What a classifier for normalised types calls a type: its form where a name of its project is in it.

    Args:
        text: a normalised type.
        names: that the project defines.

    >>> answer_of("None | Tree", {"Tree"}), answer_of("Leaf | None", {"Leaf"}), answer_of("None | str", {"Leaf"})
    ('None | {}', 'None | {}', 'None | str')
    """
    form = form_of(text, names)
    if form is None:
        return text
    # Unions are in the order of the alphabet: the name's place must not tell how it is spelled.
    return normalise_type(form.replace("{}", _OWN)).replace(_OWN, "{}") if "|" in form else form


def learn_signs(
    files: Iterable[tuple[str, str, str, str]], progress: bool = False, seed: int = 0
) -> "SignClassifier | None":
    """The classifier of a corpus, for normalised types.

    Args:
        files: (project, path, language, code) of each; those of other languages than Python are left out.
        progress: show a progress bar on a terminal.
        seed: of the classifier.

    Returns:
        The classifier; None where the files declare no type.
    """
    by_project: dict[str, list[str]] = defaultdict(list)
    for project, _, language, code in files:
        if language == "python":
            by_project[project].append(code)
    names = {project: set().union(*map(defined_types, texts)) for project, texts in by_project.items()}
    bar = tqdm(
        total=sum(map(len, by_project.values())), desc="reading signs of types", disable=None if progress else True
    )

    def counted(texts: list[str]) -> Iterator[str]:
        for text in texts:
            yield text
            bar.update()

    signs, answers = [], []
    for project, found, type_ in declared_with_signs((name, counted(texts)) for name, texts in by_project.items()):
        signs.append(found)
        answers.append(answer_of(normalise_type(type_), names[project]))
    bar.close()
    return SignClassifier.fit(signs, answers, seed) if answers else None


@dataclass(frozen=True, eq=False)
class SignClassifier:
    """log P(answer | signs): one hidden layer over the presence of signs.

    Answers that are too rare to be learned share what the classifier gives to all of them, by how often they were seen.

    Attributes:
        signs: that it knows, in the order of the first layer's rows.
        answers: types, or forms where a class of their project is in them, in the order of the last layer's columns.
        rare: answers without a column, and how often each was seen.
        sign_weights, sign_bias: float32 (signs, hidden units), (hidden units,).
        answer_weights, answer_bias: float32 (hidden units, answers), (answers,).
    """

    signs: Sequence[str]
    answers: Sequence[str]
    rare: dict[str, int]
    sign_weights: np.ndarray
    sign_bias: np.ndarray
    answer_weights: np.ndarray
    answer_bias: np.ndarray

    def __post_init__(self):
        hidden = len(self.sign_bias)
        shapes = {
            "sign_weights": (len(self.signs), hidden),
            "sign_bias": (hidden,),
            "answer_weights": (hidden, len(self.answers)),
            "answer_bias": (len(self.answers),),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {getattr(self, name).shape}")
        object.__setattr__(self, "_rows", {sign: row for row, sign in enumerate(self.signs)})
        object.__setattr__(self, "_columns", {text: column for column, text in enumerate(self.answers)})

    @classmethod
    def fit(cls, signs: Sequence[Sequence[str]], answers: Sequence[str], seed: int = 0) -> "SignClassifier":
        """Learn from types whose signs are known.

        Args:
            signs: of each type.
            answers: its text, or its form.
            seed: of the weights and the order.

        Raises:
            ValueError: there is nothing to learn from.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.neural_network import MLPClassifier

        counts = Counter(answers)
        # In a small corpus everything is rare.
        least = min(_LEAST_TYPES, max(1, len(answers) // 100))
        rare = {text: count for text, count in counts.items() if count < least}
        vectorizer = CountVectorizer(
            analyzer=list, min_df=min(_LEAST_SIGNS, max(1, len(answers) // 100)), binary=True, dtype=np.float32
        )
        try:
            presence = vectorizer.fit_transform(signs)
        except ValueError as error:
            raise ValueError("no signs of types to learn from") from error
        steps = -(-len(answers) // BATCH_SIZE)
        classifier = MLPClassifier(
            (HIDDEN_UNITS,),
            batch_size=min(BATCH_SIZE, len(answers)),
            max_iter=max(EPOCHS, -(-LEAST_STEPS // steps)),
            random_state=seed,
        )
        with warnings.catch_warnings():
            # It is not meant to converge: later epochs are learned by heart.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(presence, [_REST if text in rare else text for text in answers])
        weights, biases = classifier.coefs_, classifier.intercepts_
        if weights[1].shape[1] == 1:
            # Of two answers scikit-learn keeps the second's logit alone; of one, a logit that means nothing.
            columns = len(classifier.classes_)
            weights[1] = np.column_stack([np.zeros_like(weights[1]), weights[1]])[:, :columns]
            biases[1] = np.array([0, *biases[1]], dtype=biases[1].dtype)[:columns]
        return cls(
            vectorizer.get_feature_names_out().tolist(),
            [str(text) for text in classifier.classes_],
            rare,
            weights[0],
            biases[0],
            weights[1],
            biases[1],
        )

    def log_p(self, signs: Sequence[Sequence[str]]) -> np.ndarray:
        """Log probability of each answer that is not rare and of all rare ones together, float64 (types, answers)."""
        return np.concatenate(
            [np.empty((0, len(self.answers)))]
            + [self._log_p(signs[begin : begin + _ROWS]) for begin in range(0, len(signs), _ROWS)]
        )

    def _log_p(self, signs: Sequence[Sequence[str]]) -> np.ndarray:
        from scipy.sparse import csr_array

        rows = [sorted({self._rows[sign] for sign in found if sign in self._rows}) for found in signs]
        ends = np.cumsum([0, *map(len, rows)])
        places = np.array([place for row in rows for place in row], dtype=np.int64)
        presence = csr_array((np.ones(len(places), dtype=np.float32), places, ends), (len(rows), len(self.signs)))
        hidden = np.maximum(presence @ self.sign_weights + self.sign_bias, 0)
        logits = (hidden @ self.answer_weights + self.answer_bias).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        return np.log(shares / shares.sum(axis=1, keepdims=True) + 1e-9)

    def places(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Where answers are found.

        Args:
            texts: types or forms.

        Returns:
            The column of each in `log_p`, int64, and the log of the share of it that is the answer's.
        """
        # Where no answer was rare, one that was not seen at all is given the share of an unseen one of the last column.
        rest, total = self._columns.get(_REST, -1), sum(self.rare.values()) + 1.0
        columns = np.array([self._columns.get(text, rest) for text in texts], dtype=np.int64)
        shares = [1.0 if text in self._columns else self.rare.get(text, _UNSEEN) / total for text in texts]
        return columns, np.log(shares)

    def save(self, path: Path) -> None:
        """Write as safetensors; texts stand in its metadata."""
        from safetensors.numpy import save_file

        texts = {"signs": list(self.signs), "answers": list(self.answers), "rare": self.rare}
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        save_file(tensors, path, {name: json.dumps(value) for name, value in texts.items()})

    @classmethod
    def load(cls, path: Path) -> "SignClassifier":
        """Read what `save` wrote.

        Raises:
            ValueError: the file is something else.
            OSError: it cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                texts = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
                rare = {str(text): int(count) for text, count in texts["rare"].items()}
                signs, answers = list(map(str, texts["signs"])), list(map(str, texts["answers"]))
                return cls(signs, answers, rare, *(file.get_tensor(name) for name in _TENSORS))
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: no classifier of signs ({type(error).__name__}: {reason})") from error
