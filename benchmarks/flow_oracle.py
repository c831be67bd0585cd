"""Data flow by structural interpretation of Python's `ast`: an oracle that shares nothing with `code_graph`.

It walks the tree with a map from variables to definitions and repeats loops until nothing changes, where `code_graph`
solves bit masks over basic blocks.
"""

import ast

from .ast_oracle import COMPREHENSIONS, FUNCTIONS, Offsets, bound_names, instance_name, parameters_of


class FlowOracle:
    """Def-use pairs of one scope by structural interpretation: `flows` (definition, target), `uses` (read, target)."""

    def __init__(self, source, offsets, node, instance):
        self.offsets, self.source = offsets, source
        self.flows, self.uses = set(), set()
        self.instance = instance
        self.loops, self.guards, self.finals = [], [], []
        self.scopes = []  # of comprehensions: {name: key}
        found, outer = bound_names(node)
        self.names = {name for name, _ in found} | outer
        env = {}
        if isinstance(node, (*FUNCTIONS, ast.Lambda)):
            for parameter in parameters_of(node):
                self.names.add(parameter.arg)
                if parameter.arg != instance:
                    env[parameter.arg] = frozenset([offsets.start(parameter)])
        self.is_class = isinstance(node, ast.ClassDef)
        if isinstance(node, ast.Lambda):
            self.read(node.body, env)
        else:
            self.body(node.body, env)

    # Expressions: `read` returns [(position, definitions)] in the order of evaluation

    def key(self, name):
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if self.scopes and self.is_class:
            return None
        return name if name in self.names else None

    def read(self, node, env):
        if node is None:
            return []
        if isinstance(node, ast.Name):
            key = self.key(node.id)
            return [(self.offsets.start(node), env.get(key, frozenset()))] if key is not None else []
        if isinstance(node, ast.Lambda):
            return [r for d in [*node.args.defaults, *node.args.kw_defaults] if d for r in self.read(d, env) * 0]
        if isinstance(node, ast.NamedExpr):
            reads = self.read(node.value, env)
            scopes, self.scopes = self.scopes, []
            self.define(node.target.id, self.offsets.start(node.target), reads, env)
            self.scopes = scopes
            return reads
        if isinstance(node, (ast.BoolOp, ast.IfExp)):
            first, *rest = node.values if isinstance(node, ast.BoolOp) else [node.test, node.body, node.orelse]
            reads = self.read(first, env)
            before = dict(env)
            for part in rest:
                reads += self.read(part, env)
            self.join_into(env, before)
            return reads
        if isinstance(node, COMPREHENSIONS):
            return self.comprehension(node, env)
        reads = []
        for child in ast.iter_child_nodes(node):
            if isinstance(node, ast.Dict):
                break
            reads += self.read(child, env)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                reads += self.read(key, env) + self.read(value, env)
        return reads

    def comprehension(self, node, env):
        reads = self.read(node.generators[0].iter, env)
        scope = {
            n.id: (n.id, id(node)) for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)
        }
        self.scopes.append(scope)
        before = dict(env)
        for index, generator in enumerate(node.generators):
            values = reads if index == 0 else self.read(generator.iter, env)
            self.bind(generator.target, values, env)
            reads = reads + (values if index else [])
            for condition in generator.ifs:
                reads = reads + self.read(condition, env)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for part in parts:
            reads = reads + self.read(part, env)
        self.scopes.pop()
        self.join_into(env, before)
        return reads

    # Bindings

    def define(self, name, place, reads, env):
        key = self.key(name)
        env[key] = frozenset([place])
        for guard in self.guards:
            guard[key] = guard.get(key, frozenset()) | {place}
        self.connect(place, reads)

    def connect(self, place, reads):
        for position, definitions in reads:
            if definitions:
                self.uses.add((position, place))
                self.flows.update((definition, place) for definition in definitions)

    def bind(self, target, reads, env):
        if isinstance(target, ast.Name):
            self.define(target.id, self.offsets.start(target), reads, env)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self.bind(element, reads, env)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, reads, env)
        elif isinstance(target, ast.Attribute):
            if isinstance(target.value, ast.Name) and self.instance and target.value.id == self.instance:
                self.connect(self.offsets.attribute(target), reads)
            self.read(target.value, env)
        else:
            self.read(target, env)

    def assign(self, targets, value, env):
        """Reads first, then binds: returns what is to be bound."""
        written = (ast.Tuple, ast.List)

        def has_star(node):
            return any(isinstance(e, ast.Starred) for e in node.elts)

        same = []
        if isinstance(value, written) and not has_star(value):
            same = [
                t for t in targets if isinstance(t, written) and len(t.elts) == len(value.elts) and not has_star(t)
            ]
        plan = []
        if same:
            reads = []
            for index, element in enumerate(value.elts):
                inner, more = self.assign([t.elts[index] for t in same], element, env)
                plan += inner
                reads += more
        else:
            reads = self.read(value, env)
        plan += [(t, reads) for t in targets if t not in same]
        return plan, reads

    @staticmethod
    def join(*envs):
        envs = [e for e in envs if e is not None]
        if not envs:
            return None
        out = dict(envs[0])
        for env in envs[1:]:
            for key, value in env.items():
                out[key] = out.get(key, frozenset()) | value
        return out

    def join_into(self, env, other):
        for key, value in other.items():
            env[key] = env.get(key, frozenset()) | value

    # Statements: each returns the state after it, or None where control does not get there

    def body(self, statements, env):
        for statement in statements:
            env = self.statement(statement, {} if env is None else env)
        return env

    def statement(self, node, env):
        method = getattr(self, "do_" + type(node).__name__, None)
        if method is not None:
            return method(node, env)
        self.read(node, env)
        return env

    def kill(self, name, env):
        env.pop(self.key(name), None)

    def do_FunctionDef(self, node, env):
        for part in [*node.decorator_list, *node.args.defaults, *[d for d in node.args.kw_defaults if d]]:
            self.read(part, env)
        self.kill(node.name, env)
        return env

    do_AsyncFunctionDef = do_FunctionDef

    def do_ClassDef(self, node, env):
        for part in [*node.decorator_list, *node.bases, *node.keywords]:
            self.read(part, env)
        self.kill(node.name, env)
        return env

    def do_Import(self, node, env):
        for alias in node.names:
            self.kill(alias.asname or alias.name.partition(".")[0], env)
        return env

    do_ImportFrom = do_Import

    def do_Global(self, node, env):
        return env

    do_Nonlocal = do_Global

    def do_Assign(self, node, env):
        plan, _ = self.assign(node.targets, node.value, env)
        for target, reads in plan:
            self.bind(target, reads, env)
        return env

    def do_AnnAssign(self, node, env):
        if node.value is not None:
            self.bind(node.target, self.read(node.value, env), env)
        return env

    def do_AugAssign(self, node, env):
        target = node.target
        reads = []
        if isinstance(target, ast.Name) and self.key(target.id) is not None:
            reads = [(self.offsets.start(target), env.get(self.key(target.id), frozenset()))]
        reads += self.read(node.value, env)
        self.bind(target, reads, env)
        return env

    def do_Delete(self, node, env):
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.kill(target.id, env)
        return env

    def do_Return(self, node, env):
        self.read(node, env)
        for final in self.finals:
            final["left"] = self.join(final["left"], env)
        return None

    def do_Raise(self, node, env):
        self.read(node, env)
        return None

    def do_Break(self, node, env):
        for final in self.finals[self.loops[-1]["num_finals"] :]:
            final["left"] = self.join(final["left"], env)
            env = self.body(final["node"].finalbody, dict(env)) if final["node"] else env
        self.loops[-1][type(node).__name__].append(env)
        return None

    do_Continue = do_Break

    def do_If(self, node, env):
        self.read(node.test, env)
        return self.join(self.body(node.body, dict(env)), self.body(node.orelse, dict(env)))

    def do_While(self, node, env):
        is_endless = isinstance(node.test, ast.Constant) and node.test.value is True
        return self.loop(node, env, lambda state: self.read(node.test, state), is_endless, None, [])

    def do_For(self, node, env):
        reads = self.read(node.iter, env)
        return self.loop(node, env, lambda state: None, False, node.target, reads)

    do_AsyncFor = do_For

    def loop(self, node, env, test, is_endless, target, reads):
        state = dict(env)
        while True:
            head = dict(state)
            test(head)
            self.loops.append({"Break": [], "Continue": [], "num_finals": len(self.finals)})
            inner = dict(head)
            if target is not None:
                self.bind(target, reads, inner)
            end = self.body(node.body, inner)
            loop = self.loops.pop()
            again = self.join(state, end, *loop["Continue"])
            if again == state:
                break
            state = again
        out = None if is_endless else head
        if node.orelse:
            out = self.body(node.orelse, dict(head)) if not is_endless else self.body(node.orelse, {})
        return self.join(out, *loop["Break"])

    def do_With(self, node, env):
        for item in node.items:
            reads = self.read(item.context_expr, env)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, reads, env)
        return self.body(node.body, env)

    do_AsyncWith = do_With

    def do_Try(self, node, env):
        final = {"left": None, "node": node}
        everything = dict(env)
        if node.finalbody:
            self.guards.append(everything)
            self.finals.append(final)
        guard = dict(env)
        self.guards.append(guard)
        end = self.body(node.body, dict(env))
        self.guards.pop()
        if node.orelse:
            end = self.body(node.orelse, {} if end is None else end)
        ends = [end]
        for handler in node.handlers:
            state = dict(guard)
            self.read(handler.type, state)
            if handler.name:
                self.define(handler.name, self.name_after_as(handler), [], state)
            state = self.body(handler.body, state)
            if handler.name and state is not None:
                self.kill(handler.name, state)
            ends.append(state)
        out = self.join(*ends)
        if node.finalbody:
            self.guards.pop()
            self.finals.pop()
            self.body(node.finalbody, self.join(everything, final["left"]))
            out = self.body(node.finalbody, out if out is not None else {}) if out is not None else None
        return out

    do_TryStar = do_Try

    def name_after_as(self, node):
        """Position of a name that `ast` does not place: the one after `as` before the colon."""
        start = self.offsets.end(node.type)
        return self.source.index(node.name, self.source.index(" as ", start) + 4)

    def do_Match(self, node, env):
        reads = self.read(node.subject, env)
        ends, state = [], dict(env)
        for case in node.cases:
            for pattern in ast.walk(case.pattern):
                if isinstance(pattern, (ast.MatchAs, ast.MatchStar)) and pattern.name:
                    place = self.offsets.end(pattern) - len(pattern.name)
                    self.define(pattern.name, place, reads, state)
            self.read(case.guard, state)
            ends.append(self.body(case.body, dict(state)))
            is_last = isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None
            if is_last:
                state = None
                break
        return self.join(*ends, state)


def expected_flows(source):
    offsets = Offsets(source)
    flows, uses = set(), set()

    def visit(node, parent):
        if isinstance(node, (ast.Module, *FUNCTIONS, ast.ClassDef, ast.Lambda)):
            oracle = FlowOracle(source, offsets, node, instance_name(node, parent))
            flows.update(oracle.flows)
            uses.update(oracle.uses)
            parent = node
        for child in ast.iter_child_nodes(node):
            visit(child, parent)

    visit(ast.parse(source), None)
    return flows, uses
