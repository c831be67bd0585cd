"""What syntax settles, read by Python's own `ast`: an oracle that shares nothing with `code_graph`.

Facts are (relation, start of head, tail, start of tail) with character offsets; what `ast` does not place has start None.
"""

import ast
import io
import tokenize


class Offsets:
    """Character offset of a line and UTF-8 column."""

    def __init__(self, source):
        self.source = source
        self.lines = [line if line.endswith("\n") else line + "\n" for line in source.split("\n")]
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))

    def at(self, line, column):
        text = self.lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode())
        return self.starts[line - 1] + column

    def start(self, node):
        return self.at(node.lineno, node.col_offset)

    def end(self, node):
        return self.at(node.end_lineno, node.end_col_offset)

    def name(self, node):
        """Where the name of a definition stands."""
        start = self.start(node)
        keyword = "class" if isinstance(node, ast.ClassDef) else "def"
        return self.source.index(node.name, self.source.index(keyword, start) + len(keyword))

    def attribute(self, node):
        """Where the attribute's own name stands: at the end of the node."""
        return self.end(node) - len(node.attr)


def without_comments(text):
    """An expression's text without its comments, as `tokenize` finds them."""
    lines = text.split("\n")
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(f"({text}\n)").readline))):
        if token.type == tokenize.COMMENT:
            row, column = token.start[0] - 1, token.start[1] - (token.start[0] == 1)
            lines[row] = lines[row][:column]
    return "\n".join(lines)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parameters_of(node):
    a = node.args
    return [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]


def instance_name(node, parent):
    """Name of the parameter that holds the instance or class, where `node` is a method."""
    if not isinstance(node, FUNCTIONS) or not isinstance(parent, ast.ClassDef):
        return None
    if any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list):
        return None
    first = [*node.args.posonlyargs, *node.args.args][:1]
    return first[0].arg if first else None


