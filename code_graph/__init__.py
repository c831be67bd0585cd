"""Source text to a knowledge graph of it. Imports no torch.

>>> from graphmert.code_graph import extract
>>> graph = extract("import numpy as np\\ndef mean(rows: list) -> float:\\n    return np.mean(rows)\\n")
>>> for triple in graph.triples:
...     if not triple.is_use:
...         print(triple.head, triple.relation, triple.tail)
np imports numpy
mean has_parameter rows
mean returns float
mean calls numpy.mean
rows has_type list
"""

import builtins
import functools
import gc
import importlib
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from .examples import EXAMPLES, relations_of
from .facts import Resolver
from .graph import CodeGraph, Triple
from .project import ProjectIndex
from .schema import RELATION_IDS, RELATION_NAMES, RELATIONS, Relation
from .scopes import Scope
from .syntax import GRAMMARS, count_errors, grammar

__all__ = [
    "EXAMPLES",
    "EXTENSIONS",
    "LANGUAGES",
    "RELATIONS",
    "RELATION_IDS",
    "RELATION_NAMES",
    "CodeGraph",
    "ProjectIndex",
    "Relation",
    "Triple",
    "extract",
    "language_of",
    "relations_of",
]

LANGUAGES = tuple(GRAMMARS)

# Endings of the files that hold each language.
EXTENSIONS = {
    "python": (".py", ".pyi"),
    "java": (".java",),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "go": (".go",),
    "ruby": (".rb",),
    "php": (".php",),
}
READERS = {
    "python": "PythonReader",
    "java": "JavaReader",
    "javascript": "JavaScriptReader",
    "go": "GoReader",
    "ruby": "RubyReader",
    "php": "PhpReader",
}
_LANGUAGE_OF = {extension: language for language, extensions in EXTENSIONS.items() for extension in extensions}

_BUILTIN_NAMES = frozenset(dir(builtins))
_BUILTIN_CLASSES = frozenset(name for name in _BUILTIN_NAMES if isinstance(getattr(builtins, name), type))


Result = TypeVar("Result")


def language_of(path: str) -> str | None:
    """The language that the file at `path` is written in, by the ending of its name; None where it is none of these.

    >>> language_of("src/Stack.java"), language_of("README.md")
    ('java', None)
    """
    name = path.replace("\\", "/").rpartition("/")[2]
    return _LANGUAGE_OF.get("." + name.rpartition(".")[2].lower()) if "." in name else None


@functools.cache
def reader_class(language: str) -> type:
    """The reader of a language; its grammar is loaded when it is first asked for."""
    module = importlib.import_module(f".{language}", __name__)
    return getattr(module, READERS[language])


def resolver_for(
    language: str, scopes: list[Scope], project: ProjectIndex | None = None, module: str = ""
) -> Resolver:
    """The resolver of the facts of one file of a language."""
    if language == "python":
        return Resolver(scopes, _BUILTIN_NAMES, _BUILTIN_CLASSES, project, module)
    about = reader_class(language).about
    return Resolver(scopes, about.builtin_names, (), type_name=about.type_name, has_creations=True)


def extract(source: str, language: str = "python", project: ProjectIndex | None = None, path: str = "") -> CodeGraph:
    """Reads the knowledge graph of one file of source code.

    Reads what parses: broken, empty or foreign text gives fewer facts, never an error.

    Args:
        source: the text of the file.
        language: the language it is written in, one of `LANGUAGES`.
        project: the index of the project's files, where imports are to be resolved across them (Python only).
        path: the file's path in the project.

    Returns:
        The graph. All offsets index characters of `source`.

    Raises:
        ValueError: `source` is no str, or `language` is not supported.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is not supported; supported: {', '.join(LANGUAGES)}")
    if not isinstance(source, str):
        raise ValueError(f"source must be a str (decode bytes first), not {type(source).__name__}")

    def state(root, reader) -> CodeGraph:
        module = "" if project is None else project.module_of(path)
        resolver = resolver_for(language, reader.scopes, project, module)
        return CodeGraph(
            triples=resolver.state(),
            boundaries=sorted(reader.boundaries.items()),
            num_errors=count_errors(root),
            num_skipped=dict(Counter(reader.num_skipped) + Counter(resolver.num_skipped)),
        )

    return _read(source, language, state)


def outline_scopes(source: str, outline: Callable[[Scope], Result]) -> Result:
    """Reads the scopes of a Python file and gives what `outline` makes of the module's, before they are dropped."""

    def state(root, reader) -> Result:
        Resolver(reader.scopes, _BUILTIN_NAMES, _BUILTIN_CLASSES).complete_fields()
        return outline(reader.scopes[0])

    return _read(source, "python", state)


def _read(source: str, language: str, state: Callable[..., Result]) -> Result:
    # Reading makes many small objects that all live until its end: the cycle collector would walk them in vain again
    # and again (a third of the time). The cycles among scopes are undone below, so nothing is left to it.
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        root = grammar(language).parse(source)
        reader = reader_class(language)(source)
        reader.read_module(root)
        result = state(root, reader)
        for scope in reader.scopes:
            scope.release()
    finally:
        if was_collecting:
            gc.enable()
    return result
