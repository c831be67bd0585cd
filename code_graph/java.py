"""Java: what the shared reader has to know about it.

Relations: all but `imports`, because every import brings in a member of a package.
    - `imported_from`: `import a.b.C` and `import static a.b.C.m`. Imports of everything are left out.
    - `calls` are method calls; calls of constructors by `this(...)` and `super(...)` and method references are left out.
    - `instantiates`: `new`, anonymous classes included, arrays not.
    - A lambda is a value, also where a variable is declared with it. `contains`: constructors too.
    - `inherits`: `extends` and `implements`.
    - `has_field`: fields, constants of enumerations, components of records.
    - `has_type`: of parameters, variables and fields, as written; `var` is no type. `returns`: `void` included.
"""

import re

from tree_sitter import Node

from .language import Description, Tables
from .schema import IMPORTED_FROM
from .scopes import BLOCK, FUNCTION, MEMBER_IMPORT, VARIABLE, Scope, Span
from .tree_reader import TreeReader, child
from .tree_statements import TreeStatements

METHODS = ("method_declaration", "constructor_declaration", "compact_constructor_declaration")
CLASSES = (
    "class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
    "annotation_type_declaration",
)  # fmt: skip


class JavaReader(TreeStatements):
    """Reads one file of Java."""

    about = Description(
        name="java",
        variables=("identifier",),
        mentions=("type_identifier",),
        instances=("this",),
        parents=("super",),
        members={"field_access": ("object", "field"), "scoped_type_identifier": (None, None)},
        calls={"method_invocation": ("object", "name", "arguments")},
        creations={"object_creation_expression": "type"},
        generics=("generic_type", "annotated_type"),
        parentheses=("parenthesized_expression",),
        leaves=(
            "line_comment", "block_comment", "decimal_integer_literal", "hex_integer_literal", "true", "false",
            "null_literal", "character_literal", "integral_type", "floating_point_type", "boolean_type", "void_type",
            "this", "super", "package_declaration",
        ),
        parameters={
            "formal_parameter": ("name", "type", "value"),
            "receiver_parameter": ("name", "type", "value"),
        },
        arrows=("lambda_expression",),
        blocks=("block", "constructor_body", "switch_block"),
        lists=("class_body", "interface_body", "enum_body", "enum_body_declarations", "annotation_type_body"),
        definitions=(*METHODS, *CLASSES),
        conditionals=("if_statement",),
        cases=("switch_block_statement_group", "switch_rule"),
        tests=("switch_label",),
        falls=("switch_block_statement_group",),
        catches=("catch_clause",),
        finallies=("finally_clause",),
        comments=("line_comment", "block_comment"),
        untyped=frozenset({"var"}),
        method_mark="()",
        is_open=True,
        type_name=re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?:<.*>)?\Z", re.S),
    )  # fmt: skip

    def _import(self, node: Node) -> None:
        if any(part.type == "asterisk" for part in node.named_children):
            self.skip("import of everything")
            return
        path = next((part for part in node.named_children if part.kind_id not in self.tables.comments), None)
        module, name = (None, None) if path is None else (child(path, "scope"), child(path, "name"))
        if module is None or name is None:
            return
        local = self._text(name)
        text, start, end = self._text(module)
        source = "".join(text.split()), start, end
        is_static = any(part.type == "static" for part in node.children)
        for key in (local[0], local[0] + "()") if is_static else (local[0],):
            symbol = self._bind_definition(key, MEMBER_IMPORT)
            if symbol.imported is None:
                symbol.imported, symbol.module = f"{source[0]}.{local[0]}", source
        self.scope.facts.append((IMPORTED_FROM, local, source))

    def _bases(self, node: Node) -> list[Node]:
        found = []
        for part in node.named_children:
            if part.type in ("superclass", "super_interfaces", "extends_interfaces"):
                for base in self._parts_of(part):
                    found += self._parts_of(base) if base.type == "type_list" else [base]
        return found

    def _enter_class(self, scope: Scope, node: Node) -> None:
        """Components of a record are its fields."""
        inner, self.scope = self.scope, scope
        parameters = child(node, "parameters")
        for part in parameters.named_children if parameters is not None else ():
            name = child(part, "name")
            if name is not None and name.end_byte > name.start_byte:
                self._annotate_field(self._text(name), self._type(child(part, "type")))
        self.scope = inner

    def _enum_constant(self, node: Node) -> None:
        name = child(node, "name")
        if name is not None and name.end_byte > name.start_byte:
            self._annotate_field(self._text(name), None)
        self._read(child(node, "arguments"))
        body = child(node, "body")
        if body is not None:
            self._anonymous(body)

    def _anonymous(self, body: Node) -> Scope:
        scope = self._new_scope("class", ("", body.start_byte, body.start_byte), self.scope)
        scope.is_open = True
        self._wait(scope, body)
        return scope

    def _create(self, node: Node, stack: list) -> None:
        """`new`: an anonymous class inherits from the class it names."""
        body = next((part for part in node.named_children if part.type == "class_body"), None)
        self._creation(node, stack)
        if body is not None:
            stack.remove(body)
            parts, start, end = self._class_named(node)
            scope = self._anonymous(body)
            if parts is not None and None not in parts:
                scope.bases.append((parts, start, end))

    def _method(self, node: Node) -> None:
        name = child(node, "name")
        if name is None or name.end_byte == name.start_byte:
            return
        self._define_function(self._text(name), node, is_bound=node.type == "method_declaration")

    def _is_static(self, node: Node) -> bool:
        first = node.children[0]
        return first.type == "modifiers" and any(part.type == "static" for part in first.children)

    def _return_type(self, node: Node) -> Span | None:
        return self._type(child(node, "type"))

    def _parameters(self, scope: Scope, node: Node | None) -> None:
        super()._parameters(scope, node)
        for part in node.named_children if node is not None else ():
            if part.type == "spread_parameter":
                parts = [p for p in self._parts_of(part) if p.type != "modifiers"]
                if len(parts) == 2:
                    declared = self._type(parts[0])
                    for name in parts[1].children_by_field_name("name"):
                        self._parameter(scope, name, declared)

    def _initializer(self, node: Node) -> None:
        """A static or instance initializer runs in a scope of its own."""
        scope = self._new_scope("lambda", ("", node.start_byte, node.start_byte), self.scope)
        self._bind_this(scope, self.scope if self.scope.kind == "class" else None, False)
        body = next((part for part in node.named_children if part.type == "block"), None)
        self._wait(scope, node if body is None or node.type == "block" else body)

    def _block_or_initializer(self, node: Node) -> None:
        if self.scope.kind == "class":
            self._initializer(node)
        else:
            self._nested(node)

    def _for_in(self, node: Node) -> None:
        declared = self._type(child(node, "type"))
        name = child(node, "name")
        self._for_each([name] if name is not None else [], child(node, "value"), child(node, "body"), BLOCK, declared)

    def _resource(self, node: Node) -> None:
        for resource in node.named_children:
            name, value = child(resource, "name"), child(resource, "value")
            if name is not None and value is not None:
                self._bind_value(name, value, self._type(child(resource, "type")), BLOCK)
            else:
                self._read(resource)

    def _catch(self, clause: Node) -> None:
        for part in clause.named_children:
            if part.type == "catch_formal_parameter":
                name = child(part, "name")
                types = next((p for p in part.named_children if p.type == "catch_type"), None)
                if name is not None:
                    self._bind(name, 0, 0, self._type(types), BLOCK)
        self._clause(child(clause, "body"))

    def _instance_of(self, node: Node, stack: list) -> None:
        """`value instanceof Type name` binds the name."""
        name = child(node, "name")
        value, declared = child(node, "left"), child(node, "right")
        if name is None or value is None:
            stack.extend(reversed(node.named_children))
            return
        annotation = self._type(declared)
        stack.extend([(self._bind_marked, name, annotation, BLOCK), value, (self._mark,)])

    def _case_test(self, test: Node, first: int, last: int) -> None:
        """Labels: `case Type name` binds the name to the value of the switch, `when` guards are read."""
        for part in self._parts_of(test):
            if part.type != "pattern":
                self._read(part)
                continue
            stack = [part]
            while stack:
                node = stack.pop()
                parts = self._parts_of(node)
                if node.type in ("type_pattern", "record_pattern_component") and len(parts) == 2:
                    self._bind(parts[1], first, last, self._type(parts[0]), BLOCK)
                elif node.type == "record_pattern":
                    self._read(parts[0]) if parts[0].type != "identifier" else self._use(parts[0])
                    stack.extend(reversed(parts[1:]))
                else:
                    stack.extend(reversed(parts))

    def _is_default(self, case: Node, tests: list[Node]) -> bool:
        return any(self._text(test)[0].startswith("default") for test in tests)

    def _yield(self, node: Node) -> None:
        for part in node.named_children:
            self._read(part)

    def _annotation(self, node: Node, stack: list) -> None:
        """An annotation is a use of its name; the values in it are read."""
        name = child(node, "name")
        if name is not None and name.type == "identifier":
            self._use(name)
        arguments = child(node, "arguments")
        if arguments is not None:
            stack.append(arguments)

    def _pair_value(self, node: Node, stack: list) -> None:
        value = child(node, "value")
        if value is not None:
            stack.append(value)

    def _declared_field(self, node: Node) -> None:
        for part in node.named_children:
            if part.type == "modifiers":
                self._read(part)
        self._declare_list(node, FUNCTION)

    def _bind_name(self, name: Span, first: int, last: int, annotation: Span | None, declare, creation) -> None:
        super()._bind_name(name, first, last, annotation, declare, creation)
        if declare == FUNCTION and self.scope.kind == "class":
            self.scope.names[name[0]].kind = VARIABLE


