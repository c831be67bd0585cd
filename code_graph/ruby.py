"""Ruby: what the shared reader has to know about it.

Relations: all but `has_type`, `returns` (Ruby writes no types), `imports` and `imported_from` (`require` binds no name).
    - A module is a class. `contains`: methods, classes and modules. `inherits`: the superclass, and the modules named by
      `include`, `extend` and `prepend` in the body.
    - `has_field`: instance and class variables with their `@`, constants, and the names given to `attr_reader` and its
      kin. `self.x = v` calls a method and is no field.
    - `calls`: a bare name that is no local variable is a call of a method; `super` calls the parent's method of the same
      name. Operators, `yield` and `not` are no calls. `instantiates`: `Name.new`, and `new` in a method of the class.
    - `declares`: local variables, in blocks too, and rescued exceptions; parameters of blocks are not meant.
    - Methods see no local variables around them, blocks and lambdas do. What a block reads is no data flow into the
      variable that the call with the block is assigned to.
"""

from tree_sitter import Node

from .flow import Definition
from .language import Description, Tables
from .scopes import BLOCK, CLASS, FUNCTION, LAMBDA, PARAMETER, VARIABLE, Scope, Span, Symbol
from .tree_reader import MAX_NESTING, PARENT, TreeReader, child
from .tree_statements import TreeStatements

ATTRIBUTES = ("attr_reader", "attr_writer", "attr_accessor")
MIXINS = ("include", "extend", "prepend")
REQUIRES = ("require", "require_relative", "load", "autoload")
MODIFIERS = ("if_modifier", "unless_modifier", "while_modifier", "until_modifier")


