"""Corpora: where code comes from, one file at a time, with a reason for every file that is left out.

Each source yields `SourceFile` (decoded text) or `SkippedFile` (path and reason) in a fixed order, and describes itself
for the manifest. Only this module touches directories of code, wheels, and the network (`pip download` and the Hugging
Face hub); it never installs, imports or runs what it reads.
"""

import functools
import hashlib
import os
import re
import stat
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..code_graph import LANGUAGES
from .languages import (
    DEFAULT_LANGUAGES,
    decode,
    default_suffix,
    is_minified,
    is_table,
    is_test_path,
    language_named,
    language_of_file,
    normalize_newlines,
)

DEFAULT_CACHE_DIR = Path.home() / ".cache" / "graphmert"

PROJECT_COLUMNS = ("project", "repo", "repository", "repo_name", "repository_name", "max_stars_repo_name")
PATH_COLUMNS = ("path", "file_path", "func_path_in_repository", "max_stars_repo_path")

# A marker of one project's root: such a directory is one project, not a folder of projects.
_PROJECT_MARKERS = (".git", "setup.py", "setup.cfg", "pyproject.toml", "__init__.py")
_NOT_SOURCE_DIRS = {"__pycache__", "node_modules", "site-packages", "dist-packages", "lib-dynload"}


class BuildError(ValueError):
    """A mistake of the user's that a build reports in one line; the message names the input and the mend."""


@dataclass(frozen=True)
class SourceFile:
    """One file of code: `text` with "\\n" line ends, `project` for the split, `path` within the source."""

    source: str
    project: str
    path: str
    language: str
    text: str


@dataclass(frozen=True)
class SkippedFile:
    """One file that is left out, and why; `reason` is a short category, the same words for the same cause.

    `repeats` is the path of the file that a duplicate repeats.
    """

    source: str
    path: str
    reason: str
    repeats: str | None = None


