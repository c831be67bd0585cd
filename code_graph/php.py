"""PHP: what the shared reader has to know about it.

Relations: all but `imports`, because every `use` brings in a member of a namespace.
    - `imported_from`: `use A\\B`, `use A\\B as C`, `use A\\{B, C}`, `use function`, `use const`. A name without a
      namespace and `require` are left out.
    - Variables keep their `$`; fields do not, because `$this->name` has none. `has_field`: properties, promoted
      parameters, constants, cases of enumerations, and what methods assign to `$this` or `self::`.
    - `inherits`: `extends`, `implements`, and traits that a class uses. A trait and an enumeration are classes.
    - `calls`: functions, methods, static methods, `parent::`; a callee in a variable keeps its `$`. `instantiates`: `new`
      with a name, `self` and `static` included.
    - `has_type`: parameters, properties, caught exceptions. `returns`: `void` included.
    - `declares`: every variable that a function assigns, anywhere in it; functions see no variables around them, `fn`
      does, and `function () use ($x)` sees those it lists.
"""

import re

from tree_sitter import Node

from .flow import Definition
from .language import Description, Tables
from .schema import IMPORTED_FROM
from .scopes import FUNCTION, MEMBER_IMPORT, MODULE, OUTER, PARAMETER, VARIABLE, Scope, Span, Symbol
from .tree_reader import PARENT, TreeReader, child
from .tree_statements import TreeStatements

CLASSES = ("class_declaration", "interface_declaration", "trait_declaration", "enum_declaration")
FUNCTIONS = ("anonymous_function", "arrow_function")
OWN_CLASS = ("self", "static")


