"""Python's expressions: the names, attributes and calls that they read, and the targets that they are bound to.

Expressions are walked with a stack of their own, so that no nesting in the text can exhaust Python's.
"""

from tree_sitter import Node

from .flow import Definition, Read
from .python_grammar import (
    ATTRIBUTE,
    CALL,
    CONDITIONAL,
    EXTRAS,
    F_ARGUMENTS,
    F_ATTRIBUTE,
    F_BODY,
    F_FUNCTION,
    F_LEFT,
    F_NAME,
    F_OBJECT,
    F_PARAMETERS,
    F_RIGHT,
    F_TYPE,
    F_VALUE,
    FOR_IN,
    GRAMMAR,
    IDENTIFIER,
    INTERPOLATION,
    LEAVES,
    PARAMETERS,
    PARENTHESES,
    SPLATS,
    STRING,
    TUPLES,
    WRAPPERS,
    by_kind,
    parts_of,
)
from .reader import MAX_DEPTH, Reader
from .scopes import COMPREHENSION, LAMBDA, PARAMETER, Scope, Span

# Steps that the walk meets on its stack beside nodes.
ENTER, LEAVE, MARK, BIND, MAYBE, SURELY, WALRUS = range(7)


class ExpressionReader(Reader):
    """Reads expressions and binds targets; keeps the state of `Reader`."""

    # Targets, annotations, parameters

    def _bind(self, target: Node, first: int, last: int, annotation: Span | None = None) -> None:
        """Binds every name in an assignment target to a value made from reads first to last - 1 (-1: no value)."""
        was_collecting, self._is_collecting = self._is_collecting, False
        stack = [target]
        while stack:
            node = stack.pop()
            kind = node.kind_id
            if kind == IDENTIFIER:
                name, start, end = self._text(node)
                if end > start:
                    self._bind_variable(name, start, end)
                    if first >= 0:
                        self._define(name, start, end, first, last)
            elif kind == ATTRIBUTE:
                self._bind_attribute(node, first, last, annotation)
            elif kind in TUPLES or kind in WRAPPERS:
                stack.extend(reversed(node.named_children))
            else:
                self._read(node)
        self._is_collecting = was_collecting

    def _bind_attribute(self, node: Node, first: int, last: int, annotation: Span | None) -> None:
        owner, name = node.child_by_field_id(F_OBJECT), node.child_by_field_id(F_ATTRIBUTE)
        if owner is None or name is None:
            return
        if owner.kind_id in SPLATS and owner.named_child_count == 1:  # `*a.b, c = ...` parses as an attribute of `*a`
            owner = owner.named_children[0]
        if owner.kind_id == IDENTIFIER:
            text, start, end = self._text(name)
            owner_text = self._text(owner)[0]
            self.scope.field_writes.append((owner_text, text, start, end, annotation))
            if first >= 0:
                written = Definition(text, start, end, self.scope, first, last)
                self.flow.field_targets.append((owner_text, written))
        self._read(owner)

    def _annotation(self, node: Node) -> Span:
        """Reads the names in an annotation and returns its text.

        Quotes and parentheses around the whole are taken off, comments out, and white space is collapsed.
        """
        was_collecting, self._is_collecting = self._is_collecting, False
        self._read(node)
        self._is_collecting = was_collecting
        inner = parts_of(node)
        while len(inner) == 1 and inner[0].kind_id in PARENTHESES:
            node = inner[0]
            inner = parts_of(node)
        if len(inner) == 1:
            node = inner[0]
        start, end = node.start_byte, node.end_byte
        text = self.source[start:end]
        if node.kind_id == STRING:
            quotes = node.named_children
            if len(quotes) > 1:
                text = self.source[quotes[0].end_byte : quotes[-1].start_byte]
        elif "#" in text:
            text = self._without_comments(node)
        return " ".join(text.split()) or self.source[start:end], start, end

    def _without_comments(self, node: Node) -> str:
        text, position, stack = "", node.start_byte, [node]
        while stack:
            part = stack.pop()
            if part.kind_id in EXTRAS:
                text += self.source[position : part.start_byte]
                position = part.end_byte
            else:
                stack.extend(reversed(part.named_children))
        return text + self.source[position : node.end_byte]

    def _parameters(self, scope: Scope, node: Node) -> None:
        """Binds parameters in `scope`; defaults and annotations are read in the scope around it."""
        stack = list(reversed(node.named_children))
        while stack:
            child = stack.pop()
            name, annotation = child, None
            kind = child.kind_id
            if kind in PARAMETERS:
                declared, value = child.child_by_field_id(F_TYPE), child.child_by_field_id(F_VALUE)
                name = child.child_by_field_id(F_NAME) or next(iter(child.named_children), None)
                if declared is not None:
                    annotation = self._annotation(declared)
                if value is not None:
                    self._read(value)
            elif kind in TUPLES:  # Python 2: def f(a, (b, c))
                stack.extend(reversed(child.named_children))
                continue
            while name is not None and name.kind_id in WRAPPERS:
                name = next(iter(name.named_children), None)
            if name is None or name.kind_id != IDENTIFIER:
                continue
            span = self._text(name)
            symbol = scope.bind(span[0], PARAMETER)
            symbol.annotation = annotation
            scope.parameters.append((span, annotation))

    def _enter_parameters(self, scope: Scope) -> None:
        for (name, start, end), _ in scope.parameters:
            if scope.names[name].instance_of is None:
                scope.flow.define(Definition(name, start, end, scope, 0, 0))

    # Expressions

    def _dotted(self, node: Node) -> Span:
        """A dotted name, with any white space inside it taken out."""
        start, end = node.start_byte, node.end_byte
        text = self.source[start:end]
        return text if text.isidentifier() else "".join(text.split()), start, end

    def _collect(self, node: Node) -> None:
        was_collecting, self._is_collecting = self._is_collecting, True
        self._read(node)
        self._is_collecting = was_collecting

    def _read(self, root: Node) -> None:
        """Reads an expression: the names, attributes and calls in it, in the order of evaluation."""
        source = self.source
        stack: list = [root]
        marks: list = []
        while stack:
            node = stack.pop()
            if node.__class__ is tuple:
                self._step(node, stack, marks)
                continue
            kind = node.kind_id
            if kind == IDENTIFIER:
                start, end = node.start_byte, node.end_byte
                if end > start:
                    name = source[start:end]
                    self.scope.uses.append((name, start, end))
                    if self._is_collecting:
                        self.events.append(len(self.flow.reads))
                        self.flow.reads.append(Read(name, start, end, self.scope))
            elif kind == ATTRIBUTE:
                owner = node.child_by_field_id(F_OBJECT)
                if owner is not None:
                    stack.append(owner)
                    if owner.kind_id == IDENTIFIER:
                        name = node.child_by_field_id(F_ATTRIBUTE)
                        start, end = name.start_byte, name.end_byte
                        owner_name = source[owner.start_byte : owner.end_byte]
                        self.scope.attributes.append((owner_name, source[start:end], start, end))
            elif kind in LEAVES:
                pass
            elif kind == CALL:
                callee = node.child_by_field_id(F_FUNCTION)
                arguments = node.child_by_field_id(F_ARGUMENTS)
                if arguments is not None:
                    stack.append(arguments)
                if callee is not None:
                    stack.append(callee)
                    # `f(*g(x))` parses as a call of `*g`.
                    inner = callee.named_children if callee.kind_id in SPLATS else ()
                    parts, start, end = self._callee(inner[0] if inner else callee)
                    if parts is None:
                        self.skip("callee that is not a name")
                    else:
                        self.scope.calls.append((parts, start, end))
            elif kind == STRING:
                if node.named_child_count > 2:
                    stack.extend([c for c in reversed(node.named_children) if c.kind_id == INTERPOLATION])
            else:
                special = EXPRESSIONS.get(kind)
                if special is None:
                    stack.extend(reversed(node.named_children))
                else:
                    special(self, node, stack)

    def _callee(self, node: Node) -> tuple[tuple[str | None, ...] | None, int, int]:
        """The dotted name in callee position, and the span of its last part; None where it has no name."""
        kind = node.kind_id
        while kind in PARENTHESES:
            inner = parts_of(node)
            if len(inner) != 1:
                return None, 0, 0
            node = inner[0]
            kind = node.kind_id
        if kind == IDENTIFIER:
            text, start, end = self._text(node)
            return ((text,), start, end) if end > start else (None, start, end)
        if kind != ATTRIBUTE:
            return None, 0, 0
        parts = []
        start = end = 0
        while kind == ATTRIBUTE:
            name = node.child_by_field_id(F_ATTRIBUTE)
            if not parts:
                start, end = name.start_byte, name.end_byte
                if end == start:
                    return None, start, end
            parts.append(self.source[name.start_byte : name.end_byte])
            node = node.child_by_field_id(F_OBJECT)
            kind = node.kind_id
        if kind == IDENTIFIER:
            parts.append(self.source[node.start_byte : node.end_byte])
        elif kind == CALL and self.source.startswith("super(", node.start_byte):
            parts.append("super()")
        else:
            parts.append(None)
        return tuple(reversed(parts)), start, end

    def _step(self, step: tuple, stack: list, marks: list) -> None:
        """Does what an expression left on the stack to be done after its parts were read."""
        what, subject = step
        if what == ENTER:
            self.scope = subject
        elif what == LEAVE:
            self.scope = self.scope.parent
        elif what == MARK:
            marks.append((len(self.flow.reads), self._is_collecting))
            self._is_collecting = True
        elif what == BIND:
            first, self._is_collecting = marks.pop()
            self._bind(subject, first, len(self.flow.reads))
        elif what == WALRUS:
            first, self._is_collecting = marks.pop()
            self._bind_walrus(subject, first)
        elif what == MAYBE:
            self._branches.append(self.flow.current)
        elif what == SURELY:
            branch = self._branches.pop()
            if branch != self.flow.current:  # a name was bound meanwhile, or not
                self._block(self.flow.current, branch)

    def _bind_walrus(self, node: Node, first: int) -> None:
        """Binds the target of `:=`, which belongs to the function around any comprehension."""
        inner = self.scope
        while self.scope.kind == COMPREHENSION:
            self.scope = self.scope.parent
        name, start, end = self._text(node)
        if self._branches:
            self._block(self.flow.current)
        self._bind_variable(name, start, end)
        self._define(name, start, end, first, len(self.flow.reads))
        self.scope = inner

    def _named_expression(self, node: Node, stack: list) -> None:
        name, value = node.child_by_field_id(F_NAME), node.child_by_field_id(F_VALUE)
        if name is not None and value is not None:
            stack.extend([(WALRUS, name), value, (MARK, None)])

    def _keyword_argument(self, node: Node, stack: list) -> None:
        value = node.child_by_field_id(F_VALUE)
        if value is not None:
            stack.append(value)

    def _conditional(self, node: Node, stack: list) -> None:
        """Operands that may not be evaluated: all but the first of `and`/`or`, all but the test of `a if b else c`."""
        operands = parts_of(node)
        if node.kind_id == CONDITIONAL and len(operands) == 3:
            operands = [operands[1], operands[0], operands[2]]
        stack.append((SURELY, None))
        stack.extend(reversed(operands[1:]))
        stack.append((MAYBE, None))
        stack.extend(operands[:1])

    def _lambda(self, node: Node, stack: list) -> None:
        scope = self._new_scope(LAMBDA, ("", node.start_byte, node.start_byte), self.scope)
        parameters = node.child_by_field_id(F_PARAMETERS)
        if parameters is not None:
            was_collecting, self._is_collecting = self._is_collecting, False
            self._parameters(scope, parameters)
            self._is_collecting = was_collecting
        self._enter_parameters(scope)
        self._wait(scope, node.child_by_field_id(F_BODY))

    def _comprehension(self, node: Node, stack: list) -> None:
        """The first iterable is read outside the comprehension's scope, everything else inside, the body last."""
        clauses = parts_of(node)
        if len(clauses) < 2 or clauses[1].kind_id != FOR_IN:
            stack.extend(reversed(clauses))
            return
        if self.scope.depth >= MAX_DEPTH:
            self.skip("nested too deeply")
            return
        scope = self._new_scope(COMPREHENSION, ("", node.start_byte, node.start_byte), self.scope)
        steps: list = []
        for clause in clauses[1:]:
            if clause.kind_id == FOR_IN:
                values = clause.child_by_field_id(F_RIGHT)
                steps += [(MARK, None), *([values] if values is not None else [])]
                if clause is clauses[1]:
                    steps += [(ENTER, scope), (MAYBE, None)]
                steps.append((BIND, clause.child_by_field_id(F_LEFT)))
            else:
                steps.append(clause)
        steps += [clauses[0], (SURELY, None), (LEAVE, None)]
        stack.extend(reversed(steps))


EXPRESSIONS = by_kind(
    named_expression=ExpressionReader._named_expression,
    keyword_argument=ExpressionReader._keyword_argument,
    boolean_operator=ExpressionReader._conditional,
    conditional_expression=ExpressionReader._conditional,
    list_comprehension=ExpressionReader._comprehension,
    set_comprehension=ExpressionReader._comprehension,
    dictionary_comprehension=ExpressionReader._comprehension,
    generator_expression=ExpressionReader._comprehension,
)
EXPRESSIONS |= {number: ExpressionReader._lambda for number in GRAMMAR.kinds("lambda")}
