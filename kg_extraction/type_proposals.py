"""Missing annotations, proposed: predicted `has_type` and `returns` facts become a patch or stub files.

Text is changed at offsets only; everything else keeps its formatting. A proposal whose names cannot be resolved in its
file is skipped and counted. Types that the file cannot name when it is imported are written as forward references.
"""

import ast
import builtins
import difflib
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..code_graph.annotations import PARAMETER, Slot, find_slots
from ..code_graph.type_names import defined_classes, normalise_type, type_aliases
from .candidates import ABC_TYPES, TYPING_TYPES
from .facts import PREDICTED, Fact
from .scoring import TAIL_MODE
from .stubs import stub_of

# What `typing` gives beside the names that are asked for.
_TYPING = {
    *TYPING_TYPES,
    "Optional",
    "Union",
    "List",
    "Dict",
    "Tuple",
    "Set",
    "FrozenSet",
    "Type",
    "Text",
    "NamedTuple",
}
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
# Lines as Python's parser counts them: splitlines() also splits at form feeds and other signs that may stand in a line.
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")
_BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True)
class Proposal:
    """One annotation to add.

    Attributes:
        file: number of the file.
        slot: where.
        type: what, as predicted.
        probability: of the fact.
    """

    file: int
    slot: Slot
    type: str
    probability: float


@dataclass
class Annotated:
    """A file with proposals put in.

    Attributes:
        text: the new text.
        proposals: those that went in.
        skipped: those that did not, by reason.
    """

    text: str
    proposals: list[Proposal] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)


