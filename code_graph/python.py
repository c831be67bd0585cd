"""Python: reads a syntax tree into scopes, names and control flow.

The only module that knows Python. One walk over the tree; function and class bodies wait in a queue, and expressions
are walked with a stack of their own, so that no nesting in the text can exhaust Python's. Only statements inside
statements recurse, up to `MAX_DEPTH`, which is the limit of Python's own tokeniser.

What counts as what:
    - `self`: the first positional parameter of a function directly in a class body, unless it is a static method. It
      counts as a parameter of the method, but its reads give no facts of their own and it is no source of data flow.
    - Comprehension variables live in a scope of their own: they take part in data flow but no function declares them.
    - A lambda is a scope without a name: its calls belong to the function around it, its variables to nobody.
    - An annotation is read for the names it mentions; it is no data flow.

Data flow (`flows_to`) joins variables of one scope: a function (parameters included), a class body or the module,
each with its comprehensions.
    - Targets: assignment (element by element where both sides are written out), augmented assignment, `for`, `with`,
      `:=`, comprehension variables and the captures of `case`. `self.x = v` makes the field `x` a target; fields are
      never sources. `a[i] = v` and `a.x = v` bind no variable.
    - Sources: every variable read in the expression, at each definition that may reach it, lambda bodies left out.
      Names that are bound by `def`, `class` or `import` are no variables; a name declared `global` or `nonlocal` has
      only the definitions of the scope itself. A returned value flows to nothing.
    - Paths: branches, loops with `else`, `break`, `continue`, `return`, `raise`, `match`. Any point of a `try` body
      may raise; a `finally` is followed once after normal and once after interrupted control. `with` is taken never
      to swallow an exception.
"""

from tree_sitter import Node

from .python_expressions import EXPRESSIONS, ExpressionReader
from .python_grammar import (
    ALIASED_IMPORT,
    AS_PATTERNS,
    ASSIGNMENT,
    ATTRIBUTE,
    AUGMENTED,
    BLOCKS,
    BREAK,
    CASE,
    CASE_PATTERN,
    CLASS_PATTERN,
    CONTINUE,
    DECORATOR,
    DEFINITIONS,
    DOTTED_NAME,
    ELSE,
    EXCEPT,
    EXTRAS,
    F_ALIAS,
    F_ALTERNATIVE,
    F_BODY,
    F_CONDITION,
    F_CONSEQUENCE,
    F_DEFINITION,
    F_GUARD,
    F_LEFT,
    F_MODULE_NAME,
    F_NAME,
    F_OBJECT,
    F_PARAMETERS,
    F_RETURN_TYPE,
    F_RIGHT,
    F_SUBJECT,
    F_SUPERCLASSES,
    F_TYPE,
    F_VALUE,
    FINALLY,
    FUNCTION_DEFINITION,
    GLOBAL,
    IDENTIFIER,
    KEYWORD_ARGUMENT,
    KEYWORD_PATTERN,
    RETURN,
    SUBSCRIPT,
    TRUE,
    WILDCARD,
    by_kind,
    elements_of,
    parts_of,
)
from .reader import MAX_DEPTH, Cleanup, Loop
from .schema import CONTAINS, HAS_TYPE, IMPORTED_FROM, IMPORTS
from .scopes import CLASS, DEFINITION, FUNCTION, IMPORT, LAMBDA, MEMBER_IMPORT, MODULE, OUTER, VARIABLE, Scope, Span