class Candidate(NamedTuple):
    """A file that a source has found, before it is read; `reason` is set where the source itself leaves it out."""

    project: str
    path: str
    size: int
    read: Callable[[], bytes | str]
    language: str
    reason: str | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What to leave out while reading.

    Attributes:
        max_file_bytes: larger files are skipped.
        min_file_chars: shorter files are skipped (empty ones always are).
        include_tests: keep test directories and test files.
        include_tables: keep files of generated data.
        languages: files of other languages are not looked at.
        cache_dir: where downloaded wheels are kept.
        download: fetches one wheel into a directory, `(requirement, directory) -> its path`; by default with pip.
    """

    max_file_bytes: int = 1_000_000
    min_file_chars: int = 1
    include_tests: bool = False
    include_tables: bool = False
    languages: tuple[str, ...] = DEFAULT_LANGUAGES
    cache_dir: Path = DEFAULT_CACHE_DIR
    download: Callable[[str, Path], Path] | None = None


class Source:
    """A corpus. Subclasses give `_candidates`; this class applies the rules that all sources share.

    Args:
        spec: the source as the user wrote it.
        options: what to leave out.

    Attributes:
        num_files: files seen so far, read or skipped.
        num_not_asked: files of code seen so far that are not looked at, by their language; rows of data sets that hold
            other languages are skipped instead.
    """

    def __init__(self, spec: str, options: ReadOptions):
        self.spec = spec
        self.options = options
        self.num_files = 0
        self.num_not_asked: Counter[str] = Counter()

    def describe(self) -> dict:
        """What the manifest says of the source: kind, version, licence, hash, as far as the source knows."""
        raise NotImplementedError

    def _candidates(self) -> Iterator[Candidate]:
        """Yield each file in a fixed order."""
        raise NotImplementedError

    def files(self) -> Iterator[SourceFile | SkippedFile]:
        """Yield every file of the source, read or skipped with a reason."""
        for found in self._candidates():
            self.num_files += 1
            text, reason = self._read(found)
            if reason is None:
                yield SourceFile(self.spec, found.project, found.path, found.language, text)
            else:
                yield SkippedFile(self.spec, found.path, reason)

    def _is_asked_for(self, language: str | None) -> bool:
        """Whether files of a language are looked at; files of code that are not are counted."""
        if language is not None and language not in self.options.languages:
            self.num_not_asked[language] += 1
        return language in self.options.languages

    def _read(self, found: Candidate) -> tuple[str, str | None]:
        if found.reason:
            return "", found.reason
        if not self.options.include_tests and is_test_path(found.path, found.language):
            return "", "test code (--include-tests keeps it)"
        if found.size > self.options.max_file_bytes:
            return "", f"larger than {self.options.max_file_bytes} bytes (--max-file-bytes)"
        try:
            data = found.read()
            text = decode(data, found.language) if isinstance(data, bytes) else normalize_newlines(data)
            # A lone surrogate (possible in JSON) cannot be stored.
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "", "lone surrogates"
        except UnicodeError as error:
            return "", str(error)
        except (OSError, zipfile.BadZipFile) as error:
            return "", f"cannot be read ({type(error).__name__})"
        if not text.strip():
            return "", "empty"
        if "\0" in text:
            return "", "null bytes"
        if len(text) < self.options.min_file_chars:
            return "", f"shorter than {self.options.min_file_chars} characters (--min-file-chars)"
        if not self.options.include_tables and is_minified(text, found.path, found.language):
            return "", "minified (--include-tables keeps it)"
        if not self.options.include_tables and is_table(text, found.language):
            return "", "table of data (--include-tables keeps it)"
        return text, None


class DirectorySource(Source):
    """A directory with files of code, or one such file.

    The project of a file is the first directory of its path (a folder of repositories), unless the directory is itself
    one project, by `project=single` or because it holds `.git`, `setup.py`, `setup.cfg`, `pyproject.toml` or
    `__init__.py`; then all of it is one project with the directory's name. Files that lie directly in a folder of
    repositories are a project each with `project=children`, and one project with the folder's name otherwise.

    Args:
        spec, options: as in `Source`.
        root: the directory or file.
        project: "auto", "single" or "children".
    """

    def __init__(self, spec: str, options: ReadOptions, root: Path, project: str = "auto"):
        super().__init__(spec, options)
        if project not in ("auto", "single", "children"):
            raise BuildError(f"source {spec}: project={project} is not one of auto, single, children")
        if not root.exists():
            raise BuildError(f"source {spec}: {root} does not exist")
        if root.is_file() and language_of_file(root.name) not in options.languages:
            raise BuildError(
                f"source {spec}: {root} is not a directory nor a file of {', '.join(options.languages)} (--languages)"
            )
        self.root = root.resolve()
        if root.is_file() or (project == "auto" and any((root / marker).exists() for marker in _PROJECT_MARKERS)):
            project = "single"
        self.project = project

    def describe(self) -> dict:
        return {"kind": "dir", "path": str(self.root), "projects": self.project}

    def _candidates(self):
        if self.root.is_file():
            language = language_of_file(self.root.name)
            try:
                decode(self.root.read_bytes(), language)
            except UnicodeError as error:
                raise BuildError(f"source {self.spec}: {self.root} is not text: {error}") from error
            yield Candidate(self.root.stem, self.root.name, self.root.stat().st_size, self.root.read_bytes, language)
            return
        for path, reason in walk(self.root):
            language = language_of_file(path.name)
            if reason is None and not self._is_asked_for(language):
                continue
            relative = path.relative_to(self.root)
            project, size = self._project_of(relative), file_size(path)
            yield Candidate(project, relative.as_posix(), size, path.read_bytes, language, reason)

    def _project_of(self, relative: Path) -> str:
        if self.project == "single":
            return self.root.name
        if len(relative.parts) > 1:
            return relative.parts[0]
        return relative.stem if self.project == "children" else self.root.name


class StandardLibrarySource(DirectorySource):
    """This interpreter's standard library; the project of a file is its top-level module or package."""

    def __init__(self, spec: str, options: ReadOptions):
        super().__init__(spec, options, Path(sysconfig.get_path("stdlib")), "children")

    def describe(self) -> dict:
        return {
            "kind": "stdlib",
            "version": sys.version.split()[0],
            "licence": "PSF-2.0 (Python Software Foundation License Version 2)",
        }


