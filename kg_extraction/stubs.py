"""A stub file (.pyi) of a Python module: its signatures, without bodies."""

import ast
import warnings

_ANY = "Any"


def stub_of(code: str) -> str:
    """The stub of a module.

    Functions keep their signatures and decorators, classes their bases and the attributes that their methods bind;
    defaults and values become `...`. What has no type is left without one, variables become `Any`. Comments and
    docstrings are left out.

    Args:
        code: Python that `ast` reads.

    Returns:
        Python that type checkers read as a stub.

    Raises:
        SyntaxError: `ast` does not read it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(code)
    body = _body(tree.body)
    if not any("Any" in _bound(statement) for statement in body):
        body.insert(0, ast.ImportFrom("typing", [ast.alias(_ANY)], 0))
    # `from __future__` has no meaning in a stub.
    body = [s for s in body if not (isinstance(s, ast.ImportFrom) and s.module == "__future__")]
    return ast.unparse(ast.fix_missing_locations(ast.Module(body, []))) + "\n"


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    return set()


def _body(statements: list[ast.stmt]) -> list[ast.stmt]:
    kept: list[ast.stmt] = []
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            kept.append(statement)
        elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            kept.append(_function(statement))
        elif isinstance(statement, ast.ClassDef):
            kept.append(_class(statement))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = statement.value if _is_alias(statement) else None
            kept.append(ast.AnnAssign(statement.target, statement.annotation, value, 1))
        elif isinstance(statement, ast.Assign):
            kept.extend(_assignment(statement))
        elif isinstance(statement, ast.If):
            inner, other = _body(statement.body), _body(statement.orelse)
            if inner or other:
                kept.append(ast.If(statement.test, inner or [ast.Pass()], other))
        elif isinstance(statement, ast.Try):
            # A checker reads one branch: the one where nothing goes wrong.
            kept.extend(_body([*statement.body, *statement.orelse]))
    return kept


def _is_alias(statement: ast.AnnAssign) -> bool:
    name = statement.annotation.attr if isinstance(statement.annotation, ast.Attribute) else None
    return (name or getattr(statement.annotation, "id", "")) == "TypeAlias"


def _assignment(statement: ast.Assign) -> list[ast.stmt]:
    names = [target for target in statement.targets if isinstance(target, ast.Name)]
    value = statement.value
    is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Name | ast.Attribute)
    called = (value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id) if is_call else ""
    # Aliases and the calls that make types mean something to a checker.
    is_type = isinstance(value, ast.Name | ast.Attribute | ast.Subscript)
    if is_type or called in (
        "TypeVar",
        "ParamSpec",
        "TypeVarTuple",
        "NewType",
        "namedtuple",
        "NamedTuple",
        "TypedDict",
    ):
        return [statement] if names else []
    if [name.id for name in names] == ["__all__"]:
        return [statement]
    return [ast.AnnAssign(name, ast.Name(_ANY), None, 1) for name in names]


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    arguments = node.args
    arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
    arguments.kw_defaults = [None if value is None else ast.Constant(...) for value in arguments.kw_defaults]
    return type(node)(
        name=node.name,
        args=arguments,
        body=[ast.Expr(ast.Constant(...))],
        decorator_list=node.decorator_list,
        returns=node.returns,
        type_comment=None,
        **({"type_params": node.type_params} if hasattr(node, "type_params") else {}),
    )


def _class(node: ast.ClassDef) -> ast.ClassDef:
    fields: dict[str, ast.expr] = {}
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.args.args:
            instance = method.args.args[0].arg
            for inner in ast.walk(method):
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                for target in targets if isinstance(inner, ast.Assign | ast.AnnAssign) else ():
                    if isinstance(target, ast.Attribute) and getattr(target.value, "id", None) == instance:
                        known = inner.annotation if isinstance(inner, ast.AnnAssign) else ast.Name(_ANY)
                        fields.setdefault(target.attr, known)
    body = _body(node.body)
    defined = {s.target.id for s in body if isinstance(s, ast.AnnAssign)} | {getattr(s, "name", "") for s in body}
    added = [ast.AnnAssign(ast.Name(name), known, None, 1) for name, known in fields.items() if name not in defined]
    return ast.ClassDef(
        name=node.name,
        bases=node.bases,
        keywords=node.keywords,
        body=[*added, *body] or [ast.Expr(ast.Constant(...))],
        decorator_list=node.decorator_list,
        **({"type_params": node.type_params} if hasattr(node, "type_params") else {}),
    )
