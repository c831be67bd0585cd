"""Python source without its annotations: the types of parameters and results are hidden, and where each stood is known."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from ..code_graph import CodeGraph, Triple, extract
from ..code_graph.schema import HAS_PARAMETER, HAS_TYPE, RETURNS
from ..code_graph.syntax import grammar

_TYPE_COMMENT = re.compile(r"#\s*type:(?!\s*ignore)")


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
    """Take all annotations out of a Python file: of parameters, results, variables and fields, and comments with types.

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
    spans = sorted(_annotations(grammar("python").parse(source)))
    kept, position, starts, removed = [], 0, [], [0]
    for start, _, end in spans:
        if start < position:
            raise ValueError("annotations overlap")
        kept.append(source[position:start])
        position = end
        starts.append(start)
        removed.append(removed[-1] + end - start)
    stripped = "".join([*kept, source[position:]])

    graph = extract(stripped)
    if any(triple.relation in (HAS_TYPE, RETURNS) for triple in graph.triples):
        raise ValueError("an annotation is left")

    def moved(offset: int) -> int:
        return offset - removed[bisect_left(starts, offset)]

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
                moved(triple.head_start),
                moved(triple.head_end),
                start - removed[number],
                source[start:type_start],
            )
        )
    return stripped, hidden, graph


def declared_types(source: str) -> list[Triple]:
    """The facts `has_type` of parameters and `returns` of a Python file, at their definitions, in the order of the text."""
    triples = [triple for triple in extract(source).triples if not triple.is_use]
    parameters = {triple.tail_start for triple in triples if triple.relation == HAS_PARAMETER}
    return [
        triple
        for triple in triples
        if triple.relation == RETURNS or (triple.relation == HAS_TYPE and triple.head_start in parameters)
    ]


def _annotations(root: Node) -> Iterator[tuple[int, int, int]]:
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
