"""The shared reader of expressions, names and definitions, driven by a language's `Description`.

What counts as what, in every language that is read by it:
    - The instance (`this`, `self`, a receiver) is no variable: its reads give no facts of their own.
    - A function that is assigned to a name, or given to a key of an object, is a definition with that name. Any other
      function value is a scope without a name: its calls belong to the function around it, its variables to nobody.
    - Types are read for the names they mention; they are no data flow.
    - Names and members read inside a function value are no data flow of the function around it.
"""

from typing import ClassVar

from tree_sitter import Node

from .flow import Definition, Read
from .language import Description, Tables
from .reader import MAX_DEPTH, Reader
from .schema import CONTAINS, HAS_TYPE
from .scopes import BLOCK, CLASS, DEFINITION, FUNCTION, LAMBDA, PARAMETER, Scope, Span, Symbol

MAX_NESTING = 60  # of statements in statements; each takes several of Python's own frames
MAX_LISTS = 20  # lists in lists that are matched element by element
PARENT = "super()"


def child(node: Node, name: str | None) -> Node | None:
    """The child in a field, or None."""
    return None if name is None else node.child_by_field_name(name)


class TreeReader(Reader):
    """Reads expressions and definitions; `TreeStatements` reads the statements around them."""

    about: ClassVar[Description]
    tables: ClassVar[Tables]

    def __init__(self, source: str):
        super().__init__(source)
        self._marks: list[tuple[int, bool]] = []
        self._is_fresh = False  # whether the block being read has not bound a variable of its own yet

    # Expressions

    def _read(self, root: Node | None) -> None:
        """Reads an expression: the names, members and calls in it, in the order of evaluation."""
        if root is None:
            return
        variables, handlers = self.tables.variables, self.tables.expressions
        stack: list = [root]
        while stack:
            node = stack.pop()
            if node.__class__ is tuple:
                node[0](*node[1:])
                continue
            kind = node.kind_id
            if kind in variables:
                self._variable(node)
                continue
            handler = handlers.get(kind)
            if handler is None:
                stack.extend(reversed(node.named_children))
            else:
                handler(self, node, stack)

    def _pass(self, node: Node, stack: list) -> None:
        """A kind that holds nothing to read."""

    def _parts_of(self, node: Node) -> list[Node]:
        comments = self.tables.comments
        return [part for part in node.named_children if part.kind_id not in comments]

    def _collect(self, node: Node | None) -> tuple[int, int]:
        """Reads an expression whose value is bound to something; returns the numbers of its reads."""
        first = len(self.flow.reads)
        was_collecting, self._is_collecting = self._is_collecting, True
        self._read(node)
        self._is_collecting = was_collecting
        return first, len(self.flow.reads)

    def _variable(self, node: Node) -> None:
        name, start, end = self._text(node)
        if end > start:
            self.scope.uses.append((name, start, end))
            if self._is_collecting:
                self.events.append(len(self.flow.reads))
                self.flow.reads.append(Read(name, start, end, self.scope))

    def _mention(self, node: Node, stack: list) -> None:
        self._use(node)

    def _member_parts(self, node: Node) -> tuple[Node | None, Node | None]:
        owner, name = self.tables.members[node.kind_id]
        if owner is None:
            parts = self._parts_of(node)
            return (parts[0], parts[-1]) if len(parts) > 1 else (None, None)
        return node.child_by_field_name(owner), node.child_by_field_name(name)

    def _member_name(self, node: Node | None) -> Span | None:
        """The name of a member where it is written out, else None."""
        if node is None or node.named_child_count or node.end_byte == node.start_byte:
            return None
        return self._text(node)

    def _owner_name(self, node: Node | None) -> str | None:
        """The name of an owner that is a plain name or the instance, else None."""
        if node is None:
            return None
        if node.kind_id in self.tables.instances:
            return self.about.instance
        if node.kind_id in self.tables.variables or node.kind_id in self.tables.mentions:
            return self._text(node)[0]
        return None

    def _member(self, node: Node, stack: list) -> None:
        owner, name_node = self._member_parts(node)
        if owner is None:
            return
        name = self._member_name(name_node)
        if name is None and name_node is not None:
            stack.append(name_node)
        stack.append(owner)
        owner_name = self._owner_name(owner)
        if owner_name is not None and name is not None:
            self.scope.attributes.append((owner_name, *name))

    def _call(self, node: Node, stack: list) -> None:
        owner_field, name_field, arguments = self.tables.calls[node.kind_id]
        stack.extend(reversed(node.children_by_field_name(arguments)))
        callee = node.child_by_field_name(name_field)
        if callee is None:
            return
        if owner_field is None:
            stack.append(callee)
            self._called(*self._name_parts(callee))
            return
        owner = node.child_by_field_name(owner_field)
        name = self._member_name(callee)
        if owner is not None:
            stack.append(owner)
        if name is None:
            stack.append(callee)
            self.skip("callee that is not a name")
            return
        key = name[0] + self.about.method_mark
        owner_name = self._owner_name(owner)
        if owner_name is not None:
            self.scope.attributes.append((owner_name, key, name[1], name[2]))
        before = self._name_parts(owner)[0] or (None,) if owner is not None else ()
        self._called((*before, key), name[1], name[2])

    def _called(self, parts: tuple[str | None, ...] | None, start: int, end: int) -> None:
        if parts is None or parts[-1] is None:
            self.skip("callee that is not a name")
        elif parts == (PARENT,):
            self.skip("call of the parent's constructor")
        else:
            self.scope.calls.append((parts, start, end))

    def _name_parts(self, node: Node | None) -> tuple[tuple[str | None, ...] | None, int, int]:
        """A dotted name and the span of its last part; None where it has no name."""
        tables = self.tables
        parts: list[str | None] = []
        span = (0, 0)
        while node is not None:
            kind = node.kind_id
            if kind in tables.members:
                node, name_node = self._member_parts(node)
                name = self._member_name(name_node)
                if name is None:
                    return None, 0, 0
            elif kind in tables.generics:
                node = next(iter(self._parts_of(node)), None)
                continue
            elif kind in tables.variables or kind in tables.mentions:
                name, node = self._text(node), None
            elif kind in tables.instances:
                name, node = (self.about.instance, node.start_byte, node.end_byte), None
            elif kind in tables.parents:
                name, node = (PARENT, node.start_byte, node.end_byte), None
            elif parts:
                parts.append(None)
                break
            else:
                return None, 0, 0
            if not parts:
                span = name[1], name[2]
                if span[0] == span[1]:
                    return None, 0, 0
            parts.append(name[0])
        return (tuple(reversed(parts)) if parts else None), *span

    def _class_named(self, node: Node) -> tuple[tuple[str | None, ...] | None, int, int]:
        """The class that an expression which makes an instance names."""
        name = self.tables.creations[node.kind_id]
        named = child(node, name) if name is not None else next(iter(self._parts_of(node)), None)
        return self._name_parts(named)

    def _creation(self, node: Node, stack: list) -> None:
        parts, start, end = self._class_named(node)
        if parts is None or parts[-1] is None:
            self.skip("instance of what is not a name")
        else:
            self.scope.creations.append((parts, start, end))
        stack.extend(reversed(node.named_children))

    def _maybe(self) -> None:
        self._branches.append(self.flow.current)

    def _surely(self) -> None:
        branch = self._branches.pop()
        if branch != self.flow.current:  # a name was bound meanwhile, or not
            self._block(self.flow.current, branch)

    def _conditional(self, node: Node, stack: list) -> None:
        """Operands that may not be evaluated: all but the first."""
        operands = self._parts_of(node)
        stack.append((self._surely,))
        stack.extend(reversed(operands[1:]))
        stack.append((self._maybe,))
        stack.extend(operands[:1])

    def _binary(self, node: Node, stack: list) -> None:
        operator = node.child_by_field_name("operator")
        if operator is not None and operator.type in ("&&", "||", "??", "and", "or"):
            self._conditional(node, stack)
        else:
            stack.extend(reversed(node.named_children))

    # Assignments

    def _assignment(self, node: Node, stack: list) -> None:
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        operator = node.child_by_field_name("operator")
        sign = "=" if operator is None else operator.type
        if left is None or right is None:
            stack.extend(reversed(node.named_children))
        elif sign not in ("=", ":="):
            self._augmented(left, right, stack, sign in ("&&=", "||=", "??="))
        elif not self._name_value(left, right, None):
            self._bind_value(left, right, None, BLOCK if sign == ":=" else None, stack)

    def _augmented(self, left: Node, right: Node | None, stack: list, is_conditional: bool = False) -> None:
        elements = self._elements_of(left)
        if elements is not None and len(elements) == 1:
            left = elements[0]
        if is_conditional:
            stack.append((self._surely,))
        stack.append((self._bind_marked, left, None, None))
        if right is not None:
            stack.append(right)
        if is_conditional:
            stack.append((self._maybe,))
        if left.kind_id in self.tables.variables:
            stack.append(left)
        stack.append((self._mark,))

    def _update(self, node: Node, stack: list) -> None:
        """`x++` and its like."""
        parts = self._parts_of(node)
        if len(parts) == 1:
            self._augmented(parts[0], None, stack)

    def _mark(self) -> None:
        self._marks.append((len(self.flow.reads), self._is_collecting))
        self._is_collecting = True

    def _bind_marked(self, target: Node, annotation: Span | None, declare: str | None, creation: tuple = ()) -> None:
        first, self._is_collecting = self._marks.pop()
        self._bind(target, first, len(self.flow.reads), annotation, declare, creation)

    def _elements_of(self, node: Node) -> list[Node] | None:
        """The elements of a list that is written out, else None."""
        tables = self.tables
        while node.kind_id in tables.parentheses:
            inner = self._parts_of(node)
            if len(inner) != 1:
                return None
            node = inner[0]
        if node.kind_id not in tables.sequences:
            return None
        elements = self._parts_of(node)
        return None if any(element.kind_id in tables.splats for element in elements) else elements

    def _bind_value(
        self, target: Node, value: Node, annotation: Span | None, declare: str | None, stack: list | None = None
    ) -> None:
        """Reads `value` and binds `target` to it, by element where both sides are written out."""
        targets = self._elements_of(target)
        if targets is not None and len(targets) == 1:
            values = self._elements_of(value)
            if values is not None and len(values) == 1:
                target, value = targets[0], values[0]
                targets = self._elements_of(target)
                if targets is None and self._name_value(target, value, declare):
                    return
        if targets is not None and self._depth < MAX_NESTING:
            plan: list[tuple[Node, int, int]] = []
            self._depth += 1
            self._match_up(target, value, plan, 0)
            self._depth -= 1
            for bound, first, last in plan:
                self._bind(bound, first, last, annotation, declare)
            return
        creation = self._created(value)
        steps = [(self._bind_marked, target, annotation, declare, creation), value, (self._mark,)]
        if stack is None:
            self._mark()
            self._read(value)
            self._bind_marked(target, annotation, declare, creation)
        else:
            stack.extend(steps)

    def _created(self, value: Node) -> tuple[str, ...]:
        """The class that `value` makes an instance of; nothing for other values."""
        parts = self._class_named(value)[0] if value.kind_id in self.tables.creations else None
        return parts if parts is not None and None not in parts else ()

    def _match_up(self, target: Node, value: Node, plan: list, depth: int) -> None:
        targets = self._elements_of(target) if depth < MAX_LISTS else None
        values = self._elements_of(value) if targets is not None else None
        if values is not None and len(values) == len(targets):
            for one, other in zip(targets, values, strict=True):
                self._match_up(one, other, plan, depth + 1)
        else:
            plan.append((target, *self._collect(value)))

    def _bind(
        self,
        target: Node,
        first: int,
        last: int,
        annotation: Span | None = None,
        declare: str | None = None,
        creation: tuple = (),
    ) -> None:
        """Binds every name in a target to a value made from reads first to last - 1 (-1: no value)."""
        if self._branches:
            self._block(self.flow.current)
        tables = self.tables
        was_collecting, self._is_collecting = self._is_collecting, False
        stack = [target]
        while stack:
            node = stack.pop()
            kind = node.kind_id
            if kind in tables.variables:
                name = self._text(node)
                if name[1] < name[2]:
                    self._bind_name(name, first, last, annotation, declare, creation if node is target else ())
            elif kind in tables.members:
                self._bind_member(node, first, last)
            elif kind in tables.pairs:
                inner = node.child_by_field_name(tables.pairs[kind])
                if inner is not None:
                    stack.append(inner)
            elif kind in tables.patterns or kind in tables.sequences or kind in tables.parentheses:
                stack.extend(reversed(node.named_children))
            else:
                self._read(node)
        self._is_collecting = was_collecting

    def _body_scope(self) -> Scope:
        """The scope of the function, class or module whose block is being read."""
        scope = self.scope
        while scope.kind == BLOCK:
            scope = scope.parent
        return scope

    def _block_scope(self) -> Scope:
        """The scope of the block being read, made when the block first binds something."""
        if not self.about.has_blocks:
            return self._body_scope()
        if self._is_fresh and self.scope.depth < MAX_DEPTH:
            self._is_fresh = False
            self.scope = self._new_scope(BLOCK, ("", 0, 0), self.scope)
        return self.scope

    def _bind_name(
        self, name: Span, first: int, last: int, annotation: Span | None, declare: str | None, creation: tuple
    ) -> None:
        if declare is not None or self.about.assignment_declares:
            inner = self._block_scope() if declare == BLOCK else self.scope
            self.scope = inner if declare == BLOCK else self._body_scope()
            self._bind_variable(*name)
            symbol = self.scope.names[name[0]]
            if annotation is not None:
                symbol.annotation = symbol.annotation or annotation
                self.scope.facts.append((HAS_TYPE, name, annotation))
            if first >= 0:
                self._define(*name, first, last)
            self.scope = inner
        else:
            symbol = self.scope.lookup(name[0])
            if first >= 0:
                self._define(*name, first, last)
        if symbol is not None and first >= 0:
            symbol.creation = creation if symbol.creation in (None, creation) else ()

    def _bind_member(self, node: Node, first: int, last: int) -> None:
        owner, name_node = self._member_parts(node)
        if owner is None:
            return
        name = self._member_name(name_node)
        owner_name = self._owner_name(owner)
        if owner_name is not None and name is not None:
            self.scope.field_writes.append((owner_name, *name, None))
            if first >= 0:
                self.flow.field_targets.append((owner_name, Definition(*name, self.scope, first, last)))
        self._read(owner)

    # Types and parameters

    def _type(self, node: Node | None) -> Span | None:
        """Reads the names in a type and returns its text with white space collapsed."""
        if node is None:
            return None
        was_collecting, self._is_collecting = self._is_collecting, False
        self._read(node)
        self._is_collecting = was_collecting
        text, start, end = self._text(node)
        if text in self.about.untyped or start == end:
            return None
        return " ".join(text.split()), start, end

    def _parameters(self, scope: Scope, node: Node | None) -> None:
        """Binds parameters in `scope`; types are read in the scope around it, defaults there or inside."""
        if node is None:
            return
        described = self.tables.parameters
        for part in self._parts_of(node) if node.kind_id not in self.tables.variables else [node]:
            fields = described.get(part.kind_id)
            if fields is None:
                self._parameter(scope, part, None)
                continue
            name, declared, value = fields
            annotation = self._type(part.child_by_field_name(declared))
            default = part.child_by_field_name(value)
            if default is not None:
                self._default(scope, default)
            for one in part.children_by_field_name(name):
                if one.is_named:
                    self._parameter(scope, one, annotation)

    def _default(self, scope: Scope, node: Node | None) -> None:
        if not self.about.defaults_inside:
            self._read(node)
            return
        outer = self.scope, self.flow, self.events
        self.scope, self.flow, self.events = scope, scope.flow, scope.flow.events[scope.flow.current]
        self._read(node)
        self.scope, self.flow, self.events = outer

    def _parameter(self, scope: Scope, node: Node, annotation: Span | None) -> None:
        """Binds the names in a parameter, which may be a pattern."""
        tables = self.tables
        stack = [node]
        while stack:
            node = stack.pop()
            kind = node.kind_id
            if kind in tables.variables:
                name = self._text(node)
                if name[1] < name[2]:
                    symbol = scope.bind(name[0], PARAMETER)
                    symbol.annotation = annotation
                    scope.parameters.append((name, annotation))
            elif kind in tables.pairs:
                stack.extend(node.children_by_field_name(tables.pairs[kind]))
            elif kind in tables.patterns or kind in tables.sequences or kind in tables.parentheses:
                stack.extend(reversed(node.named_children))

    def _enter_parameters(self, scope: Scope) -> None:
        for (name, start, end), _ in scope.parameters:
            if scope.names[name].instance_of is None:
                scope.flow.define(Definition(name, start, end, scope, 0, 0))

    # Functions

    def _bind_this(self, scope: Scope, owner: Scope | None, is_class: bool) -> None:
        """Lets the instance in a method mean its class; with no owner, hides the instance around it."""
        symbol = scope.names[self.about.instance] = Symbol(PARAMETER, scope)
        symbol.instance_of = owner
        symbol.is_class = is_class

    def _define_function(
        self,
        name: Span,
        node: Node,
        is_bound: bool = True,
        owner: Scope | None = None,
        key: str | None = None,
        place: Scope | None = None,
        is_member: bool = True,
    ) -> Scope:
        """Makes the scope of a named function and puts its body into the queue.

        Args:
            name: its name.
            node: the function, with its parameters, return type and body.
            is_bound: whether the scope around it binds its name.
            owner: the class that holds it where it is not the scope around it.
            key: the name it is bound by, where it is not `name`.
            place: the scope that binds its name where it is neither `owner` nor the scope around it.
            is_member: whether a class around it holds it; not so in the value of a field.
        """
        outer = owner or self._body_scope()
        scope = self._new_scope(FUNCTION, name, owner or self.scope)
        if is_bound:
            self._bind_in(place or outer, key if key is not None else name[0] + self.about.method_mark, scope)
        if outer.kind == FUNCTION or (outer.kind == CLASS and is_member):
            outer.facts.append((CONTAINS, outer.name, name))
        self.boundaries.setdefault(node.start_byte, 1)
        self._fill_function(scope, node, outer if outer.kind == CLASS and is_member else None)
        return scope

    def _bind_in(self, place: Scope, key: str, definition: Scope) -> None:
        """Binds a name to a function or class in the scope `place`."""
        if place is self._body_scope():
            inner, self.scope = self.scope, place
            self._bind_definition(key, DEFINITION).definitions.append(definition)
            self.scope = inner
        else:
            place.bind(key, DEFINITION).definitions.append(definition)

    def _fill_function(self, scope: Scope, node: Node, owner: Scope | None) -> None:
        for field_name in ("parameters", "parameter"):
            self._parameters(scope, node.child_by_field_name(field_name))
        scope.returns = self._return_type(node)
        self._set_this(scope, node, owner)
        self._enter_parameters(scope)
        self._wait(scope, node.child_by_field_name("body"))

    def _return_type(self, node: Node) -> Span | None:
        return self._type(node.child_by_field_name("return_type"))

    def _is_static(self, node: Node) -> bool:
        return any(part.type == "static" for part in node.children[:3])

    def _set_this(self, scope: Scope, node: Node, owner: Scope | None) -> None:
        if owner is not None:
            self._bind_this(scope, owner, self._is_static(node))
        elif node.kind_id not in self.tables.arrows:
            self._bind_this(scope, None, False)

    def _function(self, node: Node, stack: list | None = None) -> None:
        name = node.child_by_field_name("name")
        if name is None or name.start_byte == name.end_byte:
            return
        self._define_function(self._text(name), node)

    def _function_value(self, node: Node, stack: list) -> None:
        """A function that is a value; one with a name of its own is known by it inside only."""
        name = node.child_by_field_name("name")
        if name is not None and name.end_byte > name.start_byte:
            self._define_function(self._text(name), node, is_bound=False)
            return
        scope = self._new_scope(LAMBDA, ("", node.start_byte, node.start_byte), self.scope)
        was_collecting, self._is_collecting = self._is_collecting, False
        self._fill_function(scope, node, None)
        self._is_collecting = was_collecting

    def _name_value(self, target: Node, value: Node, declare: str | None) -> bool:
        """Defines the function or class that is assigned to a name; False where the value is none or has no place."""
        tables = self.tables
        is_class = value.kind_id in tables.classes
        if value.kind_id not in tables.functions and not is_class:
            return False
        if target.kind_id in tables.members:
            owner, name_node = self._member_parts(target)
            name = self._member_name(name_node)
            if name is None or name[0] == "exports":
                return False
            self._read(owner)
            if self._owner_name(owner) == self.about.instance:
                self.scope.field_writes.append((self.about.instance, *name, None))
        elif target.kind_id in tables.variables:
            name = self._text(target)
        else:
            return False
        if name[1] == name[2]:
            return False
        is_bound = target.kind_id in tables.variables
        place = None
        if is_bound and declare is None:
            known = self.scope.lookup(name[0])
            place = known.scope if known is not None else self.scopes[0]
        was_collecting, self._is_collecting = self._is_collecting, False
        if is_class:
            self._define_class(name, value, is_bound, place)
        else:
            self._define_function(name, value, is_bound, key=name[0], place=place)
        self._is_collecting = was_collecting
        return True

    # Classes

    def _class(self, node: Node, stack: list | None = None) -> None:
        name = node.child_by_field_name("name")
        if name is None or name.start_byte == name.end_byte:
            return
        self._define_class(self._text(name), node)

    def _class_value(self, node: Node, stack: list) -> None:
        name = node.child_by_field_name("name")
        self._define_class(
            self._text(name) if name is not None else ("", node.start_byte, node.start_byte), node, is_bound=False
        )

    def _define_class(self, name: Span, node: Node, is_bound: bool = True, place: Scope | None = None) -> Scope:
        """Makes the scope of a class and puts its body into the queue."""
        outer = self._body_scope()
        scope = self._new_scope(CLASS, name, self.scope)
        scope.is_open = self.about.is_open
        for base in self._bases(node):
            self._base(scope, base)
        if is_bound:
            self._bind_in(place or outer, name[0], scope)
        if outer.kind in (CLASS, FUNCTION):
            outer.facts.append((CONTAINS, outer.name, name))
        self._enter_class(scope, node)
        self._wait(scope, node.child_by_field_name("body"))
        return scope

    def _bases(self, node: Node) -> list[Node]:
        """The nodes of the classes that a class inherits from."""
        return []

    def _enter_class(self, scope: Scope, node: Node) -> None:
        """What a class says outside its body."""

    def _base(self, scope: Scope, base: Node) -> None:
        self._read(base)
        parts, _, end = self._name_parts(base)
        if parts is None or None in parts or PARENT in parts:
            self.skip("base that is not a name")
        else:
            scope.bases.append((parts, base.start_byte, end))
