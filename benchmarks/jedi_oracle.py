"""What names at their uses refer to, as jedi sees it, against the facts that the code graph hangs on those uses.

The files of each project are written to a temporary directory and jedi answers "go to definition" there. What the
definition declares is read from `ast`. Neither shares anything with `code_graph`.
"""

import ast
import random
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import jedi

from .ast_oracle import Offsets, parameters_of
from .record import text_table

AT_USES = ("has_parameter", "has_type", "inherits", "returns", "imported_from", "imports", "contains", "has_field")
CALLEES = ("calls", "instantiates")
# What a read may say: relations whose recall is measured.
SAID_AT_READS = ("has_parameter", "has_type", "inherits", "returns", "imported_from", "imports")


class Declared(NamedTuple):
    """What the text declares about a name at the place that defines it."""

    kind: str  # class, function, param, variable, import
    owner: str  # name of the function or class around it
    qualified: str
    types: tuple[str, ...] = ()
    returns: str | None = None
    bases: tuple[str, ...] = ()
    module: str | None = None
    is_alias: bool = False
    is_instance: bool = False


class Definitions(ast.NodeVisitor):
    """Every definition of a file by the place of its name: (line, column in characters) -> Declared."""

    def __init__(self, source: str):
        self.source, self.offsets = source, Offsets(source)
        self.at: dict[tuple[int, int], Declared] = {}
        self.reads: list[tuple[int, bool]] = []
        self._around: list[ast.AST] = []
        self._callees: set[int] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.visit(ast.parse(source))

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, as jedi counts them."""
        line = self.source.count("\n", 0, offset)
        return line + 1, offset - self.offsets.starts[line]

    def text(self, node: ast.AST | None) -> str | None:
        if node is None:
            return None
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return " ".join(node.value.split())
        return " ".join(self.source[self.offsets.start(node) : self.offsets.end(node)].split())

    def put(self, offset: int, kind: str, name: str, **declared) -> None:
        names = [a.name for a in self._around]
        place = self.place(offset)
        qualified = ".".join([*names, name])
        found = Declared(kind, names[-1] if names else "", qualified, **declared)
        known = self.at.get(place)
        self.at[place] = found if known is None else known

    def visit_ClassDef(self, node):
        bases = []
        for base in node.bases:
            while isinstance(base, ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name | ast.Attribute):
                bases.append(base.id if isinstance(base, ast.Name) else base.attr)
        self.put(self.offsets.name(node), "class", node.name, bases=tuple(bases))
        for part in [*node.decorator_list, *node.bases, *node.keywords]:
            self.visit(part)
        self._inside(node)

    def visit_FunctionDef(self, node):
        self.put(self.offsets.name(node), "function", node.name, returns=self.text(node.returns))
        in_class = self._around and isinstance(self._around[-1], ast.ClassDef)
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        for part in [*node.decorator_list, node.args, node.returns]:
            if part is not None:
                self.visit(part)
        first = [*node.args.posonlyargs, *node.args.args][:1]
        self._around.append(node)
        for parameter in parameters_of(node):
            types = (self.text(parameter.annotation),) if parameter.annotation else ()
            instance = bool(in_class and not static and parameter in first)
            self.put(self.offsets.start(parameter), "param", parameter.arg, types=types, is_instance=instance)
        self._around.pop()
        self._inside(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _inside(self, node):
        self._around.append(node)
        for statement in node.body:
            self.visit(statement)
        self._around.pop()

    def visit_AnnAssign(self, node):
        target = node.target
        if isinstance(target, ast.Name | ast.Attribute):
            is_name = isinstance(target, ast.Name)
            offset = self.offsets.start(target) if is_name else self.offsets.attribute(target)
            self.put(offset, "variable", target.id if is_name else target.attr, types=(self.text(node.annotation),))
        self.generic_visit(node)

    def _import(self, node, module):
        for alias in node.names:
            offset = self.offsets.end(alias) - len(alias.asname) if alias.asname else self.offsets.start(alias)
            changed = bool(alias.asname) and alias.asname != alias.name
            self.put(offset, "import", alias.name, module=module or alias.name, is_alias=changed)

    def visit_Import(self, node):
        self._import(node, None)

    def visit_ImportFrom(self, node):
        self._import(node, "." * node.level + (node.module or ""))

    def visit_Call(self, node):
        self._callees.add(id(node.func))
        self.generic_visit(node)

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            self.reads.append((self.offsets.start(node), id(node) in self._callees))

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            self.reads.append((self.offsets.attribute(node), id(node) in self._callees))
        self.generic_visit(node)


class Referee:
    """jedi on one project that was written to a directory."""

    def __init__(self, root: Path, sources: dict[str, str]):
        paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
        self.root, self.sources = root.resolve(), sources
        self.project = jedi.Project(str(root), sys_path=[str(root), *paths], smart_sys_path=False)
        self._scripts: dict[str, jedi.Script] = {}
        self._definitions: dict[str, Definitions] = {}
        self._resolved: dict[tuple[str, str], set[tuple]] = {}
        self._answers: dict[tuple[str, int, bool], list] = {}

    def definitions(self, path: str) -> Definitions:
        if path not in self._definitions:
            self._definitions[path] = Definitions(self.sources[path])
        return self._definitions[path]

    def _script(self, path: str) -> jedi.Script:
        if path not in self._scripts:
            if len(self._scripts) > 4:  # a script keeps all that it has inferred
                self._scripts.clear()
            self._scripts[path] = jedi.Script(path=str(self.root / path), project=self.project)
        return self._scripts[path]

    def ask(self, path: str, offset: int, follow_imports: bool = True) -> list:
        """jedi's definitions of the name at a character of a file."""
        key = (path, offset, follow_imports)
        if key not in self._answers:  # asked again, jedi may find less: it bounds what one script infers
            line, column = self.definitions(path).place(offset)
            self._answers[key] = _go(self._script(path), line, column, follow_imports)
        return self._answers[key]

    def declared(self, name) -> tuple[str, Declared] | None:
        """What the project's text declares at one of jedi's definitions, and its file."""
        path = self.path_of(name)
        if path is None:
            return None
        found = self.definitions(path).at.get((name.line, name.column))
        return None if found is None else (path, found)

    def path_of(self, name) -> str | None:
        if name.module_path is None or not Path(name.module_path).is_relative_to(self.root):
            return None
        path = Path(name.module_path).relative_to(self.root).as_posix()
        return path if path in self.sources else None

    def places_of(self, path: str, dotted: str) -> set[tuple]:
        """Where jedi finds a dotted name that a file would import."""
        key = (path.rpartition("/")[0], dotted)
        if key not in self._resolved:
            num_dots = len(dotted) - len(dotted.lstrip("."))
            parts = dotted[num_dots:].split(".")
            found: set[tuple] = set()
            for size in range(len(parts) - 1, -1, -1):
                module = "." * num_dots + ".".join(parts[:size])
                if not module:
                    code = f"import {parts[0]}\n" + ".".join(parts)
                else:
                    code = f"from {module} import {parts[size]}\n" + ".".join(parts[size:])
                # Under a name of its own: jedi keeps what it has read of a path.
                asking = (self.root / path).with_name("asking_for_a_name.py")
                names = _go(
                    jedi.Script(code, path=str(asking), project=self.project), 2, len(code.split("\n")[1]), True
                )
                found = {place_of(name) for name in names if name.type != "module"}
                if found:
                    break
            self._resolved[key] = found
        return self._resolved[key]


