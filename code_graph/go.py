"""Go: what the shared reader has to know about it.

Relations: all but `imported_from`, because every import binds a package.
    - `imports`: the local name is the alias, or the last part of the path (the one before a version like `v2`). Imports
      for their side effects and `import .` bind no name that is known.
    - A type declared by `type` is a class. `contains`: its methods, wherever they stand in the file, and the methods of
      an interface. `has_field`: the fields of a struct and what methods assign to a field of their receiver.
    - `inherits`: embedded types of a struct, embedded interfaces of an interface.
    - `calls`: conversions to builtin types and types of the file, and `new`, are no calls. `instantiates`: composite
      literals of a named type and `new(T)`; slices, arrays and maps are left out.
    - `has_parameter`: the receiver included; it counts as the instance: its reads give no facts of their own.
    - `has_type`: parameters, fields, `var` and `const` with a type, named results. `returns`: the result as written.
    - `declares`: `:=`, `var`, `const`, `range` variables, named results; each lives in its block. `_` is no variable.
"""

import re

from tree_sitter import Node

from .language import Description, Tables
from .schema import CONTAINS, HAS_TYPE, IMPORTS
from .scopes import BLOCK, CLASS, DEFINITION, FUNCTION, IMPORT, VARIABLE, Scope, Span
from .tree_reader import TreeReader, child
from .tree_statements import TreeStatements

VERSION = re.compile(r"v\d+\Z")
TYPES = (
    "bool byte complex64 complex128 error float32 float64 int int8 int16 int32 int64 rune string uint uint8 uint16 "
    "uint32 uint64 uintptr any"
)


