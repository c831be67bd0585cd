"""Syntax trees: one tree-sitter parser for each language, over text whose byte offsets are character offsets.

tree-sitter is imported with the first grammar: who trains on a finished dataset needs the schema only.
"""

import codecs
import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Parser

# Wheel that holds each language's grammar, and the function in it that gives the grammar.
GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "java": ("tree_sitter_java", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "go": ("tree_sitter_go", "language"),
    "ruby": ("tree_sitter_ruby", "language"),
    "php": ("tree_sitter_php", "language_php"),
}


@dataclass(frozen=True)
class Grammar:
    """A parser with the numbers of its node kinds and fields, which are much faster to compare than names."""

    parser: "Parser"
    language: "Language"

    def kinds(self, *names: str) -> frozenset[int]:
        """Numbers of the named node kinds with these names; a name may have several. Unknown names are an error."""
        found = {
            number: self.language.node_kind_for_id(number)
            for number in range(self.language.node_kind_count)
            if self.language.node_kind_is_named(number)
        }
        numbers = frozenset(number for number, name in found.items() if name in names)
        missing = set(names) - {found[number] for number in numbers}
        if missing:
            raise ValueError(f"the grammar has no node kind {', '.join(sorted(missing))}")
        return numbers

    def field(self, name: str) -> int:
        """Number of a field."""
        number = self.language.field_id_for_name(name)
        if number is None:
            raise ValueError(f"the grammar has no field {name}")
        return number

    def parse(self, source: str) -> "Node":
        """Root of the syntax tree of `source`; its byte offsets index the characters of `source`."""
        return self.parser.parse(one_byte_per_character(source)).root_node


@functools.cache
def grammar(language: str) -> Grammar:
    """The grammar of a language, loaded once in each process."""
    from tree_sitter import Language, Parser

    wheel, function = GRAMMARS[language]
    loaded = Language(getattr(importlib.import_module(wheel), function)())
    return Grammar(Parser(loaded), loaded)


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """Replaces each character outside ASCII by one ASCII character of the same role in an identifier."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(
        "z" if ("z" + c).isidentifier() else " " if c.isspace() or c == "\ufeff" else "?" for c in text
    ), error.end


codecs.register_error("graphmert.one_byte", _stand_in)


def one_byte_per_character(source: str) -> bytes:
    """Encodes text for the parser with exactly one byte for each character, so that no offset ever needs converting.

    Letters outside ASCII become a letter, everything else outside ASCII a space or question mark: tokens keep their
    edges, and names are always read from the text itself. Lone carriage returns become line feeds and null characters
    spaces, which the grammar does not take as white space.
    """
    data = source.encode("ascii", errors="graphmert.one_byte")
    if b"\0" in data:
        data = data.replace(b"\0", b" ")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\0\n").replace(b"\r", b"\n").replace(b"\0", b"\r")
    return data


def count_errors(root: "Node") -> int:
    """Number of error nodes and of tokens that the parser had to make up."""
    if not root.has_error:
        return 0
    num_errors = 0
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            num_errors += 1
        if node.has_error:
            stack.extend(node.children)
    return num_errors
