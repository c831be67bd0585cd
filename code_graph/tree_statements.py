"""The shared reader of statements: blocks, branches, loops and clean-ups become control flow.

Paths of data flow: branches, loops with `break` and `continue` (labels included), `switch` with and without running on
into the next case, `return`, `throw`. Any point of a `try` body may raise; a `finally` is followed once after normal and
once after interrupted control.
"""

from collections.abc import Callable

from tree_sitter import Node

from .reader import Cleanup, Loop
from .schema import HAS_TYPE
from .scopes import BLOCK, CLASS, FUNCTION, MODULE, Span
from .tree_reader import MAX_NESTING, TreeReader, child


class TreeStatements(TreeReader):
    """Reads one file of a described language. After `read_module`, `scopes` holds all its scopes."""

    def read_module(self, root: Node) -> None:
        """Reads the whole file."""
        self.scope = self._new_scope(MODULE, ("", 0, 0), None)
        self.flow, self.events = self.scope.flow, self.scope.flow.events[0]
        self._queue.append((self.scope, root))
        self._prepare(root)
        position = 0
        while position < len(self._queue):
            scope, body = self._queue[position]
            position += 1
            self.scope, self.flow, self.events = scope, scope.flow, scope.flow.events[0]
            self._loops, self._cleanups, self._label = [], [], ""
            self._branches, self._marks = [], []
            self._is_fresh = False
            nodes = self._body_nodes(body)
            if nodes is None:
                self._read(body)
            else:
                self._statements(nodes, is_body=True)

    def _prepare(self, root: Node) -> None:
        """What has to be known before the file is read."""

    def _body_nodes(self, body: Node) -> list[Node] | None:
        """The statements of the body of a module, function or class; None where it is an expression."""
        is_block = body.kind_id in self.tables.blocks or body.kind_id in self.tables.lists or body.parent is None
        return body.named_children if is_block else None

    def _statements(self, nodes: list[Node], is_body: bool) -> None:
        """Reads the statements of a block; `is_body` where it is the body of a module, function or class."""
        if self._depth >= MAX_NESTING:
            self.skip("nested too deeply")
            return
        level = (0, 2, 3)[min(self._depth, 2)] if self.scope.kind == MODULE else 2 if is_body else 3
        self._depth += 1
        boundaries, tables = self.boundaries, self.tables
        waiting = nodes[::-1]
        while waiting:
            node = waiting.pop()
            kind = node.kind_id
            if kind in tables.comments:
                continue
            if node.is_error or (kind in tables.lists and kind not in tables.statements):
                waiting.extend(reversed(node.named_children))
                continue
            depth = min(level, 1) if kind in tables.definitions else level
            if depth < boundaries.get(node.start_byte, 9):
                boundaries[node.start_byte] = depth
            self._statement(node)
        self._depth -= 1

    def _statement(self, node: Node) -> None:
        handler = self.tables.statements.get(node.kind_id)
        if handler is None:
            self._read(node)
        else:
            handler(self, node)

    def _stray(self, node: Node, stack: list) -> None:
        """Reads a statement that stands inside an expression."""
        if self._depth >= MAX_NESTING:
            self.skip("nested too deeply")
            return
        self._depth += 1
        self.tables.statements[node.kind_id](self, node)
        self._depth -= 1

    def _wrapper(self, node: Node) -> None:
        """A statement that only holds others or an expression."""
        for part in self._parts_of(node):
            self._statement(part)

    def _nested(self, node: Node) -> None:
        """A block with variables of its own."""
        scope, was_fresh = self.scope, self._is_fresh
        self._is_fresh = scope.kind != CLASS
        self._statements(node.named_children, is_body=False)
        self.scope, self._is_fresh = scope, was_fresh

    def _clause(self, node: Node | None) -> None:
        """The body of a branch or loop: a block or a single statement."""
        if node is None:
            return
        kind = node.kind_id
        if kind in self.tables.blocks or kind in self.tables.elses:
            self._nested(node)
        else:
            self._statements([node], is_body=False)

    # Declarations

    def _declare_list(self, node: Node, declare: str = BLOCK) -> None:
        """A declaration of variables or fields: a type and declarators with names and values."""
        self._declare_each(node, self._type(node.child_by_field_name("type")), declare)

    def _declare_each(self, node: Node, annotation: Span | None, declare: str = BLOCK) -> None:
        for declarator in node.named_children:
            name = declarator.child_by_field_name("name")
            if name is None or declarator.kind_id in self.tables.comments:
                continue
            value = declarator.child_by_field_name("value")
            if value is None:
                self._bind(name, -1, -1, annotation, declare)
            elif not self._declare_special(name, value) and not self._name_value(name, value, declare):
                self._bind_value(name, value, annotation, declare)

    def _declare_special(self, name: Node, value: Node) -> bool:
        """A declaration that is something else, such as an import; True where it was."""
        return False

    def _declare_var(self, node: Node) -> None:
        self._declare_list(node, FUNCTION)

    # Branches

    def _if(self, node: Node) -> None:
        """`if` with all its `else if` clauses, in a loop because they may nest as deeply as there are clauses."""
        tables = self.tables
        scope, was_fresh = self.scope, self._is_fresh
        ends: list[int] = []
        branch = self.flow.current
        waiting = [node]
        has_else = False
        while waiting:
            clause = waiting.pop(0)
            if clause.kind_id in tables.comments:
                continue
            if clause.kind_id in tables.elses:
                inner = self._parts_of(clause)
                if len(inner) == 1 and inner[0].kind_id in tables.conditionals:
                    waiting.insert(0, inner[0])
                    continue
            self._block(branch)
            if clause.kind_id not in tables.conditionals:
                has_else = True
                self._clause(clause)
                ends.append(self.flow.current)
                continue
            self._is_fresh = True
            start = child(clause, "initializer")
            if start is not None:
                self._statement(start)
            self._read(child(clause, "condition"))
            branch = self.flow.current
            self._block(branch)
            self._clause(child(clause, "consequence") or child(clause, "body"))
            ends.append(self.flow.current)
            waiting[:0] = clause.children_by_field_name("alternative")
        if not has_else:
            ends.append(branch)
        self.scope, self._is_fresh = scope, was_fresh
        self._block(*ends)

    def _switch(self, node: Node) -> None:
        scope, was_fresh = self.scope, self._is_fresh
        self._is_fresh = True
        value = self._switch_value(node)
        loop = self._begin_loop(-1, is_loop=False)
        ends: list[int] = []
        branch, previous, has_default = self.flow.current, None, False
        for case in self._cases_of(node):
            self._block(branch)
            block_scope = self.scope
            self._is_fresh = True
            tests, body = self._split_case(case)
            for test in tests:
                self._case_test(test, *value)
            branch = self.flow.current
            falls = self._falls(case)
            self._block(branch, *([previous] if previous is not None else []))
            self._statements(body, is_body=False)
            self.scope = block_scope
            previous = self.flow.current if falls else None
            if not falls:
                ends.append(self.flow.current)
            has_default = has_default or self._is_default(case, tests)
        if previous is not None:
            ends.append(previous)
        if not has_default:
            ends.append(branch)
        self._loops.pop()
        self.scope, self._is_fresh = scope, was_fresh
        self._block(*ends, *loop.breaks)

    def _switch_value(self, node: Node) -> tuple[int, int]:
        start = child(node, "initializer")
        if start is not None:
            self._statement(start)
        value = child(node, "value") or child(node, "condition")
        return self._collect(value) if value is not None else (0, 0)

    def _cases_of(self, node: Node) -> list[Node]:
        """The cases of a switch, which stand in it or in its body."""
        found = [part for part in node.named_children if part.kind_id in self.tables.cases]
        body = child(node, "body")
        if body is not None:
            found += [part for part in body.named_children if part.kind_id in self.tables.cases]
        return found

    def _split_case(self, case: Node) -> tuple[list[Node], list[Node]]:
        """What a case tests, and its statements."""
        tests, body = [], []
        names = self.about.tests
        for index, part in enumerate(case.children):
            if part.is_named:
                is_test = part.type in names or case.field_name_for_child(index) in names
                (tests if is_test else body).append(part)
        return tests, body

    def _case_test(self, test: Node, first: int, last: int) -> None:
        """Reads what a case tests; the value of the switch was made from reads first to last - 1."""
        self._statement(test)

    def _falls(self, case: Node) -> bool:
        """Whether control runs from the end of a case into the next one."""
        return case.kind_id in self.tables.falls

    def _is_default(self, case: Node, tests: list[Node]) -> bool:
        return not tests

    # Loops

    def _begin_loop(self, head: int, is_loop: bool = True) -> Loop:
        loop = Loop(head, len(self._cleanups), self._label, is_loop)
        self._label = ""
        self._loops.append(loop)
        return loop

    def _labelled(self, node: Node) -> None:
        parts = self._parts_of(node)
        if not parts:
            return
        self._label = self._text(parts[0])[0]
        if len(parts) == 1:
            self._label = ""
            return
        loops = {id(loop) for loop in self._loops}
        outer = Loop(-1, len(self._cleanups), self._label, is_loop=False)
        if parts[1].kind_id in self.tables.blocks:  # `break` may leave a labelled block
            self._loops.append(outer)
        self._statement(parts[1])
        self._label = ""
        self._loops = [loop for loop in self._loops if id(loop) in loops]
        if outer.breaks:
            self._block(self.flow.current, *outer.breaks)

    def _while(self, node: Node) -> None:
        head = self._block(self.flow.current)
        condition = child(node, "condition")
        self._read(condition)
        test = self.flow.current
        is_endless = condition is not None and self._text(condition)[0] in self.about.endless
        loop = self._begin_loop(head)
        self._block(test)
        self._clause(child(node, "body"))
        self.flow.edge(self.flow.current, head)
        self._loops.pop()
        self._block(*([] if is_endless else [test]), *loop.breaks)

    def _do_while(self, node: Node) -> None:
        before = self.flow.current
        test = self._block()
        loop = self._begin_loop(test)
        first = self._block(before)
        self._clause(child(node, "body"))
        self.flow.edge(self.flow.current, test)
        self._loops.pop()
        self._continue_at(test)
        self._read(child(node, "condition"))
        self.flow.edge(self.flow.current, first)
        self._block(self.flow.current, *loop.breaks)

    def _continue_at(self, block: int) -> None:
        self.flow.current, self.events = block, self.flow.events[block]

    def _for(self, node: Node) -> None:
        """A loop with a start, a condition and an update."""
        scope, was_fresh = self.scope, self._is_fresh
        self._is_fresh = True
        self._count_loop(node, ("init", "initializer", "initialize"), ("update", "increment"), child(node, "body"))
        self.scope, self._is_fresh = scope, was_fresh

    def _count_loop(self, node: Node, starts: tuple, updates: tuple, body: Node | None) -> None:
        for name in starts:
            for part in node.children_by_field_name(name):
                if part.is_named:
                    self._statement(part)
        head = self._block(self.flow.current)
        conditions = [part for part in node.children_by_field_name("condition") if part.is_named]
        conditions = [part for part in conditions if part.type != "empty_statement"]
        for condition in conditions:
            self._read(condition)
        test = self.flow.current
        update = self._block()
        loop = self._begin_loop(update)
        self._block(test)
        self._clause(body)
        self.flow.edge(self.flow.current, update)
        self._loops.pop()
        self._continue_at(update)
        for name in updates:
            for part in node.children_by_field_name(name):
                if part.is_named:
                    self._statement(part)
        self.flow.edge(self.flow.current, head)
        self._block(*([test] if conditions else []), *loop.breaks)

    def _for_each(
        self,
        targets: list[Node],
        values: Node | None,
        body: Node | None,
        declare: str | None,
        annotation: Span | None = None,
    ) -> None:
        """A loop that binds `targets` to elements of `values`."""
        scope, was_fresh = self.scope, self._is_fresh
        self._is_fresh = True
        first, last = self._collect(values)
        head = self._block(self.flow.current)
        loop = self._begin_loop(head)
        self._block(head)
        for target in targets:
            self._bind(target, first, last, annotation, declare)
        self._clause(body)
        self.flow.edge(self.flow.current, head)
        self._loops.pop()
        self.scope, self._is_fresh = scope, was_fresh
        self._block(head, *loop.breaks)

    # Jumps and clean-ups

    def _return(self, node: Node) -> None:
        """`return` and `throw`: nothing after it in the block is reached from it."""
        for part in node.named_children:
            self._read(part)
        if self._cleanups:
            self.flow.edge(self.flow.current, self._cleanups[-1].entry)
        self._block()

    def _break(self, node: Node) -> None:
        self._leave(node, is_continue=False)

    def _continue(self, node: Node) -> None:
        self._leave(node, is_continue=True)

    def _leave(self, node: Node, is_continue: bool) -> None:
        parts = self._parts_of(node)
        label = self._text(parts[0])[0] if parts else ""
        loops = [loop for loop in self._loops if loop.is_loop or not is_continue]
        if label.isdigit():
            loops = loops[: len(loops) - max(int(label[:4]), 1) + 1]
        elif label:
            loops = [loop for loop in loops if loop.label == label]
        else:
            loops = [loop for loop in loops if loop.head >= 0 or not loop.label]
        if loops:
            self._leave_to(self.flow.current, loops[-1], is_continue)
        self._block()

    def _try(self, node: Node) -> None:
        """`try` with resources, handlers and clean-up; the body is a field, or the parts before the first clause."""
        tables, flow = self.tables, self.flow
        before, outer = flow.current, flow.handler
        scope, was_fresh = self.scope, self._is_fresh
        parts = self._parts_of(node)
        clauses = tables.catches | tables.finallies | tables.try_elses
        cleanup = next((part for part in parts if part.kind_id in tables.finallies), None)
        interrupted = None
        if cleanup is not None:
            interrupted = Cleanup(self._block())
            self._cleanups.append(interrupted)
            flow.handler = interrupted.entry
        around = flow.handler
        raised = self._block()
        flow.handler = raised
        self._block(before)
        self._is_fresh = True
        body = [part for part in parts if part.kind_id not in clauses]
        for part in body[:-1] if child(node, "body") is not None else ():
            self._resource(part)
        self._try_body(body[-1:] if child(node, "body") is not None else body)
        self.scope, self._is_fresh = scope, was_fresh
        flow.handler = around
        ends = [flow.current]
        for part in parts:
            if part.kind_id in tables.try_elses:
                self._block(ends[0])
                self._clause(part)
                ends[0] = flow.current
            elif part.kind_id in tables.catches:
                self._block(raised)
                self._is_fresh = True
                self._catch(part)
                self.scope, self._is_fresh = scope, was_fresh
                ends.append(flow.current)
        flow.handler = outer
        first = self._block(*ends)
        if interrupted is not None:
            self._cleanups.pop()
            self._clause(child(cleanup, "body") or self._only_block(cleanup))
            self._end_cleanup(first, interrupted)

    def _only_block(self, clause: Node) -> Node:
        parts = self._parts_of(clause)
        return parts[0] if len(parts) == 1 and parts[0].kind_id in self.tables.blocks else clause

    def _try_body(self, parts: list[Node]) -> None:
        for part in parts:
            self._clause(part)

    def _resource(self, node: Node) -> None:
        """Something that stands before the body of a `try`."""

    def _catch(self, clause: Node) -> None:
        """A handler: binds the exception, whose value is made from nothing, and reads the body."""
        bound = child(clause, "parameter") or child(clause, "name")
        if bound is not None:
            self._bind(bound, 0, 0, self._type(child(clause, "type")), BLOCK)
        self._clause(child(clause, "body"))

    def _annotate_field(self, name: Span, annotation: Span | None, first: int = -1, last: int = -1) -> None:
        """Binds a field in the body of its class."""
        self._bind_variable(*name)
        symbol = self.scope.names[name[0]]
        if annotation is not None:
            symbol.annotation = symbol.annotation or annotation
            self.scope.facts.append((HAS_TYPE, name, annotation))
        if first >= 0:
            self._define(*name, first, last)


STATEMENT = Callable[[TreeStatements, Node], None]