class GoReader(TreeStatements):
    """Reads one file of Go."""

    about = Description(
        name="go",
        variables=("identifier",),
        mentions=("type_identifier", "package_identifier"),
        members={"selector_expression": ("operand", "field"), "qualified_type": ("package", "name")},
        calls={"call_expression": (None, "function", "arguments")},
        creations={"composite_literal": "type"},
        generics=("generic_type", "type_instantiation_expression"),
        sequences=("expression_list",),
        splats=("variadic_argument",),
        parentheses=("parenthesized_expression",),
        leaves=(
            "comment", "int_literal", "float_literal", "imaginary_literal", "rune_literal", "nil", "true", "false",
            "interpreted_string_literal", "raw_string_literal", "package_clause", "label_name", "field_identifier",
        ),
        parameters={
            "parameter_declaration": ("name", "type", "value"),
            "variadic_parameter_declaration": ("name", "type", "value"),
        },
        functions=("func_literal",),
        arrows=("func_literal",),
        blocks=("block",),
        lists=("statement_list", "import_spec_list"),
        definitions=("function_declaration", "method_declaration", "type_declaration"),
        conditionals=("if_statement",),
        cases=("expression_case", "type_case", "communication_case", "default_case"),
        tests=("value", "type", "communication"),
        type_name=re.compile(r"\**([^\W\d]\w*(?:\.[^\W\d]\w*)*)(?:\[.*\])?\Z", re.S),
        builtin_types=frozenset(TYPES.split()),
    )  # fmt: skip

    def __init__(self, source: str):
        super().__init__(source)
        self._types: dict[int, Scope] = {}  # scopes of the types at the top of the file, by where their names stand

    def _prepare(self, root: Node) -> None:
        """Binds the types of the file first: methods may stand before them."""
        for declaration in root.named_children:
            if declaration.type == "type_declaration":
                for spec in declaration.named_children:
                    name = child(spec, "name")
                    if name is not None and name.end_byte > name.start_byte:
                        self._types[name.start_byte] = self._new_type(self._text(name))

    def _new_type(self, name: Span) -> Scope:
        scope = self._new_scope(CLASS, name, self.scope)
        self._bind_in(self._body_scope(), name[0], scope)
        return scope

    def _import(self, node: Node) -> None:
        for spec in node.named_children:
            if spec.type == "import_spec_list":
                self._import(spec)
            elif spec.type == "import_spec":
                self._import_one(spec)

    def _import_one(self, spec: Node) -> None:
        path, alias = child(spec, "path"), child(spec, "name")
        if path is None or path.end_byte - path.start_byte < 3:
            return
        start, end = path.start_byte + 1, path.end_byte - 1
        module = self.source[start:end], start, end
        if alias is not None and alias.type != "package_identifier":
            self.skip("import of everything" if alias.type == "dot" else "import that binds no name")
            return
        if alias is not None:
            local = self._text(alias)
        else:
            parts = module[0].split("/")
            number = -2 if len(parts) > 1 and VERSION.match(parts[-1]) else -1
            last = start + sum(len(part) + 1 for part in parts[:number])
            local = parts[number], last, last + len(parts[number])
        symbol = self._bind_definition(local[0], IMPORT)
        if symbol.imported is None:
            symbol.imported, symbol.module = module[0], module
        self.scope.facts.append((IMPORTS, local, module))

    # Types

    def _declare_types(self, node: Node) -> None:
        for spec in node.named_children:
            name, declared = child(spec, "name"), child(spec, "type")
            if name is None or declared is None or name.end_byte == name.start_byte:
                continue
            scope = self._types.get(name.start_byte) or self._new_type(self._text(name))
            outer = self._body_scope()
            if outer.kind == FUNCTION:
                outer.facts.append((CONTAINS, outer.name, scope.name))
            inner, self.scope = self.scope, scope
            if declared.type == "struct_type":
                for fields in declared.named_children:
                    for part in fields.named_children:
                        self._struct_field(part)
            elif declared.type == "interface_type":
                for part in declared.named_children:
                    self._interface_part(part)
            else:
                self._type(declared)
            self.scope = inner

    def _struct_field(self, node: Node) -> None:
        if node.type != "field_declaration":
            return
        names, declared = node.children_by_field_name("name"), child(node, "type")
        names = [name for name in names if name.is_named]
        if not names and declared is not None:
            self._base(self.scope, declared)
            return
        annotation = self._type(declared)
        for name in names:
            if name.end_byte > name.start_byte:
                self._annotate_field(self._text(name), annotation)

    def _interface_part(self, node: Node) -> None:
        if node.type == "method_elem":
            name = child(node, "name")
            if name is not None and name.end_byte > name.start_byte:
                self._define_function(self._text(name), node)
        elif node.type == "type_elem":
            parts = self._parts_of(node)
            if len(parts) == 1 and parts[0].type in ("type_identifier", "qualified_type", "generic_type"):
                self._base(self.scope, parts[0])
            else:
                self._type(node)

    # Functions

    def _method(self, node: Node) -> None:
        receiver, name = child(node, "receiver"), child(node, "name")
        parameters = self._parts_of(receiver) if receiver is not None else []
        if name is None or name.end_byte == name.start_byte or not parameters:
            return
        declared = child(parameters[0], "type")
        while declared is not None and declared.type in ("pointer_type", "generic_type", "parenthesized_type"):
            declared = next(iter(self._parts_of(declared)), None)
        if declared is None or declared.type != "type_identifier":
            return
        owner_name = self._text(declared)
        symbol = self.scopes[0].names.get(owner_name[0])
        if symbol is None or not symbol.definitions:
            # The type is declared in another file of the package.
            symbol = self.scopes[0].bind(owner_name[0], DEFINITION)
            symbol.definitions.append(self._new_scope(CLASS, owner_name, self.scopes[0]))
        owner = symbol.definitions[0]
        if owner.kind == CLASS:
            self._define_function(self._text(name), node, owner=owner)
        else:
            self.skip("method of what is no type")

    def _fill_function(self, scope: Scope, node: Node, owner: Scope | None) -> None:
        receiver = child(node, "receiver")
        if receiver is not None:
            self._parameters(scope, receiver)
            for name, _ in scope.parameters:
                scope.names[name[0]].instance_of = owner
        super()._fill_function(scope, node, owner)
        result = child(node, "result")
        has_body = child(node, "body") is not None
        for part in result.named_children if result is not None and has_body else ():
            if part.type == "parameter_declaration":
                for name in part.children_by_field_name("name"):
                    if name.is_named and name.end_byte > name.start_byte:
                        self._named_result(scope, self._text(name), self._type(child(part, "type")))

    def _named_result(self, scope: Scope, name: Span, annotation: Span | None) -> None:
        symbol = scope.bind(name[0], VARIABLE)
        symbol.variable, symbol.annotation = symbol.variable or name, annotation
        if annotation is not None:
            scope.facts.append((HAS_TYPE, name, annotation))

    def _return_type(self, node: Node) -> Span | None:
        result = child(node, "result")
        if result is None or result.type != "parameter_list":
            return self._type(result)
        for part in result.named_children:
            self._type(child(part, "type"))
        text, start, end = self._text(result)
        return (" ".join(text.split()), start, end) if end - start > 2 else None

    def _set_this(self, scope: Scope, node: Node, owner: Scope | None) -> None:
        """The receiver has a name of its own."""

    def _parameter(self, scope: Scope, node: Node, annotation: Span | None) -> None:
        if self._text(node)[0] != "_":
            super()._parameter(scope, node, annotation)

    # Expressions

    def _call(self, node: Node, stack: list) -> None:
        callee, arguments = child(node, "function"), child(node, "arguments")
        text = "" if callee is None else self._text(callee)[0]
        if text == "new" and arguments is not None:
            named = next(iter(self._parts_of(arguments)), None)
            parts, start, end = self._name_parts(named)
            if parts is not None and None not in parts:
                self.scope.creations.append((parts, start, end))
            self._read(named)
        elif text in self.about.builtin_types:
            self.skip("conversion")
            if arguments is not None:
                stack.append(arguments)
        else:
            super()._call(node, stack)

    def _literal(self, node: Node, stack: list) -> None:
        declared = child(node, "type")
        if declared is not None and declared.type in ("type_identifier", "qualified_type", "generic_type"):
            self._creation(node, stack)
        else:
            stack.extend(reversed(node.named_children))

    def _keyed(self, node: Node, stack: list) -> None:
        """A key that is a plain name is a field, but in a map."""
        key, value = child(node, "key"), child(node, "value")
        if value is not None:
            stack.append(value)
        literal = node.parent.parent if node.parent is not None else None
        declared = child(literal, "type") if literal is not None else None
        is_map = declared is not None and declared.type == "map_type"
        if key is not None and (is_map or not any(part.type == "identifier" for part in key.named_children)):
            stack.append(key)

    def _created(self, value: Node) -> tuple[str, ...]:
        if value.type == "unary_expression" and self.source[value.start_byte] == "&":
            value = child(value, "operand") or value
        return super()._created(value)

    # Statements

    def _bind_name(self, name: Span, first: int, last: int, annotation: Span | None, declare, creation) -> None:
        if name[0] != "_":
            super()._bind_name(name, first, last, annotation, declare, creation)

    def _short(self, node: Node) -> None:
        left, right = child(node, "left"), child(node, "right")
        if left is not None and right is not None:
            self._bind_value(left, right, None, BLOCK)

    def _specs(self, node: Node) -> None:
        """`var` and `const`."""
        for spec in node.named_children:
            if spec.type == "var_spec_list":
                self._specs(spec)
            elif spec.type in ("var_spec", "const_spec"):
                self._spec(spec)

    def _spec(self, spec: Node) -> None:
        names = [name for name in spec.children_by_field_name("name") if name.is_named]
        annotation, value = self._type(child(spec, "type")), child(spec, "value")
        values = [] if value is None else self._parts_of(value)
        if len(values) == len(names):
            if len(names) == 1 and self._name_value(names[0], values[0], BLOCK):
                return
            plan = [(name, *self._collect(one)) for name, one in zip(names, values, strict=True)]
        else:
            first, last = (-1, -1) if value is None else self._collect(value)
            plan = [(name, first, last) for name in names]
        for name, first, last in plan:
            creation = self._created(values[0]) if len(values) == len(names) == 1 else ()
            self._bind(name, first, last, annotation, BLOCK, creation)

    def _for(self, node: Node) -> None:
        body = child(node, "body")
        control = next((part for part in self._parts_of(node) if part != body), None)
        if control is not None and control.type == "range_clause":
            left = child(control, "left")
            is_new = any(part.type == ":=" for part in control.children)
            self._for_each(
                [left] if left is not None else [], child(control, "right"), body, BLOCK if is_new else None
            )
            return
        scope, was_fresh = self.scope, self._is_fresh
        self._is_fresh = True
        if control is not None and control.type == "for_clause":
            self._count_loop(control, ("initializer",), ("update",), body)
        else:
            head = self._block(self.flow.current)
            self._read(control)
            test = self.flow.current
            loop = self._begin_loop(head)
            self._block(test)
            self._clause(body)
            self.flow.edge(self.flow.current, head)
            self._loops.pop()
            self._block(*([test] if control is not None else []), *loop.breaks)
        self.scope, self._is_fresh = scope, was_fresh

    def _switch_value(self, node: Node) -> tuple[int, int]:
        first, last = super()._switch_value(node)
        alias = child(node, "alias")
        if alias is not None:
            self._bind(alias, first, last, None, BLOCK)
        return first, last

    def _is_default(self, case: Node, tests: list[Node]) -> bool:
        return case.type == "default_case" or case.type == "communication_case"

    def _falls(self, case: Node) -> bool:
        last = case.named_children[-1:]
        if last and last[0].type == "statement_list":
            last = last[0].named_children[-1:]
        return bool(last) and last[0].type == "fallthrough_statement"

    def _receive(self, node: Node) -> None:
        left, right = child(node, "left"), child(node, "right")
        if left is None:
            self._read(right)
        elif right is not None:
            is_new = any(part.type == ":=" for part in node.children)
            self._bind_value(left, right, None, BLOCK if is_new else None)