def _go(script: jedi.Script, line: int, column: int, follow_imports: bool) -> list:
    """jedi's answer; its own failures (it has several on unusual code) count as none."""
    try:
        names = script.goto(line, column, follow_imports=follow_imports, follow_builtin_imports=follow_imports)
    except (ValueError, AttributeError, RecursionError, TypeError, KeyError, AssertionError, NotImplementedError):
        return []
    return [name for name in names if name.line is not None or name.in_builtin_module()]


def place_of(name) -> tuple:
    """Identity of one of jedi's definitions."""
    return (str(name.module_path), name.line, name.column) if name.line is not None else (name.full_name,)


def judge(referee: Referee, path: str, triple) -> bool | None:
    """Whether a fact at a use agrees with jedi; None where jedi finds nothing, or the fact claims nothing."""
    relation = triple.relation
    if relation in CALLEES:
        return _judge_callee(referee, path, triple)
    at_tail = relation in ("has_parameter", "contains", "has_field")
    place = triple.tail_start if at_tail else triple.head_start
    follow = relation not in ("imported_from", "imports")
    names = referee.ask(path, place, follow)
    declared = [found[1] for found in map(referee.declared, names) if found is not None]
    if relation in ("contains", "has_field"):
        owners = [d.owner for d in declared] + [n.parent().name for n in names if referee.path_of(n) is not None]
        # A field that a method writes has the method around it, and the class around that.
        owners += [part for d in declared for part in d.qualified.split(".")[:-1]]
        owners += [_class_around(n) for n in names if referee.path_of(n) is not None]
        return triple.head.rpartition(".")[2] in owners if owners else None
    if not declared:
        return None
    if relation == "has_parameter":
        return any(d.kind == "param" and d.owner == triple.head for d in declared)
    if relation == "has_type":
        return any(triple.tail in d.types for d in declared)
    if relation == "returns":
        return any(d.returns == triple.tail for d in declared)
    if relation == "inherits":
        return any(triple.tail.rpartition(".")[2] in d.bases for d in declared)
    return any(d.kind == "import" and d.module == triple.tail for d in declared)


