"""Functions for retrieval tasks: cut out of files by syntax, filtered as CodeSearchNet does (arXiv 1909.09436, sec. 2).

A function's docstring is what it is searched by, so it is taken out of the code before anything reads the code: the
docstrings of all functions of a file are removed from its text, and only then are graph and tokens made. What is left in
no leaf, and in no context around a function, can give a query away.
"""

import ast
import functools
import gzip
import inspect
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm
from tree_sitter import Node, Query, QueryCursor

from ..chain_graphs.duplicates import near_duplicates, signature
from ..code_graph.syntax import grammar

MIN_DOCSTRING_WORDS = 3
MIN_CODE_LINES = 3
NEAR_DUPLICATE = 0.85
CODE_SEARCH_NET_FIELDS = ("code", "docstring", "func_name", "repo")

_WORD = re.compile(r"\w+")
_DUNDER = re.compile(r"__\w+__")


class Function(NamedTuple):
    """A function of a file whose docstrings have been removed.

    Attributes:
        project, path: where the file is from.
        file: the file's text without the docstrings of its functions; one object for all functions of the file.
        name: the function's name; `qualified_name` with the classes around it, `Reader.walk`.
        start, end: the function in `file`, from `def` (or `async`) to the end of its body, in characters.
        docstring: first paragraph of the docstring, on one line; empty without one.
    """

    project: str
    path: str
    file: str
    name: str
    qualified_name: str
    start: int
    end: int
    docstring: str

    @property
    def code(self) -> str:
        """The function's text."""
        return self.file[self.start : self.end]

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the function within a corpus."""
        return self.project, self.path, self.qualified_name


@functools.cache
def _functions_query() -> Query:
    return Query(grammar("python").language, "(function_definition) @function")


def read_functions(code: str, project: str = "", path: str = "") -> list[Function]:
    """Cut the functions out of one Python file; those inside another function are part of it.

    Args:
        code: the file's text; it need not parse as a whole.
        project, path: kept in the result.

    Returns:
        The functions in the order of the text, duplicates of a name included.
    """
    nodes = QueryCursor(_functions_query()).captures(grammar("python").parse(code)).get("function", [])
    nodes.sort(key=lambda node: node.start_byte)
    removed: list[tuple[int, int, str]] = []
    found: list[tuple[str, str, int, int, str]] = []
    for node in nodes:
        docstring, span = _docstring(node, code)
        if span is not None:
            removed.append(span)
        owners = _owners(node, code)
        name = node.child_by_field_name("name")
        if owners is not None and name is not None and name.end_byte > name.start_byte:
            text = code[name.start_byte : name.end_byte]
            end = node.start_byte + len(code[node.start_byte : node.end_byte].rstrip())
            found.append((text, ".".join([*owners, text]), node.start_byte, end, docstring))

    pieces, position = [], 0
    ends, shifts = [0], [0]
    for start, end, instead in removed:
        pieces += [code[position:start], instead]
        position = end
        ends.append(end)
        shifts.append(shifts[-1] + end - start - len(instead))
    file = "".join([*pieces, code[position:]])

    def moved(offset: int) -> int:
        return offset - shifts[int(np.searchsorted(ends, offset, side="right")) - 1]

    return [
        Function(project, path, file, name, qualified, moved(start), moved(end), docstring)
        for name, qualified, start, end, docstring in found
    ]


def _owners(node: Node, code: str) -> list[str] | None:
    """Names of the classes around a function, the outermost first; None inside another function."""
    owners = []
    parent = node.parent
    while parent is not None:
        if parent.type in ("function_definition", "lambda"):
            return None
        if parent.type == "class_definition":
            name = parent.child_by_field_name("name")
            owners.append(code[name.start_byte : name.end_byte] if name is not None else "")
        parent = parent.parent
    return owners[::-1]


def _docstring(node: Node, code: str) -> tuple[str, tuple[int, int, str] | None]:
    """First paragraph of a function's docstring, and (start, end, replacement) of what to remove from the text."""
    body = node.child_by_field_name("body")
    statements = [] if body is None else body.named_children
    index = next((i for i, child in enumerate(statements) if child.type != "comment"), None)
    if index is None or statements[index].type != "expression_statement" or statements[index].child_count != 1:
        return "", None
    string = statements[index].child(0)
    if string.type not in ("string", "concatenated_string"):
        return "", None
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's docstrings.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(code[string.start_byte : string.end_byte])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "", None
    if not isinstance(value, str):
        return "", None
    if index + 1 < len(statements):
        # Up to the next statement, which takes the docstring's place and so keeps its indentation.
        return first_paragraph(value), (string.start_byte, statements[index + 1].start_byte, "")
    return first_paragraph(value), (string.start_byte, string.end_byte, "...")


