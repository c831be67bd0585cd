"""Names that mean the same thing in every file: `module.Class.method` in place of `method`.

The code graph says which definition holds which (`contains`, `has_parameter`, `has_field`, `declares`); from the module
inwards that gives each definition its full name. What a file imports is followed through the project's files to the
definition. Names that nothing explains stay what they are.
"""

import builtins
import re
from bisect import bisect_right
from pathlib import PurePosixPath

from ..code_graph import ProjectIndex, Triple
from ..code_graph.facts import DOTTED_NAME
from ..code_graph.scopes import Symbol
from ..code_graph.type_names import one_line
from .project import CodeFile

_HOLDS = ("contains", "has_parameter", "has_field", "declares")
_FUNCTION_HEADS = ("calls", "instantiates", "declares", "has_parameter", "returns")
_TYPES = ("has_type", "returns")
_BUILTINS = frozenset(dir(builtins))
_WORD = re.compile(r"[^\W\d][\w.]*")
_ALIAS = re.compile(r"([^\W\d]\w*)\s+as\s+$")

FUNCTION, CLASS, PARAMETER, VARIABLE, FIELD, IMPORTED = (
    "function",
    "class",
    "parameter",
    "variable",
    "field",
    "import",
)

Span = tuple[int, int]


def module_of(path: str, index: ProjectIndex | None) -> str:
    """Dotted name of the module that a file holds; without an index its path with dots."""
    if index is not None:
        return index.module_of(path)
    return ".".join(PurePosixPath(path).with_suffix("").parts)


