"""What every reader of a language shares: scopes, blocks, loops and clean-ups while a tree is walked.

Function and class bodies wait in a queue, and expressions are walked with a stack of their own, so that no nesting in
the text can exhaust Python's. Only statements inside statements recurse, up to a bound.
"""

from tree_sitter import Node

from .flow import Definition
from .scopes import BLOCK, COMPREHENSION, MODULE, OUTER, VARIABLE, Scope, Span, Symbol

MAX_DEPTH = 100  # of scopes in scopes, and of statements in statements: the limit of Python's own tokeniser


class Loop:
    """A loop being read: where `continue` goes, which blocks left it by `break`, and the clean-ups outside it.

    `is_loop` is False for a `switch`, which `break` leaves and `continue` passes through; `label` is its name or "".
    """

    def __init__(self, head: int, num_cleanups: int, label: str = "", is_loop: bool = True):
        self.head = head
        self.breaks: list[int] = []
        self.num_cleanups = num_cleanups
        self.label = label
        self.is_loop = is_loop


class Cleanup:
    """A `finally` being read: the block where interrupted control enters it, and the jumps that go on after it."""

    def __init__(self, entry: int):
        self.entry = entry
        self.jumps: list[tuple[Loop, bool]] = []


class Reader:
    """The scope and block that are being filled, and what fills them.

    Attributes:
        source: the text.
        scopes: every scope found, in the order of discovery, the module first.
        boundaries: offset -> depth of the statements and definitions seen.
        num_skipped: counts by reason.
        scope: the scope being read.
        flow: its control flow.
        events: the events of the current block of `flow`.
    """

    def __init__(self, source: str):
        self.source = source
        self.scopes: list[Scope] = []
        self.boundaries: dict[int, int] = {}
        self.num_skipped: dict[str, int] = {}
        self._queue: list[tuple[Scope, Node]] = []
        self._is_collecting = False
        self._depth = 0  # of statements inside statements
        self._branches: list[int] = []  # blocks that end where an operand begins that may not be evaluated
        self._loops: list[Loop] = []
        self._cleanups: list[Cleanup] = []

    def _new_scope(self, kind: str, name: Span, parent: Scope | None) -> Scope:
        scope = Scope(kind, name, parent, parent.flow if kind in (COMPREHENSION, BLOCK) else None)
        self.scopes.append(scope)
        return scope

    def _wait(self, scope: Scope, body: Node | None) -> None:
        """Puts a body into the queue."""
        if body is not None and scope.depth <= MAX_DEPTH:
            self._queue.append((scope, body))
        elif body is not None:
            self.skip("nested too deeply")

    def skip(self, reason: str) -> None:
        """Counts a fact that is not made."""
        self.num_skipped[reason] = self.num_skipped.get(reason, 0) + 1

    def _define(self, name: str, start: int, end: int, first: int, last: int) -> None:
        self.flow.define(Definition(name, start, end, self.scope, first, last))

    def _block(self, *predecessors: int) -> int:
        number = self.flow.block(*predecessors)
        self.events = self.flow.events[number]
        return number

    def _bind_definition(self, name: str, kind: int) -> Symbol:
        """Binds a name to a function, class or module: it is no variable from here on."""
        self._define(name, -1, -1, 0, 0)
        symbol = self.scope.bind(name, kind)
        if symbol.kind == OUTER and symbol.to_module and self.scope.kind != MODULE:
            return self.scopes[0].bind(name, kind)
        return symbol

    def _bind_variable(self, name: str, start: int, end: int) -> None:
        """Binds a name as a variable of the current scope, without data flow."""
        scope = self.scope
        symbol = scope.names.get(name)
        if symbol is None:
            symbol = scope.bind(name, VARIABLE)
        elif symbol.kind == OUTER:
            if symbol.to_module and scope is not self.scopes[0]:
                outer = self.scopes[0].bind(name, VARIABLE)
                outer.variable = outer.variable or (name, start, end)
            return
        if symbol.variable is None or start < symbol.variable[1]:
            symbol.variable = (name, start, end)

    def _text(self, node: Node) -> Span:
        start, end = node.start_byte, node.end_byte
        return self.source[start:end], start, end

    def _use(self, node: Node) -> None:
        start, end = node.start_byte, node.end_byte
        if end > start:
            self.scope.uses.append((self.source[start:end], start, end))

    def _leave_to(self, source: int, loop: Loop, is_continue: bool) -> None:
        """Draws the edge of a `break` or `continue` from block `source`, through the clean-ups on its way."""
        if len(self._cleanups) > loop.num_cleanups:
            cleanup = self._cleanups[-1]
            self.flow.edge(source, cleanup.entry)
            if (loop, is_continue) not in cleanup.jumps:
                cleanup.jumps.append((loop, is_continue))
        elif is_continue:
            self.flow.edge(source, loop.head)
        else:
            loop.breaks.append(source)

    def _end_cleanup(self, first: int, interrupted: Cleanup) -> None:
        """Doubles a `finally` body that began at block `first`: a copy of it runs after interrupted control."""
        last = self.flow.current
        offset = self.flow.clone(first, len(self.flow.events), interrupted.entry)
        if offset is None:
            self.flow.edge(interrupted.entry, first)
            offset = 0
        for loop, is_continue in interrupted.jumps:
            self._leave_to(last + offset, loop, is_continue)
        if self._cleanups:  # an interrupted clean-up passes through the one around it
            self.flow.edge(last + offset, self._cleanups[-1].entry)
        self._block(last)
