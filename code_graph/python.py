"""Python: reads a syntax tree into scopes, names and control flow.

The only module that knows Python. One walk over the tree; function and class bodies wait in a queue, and expressions are walked
with a stack of their own, so that no nesting in the text can exhaust Python's. Only statements inside statements recurse, up to
`MAX_DEPTH`, which is the limit of Python's own tokeniser.

What counts as what:
    - `self`: the first positional parameter of a function directly in a class body, unless it is a static method. It counts as a
      parameter of the method, but its reads give no facts of their own and it is no source of data flow.
    - Comprehension variables live in a scope of their own: they take part in data flow but no function declares them.
    - A lambda is a scope without a name: its calls belong to the function around it, its variables to nobody.
    - An annotation is read for the names it mentions; it is no data flow.
"""

from tree_sitter import Node

from .flow import Definition, Read
from .schema import CONTAINS, HAS_TYPE, IMPORTED_FROM, IMPORTS
from .scopes import (
    CLASS,
    COMPREHENSION,
    DEFINITION,
    FUNCTION,
    IMPORT,
    LAMBDA,
    MEMBER_IMPORT,
    MODULE,
    OUTER,
    PARAMETER,
    VARIABLE,
    Scope,
    Span,
)
from .syntax import grammar

MAX_DEPTH = 100

_G = grammar("python")
(IDENTIFIER,) = _G.kinds("identifier")
(ATTRIBUTE,) = _G.kinds("attribute")
(CALL,) = _G.kinds("call")
(STRING,) = _G.kinds("string")
(INTERPOLATION,) = _G.kinds("interpolation")
(NAMED_EXPRESSION,) = _G.kinds("named_expression")
(KEYWORD_ARGUMENT,) = _G.kinds("keyword_argument")
(BOOLEAN,) = _G.kinds("boolean_operator")
(CONDITIONAL,) = _G.kinds("conditional_expression")
(SUBSCRIPT,) = _G.kinds("subscript")
(ASSIGNMENT,) = _G.kinds("assignment")
(FOR_IN,) = _G.kinds("for_in_clause")
(DOTTED_NAME,) = _G.kinds("dotted_name")
(ALIASED_IMPORT,) = _G.kinds("aliased_import")
(WILDCARD,) = _G.kinds("wildcard_import")
(CASE,) = _G.kinds("case_clause")
(CLASS_PATTERN,) = _G.kinds("class_pattern")
(KEYWORD_PATTERN,) = _G.kinds("keyword_pattern")
(SPLAT_PATTERN,) = _G.kinds("splat_pattern")
(DECORATOR,) = _G.kinds("decorator")
(FINALLY,) = _G.kinds("finally_clause")
(EXCEPT,) = _G.kinds("except_clause")
(ELSE,) = _G.kinds("else_clause")
(TRUE,) = _G.kinds("true")
BLOCKS = _G.kinds("block")
LAMBDAS = _G.kinds("lambda")
AS_PATTERNS = _G.kinds("as_pattern")
COMPREHENSIONS = _G.kinds(
    "list_comprehension", "set_comprehension", "dictionary_comprehension", "generator_expression"
)
TUPLES = _G.kinds("tuple", "list", "expression_list", "pattern_list", "tuple_pattern", "list_pattern")
SPLATS = _G.kinds("list_splat", "list_splat_pattern", "dictionary_splat_pattern")
WRAPPERS = SPLATS | _G.kinds("parenthesized_expression", "as_pattern_target", "type", "generic_type")
EXTRAS = _G.kinds("comment", "line_continuation")
DEFINITIONS = _G.kinds("function_definition", "class_definition", "decorated_definition")
# Kinds that hold no name: the walk stops there.
LEAVES = EXTRAS | _G.kinds(
    "integer", "float", "true", "false", "none", "ellipsis", "string_start", "string_content", "string_end",
    "type_conversion", "escape_sequence", "keyword_separator", "positional_separator", "import_prefix",
)  # fmt: skip