class ModuleNames:
    """What the names of a Python module mean at its top level, and where an import can be added.

    Args:
        code: the file's text.

    Attributes:
        bound: character from which each name is bound at run time; None where only a type checker sees it.
        is_lazy: annotations are not evaluated (`from __future__ import annotations`).
        import_line: 0-based line before which imports go.

    Raises:
        SyntaxError: Python's own parser does not read the text.
    """

    def __init__(self, code: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
        self.bound: dict[str, int | None] = {}
        self.is_lazy = False
        self._starts = [0]
        for line in _LINE.findall(code):
            self._starts.append(self._starts[-1] + len(line))
        self._read(tree.body, True)
        leading = 0
        for statement in tree.body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not (is_docstring and statement is tree.body[0]) and not isinstance(
                statement, ast.Import | ast.ImportFrom
            ):
                break
            leading = statement.end_lineno
        first = tree.body[0] if tree.body else None
        if not leading and first is not None:
            decorators = getattr(first, "decorator_list", [])
            leading = min([first.lineno, *(decorator.lineno for decorator in decorators)]) - 1
        self.import_line = leading

    def _read(self, body: list[ast.stmt], at_run_time: bool) -> None:
        for statement in body:
            start = self._starts[min(statement.end_lineno, len(self._starts) - 1)] if at_run_time else None
            if isinstance(statement, ast.Import | ast.ImportFrom):
                if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                    self.is_lazy |= any(alias.name == "annotations" for alias in statement.names)
                for alias in statement.names:
                    self._bind((alias.asname or alias.name).partition(".")[0], start)
            elif isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if isinstance(statement, ast.ClassDef):
                    self._bind(statement.name, start)
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                for target in targets:
                    # A variable in capitals or small letters is a value; only what may be an alias can stand in a type.
                    if isinstance(target, ast.Name) and target.id[:1].isupper() and not target.id.isupper():
                        self._bind(target.id, start)
            elif isinstance(statement, ast.If):
                name = (
                    statement.test.attr
                    if isinstance(statement.test, ast.Attribute)
                    else getattr(statement.test, "id", "")
                )
                self._read(statement.body, at_run_time and name != "TYPE_CHECKING")
                self._read(statement.orelse, at_run_time)
            elif isinstance(statement, ast.Try):
                for part in (statement.body, statement.orelse, *(handler.body for handler in statement.handlers)):
                    self._read(part, at_run_time)

    def _bind(self, name: str, start: int | None) -> None:
        known = self.bound.get(name, -1)
        if known == -1 or known is None:
            self.bound[name] = start


class Annotator:
    """Puts proposals into files of one project.

    Args:
        modules: full dotted name and text of each file of the project, by its number.
    """

    def __init__(self, modules: dict[int, tuple[str, str]]):
        self.modules = modules
        self._classes: dict[str, set[str]] = {}
        for module, code in modules.values():
            for name in defined_classes(code, top_level=True) | type_aliases(code):
                self._classes.setdefault(name, set()).add(module)

    def _resolve(
        self, text: str, names: ModuleNames, offset: int
    ) -> tuple[set[tuple[str, str]], set[tuple[str, str]], bool] | None:
        """Imports that a type needs (at run time, for checkers only) and whether it must be quoted; None if unknown."""
        plain, checking, quoted = set(), set(), False
        bare = _QUOTED.sub("''", text)
        for dotted in dict.fromkeys(_NAME.findall(bare)):
            first = dotted.partition(".")[0]
            if first in names.bound:
                start = names.bound[first]
                quoted |= start is None or start > offset
            elif first in _BUILTINS:
                continue
            elif dotted in _TYPING:
                plain.add(("typing", dotted))
            elif dotted in ABC_TYPES:
                plain.add(("collections.abc", dotted))
            elif len(self._classes.get(dotted, ())) == 1:
                checking.add((next(iter(self._classes[dotted])), dotted))
                quoted = True
            else:
                return None
        return plain, checking, quoted and not names.is_lazy

    def annotate(self, number: int, proposals: Iterable[Proposal]) -> Annotated:
        """A file with all proposals whose names can be resolved."""
        module, code = self.modules[number]
        result = Annotated(code)
        proposals = list(proposals)
        try:
            names = ModuleNames(code)
        except (SyntaxError, ValueError):
            result.skipped["file is not Python 3"] += len(proposals)
            return result
        except (RecursionError, MemoryError):
            # Python's parser gives up with either, by what is nested.
            result.skipped["file is nested too deeply"] += len(proposals)
            return result
        edits: list[tuple[int, int, str]] = []
        plain: set[tuple[str, str]] = set()
        checking: set[tuple[str, str]] = set()
        for proposal in proposals:
            text = with_default(proposal.type, proposal.slot.default)
            found = self._resolve(text, names, proposal.slot.start)
            if found is None:
                result.skipped["name not resolvable in the file"] += 1
                continue
            if any(source == module for source, _ in found[1]):
                result.skipped["class is not at the file's top level"] += 1
                continue
            plain |= found[0]
            checking |= found[1]
            if found[2]:
                text = '"' + text.replace('"', "'") + '"'
            edits.append(_edit(code, proposal.slot, text))
            result.proposals.append(proposal)
        for start, end, text in sorted(edits, reverse=True):
            result.text = result.text[:start] + text + result.text[end:]
        result.text = _with_imports(result.text, names.import_line, plain, checking)
        return result


def with_default(text: str, default: str | None) -> str:
    """A parameter's type, with None where that is its default."""
    if default == "None" and "None" not in normalise_type(text).split(" | ") and text not in ("Any", "object"):
        return f"{text} | None"
    return text


def _edit(code: str, slot: Slot, text: str) -> tuple[int, int, str]:
    if slot.kind != PARAMETER:
        return slot.insert_at, slot.insert_at, f" -> {text}"
    # With an annotation the equals sign has spaces around it (PEP 8), unless a comment or a line end stands there.
    if slot.default_start is not None and code[slot.insert_at : slot.default_start].strip(" ") == "=":
        return slot.insert_at, slot.default_start, f": {text} = "
    return slot.insert_at, slot.insert_at, f": {text}"


def _with_imports(code: str, line: int, plain: set[tuple[str, str]], checking: set[tuple[str, str]]) -> str:
    if checking:
        plain = plain | {("typing", "TYPE_CHECKING")}
    if not plain:
        return code

    def statements(needed: set[tuple[str, str]], indent: str) -> list[str]:
        by_module: dict[str, list[str]] = {}
        for source, name in sorted(needed):
            by_module.setdefault(source, []).append(name)
        return [f"{indent}from {source} import {', '.join(names)}\n" for source, names in by_module.items()]

    added = statements(plain, "")
    if checking:
        added += ["\n", "if TYPE_CHECKING:\n", *statements(checking, "    ")]
    lines = _LINE.findall(code)
    if line and lines and not lines[line - 1].endswith(("\n", "\r")):
        lines[line - 1] += "\n"
    return "".join([*lines[:line], *added, *lines[line:]])


def proposals_of(facts: Iterable[Fact], extractor) -> tuple[list[Proposal], int]:
    """The most probable predicted type of each parameter and return, by falling probability.

    Args:
        facts: of `extractor`.
        extractor: an `Extractor`.

    Returns:
        The proposals, and how many slots without an annotation there are.
    """
    slots: dict[tuple[str, str, int, str], tuple[int, Slot]] = {}
    for number, file in enumerate(extractor.corpus.files):
        if file.language != "python":
            continue
        for slot in find_slots(file.code):
            if slot.annotation is None and not slot.is_instance:
                slots[file.project, file.path, slot.start, "has_type" if slot.kind == PARAMETER else "returns"] = (
                    number,
                    slot,
                )
    best: dict[tuple, Proposal] = {}
    for fact in facts:
        if fact.status != PREDICTED or fact.mode != TAIL_MODE:
            continue
        for place in fact.places:
            key = (place.project, place.path, place.start, fact.relation)
            if key in slots and (key not in best or best[key].probability < fact.probability):
                best[key] = Proposal(*slots[key], fact.tail_name, fact.probability)
    return sorted(best.values(), key=lambda p: (-p.probability, p.file, p.slot.start)), len(slots)


def annotate_all(proposals: Iterable[Proposal], extractor) -> dict[int, Annotated]:
    """Every file that has proposals, annotated."""
    by_file: dict[int, list[Proposal]] = {}
    for proposal in proposals:
        by_file.setdefault(proposal.file, []).append(proposal)
    annotators: dict[str, Annotator] = {}
    result = {}
    for number, found in sorted(by_file.items()):
        project = extractor.corpus.files[number].project
        if project not in annotators:
            annotators[project] = Annotator(
                {
                    k: (extractor.entities[k].module, file.code)
                    for k, file in enumerate(extractor.corpus.files)
                    if file.project == project and file.language == "python"
                }
            )
        result[number] = annotators[project].annotate(number, found)
    return result


def unified_diff(old: str, new: str, path: str) -> str:
    """A patch of one file that `git apply` takes, a missing line end at the end of the file included."""
    lines = []
    # splitlines() would also split at form feeds, which git does not.
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", text) for text in (old, new))
    for line in difflib.unified_diff(before, after, f"a/{path}", f"b/{path}"):
        lines.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(lines)


def check_paths(paths: Iterable[str], option: str) -> None:
    """Refuse files whose proposals would take each other's place: a patch and a directory of stubs know paths only.

    Args:
        paths: of the Python files of all sources.
        option: that asks for the proposals.

    Raises:
        ValueError: a path occurs twice.
    """
    path, number = max(Counter(paths).items(), key=lambda item: item[1], default=("", 0))
    if number > 1:
        raise ValueError(
            f"{option}: {path} stands in several sources or projects, of which one would take the other's place; give one "
            "--source at a time"
        )


def _leads_out(path: str) -> bool:
    """Whether a path, which may come from a stranger's data set, is not one below the directory of its project."""
    path = PurePosixPath(path)
    return path.is_absolute() or ".." in path.parts


def _stub(text: str) -> str | None:
    """The stub of a module that Python's parser reads; None where its tree is too deep to be written out."""
    try:
        return stub_of(text)
    except RecursionError:
        return None


def write_proposals(
    facts: Iterable[Fact],
    extractor,
    on_disk: dict[tuple[str, str], Path],
    patch: str | Path | None,
    stubs: str | Path | None,
) -> tuple[dict[str, int], list[Path]]:
    """Write the proposals as a patch, as stubs, or both.

    Args:
        facts: of `extractor`.
        extractor: an `Extractor`.
        on_disk: where files of directory sources lie, by (project, path). Files there that are not plain UTF-8 with "\\n"
            line ends are skipped, because a patch of their text would not apply.
        patch, stubs: where to write; None for neither.

    Returns:
        Counts (`slots`, `proposed`, `written`, and skipped ones by reason), and what was written.
    """
    proposals, num_slots = proposals_of(facts, extractor)
    annotated = annotate_all(proposals, extractor)
    counts = Counter(slots=num_slots, proposed=len(proposals), written=0)
    diffs, written = [], []
    for number, result in annotated.items():
        file = extractor.corpus.files[number]
        counts.update(result.skipped)
        if _leads_out(file.path):
            counts["path leads out of the project"] += len(result.proposals)
            continue
        path = on_disk.get((file.project, file.path))
        if path is not None and path.read_bytes() != file.code.encode("utf-8"):
            counts["file is not plain UTF-8 with \\n line ends"] += len(result.proposals)
            continue
        stub = None
        if stubs is not None and result.proposals:
            stub = _stub(result.text)
            if stub is None:
                counts["file is nested too deeply for a stub"] += len(result.proposals)
            else:
                target = Path(stubs) / Path(file.path).with_suffix(".pyi")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(stub, encoding="utf-8")
                written.append(target)
        if patch is not None:
            diffs.append(unified_diff(file.code, result.text, file.path))
        if patch is not None or stub is not None:
            counts["written"] += len(result.proposals)
    if patch is not None:
        Path(patch).parent.mkdir(parents=True, exist_ok=True)
        Path(patch).write_text("".join(diffs), encoding="utf-8", newline="\n")
        written.append(Path(patch))
    return dict(counts), written
