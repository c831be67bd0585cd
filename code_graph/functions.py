"""Where the functions of a file are: the pieces in which code is searched."""

from typing import NamedTuple

from .syntax import grammar

# Kinds of tree-sitter nodes that are functions with a name of their own, and that qualify the names inside them.
_FUNCTIONS = {
    "python": ("function_definition",),
    "java": ("method_declaration", "constructor_declaration"),
    "javascript": ("function_declaration", "generator_function_declaration", "method_definition"),
    "go": ("function_declaration", "method_declaration"),
    "ruby": ("method", "singleton_method"),
    "php": ("function_definition", "method_declaration"),
}
_HOLDERS = {
    "python": ("class_definition",),
    "java": ("class_declaration", "interface_declaration", "enum_declaration", "record_declaration"),
    "javascript": ("class_declaration",),
    "go": (),
    "ruby": ("class", "module"),
    "php": ("class_declaration", "interface_declaration", "trait_declaration", "enum_declaration"),
}
# A function that is the value of a JavaScript variable has the variable's name.
_FUNCTION_VALUES = ("arrow_function", "function_expression", "generator_function")


class Function(NamedTuple):
    """A function or method; `source[start:end]` is its text, decorators included, and lines count from 1."""

    name: str
    start: int
    end: int
    first_line: int
    last_line: int


def list_functions(source: str, language: str = "python") -> list[Function]:
    """The functions and methods of a file, in the order of the text.

    Functions inside a function belong to it and are not listed. A broken file gives those that parse.

    Args:
        source: the text of the file.
        language: one of `code_graph.LANGUAGES`.

    Raises:
        ValueError: the language is not read.

    >>> list_functions("class A:\\n    def f(self):\\n        pass\\n")[0][:3]
    ('A.f', 13, 35)
    """
    if language not in _FUNCTIONS:
        raise ValueError(f"language {language!r} is not supported; supported: {', '.join(_FUNCTIONS)}")
    functions, holders = _FUNCTIONS[language], _HOLDERS[language]
    found = []
    # A list and not recursion: trees of generated code are deeper than Python's stack.
    stack = [(grammar(language).parse(source), "", None)]
    while stack:
        node, prefix, outer = stack.pop()
        kind = node.type
        if kind in functions or _is_function_variable(node, language):
            whole = outer or node
            name = node.child_by_field_name("name")
            text = source[name.start_byte : name.end_byte] if name is not None else ""
            first, last = whole.start_point[0] + 1, whole.end_point[0] + 1
            found.append(Function(prefix + (text or "(unnamed)"), whole.start_byte, whole.end_byte, first, last))
            continue
        if kind in holders:
            name = node.child_by_field_name("name")
            prefix += f"{source[name.start_byte : name.end_byte]}." if name is not None else ""
        outer = node if kind == "decorated_definition" else None
        stack.extend((child, prefix, outer) for child in reversed(node.named_children))
    return found


def _is_function_variable(node, language: str) -> bool:
    if language != "javascript" or node.type != "variable_declarator":
        return False
    value = node.child_by_field_name("value")
    return value is not None and value.type in _FUNCTION_VALUES