class RubyReader(TreeStatements):
    """Reads one file of Ruby."""

    about = Description(
        name="ruby",
        variables=("identifier", "constant", "instance_variable", "class_variable", "global_variable"),
        instances=("self",),
        instance="self",
        parents=("super",),
        members={"scope_resolution": ("scope", "name")},
        calls={"call": ("receiver", "method", "arguments")},
        patterns=("rest_assignment", "splat_parameter", "hash_splat_parameter", "destructured_parameter"),
        sequences=("left_assignment_list", "right_assignment_list", "destructured_left_assignment", "array"),
        splats=("rest_assignment", "splat_argument"),
        parentheses=("parenthesized_statements",),
        leaves=(
            "comment", "integer", "float", "rational", "complex", "true", "false", "nil", "self", "simple_symbol",
            "hash_key_symbol", "string_content", "escape_sequence", "character", "heredoc_beginning", "alias", "undef",
            "uninterpreted", "forward_argument", "operator", "encoding", "file", "line",
        ),
        parameters={
            "optional_parameter": ("name", "type", "value"),
            "keyword_parameter": ("name", "type", "value"),
            "splat_parameter": ("name", "type", "value"),
            "hash_splat_parameter": ("name", "type", "value"),
            "block_parameter": ("name", "type", "value"),
        },
        lists=("then", "do", "block_body", "body_statement", "program"),
        definitions=("method", "singleton_method", "class", "module"),
        conditionals=("if", "unless", "elsif", "if_modifier", "unless_modifier"),
        elses=("else", "ensure"),
        cases=("when", "in_clause", "else"),
        tests=("pattern", "guard"),
        catches=("rescue",),
        finallies=("ensure",),
        try_elses=("else",),
        endless=frozenset({"true"}),
        method_mark="()",
        is_open=True,
        has_blocks=False,
        assignment_declares=True,
        defaults_inside=True,
    )  # fmt: skip

    def __init__(self, source: str):
        super().__init__(source)
        self._in_singleton = False

    # Names

    def _holder(self, name: str) -> Scope | None:
        """The scope that holds the local variable `name`, or None where it is none."""
        scope: Scope | None = self.scope
        while scope is not None:
            symbol = scope.names.get(name)
            if symbol is not None and symbol.kind in (VARIABLE, PARAMETER):
                return scope
            if scope.kind not in (BLOCK, LAMBDA):
                return None
            scope = scope.parent
        return None

    def _variable(self, node: Node) -> None:
        name, start, end = self._text(node)
        if name[:1] == "@":
            self.scope.attributes.append(("self", name, start, end))
        elif name[:1].isupper() or name[:1] == "$" or self._holder(name) is not None:
            super()._variable(node)
        elif name == "new" and self._is_class(None):
            self.scope.creations.append((("self",), start, end))
        elif end > start:
            self.scope.calls.append(((name + "()",), start, end))

    def _name_parts(self, node: Node | None) -> tuple[tuple[str | None, ...] | None, int, int]:
        if node is not None and node.type == "identifier" and self._holder(self._text(node)[0]) is None:
            return None, 0, 0
        return super()._name_parts(node)

    def _bind_name(self, name: Span, first: int, last: int, annotation: Span | None, declare, creation) -> None:
        text = name[0]
        if text[0] == "@":
            self.scope.field_writes.append(("self", *name, None))
            if first >= 0:
                self.flow.field_targets.append(("self", Definition(*name, self.scope, first, last)))
            return
        if text[0] != "$":
            inner = self.scope
            self.scope = self._body_scope() if text[0].isupper() else self._holder(text) or inner
            self._bind_variable(*name)
            symbol = self.scope.names[text]
            if inner.kind == CLASS and not text[0].isupper():
                symbol.variable = None  # a local variable of a class body is no field
            if first >= 0:
                symbol.creation = creation if symbol.creation in (None, creation) else ()
                self._define(*name, first, last)
            self.scope = inner
        elif first >= 0:
            self._define(*name, first, last)

    # Calls

    def _call_method(self, node: Node, stack: list) -> None:
        receiver, method = child(node, "receiver"), child(node, "method")
        block = child(node, "block")
        if block is not None:
            stack.append(block)
        if method is None:
            stack.extend(reversed([part for part in node.named_children if part != block]))
            return
        if method.type == "super":
            self._super(method, stack)
            stack.extend(reversed(node.children_by_field_name("arguments")))
            return
        name = self._text(method)
        if receiver is None and self._directive(name[0], node):
            return
        if name[0] == "new" and self._is_class(receiver):
            parts, start, end = self._name_parts(receiver) if receiver is not None else (("self",), *name[1:])
            if parts is not None and None not in parts:
                self.scope.creations.append((parts, start, end))
                stack.extend(reversed(node.children_by_field_name("arguments")))
                if receiver is not None:
                    stack.append(receiver)
                return
        if method.type in ("identifier", "constant"):
            super()._call(node, stack)
        else:
            self.skip("callee that is not a name")
            stack.extend(reversed([part for part in node.named_children if part not in (block, method)]))

    def _is_class(self, receiver: Node | None) -> bool:
        """Whether the receiver is a constant, or the class itself in one of its own methods."""
        if receiver is None or receiver.type == "self":
            symbol = self.scope.lookup("self")
            return symbol is not None and symbol.instance_of is not None and symbol.is_class
        return receiver.type in ("constant", "scope_resolution")

    def _created(self, value: Node) -> tuple[str, ...]:
        receiver = child(value, "receiver") if value.type == "call" else None
        if receiver is None or receiver.type not in ("constant", "scope_resolution"):
            return ()
        method = child(value, "method")
        parts = self._name_parts(receiver)[0] if method is not None and self._text(method)[0] == "new" else None
        return parts if parts is not None and None not in parts else ()

    def _directive(self, name: str, node: Node) -> bool:
        """Calls that declare something; True where there is nothing else to read in them."""
        arguments = child(node, "arguments")
        parts = [] if arguments is None else self._parts_of(arguments)
        if name in REQUIRES and len(parts) >= 1 and parts[-1].type == "string":
            self.skip("import that binds no name")
            return True
        if self.scope.kind != CLASS:
            return False
        if name in ATTRIBUTES:
            for part in parts:
                start, end = part.start_byte + 1, part.end_byte - (part.type == "string")
                if part.type in ("simple_symbol", "string") and end > start:
                    symbol = self.scope.bind(self.source[start:end], VARIABLE)
                    symbol.variable = symbol.variable or (self.source[start:end], start, end)
            return True
        if name in MIXINS and parts:
            for part in parts:
                if part.type in ("constant", "scope_resolution"):
                    self._base(self.scope, part)
                else:
                    self._read(part)
            return True
        return False

    def _super(self, node: Node, stack: list) -> None:
        function = self.scope.function
        if function is not None:
            self.scope.calls.append(((PARENT, function.name[0] + "()"), node.start_byte, node.end_byte))

    def _bind(self, target: Node, first: int, last: int, *rest) -> None:
        if target.type == "call":  # a.b = c calls a method
            self._read(child(target, "receiver"))
        else:
            super()._bind(target, first, last, *rest)

    def _run_block(self, node: Node, stack: list) -> None:
        """A block runs any number of times, in a scope that sees the variables around it."""
        if self._depth >= MAX_NESTING:
            self.skip("nested too deeply")
            return
        scope, was_collecting = self.scope, self._is_collecting
        self._is_collecting = False
        head = self._block(self.flow.current)
        loop = self._begin_loop(head)
        self._block(head)
        self.scope = self._new_scope(BLOCK, ("", node.start_byte, node.start_byte), scope)
        self._parameters(self.scope, child(node, "parameters"))
        for name, _ in self.scope.parameters:
            self._define(*name, 0, 0)
        self._depth += 1
        self._statements(self._body_nodes(node) or [], is_body=False)
        self._depth -= 1
        self.flow.edge(self.flow.current, head)
        self._loops.pop()
        self.scope, self._is_collecting = scope, was_collecting
        self._block(head, *loop.breaks)

    def _lambda(self, node: Node, stack: list) -> None:
        scope = self._new_scope(LAMBDA, ("", node.start_byte, node.start_byte), self.scope)
        self._parameters(scope, child(node, "parameters"))
        self._enter_parameters(scope)
        self._wait(scope, child(node, "body"))

    # Definitions

    def _body_nodes(self, body: Node) -> list[Node] | None:
        if body.type in ("block", "do_block"):
            inner = child(body, "body")
            return [] if inner is None else self._body_nodes(inner)
        clauses = self.tables.catches | self.tables.finallies
        if body.type == "body_statement" and any(part.kind_id in clauses for part in body.named_children):
            return [body]
        return body.named_children if body.kind_id in self.tables.lists else [body]

    def _body(self, node: Node) -> None:
        """`begin`, or a body with `rescue` or `ensure` clauses."""
        clauses = self.tables.catches | self.tables.finallies
        if any(part.kind_id in clauses for part in node.named_children):
            self._try(node)
        else:
            self._statements(node.named_children, is_body=False)

    def _try_body(self, parts: list[Node]) -> None:
        is_body = bool(parts) and parts[0].parent is not None and parts[0].parent.type == "body_statement"
        self._statements(parts, is_body)

    def _method(self, node: Node, stack: list | None = None) -> None:
        name = child(node, "name")
        if name is None or name.end_byte == name.start_byte:
            return
        was_collecting, self._is_collecting = self._is_collecting, False
        self._define_function(self._text(name), node).is_closed = True
        self._is_collecting = was_collecting

    def _is_static(self, node: Node) -> bool:
        return node.type == "singleton_method" or self._in_singleton

    def _class_or_module(self, node: Node) -> None:
        name = child(node, "name")
        if name is not None and name.type == "scope_resolution":
            name = child(name, "name")
        if name is None or name.end_byte == name.start_byte:
            return
        scope = self._define_class(self._text(name), node)
        scope.is_closed = True
        symbol = scope.names["self"] = Symbol(PARAMETER, scope)
        symbol.instance_of, symbol.is_class = scope, True

    def _bases(self, node: Node) -> list[Node]:
        parent = child(node, "superclass")
        return [] if parent is None else self._parts_of(parent)[:1]

    def _singleton(self, node: Node) -> None:
        was_in, self._in_singleton = self._in_singleton, True
        body = child(node, "body")
        if body is not None:
            self._statements(body.named_children, is_body=True)
        self._in_singleton = was_in

    # Statements

    def _catch(self, clause: Node) -> None:
        for part in clause.children_by_field_name("exceptions"):
            self._read(part)
        variable = child(clause, "variable")
        for part in variable.named_children if variable is not None else ():
            self._bind(part, 0, 0)
        self._clause(child(clause, "body"))

    def _case_test(self, test: Node, first: int, last: int) -> None:
        parent = test.parent
        if parent is None or parent.type != "in_clause" or test.type in ("if_guard", "unless_guard"):
            self._read(test)
            return
        stack = [test]
        while stack:
            node = stack.pop()
            kind = node.type
            if kind == "identifier":
                self._bind(node, first, last)
            elif kind == "keyword_pattern":
                key, value = child(node, "key"), child(node, "value")
                if value is not None:
                    stack.append(value)
                elif key is not None and key.end_byte > key.start_byte:
                    self._bind_name(self._text(key), first, last, None, None, ())
            elif kind in (
                "constant",
                "scope_resolution",
                "expression_reference_pattern",
                "variable_reference_pattern",
            ):
                self._read(node)
            else:
                stack.extend(reversed(node.named_children))

    def _modified(self, node: Node) -> None:
        """`body if condition` and its like: the names that the body binds are variables in the condition already."""
        body = child(node, "body")
        left = child(body, "left") if body is not None and body.type in ("assignment", "operator_assignment") else None
        if left is not None and left.type in ("identifier", "left_assignment_list"):
            self._bind(left, -1, -1)
        if node.type in ("if_modifier", "unless_modifier"):
            self._if(node)
        else:
            self._while(node)

    def _for_in(self, node: Node) -> None:
        pattern, values = child(node, "pattern"), child(node, "value")
        inner = None if values is None else next(iter(self._parts_of(values)), None)
        self._for_each([pattern] if pattern is not None else [], inner, child(node, "body"), FUNCTION)

    def _jump(self, node: Node) -> None:
        for part in node.named_children:
            self._read(part)
        if self._loops:
            self._leave_to(self.flow.current, self._loops[-1], node.type == "next")
        self._block()