class PythonReader(ExpressionReader):
    """Reads one file. After `read_module`, `scopes` holds all its scopes."""

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

    def _suite(self, block: Node, is_body: bool) -> None:
        """Reads the statements of a block; `is_body` where it is the body of a module, function or class."""
        if self._depth >= MAX_DEPTH:
            self.skip("nested too deeply")
            return
        level = (0, 2, 3)[min(self._depth, 2)] if self.scope.kind == MODULE else 2 if is_body else 3
        self._depth += 1
        boundaries = self.boundaries
        waiting = block.named_children
        waiting.reverse()
        while waiting:
            node = waiting.pop()
            kind = node.kind_id
            if kind in EXTRAS:
                continue
            if node.is_error:  # what parses inside it stands for itself
                waiting.extend(reversed(node.named_children))
                continue
            start = node.start_byte
            depth = min(level, 1) if kind in DEFINITIONS else level
            if depth < boundaries.get(start, 9):
                boundaries[start] = depth
            handler = STATEMENTS.get(kind)
            if handler is not None:
                handler(self, node)
            else:
                self._read(node)
        self._depth -= 1

    def _stray(self, node: Node, stack: list) -> None:
        """Reads a statement that stands inside an expression because the text around it does not parse."""
        if self._depth >= MAX_DEPTH:
            self.skip("nested too deeply")
            return
        self._depth += 1
        was_collecting, self._is_collecting = self._is_collecting, False
        STATEMENTS[node.kind_id](self, node)
        self._is_collecting = was_collecting
        self._depth -= 1

    def _expression_statement(self, node: Node) -> None:
        for child in node.named_children:
            handler = STATEMENTS.get(child.kind_id)
            if handler is None:
                self._read(child)
            else:
                handler(self, child)

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
        if right.kind_id == AUGMENTED:  # `a = b += c` is no Python, but parses
            self._augmented_assignment(right)
            return
        plan: list[tuple[Node, int, int]] = []
        was_collecting, self._is_collecting = self._is_collecting, True
        self._match_up(targets, right, plan, 0)
        self._is_collecting = was_collecting
        for target, first, last in plan:
            self._bind(target, first, last, annotation)

    def _match_up(self, targets: list[Node], value: Node, plan: list, depth: int) -> None:
        """Reads `value` and plans which target gets which reads: by element where both sides are written out."""
        elements = elements_of(value) if depth < 20 else None
        matched = []
        if elements is not None:
            matched = [t for t in map(elements_of, targets) if t is not None and len(t) == len(elements)]
        first = len(self.flow.reads)
        if matched:
            for index, element in enumerate(elements):
                self._match_up([target[index] for target in matched], element, plan, depth + 1)
        else:
            self._read(value)
        last = len(self.flow.reads)
        for target in targets:
            inner = elements_of(target) if matched else None
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

    def _annotate(self, target: Node | None, annotation: Span) -> None:
        """Records the declared type of a plain variable; that of a field goes with its write."""
        if target is not None and target.kind_id == IDENTIFIER:
            name = self._text(target)
            symbol = self.scope.bind(name[0], VARIABLE)
            if symbol.annotation is None:
                symbol.annotation = annotation
            self.scope.facts.append((HAS_TYPE, name, annotation))

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
        """Reads a loop's body and `else`: iterations begin at block `head`, block `test` ends the condition."""
        loop = Loop(head, len(self._cleanups))
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
        if kind in (BREAK, CONTINUE):
            if self._loops:
                self._leave_to(source, self._loops[-1], kind == CONTINUE)
        elif kind == RETURN and self._cleanups:
            self.flow.edge(source, self._cleanups[-1].entry)
        self._block()

    def _try(self, node: Node) -> None:
        flow, before, outer = self.flow, self.flow.current, self.flow.handler
        parts = parts_of(node)
        cleanup = next((p for p in parts if p.kind_id == FINALLY), None)
        interrupted = None
        if cleanup is not None:
            interrupted = Cleanup(self._block())
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
        children = parts_of(node)
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

    def _finally(self, clause: Node, first: int, interrupted: Cleanup) -> None:
        """Reads a `finally` body twice over: once after normal control, once (as a copy) after interrupted control."""
        for child in clause.named_children:
            if child.kind_id in BLOCKS:
                self._clause(child)
        self._end_cleanup(first, interrupted)

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
            patterns = [c for c in case.named_children if c.kind_id == CASE_PATTERN]
            is_final = guard is None and len(patterns) == 1 and self._takes_anything(patterns[0])
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

    def _takes_anything(self, pattern: Node) -> bool:
        """Whether a `case` pattern is `_` or a bare name."""
        parts = parts_of(pattern)
        return not parts or (parts[0].kind_id == DOTTED_NAME and self._text(pattern)[0].isidentifier())

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
            names = elements_of(child) or [child]
            for name in names:
                if name.kind_id == IDENTIFIER:
                    self._define(self._text(name)[0], -1, -1, 0, 0)
                else:
                    owner = name.child_by_field_id(F_OBJECT) if name.kind_id == ATTRIBUTE else None
                    self._read(name if owner is None else owner)

    def _outer(self, node: Node) -> None:
        """`global` and `nonlocal`."""
        for child in node.named_children:
            if child.kind_id == IDENTIFIER and self.scope.kind != MODULE:
                symbol = self.scope.bind(self._text(child)[0], OUTER)
                symbol.to_module = node.kind_id == GLOBAL

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
            member = self._text(name)
            if name.named_child_count != 1:  # a dotted name, which Python refuses here
                continue
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
        if definition.kind_id == FUNCTION_DEFINITION:
            self._function(definition, decorators)
        else:
            self._class(definition)

    def _function(self, node: Node, decorators: list[str] | tuple = ()) -> None:
        name_node = node.child_by_field_id(F_NAME)
        if name_node is None:
            return
        name = self._text(name_node)
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

    def _class(self, node: Node) -> None:
        name_node = node.child_by_field_id(F_NAME)
        if name_node is None:
            return
        name = self._text(name_node)
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


STATEMENTS = by_kind(
    assignment=PythonReader._assignment,
    augmented_assignment=PythonReader._augmented_assignment,
    block=PythonReader._clause,
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
EXPRESSIONS.update(dict.fromkeys(STATEMENTS, PythonReader._stray))