class WheelSource(Source):
    """One release of a package from the package index: its wheel is downloaded and read, never installed or run.

    Args:
        spec, options: as in `Source`.
        requirement: `NAME==VERSION`.
    """

    def __init__(self, spec: str, options: ReadOptions, requirement: str):
        super().__init__(spec, options)
        self.name, self.version = parse_pin(spec, requirement)
        self.wheel = self._fetch()
        try:
            with zipfile.ZipFile(self.wheel) as archive:
                self._licence = wheel_licence(archive)
        except zipfile.BadZipFile as error:
            raise BuildError(f"source {spec}: {self.wheel} is not a wheel (damaged download?): delete it") from error

    def _fetch(self) -> Path:
        directory = self.options.cache_dir / "wheels" / f"{self.name}-{self.version}"
        kept = sorted(directory.glob("*.whl"))
        if kept:
            return kept[0]
        download = self.options.download or download_wheel
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Downloaded beside its place and moved there whole: a killed download leaves nothing that looks complete.
            with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
                wheel = download(f"{self.name}=={self.version}", Path(scratch))
                kept = directory / wheel.name
                os.replace(wheel, kept)
        except OSError as error:
            raise BuildError(f"--cache-dir {self.options.cache_dir}: cannot be written ({error.strerror})") from error
        return kept

    def describe(self) -> dict:
        return {
            "kind": "pypi",
            "name": self.name,
            "version": self.version,
            "file": self.wheel.name,
            "sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest(),
            "licence": self._licence,
        }

    def _candidates(self):
        with zipfile.ZipFile(self.wheel) as archive:
            for member in sorted(archive.infolist(), key=lambda m: m.filename):
                language = language_of_file(member.filename)
                if self._is_asked_for(language):
                    read = functools.partial(archive.read, member)
                    yield Candidate(self.name, member.filename, member.file_size, read, language)


class HuggingFaceSource(Source):
    """A Hugging Face dataset with one file of code in each row: a local path (`save_to_disk` directory, Parquet, JSON or
    CSV) or a hub id.

    Args:
        spec, options: as in `Source`.
        name: path or hub id.
        text_column: the column of code.
        project_column: the column that names the project; by default the first of `PROJECT_COLUMNS` that exists. With
            none, each row is a project of its own, and the description says so.
        split: which split to read; "train" if there are several.
        revision: commit of a hub dataset.
        language: of all rows. Without it a column `language` tells, or the ending of the path, or it is the one language
            that is asked for.
    """

    def __init__(
        self,
        spec: str,
        options: ReadOptions,
        name: str,
        text_column: str | None = None,
        project_column: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        language: str | None = None,
    ):
        super().__init__(spec, options)
        self.language = None if language is None else language_named(language)
        if self.language not in (None, *LANGUAGES):
            raise BuildError(
                f"source {spec}: language {self.language} is not read; choose from {', '.join(LANGUAGES)}"
            )
        self.dataset, columns = load_huggingface(spec, name, split, revision)
        self.name, self.revision = name, revision
        if text_column is None:
            raise BuildError(f"source {spec}: add ,text_column=NAME; the columns are {', '.join(columns)}")
        for column in (text_column, project_column):
            if column is not None and column not in columns:
                raise BuildError(f"source {spec}: no column {column!r}; the columns are {', '.join(columns)}")
        self.text_column = text_column
        self.project_column = project_column or next((c for c in PROJECT_COLUMNS if c in columns), None)
        self.path_column = next((c for c in PATH_COLUMNS if c in columns), None)
        self.has_language = "language" in columns
        if self.language is None and not self.has_language and len(options.languages) == 1:
            self.language = options.languages[0]
        if self.language not in (None, *options.languages):
            raise BuildError(
                f"source {spec}: language {self.language} is not asked for; add --languages {self.language}"
            )
        if self.language is None and not self.has_language and self.path_column is None:
            raise BuildError(
                f"source {spec}: no column says which of {', '.join(options.languages)} a row holds; add ,language=NAME"
            )

    @property
    def warning(self) -> str | None:
        """A sentence for the user where rows cannot be split by project."""
        if self.project_column is not None:
            return None
        return (
            f"source {self.spec}: no project column; every row is its own project, so code of one repository can stand in "
            "several splits (name the column with ,project_column=NAME)"
        )

    def describe(self) -> dict:
        return {
            "kind": "hf",
            "name": self.name,
            "revision": self.revision,
            "text_column": self.text_column,
            "language": self.language,
            "project_column": self.project_column,
            "warning": self.warning,
        }

    def _candidates(self):
        for index, row in enumerate(self.dataset):
            text = row[self.text_column]
            path = str((self.path_column and row[self.path_column]) or "")
            language = self._language_of(row, path)
            is_read = language in self.options.languages
            path = path or f"row-{index}" + (default_suffix(language) if is_read else "")
            project = str((self.project_column and row[self.project_column]) or f"{self.name}#{index}")
            reason = None
            if not isinstance(text, str):
                reason = f"column {self.text_column} holds no text"
            elif not is_read:
                reason = f"language {language or 'unknown'} is not read"
            size = len(text) if reason is None else 0
            yield Candidate(project, path, size, lambda text=text: text, language, reason)

    def _language_of(self, row: dict, path: str) -> str:
        if self.language is not None:
            return self.language
        if self.has_language:
            # A row that does not say is taken for Python, as in the data sets that hold nothing else.
            return language_named(str(row["language"] or "python"))
        return language_of_file(path) or ""