F_OBJECT, F_ATTRIBUTE, F_FUNCTION, F_ARGUMENTS = (
    _G.field(n) for n in ("object", "attribute", "function", "arguments")
)
F_LEFT, F_RIGHT, F_TYPE, F_NAME, F_VALUE = (_G.field(n) for n in ("left", "right", "type", "name", "value"))
F_BODY, F_PARAMETERS, F_CONDITION, F_ALIAS = (_G.field(n) for n in ("body", "parameters", "condition", "alias"))
F_RETURN_TYPE, F_SUPERCLASSES, F_CONSEQUENCE = (_G.field(n) for n in ("return_type", "superclasses", "consequence"))
F_ALTERNATIVE, F_MODULE_NAME, F_DEFINITION = (_G.field(n) for n in ("alternative", "module_name", "definition"))
F_SUBJECT, F_GUARD = (_G.field(n) for n in ("subject", "guard"))

# Steps that the expression walk meets on its stack beside nodes.
ENTER, LEAVE, MARK, BIND, MAYBE, SURELY, WALRUS, NOT_COLLECTED = range(8)


class _Loop:
    """A loop being read: where `continue` goes, which blocks left it by `break`, and the clean-ups outside it."""

    def __init__(self, head: int, num_cleanups: int):
        self.head = head
        self.breaks: list[int] = []
        self.num_cleanups = num_cleanups


class _Cleanup:
    """A `finally` being read: the block where interrupted control enters it, and the jumps that go on after it."""

    def __init__(self, entry: int):
        self.entry = entry
        self.jumps: list[tuple[_Loop, bool]] = []