STATEMENTS = {
    "import_declaration": GoReader._import,
    "type_declaration": GoReader._declare_types,
    "function_declaration": TreeReader._function,
    "method_declaration": GoReader._method,
    "var_declaration": GoReader._specs,
    "const_declaration": GoReader._specs,
    "short_var_declaration": GoReader._short,
    "expression_statement": TreeStatements._wrapper,
    "block": TreeStatements._nested,
    "if_statement": TreeStatements._if,
    "for_statement": GoReader._for,
    "expression_switch_statement": TreeStatements._switch,
    "type_switch_statement": TreeStatements._switch,
    "select_statement": TreeStatements._switch,
    "receive_statement": GoReader._receive,
    "labeled_statement": TreeStatements._labelled,
    "return_statement": TreeStatements._return,
    "break_statement": TreeStatements._break,
    "continue_statement": TreeStatements._continue,
}
EXPRESSIONS = {
    **dict.fromkeys(STATEMENTS, TreeStatements._stray),
    **dict.fromkeys(GoReader.about.leaves, TreeReader._pass),
    **dict.fromkeys(GoReader.about.mentions, TreeReader._mention),
    "selector_expression": TreeReader._member,
    "qualified_type": TreeReader._member,
    "call_expression": GoReader._call,
    "composite_literal": GoReader._literal,
    "keyed_element": GoReader._keyed,
    "assignment_statement": TreeReader._assignment,
    "inc_statement": TreeReader._update,
    "dec_statement": TreeReader._update,
    "binary_expression": TreeReader._binary,
    "func_literal": TreeReader._function_value,
}
GoReader.tables = Tables(GoReader.about, STATEMENTS, EXPRESSIONS)
