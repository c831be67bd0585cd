"""JavaScript: what the shared reader has to know about it.

Relations: all but `has_type` and `returns`, which plain JavaScript does not write.
    - `imports`: `import * as name from "m"` and `const name = require("m")`, in any scope.
    - `imported_from`: `import name from "m"`, `import {a as name} from "m"` and `const {a: name} = require("m")`. Exports
      from other modules bind no name.
    - `calls`: calls by name or member, tagged templates included; `super(...)` is left out. `instantiates`: `new`.
    - `contains`: a class its methods, a function the functions and classes defined in it; methods of objects that are
      written out belong to the function around them. A function assigned to a name or key is a definition.
    - `has_field`: fields of the class body and `this.x = ...` in its methods. `inherits`: `extends` with a name.
    - `declares`: `var`, `let`, `const`, loop variables and caught exceptions; `let` and `const` live in their block.
    - `has_parameter`: every name that the parameter list binds, those in patterns too.
    - `this` inside a function that is no arrow and no method is not the instance around it.
"""

from tree_sitter import Node

from .language import Description, Tables
from .schema import IMPORTED_FROM, IMPORTS
from .scopes import BLOCK, FUNCTION, IMPORT, LAMBDA, MEMBER_IMPORT, Scope, Span
from .tree_reader import TreeReader, child
from .tree_statements import TreeStatements

FUNCTIONS = ("function_declaration", "generator_function_declaration")


class JavaScriptReader(TreeStatements):
    """Reads one file of JavaScript."""

    about = Description(
        name="javascript",
        variables=("identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"),
        instances=("this",),
        parents=("super",),
        members={"member_expression": ("object", "property")},
        calls={"call_expression": (None, "function", "arguments")},
        creations={"new_expression": "constructor"},
        patterns=("object_pattern", "rest_pattern"),
        pairs={"pair_pattern": "value", "assignment_pattern": "left", "object_assignment_pattern": "left"},
        sequences=("array_pattern", "array"),
        splats=("rest_pattern", "spread_element"),
        parentheses=("parenthesized_expression",),
        leaves=(
            "comment", "number", "regex", "true", "false", "null", "undefined", "this", "super", "string",
            "property_identifier", "private_property_identifier", "statement_identifier", "jsx_text", "hash_bang_line",
        ),
        functions=("function_expression", "generator_function", "arrow_function"),
        arrows=("arrow_function",),
        classes=("class",),
        blocks=("statement_block",),
        lists=("class_body",),
        definitions=(*FUNCTIONS, "class_declaration", "method_definition"),
        conditionals=("if_statement",),
        elses=("else_clause",),
        cases=("switch_case", "switch_default"),
        tests=("value",),
        falls=("switch_case", "switch_default"),
        catches=("catch_clause",),
        finallies=("finally_clause",),
        comments=("comment", "html_comment"),
        endless=frozenset({"(true)", "(1)"}),
        defaults_inside=True,
    )  # fmt: skip

    # Imports

    def _module(self, node: Node | None) -> Span | None:
        """The text of a string without its quotes."""
        if node is None or node.type != "string" or node.end_byte - node.start_byte < 3:
            return None
        start, end = node.start_byte + 1, node.end_byte - 1
        return self.source[start:end], start, end

    def _imported(self, local: Node, member: str | None, module: Span, is_module: bool = False) -> None:
        name = self._text(local)
        if name[1] == name[2]:
            return
        symbol = self._bind_definition(name[0], IMPORT if is_module else MEMBER_IMPORT)
        if symbol.imported is None:
            symbol.imported = module[0] if member is None else f"{module[0]}.{member}"
            symbol.module = module
        self.scope.facts.append((IMPORTS if is_module else IMPORTED_FROM, name, module))

    def _import(self, node: Node) -> None:
        module = self._module(child(node, "source"))
        clause = next((part for part in node.named_children if part.type == "import_clause"), None)
        if module is None or clause is None:
            return
        for part in self._parts_of(clause):
            if part.type == "identifier":
                self._imported(part, None, module)
            elif part.type == "namespace_import":
                for name in self._parts_of(part):
                    self._imported(name, None, module, is_module=True)
            else:
                for one in self._parts_of(part):
                    name, alias = child(one, "name"), child(one, "alias")
                    local = alias or name
                    if local is not None and local.type == "identifier":
                        self._imported(local, self._text(name)[0].strip("\"'"), module)

    def _export(self, node: Node) -> None:
        """`export`: what stands in it; names that are passed on from another module are not read."""
        if child(node, "source") is None:
            for part in self._parts_of(node):
                if part.type != "export_clause":
                    self._statement(part)

    def _required(self, value: Node) -> Span | None:
        """The module in `require("m")`."""
        if value.type != "call_expression":
            return None
        function, arguments = child(value, "function"), child(value, "arguments")
        if function is None or arguments is None or self._text(function)[0] != "require":
            return None
        inner = self._parts_of(arguments)
        return self._module(inner[0]) if len(inner) == 1 else None

    def _declare_special(self, name: Node, value: Node) -> bool:
        module = self._required(value)
        if module is None or name.type not in ("identifier", "object_pattern"):
            return False
        if name.type == "identifier":
            self._imported(name, None, module, is_module=True)
            return True
        for part in self._parts_of(name):
            key, local = (child(part, "key"), child(part, "value")) if part.type == "pair_pattern" else (part, part)
            if local is not None and key is not None and local.kind_id in self.tables.variables:
                self._imported(local, self._text(key)[0], module)
            else:
                self._bind(part, 0, 0, None, FUNCTION)
        return True

    # Definitions

    def _bases(self, node: Node) -> list[Node]:
        heritage = next((part for part in node.named_children if part.type == "class_heritage"), None)
        return [] if heritage is None else self._parts_of(heritage)[:1]

    def _method(self, node: Node, stack: list | None = None) -> None:
        name = child(node, "name")
        if name is None:
            return
        if name.named_child_count or name.type not in ("property_identifier", "private_property_identifier"):
            was_collecting, self._is_collecting = self._is_collecting, False
            self._read(name)
            scope = self._new_scope(LAMBDA, ("", node.start_byte, node.start_byte), self.scope)
            self._fill_function(scope, node, self.scope if self.scope.kind == "class" else None)
            self._is_collecting = was_collecting
        else:
            self._key_function(self._text(name), node, is_member=stack is None)

    def _key_function(self, name: Span, node: Node, is_member: bool = False) -> None:
        """A function under a key: a method of the class around it, or of an object that is written out."""
        was_collecting, self._is_collecting = self._is_collecting, False
        self._define_function(name, node, is_bound=is_member, is_member=is_member)
        self._is_collecting = was_collecting

    def _pair(self, node: Node, stack: list) -> None:
        key, value = child(node, "key"), child(node, "value")
        if key is None or value is None:
            return
        if value.kind_id in self.tables.functions and key.type == "property_identifier":
            self._key_function(self._text(key), value)
            return
        stack.append(value)
        if key.type == "computed_property_name":
            stack.append(key)

    def _field(self, node: Node) -> None:
        name, value = child(node, "property"), child(node, "value")
        if name is None:
            return
        if name.type not in ("property_identifier", "private_property_identifier"):
            self._read(name)
        elif value is not None and value.kind_id in self.tables.functions:
            scope = self._define_function(self._text(name), value)
            self._bind_this(scope, self.scope, self._is_static(node))
            return
        else:
            first, last = self._collect(value)
            self._annotate_field(self._text(name), None, first, last)
            return
        self._read(value)

    def _static_block(self, node: Node) -> None:
        scope = self._new_scope(LAMBDA, ("", node.start_byte, node.start_byte), self.scope)
        self._bind_this(scope, self.scope if self.scope.kind == "class" else None, True)
        self._wait(scope, child(node, "body"))

    def _parameters(self, scope: Scope, node: Node | None) -> None:
        super()._parameters(scope, node)
        if node is None:
            return
        stack = list(node.named_children)
        while stack:  # defaults
            part = stack.pop()
            if part.type in ("assignment_pattern", "object_assignment_pattern"):
                self._default(scope, child(part, "right"))
                stack.append(child(part, "left"))
            elif part.type in ("object_pattern", "array_pattern", "pair_pattern"):
                stack.extend(part.named_children)

    # Statements

    def _for_in(self, node: Node) -> None:
        target, kind = child(node, "left"), child(node, "kind")
        declare = None if kind is None else FUNCTION if kind.type == "var" else BLOCK
        targets = [target] if target is not None else []
        self._for_each(targets, child(node, "right"), child(node, "body"), declare)

    def _expression(self, node: Node) -> None:
        """An expression statement; one that is a function or class value runs at once or is passed by."""
        for part in self._parts_of(node):
            self._read(part)


