"""Spellings of types in Python text."""

import re

_TYPING_NAMES = {"List": "list", "Dict": "dict", "Tuple": "tuple", "Set": "set", "FrozenSet": "frozenset"}
_TYPING_NAMES |= {"Type": "type", "Text": "str"}
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