def parse_source(spec: str, options: ReadOptions) -> Source:
    """Make a source from its text form.

    Args:
        spec: `stdlib`, `dir:PATH[,project=auto|single|children]`, `pypi:NAME==VERSION` or
            `hf:PATH_OR_ID,text_column=NAME[,project_column=NAME][,split=NAME][,revision=COMMIT][,language=NAME]`.
        options: what to leave out.

    Raises:
        BuildError: unknown scheme or option, or the source does not exist.
    """
    scheme, _, rest = spec.partition(":")
    if scheme == "stdlib" and not rest:
        return StandardLibrarySource(spec, options)
    if scheme == "dir" and rest:
        path, arguments = split_arguments(rest, ("project",))
        return DirectorySource(f"dir:{path}", options, Path(path).expanduser(), **arguments)
    if scheme == "pypi" and rest:
        return WheelSource(spec, options, rest)
    if scheme == "hf" and rest:
        name, arguments = split_arguments(rest, ("text_column", "project_column", "split", "revision", "language"))
        return HuggingFaceSource(f"hf:{name}", options, name, **arguments)
    raise BuildError(
        f"unknown source {spec!r}: use stdlib, dir:PATH, pypi:NAME==VERSION or hf:PATH_OR_ID,text_column=NAME"
    )