def first_paragraph(docstring: str) -> str:
    """A docstring's first paragraph on one line."""
    paragraph = inspect.cleandoc(docstring).strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def read_code_search_net(paths: Iterable[str | Path], partition: str | None = None) -> Iterator[Function]:
    """Functions of CodeSearchNet's own files: JSON lines, plain or gzip, one function in each line.

    The code there still holds its docstring, which is removed; `docstring` is the line's own field. A function stands
    alone, so its graph is that of the function.

    Args:
        paths: `.jsonl` or `.jsonl.gz` files.
        partition: only lines of this partition; None reads all.

    Raises:
        ValueError: a file that is not such JSON lines, or holds no Python function; the message names file and line.
    """
    for path in map(Path, paths):
        try:
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as f:
                for number, line in enumerate(f, start=1):
                    if line.strip():
                        yield from _code_search_net_line(line, f"{path}, line {number}", partition)
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as JSON lines ({type(error).__name__}: {error})") from error


def _code_search_net_line(line: str, where: str, partition: str | None) -> Iterator[Function]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg}); CodeSearchNet has one JSON object in each line") from error
    missing = [name for name in CODE_SEARCH_NET_FIELDS if not isinstance(row.get(name), str)]
    if missing:
        raise ValueError(f"{where}: no text in the field(s) {', '.join(missing)}, which CodeSearchNet's files have")
    if partition is not None and row.get("partition", partition) != partition:
        return
    if row.get("language", "python") != "python":
        raise ValueError(f"{where}: language {row['language']!r}; only Python functions are read")
    read = read_functions(textwrap.dedent(row["code"]), row["repo"], row.get("path") or row["func_name"])
    if read:
        name = row["func_name"].rpartition(".")[2] or read[0].name
        yield read[0]._replace(name=name, docstring=first_paragraph(row["docstring"]))
    else:
        # A line that is no function is for `searchable` to count.
        yield Function(row["repo"], row.get("path") or "", "", row["func_name"], row["func_name"], 0, 0, "")


def dataset_functions(rows, progress: bool = True) -> Iterator[Function]:
    """Functions of the files of a chain-graph dataset.

    Args:
        rows: a split with the columns `project`, `path` and `code`.
        progress: show a progress bar on a terminal.
    """
    rows = rows.select_columns(["project", "path", "code"])
    for row in tqdm(rows, desc="reading functions", disable=None if progress else True, leave=False):
        yield from read_functions(row["code"], row["project"], row["path"])


def unsearchable(function: Function) -> str | None:
    """Why CodeSearchNet's filters leave a function out; None for one that stays."""
    if not function.code:
        return "no function in the line"
    if _DUNDER.fullmatch(function.name):
        return "double underscores"
    if "test" in function.name.lower():
        return "test in the name"
    if not function.docstring:
        return "no docstring"
    if len(_WORD.findall(function.docstring)) < MIN_DOCSTRING_WORDS:
        return f"docstring of fewer than {MIN_DOCSTRING_WORDS} words"
    if sum(1 for line in function.code.splitlines() if line.strip()) < MIN_CODE_LINES:
        return f"fewer than {MIN_CODE_LINES} lines of code"
    return None


def searchable(functions: Iterable[Function]) -> tuple[list[Function], dict[str, int]]:
    """CodeSearchNet's filters: documented functions of some length, none a near-duplicate of another.

    A function whose docstring repeats that of an earlier one is left out too: no ranking could tell the two apart.

    Args:
        functions: of the corpus.

    Returns:
        The functions that stay, in their order, and the number left out by reason (`functions` is the number seen).
    """
    counts: Counter = Counter()
    kept: list[Function] = []
    docstrings: set[tuple[str, ...]] = set()
    for function in functions:
        counts["functions"] += 1
        reason = unsearchable(function)
        words = tuple(_WORD.findall(function.docstring.lower()))
        if reason is None and words in docstrings:
            reason = "repeats another's docstring"
        if reason is not None:
            counts[reason] += 1
            continue
        docstrings.add(words)
        kept.append(function)
    repeated = repetitions([function.code for function in kept])
    counts["near-duplicate"] += len(repeated)
    kept = [function for index, function in enumerate(kept) if index not in repeated]
    return kept, dict(counts)


def repetitions(texts: list[str]) -> set[int]:
    """Which texts repeat an earlier one, word for word or nearly (estimated Jaccard similarity of word 5-grams)."""
    first: dict[tuple[str, ...], int] = {}
    words = [tuple(_WORD.findall(text)) for text in texts]
    repeated = {index for index, key in enumerate(words) if first.setdefault(key, index) != index}
    distinct = [index for index in range(len(texts)) if index not in repeated]
    if distinct:
        signatures = np.stack([signature(texts[index]) for index in distinct])
        repeated |= {distinct[index] for index in near_duplicates(signatures, NEAR_DUPLICATE)}
    return repeated


def sample(functions: list, number: int | None, seed: int) -> list:
    """`number` of the functions at random, in their old order; all of them where there are fewer.

    The choice depends on nothing but the functions and the seed, so that every checkpoint gets the same.
    """
    if number is None or number >= len(functions):
        return list(functions)
    chosen = np.random.default_rng(seed).permutation(len(functions))[:number]
    return [functions[index] for index in sorted(chosen.tolist())]
