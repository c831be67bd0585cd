"""What to ask: pairs of names that may have a relation, heads that may have a tail, and the names that tails may be."""

import builtins
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..code_graph.annotations import PARAMETER as PARAMETER_SLOT
from ..code_graph.annotations import RELATION_OF, Slot, find_slots
from ..code_graph.type_names import defined_classes, type_aliases
from .entities import CLASS, FIELD, FUNCTION, IMPORTED, PARAMETER, VARIABLE, FileEntities
from .project import Corpus

HEAD_KINDS: dict[str, tuple[str, ...]] = {
    "calls": (FUNCTION,),
    "declares": (FUNCTION,),
    "instantiates": (FUNCTION,),
    "contains": (CLASS, FUNCTION),
    "has_field": (CLASS,),
    "has_type": (PARAMETER, VARIABLE, FIELD),
    "inherits": (CLASS,),
    "has_parameter": (FUNCTION,),
    "returns": (FUNCTION,),
    "imported_from": (IMPORTED,),
    "imports": (IMPORTED,),
    "flows_to": (PARAMETER, VARIABLE),
}
"""What the head of each relation may be."""

TAIL_RELATIONS = ("has_type", "returns", "calls", "instantiates", "inherits")
"""Relations whose tail may be unknown; of the others the parser sees every tail there is."""
TAIL_LANGUAGES = ("python",)
"""Languages whose tails are asked for: of the others it is not known which names every file can use."""

# Names that every file can use in a type, and names that `typing` and `collections.abc` give.
BUILTIN_TYPES = (
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "None",
    "object",
)
BUILTIN_TYPES += ("range", "set", "slice", "str", "tuple", "type", "BaseException", "Exception")
TYPING_TYPES = ("Any", "ClassVar", "Final", "Literal", "NoReturn", "TextIO", "BinaryIO", "IO")
ABC_TYPES = ("AsyncIterator", "AsyncGenerator", "Awaitable", "Callable", "Collection", "Coroutine", "Generator")
ABC_TYPES += ("Hashable", "Iterable", "Iterator", "Mapping", "MutableMapping", "Sequence")
_ELEMENTS = ("str", "int", "float", "bytes", "bool", "object", "Any")
_CONTAINERS = ("list", "set", "tuple", "Iterable", "Iterator", "Sequence", "Collection", "Generator")
_CLASS_WORD = re.compile(r"_*[A-Z]")
_MAX_DISTANT_CLASSES = 2000
MAX_USES = 16