class PythonReader:
    """Reads one file. After `read_module`, `scopes` holds all scopes in the order of their discovery.

    Attributes:
        source: the text.
        scopes: every scope found, the module first.
        boundaries: offset -> depth of the statements and definitions seen.
        num_skipped: counts by reason.
    """

    def __init__(self, source: str):
        self.source = source
        self.scopes: list[Scope] = []
        self.boundaries: dict[int, int] = {}
        self.num_skipped: dict[str, int] = {}
        self._queue: list[tuple[Scope, Node]] = []
        self._is_collecting = False
        self._depth = 0  # of statements inside statements
        self._num_maybe = 0  # of conditional operands around the expression being read
        self._loops: list[_Loop] = []
        self._cleanups: list[_Cleanup] = []

    def read_module(self, root: Node) -> None:
        """Reads the whole file."""
        self._queue.append((self._new_scope(MODULE, ("", 0, 0), None), root))
        position = 0
        while position < len(self._queue):
            scope, body = self._queue[position]
            position += 1
            self.scope, self.flow, self.events = scope, scope.flow, scope.flow.events[0]
            self._loops, self._cleanups = [], []
            if scope.kind == LAMBDA:
                self._read(body)
            else:
                self._suite(body, is_body=True)

    # Scopes and names

    def _new_scope(self, kind: str, name: Span, parent: Scope | None) -> Scope:
        scope = Scope(kind, name, parent, parent.flow if kind == COMPREHENSION else None)
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

    def _define(self, name: str, start: int, end: int, first: int, last: int, is_weak: bool = False) -> None:
        self.flow.define(Definition(name, start, end, self.scope, first, last, is_weak))

    def _block(self, *predecessors: int) -> int:
        number = self.flow.block(*predecessors)
        self.events = self.flow.events[number]
        return number

    def _bind_definition(self, name: str, kind: int):
        """Binds a name to a function, class or module: it is no variable from here on."""
        self._define(name, -1, -1, 0, 0)
        return self.scope.bind(name, kind)

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

    # Statements

    def _suite(self, block: Node, is_body: bool) -> None:
        """Reads the statements of a block; `is_body` where it is the body of a module, function or class."""
        if self.scope.kind == MODULE:
            level = min(self._depth + self._depth, 3)
        else:
            level = 2 if is_body else 3
        if self._depth >= MAX_DEPTH:
            self.skip("nested too deeply")
            return
        self._depth += 1
        boundaries = self.boundaries
        for node in block.named_children:
            kind = node.kind_id
            handler = STATEMENTS.get(kind)
            if kind in EXTRAS:
                continue
            start = node.start_byte
            depth = min(level, 1) if kind in DEFINITIONS else level
            if depth < boundaries.get(start, 9):
                boundaries[start] = depth
            if handler is not None:
                handler(self, node)
            else:
                self._read(node)
        self._depth -= 1

    def _expression_statement(self, node: Node) -> None:
        for child in node.named_children:
            kind = child.kind_id
            if kind == ASSIGNMENT:
                self._assignment(child)
            elif kind in AUGMENTED:
                self._augmented_assignment(child)
            else:
                self._read(child)

    def _assignment(self, node: Node) -> None:
        targets = []
        annotation = None
        while True:
            left = node.child_by_field_id(F_LEFT)
            if left is not None:
                targets.append(left)
            declared = node.child_by_field_id(F_TYPE)
            if declared is not None:
                annotation = self._annotation(declared)
                self._annotate(left, annotation)
            right = node.child_by_field_id(F_RIGHT)
            if right is None or right.kind_id != ASSIGNMENT:
                break
            node = right
        if right is None:
            for target in targets:
                if target.kind_id == IDENTIFIER:
                    name, start, end = self._text(target)
                    self._bind_variable(name, start, end)
                else:
                    self._bind(target, -1, -1, annotation)
            return
        if right.kind_id in AUGMENTED:  # `a = b += c` is no Python, but parses
            self._augmented_assignment(right)
            return
        plan: list[tuple[Node, int, int]] = []
        was_collecting, self._is_collecting = self._is_collecting, True
        self._match_up(targets, right, plan, 0)
        self._is_collecting = was_collecting
        for target, first, last in plan:
            self._bind(target, first, last, annotation)

    def _match_up(self, targets: list[Node], value: Node, plan: list, depth: int) -> None:
        """Reads `value` and plans which target gets which reads: element by element where both sides are written out."""
        elements = _elements(value) if depth < 20 else None
        matched = []
        if elements is not None:
            matched = [t for t in map(_elements, targets) if t is not None and len(t) == len(elements)]
        first = len(self.flow.reads)
        if matched:
            for index, element in enumerate(elements):
                self._match_up([target[index] for target in matched], element, plan, depth + 1)
        else:
            self._read(value)
        last = len(self.flow.reads)
        for target in targets:
            inner = _elements(target) if matched else None
            if inner is None or len(inner) != len(elements):
                plan.append((target, first, last))

    def _augmented_assignment(self, node: Node) -> None:
        left, right = node.child_by_field_id(F_LEFT), node.child_by_field_id(F_RIGHT)
        first = len(self.flow.reads)
        self._is_collecting = True
        if left is not None and left.kind_id == IDENTIFIER:
            self._read(left)
        if right is not None:
            self._read(right)
        self._is_collecting = False
        if left is not None:
            self._bind(left, first, len(self.flow.reads), None)

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
        if owner.kind_id == IDENTIFIER:
            text, start, end = self._text(name)
            owner_text = self._text(owner)[0]
            self.scope.field_writes.append((owner_text, text, start, end, annotation))
            if first >= 0:
                written = Definition(text, start, end, self.scope, first, last, False)
                self.flow.field_targets.append((owner_text, written))
        self._read(owner)

    def _annotate(self, target: Node | None, annotation: Span) -> None:
        """Records the declared type of a plain variable; that of a field goes with its write."""
        if target is not None and target.kind_id == IDENTIFIER:
            name = self._text(target)
            symbol = self.scope.bind(name[0], VARIABLE)
            if symbol.annotation is None:
                symbol.annotation = annotation
            self.scope.facts.append((HAS_TYPE, name, annotation))

    def _annotation(self, node: Node) -> Span:
        """Reads the names in an annotation and returns its text: quotes off, white space collapsed."""
        was_collecting, self._is_collecting = self._is_collecting, False
        self._read(node)
        self._is_collecting = was_collecting
        start, end = node.start_byte, node.end_byte
        text = self.source[start:end]
        if text[-1:] in "'\"" and node.named_child_count == 1 and node.named_children[0].kind_id == STRING:
            parts = node.named_children[0].named_children
            text = self.source[parts[0].end_byte : parts[-1].start_byte]
        return " ".join(text.split()), start, end

    def _if(self, node: Node) -> None:
        condition = node.child_by_field_id(F_CONDITION)
        if condition is not None:
            self._read(condition)
        ends = []
        branch = self.flow.current
        self._block(branch)
        self._clause(node.child_by_field_id(F_CONSEQUENCE))
        ends.append(self.flow.current)
        has_else = False
        for clause in node.children_by_field_id(F_ALTERNATIVE):
            self._block(branch)
            if clause.kind_id == ELSE:
                has_else = True
                self._clause(clause.child_by_field_id(F_BODY))
            else:
                self._read(clause.child_by_field_id(F_CONDITION))
                branch = self.flow.current
                self._block(branch)
                self._clause(clause.child_by_field_id(F_CONSEQUENCE))
            ends.append(self.flow.current)
        if not has_else:
            ends.append(branch)
        self._block(*ends)

    def _clause(self, block: Node | None) -> None:
        if block is not None:
            self._suite(block, is_body=False)

    def _while(self, node: Node) -> None:
        head = self._block(self.flow.current)
        condition = node.child_by_field_id(F_CONDITION)
        is_endless = condition is not None and condition.kind_id == TRUE
        if condition is not None:
            self._read(condition)
        self._loop(node, head, self.flow.current, is_endless, None, 0, 0)

    def _for(self, node: Node) -> None:
        first = len(self.flow.reads)
        values = node.child_by_field_id(F_RIGHT)
        if values is not None:
            self._collect(values)
        last = len(self.flow.reads)
        head = self._block(self.flow.current)
        self._loop(node, head, head, False, node.child_by_field_id(F_LEFT), first, last)

    def _loop(
        self, node: Node, head: int, test: int, is_endless: bool, target: Node | None, first: int, last: int
    ) -> None:
        """Reads a loop's body and `else`: `head` is where iterations begin, `test` the block that ends the condition."""
        loop = _Loop(head, len(self._cleanups))
        self._loops.append(loop)
        self._block(test)
        if target is not None:
            self._bind(target, first, last)
        self._clause(node.child_by_field_id(F_BODY))
        self.flow.edge(self.flow.current, head)
        self._loops.pop()
        alternative = node.child_by_field_id(F_ALTERNATIVE)
        ends = [] if is_endless else [test]
        if alternative is not None:
            self._block(*ends)
            self._clause(alternative.child_by_field_id(F_BODY))
            ends = [self.flow.current]
        self._block(*ends, *loop.breaks)

    def _jump(self, node: Node) -> None:
        """`return`, `raise`, `break`, `continue`: nothing after it in the block is reached from it."""
        for child in node.named_children:
            self._read(child)
        kind = node.kind_id
        source = self.flow.current
        if kind in BREAKS:
            if self._loops:
                self._leave_to(source, self._loops[-1], kind in CONTINUES)
        elif kind in RETURNS and self._cleanups:
            self.flow.edge(source, self._cleanups[-1].entry)
        self._block()

    def _leave_to(self, source: int, loop: _Loop, is_continue: bool) -> None:
        """Draws the edge of a `break` or `continue` that starts at block `source`, through the clean-ups on its way."""
        if len(self._cleanups) > loop.num_cleanups:
            cleanup = self._cleanups[-1]
            self.flow.edge(source, cleanup.entry)
            if (loop, is_continue) not in cleanup.jumps:
                cleanup.jumps.append((loop, is_continue))
        elif is_continue:
            self.flow.edge(source, loop.head)
        else:
            loop.breaks.append(source)

    def _try(self, node: Node) -> None:
        flow, before, outer = self.flow, self.flow.current, self.flow.handler
        parts = [child for child in node.named_children if child.kind_id not in EXTRAS]
        cleanup = next((p for p in parts if p.kind_id == FINALLY), None)
        interrupted = None
        if cleanup is not None:
            interrupted = _Cleanup(self._block())
            self._cleanups.append(interrupted)
            flow.handler = interrupted.entry
        around = flow.handler
        raised = self._block()
        flow.handler = raised
        self._block(before)
        self._clause(node.child_by_field_id(F_BODY))
        flow.handler = around
        ends = [flow.current]
        for part in parts:
            if part.kind_id == ELSE:
                self._block(ends[0])
                self._clause(part.child_by_field_id(F_BODY))
                ends[0] = flow.current
            elif part.kind_id == EXCEPT:
                self._block(raised)
                self._except(part)
                ends.append(flow.current)
        flow.handler = outer
        first = self._block(*ends)
        if interrupted is not None:
            self._cleanups.pop()
            self._finally(cleanup, first, interrupted)

    def _except(self, clause: Node) -> None:
        bound = None
        for child in clause.named_children:
            if child.kind_id in BLOCKS:
                self._clause(child)
            elif child.kind_id in AS_PATTERNS:
                bound = self._as_pattern(child, is_collecting=False)
            else:
                self._read(child)
        if bound is not None and bound.kind_id == IDENTIFIER:
            self._define(self._text(bound)[0], -1, -1, 0, 0)  # the name is deleted when the handler ends

    def _as_pattern(self, node: Node, is_collecting: bool) -> Node | None:
        """Reads `value as target` and binds the target; an exception's value is made from nothing."""
        children = [child for child in node.named_children if child.kind_id not in EXTRAS]
        first = len(self.flow.reads)
        if is_collecting:
            self._collect(children[0])
        else:
            self._read(children[0])
        if len(children) < 2:
            return None
        self._bind(children[-1], first, len(self.flow.reads) if is_collecting else first)
        inner = children[-1].named_children
        return inner[0] if inner else None

    def _finally(self, clause: Node, first: int, interrupted: _Cleanup) -> None:
        """Reads a `finally` body twice over: once after normal control, once (as a copy) after interrupted control."""
        for child in clause.named_children:
            if child.kind_id in BLOCKS:
                self._clause(child)
        end = len(self.flow.events)
        last = self.flow.current
        offset = self.flow.clone(first, end, interrupted.entry)
        if offset is None:
            self.flow.edge(interrupted.entry, first)
            offset = 0
        for loop, is_continue in interrupted.jumps:
            self._leave_to(last + offset, loop, is_continue)
        if self._cleanups:  # an interrupted clean-up passes through the one around it
            self.flow.edge(last + offset, self._cleanups[-1].entry)
        self._block(last)

    def _with(self, node: Node) -> None:
        body = node.child_by_field_id(F_BODY)
        for clause in node.named_children:
            if clause == body or clause.kind_id in EXTRAS:
                continue
            for item in clause.named_children:
                value = item.child_by_field_id(F_VALUE)
                if value is not None and value.kind_id in AS_PATTERNS:
                    self._as_pattern(value, is_collecting=True)
                else:
                    self._read(item)
        self._clause(body)

    def _match(self, node: Node) -> None:
        first = len(self.flow.reads)
        for subject in node.children_by_field_id(F_SUBJECT):
            self._collect(subject)
        last = len(self.flow.reads)
        body = node.child_by_field_id(F_BODY)
        ends = []
        branch = self.flow.current
        for case in body.named_children if body is not None else ():
            if case.kind_id != CASE:
                continue
            self._block(branch)
            guard = case.child_by_field_id(F_GUARD)
            patterns = [c for c in case.named_children if c.kind_id in PATTERNS]
            is_final = guard is None and len(patterns) == 1 and self._text(patterns[0])[0].isidentifier()
            for pattern in patterns:
                self._pattern(pattern, first, last)
            if guard is not None:
                self._read(guard)
            branch = self.flow.current
            self._block(branch)
            self._clause(case.child_by_field_id(F_CONSEQUENCE))
            ends.append(self.flow.current)
            if is_final:
                branch = -1
                break
        self._block(*ends, *([branch] if branch >= 0 else []))

    def _pattern(self, pattern: Node, first: int, last: int) -> None:
        """Binds the captures of a `case` pattern and reads the classes and constants it names."""
        stack = [pattern]
        while stack:
            node = stack.pop()
            kind = node.kind_id
            if kind == DOTTED_NAME:
                names = node.named_children
                if len(names) > 1 or (node.parent is not None and node.parent.kind_id == CLASS_PATTERN):
                    self._use(names[0])
                elif names:
                    self._capture(names[0], first, last)
            elif kind == IDENTIFIER:
                self._capture(node, first, last)
            elif kind == KEYWORD_PATTERN:
                stack.extend(reversed(node.named_children[1:]))
            else:
                stack.extend(reversed(node.named_children))

    def _capture(self, node: Node, first: int, last: int) -> None:
        name, start, end = self._text(node)
        if name != "_":
            self._bind_variable(name, start, end)
            self._define(name, start, end, first, last)

    def _delete(self, node: Node) -> None:
        for child in node.named_children:
            names = _elements(child) or [child]
            for name in names:
                self._read(name)
                if name.kind_id == IDENTIFIER:
                    self._define(self._text(name)[0], -1, -1, 0, 0)

    def _outer(self, node: Node) -> None:
        """`global` and `nonlocal`."""
        for child in node.named_children:
            if child.kind_id == IDENTIFIER and self.scope.kind != MODULE:
                symbol = self.scope.bind(self._text(child)[0], OUTER)
                symbol.to_module = node.kind_id in GLOBALS

    def _type_alias(self, node: Node) -> None:
        right = node.child_by_field_id(F_RIGHT)
        if right is not None:
            self._read(right)
        left = node.child_by_field_id(F_LEFT)
        while left is not None and left.kind_id != IDENTIFIER:
            left = left.named_children[0] if left.named_children else None
        if left is not None:
            self._bind(left, -1, -1)

    # Imports

    def _import(self, node: Node) -> None:
        for child in node.children_by_field_id(F_NAME):
            if child.kind_id == ALIASED_IMPORT:
                name, alias = child.child_by_field_id(F_NAME), child.child_by_field_id(F_ALIAS)
                if name is None or alias is None:
                    continue
                module, local = self._dotted(name), self._text(alias)
                symbol = self._bind_definition(local[0], IMPORT)
                imported = module[0]
            else:
                module = local = self._dotted(child)
                imported = module[0].partition(".")[0]
                symbol = self._bind_definition(imported, IMPORT)
            if symbol.imported is None:
                symbol.imported, symbol.module = imported, module
            self.scope.facts.append((IMPORTS, local, module))

    def _import_from(self, node: Node) -> None:
        source = node.child_by_field_id(F_MODULE_NAME)
        module = self._dotted(source) if source is not None else self._future(node)
        for child in node.children_by_field_id(F_NAME):
            name = child
            local = None
            if child.kind_id == ALIASED_IMPORT:
                name, local = child.child_by_field_id(F_NAME), child.child_by_field_id(F_ALIAS)
                if name is None or local is None:
                    continue
            member = self._dotted(name)
            bound = self._text(local) if local is not None else member
            symbol = self._bind_definition(bound[0], MEMBER_IMPORT)
            if symbol.imported is None:
                dot = "" if module[0].endswith(".") else "."
                symbol.imported, symbol.module = f"{module[0]}{dot}{member[0]}", module
            self.scope.facts.append((IMPORTED_FROM, bound, module))
        if any(child.kind_id == WILDCARD for child in node.named_children):
            self.skip("import of everything")

    def _future(self, node: Node) -> Span:
        start = self.source.find("__future__", node.start_byte, node.end_byte)
        return "__future__", start, start + len("__future__")

    # Definitions

    def _decorated(self, node: Node) -> None:
        decorators = []
        for child in node.named_children:
            if child.kind_id == DECORATOR:
                self._read(child)
                decorators.append(self._text(child)[0].lstrip("@ ").rpartition(".")[2])
        definition = node.child_by_field_id(F_DEFINITION)
        if definition is None:
            return
        # The definition keeps the boundary of its first decorator.
        if definition.kind_id in FUNCTIONS:
            self._function(definition, decorators)
        else:
            self._class(definition)

    def _function(self, node: Node, decorators: list[str] | tuple = ()) -> None:
        name = self._text(node.child_by_field_id(F_NAME))
        outer = self.scope
        scope = self._new_scope(FUNCTION, name, outer)
        self._bind_definition(name[0], DEFINITION).definitions.append(scope)
        if outer.kind in (CLASS, FUNCTION):
            outer.facts.append((CONTAINS, outer.name, name))
        parameters = node.child_by_field_id(F_PARAMETERS)
        if parameters is not None:
            self._parameters(scope, parameters)
        declared = node.child_by_field_id(F_RETURN_TYPE)
        if declared is not None:
            scope.returns = self._annotation(declared)
        if outer.kind == CLASS and "staticmethod" not in decorators:
            self._mark_instance(scope, outer, name[0], decorators)
        self._enter_parameters(scope)
        self._wait(scope, node.child_by_field_id(F_BODY))

    def _mark_instance(self, scope: Scope, owner: Scope, name: str, decorators: list[str] | tuple) -> None:
        """Marks the parameter that holds the instance or the class."""
        if not scope.parameters or self.source[scope.parameters[0][0][1] - 1 : scope.parameters[0][0][1]] == "*":
            return
        symbol = scope.names[scope.parameters[0][0][0]]
        symbol.instance_of = owner
        symbol.is_class = "classmethod" in decorators or name in ("__new__", "__init_subclass__", "__class_getitem__")

    def _enter_parameters(self, scope: Scope) -> None:
        for (name, start, end), _ in scope.parameters:
            if scope.names[name].instance_of is None:
                scope.flow.define(Definition(name, start, end, scope, 0, 0, False))

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

    def _class(self, node: Node) -> None:
        name = self._text(node.child_by_field_id(F_NAME))
        outer = self.scope
        scope = self._new_scope(CLASS, name, outer)
        bases = node.child_by_field_id(F_SUPERCLASSES)
        if bases is not None:
            for base in bases.named_children:
                self._read(base)
                kind = base.kind_id
                if kind == SUBSCRIPT:
                    base = base.child_by_field_id(F_VALUE)
                if kind == KEYWORD_ARGUMENT or kind in EXTRAS or base is None:
                    continue
                parts, _, end = self._callee(base)
                if parts is None or parts[0] is None or parts[0] == "super()":
                    self.skip("base that is not a name")
                else:
                    scope.bases.append((parts, base.start_byte, end))
        self._bind_definition(name[0], DEFINITION).definitions.append(scope)
        if outer.kind in (CLASS, FUNCTION):
            outer.facts.append((CONTAINS, outer.name, name))
        self._wait(scope, node.child_by_field_id(F_BODY))

    # Expressions

    def _text(self, node: Node) -> Span:
        start, end = node.start_byte, node.end_byte
        return self.source[start:end], start, end

    def _dotted(self, node: Node) -> Span:
        """A dotted name, with any white space inside it taken out."""
        start, end = node.start_byte, node.end_byte
        text = self.source[start:end]
        return text if text.isidentifier() else "".join(text.split()), start, end

    def _use(self, node: Node) -> None:
        start, end = node.start_byte, node.end_byte
        if end > start:
            self.scope.uses.append((self.source[start:end], start, end))

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
                continue
            elif kind == CALL:
                callee = node.child_by_field_id(F_FUNCTION)
                arguments = node.child_by_field_id(F_ARGUMENTS)
                if arguments is not None:
                    stack.append(arguments)
                if callee is not None:
                    stack.append(callee)
                    parts, start, end = self._callee(callee)
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
            self._num_maybe += 1
        elif what == SURELY:
            self._num_maybe -= 1

    def _bind_walrus(self, node: Node, first: int) -> None:
        """Binds the target of `:=`, which belongs to the function around any comprehension."""
        inner = self.scope
        while self.scope.kind == COMPREHENSION:
            self.scope = self.scope.parent
        name, start, end = self._text(node)
        self._bind_variable(name, start, end)
        self._define(name, start, end, first, len(self.flow.reads), self._num_maybe > 0)
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
        operands = [child for child in node.named_children if child.kind_id not in EXTRAS]
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
        clauses = [child for child in node.named_children if child.kind_id not in EXTRAS]
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


