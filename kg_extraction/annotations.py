"""Type annotations of Python text: where they stand, where one could stand, and the text without them.

Positions are characters of the text. Nothing is formatted anew: an annotation is put in or taken out at its place.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from tree_sitter import Node

from ..code_graph.syntax import grammar

PARAMETER, RETURN = "parameter", "return"
RELATION_OF = {PARAMETER: "has_type", RETURN: "returns"}
"""The relation that an annotation of each kind states."""

# Nodes below which statements can stand; no expression holds a definition or an annotated assignment.
_HOLD_STATEMENTS = {"module", "block", "class_definition", "function_definition", "decorated_definition", "ERROR"}
_HOLD_STATEMENTS |= {
    "if_statement",
    "elif_clause",
    "else_clause",
    "for_statement",
    "while_statement",
    "with_statement",
}
_HOLD_STATEMENTS |= {"try_statement", "except_clause", "except_group_clause", "finally_clause", "match_statement"}
_HOLD_STATEMENTS |= {"case_clause", "expression_statement"}
_SPLATS = ("list_splat_pattern", "dictionary_splat_pattern")


@dataclass(frozen=True)
class Slot:
    """A parameter or a function's return, with or without an annotation.

    Attributes:
        kind: PARAMETER or RETURN.
        name: the parameter, or the function.
        start, end: span of the name.
        owner: dotted path of the function inside the file, `Class.method`.
        insert_at: where an annotation belongs; where there is one, the end of what stands before it.
        annotation: the annotation's text, or None.
        annotation_end: one past its last character, or None.
        default: text of the parameter's default value, or None.
        default_start: where the default value begins, or None.
        is_instance: the parameter is a method's `self` or `cls`, which nobody annotates.
        is_star: the parameter is `*args` or `**kwargs`, whose annotation is that of each element.
        line: line of the name, from 1.
    """

    kind: str
    name: str
    start: int
    end: int
    owner: str
    insert_at: int
    annotation: str | None
    annotation_end: int | None
    default: str | None
    default_start: int | None
    is_instance: bool
    is_star: bool
    line: int

    @property
    def qualified(self) -> str:
        """Dotted path inside the file of what is annotated."""
        return self.owner if self.kind == RETURN else f"{self.owner}.{self.name}"


def one_line(text: str) -> str:
    """A type's text as facts state it: on one line, without the quotes around a forward reference.

    >>> one_line("dict[str,\\n     int]"), one_line('"Node"')
    ('dict[str, int]', 'Node')
    """
    text = " ".join(text.split())
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2:
        return text[1:-1]
    return text


def _walk(root: Node) -> Iterator[tuple[Node, tuple[str, ...], bool]]:
    """Every statement in the order of the text: (node, names of the definitions around it, directly in a class body)."""
    stack: list[tuple[Node, tuple[str, ...], bool]] = [(root, (), False)]
    while stack:
        node, around, in_class = stack.pop()
        yield node, around, in_class
        inner, inner_class = around, in_class
        if node.type in ("class_definition", "function_definition"):
            name = node.child_by_field_name("name")
            # Names are taken from the text by the caller; here a span stands for them.
            inner = (*around, f"{name.start_byte}:{name.end_byte}" if name is not None else "")
            inner_class = node.type == "class_definition"
        if node.type in _HOLD_STATEMENTS:
            stack.extend((child, inner, inner_class) for child in reversed(node.children))


def _dotted(code: str, around: tuple[str, ...]) -> str:
    parts = []
    for span in around:
        start, _, end = span.partition(":")
        parts.append(code[int(start) : int(end)] if end else "?")
    return ".".join(parts)


def find_slots(code: str) -> list[Slot]:
    """Every parameter and return of the named functions of a Python file, in the order of the text.

    Args:
        code: the file's text.

    Returns:
        The slots; functions that the parser could not read whole are left out.
    """
    slots: list[Slot] = []
    for node, around, in_class in _walk(grammar("python").parse(code)):
        if node.type != "function_definition":
            continue
        name, parameters = node.child_by_field_name("name"), node.child_by_field_name("parameters")
        if name is None or parameters is None or name.is_missing or parameters.has_error:
            continue
        owner = _dotted(code, (*around, f"{name.start_byte}:{name.end_byte}"))
        is_method = in_class and not _is_static(node, code)
        for number, parameter in enumerate(_parameters(parameters)):
            slot = _parameter_slot(code, parameter, owner, is_method and number == 0)
            if slot is not None:
                slots.append(slot)
        returned = node.child_by_field_name("return_type")
        slots.append(
            Slot(
                RETURN,
                code[name.start_byte : name.end_byte],
                name.start_byte,
                name.end_byte,
                owner,
                parameters.end_byte,
                None if returned is None else one_line(code[returned.start_byte : returned.end_byte]),
                None if returned is None else returned.end_byte,
                None,
                None,
                False,
                False,
                name.start_point[0] + 1,
            )
        )
    return sorted(slots, key=lambda slot: (slot.start, slot.kind == RETURN))


def _parameters(node: Node) -> list[Node]:
    kinds = ("identifier", "default_parameter", "typed_parameter", "typed_default_parameter", *_SPLATS)
    return [child for child in node.children if child.type in kinds]


def _is_static(function: Node, code: str) -> bool:
    parent = function.parent
    if parent is None or parent.type != "decorated_definition":
        return False
    decorators = [child for child in parent.children if child.type == "decorator"]
    return any(code[d.start_byte + 1 : d.end_byte].strip() == "staticmethod" for d in decorators)


def _parameter_slot(code: str, node: Node, owner: str, is_instance: bool) -> Slot | None:
    named = node.child_by_field_name("name")
    if named is None:
        named = node if node.type in ("identifier", *_SPLATS) else node.children[0]
    is_star = named.type in _SPLATS
    before_type = named.end_byte
    if is_star:
        named = named.children[-1]
    if named.type != "identifier" or named.is_missing:
        return None
    declared, value = node.child_by_field_name("type"), node.child_by_field_name("value")
    return Slot(
        PARAMETER,
        code[named.start_byte : named.end_byte],
        named.start_byte,
        named.end_byte,
        owner,
        before_type,
        None if declared is None else one_line(code[declared.start_byte : declared.end_byte]),
        None if declared is None else declared.end_byte,
        None if value is None else code[value.start_byte : value.end_byte],
        None if value is None else value.start_byte,
        is_instance,
        is_star,
        named.start_point[0] + 1,
    )


def strip_annotations(code: str) -> tuple[str, list[Slot]]:
    """A Python file without its annotations, and what they said.

    Parameters and returns lose theirs; `x: int = 0` becomes `x = 0`, and a bare declaration `x: int` becomes `x`, which
    keeps the name in the text. Comments and docstrings stay, whatever types they mention.

    Args:
        code: the file's text.

    Returns:
        The text, and the slots that had an annotation, with `start`, `end`, `insert_at` and `line` in the new text and
        the removed text in `annotation`.

    >>> text, hidden = strip_annotations("def load(path: str = '') -> bytes:\\n    size: int = 0\\n")
    >>> print(text, [(slot.name, slot.annotation) for slot in hidden])
    def load(path = ''):
        size = 0
     [('load', 'bytes'), ('path', 'str')]
    """
    slots = [slot for slot in find_slots(code) if slot.annotation is not None]
    cuts = [(slot.insert_at, slot.annotation_end) for slot in slots]
    for node, _, _ in _walk(grammar("python").parse(code)):
        if node.type == "assignment":
            left, declared = node.child_by_field_name("left"), node.child_by_field_name("type")
            if left is not None and declared is not None:
                cuts.append((left.end_byte, declared.end_byte))
    cuts.sort()
    pieces, position, removed = [], 0, []
    for start, end in cuts:
        pieces.append(code[position:start])
        position = end
        removed.append((start, end - start))
    pieces.append(code[position:])
    text = "".join(pieces)

    starts = [start for start, _ in removed]
    lengths = [0, *accumulate(length for _, length in removed)]

    def moved(offset: int) -> int:
        return offset - lengths[bisect_left(starts, offset)]

    hidden = []
    for slot in slots:
        start = moved(slot.start)
        hidden.append(
            replace(
                slot,
                start=start,
                end=start + len(slot.name),
                insert_at=moved(slot.insert_at),
                annotation_end=None,
                line=text.count("\n", 0, start) + 1,
            )
        )
    return text, hidden


_TYPING_NAMES = {"List": "list", "Dict": "dict", "Tuple": "tuple", "Set": "set", "FrozenSet": "frozenset"}
_TYPING_NAMES |= {"Type": "type", "Text": "str"}
_LEXEMES = re.compile(r"[^\W\d][\w.]*|\"[^\"]*\"|'[^']*'|\.\.\.|\d+|\S")


def normalise_type(text: str) -> str:
    """One spelling for types that mean the same: `typing.Optional[List["Node"]]` is `None | list[Node]`.

    Modules in front of names, quotes, `typing`'s old names of builtins and the order of a union are not told apart. Text
    that is no type expression comes back as it is, without its spaces.

    >>> normalise_type("Optional[t.List['Node']]") == normalise_type("list[Node] | None")
    True
    """
    lexemes = _LEXEMES.findall(text)
    parsed, rest = _parse_union(lexemes, 0)
    return parsed if rest == len(lexemes) and lexemes else "".join(text.split())


def _parse_union(lexemes: list[str], at: int, depth: int = 0) -> tuple[str, int]:
    members, at = _parse_one(lexemes, at, depth)
    members = list(members)
    while at < len(lexemes) and lexemes[at] == "|":
        more, at = _parse_one(lexemes, at + 1, depth)
        members.extend(more)
    return " | ".join(sorted(set(members))), at


def _parse_one(lexemes: list[str], at: int, depth: int) -> tuple[list[str], int]:
    """The members of the union that one lexeme and its brackets stand for, and where the text goes on."""
    if at >= len(lexemes) or depth > 20:
        return [""], len(lexemes) + 1
    word = lexemes[at]
    at += 1
    if word[0] in "'\"" and len(word) > 1 and (word[1].isalpha() or word[1] == "_"):
        inner = _LEXEMES.findall(word[1:-1])
        parsed, rest = _parse_union(inner, 0, depth + 1)
        return (_split_union(parsed) if rest == len(inner) else [word]), at
    name = word.rpartition(".")[2] if word[0].isalpha() or word[0] == "_" else word
    name = _TYPING_NAMES.get(name, name)
    if word == "[":
        name, at = "", at - 1
    if at >= len(lexemes) or lexemes[at] != "[":
        return [name], at
    arguments = []
    at += 1
    while at < len(lexemes) and lexemes[at] != "]":
        argument, at = _parse_union(lexemes, at, depth + 1)
        arguments.append(argument)
        if at < len(lexemes) and lexemes[at] == ",":
            at += 1
    at += 1
    if name in ("Optional", "Union"):
        members = [member for argument in arguments for member in _split_union(argument)]
        return [*members, *(["None"] if name == "Optional" else [])], at
    return [f"{name}[{', '.join(arguments)}]"], at


def _split_union(text: str) -> list[str]:
    """The members of a normalised union; bars inside brackets are none of its own."""
    members, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if depth == 0 and text.startswith(" | ", index):
            members.append(text[begin:index])
            begin = index + 3
    return [*members, text[begin:]]