def _class_around(name) -> str:
    around = name.parent()
    while around is not None and around.type == "function":
        around = around.parent()
    return "" if around is None else around.name


def _judge_callee(referee: Referee, path: str, triple) -> bool | None:
    """Callee and kind. A bare name after a dot claims nothing but the name, and is left undecided."""
    source = referee.sources[path]
    start = triple.tail_start
    is_member = source[:start].rstrip().endswith(".")
    if is_member and "." not in triple.tail:
        return None
    names = [n for n in referee.ask(path, start) if n.type in ("class", "function")]
    if not names:
        return None
    kind = "class" if triple.relation == "instantiates" else "function"
    for name in names:
        if name.type != kind:
            continue
        full = f".{name.full_name or name.name}"
        if full.endswith(f".{triple.tail.lstrip('.')}") or triple.tail == name.name:
            return True
        found = referee.declared(name)
        if found is not None and found[1].qualified == triple.tail:
            return True
    return bool({place_of(n) for n in names if n.type == kind} & referee.places_of(path, triple.tail))


def expected_at(referee: Referee, path: str, offset: int, is_callee: bool) -> list[tuple[str, str, bool]]:
    """What jedi and the declarations say at a read: (relation, other end's text, whether another file declares it)."""
    expected = []
    direct = [item for item in map(referee.declared, referee.ask(path, offset, False)) if item is not None]
    for where, d in direct:
        if d.kind == "import" and where == path:
            is_member = d.module != d.qualified.rpartition(".")[2] and not d.qualified.endswith(d.module)
            if is_member:
                expected.append(("imported_from", d.module, False))
            elif d.is_alias:
                expected.append(("imports", d.module, False))
    found = [item for item in map(referee.declared, referee.ask(path, offset)) if item is not None]
    kinds = {d.kind for _, d in found}
    if len(kinds) != 1:
        return expected
    kind, far = kinds.pop(), found[0][0] != path
    first = found[0][1]
    if kind == "param" and not first.is_instance:
        expected.append(("has_parameter", first.owner, far))
    if kind in ("param", "variable"):
        expected += [("has_type", text, far) for text in first.types]
    if kind == "class":
        expected += [("inherits", base, far) for base in first.bases]
    returns = [d.returns for _, d in found if d.returns is not None]
    if kind == "function" and is_callee and returns:
        expected.append(("returns", returns[-1], far))
    return expected


