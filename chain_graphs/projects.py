"""Imports resolved across the files of each project while a dataset is built: `--across-files`.

Before rows are made, the outlines of each project's files are written to one index file (`code_graph.ProjectIndex`). The
processes that make rows open the index of the project they work on; files of one project mostly come together.
"""

import hashlib
import os
import pickle
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
            self._open = (project, pickle.loads(path.read_bytes()) if path.exists() else None)
        return self._open[1]


def index_path(directory: Path, project: str) -> Path:
    """Where the index of a project lies; its name may hold anything, so the file is named by a hash."""
    return directory / f"{hashlib.sha256(project.encode()).hexdigest()[:32]}.index"


def index_projects(read: Callable[[], Iterable[dict[str, str]]], directory: Path) -> ProjectExtractor:
    """Writes the index of every project that has more than one file.

    An index that is there already is kept, so that a build that was killed goes on where it stopped.

    Args:
        read: gives the staged files (`project`, `path`, `language`, `code`) anew each time; files of several projects
            may be mixed, but then the outlines of all that are under way are held in memory.
        directory: where to write; made if missing.

    Returns:
        What to extract the files with.
    """
    directory.mkdir(parents=True, exist_ok=True)
    waiting = Counter(file["project"] for file in read() if file["language"] == LANGUAGE)
    done = {project for project, count in waiting.items() if count < 2 or index_path(directory, project).exists()}
    under_way: dict[str, ProjectIndex] = {}
    for file in read():
        project = file["project"]
        if file["language"] != LANGUAGE or project in done:
            continue
        index = under_way.setdefault(project, ProjectIndex())
        index.add(file["path"], file["code"])
        waiting[project] -= 1
        if not waiting[project]:
            path = index_path(directory, project)
            unfinished = path.with_suffix(".writing")
            unfinished.write_bytes(pickle.dumps(under_way.pop(project), protocol=pickle.HIGHEST_PROTOCOL))
            os.replace(unfinished, path)
    return ProjectExtractor(directory)
