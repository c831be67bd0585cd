"""The types that a hidden type is chosen from, and what a table of the training corpus says of them before code is read."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..chain_graphs.linking import LeafEncoder
from ..code_graph import Triple
from ..code_graph.annotations import HiddenType, declared_types
from ..code_graph.schema import RELATION_IDS
from ..kg_extraction.type_table import SHRINKAGE, word_of
from .base import TaskContext
from .queries import Query
from .type_queries import CLASS_NAME, type_names

FORM_PROJECTS, FORM_COUNT = 5, 40
"""What is made of a class's name (`X | None`) is a form where so many projects write it, so often."""
_UNSEEN = 0.1
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?![\w.])")
_GENERIC = frozenset(
    (
        *("Any", "Optional", "Union", "List", "Dict", "Tuple", "Set", "FrozenSet", "Type", "Callable", "Sequence"),
        *("Iterable", "Iterator", "Mapping", "MutableMapping", "Generator", "Collection", "Literal", "None", "True"),
        *("False", "Awaitable", "Coroutine", "AsyncIterator", "AsyncGenerator", "AsyncIterable", "Self", "NoReturn"),
    )
)


@dataclass
class DeclaredTypes:
    """The declared types of a corpus, and the names of types that its projects define.

    Attributes:
        triples: by project, the facts `has_type` of parameters and `returns`.
        names: by project, of classes and type aliases.
    """

    triples: dict[str, list[Triple]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def of(cls, context: TaskContext) -> "DeclaredTypes":
        """Those of the training corpus's Python files."""
        rows = context.training.rows.select_columns(["project", "language", "code"])
        found = cls()
        for row in context.progress(rows, "counting types", total=len(rows)):
            if row["language"] == "python":
                found.names[row["project"]].update(type_names(row["code"]))
                found.triples[row["project"]] += declared_types(row["code"])
        return found

    def without(self, projects: Collection[str]) -> "DeclaredTypes":
        """Those of the other projects."""
        kept = [project for project in self.triples if project not in projects]
        return DeclaredTypes(
            {name: self.triples[name] for name in kept}, {name: self.names.get(name, set()) for name in kept}
        )

    def forms(self) -> tuple[dict[str, Counter], Counter]:
        """How types are made of a name that their project defines.

        Returns:
            By relation the number of types of each form, "{}" where the name is the type, and the number of projects of
            each form. A type with two of the project's names is of no form.
        """
        counts, projects = defaultdict(Counter), defaultdict(set)
        for project, triples in self.triples.items():
            for triple in triples:
                form = form_of(triple.tail, self.names[project])
                if form is not None:
                    counts[triple.relation][form] += 1
                    projects[form].add(project)
        return counts, Counter({form: len(names) for form, names in projects.items()})


def form_of(text: str, names: Collection[str]) -> str | None:
    """A type's text with {} in place of the one name of the project in it.

    >>> form_of("dict[str, Node]", {"Node"}), form_of("int", {"Node"})
    ('dict[str, {}]', None)
    """
    if "{" in text or "}" in text:
        return None
    written = [word for word in _IDENTIFIER.findall(text) if word in names]
    return re.sub(rf"(?<![\w.]){written[0]}(?![\w.])", "{}", text, count=1) if len(written) == 1 else None


class Candidates:
    """The types to choose from, and how often the training corpus gives each to which name.

    Args:
        declared: the training corpus's types.
        encode: text to leaf tokens.
        max_tokens: of a candidate.
        min_count: times that the training corpus must write a type.
        project_classes: names of other files of the project are candidates too, not only of the file.
        class_forms: so are the forms of a name that the training corpus writes (`X | None`, `list[X]`).

    Attributes:
        types: text -> tokens, of the training corpus.
        forms: of names, the most frequent first; not "{}" itself.
        length_prior: by relation id, the log of the share of types with 1, 2, ... tokens.
    """

    def __init__(
        self,
        declared: DeclaredTypes,
        encode: LeafEncoder,
        max_tokens: int,
        min_count: int = 2,
        project_classes: bool = True,
        class_forms: bool = True,
    ):
        self._encode, self.max_tokens, self._project_classes = encode, max_tokens, project_classes
        triples = [triple for found in declared.triples.values() for triple in found]
        total = Counter(triple.tail for triple in triples)
        kept = (text for text, count in total.items() if count >= min_count)
        self.types = {text: tokens for text in sorted(kept) if (tokens := self._tokens(text)) is not None}
        if not self.types:
            raise ValueError(
                "the training corpus writes no type often enough to be a candidate; lower --type-min-count or give a "
                "corpus with annotations"
            )
        self._form_counts, projects = declared.forms()
        written = sum(self._form_counts.values(), Counter())
        often = [form for form, count in written.items() if projects[form] >= FORM_PROJECTS and count >= FORM_COUNT]
        often = sorted(set(often) - {"{}"}, key=lambda form: (-written[form], form))
        self.forms = often if class_forms else []
        self._count(declared)
        lengths = defaultdict(lambda: np.ones(max_tokens))
        for relation, counts in self._by_relation.items():
            for text, count in counts.items():
                lengths[RELATION_IDS[relation]][len(self.types[text]) - 1] += count
        self.length_prior = defaultdict(
            lambda: np.full(max_tokens, -np.log(max_tokens)),
            {relation: np.log(count / count.sum()) for relation, count in lengths.items()},
        )

    def _count(self, declared: DeclaredTypes) -> None:
        self._by_relation: dict[str, Counter] = defaultdict(Counter)
        self._by_name: dict[tuple[str, str], Counter] = defaultdict(Counter)
        # For the table: what any project may write, all together, by a word of the name and by the name.
        self._table: dict[tuple[str, ...], Counter] = defaultdict(Counter)
        self._declared = Counter()
        for project, found in declared.triples.items():
            for triple in found:
                relation, name, text = triple.relation, triple.head, triple.tail
                self._declared[relation] += 1
                if text not in self.types:
                    continue
                self._by_relation[relation][text] += 1
                self._by_name[relation, name][text] += 1
                if form_of(text, declared.names[project]) is None:
                    self._table[relation,][text] += 1
                    self._table[relation, "word", word_of(relation, name)][text] += 1
                    self._table[relation, "name", name][text] += 1

    def _tokens(self, text: str) -> list[int] | None:
        tokens = self._encode(text)
        return tokens if 1 <= len(tokens) <= self.max_tokens else None

    def of_queries(self, queries: list[Query]) -> list[dict[str, list[int]]]:
        """For each query the names of types of its file and project, and their forms, that are no candidates already.

        Returns:
            Texts with their tokens: names of the file, of the project, then forms. Queries of one file share one dict.
        """
        known: dict[str, list[int] | None] = {}
        by_file: dict[int, dict[str, list[int]]] = {}
        for query in queries:
            if query.file not in by_file:
                names = self._names(query)
                texts = [*names, *(form.format(name) for form in self.forms for name in names)]
                for text in texts:
                    if text not in known:
                        known[text] = None if text in self.types else self._tokens(text)
                by_file[query.file] = {text: known[text] for text in texts if known[text] is not None}
        return [by_file[query.file] for query in queries]

    def _names(self, query: Query) -> list[str]:
        return list(dict.fromkeys([*query.classes, *(query.project_classes if self._project_classes else ())]))

    def is_seen(self, hidden: HiddenType) -> bool:
        """Whether the training corpus gives this parameter or function name a candidate type."""
        return (hidden.relation, hidden.name) in self._by_name

    def baselines(self, queries: list[Query], own: list[dict]) -> dict[str, list[int]]:
        """Ranks of the hidden types under each baseline; a type that it does not list has rank `len(types)` or more."""
        ranks: dict[str, list[int]] = {
            "majority": [],
            "frequency for the name": [],
            "class of the name, else frequency": [],
        }
        common = {relation: _most_common(counts) for relation, counts in self._by_relation.items()}
        for query, names in zip(queries, own, strict=True):
            hidden = query.hidden
            majority = common.get(hidden.relation, [])
            by_name = _most_common(self._by_name.get((hidden.relation, hidden.name), Counter()))
            plain = hidden.name.replace("_", "").lower()
            named = [text for text in (*query.classes, *names, *self.types) if text.lower() == plain]
            named = [text for text in named if text in names or text in self.types]
            for name, answers in zip(ranks, ([], by_name, [*named, *by_name]), strict=True):
                answers = list(dict.fromkeys([*answers, *majority]))
                found = hidden.type in answers
                ranks[name].append(answers.index(hidden.type) if found else len(self.types) + len(names))
        return ranks

    # ---- the table

    FEATURES = ("table", "any file", "names of the file", "names of the project", "the name's spelling")
    """What is known of a candidate before code is read."""

    def features(self, queries: list[Query], own: list[dict]) -> Iterator[np.ndarray]:
        """What is known of each candidate of each query before code is read.

        Args:
            queries: what is asked.
            own: of `of_queries`.

        Yields:
            For each query float32 (candidates, FEATURES): the table's log-probability; whether the type has no name but
            those that any file may write, whether the file has all its names, or else the project; whether it is the name of
            the parameter or function, but for capitals and underscores.
        """
        places = {text: place for place, text in enumerate(self.types)}
        words = [_names_in(text) for text in self.types]
        plain = np.array([text.lower() for text in self.types])
        by_file: dict[int, tuple] = {}
        first = {relation: self._first_level(relation, places) for relation in ("has_type", "returns")}
        for query, names in zip(queries, own, strict=True):
            hidden = query.hidden
            if query.file not in by_file:
                by_file[query.file] = self._of_file(query, names, words)
            kinds, forms, own_plain = by_file[query.file]
            probability = first[hidden.relation].copy()
            for key in (
                (hidden.relation, "word", word_of(hidden.relation, hidden.name)),
                (hidden.relation, "name", hidden.name),
            ):
                counts = self._table.get(key)
                if counts:
                    total = counts.total() + SHRINKAGE
                    probability *= SHRINKAGE / total
                    at = [places[text] for text in counts]
                    probability[at] += np.fromiter(counts.values(), float) / total
            form_share = self._form_shares(hidden.relation, max(1, len(self._names(query))))
            log_p = np.log(np.concatenate([probability, form_share[forms]]))
            spelled = np.concatenate([plain, own_plain]) == hidden.name.replace("_", "").lower()
            yield np.column_stack([log_p, kinds, spelled]).astype(np.float32)

    def _first_level(self, relation: str, places: dict[str, int]) -> np.ndarray:
        counts = np.full(len(places), _UNSEEN)
        for text, count in self._table[relation,].items():
            counts[places[text]] += count
        return counts / (self._declared[relation] + _UNSEEN * len(places) + 1)

    def _form_shares(self, relation: str, number: int) -> np.ndarray:
        """Probability of a form ("{}" first) of one of so many names."""
        counts = self._form_counts.get(relation, Counter())
        shares = np.array([counts[form] + _UNSEEN for form in ("{}", *self.forms)])
        return shares / (self._declared[relation] + 1) / number

    def _of_file(self, query: Query, own: dict, words: list[frozenset]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is the same for all queries of a file: kinds of the candidates, forms and plain texts of its own ones."""
        of_file, of_project = set(query.classes), {*query.classes, *query.project_classes}
        own_words = [_names_in(text) for text in own]
        kinds = np.array(
            [
                (
                    not names,
                    bool(names) and names <= of_file,
                    bool(names) and not names <= of_file and names <= of_project,
                )
                for names in (*words, *own_words)
            ]
        )
        number = {form: place for place, form in enumerate(("{}", *self.forms))}
        forms = np.array([number.get(form_of(text, of_project) or "{}", 0) for text in own], dtype=np.int64)
        return kinds, forms, np.array([text.lower() for text in own])


def _names_in(text: str) -> frozenset[str]:
    """Names of classes in a type that not every file may write."""
    return frozenset(word for word in _IDENTIFIER.findall(text) if CLASS_NAME.fullmatch(word)) - _GENERIC


def _most_common(counts: Counter) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], text))
