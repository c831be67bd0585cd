"""Names across the files of one project: `from .x import Y; Y()` knows what Y is.

A first pass over the files of a project keeps the outline of each: its classes with their bases, fields and methods,
its functions with their return types, its imports. A second pass extracts each file with the whole index at hand: an
imported name is followed to its definition, through files that only pass it on, and the facts at its uses gain what
the other file declares. Names that lead out of the project stay what the file itself says.

Memory is a few hundred bytes for each definition of one project; both passes are linear in its text.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from .scopes import CLASS, FUNCTION, MODULE, Scope, Span, Symbol

MAX_DEPTH = 8  # files that a name is followed through
_INITIAL = "__init__.py"
_EVERYTHING = re.compile(r"^from[ \t]+([.\w]+)[ \t]+import[ \t]*\(?[ \t]*\*", re.MULTILINE)
_SOURCE_DIRECTORIES = ("src", "lib", "python")
_NO_NAMES: dict[str, Symbol] = {}


class Outline:
    """What other files can see of a module, class or function: the part of a `Scope` that names are resolved by.

    Attributes:
        kind, name, parent, qualified, names, fields, returns, bases: as in `Scope`; spans have no place in the text of
            another file, so their ends are None, and that of `name` is empty.
        module: of a module: its dotted name in the project.
        is_package: of a module: it is the `__init__.py` of a package.
        passed_on: of a module: modules that it imports everything from.
    """

    __slots__ = (
        "bases",
        "fields",
        "is_package",
        "kind",
        "module",
        "name",
        "names",
        "parent",
        "passed_on",
        "qualified",
        "returns",
    )

    def __init__(self, scope: Scope, parent: "Outline | None"):
        self.kind = scope.kind
        self.name: Span = (scope.name[0], -1, -1)
        self.parent = parent
        self.qualified = scope.qualified
        self.names = _NO_NAMES
        self.returns = _elsewhere(scope.returns)
        self.bases = [(parts, None, None) for parts, _, _ in scope.bases]
        self.fields = {name: (_elsewhere(span), _elsewhere(known)) for name, (span, known) in scope.fields.items()}
        self.module = ""
        self.is_package = False
        self.passed_on: tuple[str, ...] = ()
        if scope.kind == FUNCTION:
            return
        self.names = {}
        for name, symbol in scope.names.items():
            if not (symbol.definitions or symbol.imported or symbol.annotation):
                continue
            kept = self.names[name] = Symbol(symbol.kind, self)
            kept.definitions = [Outline(definition, self) for definition in symbol.definitions]
            kept.imported = symbol.imported
            kept.module = _elsewhere(symbol.module)
            kept.annotation = _elsewhere(symbol.annotation)

    def lookup(self, name: str) -> Symbol | None:
        """The symbol that `name` means when this outline's text reads it."""
        scope: Outline | None = self
        while scope is not None:
            symbol = scope.names.get(name)
            if symbol is not None and (scope.kind != CLASS or scope is self):
                return symbol
            scope = scope.parent
        return None


def _elsewhere(span: Span | None) -> tuple[str, None, None] | None:
    return None if span is None else (span[0], None, None)


