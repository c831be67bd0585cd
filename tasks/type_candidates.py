"""The types that a hidden type is chosen from, and what is known of them before a model reads the code."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..chain_graphs.linking import LeafEncoder
from ..code_graph import Triple
from ..code_graph.annotations import HiddenType, declared_types
from ..code_graph.schema import RELATION_IDS
from ..code_graph.type_names import class_names_in, defined_types, form_of
from ..kg_extraction.type_table import SHRINKAGE, word_of
from .base import TaskContext
from .queries import Query
from .type_queries import plain

FORM_PROJECTS, FORM_COUNT = 5, 40
"""What is made of a class's name (`X | None`) is a form where so many projects write it, so often."""
_UNSEEN = 0.1


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
                found.names[row["project"]].update(defined_types(row["code"]))
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


@dataclass(frozen=True, eq=False)
class OwnTypes:
    """Candidates that a project or a file has of its own: names of types in all forms.

    Attributes:
        tokens: text -> tokens, of those that are not too long and no candidates of the training corpus.
        names: what they are made of.
        name: int64 (candidates,), the number of each one's name.
        form: int64 (candidates,), the number of its form, 0 for the name itself.
    """

    tokens: dict[str, list[int]]
    names: list[str]
    name: np.ndarray
    form: np.ndarray

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def by_name(self, values: Mapping[str, float]) -> np.ndarray:
        """Each candidate's value by its name, 0 for a name without one, float32 (candidates,)."""
        of_names = np.zeros(len(self.names), dtype=np.float32)
        for name in values.keys() & self._numbers.keys():
            of_names[self._numbers[name]] = values[name]
        return of_names[self.name]

    @cached_property
    def plain_names(self) -> np.ndarray:
        """The names without underscores and capitals."""
        return np.array([plain(name) for name in self.names], dtype=np.str_)

    @cached_property
    def by_plain(self) -> dict[str, list[str]]:
        """Names that are candidates, without underscores and capitals."""
        found = defaultdict(list)
        for name in self.names:
            if name in self.tokens:
                found[plain(name)].append(name)
        return found


