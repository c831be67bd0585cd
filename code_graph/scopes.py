"""Scopes and names of one file: what a language's reader fills in and the resolver reads.

Nothing here knows a language. A reader walks a syntax tree once and builds `Scope` objects: which names each scope
binds, and as what; which names, attributes and callees it mentions. Names are resolved afterwards, when all bindings
are known, because a function may use a name that the text binds later.
"""

from .flow import FlowGraph

# Kinds of scope. A name that a class body binds is not visible in the functions it holds.
MODULE, CLASS, FUNCTION, LAMBDA, COMPREHENSION = "module", "class", "function", "lambda", "comprehension"
BLOCK = "block"  # a block of a function with variables of its own

# What a name is bound as. OUTER marks a name that a scope leaves to an enclosing one (`global` and `nonlocal`).
VARIABLE, PARAMETER, DEFINITION, IMPORT, MEMBER_IMPORT, OUTER = range(6)

Span = tuple[str, int, int]  # text (as a fact states it), start, end


class Symbol:
    """A name in the scope that binds it.

    Attributes:
        kind: how it is bound. A name bound in several ways keeps the first kind that is not `VARIABLE`.
        scope: the scope that binds it.
        variable: span of the first occurrence that binds it as a variable or field, or None.
        annotation: declared type, or None.
        definitions: the function or class scopes it names, in text order.
        module: span of the module it was imported from.
        imported: the dotted name it stands for: the module, or module and member.
        creation: the dotted class whose new instance it is always bound to; None before it is bound, () for others.
        instance_of: the class whose instance (or which itself) this parameter holds: `self`, `cls`.
        is_class: the parameter holds the class, not an instance.
        to_module: an OUTER name that stands for the module's name, whatever lies between.
    """

    __slots__ = (
        "annotation",
        "creation",
        "definitions",
        "imported",
        "instance_of",
        "is_class",
        "kind",
        "module",
        "scope",
        "to_module",
        "variable",
    )

    def __init__(self, kind: int, scope: "Scope"):
        self.kind = kind
        self.scope = scope
        self.variable: Span | None = None
        self.annotation: Span | None = None
        self.definitions: list[Scope] = []
        self.module: Span | None = None
        self.imported: str | None = None
        self.creation: tuple[str, ...] | None = None
        self.instance_of: Scope | None = None
        self.is_class = False
        self.to_module = False


class Scope:
    """A region of the text with its own names, and what it mentions.

    Attributes:
        kind: one of MODULE, CLASS, FUNCTION, LAMBDA, COMPREHENSION, BLOCK.
        name: span of the name at the definition; an empty text for scopes without one.
        parent: the enclosing scope, None for the module.
        qualified: dotted path of the definition inside the file, `Outer.method`.
        function: the innermost named function that this scope runs in; None at module or class level.
        depth: number of enclosing scopes.
        names: what the scope binds.
        flow: control flow of the body; comprehensions share that of the scope they stand in.
        uses: (name, start, end) of each name read.
        attributes: (name, attribute, start, end) of each attribute read from a plain name, with the attribute's span.
        calls: (parts, start, end) of each call; parts is the dotted callee, its first entry None where it is no name,
            and "super()" for the parent class; the span is that of the last part.
        creations: like `calls`, for classes in expressions that say themselves that they make an instance.
        field_writes: (name, attribute, start, end, annotation) of each attribute bound on a plain name.
        facts: finished triples without a use, as (relation, head, tail) with spans.
        parameters: (span, annotation) of each parameter in order.
        returns: declared return type.
        bases: (parts, start, end) of each base class that is a dotted name.
        fields: name -> (span, annotation) for classes, filled in by the resolver.
        is_open: the members of this class can be named without an owner in the scopes that it holds.
        is_closed: the variables of the scopes around it cannot be seen, only definitions and imports.
    """

    __slots__ = (
        "attributes",
        "bases",
        "calls",
        "creations",
        "depth",
        "facts",
        "field_writes",
        "fields",
        "flow",
        "function",
        "is_closed",
        "is_open",
        "kind",
        "name",
        "names",
        "parameters",
        "parent",
        "qualified",
        "returns",
        "uses",
    )

    def __init__(self, kind: str, name: Span, parent: "Scope | None", flow: FlowGraph | None = None):
        self.kind = kind
        self.name = name
        self.parent = parent
        self.depth = 0 if parent is None else parent.depth + 1
        if kind == FUNCTION:
            self.function: Scope | None = self
        else:
            self.function = parent.function if kind in (LAMBDA, COMPREHENSION, BLOCK) and parent is not None else None
        outer = parent.qualified if parent is not None else ""
        self.qualified = outer if not name[0] else f"{outer}.{name[0]}" if outer else name[0]
        self.flow: FlowGraph | None = FlowGraph() if flow is None else flow
        self.names: dict[str, Symbol] = {}
        self.uses: list[Span] = []
        self.attributes: list[tuple[str, str, int, int]] = []
        self.calls: list[tuple[tuple[str | None, ...], int, int]] = []
        self.creations: list[tuple[tuple[str | None, ...], int, int]] = []
        self.field_writes: list[tuple[str, str, int, int, Span | None]] = []
        self.facts: list[tuple[str, Span, Span]] = []
        self.parameters: list[tuple[Span, Span | None]] = []
        self.returns: Span | None = None
        self.bases: list[tuple[tuple[str, ...], int, int]] = []
        self.fields: dict[str, tuple[Span, Span | None]] = {}
        self.is_open = False
        self.is_closed = False

    def bind(self, name: str, kind: int) -> Symbol:
        """Binds `name` in this scope as `kind` and returns its symbol."""
        symbol = self.names.get(name)
        if symbol is None:
            symbol = self.names[name] = Symbol(kind, self)
        elif symbol.kind == VARIABLE:
            symbol.kind = kind
        return symbol

    def lookup(self, name: str) -> Symbol | None:
        """The symbol that `name` means when this scope reads it, or None for a name that the file does not bind."""
        scope: Scope | None = self
        is_closed = False
        while scope is not None:
            symbol = scope.names.get(name)
            if symbol is not None and is_closed and symbol.kind in (VARIABLE, PARAMETER) and scope.kind != CLASS:
                symbol = None
            if symbol is not None and (scope.kind != CLASS or scope is self or scope.is_open):
                if symbol.kind != OUTER:
                    return symbol
                if symbol.to_module:
                    while scope.parent is not None:
                        scope = scope.parent
                    symbol = scope.names.get(name)
                    return symbol if symbol is not None and symbol.kind != OUTER else None
            is_closed = is_closed or scope.is_closed
            scope = scope.parent
        return None

    def release(self) -> None:
        """Drops what ties scopes into cycles, so that they are freed at once."""
        self.names.clear()
        self.parent = self.function = None
        self.flow = None