def split_arguments(text: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Split `VALUE,key=value,...`; a comma that is not followed by an allowed key belongs to the value."""
    parts = re.split(rf",(?=(?:{'|'.join(allowed)})=)", text)
    return parts[0], dict(part.split("=", 1) for part in parts[1:])


def walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Files of code under a directory in sorted order, and directories that are not read, with the reason.

    Links to directories are not followed: they may lead in a circle, or to files that are read already. Hidden and
    installed directories are not entered, and no one misses them.
    """
    errors: list[OSError] = []
    for directory, names, files in os.walk(root, onerror=errors.append):
        names[:] = sorted(
            name
            for name in names
            if name not in _NOT_SOURCE_DIRS
            and not name.startswith(".")
            and not os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
        )
        for name in names:
            if os.path.islink(os.path.join(directory, name)):
                yield Path(directory, name), "link to a directory (not followed; give it as a source)"
        for name in sorted(files):
            path = Path(directory, name)
            if language_of_file(name) is not None and _may_be_file(path):
                yield path, None
    for error in errors:
        yield Path(error.filename or root), f"cannot be read ({type(error).__name__})"


def _may_be_file(path: Path) -> bool:
    """False for a FIFO or device, which would block the reader; what cannot be examined is tried, and so counted."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def file_size(path: Path) -> int:
    """Size in bytes, 0 where the file cannot be examined (reading it will tell why)."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def parse_pin(spec: str, requirement: str) -> tuple[str, str]:
    """Name and version of `NAME==VERSION`; anything looser is refused, because a corpus must be repeatable."""
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement as error:
        raise BuildError(f"source {spec}: not a package name with a version; write pypi:NAME==VERSION") from error
    pins = list(parsed.specifier)
    if len(pins) != 1 or pins[0].operator != "==" or pins[0].version.endswith("*") or parsed.url or parsed.marker:
        raise BuildError(f"source {spec}: pin one version, pypi:{parsed.name}==VERSION")
    return canonicalize_name(parsed.name), pins[0].version


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download one wheel with pip, which honours the user's index settings; a wheel of any platform will do.

    Args:
        requirement: `NAME==VERSION`.
        directory: an empty directory.

    Returns:
        The wheel's path.

    Raises:
        BuildError: pip is missing, the release does not exist, or it has no wheel (an sdist is not fetched: pip would
            run its build script).
    """
    # First what fits this interpreter, then wheels of other Python versions: the code in them is read, not run.
    targets = [[]] + [
        ["--platform", "manylinux2014_x86_64", "--python-version", f"3.{minor}"] for minor in (12, 11, 10, 9)
    ]
    message = ""
    for target in targets:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--ignore-requires-python",
        ]
        done = subprocess.run(
            [*command, *target, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
        )
        wheels = sorted(directory.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
        if "No module named pip" in done.stderr:
            raise BuildError(f"source pypi:{requirement}: this Python has no pip; install pip, or use dir:PATH")
        message = message or next(
            (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip()[-300:]
        )
        if "No matching distribution" not in done.stderr:
            break
    raise BuildError(
        f"source pypi:{requirement}: pip found no wheel ({message.removeprefix('ERROR: ')}); "
        "for a release without wheels, unpack its source archive and use dir:PATH"
    )


def wheel_licence(archive: zipfile.ZipFile) -> str | None:
    """The licence that a wheel's METADATA states."""
    for name in archive.namelist():
        if name.endswith(".dist-info/METADATA"):
            metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
            stated = metadata.get("License-Expression") or (metadata.get("License") or "").strip().split("\n")[0]
            classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
            return stated or "; ".join(classifiers) or None
    return None


def load_huggingface(
    spec: str, name: str, split: str | None, revision: str | None
) -> tuple[Iterable[dict], list[str]]:
    """Open a dataset from a path or the hub; see `HuggingFaceSource`.

    Returns:
        The rows (streamed where they are not on disk already) and the names of the columns.

    Raises:
        BuildError: there is no such dataset or split, or it cannot be read.
    """
    import datasets

    builders = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
    path = Path(name).expanduser()
    if path.is_file() and path.suffix not in builders:
        raise BuildError(
            f"source {spec}: {path.suffix or 'such'} files are not read; use Parquet, JSON, JSON lines or CSV"
        )
    if looks_local(name) and not path.exists():
        raise BuildError(f"source {spec}: {path} does not exist")
    try:
        if path.is_file():
            loaded = datasets.load_dataset(builders[path.suffix], data_files=str(path), streaming=True)
        elif any((path / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.exists() else name, revision=revision, streaming=True)
        if isinstance(loaded, dict):
            wanted = split or ("train" if "train" in loaded or len(loaded) > 1 else next(iter(loaded)))
            if wanted not in loaded:
                raise BuildError(
                    f"source {spec}: no split {wanted!r}; the splits are {', '.join(loaded)} (,split=NAME)"
                )
            loaded = loaded[wanted]
        return loaded, list(loaded.column_names or next(iter(loaded), {}))
    except BuildError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise BuildError(f"source {spec}: cannot be read as a dataset ({type(error).__name__}: {reason})") from error


def looks_local(path_or_id: str) -> bool:
    """Whether a name can only be a path, so that the hub need not be asked."""
    return path_or_id.startswith(("/", ".", "~")) or path_or_id.count("/") > 1 or Path(path_or_id).exists()
