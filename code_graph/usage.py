"""What Python code does with each parameter, and what each function returns: signs of types that no annotation states.

A sign is a short text such as `method:append` (the parameter's `append` is called), `default:const:None` or
`returns:compare`. Signs are read with Python's own parser; a file that it cannot parse has none.
"""

import ast
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from .schema import HAS_TYPE, RETURNS

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_DEFINITION = re.compile(r"(?:async\s+)?def\s+")
_CLASS_WORD = re.compile(r"\b_?[A-Z]\w+")
_LINE_END = re.compile(r"\r\n|\r|\n")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_MOST_CALLS = 200
"""Calls of one name that a file keeps."""


@dataclass(frozen=True)
class Usage:
    """What is known of a parameter or a function's result but for its annotation.

    Attributes:
        relation: `has_type` (of a parameter) or `returns`.
        name: the parameter or function.
        start: character of the text at which the name begins.
        function: the function's name.
        owner: the class whose body holds the function, or None.
        signs: in the order of the text, each once.
        attributes: that are read on the parameter, each once.
        made: classes whose instances are returned, or are the default; the owner's name for `self` and `cls()`.
        mentioned: words with a capital in the function's docstring.
        position: of the parameter among the arguments of a call, `self` not counted; None if it is given by name alone, or
            is the instance, a star or a result.
    """

    relation: str
    name: str
    start: int
    function: str
    owner: str | None
    signs: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    mentioned: tuple[str, ...] = ()
    position: int | None = None


@dataclass
class FileUsage:
    """The usages of a file, and what they are to be understood by.

    Attributes:
        usages: of all parameters and results, in no particular order.
        members: by class its methods and fields.
        bases: by class the last names of its bases.
        calls: by the last name of what is called, for each call what is given: by place, and by keyword.
    """

    usages: list[Usage] = field(default_factory=list)
    members: dict[str, set[str]] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, list[tuple[list[str], dict[str, str]]]] = field(default_factory=lambda: defaultdict(list))


def words_of(name: str) -> list[str]:
    """The words of a name, without capitals.

    >>> words_of("visit_IfExpr2")
    ['visit', 'if', 'expr', '2']
    """
    return [word.lower() for word in _WORDS.findall(name)]


def kind_of(node: ast.expr | None, local: dict[str, ast.expr] | None = None, depth: int = 0) -> str:
    """What an expression is, as far as it can be told at a glance.

    Args:
        node: the expression; None stands for no expression.
        local: what is assigned to the local variables, to look through them.
        depth: how many variables and operations have been looked through.

    >>> [kind_of(ast.parse(code, mode="eval").body) for code in ("None", "'a'", "len(x)", "a.b", "[1]", "x < 1", "-1")]
    ['const:None', 'const:str', 'call:len', 'attr:b', 'list', 'compare', 'USub:const:int']
    """
    match node:
        case None:
            return "nothing"
        case ast.Constant(value=value):
            return f"const:{value if value is None or isinstance(value, bool) else type(value).__name__}"
        case ast.JoinedStr():
            return "const:str"
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return "compare"
        case ast.Call(func=function):
            return f"call:{last_name(function)}"
        case ast.Attribute(attr=name):
            return f"attr:{name}"
        case ast.Name(id="self" | "cls" as name):
            return name
        case ast.Name(id=name):
            if local and name in local and depth < 2:
                return "variable:" + kind_of(local[name], local, depth + 1)
            return f"name:{name}"
        case ast.Tuple(elts=elements):
            return f"tuple:{len(elements)}"
        case ast.Subscript(value=value):
            return f"item:{last_name(value)}"
    if depth < 2:
        match node:
            case ast.Await(value=value):
                return "await:" + kind_of(value, local, depth + 1)
            case ast.UnaryOp(op=operator, operand=value) | ast.BinOp(op=operator, left=value):
                return f"{type(operator).__name__}:" + kind_of(value, local, depth + 1)
    return type(node).__name__.lower()


