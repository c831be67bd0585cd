"""The code graph of real modules against an oracle that shares nothing with it: Python's own `ast`.

What syntax settles must agree exactly. Data flow is held against a structural interpreter. `benchmarks/graph_quality.py`
does the same on whole corpora.
"""

import importlib.util

import pytest

from graphmert.benchmarks.ast_oracle import SyntaxOracle, comparable
from graphmert.benchmarks.flow_oracle import expected_flows
from graphmert.code_graph import extract

MODULES = [
    "argparse",
    "dataclasses",
    "tempfile",
    "zipfile",
    "typing",
    "subprocess",
    "difflib",
    "ast",
    "tokenize",
    "inspect",
]
TYPED = '''
from __future__ import annotations
import os.path as path, sys, xml.dom
from typing import (Any, Generic as G)
from . import sibling
from ..up.more import thing as other
class Box(G[int], other.Base, metaclass=sys.M):
    size: int = 0
    kind: "Any | None"
    def __init__(self, first: dict[str,  int], /, *rest: int, last: "list[ int ]" = (), **more: Any) -> None:
        self.first: dict = first
        self.n, (self.m, k) = 1, (2, 3)
        for self.i, j in rest: pass
        with open(first) as self.f, open(k): j: float = 1.5
    async def walk(this, a: int = 1, *, b: path.Type[
        int]) -> Any:
        """Doc."""
        match a:
            case [1, x, *ys] | {"k": x, **ys} as whole: return x
            case Box(size=s): pass
        try:
            from a.b import c
        except (ImportError, ValueError) as error:
            raise
        return (lambda q, r=a: q(r))(b)
    @staticmethod
    def free(x, self): self.y = x
    @classmethod
    def make(cls) -> Box: cls.made = [z for z in cls()]; return (w := cls.made)
def outer():
    global G1
    G1 = n = 1
    def inner(a):
        nonlocal n
        n += 1
        class Local(Box, a.b.C): t = 1
        return super().x(inner(a)()), a[0](), "".join(a)
    del n
    return (inner.x)(((outer))(n))
class Rest:
    def take(self, pair: dict[str,  # key
            "a # b"]) -> None:
        *self.first, self.last = pair
'''


def read_module(name):
    with open(importlib.util.find_spec(name).origin, encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("name", ["<typed>", *MODULES])
def test_definitions_agree_with_ast(name):
    source = TYPED if name == "<typed>" else read_module(name)
    graph = extract(source)
    assert graph.num_errors == 0
    expected, found = SyntaxOracle(source).facts, comparable(source, graph)
    assert len(expected) > 30
    assert found - expected == set()
    assert expected - found == set()


@pytest.mark.parametrize("name", MODULES)
def test_data_flow_agrees_with_interpreter(name):
    source = read_module(name)
    graph = extract(source)
    found = {True: set(), False: set()}
    for triple in graph.triples:
        if triple.relation == "flows_to":
            found[triple.is_use].add((triple.head_start, triple.tail_start))
    for is_use, expected in zip((False, True), expected_flows(source), strict=True):
        right = len(found[is_use] & expected)
        assert len(expected) > 50
        assert right >= 0.99 * len(found[is_use]), sorted(found[is_use] - expected)[:10]
        assert right >= 0.99 * len(expected), sorted(expected - found[is_use])[:10]
