"""Numbers of the node kinds and fields of Python's grammar, and small questions about its nodes."""

from collections.abc import Callable

from tree_sitter import Node

from .syntax import grammar

GRAMMAR = grammar("python")

(ASSIGNMENT,) = GRAMMAR.kinds("assignment")
(ALIASED_IMPORT,) = GRAMMAR.kinds("aliased_import")
(ATTRIBUTE,) = GRAMMAR.kinds("attribute")
(AUGMENTED,) = GRAMMAR.kinds("augmented_assignment")
(CALL,) = GRAMMAR.kinds("call")
(CASE,) = GRAMMAR.kinds("case_clause")
(CASE_PATTERN,) = GRAMMAR.kinds("case_pattern")
(CLASS_PATTERN,) = GRAMMAR.kinds("class_pattern")
(CONDITIONAL,) = GRAMMAR.kinds("conditional_expression")
(CONTINUE,) = GRAMMAR.kinds("continue_statement")
(BREAK,) = GRAMMAR.kinds("break_statement")
(DECORATOR,) = GRAMMAR.kinds("decorator")
(DOTTED_NAME,) = GRAMMAR.kinds("dotted_name")
(ELSE,) = GRAMMAR.kinds("else_clause")
(EXCEPT,) = GRAMMAR.kinds("except_clause")
(FINALLY,) = GRAMMAR.kinds("finally_clause")
(FOR_IN,) = GRAMMAR.kinds("for_in_clause")
(FUNCTION_DEFINITION,) = GRAMMAR.kinds("function_definition")
(GLOBAL,) = GRAMMAR.kinds("global_statement")
(IDENTIFIER,) = GRAMMAR.kinds("identifier")
(INTERPOLATION,) = GRAMMAR.kinds("interpolation")
(KEYWORD_ARGUMENT,) = GRAMMAR.kinds("keyword_argument")
(KEYWORD_PATTERN,) = GRAMMAR.kinds("keyword_pattern")
(RETURN,) = GRAMMAR.kinds("return_statement")
(STRING,) = GRAMMAR.kinds("string")
(SUBSCRIPT,) = GRAMMAR.kinds("subscript")
(TRUE,) = GRAMMAR.kinds("true")
(WILDCARD,) = GRAMMAR.kinds("wildcard_import")

# Some names stand for several kinds.
AS_PATTERNS = GRAMMAR.kinds("as_pattern")
BLOCKS = GRAMMAR.kinds("block")
DEFINITIONS = GRAMMAR.kinds("function_definition", "class_definition", "decorated_definition")
EXTRAS = GRAMMAR.kinds("comment", "line_continuation")
PARAMETERS = GRAMMAR.kinds("typed_parameter", "default_parameter", "typed_default_parameter")
PARENTHESES = GRAMMAR.kinds("parenthesized_expression", "as_pattern_target")
SPLATS = GRAMMAR.kinds("list_splat", "list_splat_pattern", "dictionary_splat_pattern")
TUPLES = GRAMMAR.kinds("tuple", "list", "expression_list", "pattern_list", "tuple_pattern", "list_pattern")
WRAPPERS = SPLATS | PARENTHESES | GRAMMAR.kinds("type", "generic_type")
# Kinds that hold no name: the walk stops there.
LEAVES = EXTRAS | GRAMMAR.kinds(
    "integer", "float", "true", "false", "none", "ellipsis", "string_start", "string_content", "string_end",
    "type_conversion", "escape_sequence", "keyword_separator", "positional_separator", "import_prefix",
)  # fmt: skip

F_ALIAS = GRAMMAR.field("alias")
F_ALTERNATIVE = GRAMMAR.field("alternative")
F_ARGUMENTS = GRAMMAR.field("arguments")
F_ATTRIBUTE = GRAMMAR.field("attribute")
F_BODY = GRAMMAR.field("body")
F_CONDITION = GRAMMAR.field("condition")
F_CONSEQUENCE = GRAMMAR.field("consequence")
F_DEFINITION = GRAMMAR.field("definition")
F_FUNCTION = GRAMMAR.field("function")
F_GUARD = GRAMMAR.field("guard")
F_LEFT = GRAMMAR.field("left")
F_MODULE_NAME = GRAMMAR.field("module_name")
F_NAME = GRAMMAR.field("name")
F_OBJECT = GRAMMAR.field("object")
F_PARAMETERS = GRAMMAR.field("parameters")
F_RETURN_TYPE = GRAMMAR.field("return_type")
F_RIGHT = GRAMMAR.field("right")
F_SUBJECT = GRAMMAR.field("subject")
F_SUPERCLASSES = GRAMMAR.field("superclasses")
F_TYPE = GRAMMAR.field("type")
F_VALUE = GRAMMAR.field("value")


def by_kind(**handlers: Callable) -> dict[int, Callable]:
    """Table from the numbers of the named kinds to their handlers."""
    return {number: handler for kind, handler in handlers.items() for number in GRAMMAR.kinds(kind)}


def parts_of(node: Node) -> list[Node]:
    """The named children without comments and line continuations, which may stand anywhere."""
    return [child for child in node.named_children if child.kind_id not in EXTRAS]


def elements_of(node: Node) -> list[Node] | None:
    """The elements of a tuple or list that is written out without `*`, else None."""
    while node.kind_id in PARENTHESES:
        inner = parts_of(node)
        if len(inner) != 1:
            return None
        node = inner[0]
    if node.kind_id not in TUPLES:
        return None
    elements = parts_of(node)
    return None if any(element.kind_id in SPLATS for element in elements) else elements
