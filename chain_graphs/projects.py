"""Imports resolved across the files of each project while a dataset is built: `--across-files`.

Before rows are made, the files of each project are brought together in one JSON file. The processes that make rows read
the outlines (`code_graph.ProjectIndex`) of the project they work on from it; files of one project mostly come together.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..code_graph import CodeGraph, ProjectIndex, extract

LANGUAGE = "python"


class ProjectExtractor:
    """An `extract` for `RowMaker` that knows the project of each file; it can be pickled.

    Args:
        directory: where `index_projects` has written.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._open: tuple[str | None, ProjectIndex | None] = (None, None)

    def __reduce__(self):
        return ProjectExtractor, (self.directory,)

    def __call__(self, code: str, language: str) -> CodeGraph:
        """The graph of a file on its own."""
        return extract(code, language)

    def of_file(self, file: dict[str, str]) -> CodeGraph:
        """The graph of a staged file (`project`, `path`, `language`, `code`) among those of its project."""
        project = self._index_of(file["project"]) if file["language"] == LANGUAGE else None
        return extract(file["code"], file["language"], project, file["path"])

    def _index_of(self, project: str) -> ProjectIndex | None:
        if self._open[0] != project:
            path = index_path(self.directory, project)
            files = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            self._open = (project, None if files is None else ProjectIndex(map(tuple, files)))
        return self._open[1]


def index_path(directory: Path, project: str) -> Path:
    """Where the texts of a project lie; its name may hold anything, so the file is named by a hash."""
    return directory / f"{hashlib.sha256(project.encode()).hexdigest()[:32]}.json"


def index_projects(read: Callable[[], Iterable[dict[str, str]]], directory: Path) -> ProjectExtractor:
    """Writes the texts of every project that has more than one file.

    A file that is there already is kept, so that a build that was killed goes on where it stopped.

    Args:
        read: gives the staged files (`project`, `path`, `language`, `code`) anew each time; files of several projects
            may be mixed, but then the texts of all that are under way are held in memory.
        directory: where to write; made if missing.

    Returns:
        What to extract the files with.
    """
    directory.mkdir(parents=True, exist_ok=True)
    waiting = Counter(file["project"] for file in read() if file["language"] == LANGUAGE)
    done = {project for project, count in waiting.items() if count < 2 or index_path(directory, project).exists()}
    under_way: dict[str, list[tuple[str, str]]] = {}
    for file in read():
        project = file["project"]
        if file["language"] != LANGUAGE or project in done:
            continue
        under_way.setdefault(project, []).append((file["path"], file["code"]))
        waiting[project] -= 1
        if not waiting[project]:
            path = index_path(directory, project)
            unfinished = path.with_suffix(".writing")
            # ASCII, so that a lone surrogate in a text is kept as well.
            unfinished.write_text(json.dumps(under_way.pop(project)), encoding="ascii")
            os.replace(unfinished, path)
    return ProjectExtractor(directory)