def compare_references(
    files: list[dict], num_facts: int, num_reads: int, seed: int, examples: int = 0, across_files: bool = True
) -> dict:
    """Samples facts at uses for precision and reads for recall, and asks jedi about each.

    Args:
        files: dicts with `project`, `path`, `code`.
        num_facts: facts of each relation.
        num_reads: reads, over all files.
        seed: of both samples.
        examples: disagreements to print for each relation.
        across_files: extract with each project's index.

    Returns:
        `precision` and `recall` by relation, with totals.
    """
    from ..code_graph import ProjectIndex, extract

    begin = time.perf_counter()
    by_project: dict[str, dict[str, str]] = defaultdict(dict)
    for file in files:
        by_project[file["project"]][file["path"]] = file["code"]
    graphs, facts, reads = {}, defaultdict(list), []
    totals: Counter[str] = Counter()
    for project, sources in sorted(by_project.items()):
        index = ProjectIndex(sources.items()) if across_files else None
        for path, code in sorted(sources.items()):
            triples = extract(code, project=index, path=path).triples
            graphs[project, path] = triples
            for triple in triples:
                if (triple.is_use and triple.relation in AT_USES) or triple.relation in CALLEES:
                    facts[triple.relation].append((project, path, triple))
            reads.append((project, path))
    totals.update({relation: len(found) for relation, found in facts.items()})
    # Few files, several questions each: jedi spends its time on opening files.
    rng = random.Random(seed)
    chosen_files = set(rng.sample(sorted(reads), min(len(reads), max(60, num_facts // 2))))
    chosen = []
    for relation in (*AT_USES, *CALLEES):
        near = [fact for fact in facts[relation] if fact[:2] in chosen_files]
        pool = near if len(near) >= 2 * num_facts else facts[relation]
        chosen += rng.sample(pool, min(len(pool), num_facts))
    verdicts: dict[str, Counter] = defaultdict(Counter)
    recalled: dict[tuple[str, bool], list[int]] = defaultdict(lambda: [0, 0])
    shown: Counter[str] = Counter()
    read_files = rng.sample(sorted(chosen_files), min(len(chosen_files), 60))
    for project, sources in sorted(by_project.items()):
        with tempfile.TemporaryDirectory() as root:
            for path, code in sources.items():
                target = Path(root, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(code, encoding="utf-8", newline="")
            referee = Referee(Path(root), sources)
            mine = sorted((fact for fact in chosen if fact[0] == project), key=lambda f: (f[1], f[2].head_start))
            for _, path, triple in mine:
                verdict = judge(referee, path, triple)
                verdicts[triple.relation][verdict] += 1
                if verdict is False and shown[triple.relation] < examples:
                    shown[triple.relation] += 1
                    line = sources[path].count("\n", 0, triple.head_start) + 1
                    print(f"{project} {path}:{line} {triple}", file=sys.stderr)
            for path in (p for owner, p in read_files if owner == project):
                places = referee.definitions(path).reads
                share = min(len(places), -(-num_reads // len(read_files)))
                _recall(referee, path, rng.sample(places, share), graphs[project, path], recalled, examples, shown)
    return _figures(verdicts, totals, recalled) | {"time_s": round(time.perf_counter() - begin, 1)}


def _recall(referee, path, places, triples, recalled, examples, shown) -> None:
    said = defaultdict(set)
    for triple in triples:
        said[triple.head_start, triple.relation].add(triple.tail.rpartition(".")[2])
        said[triple.head_start, triple.relation].add(triple.tail)
        if triple.relation == "has_parameter":
            said[triple.tail_start, triple.relation].add(triple.head)
    for offset, is_callee in places:
        for relation, text, far in expected_at(referee, path, offset, is_callee):
            is_said = text in said[offset, relation]
            recalled[relation, far][0] += is_said
            recalled[relation, far][1] += 1
            key = f"{relation} not said {far}"
            if not is_said and shown[key] < examples:
                shown[key] += 1
                line = referee.sources[path].count("\n", 0, offset) + 1
                print(
                    f"{key}: {path}:{line} at {referee.sources[path][offset : offset + 30]!r}: {text}", file=sys.stderr
                )


def _figures(verdicts: dict, totals: Counter, recalled: dict) -> dict:
    precision, decided, right, weights, weighted = {}, 0, 0, 0, 0.0
    for relation in (*AT_USES, *CALLEES):
        counts = verdicts[relation]
        n = counts[True] + counts[False]
        share = counts[True] / n if n else None
        precision[relation] = {
            "in_corpus": totals[relation],
            "asked": sum(counts.values()),
            "decided": n,
            "precision": share,
        }
        decided, right = decided + n, right + counts[True]
        if n:
            weights += totals[relation]
            weighted += totals[relation] * share
    recall = {}
    for relation in SAID_AT_READS:
        entry = recall[relation] = {}
        for far, name in ((False, "same_file"), (True, "other_file")):
            hit, all_ = recalled[relation, far]
            entry[name] = {"expected": all_, "recall": hit / all_ if all_ else None}
    both = [sum(recalled[key][i] for key in recalled) for i in (0, 1)]
    return {
        "precision": precision,
        "decided": decided,
        "precision_all": right / decided if decided else None,
        "precision_weighted": weighted / weights if weights else None,
        "recall": recall,
        "expected": both[1],
        "recall_all": both[0] / both[1] if both[1] else None,
    }


def reference_table(figures: dict) -> str:
    """The two tables in plain text."""
    rows = [[name, *row.values()] for name, row in figures["precision"].items()]
    rows.append(["all", None, None, figures["decided"], figures["precision_all"]])
    rows.append(["all, weighted by frequency", None, None, None, figures["precision_weighted"]])
    table = text_table(["relation at uses", "in corpus", "asked", "decided by jedi", "precision"], rows)
    reads = [[name, *r["same_file"].values(), *r["other_file"].values()] for name, r in figures["recall"].items()]
    reads.append(["all", figures["expected"], figures["recall_all"], None, None])
    header = ["relation at reads", "same file", "recall", "other file", "recall"]
    return f"against jedi\n{table}\n\n{text_table(header, reads)}"