@dataclass(frozen=True)
class Head:
    """A name that a tail is asked for.

    Attributes:
        name: as written.
        start, end: its span at the definition.
        entity: its full name.
        kind: what it is.
        slot: where it may be annotated, if it may.
        uses: (number of the file, start, end) of places that read or call it.
    """

    name: str
    start: int
    end: int
    entity: str
    kind: str
    slot: Slot | None = None
    uses: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two names of one window: does the head have a relation to the tail?

    Attributes:
        head_start, head_end: characters of the head.
        head, tail: full names.
        head_name: the head as written; `tail_name` the text of the leaf.
    """

    head_start: int
    head_end: int
    head: str
    head_name: str
    head_kind: str
    tail: str
    tail_name: str


def type_forms(names: Iterable[str]) -> list[str]:
    """Each name as a type by itself, optional, and as the element of a list."""
    return [form for name in names for form in (name, f"{name} | None", f"list[{name}]")]


def common_types() -> list[str]:
    """Types that need nothing but builtins, `typing` and `collections.abc`."""
    types = [*BUILTIN_TYPES, *TYPING_TYPES, *ABC_TYPES]
    types += [f"{name} | None" for name in (*BUILTIN_TYPES, "Callable", "Any", "Iterable", "Mapping", "Sequence")]
    for container in _CONTAINERS:
        types += [f"{container}[{element}]" for element in _ELEMENTS]
    types += [f"dict[{key}, {value}]" for key in ("str", "int") for value in _ELEMENTS]
    types += [
        "dict[str, Any] | None",
        "dict[str, str] | None",
        "list[str] | None",
        "tuple[str, ...]",
        "tuple[int, ...]",
    ]
    types += ["tuple[str, str]", "tuple[int, int]", "list[dict[str, Any]]", "Mapping[str, Any]", "Mapping[str, str]"]
    types += [
        "Callable[..., Any]",
        "Callable[..., None]",
        "Callable[[], None]",
        "str | bytes",
        "int | float",
        "type[Any]",
    ]
    # Spellings that older code knows; they are counted with those above.
    types += [f"Optional[{name}]" for name in ("str", "int", "float", "bool", "bytes", "Any")]
    types += ["List[str]", "List[int]", "Dict[str, Any]", "Dict[str, str]", "Tuple[int, int]", "Optional[List[str]]"]
    return [text for text in dict.fromkeys(types) if text not in ("None | None", "Any | None")]


class Names:
    """The names that occur in each project of a corpus, by what they are.

    Args:
        corpus: the files.
        entities: the `FileEntities` of each file, in order.
    """

    def __init__(self, corpus: Corpus, entities: list[FileEntities]):
        self.corpus, self.entities = corpus, entities
        self._tails: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self._defined: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for file, known in zip(corpus.files, entities, strict=True):
            if file.language not in TAIL_LANGUAGES:
                continue
            for triple in file.graph.triples:
                if not triple.is_use:
                    self._tails[file.project, triple.relation].setdefault(triple.tail)
            for span, kind in known.kinds.items():
                if kind in (FUNCTION, CLASS):
                    name = file.code[span[0] : span[1]]
                    self._defined[file.project, kind].setdefault(name)
        self._read_places: dict[int, dict] = {}
        self._call_places: dict[str, dict] = {}
        self._own_classes = [self._classes_in(number) for number in range(len(corpus.files))]
        self._classes: dict[str, list[str]] = defaultdict(list)
        for file, names in zip(corpus.files, self._own_classes, strict=True):
            if file.language in TAIL_LANGUAGES:
                self._classes[file.project] += [name for name in names if _CLASS_WORD.match(name)]
        self._classes = {project: list(dict.fromkeys(names)) for project, names in self._classes.items()}

    def _classes_in(self, number: int) -> list[str]:
        """Classes that a file defines; in Python also those without a fact, and type aliases."""
        file, known = self.corpus.files[number], self.entities[number]
        names = [file.code[a:b] for (a, b), kind in known.kinds.items() if kind == CLASS]
        if file.language == "python":
            # What is assigned and written in capitals alone is a constant or a type variable.
            names += sorted(defined_classes(file.code))
            names += sorted(name for name in type_aliases(file.code) if not name.isupper())
        return list(dict.fromkeys(names))

    def visible_classes(self, number: int) -> list[str]:
        """Classes that a file defines or imports, as the file would name them."""
        known = self.entities[number]
        classes = self._classes.get(self.corpus.files[number].project, ())
        here = self._own_classes[number]
        imported = [name for name in known.imported if _CLASS_WORD.match(name) and not name.isupper()]
        inside = set(classes)
        return list(dict.fromkeys([*here, *(name for name in known.imported if name in inside), *imported]))

    def tails(self, number: int, relation: str) -> list[str]:
        """What the tail of a relation may be in a file: names of the project, builtins and what the file imports.

        Args:
            number: of the file.
            relation: name of the relation.

        Returns:
            Distinct texts, written as the code graph writes tails.
        """
        file, known = self.corpus.files[number], self.entities[number]
        seen = self._tails[file.project, relation]
        if relation in ("has_type", "returns"):
            annotated = [*self._tails[file.project, "has_type"], *self._tails[file.project, "returns"]]
            distant = self._classes.get(file.project, [])[:_MAX_DISTANT_CLASSES]
            classes = type_forms(dict.fromkeys([*self.visible_classes(number), *distant]))
            return list(dict.fromkeys([*common_types(), *classes, *annotated]))
        wanted = CLASS if relation in ("instantiates", "inherits") else FUNCTION
        own = [
            known.definition(span, file.code[span[0] : span[1]]).removeprefix(f"{known.module}.")
            for span, kind in known.kinds.items()
            if kind == wanted
        ]
        is_class = wanted == CLASS
        imported = [
            dotted
            for name, dotted in known.imported.items()
            if bool(_CLASS_WORD.match(name)) == is_class or relation == "calls"
        ]
        builtin = [
            name
            for name in dir(builtins)
            if not name.startswith("_") and isinstance(getattr(builtins, name), type) == is_class
        ]
        return list(dict.fromkeys([*seen, *own, *imported, *builtin, *self._defined[file.project, wanted]]))

    def slot_head(self, number: int, slot: Slot) -> Head:
        """A parameter or function whose type is asked, with the places that read or call it."""
        entity = self.entities[number].definition((slot.start, slot.end), slot.name)
        if slot.kind == PARAMETER_SLOT:
            uses = tuple((number, *span) for span in self._reads(number).get((slot.start, slot.end), ()))
            return Head(slot.name, slot.start, slot.end, entity, PARAMETER, slot, uses)
        project = self.corpus.files[number].project
        return Head(slot.name, slot.start, slot.end, entity, FUNCTION, slot, self._calls(project).get(entity, ()))

    def _reads(self, number: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Where a file reads each parameter, by the parameter's span."""
        if number not in self._read_places:
            triples = [t for t in self.corpus.files[number].graph.triples if t.relation == "has_parameter"]
            spans = {(t.head_start, t.tail): (t.tail_start, t.tail_end) for t in triples if not t.is_use}
            found = self._read_places[number] = defaultdict(list)
            for triple in triples:
                span = spans.get((triple.head_start, triple.tail))
                if triple.is_use and span is not None:
                    found[span].append((triple.tail_start, triple.tail_end))
        return self._read_places[number]

    def _calls(self, project: str) -> dict[str, tuple[tuple[int, int, int], ...]]:
        """Where a project calls each function, by its full name."""
        if project not in self._call_places:
            found: dict[str, tuple] = {}
            for number, file in enumerate(self.corpus.files):
                if file.project != project:
                    continue
                for triple in file.graph.triples:
                    if triple.relation == "calls" and triple.tail_start is not None:
                        place = (number, triple.tail_start, triple.tail_end)
                        entity = self.entities[number].callee(triple)
                        found[entity] = (*found.get(entity, ()), place)[:MAX_USES]
            self._call_places[project] = found
        return self._call_places[project]

    def heads(self, number: int, relation: str) -> list[Head]:
        """The definitions of a file whose tail under a relation may be asked; none in languages without known names.

        For `has_type` and `returns` these are the parameters and functions without an annotation; for the others all
        definitions of the right kind.
        """
        file, known = self.corpus.files[number], self.entities[number]
        if file.language not in TAIL_LANGUAGES:
            return []
        if relation in ("has_type", "returns"):
            return [
                self.slot_head(number, slot)
                for slot in find_slots(file.code)
                if RELATION_OF[slot.kind] == relation and slot.annotation is None and not slot.is_instance
            ]
        stated = {(t.head_start, t.head_end) for t in file.graph.triples if t.relation == relation and not t.is_use}
        heads = []
        for (start, end), kind in sorted(known.kinds.items()):
            is_open = relation != "inherits" or (start, end) not in stated
            if kind in HEAD_KINDS[relation] and is_open:
                name = file.code[start:end]
                heads.append(Head(name, start, end, known.definition((start, end), name), kind))
        return heads

    def pairs(
        self, window: int, relations: Iterable[str], max_pairs: int, max_distance: int
    ) -> tuple[list[Pair], int]:
        """Pairs of names in a window between which the parser has seen no fact, the nearest first.

        Args:
            window: its number.
            relations: a head must be of a kind that one of them allows.
            max_pairs: at most so many.
            max_distance: characters between the two names at most.

        Returns:
            The pairs, and how many more there were.
        """
        here = self.corpus.windows[window]
        file, known = self.corpus.files[here.file], self.entities[here.file]
        if here.end <= here.start:
            return [], 0
        low = int(file.columns["char_starts"][here.start])
        high = int(file.columns["char_ends"][here.end - 1])
        stated = self._stated(here.file)
        allowed = {kind for relation in relations for kind in HEAD_KINDS[relation]}
        spans = [
            (start, end, kind, known.definition((start, end), file.code[start:end]), file.code[start:end])
            for (start, end), kind in known.kinds.items()
            if low <= start and end <= high and start < end
        ]
        tails = [(start, entity, name) for start, _, _, entity, name in spans]
        tails += [(start, entity, name) for start, entity, name in self._mentions[here.file] if low <= start < high]
        found: dict[tuple[str, str], tuple[int, Pair]] = {}
        for start, end, kind, entity, name in spans:
            if kind not in allowed:
                continue
            for tail_start, tail_entity, tail_name in tails:
                distance = abs(tail_start - start)
                key = (entity, tail_entity)
                if not 0 < distance <= max_distance or entity == tail_entity or key in stated or key[::-1] in stated:
                    continue
                if key not in found or distance < found[key][0]:
                    found[key] = (distance, Pair(start, end, entity, name, kind, tail_entity, tail_name))
        nearest = sorted(found.values(), key=lambda item: (item[0], item[1].head_start, item[1].tail))
        return [pair for _, pair in nearest[:max_pairs]], max(0, len(nearest) - max_pairs)

    def _stated(self, number: int) -> set[tuple[str, str]]:
        """Pairs of full names that some extracted fact of a file joins; also fills `_mentions`."""
        if not hasattr(self, "_stated_pairs"):
            self._stated_pairs: dict[int, set[tuple[str, str]]] = {}
            self._mentions: dict[int, list[tuple[int, str, str]]] = {}
        if number not in self._stated_pairs:
            file, known = self.corpus.files[number], self.entities[number]
            pairs, mentions = set(), []
            for triple in file.graph.triples:
                tail = known.tail(triple)
                pairs.add((known.head(triple), tail))
                if triple.tail_start is not None and triple.relation in (
                    "calls",
                    "instantiates",
                    "inherits",
                    "has_type",
                ):
                    mentions.append((triple.tail_start, tail, triple.tail))
            self._stated_pairs[number], self._mentions[number] = pairs, list(dict.fromkeys(mentions))
        return self._stated_pairs[number]