STATEMENTS = {
    **dict.fromkeys(("method", "singleton_method"), RubyReader._method),
    **dict.fromkeys(("class", "module"), RubyReader._class_or_module),
    "singleton_class": RubyReader._singleton,
    "body_statement": RubyReader._body,
    "begin": RubyReader._body,
    **dict.fromkeys(("if", "unless"), TreeStatements._if),
    **dict.fromkeys(("while", "until"), TreeStatements._while),
    **dict.fromkeys(MODIFIERS, RubyReader._modified),
    "case": TreeStatements._switch,
    "case_match": TreeStatements._switch,
    "for": RubyReader._for_in,
    "return": TreeStatements._return,
    "break": RubyReader._jump,
    "next": RubyReader._jump,
}
EXPRESSIONS = {
    **dict.fromkeys(STATEMENTS, TreeStatements._stray),
    **dict.fromkeys(RubyReader.about.leaves, TreeReader._pass),
    "call": RubyReader._call_method,
    "super": RubyReader._super,
    "scope_resolution": TreeReader._member,
    "assignment": TreeReader._assignment,
    "operator_assignment": TreeReader._assignment,
    "binary": TreeReader._binary,
    "conditional": TreeReader._conditional,
    "rescue_modifier": TreeReader._conditional,
    "block": RubyReader._run_block,
    "do_block": RubyReader._run_block,
    "lambda": RubyReader._lambda,
}
RubyReader.tables = Tables(RubyReader.about, STATEMENTS, EXPRESSIONS)
