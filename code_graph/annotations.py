"""Type annotations of Python text: where they stand, where one could stand, and the text without them.

Positions are characters of the text. Nothing is formatted anew: an annotation is put in or taken out at its place.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tree_sitter import Node

from . import extract
from .graph import CodeGraph, Triple
from .schema import HAS_PARAMETER, HAS_TYPE, RETURNS
from .syntax import grammar
from .type_names import one_line

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
_TYPE_COMMENT = re.compile(r"#\s*type:(?!\s*ignore)")
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


def annotation_spans(root: Node) -> Iterator[tuple[int, int, int]]:
    """For each annotation where it begins (with its colon or arrow), where its type begins, and where it ends."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.type == "comment":
            if _TYPE_COMMENT.match(node.text.decode("ascii")):
                yield node.start_byte, node.start_byte, node.end_byte
            continue
        declared, mark = None, ":"
        if node.type in ("typed_parameter", "typed_default_parameter", "assignment"):
            declared = node.child_by_field_name("type")
        elif node.type == "function_definition":
            declared, mark = node.child_by_field_name("return_type"), "->"
        if declared is not None:
            begin = declared.prev_sibling
            while begin is not None and begin.type != mark:
                begin = begin.prev_sibling
            if begin is not None:
                start = begin.start_byte
                # ` -> T` takes the space before it along.
                if mark == "->" and begin.prev_sibling is not None:
                    start = begin.prev_sibling.end_byte
                yield start, declared.start_byte, declared.end_byte
        stack.extend(child for child in node.children if child != declared)


class _Removal:
    """A text without some spans, and where its characters went.

    Args:
        code: the text.
        spans: (start, ..., end) of each, sorted; one inside another goes with it.
    """

    def __init__(self, code: str, spans: list[tuple[int, ...]]):
        kept, position, self._starts, self._ends, self._removed = [], 0, [], [], [0]
        for start, *_, end in spans:
            if start < position:
                continue
            kept.append(code[position:start])
            position = end
            self._starts.append(start)
            self._ends.append(end)
            self._removed.append(self._removed[-1] + end - start)
        self.text = "".join([*kept, code[position:]])

    def moved(self, offset: int) -> int:
        """Where a character outside the spans stands in the new text."""
        return offset - self._removed[bisect_left(self._starts, offset)]

    def moved_span(self, start: int, end: int) -> tuple[int, int] | None:
        """Where a span that is not empty stands in the new text; None if a character of it is gone."""
        # Spans that begin before this one ends, and so before its last character.
        number = bisect_left(self._starts, end)
        if number and start < self._ends[number - 1]:
            return None
        return start - self._removed[number], end - self._removed[number]


def strip_annotations(code: str) -> tuple[str, list[Slot]]:
    """A Python file without its annotations, and what they said.

    Parameters and returns lose theirs; `x: int = 0` becomes `x = 0`, a bare declaration `x: int` becomes `x`, which keeps
    the name in the text, and comments with types go. Other comments and docstrings stay, whatever types they mention.

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
    removal = _Removal(code, sorted(annotation_spans(grammar("python").parse(code))))
    hidden = []
    for slot in find_slots(code):
        if slot.annotation is None:
            continue
        start = removal.moved(slot.start)
        hidden.append(
            replace(
                slot,
                start=start,
                end=start + len(slot.name),
                insert_at=removal.moved(slot.insert_at),
                annotation_end=None,
                line=removal.text.count("\n", 0, start) + 1,
            )
        )
    return removal.text, hidden


@dataclass(frozen=True)
class HiddenType:
    """An annotation that was taken out of a text.

    Attributes:
        relation: `has_type` (of a parameter) or `returns`.
        name: the parameter or function.
        type: the type's text, as the tail of its fact.
        start, end: where the name stands in the text without annotations.
        place: where the annotation stood in that text.
        prefix: what stood there before the type (`: ` or ` -> `).
    """

    relation: str
    name: str
    type: str
    start: int
    end: int
    place: int
    prefix: str


def hide_annotations(source: str) -> tuple[str, list[HiddenType], CodeGraph]:
    """`strip_annotations` with the graph of what is left, for questions about the facts that the annotations state.

    All go at once, so that no use, no other signature and no field of the same file shows what is asked for. Casts, checks
    with `isinstance`, imports and docstrings stay: they are what a reader of code without annotations has.

    Args:
        source: the file's text.

    Returns:
        The text without annotations, the hidden types of parameters and results in the order of the text, and the graph
        of the text without annotations, which holds no fact `has_type` or `returns`.

    Raises:
        ValueError: some annotation is left, because the file does not parse.
    """
    spans = sorted(annotation_spans(grammar("python").parse(source)))
    removal = _Removal(source, spans)
    graph = extract(removal.text)
    if any(triple.relation in (HAS_TYPE, RETURNS) for triple in graph.triples):
        raise ValueError("an annotation is left")
    starts = [start for start, *_ in spans]
    hidden = []
    for triple in declared_types(source):
        number = bisect_right(starts, triple.tail_start) - 1
        if number < 0 or triple.tail_start >= spans[number][2]:
            raise ValueError("a type stands outside every annotation")
        start, type_start, _ = spans[number]
        hidden.append(
            HiddenType(
                triple.relation,
                triple.head,
                triple.tail,
                removal.moved(triple.head_start),
                removal.moved(triple.head_end),
                removal.moved(start),
                source[start:type_start],
            )
        )
    return removal.text, hidden, graph


def hide_in_graph(source: str, graph: CodeGraph) -> tuple[str, CodeGraph] | None:
    """A Python file without its annotations, with the graph of the file that had them.

    For pretraining on what a reader of code without annotations must infer: the facts stay, at the places of their heads,
    but the text that stated them is gone. Facts whose head stood in an annotation go with it.

    Args:
        source: the file's text.
        graph: of that text.

    Returns:
        The text without annotations and the graph with all places in that text, a tail's None where it stood in an
        annotation; None if the file has no annotation.

    >>> from graphmert.code_graph import extract
    >>> code = "def size(path: Path) -> int:\\n    return path.stat().st_size\\n"
    >>> text, graph = hide_in_graph(code, extract(code))
    >>> print(text, [(t.head, t.tail) for t in graph.triples if t.relation == "has_type" and not t.is_use])
    def size(path):
        return path.stat().st_size
     [('path', 'Path')]
    """
    spans = sorted(annotation_spans(grammar("python").parse(source)))
    if not spans:
        return None
    removal = _Removal(source, spans)
    triples = []
    for triple in graph.triples:
        head = removal.moved_span(triple.head_start, triple.head_end)
        if head is None:
            continue
        tail = None if triple.tail_start is None else removal.moved_span(triple.tail_start, triple.tail_end)
        tail_start, tail_end = tail or (None, None)
        triples.append(triple._replace(head_start=head[0], head_end=head[1], tail_start=tail_start, tail_end=tail_end))
    boundaries = [
        (place[0], depth)
        for offset, depth in graph.boundaries
        if (place := removal.moved_span(offset, offset + 1)) is not None
    ]
    return removal.text, replace(graph, triples=triples, boundaries=boundaries)


def declared_types(source: str) -> list[Triple]:
    """The facts `has_type` of parameters and `returns` of a Python file, at their definitions, in the order of the text."""
    triples = [triple for triple in extract(source).triples if not triple.is_use]
    parameters = {triple.tail_start for triple in triples if triple.relation == HAS_PARAMETER}
    return [
        triple
        for triple in triples
        if triple.relation == RETURNS or (triple.relation == HAS_TYPE and triple.head_start in parameters)
    ]
