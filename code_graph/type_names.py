"""Names and spellings of types in Python text."""

import re
from collections.abc import Collection

_TYPING_NAMES = {"List": "list", "Dict": "dict", "Tuple": "tuple", "Set": "set", "FrozenSet": "frozenset"}
_TYPING_NAMES |= {"Type": "type", "Text": "str"}
CLASS_NAME = re.compile(r"_?[A-Z]\w*")
_CLASS = re.compile(r"^([ \t]*)class[ \t]+(\w+)", re.MULTILINE)
_ALIAS = re.compile(
    r"^(?:type[ \t]+)?(_?[A-Z]\w*)(?:\[[^\]\n]*\])?[ \t]*(?::[ \t]*[\w.]*TypeAlias[ \t]*)?=[^=]", re.MULTILINE
)
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?![\w.])")
_GENERIC = frozenset(
    (
        *("Any", "Optional", "Union", "List", "Dict", "Tuple", "Set", "FrozenSet", "Type", "Callable", "Sequence"),
        *("Iterable", "Iterator", "Mapping", "MutableMapping", "Generator", "Collection", "Literal", "None", "True"),
        *("False", "Awaitable", "Coroutine", "AsyncIterator", "AsyncGenerator", "AsyncIterable", "Self", "NoReturn"),
    )
)
_LEXEMES = re.compile(r"[^\W\d][\w.]*|\"[^\"]*\"|'[^']*'|\.\.\.|\d+|\S")


def one_line(text: str) -> str:
    """A type's text as facts state it: on one line, without the quotes around a forward reference.

    >>> one_line("dict[str,\\n     int]"), one_line('"Node"')
    ('dict[str, int]', 'Node')
    """
    text = " ".join(text.split())
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2:
        return text[1:-1]
    return text


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


def defined_classes(code: str, top_level: bool = False) -> set[str]:
    """Names of the classes that Python text defines.

    Args:
        code: the text.
        top_level: leave out classes inside of others and of functions.

    >>> sorted(defined_classes("class Node:\\n    class Leaf: ...\\n")), defined_classes(" class A: ...", top_level=True)
    (['Leaf', 'Node'], set())
    """
    return {name for indent, name in _CLASS.findall(code) if not (top_level and indent)}


def type_aliases(code: str) -> set[str]:
    """Names of type aliases and type variables, as far as spelling tells: names with a capital that a module assigns.

    >>> sorted(type_aliases("T = TypeVar('T')\\nPath: TypeAlias = str\\ntype Text = str\\nx = Node()\\nfor A in X: ..."))
    ['Path', 'T', 'Text']
    """
    return set(_ALIAS.findall(code))


def defined_types(code: str) -> set[str]:
    """Names of classes, type aliases and type variables.

    >>> sorted(defined_types("T = TypeVar('T')\\nclass Node:\\n    Leaf = int\\nx = Node()\\n"))
    ['Node', 'T']
    """
    return defined_classes(code) | type_aliases(code)


def form_of(text: str, names: Collection[str]) -> str | None:
    """A type's text with {} in place of the one name of the project in it.

    >>> form_of("dict[str, Node]", {"Node"}), form_of("int", {"Node"})
    ('dict[str, {}]', None)
    """
    if "{" in text or "}" in text:
        return None
    written = [word for word in _IDENTIFIER.findall(text) if word in names]
    return re.sub(rf"(?<![\w.]){written[0]}(?![\w.])", "{}", text, count=1) if len(written) == 1 else None


def class_names_in(text: str) -> frozenset[str]:
    """Names of classes in a type that not every file may write.

    >>> sorted(class_names_in("dict[str, Node] | Optional[Leaf]"))
    ['Leaf', 'Node']
    """
    return frozenset(word for word in _IDENTIFIER.findall(text) if CLASS_NAME.fullmatch(word)) - _GENERIC