def bound_names(node):
    """(name, position) of each variable that a function or class binds itself, and what it declares global or nonlocal."""
    found, outer = [], set()

    def visit(child, in_comprehension):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            parts = [*getattr(child, "decorator_list", []), *getattr(child, "bases", [])]
            if hasattr(child, "args"):
                parts += [*child.args.defaults, *[d for d in child.args.kw_defaults if d]]
            for part in parts:
                visit(part, in_comprehension)
            return
        if isinstance(child, (ast.Global, ast.Nonlocal)):
            outer.update(child.names)
        elif isinstance(child, ast.NamedExpr):
            found.append((child.target.id, child.target))
            visit(child.value, in_comprehension)
            return
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and not in_comprehension:
            found.append((child.id, child))
        elif isinstance(child, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and child.name:
            found.append((child.name, None))
        elif isinstance(child, ast.MatchMapping) and child.rest:
            found.append((child.rest, None))
        for inner in ast.iter_child_nodes(child):
            visit(inner, in_comprehension or isinstance(child, COMPREHENSIONS))

    for statement in node.body if isinstance(node.body, list) else [node.body]:
        visit(statement, False)
    return found, outer


class SyntaxOracle(ast.NodeVisitor):
    """Facts at definitions, as (relation, start of head, tail, start of tail); what `ast` does not place has start None."""

    def __init__(self, source):
        self.source = source
        self.offsets = Offsets(source)
        self.facts = set()
        self.parents = []
        self.instances = []
        self.fields = {}
        self.num_bases = 0
        self.visit(ast.parse(source))
        for (owner, name), start in self.fields.items():
            self.facts.add(("has_field", owner, name, start))

    def text(self, node):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return " ".join(node.value.split())
        text = self.source[self.offsets.start(node) : self.offsets.end(node)]
        return " ".join((without_comments(text) if "#" in text else text).split())

    def field(self, owner, name, start):
        self.fields[owner, name] = min(start, self.fields.get((owner, name), start))

    def visit_definition(self, node):
        offsets = self.offsets
        parent = self.parents[-1] if self.parents else None
        name = offsets.name(node)
        if parent is not None:
            self.facts.add(("contains", offsets.name(parent), node.name, name))
        is_class = isinstance(node, ast.ClassDef)
        if is_class:
            for base in node.bases:
                while isinstance(base, ast.Subscript):
                    base = base.value
                if isinstance(base, (ast.Name, ast.Attribute)):
                    last = base.id if isinstance(base, ast.Name) else base.attr
                    self.facts.add(("inherits", name, last, offsets.start(base)))
        else:
            for parameter in parameters_of(node):
                self.facts.add(("has_parameter", name, parameter.arg, offsets.start(parameter)))
            if node.returns:
                self.facts.add(("returns", name, self.text(node.returns), offsets.start(node.returns)))
        found, outer = bound_names(node)
        excluded = outer if is_class else outer | {p.arg for p in parameters_of(node)}
        for bound, place in found:
            if bound not in excluded:
                if is_class:
                    self.field(name, bound, offsets.start(place))
                else:
                    self.facts.add(("declares", name, bound, None))
        for part in node.decorator_list:
            self.visit(part)
        if is_class:
            for part in [*node.bases, *node.keywords]:
                self.visit(part)
        else:
            self.visit(node.args)
            if node.returns:
                self.visit(node.returns)
        instance = instance_name(node, parent)
        names = set() if is_class else {p.arg for p in parameters_of(node)} | {name for name, _ in found}
        self.instances.append({n: (offsets.name(parent) if n == instance else None) for n in names})
        self.parents.append(node)
        for statement in node.body:
            self.visit(statement)
        self.parents.pop()
        self.instances.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_definition

    def visit_arg(self, node):
        if node.annotation:
            start = self.offsets.start
            self.facts.add(("has_type", start(node), self.text(node.annotation), start(node.annotation)))
            self.visit(node.annotation)

    def visit_AnnAssign(self, node):
        place = None
        if isinstance(node.target, ast.Name):
            place = self.offsets.start(node.target)
        elif isinstance(node.target, ast.Attribute) and self.owner_of(node.target.value) is not None:
            place = self.offsets.attribute(node.target)
        if place is not None:
            annotation = node.annotation
            self.facts.add(("has_type", place, self.text(annotation), self.offsets.start(annotation)))
        self.generic_visit(node)

    def owner_of(self, node):
        if isinstance(node, ast.Name):
            for names in reversed(self.instances):
                if node.id in names:
                    return names[node.id]
        return None

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Store) and self.owner_of(node.value) is not None:
            self.field(self.owner_of(node.value), node.attr, self.offsets.attribute(node))
        self.generic_visit(node)

    def visit_Call(self, node):
        caller = self.parents[-1] if self.parents and isinstance(self.parents[-1], FUNCTIONS) else None
        if caller is not None and isinstance(node.func, (ast.Name, ast.Attribute)):
            is_name = isinstance(node.func, ast.Name)
            place = self.offsets.start(node.func) if is_name else self.offsets.attribute(node.func)
            last = node.func.id if is_name else node.func.attr
            self.facts.add(("calls", self.offsets.name(caller), last, place))
        self.generic_visit(node)

    def visit_Import(self, node):
        for alias in node.names:
            self.facts.add(("imports", alias.asname or alias.name, alias.name, node.lineno))

    def visit_ImportFrom(self, node):
        for alias in node.names:
            if alias.name != "*":
                module = "." * node.level + (node.module or "")
                self.facts.add(("imported_from", alias.asname or alias.name, module, node.lineno))


def comparable(source, graph):
    """The facts at definitions in the oracle's form."""
    offsets = Offsets(source)
    facts = set()
    for triple in graph.triples:
        if triple.is_use or triple.relation == "flows_to":
            continue
        head, tail, start, relation = triple.head_start, triple.tail, triple.tail_start, triple.relation
        if relation in ("imports", "imported_from"):
            line = next(i for i, first in enumerate(offsets.starts) if first > start)
            head, start = triple.head, line
        elif relation == "declares":
            start = None
        elif relation in ("calls", "instantiates"):
            relation, tail = "calls", source[start : triple.tail_end]
        elif relation == "inherits":
            tail = source[start : triple.tail_end].rpartition(".")[2]
        facts.add((relation, head, tail, start))
    return facts
