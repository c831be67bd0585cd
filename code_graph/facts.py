"""From scopes to triples: resolves names, members and callees, and states the facts. Knows no language.

All scopes of a file are complete when this begins. Facts at definitions come from what each scope binds, facts at
uses from what it reads; both are stated in the order of the text.
"""

import re
from collections.abc import Callable, Collection, Hashable
from itertools import islice

from .flow import Definition
from .graph import Triple
from .project import Outline, ProjectIndex
from .schema import (
    CALLS,
    CONTAINS,
    DECLARES,
    FLOWS_TO,
    HAS_FIELD,
    HAS_PARAMETER,
    HAS_TYPE,
    IMPORTED_FROM,
    IMPORTS,
    INHERITS,
    INSTANTIATES,
    RETURNS,
)
from .scopes import (
    BLOCK,
    CLASS,
    DEFINITION,
    FUNCTION,
    IMPORT,
    LAMBDA,
    MEMBER_IMPORT,
    PARAMETER,
    VARIABLE,
    Scope,
    Span,
    Symbol,
)

# A name that is written like a class: no underscore but leading ones, first letter a capital.
CLASS_NAME = re.compile(r"_*[A-Z][^_]*\Z")
DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")
MAX_BASES = 64  # classes searched for one inherited member
PARENT = "super()"
METHOD_MARK = "()"  # ends the keys of functions and methods where variables have a name space of their own


