"""Hidden types of a corpus: its files without annotations, and where in their windows each type is asked for."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..chain_graphs.windows import WindowDataset
from ..code_graph import CodeGraph
from ..code_graph.annotations import HiddenType, hide_annotations
from ..code_graph.project_usage import ProjectUsage
from ..code_graph.schema import IMPORTED_FROM, IMPORTS, INHERITS, INSTANTIATES, RELATION_IDS
from ..code_graph.type_names import CLASS_NAME, defined_types
from ..code_graph.usage import FileUsage, Usage, read_usage
from .base import TaskContext
from .queries import Query

_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)", re.MULTILINE)
_MADE = re.compile(r"(\w+)[ \t]*=[ \t]*(?:\w+\.)*(_?[A-Z]\w*)\(")
_CHECKED = re.compile(r"\bisinstance\((?:\w+\.)*(\w+),[ \t]*\(?([\w., \t\n]+)\)")


@dataclass
class File:
    """A file without annotations.

    Attributes:
        project: that it belongs to.
        text, graph: without annotations.
        hidden: the types that were taken out.
        project_classes: names of classes and type aliases that any file of the project defines, sorted; one list for all
            its files.
        project_uses: of `uses_of_names`, of all files of the project together.
        usages: by relation and first character of the name what the code does; empty if that was not read.
        project_usage: of all files of the project together, or None.
    """

    project: str
    text: str
    graph: CodeGraph
    hidden: list[HiddenType]
    project_classes: list[str]
    project_uses: dict[str, Counter]
    usages: dict[tuple[str, int], Usage] = field(default_factory=dict)
    project_usage: ProjectUsage | None = None

    @cached_property
    def classes(self) -> list[str]:
        """Names of classes in the text: defined there, instantiated, inherited from, or imported and used."""
        names = set(_CLASS.findall(self.text))
        for triple in self.graph.triples:
            if triple.relation in (INSTANTIATES, INHERITS) and CLASS_NAME.fullmatch(triple.tail):
                names.add(triple.tail)
            elif triple.is_use and triple.relation in (IMPORTED_FROM, IMPORTS) and CLASS_NAME.fullmatch(triple.head):
                names.add(triple.head)
        return sorted(names)


def plain(name: str) -> str:
    """A name without underscores and capitals."""
    return name.replace("_", "").lower()


def uses_of_names(code: str) -> dict[str, Counter]:
    """Which classes code makes or checks under a name, and how often: what a name means in a project.

    Args:
        code: without annotations.

    Returns:
        By `plain` name the numbers of calls of a class that are given to the name, and of checks with `isinstance`.

    >>> dict(uses_of_names("self.node = ast.Node()\\nisinstance(a.node, (Leaf, ast.Node))")["node"])
    {'Node': 2, 'Leaf': 1}
    """
    found: dict[str, Counter] = defaultdict(Counter)
    for name, made in _MADE.findall(code):
        found[plain(name)][made] += 1
    for name, checked in _CHECKED.findall(code):
        found[plain(name)].update(part.strip().rpartition(".")[2] for part in checked.split(",") if part.strip())
    return found


def read_files(
    context: TaskContext, rows, description: str, with_usage: bool = False
) -> tuple[list[File], dict[str, int]]:
    """Take the annotations out of the Python files of a corpus.

    Args:
        context: the checkpoint.
        rows: of the corpus.
        description: of the progress bar.
        with_usage: also read what the code does with parameters and results.

    Returns:
        The files that have any, and the numbers of files read and left out, by reason.
    """
    files, counts = [], Counter(files=len(rows))
    columns = rows.select_columns(["project", "language", "code"])
    classes: dict[str, set[str]] = defaultdict(set)
    # Filled in when all files are read.
    lists: dict[str, list[str]] = defaultdict(list)
    uses: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    usages: dict[str, list[FileUsage]] = defaultdict(list)
    for row in context.progress(columns, description, total=len(rows)):
        if row["language"] != "python":
            counts["files_in_other_languages"] += 1
            continue
        classes[row["project"]].update(defined_types(row["code"]))
        try:
            text, hidden, graph = hide_annotations(row["code"])
        except ValueError:
            counts["files_with_annotations_that_cannot_be_hidden"] += 1
            continue
        for name, classes_of_name in uses_of_names(text).items():
            uses[row["project"]][name] += classes_of_name
        counts["files_without_types"] += not hidden
        if hidden:
            files.append(File(row["project"], text, graph, hidden, lists[row["project"]], uses[row["project"]]))
        if with_usage:
            usages[row["project"]].append(read_usage(text))
            if hidden:
                files[-1].usages = {
                    (usage.relation, usage.start): usage for usage in usages[row["project"]][-1].usages
                }
    for project, names in lists.items():
        names += sorted(classes[project])
    together = {project: ProjectUsage(found) for project, found in usages.items()}
    for file in files:
        file.project_usage = together.get(file.project)
    return files, dict(counts)


def find_queries(
    context: TaskContext, files: list[File], asked: Sequence[tuple[int, HiddenType]], num_roots: int | None = None
) -> tuple[WindowDataset, list[Query]]:
    """The windows of some files and where in them hidden types are asked for.

    Args:
        context: the checkpoint.
        files: of `read_files`.
        asked: number of a file and one of its types, in the order of the files.
        num_roots: tokens of a window; default the checkpoint's.

    Returns:
        The windows of the files that are asked about, and the queries, without those of types whose name, or name and
        place of the annotation, reach over a window's edge.
    """
    numbers = sorted({number for number, _ in asked})
    chosen = [files[number] for number in numbers]
    rows = context.rows_of_sources([file.text for file in chosen], graphs=[file.graph for file in chosen])
    options = context.window_options() | ({} if num_roots is None else {"num_roots": num_roots})
    windows = WindowDataset(rows, context.tokenizer, **options)
    types = defaultdict(list)
    for number, hidden in asked:
        types[number].append(hidden)
    queries = []
    places = rows.select_columns(["char_starts", "char_ends"]).with_format("numpy")
    for place, number in enumerate(context.progress(numbers, "finding places")):
        row = places[place]
        queries += [locate(context, row, windows, place, files[number], hidden) for hidden in types[number]]
    return windows, [query for query in queries if query is not None]


def locate(
    context: TaskContext, row: dict, windows: WindowDataset, number: int, file: File, hidden: HiddenType
) -> Query | None:
    """Where a hidden type is asked for: the window that holds its name, and the places in it.

    Args:
        context: the checkpoint.
        row: of the file (`TaskContext.rows_of_sources`).
        windows: of all files.
        number: of the file among those of `windows`.
        file, hidden: what is asked about.

    Returns:
        None where the name, or the name and the place of its annotation, reach over a window's edge.
    """
    starts, ends = np.asarray(row["char_starts"]), np.asarray(row["char_ends"])
    first = int(np.searchsorted(ends, hidden.start, side="right"))
    last = int(np.searchsorted(starts, hidden.end, side="left"))
    # The first token that begins at the annotation's place or behind it.
    place = int(np.searchsorted(ends, hidden.place, side="right"))
    low, high = np.searchsorted(windows.file_index, (number, number + 1))
    index = low + int(np.searchsorted(windows.token_range[low:high, 0], first, side="right")) - 1
    start, end = windows.token_range[index].tolist()
    if last > end or place > end:
        return None
    # Root 0 is <s>.
    return Query(
        window=index,
        file=number,
        project=file.project,
        hidden=hidden,
        head=(first - start + 1, last - first),
        place=place - start + 1,
        prefix=prefix_tokens(context.tokenizer, hidden.prefix),
        relation=RELATION_IDS[hidden.relation],
        classes=file.classes,
        project_classes=file.project_classes,
        project_uses=file.project_uses,
        usage=file.usages.get((hidden.relation, hidden.start)),
        project_usage=file.project_usage,
    )


def is_shown(context: TaskContext, item: dict, type_: str) -> bool:
    """Whether a type's text stands in a window or its leaves."""
    pattern = re.compile(rf"(?<!\w){re.escape(type_)}(?!\w)")
    return any(pattern.search(context.tokenizer.decode(item[name].tolist())) for name in ("input_ids", "leaf_ids"))


def prefix_tokens(tokenizer, prefix: str) -> list[int]:
    """The tokens between a name and its type, without those that reach into the type."""
    encoding = tokenizer.backend_tokenizer.encode(prefix + "int", add_special_tokens=False)
    return [token for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if end <= len(prefix)]