class ProjectIndex:
    """The outlines of the files of one project.

    Args:
        files: (path relative to the project, text) of each Python file. What lies above the outermost directory with an
            `__init__.py` is no part of a module's name, nor is a leading `src`, `lib` or `python`.

    >>> index = ProjectIndex([("app/__init__.py", ""), ("app/x.py", "class Y(Base): pass\\n")])
    >>> index.find("app", ".x.Y")[0].bases
    [(('Base',), None, None)]
    """

    def __init__(self, files: Iterable[tuple[str, str]] = ()):
        self._outlines: dict[str, Outline] = {}
        self._modules: dict[str, Outline] | None = None
        self._found: dict[tuple[str, str], tuple[Outline | Symbol, tuple[str, ...]] | None] = {}
        self._packages: set[PurePosixPath] = set()
        for path, source in files:
            self.add(path, source)

    def __len__(self) -> int:
        return len(self._outlines)

    def add(self, path: str, source: str) -> None:
        """Reads one file into the index."""
        from . import outline_scopes

        module = outline_scopes(source, lambda scope: Outline(scope, None))
        module.passed_on = tuple(match.group(1) for match in _EVERYTHING.finditer(source)) if "*" in source else ()
        self._outlines[path] = module
        file = PurePosixPath(path)
        if file.name == _INITIAL:
            self._packages.add(file.parent)
        self._modules = None
        self._found.clear()

    def module_of(self, path: str) -> str:
        """Dotted name of the module that a file holds: `src/app/x.py` is `app.x` where `src/app` is a package."""
        file = PurePosixPath(path)
        above = [parent for parent in reversed(file.parents) if parent in self._packages and parent.name]
        parts = file.with_suffix("").parts
        if above:
            parts = parts[len(above[0].parts) - 1 :]
        elif len(parts) > 1 and parts[0] in _SOURCE_DIRECTORIES:
            parts = parts[1:]
        return ".".join(parts[:-1] if file.name == _INITIAL else parts)

    def find(self, module: str, dotted: str) -> tuple[Outline | Symbol, tuple[str, ...]] | None:
        """What a dotted name stands for that a module imports.

        Args:
            module: dotted name of the module that imports it.
            dotted: the name as imported, `.x.Y` or `package.x.Y.member`.

        Returns:
            The class or function it leads to, or the symbol of a variable with a declared type, and the parts of the name
            that are left over (members); None where it leads out of the project, to a module, or nowhere.
        """
        if self._modules is None:
            self._name_modules()
        key = (module, dotted)
        if key not in self._found:
            self._found[key] = self._follow(self.absolute(module, dotted), 0, frozenset())
        found = self._found[key]
        return None if found is None or getattr(found[0], "kind", None) == MODULE else found

    def absolute(self, module: str, dotted: str) -> str:
        """A dotted name without leading dots, which count from the package of `module`."""
        name = dotted.lstrip(".")
        num_dots = len(dotted) - len(name)
        if not num_dots:
            return dotted
        if self._modules is None:
            self._name_modules()
        outline = self._modules.get(module)
        parts = module.split(".") if outline is not None and outline.is_package else module.split(".")[:-1]
        package = parts[: len(parts) - num_dots + 1]
        return ".".join([*package, *([name] if name else [])])

    def _name_modules(self) -> None:
        self._modules = {}
        for path, outline in self._outlines.items():
            outline.module = self.module_of(path)
            outline.is_package = path.rpartition("/")[2] == _INITIAL
            self._modules.setdefault(outline.module, outline)
        # Packages whose `__init__.py` is empty or missing are often left out of a corpus.
        for name in list(self._modules):
            while "." in name:
                name = name.rpartition(".")[0]
                if name in self._modules:
                    break
                package = self._modules[name] = Outline(Scope(MODULE, ("", 0, 0), None), None)
                package.module, package.is_package = name, True

    def _follow(
        self, dotted: str, depth: int, seen: frozenset[tuple[str, str]]
    ) -> tuple[Outline | Symbol, tuple[str, ...]] | None:
        parts = dotted.split(".")
        for first in range(1, len(parts) + 1):
            module = self._modules.get(".".join(parts[:first]))
            if module is not None:
                break
        else:
            return None
        for index in range(first, len(parts)):
            found = self._member(module, parts[index], depth, seen)
            if found is None:
                return None
            target, rest = found
            rest += tuple(parts[index + 1 :])
            if getattr(target, "kind", None) != MODULE:
                return target, rest
            module = target
        return module, ()

    def _member(
        self, module: Outline, name: str, depth: int, seen: frozenset[tuple[str, str]]
    ) -> tuple[Outline | Symbol, tuple[str, ...]] | None:
        """What `name` is in a module: defined there, passed on from another, or a module of the package."""
        key = (module.module, name)
        if depth > MAX_DEPTH or key in seen:
            return self._submodule(module, name)
        seen |= {key}
        symbol = module.names.get(name)
        if symbol is not None:
            if symbol.definitions:
                return symbol.definitions[0], ()
            if symbol.imported is not None:
                found = self._follow(self.absolute(module.module, symbol.imported), depth + 1, seen)
                return found if found is not None else self._submodule(module, name)
            return symbol, ()
        found = self._submodule(module, name)
        if found is None and not name.startswith("_"):
            for source in module.passed_on:
                found = self._follow(f"{self.absolute(module.module, source)}.{name}", depth + 1, seen)
                if found is not None:
                    break
        return found

    def _submodule(self, module: Outline, name: str) -> tuple[Outline, tuple[str, ...]] | None:
        found = self._modules.get(f"{module.module}.{name}") if module.is_package else None
        return None if found is None else (found, ())