STATEMENTS = {
    "import_statement": JavaScriptReader._import,
    "export_statement": JavaScriptReader._export,
    **dict.fromkeys(FUNCTIONS, TreeReader._function),
    "class_declaration": TreeReader._class,
    "method_definition": JavaScriptReader._method,
    "field_definition": JavaScriptReader._field,
    "class_static_block": JavaScriptReader._static_block,
    "lexical_declaration": TreeStatements._declare_list,
    "variable_declaration": TreeStatements._declare_var,
    "expression_statement": JavaScriptReader._expression,
    "statement_block": TreeStatements._nested,
    "if_statement": TreeStatements._if,
    "while_statement": TreeStatements._while,
    "do_statement": TreeStatements._do_while,
    "for_statement": TreeStatements._for,
    "for_in_statement": JavaScriptReader._for_in,
    "switch_statement": TreeStatements._switch,
    "try_statement": TreeStatements._try,
    "labeled_statement": TreeStatements._labelled,
    "return_statement": TreeStatements._return,
    "throw_statement": TreeStatements._return,
    "break_statement": TreeStatements._break,
    "continue_statement": TreeStatements._continue,
}
EXPRESSIONS = {
    **dict.fromkeys(STATEMENTS, TreeStatements._stray),
    **dict.fromkeys(JavaScriptReader.about.leaves, TreeReader._pass),
    "member_expression": TreeReader._member,
    "call_expression": TreeReader._call,
    "new_expression": TreeReader._creation,
    "assignment_expression": TreeReader._assignment,
    "augmented_assignment_expression": TreeReader._assignment,
    "update_expression": TreeReader._update,
    "binary_expression": TreeReader._binary,
    "ternary_expression": TreeReader._conditional,
    **dict.fromkeys(JavaScriptReader.about.functions, TreeReader._function_value),
    "class": TreeReader._class_value,
    "method_definition": JavaScriptReader._method,
    "pair": JavaScriptReader._pair,
}
JavaScriptReader.tables = Tables(JavaScriptReader.about, STATEMENTS, EXPRESSIONS)