class PhpReader(TreeStatements):
    """Reads one file of PHP."""

    about = Description(
        name="php",
        variables=("variable_name",),
        mentions=("name",),
        instance="$this",
        members={
            "member_access_expression": ("object", "name"),
            "nullsafe_member_access_expression": ("object", "name"),
            "scoped_property_access_expression": ("scope", "name"),
        },
        calls={
            "function_call_expression": (None, "function", "arguments"),
            "member_call_expression": ("object", "name", "arguments"),
            "nullsafe_member_call_expression": ("object", "name", "arguments"),
            "scoped_call_expression": ("scope", "name", "arguments"),
        },
        creations={"object_creation_expression": None},
        patterns=("by_ref", "pair", "array_element_initializer"),
        sequences=("list_literal", "array_creation_expression"),
        splats=("variadic_unpacking",),
        parentheses=("parenthesized_expression",),
        leaves=(
            "comment", "integer", "float", "boolean", "null", "string", "string_content", "escape_sequence", "nowdoc",
            "text", "php_tag", "php_end_tag", "primitive_type", "relative_scope", "namespace_name", "operation",
            "visibility_modifier", "static_modifier", "final_modifier", "abstract_modifier", "readonly_modifier",
        ),
        parameters={
            "simple_parameter": ("name", "type", "default_value"),
            "variadic_parameter": ("name", "type", "default_value"),
            "property_promotion_parameter": ("name", "type", "default_value"),
        },
        functions=FUNCTIONS,
        arrows=FUNCTIONS,
        blocks=("compound_statement", "colon_block", "switch_block"),
        lists=("declaration_list", "enum_declaration_list"),
        definitions=("function_definition", "method_declaration", *CLASSES),
        conditionals=("if_statement", "else_if_clause"),
        elses=("else_clause",),
        cases=("case_statement", "default_statement"),
        tests=("value",),
        falls=("case_statement", "default_statement"),
        catches=("catch_clause",),
        finallies=("finally_clause",),
        endless=frozenset({"(true)", "(1)", "(TRUE)"}),
        method_mark="()",
        has_blocks=False,
        assignment_declares=True,
        type_name=re.compile(r"\??\\?(?:\w+\\)*([^\W\d]\w*)\Z"),
    )  # fmt: skip

    # Names

    def _variable(self, node: Node) -> None:
        if node.end_byte - node.start_byte > 1 and self._text(node)[0] != "$this":
            super()._variable(node)

    def _name(self, node: Node, stack: list) -> None:
        if self._text(node)[0].lower() not in OWN_CLASS:
            self._use(node)

    def _qualified(self, node: Node, stack: list) -> None:
        """A name with a namespace: its first part may be imported."""
        if self.source[node.start_byte] != "\\":
            first = node.named_children[0]
            if first.type == "namespace_name" and first.named_children:
                first = first.named_children[0]
            self._use(first)

    def _owner_name(self, node: Node | None) -> str | None:
        text = super()._owner_name(node)
        if node is not None and node.type == "relative_scope":
            text = self._text(node)[0].lower()
        return "self" if text in OWN_CLASS else text

    def _member_parts(self, node: Node) -> tuple[Node | None, Node | None]:
        owner, name = super()._member_parts(node)
        if name is not None and name.type == "variable_name" and node.type == "scoped_property_access_expression":
            name = next(iter(name.named_children), name)
        return owner, name

    def _name_parts(self, node: Node | None) -> tuple[tuple[str | None, ...] | None, int, int]:
        if node is None:
            return None, 0, 0
        text, start, end = self._text(node)
        if node.type == "relative_scope" or (node.type == "name" and text.lower() in OWN_CLASS):
            return (PARENT if text.lower() == "parent" else "self",), start, end
        if node.type == "qualified_name":
            parts = tuple(text.split("\\"))
            if not parts[0]:
                return (None, text.lstrip("\\")), start, end
            return parts, start, end
        if node.kind_id in self.tables.members:
            owner, name_node = self._member_parts(node)
            name = self._member_name(name_node)
            before = self._name_parts(owner)[0] if name is not None and owner is not None else None
            return ((*(before or (None,)), name[0]), *name[1:]) if name is not None else (None, 0, 0)
        return super()._name_parts(node)

    def _called(self, parts: tuple[str | None, ...] | None, start: int, end: int) -> None:
        # A plain function's name and methods have a name space apart from variables.
        if parts is not None and parts[-1] is not None and parts[-1][-1:] != ")" and parts[-1][:1] != "$":
            parts = (*parts[:-1], parts[-1] + "()")
        super()._called(parts, start, end)

    def _call_function(self, node: Node, stack: list) -> None:
        callee = child(node, "function")
        super()._call(node, stack)
        if callee is not None and callee.type == "name":
            stack.pop()  # the name of a function is a call, no use of a class

    def _created(self, value: Node) -> tuple[str, ...]:
        parts = super()._created(value)
        return parts if parts != ("self",) else ()

    def _create(self, node: Node, stack: list) -> None:
        named = next(iter(self._parts_of(node)), None)
        if named is not None and named.type in ("name", "qualified_name"):
            self._creation(node, stack)
            return
        if named is None or named.type != "anonymous_class":
            self.skip("instance of what is not a name")
            stack.extend(reversed(node.named_children))
            return
        for part in named.named_children:
            if part.type == "arguments":
                stack.append(part)
        self._define_class(("", node.start_byte, node.start_byte), named, is_bound=False)

    def _argument(self, node: Node, stack: list) -> None:
        name = child(node, "name")
        stack.extend(reversed([part for part in node.named_children if part != name]))

    def _constant(self, node: Node, stack: list) -> None:
        parts = self._parts_of(node)
        if len(parts) != 2:
            return
        stack.append(parts[0])
        owner, name = self._owner_name(parts[0]), self._text(parts[1])
        if owner is not None and name[0] != "class":
            self.scope.attributes.append((owner, *name))

    def _elements_of(self, node: Node) -> list[Node] | None:
        elements = super()._elements_of(node)
        if elements is None or node.type == "list_literal":
            return elements
        inner = [self._parts_of(element) for element in elements]
        return [parts[0] for parts in inner] if all(len(parts) == 1 for parts in inner) else None

    # Imports

    def _use_names(self, node: Node) -> None:
        kind = child(node, "type")
        group = next((part for part in node.named_children if part.type == "namespace_name"), None)
        body = child(node, "body")
        for clause in (body or node).named_children:
            if clause.type == "namespace_use_clause":
                self._use_name(clause, child(clause, "type") or kind, group if body is not None else None)

    def _use_name(self, clause: Node, kind: Node | None, group: Node | None) -> None:
        alias = child(clause, "alias")
        named = next((part for part in self._parts_of(clause) if part != alias), None)
        if named is None:
            return
        text, start, end = self._text(named)
        last = text.rfind("\\") + 1
        member = text[last:], start + last, end
        module = (text[: last - 1].lstrip("\\"), start + (text[0] == "\\"), start + last - 1) if last > 1 else None
        if group is not None:
            prefix = self._text(group)
            module = (prefix[0] if module is None else f"{prefix[0]}\\{module[0]}", *prefix[1:])
        if module is None or not module[0]:
            self.skip("import without a namespace")
            return
        local = self._text(alias) if alias is not None else member
        if local[1] == local[2]:
            return
        is_function = kind is not None and kind.type == "function"
        symbol = self._bind_definition(local[0] + "()" if is_function else local[0], MEMBER_IMPORT)
        if symbol.imported is None:
            symbol.imported, symbol.module = f"{module[0]}\\{member[0]}", module
        self.scope.facts.append((IMPORTED_FROM, local, module))

    # Definitions

    def _namespace(self, node: Node) -> None:
        body = child(node, "body")
        if body is None:
            return
        is_top = node.parent is not None and node.parent.parent is None
        self._depth -= is_top  # what a namespace holds stands at the top of the file
        self._statements(body.named_children, is_body=True)
        self._depth += is_top

    def _bases(self, node: Node) -> list[Node]:
        clauses = ("base_clause", "class_interface_clause")
        return [base for part in node.named_children if part.type in clauses for base in self._parts_of(part)]

    def _base(self, scope: Scope, base: Node) -> None:
        if base.type == "qualified_name":
            self._read(base)
            parts, start, end = self._name_parts(base)
            scope.bases.append((tuple(part for part in parts if part is not None), start, end))
        else:
            super()._base(scope, base)

    def _traits(self, node: Node) -> None:
        for part in self._parts_of(node):
            if part.type in ("name", "qualified_name"):
                self._base(self.scope, part)

    def _enter_class(self, scope: Scope, node: Node) -> None:
        self._bind_self(scope, scope)

    def _bind_self(self, scope: Scope, owner: Scope) -> None:
        symbol = scope.names["self"] = Symbol(PARAMETER, scope)
        symbol.instance_of, symbol.is_class = owner, True

    def _properties(self, node: Node) -> None:
        annotation = self._type(child(node, "type"))
        for part in node.named_children:
            name = child(part, "name")
            if part.type == "property_element" and name is not None:
                first, last = self._collect(child(part, "default_value"))
                text, start, end = self._text(name)
                if end - start > 1:
                    self._annotate_field((text[1:], start + 1, end), annotation, first, last)

    def _constants(self, node: Node) -> None:
        annotation = self._type(child(node, "type"))
        for element in node.named_children:
            parts = self._parts_of(element)
            if element.type == "const_element" and parts:
                name = self._text(parts[0])
                self._read(parts[1] if len(parts) > 1 else None)
                if name[1] < name[2]:
                    self._annotate_field(name, annotation)

    def _enum_case(self, node: Node) -> None:
        name = child(node, "name")
        self._read(child(node, "value"))
        if name is not None and name.end_byte > name.start_byte:
            self._annotate_field(self._text(name), None)

    def _is_static(self, node: Node) -> bool:
        return any(part.type == "static_modifier" for part in node.named_children)

    def _fill_function(self, scope: Scope, node: Node, owner: Scope | None) -> None:
        super()._fill_function(scope, node, owner)
        scope.is_closed = node.type != "arrow_function"
        if owner is not None:
            self._bind_self(scope, owner)
            self._promoted(node, owner)
        if node.type != "anonymous_function":
            return
        for name in (self.about.instance, "self"):
            symbol = self.scope.lookup(name)
            if symbol is not None:
                scope.names[name] = symbol
        for clause in node.named_children:
            if clause.type == "anonymous_function_use_clause":
                self._read(clause)
                for part in clause.named_children:
                    inner = next(iter(part.named_children), part) if part.type == "by_ref" else part
                    name = self._text(inner)
                    if name[2] - name[1] > 1:
                        scope.bind(name[0], VARIABLE)
                        scope.flow.define(Definition(*name, scope, 0, 0))

    def _promoted(self, node: Node, owner: Scope) -> None:
        """Parameters of a constructor that are properties as well."""
        parameters = child(node, "parameters")
        for part in parameters.named_children if parameters is not None else ():
            name = child(part, "name")
            if part.type == "property_promotion_parameter" and name is not None:
                text, start, end = self._text(name)
                if end - start > 1:
                    symbol = owner.bind(text[1:], VARIABLE)
                    symbol.variable = symbol.variable or (text[1:], start + 1, end)
                    declared = child(part, "type")
                    if declared is not None and symbol.annotation is None:
                        symbol.annotation = " ".join(self._text(declared)[0].split()), *self._text(declared)[1:]

    # Statements

    def _for_in(self, node: Node) -> None:
        body = child(node, "body")
        parts = [part for part in self._parts_of(node) if part != body]
        if len(parts) == 2:
            self._for_each(parts[1:], parts[0], body, FUNCTION)
        else:
            for part in parts:
                self._read(part)
            self._clause(body)

    def _bind_name(self, name: Span, first: int, last: int, annotation: Span | None, declare, creation) -> None:
        if name[0] != "$this":
            super()._bind_name(name, first, last, annotation, declare, creation)

    def _global(self, node: Node) -> None:
        for part in node.named_children:
            if part.type == "variable_name" and self._body_scope().kind != MODULE:
                self._body_scope().bind(self._text(part)[0], OUTER).to_module = True

    def _unset(self, node: Node) -> None:
        for part in node.named_children:
            if part.type == "variable_name":
                self._define(self._text(part)[0], -1, -1, 0, 0)
            else:
                self._read(part)

    def _import_file(self, node: Node, stack: list) -> None:
        self.skip("import that binds no name")
        stack.extend(node.named_children)