def last_name(node: ast.expr | None) -> str | None:
    """`c` of `a.b.c`, `c[...]` and `c(...)`; None where there is no name."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


class _Reader:
    """Reads one file into a `FileUsage`.

    Args:
        code: the text.
        found: what is filled.
    """

    def __init__(self, code: str, found: FileUsage):
        self._code, self._found = code, found
        # Where Python's lines begin, and the end of the text.
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(code)), len(code)]
        self._parent: dict[ast.AST, ast.AST] = {}
        self._scope: dict[ast.AST, ast.AST | None] = {}

    def read(self, tree: ast.Module) -> None:
        functions, reads, parameters = [], [], {}
        returned, assigned = defaultdict(list), defaultdict(dict)
        self._scope[tree] = None
        # Parents come before their children.
        for node in ast.walk(tree):
            scope = self._scope[node]
            inner = node if isinstance(node, _SCOPES) else scope
            for child in ast.iter_child_nodes(node):
                self._parent[child], self._scope[child] = node, inner
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    functions.append(node)
                    parameters[node] = {argument.arg for argument, _ in _parameters(node)}
                    self._add_member(node, node.name)
                case ast.ClassDef():
                    self._found.members.setdefault(node.name, set())
                    self._found.bases[node.name] = [name for base in node.bases if (name := last_name(base))]
                    self._add_member(node, node.name)
                case ast.Return() | ast.Yield() | ast.YieldFrom():
                    returned[scope].append(node)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    assigned[scope].setdefault(name, value)
                    self._add_member(node, name)
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Expr(value=ast.Name(id=name)):
                    self._add_member(node, name)
                case ast.withitem(optional_vars=ast.Name(id=name), context_expr=value):
                    assigned[scope].setdefault(name, value)
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    owner = self._owner_of_instance(node)
                    if owner is not None:
                        self._found.members[owner].add(name)
                case ast.Call():
                    self._add_call(node)
                case ast.Name(ctx=ast.Load()):
                    reads.append(node)
        uses = defaultdict(list)
        for node in reads:
            scope = self._scope[node]
            while scope is not None and node.id not in parameters.get(scope, ()):
                scope = self._scope[scope]
            if scope is not None:
                uses[scope, node.id].append(node)
        for node in functions:
            self._add_function(node, returned[node], assigned[node], uses)

    def _add_member(self, node: ast.AST, name: str) -> None:
        parent = self._parent.get(node)
        if isinstance(parent, ast.ClassDef):
            self._found.members[parent.name].add(name)

    def _owner_of_instance(self, node: ast.AST) -> str | None:
        """The class around the method that holds a node."""
        scope = self._scope[node]
        while scope is not None:
            parent = self._parent[scope]
            if isinstance(parent, ast.ClassDef):
                return parent.name
            scope = self._scope[scope]
        return None

    def _add_call(self, node: ast.Call) -> None:
        name = last_name(node.func)
        if name is not None and len(self._found.calls[name]) < _MOST_CALLS:
            by_keyword = {keyword.arg: kind_of(keyword.value) for keyword in node.keywords if keyword.arg}
            self._found.calls[name].append(([kind_of(value) for value in node.args], by_keyword))

    def _character(self, line: int, column: int) -> int:
        """The character of the text at a line, from 1, and a column in bytes."""
        start, end = self._starts[line - 1 : line + 1]
        text = self._code[start:end]
        return start + (column if text.isascii() else len(text.encode()[:column].decode(errors="ignore")))

    def _add_function(self, node, returned: list[ast.AST], local: dict[str, ast.expr], uses) -> None:
        parent = self._parent[node]
        owner = parent.name if isinstance(parent, ast.ClassDef) else None
        decorators = [last_name(decorator) for decorator in node.decorator_list]
        documentation = ast.get_docstring(node, clean=False) or ""
        words = words_of(node.name)
        around = [
            "async" if isinstance(node, ast.AsyncFunctionDef) else "sync",
            "function" if owner is None else "method",
            *(f"decorator:{name}" for name in decorators),
            *(f"base:{name}" for name in (self._found.bases.get(owner, ()) if owner else ())),
        ]
        mentioned = tuple(dict.fromkeys(_CLASS_WORD.findall(documentation)))
        common = {"function": node.name, "owner": owner, "mentioned": mentioned}
        begin = self._character(node.lineno, node.col_offset)
        definition = _DEFINITION.match(self._code, begin)
        signs, made = _signs_of_result(node, returned, local)
        signs = [
            f"name:{node.name}",
            *_signs_of_words(words),
            *signs,
            *_signs_of_text(documentation, _RESULT_TEXTS),
            *around,
        ]
        self._found.usages.append(
            Usage(
                relation=RETURNS,
                name=node.name,
                start=definition.end() if definition else begin,
                signs=tuple(dict.fromkeys(signs)),
                made=tuple(owner if name in ("self", "cls") and owner else name for name in made),
                **common,
            )
        )
        defaults = _defaults(node.args)
        bound = int(owner is not None and "staticmethod" not in decorators)
        around += [
            f"function:{node.name}",
            *(f"function word:{word}" for word in dict.fromkeys(words[:1] + words[-1:])),
        ]
        for number, (argument, way) in enumerate(_parameters(node)):
            name, default = argument.arg, defaults.get(argument.arg)
            signs = [f"name:{name}", *_signs_of_words(words_of(name)), f"way:{way}", f"place:{min(number - bound, 3)}"]
            if len(name) < 3:
                signs.append("short name")
            signs.append(f"default:{kind_of(default)}" if default is not None else "required")
            attributes: list[str] = []
            for use in uses[node, name]:
                signs += self._signs_of_use(use, attributes)
            signs += _signs_of_text(documentation, _parameter_texts(name))
            match = re.match(r"call:(_?[A-Z]\w*)", kind_of(default))
            self._found.usages.append(
                Usage(
                    relation=HAS_TYPE,
                    name=name,
                    start=self._character(argument.lineno, argument.col_offset),
                    signs=tuple(dict.fromkeys([*signs, *around])),
                    attributes=tuple(dict.fromkeys(attributes)),
                    made=(match.group(1),) if match else (),
                    position=number - bound if way == "place" and number >= bound else None,
                    **common,
                )
            )

    def _signs_of_use(self, use: ast.Name, attributes: list[str]) -> Iterator[str]:
        """What is done with a parameter where it is read; attributes that are read on it are added to the list."""
        parent = self._parent[use]
        match parent:
            case ast.Attribute(attr=name):
                attributes.append(name)
                around = self._parent[parent]
                is_called = isinstance(around, ast.Call) and around.func is parent
                yield f"{'method' if is_called else 'attribute'}:{name}"
            case ast.Call(func=function) if function is use:
                yield "called"
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, classes]):
                for node in classes.elts if isinstance(classes, ast.Tuple) else [classes]:
                    if name := last_name(node):
                        yield f"isinstance:{name}"
            case ast.Call(func=function, args=arguments):
                place = next((i for i, argument in enumerate(arguments) if argument is use), "")
                yield f"argument:{last_name(function)}:{place}"
            case ast.keyword(arg=name):
                yield f"keyword:{name}"
            case ast.Subscript(value=value, slice=index) if value is use:
                kind = kind_of(index)
                yield f"element:{kind if kind.startswith('const') else kind.partition(':')[0]}"
                if isinstance(parent.ctx, ast.Store):
                    yield "element set"
            case ast.Subscript(value=value):
                yield f"index of:{last_name(value)}"
            case ast.Compare(left=left, ops=[operator, *_], comparators=[right, *_]):
                kind = kind_of(right if left is use else left)
                kind = kind if kind.startswith("const") else kind.partition(":")[0]
                yield f"compared:{type(operator).__name__}:{'left' if left is use else 'right'}:{kind}"
            case ast.For(iter=value, target=target) | ast.comprehension(iter=value, target=target) if value is use:
                yield "iterated"
                yield f"iterated:{kind_of(target)}"
            case ast.AsyncFor(iter=value) if value is use:
                yield "iterated with await"
            case ast.BinOp(left=left, op=operator, right=right):
                kind = kind_of(right if left is use else left)
                side = "left" if left is use else "right"
                yield f"operand:{type(operator).__name__}:{side}:{kind if kind.startswith('const') else ''}"
            case ast.Assign(targets=targets):
                for target in targets:
                    yield f"{'stored' if isinstance(target, ast.Attribute) else 'assigned'}:{last_name(target)}"
            case ast.If() | ast.While() | ast.IfExp(test=ast.Name()):
                yield "tested"
            case _:
                yield f"in:{type(parent).__name__}"


def _parameters(node) -> list[tuple[ast.arg, str]]:
    """The parameters of a function and how each is given: by place (or name), by keyword, as `*` or `**`."""
    given = node.args
    found = [(argument, "place") for argument in (*given.posonlyargs, *given.args)]
    found += [(argument, "keyword") for argument in given.kwonlyargs]
    return found + [(argument, way) for argument, way in ((given.vararg, "*"), (given.kwarg, "**")) if argument]


def _defaults(given: ast.arguments) -> dict[str, ast.expr]:
    by_place = [*given.posonlyargs, *given.args]
    pairs = list(zip(by_place[len(by_place) - len(given.defaults) :], given.defaults, strict=True))
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {argument.arg: value for argument, value in pairs if value is not None}


def _signs_of_words(words: list[str]) -> list[str]:
    signs = [f"word:{word}" for word in words]
    return signs + [f"first word:{word}" for word in words[:1]] + [f"last word:{word}" for word in words[-1:]]


def _signs_of_result(node, returned: list[ast.AST], local: dict[str, ast.expr]) -> tuple[list[str], list[str]]:
    """Signs of what a function returns, and the classes whose instances it returns (`self` and `cls` for its own)."""
    signs, made = [], []
    returns = [found.value for found in returned if isinstance(found, ast.Return)]
    values = [value for value in returns if value is not None]
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not body:
        signs.append("no body")
    elif all(isinstance(statement, ast.Raise | ast.Pass) for statement in body):
        signs.append(f"only {type(body[0]).__name__.lower()}")
    elif not values:
        signs.append("no value")
    elif not isinstance(body[-1], ast.Return | ast.Raise | ast.With | ast.Try | ast.If | ast.While | ast.For):
        signs.append("ends without a return")
    if values and len(values) < len(returns):
        signs.append("some returns without a value")
    for found in returned:
        if not isinstance(found, ast.Return):
            signs.append(
                "yields from" if isinstance(found, ast.YieldFrom) else f"yields:{kind_of(found.value, local)}"
            )
    leaves, waiting = [], values[::-1]
    while waiting:
        match waiting.pop():
            case ast.IfExp(body=first, orelse=second):
                waiting += [second, first]
            case ast.BoolOp(values=operands):
                waiting += operands[::-1]
            case value:
                leaves.append(kind_of(value, local))
    kinds = list(dict.fromkeys(leaves))
    signs += [f"returns:{kind}" for kind in kinds]
    signs.append(f"always returns:{kinds[0]}" if len(kinds) == 1 else f"kinds returned:{len(kinds)}")
    for kind in kinds:
        what, _, name = kind.partition(":")
        if what in ("call", "attr", "name", "item"):
            words = words_of(name)
            signs += [f"returns {what}, last word:{word}" for word in words[-1:]]
            signs += [f"returns {what}, first word:{word}" for word in words[:1]]
        kind = kind.removeprefix("variable:")
        if kind in ("self", "call:cls"):
            made.append("self")
        elif match := re.fullmatch(r"call:(_?[A-Z]\w*)", kind):
            made.append(match.group(1))
    return signs, made


_RESULT_TEXTS = (
    re.compile(r":rtype:\s*(\S+)"),
    re.compile(r"Returns\s*\n\s*-+\s*\n\s*(?:\w+\s*:\s*)?([\w.\[\]`]+)"),
    re.compile(r"Returns?:?\s+([\w.]+)"),
)


def _parameter_texts(name: str) -> tuple[re.Pattern, ...]:
    name = re.escape(name)
    return (
        re.compile(rf":type\s+{name}:\s*(\S+)"),
        re.compile(rf":param\s+([\w.\[\]]+)\s+{name}:"),
        re.compile(rf"^\s*{name}\s*(?:\(|:\s)`*([\w.]+)", re.MULTILINE),
    )


def _signs_of_text(documentation: str, patterns) -> list[str]:
    """What a docstring says the type is: the word at which the first of the patterns that fit points."""
    if not documentation:
        return []
    found = next((match for pattern in patterns if (match := pattern.search(documentation))), None)
    return [f"documented:{found.group(1).strip('`:,.')}"] if found else []


def read_usage(code: str) -> FileUsage:
    """What a Python file does with its parameters, and what its functions return.

    Args:
        code: the file's text, best without annotations: they are not read, but calls in them are.

    Returns:
        Nothing of anything where Python cannot parse the text.

    >>> usage = read_usage("def load(path, names=None):\\n    names.append(path.stem)\\n    return names\\n")
    >>> [(found.name, found.attributes) for found in usage.usages if found.relation == "has_type"]
    [('path', ('stem',)), ('names', ('append',))]
    >>> [sign for sign in usage.usages[0].signs if sign.startswith("returns:")]
    ['returns:name:names']
    """
    found = FileUsage()
    try:
        with warnings.catch_warnings():
            # Of escapes that Python does not know; they are the file's affair.
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return found
    _Reader(code, found).read(tree)
    return found