def _elements(node: Node) -> list[Node] | None:
    """The elements of a tuple or list that is written out without `*`, else None."""
    while node.kind_id in PARENTHESES:
        inner = [child for child in node.named_children if child.kind_id not in EXTRAS]
        if len(inner) != 1:
            return None
        node = inner[0]
    if node.kind_id not in TUPLES:
        return None
    elements = [child for child in node.named_children if child.kind_id not in EXTRAS]
    return None if any(element.kind_id in SPLATS for element in elements) else elements


AUGMENTED = _G.kinds("augmented_assignment")
PARENTHESES = _G.kinds("parenthesized_expression", "as_pattern_target")
PATTERNS = _G.kinds("case_pattern")
FUNCTIONS = _G.kinds("function_definition")
PARAMETERS = _G.kinds("typed_parameter", "default_parameter", "typed_default_parameter")
RETURNS = _G.kinds("return_statement")
CONTINUES = _G.kinds("continue_statement")
BREAKS = CONTINUES | _G.kinds("break_statement")
GLOBALS = _G.kinds("global_statement")


def _by_kind(**handlers) -> dict:
    return {number: handler for kind, handler in handlers.items() for number in _G.kinds(kind)}


STATEMENTS = _by_kind(
    expression_statement=PythonReader._expression_statement,
    if_statement=PythonReader._if,
    for_statement=PythonReader._for,
    while_statement=PythonReader._while,
    try_statement=PythonReader._try,
    with_statement=PythonReader._with,
    match_statement=PythonReader._match,
    return_statement=PythonReader._jump,
    raise_statement=PythonReader._jump,
    break_statement=PythonReader._jump,
    continue_statement=PythonReader._jump,
    delete_statement=PythonReader._delete,
    global_statement=PythonReader._outer,
    nonlocal_statement=PythonReader._outer,
    type_alias_statement=PythonReader._type_alias,
    import_statement=PythonReader._import,
    import_from_statement=PythonReader._import_from,
    future_import_statement=PythonReader._import_from,
    decorated_definition=PythonReader._decorated,
    function_definition=PythonReader._function,
    class_definition=PythonReader._class,
)
EXPRESSIONS = _by_kind(
    named_expression=PythonReader._named_expression,
    keyword_argument=PythonReader._keyword_argument,
    boolean_operator=PythonReader._conditional,
    conditional_expression=PythonReader._conditional,
    list_comprehension=PythonReader._comprehension,
    set_comprehension=PythonReader._comprehension,
    dictionary_comprehension=PythonReader._comprehension,
    generator_expression=PythonReader._comprehension,
)
EXPRESSIONS |= {number: PythonReader._lambda for number in LAMBDAS}