STATEMENTS = {
    "namespace_definition": PhpReader._namespace,
    "namespace_use_declaration": PhpReader._use_names,
    "function_definition": TreeReader._function,
    **dict.fromkeys(CLASSES, TreeReader._class),
    "method_declaration": TreeReader._function,
    "use_declaration": PhpReader._traits,
    "property_declaration": PhpReader._properties,
    "const_declaration": PhpReader._constants,
    "enum_case": PhpReader._enum_case,
    "expression_statement": TreeStatements._wrapper,
    "compound_statement": TreeStatements._nested,
    "colon_block": TreeStatements._nested,
    "if_statement": TreeStatements._if,
    "while_statement": TreeStatements._while,
    "do_statement": TreeStatements._do_while,
    "for_statement": TreeStatements._for,
    "foreach_statement": PhpReader._for_in,
    "switch_statement": TreeStatements._switch,
    "try_statement": TreeStatements._try,
    "return_statement": TreeStatements._return,
    "throw_expression": TreeStatements._return,
    "break_statement": TreeStatements._break,
    "continue_statement": TreeStatements._continue,
    "global_declaration": PhpReader._global,
    "function_static_declaration": TreeStatements._declare_var,
    "unset_statement": PhpReader._unset,
}
EXPRESSIONS = {
    **{kind: TreeStatements._stray for kind in STATEMENTS if kind != "throw_expression"},
    **dict.fromkeys(PhpReader.about.leaves, TreeReader._pass),
    "name": PhpReader._name,
    "qualified_name": PhpReader._qualified,
    **dict.fromkeys(PhpReader.about.members, TreeReader._member),
    **dict.fromkeys(PhpReader.about.calls, TreeReader._call),
    "function_call_expression": PhpReader._call_function,
    "object_creation_expression": PhpReader._create,
    "argument": PhpReader._argument,
    "class_constant_access_expression": PhpReader._constant,
    "assignment_expression": TreeReader._assignment,
    "reference_assignment_expression": TreeReader._assignment,
    "augmented_assignment_expression": TreeReader._assignment,
    "update_expression": TreeReader._update,
    "binary_expression": TreeReader._binary,
    "conditional_expression": TreeReader._conditional,
    **dict.fromkeys(FUNCTIONS, TreeReader._function_value),
    "require_expression": PhpReader._import_file,
    "require_once_expression": PhpReader._import_file,
    "include_expression": PhpReader._import_file,
    "include_once_expression": PhpReader._import_file,
}
PhpReader.tables = Tables(PhpReader.about, STATEMENTS, EXPRESSIONS)