STATEMENTS = {
    "import_declaration": JavaReader._import,
    **dict.fromkeys(CLASSES, TreeReader._class),
    **dict.fromkeys(METHODS, JavaReader._method),
    "field_declaration": JavaReader._declared_field,
    "constant_declaration": JavaReader._declared_field,
    "enum_constant": JavaReader._enum_constant,
    "static_initializer": JavaReader._initializer,
    "block": JavaReader._block_or_initializer,
    "constructor_body": TreeStatements._nested,
    "local_variable_declaration": TreeStatements._declare_list,
    "expression_statement": TreeStatements._wrapper,
    "if_statement": TreeStatements._if,
    "while_statement": TreeStatements._while,
    "do_statement": TreeStatements._do_while,
    "for_statement": TreeStatements._for,
    "enhanced_for_statement": JavaReader._for_in,
    "switch_expression": TreeStatements._switch,
    "try_statement": TreeStatements._try,
    "try_with_resources_statement": TreeStatements._try,
    "labeled_statement": TreeStatements._labelled,
    "return_statement": TreeStatements._return,
    "throw_statement": TreeStatements._return,
    "yield_statement": JavaReader._yield,
    "break_statement": TreeStatements._break,
    "continue_statement": TreeStatements._continue,
}
EXPRESSIONS = {
    **dict.fromkeys(STATEMENTS, TreeStatements._stray),
    **dict.fromkeys(JavaReader.about.leaves, TreeReader._pass),
    **dict.fromkeys(JavaReader.about.mentions, TreeReader._mention),
    "field_access": TreeReader._member,
    "method_invocation": TreeReader._call,
    "object_creation_expression": JavaReader._create,
    "assignment_expression": TreeReader._assignment,
    "update_expression": TreeReader._update,
    "binary_expression": TreeReader._binary,
    "ternary_expression": TreeReader._conditional,
    "instanceof_expression": JavaReader._instance_of,
    "lambda_expression": TreeReader._function_value,
    "annotation": JavaReader._annotation,
    "marker_annotation": JavaReader._annotation,
    "element_value_pair": JavaReader._pair_value,
}
JavaReader.tables = Tables(JavaReader.about, STATEMENTS, EXPRESSIONS)