class Resolver:
    """States the facts of one file.

    Args:
        scopes: every scope of the file, outer ones before inner ones.
        builtin_names: names that every scope can read without binding them.
        builtin_classes: those of them that are classes.
        project: the files of the project, to follow imported names into; None leaves them where the file ends.
        module: the file's own dotted name in the project.
        type_name: finds in the text of a type the class whose members its values have: the whole, or group 1.
        has_creations: expressions say themselves that they make an instance, so that a plain call never does.
    """

    def __init__(
        self,
        scopes: list[Scope],
        builtin_names: Collection[str],
        builtin_classes: Collection[str],
        project: ProjectIndex | None = None,
        module: str = "",
        type_name: re.Pattern = DOTTED_NAME,
        has_creations: bool = False,
    ):
        self.scopes = scopes
        self.builtin_names = builtin_names
        self.builtin_classes = builtin_classes
        self.project = project
        self.module = module
        self.type_name = type_name
        self.has_creations = has_creations
        self.triples: list[Triple] = []
        self.num_skipped: dict[str, int] = {}
        self._members: dict[tuple[int, str], tuple[Scope, Symbol | None] | None] = {}
        self._bases: dict[int, list[Scope]] = {}

    def state(self) -> list[Triple]:
        """All facts of the file, in the order of the text and without duplicates."""
        self.complete_fields()
        for scope in self.scopes:
            self._at_definition(scope)
            self._at_names(scope)
            self._at_attributes(scope)
            self._at_calls(scope)
            self._at_creations(scope)
            if scope.parent is None or scope.flow is not scope.parent.flow:
                self._flows(scope)
        return sorted(dict.fromkeys(self.triples), key=_position)

    def _skip(self, reason: str, count: int = 1) -> None:
        if count:
            self.num_skipped[reason] = self.num_skipped.get(reason, 0) + count

    # Classes and their members

    def complete_fields(self) -> None:
        """Fills in the fields of all classes."""
        for scope in self.scopes:
            if scope.kind == CLASS:
                self._own_fields(scope)
        for scope in self.scopes:
            self._written_fields(scope)

    def _own_fields(self, scope: Scope) -> None:
        for name, symbol in scope.names.items():
            if symbol.variable is not None:
                scope.fields[name] = (symbol.variable, symbol.annotation)

    def _written_fields(self, scope: Scope) -> None:
        """Adds the attributes that methods write on their instance to the fields of its class."""
        for owner_name, name, start, end, annotation in scope.field_writes:
            owner = scope.lookup(owner_name)
            if owner is None or owner.instance_of is None:
                continue
            fields = owner.instance_of.fields
            span, known = fields.get(name, ((name, start, end), None))
            is_declared = self.has_creations and name in owner.instance_of.names
            fields[name] = ((name, start, end) if start < span[1] and not is_declared else span, known or annotation)
            if annotation is not None:
                self._fact((name, start, end), HAS_TYPE, annotation)

    def _bases_of(self, scope: Scope) -> list[Scope]:
        """The base classes of a class that this file or its project defines."""
        found = self._bases.get(id(scope))
        if found is None:
            self._bases[id(scope)] = []  # a class that inherits from itself ends here
            found = []
            for parts, _, _ in scope.bases:
                target = self.resolve(scope.parent, parts)[1]
                if target is not None and target.kind == CLASS and target is not scope:
                    found.append(target)
            self._bases[id(scope)] = found
        return found

    def member(self, owner: Scope, name: str) -> tuple[Scope, Symbol | None] | None:
        """The class that gives `owner` the member `name`, and the member's symbol where it is a method or class."""
        key = (id(owner), name)
        if key in self._members:
            return self._members[key]
        queue, seen = [owner], {id(owner)}
        result = None
        for scope in queue:
            symbol = scope.names.get(name)
            if symbol is not None and symbol.definitions:
                result = (scope, symbol)
                break
            if name in scope.fields:
                result = (scope, None)
                break
            for base in self._bases_of(scope):
                if id(base) not in seen and len(seen) < MAX_BASES:
                    seen.add(id(base))
                    queue.append(base)
        self._members[key] = result
        return result

    # Resolution

    def lookup(self, scope: Scope, name: str) -> Symbol | None:
        """The symbol that `name` means when `scope` reads it, members inherited by the classes around it included."""
        symbol = scope.lookup(name)
        around: Scope | None = scope
        while symbol is None and isinstance(around, Scope):
            if around.is_open:
                found = self.member(around, name)
                symbol = None if found is None else found[0].names.get(name)
            around = around.parent
        return symbol

    def resolve(self, scope: Scope | None, parts: tuple[str | None, ...]) -> tuple[str, Scope | None]:
        """What a dotted name stands for.

        Args:
            scope: the scope that reads it.
            parts: its parts; the first is None where it is an expression, "super()" where it is the parent class.

        Returns:
            Its text, qualified as far as the file resolves it, and the function or class of this file or its project
            that it names, or None.
        """
        first, last = parts[0], parts[-1]
        if first is None or scope is None:
            return last, None
        if first == PARENT:
            owner = self._class_around(scope)
            for base in self._bases_of(owner) if owner is not None else ():
                found = self._walk(base, parts[1:])
                if found is not None:
                    return found
            return last, None
        symbol = self.lookup(scope, first)
        if symbol is None:
            return (".".join(parts) if first in self.builtin_names else last), None
        if symbol.kind in (IMPORT, MEMBER_IMPORT):
            text = ".".join((symbol.imported, *parts[1:]))
            return text, self._elsewhere(symbol.scope, text)
        if symbol.definitions:
            target = symbol.definitions[0]
            if len(parts) == 1:
                return target.qualified, target
            if target.kind == CLASS:
                found = self._walk(target, parts[1:])
                return found if found is not None else (".".join((target.qualified, *parts[1:])), None)
            return last, None
        owner = symbol.instance_of
        if owner is not None and len(parts) == 1:
            return (owner.qualified, owner) if symbol.is_class else (first, None)
        if owner is None and symbol.annotation is not None:
            owner = self._declared_class(symbol.scope, symbol.annotation)
        if owner is None and symbol.creation:
            owner = self._created_class(symbol)
        if owner is not None and len(parts) > 1:
            found = self._walk(owner, parts[1:])
            if found is not None:
                return found
        return last, None

    def _walk(self, owner: Scope, parts: tuple[str, ...]) -> tuple[str, Scope | None] | None:
        """Resolves `parts` as members of a class, through fields whose declared type is a class of this file."""
        for index, name in enumerate(parts):
            found = self.member(owner, name)
            if found is None:
                return None
            holder, symbol = found
            if symbol is not None:
                target = symbol.definitions[0]
                if index == len(parts) - 1:
                    return target.qualified, target
                if target.kind != CLASS:
                    return None
                owner = target
                continue
            annotation = holder.fields[name][1]
            declared = None if annotation is None else self._declared_class(holder, annotation)
            if declared is None:
                return None
            owner = declared
        return None

    def _declared_class(self, scope: Scope, annotation: Span) -> Scope | None:
        match = self.type_name.match(annotation[0])
        if match is None:
            return None
        reader = scope.parent if scope.kind == FUNCTION and scope.parent is not None else scope
        target = self.resolve_plain(reader, tuple(match[match.lastindex or 0].split(".")))
        return target if target is not None and target.kind == CLASS else None

    def _created_class(self, symbol: Symbol) -> "Scope | Outline | None":
        """The class whose new instance a variable is always bound to."""
        target = self.resolve_plain(symbol.scope, symbol.creation)
        return target if target is not None and target.kind == CLASS else None

    def resolve_plain(self, scope: Scope, parts: tuple[str, ...]) -> Scope | None:
        """The function or class that a dotted name of plain definitions names; needs no types itself."""
        symbol = scope.lookup(parts[0])
        if symbol is not None and symbol.imported is not None and not symbol.definitions:
            return self._elsewhere(symbol.scope, ".".join((symbol.imported, *parts[1:])))
        for name in parts[1:]:
            if symbol is None or not symbol.definitions or symbol.definitions[0].kind != CLASS:
                return None
            symbol = symbol.definitions[0].names.get(name)
        return symbol.definitions[0] if symbol is not None and symbol.definitions else None

    # Names of other files

    def _elsewhere(self, scope: Scope | Outline, dotted: str) -> Outline | None:
        """The function or class of another file of the project that an imported dotted name stands for."""
        found = self._find(scope, dotted)
        if found is None or isinstance(found[0], Symbol):
            return None
        target, rest = found
        if rest:
            walked = self._walk(target, rest) if target.kind == CLASS else None
            return None if walked is None else walked[1]
        return target

    def _find(self, scope: Scope | Outline, dotted: str) -> tuple[Outline | Symbol, tuple[str, ...]] | None:
        return None if self.project is None else self.project.find(self._module_of(scope), dotted)

    def _module_of(self, scope: Scope | Outline) -> str:
        while scope.parent is not None:
            scope = scope.parent
        return scope.module if isinstance(scope, Outline) else self.module

    def _facts_of_import(self, symbol: Symbol, dotted: str) -> list[tuple[bool, str, Span]]:
        """What another file declares of a name that `symbol` imports: a class's first base, a variable's type.

        Of its bases only the first is told, and by the name that the other file writes: all of them with their modules
        would crowd out what else hangs on the name (docs/LOG.md, 2026-11-24).
        """
        found = self._find(symbol.scope, dotted)
        if found is None:
            return []
        if isinstance(found[0], Symbol):
            return [] if found[1] else [(False, HAS_TYPE, found[0].annotation)]
        target = self._elsewhere(symbol.scope, dotted)
        if target is None or target.kind != CLASS:
            return []
        written = (".".join(parts) for parts, _, _ in target.bases if None not in parts)
        return [(False, INHERITS, (text, None, None)) for text in islice(written, 1)]

    @staticmethod
    def _class_around(scope: Scope) -> Scope | None:
        around: Scope | None = scope
        while around is not None and around.kind != CLASS:
            around = around.parent
        return around

    # Facts at definitions

    def _fact(self, head: Span, relation: str, tail: Span, is_use: bool = False) -> None:
        # A parser that recovers from an error makes up names of no length.
        if head[1] < head[2] and _is_real(tail):
            self.triples.append(Triple(head[0], head[1], head[2], relation, tail[0], tail[1], tail[2], is_use))

    def _at_definition(self, scope: Scope) -> None:
        for relation, head, tail in scope.facts:
            self._fact(head, relation, tail)
        if scope.kind == FUNCTION:
            for name, annotation in scope.parameters:
                self._fact(scope.name, HAS_PARAMETER, name)
                if annotation is not None:
                    self._fact(name, HAS_TYPE, annotation)
            if scope.returns is not None:
                self._fact(scope.name, RETURNS, scope.returns)
            for symbol in scope.names.values():
                if symbol.variable is not None and symbol.kind != PARAMETER:
                    self._fact(scope.name, DECLARES, symbol.variable)
        elif scope.kind == LAMBDA:
            for name, annotation in scope.parameters:
                if annotation is not None:
                    self._fact(name, HAS_TYPE, annotation)
        elif scope.kind == BLOCK:
            owner = scope.parent
            while owner.kind == BLOCK:
                owner = owner.parent
            if owner.kind == FUNCTION:
                for symbol in scope.names.values():
                    if symbol.variable is not None and symbol.kind != PARAMETER:
                        self._fact(owner.name, DECLARES, symbol.variable)
        elif scope.kind == CLASS:
            for span, _ in scope.fields.values():
                self._fact(scope.name, HAS_FIELD, span)
            for parts, start, end in scope.bases:
                self._fact(scope.name, INHERITS, (self.resolve(scope.parent, parts)[0], start, end))

    # Facts at uses

    def _at_names(self, scope: Scope) -> None:
        templates: dict[str, list] = {}
        append = self.triples.append
        for name, start, end in scope.uses:
            facts = templates.get(name)
            if facts is None:
                facts = templates[name] = self._facts_of_use(scope, name)
            for is_tail, relation, other in facts:
                if is_tail:
                    append(Triple(*other, relation, name, start, end, True))
                else:
                    append(Triple(name, start, end, relation, *other, True))

    def _facts_of_use(self, scope: Scope, name: str) -> list[tuple[bool, str, Span]]:
        """What can be said wherever `scope` reads `name`: (the name is the tail, relation, the other end)."""
        symbol = self.lookup(scope, name)
        if symbol is None:
            return []
        facts: list[tuple[bool, str, Span]] = []
        if symbol.kind == IMPORT:
            if symbol.imported != name:
                facts.append((False, IMPORTS, symbol.module))
        elif symbol.kind == MEMBER_IMPORT:
            facts.append((False, IMPORTED_FROM, symbol.module))
            facts += self._facts_of_import(symbol, symbol.imported)
        elif symbol.kind == DEFINITION:
            target = symbol.definitions[0]
            for parts, start, end in target.bases:
                facts.append((False, INHERITS, (self.resolve(target.parent, parts)[0], start, end)))
        elif symbol.kind in (PARAMETER, VARIABLE) and symbol.instance_of is None:
            if symbol.kind == PARAMETER and symbol.scope.kind == FUNCTION:
                facts.append((True, HAS_PARAMETER, symbol.scope.name))
            if symbol.scope.kind == CLASS and symbol.scope is not scope:
                facts.append((True, HAS_FIELD, symbol.scope.name))
            if symbol.annotation is not None:
                facts.append((False, HAS_TYPE, symbol.annotation))
        return [fact for fact in facts if _is_real(fact[2])]

    def _at_attributes(self, scope: Scope) -> None:
        """Members read from an instance: what holds them, and the declared type of fields."""
        owners: dict[str, Scope | None] = {}
        for owner_name, name, start, end in scope.attributes:
            if owner_name not in owners:
                owners[owner_name] = self._instance(scope.lookup(owner_name))
            owner = owners[owner_name]
            if isinstance(owner, Symbol):  # a module
                for _, relation, tail in self._facts_of_import(owner, f"{owner.imported}.{name}"):
                    self._fact((name, start, end), relation, tail, True)
                continue
            found = None if owner is None else self.member(owner, name)
            if found is None:
                continue
            holder, symbol = found
            name = name.removesuffix(METHOD_MARK)
            head = holder.name if isinstance(holder, Scope) else self._mention(owner, holder)
            self._fact(head, HAS_FIELD if symbol is None else CONTAINS, (name, start, end), True)
            if symbol is None and holder.fields[name][1] is not None:
                self._fact((name, start, end), HAS_TYPE, holder.fields[name][1], True)

    def _instance(self, symbol: Symbol | None) -> "Scope | Outline | Symbol | None":
        """The class that a name holds an instance of, as far as its declaration says; an imported module itself."""
        if symbol is None or symbol.instance_of is not None:
            return None if symbol is None else symbol.instance_of
        if symbol.kind in (IMPORT, MEMBER_IMPORT):
            return symbol if self.project is not None else None
        if symbol.kind in (PARAMETER, VARIABLE) and symbol.annotation is not None:
            return self._declared_class(symbol.scope, symbol.annotation)
        return self._created_class(symbol) if symbol.creation else None

    def _mention(self, owner: Scope | Outline, holder: Outline) -> Span:
        """Where a class of this file names a base of another file, or an empty span."""
        for parts, start, end in owner.bases if isinstance(owner, Scope) else ():
            if self.resolve(owner.parent, parts)[1] is holder:
                return ".".join(parts), start, end
        self._skip("member of a class that the file does not name")
        return holder.name

    def _at_calls(self, scope: Scope) -> None:
        resolved: dict[tuple, tuple[str | None, str, Span | None]] = {}
        caller = scope.function
        for parts, start, end in scope.calls:
            found = resolved.get(parts)
            if found is None:
                found = resolved[parts] = self._callee(scope, parts)
            relation, text, returns = found
            if relation is None:
                self._skip("conversion")
            elif caller is None:
                self._skip("call outside a function")
            else:
                self._fact(caller.name, relation, (text, start, end))
            if returns is not None:
                self._fact((parts[-1].removesuffix(METHOD_MARK), start, end), RETURNS, returns, True)

    def _at_creations(self, scope: Scope) -> None:
        caller = scope.function
        for parts, start, end in scope.creations:
            if caller is None:
                self._skip("instance made outside a function")
            else:
                self._fact(caller.name, INSTANTIATES, (self.resolve(scope, parts)[0], start, end))

    def _callee(self, scope: Scope, parts: tuple[str | None, ...]) -> tuple[str | None, str, Span | None]:
        """Relation and text for a callee, and its declared return type where it is a function of this file.

        The relation is None for a conversion: a call of a type where making an instance is written otherwise.
        """
        text, target = self.resolve(scope, parts)
        if target is not None:
            if target.kind == CLASS:
                return None if self.has_creations else INSTANTIATES, text, None
            mark = METHOD_MARK if parts[-1].endswith(METHOD_MARK) else ""
            symbol = target.parent.names.get(target.name[0] + mark)
            declared = [d.returns for d in symbol.definitions if d.returns is not None] if symbol is not None else []
            return CALLS, text, declared[-1] if declared else None
        text = text.removesuffix(METHOD_MARK)
        if self.has_creations:
            return CALLS, text, None
        if len(parts) == 1 and parts[0] in self.builtin_names and scope.lookup(parts[0]) is None:
            return (INSTANTIATES if parts[0] in self.builtin_classes else CALLS), text, None
        return (INSTANTIATES if CLASS_NAME.match(text.rpartition(".")[2]) else CALLS), text, None

    # Data flow

    def _flows(self, scope: Scope) -> None:
        flow = scope.flow
        targets = [d for d in flow.definitions if d.end_read > d.first_read]
        for owner_name, definition in flow.field_targets:
            owner = definition.scope.lookup(owner_name)
            if owner is not None and owner.instance_of is not None and definition.end_read > definition.first_read:
                targets.append(definition)
        if not targets:
            return
        reaching = flow.reaching(_variables_of(scope))
        self._skip("data flow of an oversized scope", flow.num_cut)
        budget = 10_000 + 50 * len(flow.reads)
        for target in targets:
            budget -= target.end_read - target.first_read
            if budget < 0:
                self._skip("data flow of an oversized statement", target.end_read - target.first_read)
                continue
            self._flow_into(target, flow.reads, reaching)

    def _flow_into(self, target: Definition, reads: list, reaching: list[tuple[Definition, ...]]) -> None:
        tail = (target.name, target.start, target.end)
        for number in range(target.first_read, target.end_read):
            sources = reaching[number]
            if sources:
                for source in sources:
                    self._fact((source.name, source.start, source.end), FLOWS_TO, tail)
                read = reads[number]
                self._fact((read.name, read.start, read.end), FLOWS_TO, tail, True)


def _is_real(span: Span) -> bool:
    """Whether a span stands in another file, or has a length in this one."""
    return span[1] is None or span[1] < span[2]


def _variables_of(region: Scope) -> Callable[[str, Scope], Hashable]:
    """The function that says which variable a name is, for data flow inside one body and its comprehensions."""

    def key_of(name: str, scope: Scope) -> Hashable:
        while scope is not region:
            if name in scope.names:
                return name, id(scope)
            scope = scope.parent
            if scope is region and region.kind == CLASS:
                return None  # a comprehension in a class body does not see the class's names
        return name if name in region.names else None

    return key_of


def _position(triple: Triple) -> tuple:
    tail_start = triple.tail_start
    return triple.head_start, -1 if tail_start is None else tail_start, triple.relation, triple.is_use, triple.tail