Own = tuple[OwnTypes, ...]


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

    @cached_property
    def with_name(self) -> dict[str, list[int]]:
        """By name of a class that not every file may write, the places in `types` of those with it."""
        found = defaultdict(list)
        for place, text in enumerate(self.types):
            for name in class_names_in(text):
                found[name].append(place)
        return dict(found)

    def by_name(self, values: Mapping[str, float]) -> np.ndarray:
        """Each type's highest value by the names in it, 0 for a type without one, float32 (types,)."""
        found = np.zeros(len(self.types), dtype=np.float32)
        for name in values.keys() & self.with_name.keys():
            places = self.with_name[name]
            found[places] = np.maximum(found[places], values[name])
        return found

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

    def of_queries(self, queries: list[Query]) -> list[Own]:
        """For each query the candidates of its project, and those that its file names beside them."""
        encoded: dict[str, list[int] | None] = {}

        def made_of(names: list[str]) -> OwnTypes:
            tokens, places = {}, []
            for form_number, form in enumerate(("{}", *self.forms)):
                for number, name in enumerate(names):
                    text = form.format(name)
                    if text not in encoded:
                        encoded[text] = None if text in self.types else self._tokens(text)
                    if encoded[text] is not None and text not in tokens:
                        tokens[text] = encoded[text]
                        places.append((number, form_number))
            name_numbers, form_numbers = np.array(places, dtype=np.int64).reshape(-1, 2).T
            return OwnTypes(tokens, names, name_numbers, form_numbers)

        projects: dict[str, OwnTypes] = {}
        files: dict[int, Own] = {}
        for query in queries:
            if query.file not in files:
                names = list(query.project_classes) if self._project_classes else []
                if query.project not in projects:
                    projects[query.project] = made_of(names)
                known = set(names)
                rest = made_of([name for name in query.classes if name not in known])
                files[query.file] = projects[query.project], rest
        return [files[query.file] for query in queries]

    def is_seen(self, hidden: HiddenType) -> bool:
        """Whether the training corpus gives this parameter or function name a candidate type."""
        return (hidden.relation, hidden.name) in self._by_name

    def baselines(self, queries: list[Query], own: list[Own]) -> dict[str, list[int]]:
        """Ranks of the hidden types under each baseline; a type that it does not list has rank `len(types)` or more."""
        ranks: dict[str, list[int]] = {
            "majority": [],
            "frequency for the name": [],
            "class of the name, else frequency": [],
        }
        common = {relation: _most_common(counts) for relation, counts in self._by_relation.items()}
        shared = defaultdict(list)
        for text in self.types:
            shared[plain(text)].append(text)
        for query, parts in zip(queries, own, strict=True):
            hidden = query.hidden
            majority = common.get(hidden.relation, [])
            by_name = _most_common(self._by_name.get((hidden.relation, hidden.name), Counter()))
            spelled = plain(hidden.name)
            named = [*(text for part in parts for text in part.by_plain.get(spelled, ())), *shared.get(spelled, ())]
            named.sort(key=lambda text: text not in query.classes)
            for name, answers in zip(ranks, ([], by_name, [*named, *by_name]), strict=True):
                answers = list(dict.fromkeys([*answers, *majority]))
                found = hidden.type in answers
                number = len(self.types) + sum(len(part.tokens) for part in parts)
                ranks[name].append(answers.index(hidden.type) if found else number)
        return ranks

    # ---- the table

    FEATURES = (
        "table",
        "any file",
        "names of the file",
        "names of the project",
        "the name's spelling",
        "the name in the project",
    )
    """What is known of a candidate before a model reads the code."""

    def features(self, queries: list[Query], own: list[Own]) -> Iterator[np.ndarray]:
        """What is known of each candidate of each query before a model reads the code.

        Args:
            queries: what is asked.
            own: of `of_queries`.

        Yields:
            For each query float32 (candidates, FEATURES): the table's log-probability; whether the type has no name but
            those that any file may write, whether the file has all its names, or else the project; whether it is the name of
            the parameter or function, but for capitals and underscores; the log of one more than how often the project makes
            or checks a class of it under this name (`uses_of_names`).
        """
        places = {text: place for place, text in enumerate(self.types)}
        words = [class_names_in(text) for text in self.types]
        shared_plain = np.array([plain(text) for text in self.types])
        kinds: dict[int, np.ndarray] = {}
        first = {relation: self._first_level(relation, places) for relation in ("has_type", "returns")}
        for query, parts in zip(queries, own, strict=True):
            hidden, spelled = query.hidden, plain(query.hidden.name)
            if query.file not in kinds:
                kinds[query.file] = self._kinds(query, parts, words)
            probability = first[hidden.relation].copy()
            for key in (
                (hidden.relation, "word", word_of(hidden.relation, hidden.name)),
                (hidden.relation, "name", hidden.name),
            ):
                counts = self._table.get(key)
                if counts:
                    total = counts.total() + SHRINKAGE
                    probability *= SHRINKAGE / total
                    probability[[places[text] for text in counts]] += np.fromiter(counts.values(), float) / total
            shares = self._form_shares(hidden.relation, max(1, sum(len(part.names) for part in parts)))
            is_spelled = [shared_plain == spelled]
            for part in parts:
                is_spelled.append((part.form == 0) & (part.plain_names == spelled)[part.name])
            log_p = np.log(np.concatenate([probability, *(shares[part.form] for part in parts)]))
            used = query.project_uses.get(spelled, {})
            in_uses = [part.by_name(used) for part in (self, *parts)]
            columns = [log_p, kinds[query.file], np.concatenate(is_spelled), np.log1p(np.concatenate(in_uses))]
            yield np.column_stack(columns).astype(np.float32)

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

    @staticmethod
    def _kinds(query: Query, parts: Own, words: list[frozenset]) -> np.ndarray:
        """Whether candidates are of any file, of the query's file, or else of its project: bool (candidates, 3)."""
        of_file, of_project = set(query.classes), {*query.classes, *query.project_classes}
        in_file = [names <= of_file for names in words]
        in_project = [names <= of_project for names in words]
        for part in parts:
            in_file += np.array([name in of_file for name in part.names], dtype=bool)[part.name].tolist()
            in_project += [True] * len(part.name)
        is_plain = np.array([*(not names for names in words), *[False] * (len(in_file) - len(words))])
        in_file, in_project = np.array(in_file) & ~is_plain, np.array(in_project) & ~is_plain
        return np.stack([is_plain, in_file, in_project & ~in_file], axis=1)


def _most_common(counts: Counter) -> list[str]:
    return sorted(counts, key=lambda text: (-counts[text], text))