class FileEntities:
    """The full names of what one file defines and mentions.

    Args:
        file: the file.
        index: the index of its project's files; None where there is none for its language.

    Attributes:
        module: dotted name of the file's module.
        kinds: kind of each definition by its span: function, class, parameter, variable, field or import.
        imported: what each imported local name stands for, as a full dotted name.
    """

    def __init__(self, file: CodeFile, index: ProjectIndex | None):
        self.file, self.index = file, index
        self.module = module_of(file.path, index)
        self.kinds: dict[Span, str] = {}
        self.imported: dict[str, str] = {}
        self._name: dict[Span, str] = {}
        self._holder: dict[Span, Span] = {}
        self._inside: dict[tuple[Span | None, str], Span] = {}
        self._full: dict[Span, str] = {}
        self._at_use: dict[Span, str] = {}
        self._callee: dict[Span, str] = {}
        self._read_definitions()
        self._read_uses()

    def _read_definitions(self) -> None:
        order = {name: number for number, name in enumerate(_HOLDS)}
        stated = [triple for triple in self.file.graph.triples if not triple.is_use]
        for triple in sorted(stated, key=lambda triple: order.get(triple.relation, len(order))):
            head = (triple.head_start, triple.head_end)
            tail = None if triple.tail_start is None else (triple.tail_start, triple.tail_end)
            relation = triple.relation
            if relation in ("imports", "imported_from"):
                self._define(head, triple.head, IMPORTED)
                member = self._imported_name(triple) if relation == "imported_from" else ""
                # `from . import a` names the package itself by its dots.
                joint = "." if member and not triple.tail.endswith(".") else ""
                self.imported.setdefault(triple.head, self._absolute(triple.tail + joint + member))
                continue
            if relation in ("inherits", "has_field"):
                self._define(head, triple.head, CLASS)
            elif relation in _FUNCTION_HEADS:
                self._define(head, triple.head, FUNCTION)
            elif relation == "contains":
                self._define(head, triple.head, CLASS)
            elif relation in ("has_type", "flows_to"):
                self._define(head, triple.head, VARIABLE)
            if tail is not None and relation in _HOLDS:
                kind = {"has_parameter": PARAMETER, "has_field": FIELD, "declares": VARIABLE}.get(relation, FUNCTION)
                self._define(tail, triple.tail, kind)
                if tail != head:
                    self._holder.setdefault(tail, head)
        # Relations that only a function heads overrule "contains", which says of neither end what it is.
        for triple in stated:
            head = (triple.head_start, triple.head_end)
            if triple.relation in _FUNCTION_HEADS:
                self.kinds[head] = FUNCTION
            elif triple.relation in ("inherits", "has_field"):
                self.kinds[head] = CLASS
        for span, name in self._name.items():
            self._inside.setdefault((self._holder.get(span), name), span)
        self._functions = sorted(span for span, kind in self.kinds.items() if kind in (FUNCTION, CLASS))
        self._starts = [span[0] for span in self._functions]

    def _imported_name(self, triple: Triple) -> str:
        """`from m import a as b`: the text between says that `b` is `a` of `m`."""
        before = self.file.code[max(0, triple.head_start - 200) : triple.head_start]
        match = _ALIAS.search(before)
        return triple.head if match is None else match.group(1)

    def _define(self, span: Span, name: str, kind: str) -> None:
        self._name.setdefault(span, name)
        self.kinds.setdefault(span, kind)

    def _read_uses(self) -> None:
        for triple in self.file.graph.triples:
            if triple.tail_start is None:
                continue
            tail = (triple.tail_start, triple.tail_end)
            if triple.is_use and triple.relation in ("has_parameter", "has_field", "contains"):
                owner = self.definition((triple.head_start, triple.head_end), triple.head)
                self._at_use.setdefault(tail, f"{owner}.{triple.tail}")
            elif triple.relation in ("calls", "instantiates"):
                self._callee.setdefault(tail, self.callee(triple))

    def definition(self, span: Span, name: str) -> str:
        """Full name of what is defined at a span."""
        found = self._full.get(span)
        if found is None:
            if self.kinds.get(span) == IMPORTED:
                found = self.imported[name]
            else:
                holder = self._holder.get(span)
                # A definition that seems to hold itself (broken text) ends the chain.
                self._full[span] = f"{self.module}.{name}"
                outer = self.module if holder is None else self.definition(holder, self._name[holder])
                found = f"{outer}.{name}" if outer else name
            self._full[span] = found
        return found

    def head(self, triple: Triple) -> str:
        """Full name of a triple's head."""
        span = (triple.head_start, triple.head_end)
        if triple.is_use:
            if span in self._at_use:
                return self._at_use[span]
            if triple.relation == "returns" and span in self._callee:
                return self._callee[span]
            if span in self.kinds:
                return self.definition(span, triple.head)
            return self.mention(triple.head, triple.head_start)
        if triple.relation == "flows_to" and span not in self._holder:
            return self.mention(triple.head, triple.head_start)
        return self.definition(span, triple.head)

    def tail(self, triple: Triple) -> str:
        """Full name of a triple's tail; the text of a type that is no single name."""
        if triple.relation in ("imports", "imported_from"):
            # `from . import a` in a directory that is no package: the dot stays, an empty name would be none.
            return self._absolute(triple.tail) or triple.tail
        if triple.relation in _TYPES:
            return self.type_name(triple.tail)
        if triple.relation in ("calls", "instantiates"):
            return self.callee(triple)
        if triple.relation == "inherits" or triple.tail_start is None:
            return self.named(triple.tail)
        span = (triple.tail_start, triple.tail_end)
        if span in self._at_use:
            return self._at_use[span]
        if triple.relation == "flows_to" and span not in self._holder:
            return self.mention(triple.tail, triple.tail_start)
        return self.definition(span, triple.tail)

    def callee(self, triple: Triple) -> str:
        """Full name of what a call calls; `x.read()` on an unknown `x` is no function `read` of the file."""
        start = triple.tail_start
        if start and "." not in triple.tail and self.file.code[start - 1] == "." and self.file.language == "python":
            return triple.tail
        return self.named(triple.tail)

    def type_name(self, text: str) -> str:
        """A type with every name in it in full: `list[Node]` is `list[app.tree.Node]` where the file imports it so."""
        text = one_line(text)
        return _WORD.sub(
            lambda match: self.named(match.group()) if self._is_known(match.group()) else match.group(), text
        )

    def _is_known(self, dotted: str) -> bool:
        first = dotted.partition(".")[0]
        return first in self.imported or (None, first) in self._inside

    def named(self, dotted: str) -> str:
        """Full name of what the file calls by a dotted name, resolved as the code graph states callees and bases."""
        if not DOTTED_NAME.match(dotted.lstrip(".")):
            return dotted
        first, _, rest = dotted.partition(".")
        if dotted.startswith("."):
            return self._follow(dotted)
        if (None, first) in self._inside and self.kinds[self._inside[None, first]] != IMPORTED:
            return f"{self.module}.{dotted}" if self.module else dotted
        if first in self.imported:
            return self._follow(f"{self.imported[first]}{'.' if rest else ''}{rest}")
        if first in _BUILTINS or not rest:
            return dotted
        return self._follow(dotted)

    def mention(self, name: str, offset: int) -> str:
        """Full name of a plain name that is read or bound at a place: looked for in the definitions around it."""
        at = bisect_right(self._starts, offset) - 1
        span: Span | None = self._functions[at] if at >= 0 else None
        while span is not None:
            found = self._inside.get((span, name))
            if found is not None:
                return self.definition(found, name)
            span = self._holder.get(span)
        found = self._inside.get((None, name))
        if found is not None:
            return self.definition(found, name)
        return f"{self.module}.{name}" if self.module else name

    def _absolute(self, dotted: str) -> str:
        return dotted if self.index is None else self.index.absolute(self.module, dotted)

    def _follow(self, dotted: str) -> str:
        """A dotted name through the files that pass it on, to where it is defined."""
        absolute = self._absolute(dotted)
        found = None if self.index is None else self.index.find(self.module, dotted)
        if found is None or isinstance(found[0], Symbol):
            return absolute
        target, rest = found
        outline = target
        while outline.parent is not None:
            outline = outline.parent
        return ".".join([part for part in (outline.module, target.qualified) if part] + list(rest))
