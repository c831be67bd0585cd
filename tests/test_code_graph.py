"""Python's code graph: full sets of triples for small snippets, spans, and behaviour on hostile text."""

import doctest
import gc
import importlib.util
import random
import subprocess
import sys

import pytest

import graphmert.code_graph
from graphmert.code_graph import LANGUAGES, RELATION_IDS, RELATION_NAMES, RELATIONS, extract


def facts(source, *relations):
    """The triples as text, "head@line relation tail@line", with a star where the fact hangs on a use."""
    lines = []
    for t in extract(source).triples:
        if not relations or t.relation in relations:
            head_line = source.count("\n", 0, t.head_start) + 1
            tail_line = source.count("\n", 0, t.tail_start) + 1
            lines.append(f"{t.head}@{head_line} {t.relation} {t.tail}@{tail_line}{' *' if t.is_use else ''}")
    return sorted(lines)


def check(source, expected, *relations):
    assert facts(source, *relations) == sorted(line.strip() for line in expected.strip().splitlines())


def test_example_of_the_package():
    outcome = doctest.testmod(graphmert.code_graph)
    assert outcome.attempted >= 2 and outcome.failed == 0


def test_reading_leaves_nothing_to_the_cycle_collector():
    gc.collect()
    extract("class A:\n    def f(self, x):\n        y = [z for z in x]\n        return lambda: self.f(y)\n")
    assert gc.collect() == 0 and gc.isenabled()


def test_schema():
    assert len(RELATION_NAMES) == len(set(RELATION_NAMES)) == 12
    assert [RELATION_IDS[name] for name in RELATION_NAMES] == list(range(12))


@pytest.mark.parametrize("relation", RELATIONS, ids=RELATION_NAMES)
def test_example_of_the_schema(relation):
    triples = extract(relation.example).triples
    assert relation.example_triple in {(t.head, t.tail) for t in triples if t.relation == relation.name}


def test_a_whole_class():
    source = """\
class Stack(Base):
    limit: int = 9

    def __init__(self, items):
        self.items = list(items)

    def push(self, item) -> bool:
        full = len(self.items) > self.limit
        self.grow()
        return full

    def grow(self) -> None:
        pass
"""
    check(
        source,
        """
        Stack@1 inherits Base@1
        Stack@1 has_field limit@2
        Stack@1 has_field items@5
        Stack@1 has_field items@8 *
        Stack@1 has_field limit@8 *
        Stack@1 contains __init__@4
        Stack@1 contains push@7
        Stack@1 contains grow@12
        Stack@1 contains grow@9 *
        limit@2 has_type int@2
        limit@8 has_type int@2 *
        __init__@4 has_parameter self@4
        __init__@4 has_parameter items@4
        __init__@4 has_parameter items@5 *
        __init__@4 instantiates list@5
        items@4 flows_to items@5
        items@5 flows_to items@5 *
        push@7 has_parameter self@7
        push@7 has_parameter item@7
        push@7 returns bool@7
        push@7 declares full@8
        push@7 calls len@8
        push@7 calls Stack.grow@9
        grow@9 returns None@12 *
        grow@12 has_parameter self@12
        grow@12 returns None@12
        """,
    )


def test_calls_are_qualified_as_far_as_the_file_resolves():
    source = """\
import numpy as np, os.path
from json import dumps as write
from .near import Shape
from typing import *
def outer(callback, rows: "Table"):
    def inner():
        return inner()
    np.zeros(1); os.path.join(); write(); Shape.make(); inner(); callback(); rows.sort(); rows.missing()
    "".join(); outer.cache(); unknown(); Unknown(); unknown.deep.call(); dict.fromkeys(); print(*map(str, np.ones()))
    np.Array(); ValueError(); Table(); Table.sort(); Table.Row(); f()(); (lambda: rows.sort())()
class Table:
    class Row:
        def go(self): self.other()
    @classmethod
    def make(cls): cls(); cls.sort(); super().sort()
    def sort(self): self.make(); self.Row(); self.rows.append()
class Child(Table):
    def sort(self):
        super().sort(); self.make(); self.rows(); super(Child, self).make()
outer()
"""
    check(
        source,
        """
        outer@5 calls numpy.zeros@8
        outer@5 calls os.path.join@8
        outer@5 calls json.dumps@8
        outer@5 calls .near.Shape.make@8
        outer@5 calls outer.inner@8
        outer@5 calls callback@8
        outer@5 calls Table.sort@8
        outer@5 calls missing@8
        inner@6 calls outer.inner@7
        outer@5 calls join@9
        outer@5 calls cache@9
        outer@5 calls unknown@9
        outer@5 instantiates Unknown@9
        outer@5 calls call@9
        outer@5 calls dict.fromkeys@9
        outer@5 calls print@9
        outer@5 instantiates map@9
        outer@5 calls numpy.ones@9
        outer@5 instantiates numpy.Array@10
        outer@5 instantiates ValueError@10
        outer@5 instantiates Table@10
        outer@5 calls Table.sort@10
        outer@5 instantiates Table.Row@10
        outer@5 calls f@10
        outer@5 calls Table.sort@10
        go@13 calls other@13
        make@15 instantiates Table@15
        make@15 calls Table.sort@15
        make@15 calls sort@15
        make@15 instantiates super@15
        sort@16 calls Table.make@16
        sort@16 instantiates Table.Row@16
        sort@16 calls append@16
        sort@18 instantiates super@19
        sort@18 calls Table.sort@19
        sort@18 calls Table.make@19
        sort@18 calls rows@19
        sort@18 instantiates super@19
        sort@18 calls Table.make@19
        """,
        "calls",
        "instantiates",
    )
    assert extract(source).num_skipped == {
        "import of everything": 1,
        "callee that is not a name": 2,
        "call outside a function": 1,
    }


def test_a_name_means_its_innermost_binding():
    source = """\
import numpy as np
from json import load
def shadowed(np, load):
    np.zeros(); load()
def comprehension():
    return [np.a for np in load()], np.b()
class Holder:
    load = 1
    def method(self):
        return load()
def local():
    load = 2
    return load()
def global_():
    global load
    return load()
"""
    check(
        source,
        """
        np@1 imports numpy@1
        load@2 imported_from json@2
        load@6 imported_from json@2 *
        np@6 imports numpy@1 *
        load@10 imported_from json@2 *
        load@16 imported_from json@2 *
        shadowed@3 calls zeros@4
        shadowed@3 calls load@4
        comprehension@5 calls json.load@6
        comprehension@5 calls numpy.b@6
        method@9 calls json.load@10
        local@11 calls load@13
        global_@14 calls json.load@16
        """,
        "imports",
        "imported_from",
        "calls",
    )


def test_imports():
    source = """\
import os, xml.dom, a.b as c
from ..pkg import (x, y as z)
from . import near
from __future__ import division
def f():
    import json as j
    return j, c, os, xml, x, z, near
"""
    check(
        source,
        """
        os@1 imports os@1
        xml.dom@1 imports xml.dom@1
        c@1 imports a.b@1
        x@2 imported_from ..pkg@2
        z@2 imported_from ..pkg@2
        near@3 imported_from .@3
        division@4 imported_from __future__@4
        j@6 imports json@6
        j@7 imports json@6 *
        c@7 imports a.b@1 *
        x@7 imported_from ..pkg@2 *
        z@7 imported_from ..pkg@2 *
        near@7 imported_from .@3 *
        """,
    )


def test_types_and_parameters():
    source = """\
def f(a: "int", /, *args: list[ str ], b: (x  # why
        | None) = 1, **kw) -> 'Dict[str, "A"]':
    c: float = a
    g = lambda a: a + c
    def inner(): return b, kw
    return f(c)
"""
    check(
        source,
        """
        f@1 has_parameter a@1
        f@1 has_parameter args@1
        f@1 has_parameter b@1
        f@1 has_parameter kw@2
        f@1 has_parameter a@3 *
        f@1 has_parameter b@5 *
        f@1 has_parameter kw@5 *
        a@1 has_type int@1
        args@1 has_type list[ str ]@1
        b@1 has_type x | None@1
        f@1 returns Dict[str, "A"]@2
        f@6 returns Dict[str, "A"]@2 *
        c@3 has_type float@3
        a@3 has_type int@1 *
        c@4 has_type float@3 *
        b@5 has_type x | None@1 *
        c@6 has_type float@3 *
        """,
        "has_parameter",
        "has_type",
        "returns",
    )


def test_declares_and_contains():
    source = """\
def f(p):
    p = 1
    a = b, *c = 1, 2
    a = 3
    for d, (e, g.x) in p: pass
    with p as h, p: pass
    try: pass
    except E as i: pass
    if (j := p): k: int
    [l for l in p if (m := l)]
    match p:
        case [n, *o] | {"q": q, **r} | C(s=t) as u: pass
        case _: pass
    global v
    v = 1
    w += 1
    import x1
    def y(): z = 1
    class A: b1 = 2
"""
    names = "a@3 b@3 c@3 d@5 e@5 h@6 i@8 j@9 k@9 m@10 n@12 o@12 q@12 r@12 t@12 u@12 w@16"
    expected = [f"f@1 declares {name}" for name in names.split()]
    expected += ["y@18 declares z@18", "f@1 contains y@18", "f@1 contains A@19"]
    check(source, "\n".join(expected), "declares", "contains")


def test_fields():
    source = """\
class Base:
    kind: str
    a, (b, c) = 1, (2, 3)
class A(Base):
    def __init__(this, n):
        this.n: int = n
        this.late, other.no = n, n
        for this.i in n: pass
        this.n += 1
        def later(): this.deep = n
    def read(self):
        return self.n, self.kind, self.missing, self.late, self.read, self.a
    @staticmethod
    def free(self):
        self.no = self.n
    @classmethod
    def make(cls):
        cls.shared = 1
        return cls.shared
"""
    check(
        source,
        """
        Base@1 has_field kind@2
        Base@1 has_field a@3
        Base@1 has_field b@3
        Base@1 has_field c@3
        A@4 has_field n@6
        A@4 has_field late@7
        A@4 has_field i@8
        A@4 has_field deep@10
        A@4 has_field n@12 *
        Base@1 has_field kind@12 *
        A@4 has_field late@12 *
        Base@1 has_field a@12 *
        A@4 has_field shared@18
        A@4 has_field shared@19 *
        kind@2 has_type str@2
        kind@12 has_type str@2 *
        n@6 has_type int@6
        n@12 has_type int@6 *
        """,
        "has_field",
        "has_type",
    )


def test_inherits():
    source = """\
from lib.base import Root
import abc
class A(Root, abc.ABC, Generic[T], metaclass=M): pass
class B(A, call(), *more):
    class C(Root): pass
    class D(C): pass
def f(x: A): return B.C()
"""
    check(
        source,
        """
        A@3 inherits lib.base.Root@3
        A@3 inherits abc.ABC@3
        A@3 inherits Generic@3
        B@4 inherits A@4
        A@4 inherits lib.base.Root@3 *
        A@4 inherits abc.ABC@3 *
        A@4 inherits Generic@3 *
        C@5 inherits lib.base.Root@5
        D@6 inherits B.C@6
        C@6 inherits lib.base.Root@5 *
        A@7 inherits lib.base.Root@3 *
        A@7 inherits abc.ABC@3 *
        A@7 inherits Generic@3 *
        B@7 inherits A@4 *
        """,
        "inherits",
    )


# Data flow. Each case: body of `def f(p, q):` from line 2 on, and the flows at definitions.
FLOWS = {
    "straight": ("a = p\na = a + q\nb = a", "p@1>a@2 a@2>a@3 q@1>a@3 a@3>b@4"),
    "element by element": ("a, (b, c) = p, (q, p)\nd, *e = p, q\n[g, h] = p", "p@1>a@2 q@1>b@2 p@1>c@2 p@1>d@3 q@1>d@3 "
                           "p@1>e@3 q@1>e@3 p@1>g@4 p@1>h@4"),
    "chained": ("a = b = p\na, b = b, a", "p@1>a@2 p@1>b@2 b@2>a@3 a@2>b@3"),
    "augmented": ("a = p\na += q\na.x += p", "p@1>a@2 a@2>a@3 q@1>a@3"),
    "if": ("a = p\nif p: a = q\nelif q: pass\nelse: return\nb = a", "p@1>a@2 q@1>a@3 a@2>b@6 a@3>b@6"),
    "while": ("a = p\nwhile a:\n    b = a\n    if b: break\n    a = b\nc = a", "p@1>a@2 a@2>b@4 a@6>b@4 b@4>a@6 a@2>c@7 "
              "a@6>c@7"),
    "endless": ("a = p\nwhile True:\n    a = q\n    if a: break\nb = a", "p@1>a@2 q@1>a@4 a@4>b@6"),
    "for": ("for i, j in p:\n    if i: continue\n    a = j\nelse: a = q\nb = a", "p@1>i@2 p@1>j@2 j@2>a@4 q@1>a@5 a@5>b@6"),
    "try": ("a = p\ntry:\n    a = q\n    a = a\nexcept E as e: b = a, e\nelse: c = a\nd = a", "p@1>a@2 q@1>a@4 a@4>a@5 "
            "a@2>b@6 a@4>b@6 a@5>b@6 e@6>b@6 a@5>c@7 a@2>d@8 a@4>d@8 a@5>d@8"),
    "finally": ("a = p\ntry: a = q\nfinally: b = a\nc = a", "p@1>a@2 q@1>a@3 a@2>b@4 a@3>b@4 a@3>c@5"),
    "break through finally": ("a = p\nwhile True:\n    try: break\n    finally: a = q\nb = a", "p@1>a@2 q@1>a@5 a@5>b@6"),
    "with": ("with p as a, a as b: c = b", "p@1>a@2 a@2>b@2 b@2>c@2"),
    "walrus": ("x = q\nif p and (x := p): a = x\nb = x", "q@1>x@2 p@1>x@3 q@1>x@2 x@3>a@3 x@2>a@3 x@2>b@4 x@3>b@4"),
    "comprehension": ("a = [x + q for x in p if x]\np = {q: p for q in a}", "p@1>x@2 p@1>a@2 q@1>a@2 x@2>a@2 a@2>q@3 "
                      "a@2>p@3 q@3>p@3 p@1>p@3"),
    "lambda": ("a = lambda p, r=q: p\nb = lambda: q", ""),
    "match": ("match p:\n    case [a, 1]: b = a\n    case None: b = q\nc = b", "p@1>a@3 a@3>b@3 q@1>b@4 b@3>c@5 b@4>c@5"),
    "deleted": ("a = p\ndel a\nb = a\nimport p\nc = p\ndef q(): pass\nd = q", "p@1>a@2"),
    "annotated": ("a: q = p\nb: p\nc = b", "p@1>a@2"),
    "attributes": ("a = p.b(k=q[p])\na.x = p\na[p] = q", "p@1>a@2 q@1>a@2"),
    "global": ("global g\na = g\ng = p\nb = g", "p@1>g@4 g@4>b@5"),
    "early return": ("a = p\nif p:\n    a = q\n    return a\nb = a", "p@1>a@2 q@1>a@4 a@2>b@6"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLOWS)
def test_flows(case):
    body, expected = FLOWS[case]
    source = "def f(p, q):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    found = [line for line in facts(source, "flows_to") if not line.endswith("*")]
    assert found == sorted({flow.replace(">", " flows_to ") for flow in expected.split()})


def test_flows_at_uses_and_into_fields():
    source = """\
class A:
    size = 1
    area = size * size
    names = [size for size in size]
    def __init__(self, p):
        self.x, other.y = p, p
        q = self.x, self, p
limit = 2
top = limit + len(limit)
def g(): inner = limit
"""
    check(
        source,
        """
        size@2 flows_to area@3
        size@3 flows_to area@3 *
        size@3 flows_to area@3 *
        size@2 flows_to size@4
        size@4 flows_to size@4 *
        size@2 flows_to names@4
        size@4 flows_to names@4
        size@4 flows_to names@4 *
        size@4 flows_to names@4 *
        p@5 flows_to x@6
        p@6 flows_to x@6 *
        p@5 flows_to q@7
        p@7 flows_to q@7 *
        limit@8 flows_to top@9
        limit@9 flows_to top@9 *
        limit@9 flows_to top@9 *
        """,
        "flows_to",
    )


def test_boundaries():
    source = """\
'''Doc.'''
@one
@two
def f():
    a = 1; b = 2
    if a:
        b = 3
        def g(): pass
class A:
    x = 1
    def m(self): return 1
if f:
    y = 1
    while y: z = 2
"""
    found = extract(source).boundaries
    assert found == sorted(set(found))
    lines = [(source.count("\n", 0, offset) + 1, source[offset : offset + 5], depth) for offset, depth in found]
    assert lines == [
        (1, "'''Do", 0), (2, "@one\n", 0), (5, "a = 1", 2), (5, "b = 2", 2), (6, "if a:", 2), (7, "b = 3", 3),
        (8, "def g", 1), (8, "pass\n", 2), (9, "class", 0), (10, "x = 1", 2), (11, "def m", 1), (11, "retur", 2),
        (12, "if f:", 0), (13, "y = 1", 2), (14, "while", 2), (14, "z = 2", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["json.decoder", "difflib", "asyncio.tasks", "enum", "heapq", "unittest.mock"])
def test_spans_slice_to_their_names(name):
    with open(importlib.util.find_spec(name).origin, encoding="utf-8") as file:
        source = file.read()
    graph = extract(source)
    assert len(graph.triples) > 200
    assert len(set(graph.triples)) == len(graph.triples)
    assert graph.triples == extract(source).triples
    starts = {offset for offset, _ in graph.boundaries}
    assert all(source[offset - 1] in "\n \t;:" for offset in starts if offset)
    for triple in graph.triples:
        assert source[triple.head_start : triple.head_end] == triple.head
        tail = source[triple.tail_start : triple.tail_end]
        if triple.relation in ("has_type", "returns"):
            assert " ".join(tail.split()).strip("\"'()") == triple.tail.strip("\"'()")
        elif triple.relation in ("calls", "instantiates", "inherits"):
            assert tail == triple.tail or "." in triple.tail or f" {tail}" in source
        else:
            assert tail == triple.tail


def test_text_outside_ascii_keeps_its_offsets():
    source = '# 名前 😀\nclass Größe:\n    """é\ud800😀"""\n    naïve = "日本"\n    def λ(self, ñ): self.é = ñ\n'
    source += '\ufeff\ny = "\u2028"; z = y\n'
    for triple in extract(source).triples:
        assert source[triple.head_start : triple.head_end] == triple.head
        assert source[triple.tail_start : triple.tail_end] == triple.tail
    assert {"Größe@2 has_field é@5", "Größe@2 has_field naïve@4", "λ@5 has_parameter ñ@5", "y@7 flows_to z@7"} <= set(
        facts(source)
    )


@pytest.mark.parametrize("ending", ["\r", "\r\n", "\n"])
def test_line_ends(ending):
    source = "a = 1\nb = a\ndef f():\n    c = b\n    d = c\n".replace("\n", ending)
    graph = extract(source)
    assert graph.num_errors == 0
    assert [(t.head, t.relation, t.tail) for t in graph.triples if not t.is_use] == [
        ("a", "flows_to", "b"), ("f", "declares", "c"), ("f", "declares", "d"), ("c", "flows_to", "d"),
    ]  # fmt: skip


def test_broken_text_gives_what_parses():
    source = (
        "import os\ndef good(a):\n    b = a\ndef bad():\n    x = = 3\nclass C(B):\n    def m(self): return good(1)\n"
    )
    graph = extract(source)
    assert graph.num_errors > 0
    found = facts(source)
    assert {"good@2 has_parameter a@2", "a@2 flows_to b@3", "C@6 inherits B@6", "m@7 calls good@7"} <= set(found)


def test_python_2():
    source = (
        "def f(a, (b, c)):\n    print >>a, b % c\n    exec 'x' in c\n    raise E, 'text'\n    d = `a`, 0777L, a <> b\n"
    )
    assert {"f@1 has_parameter b@1", "f@1 has_parameter c@2 *", "f@1 declares d@5"} <= set(facts(source))


HOSTILE = {
    "empty": "",
    "nulls": "\0a = 1\0\nb\0 = a\0",
    "only errors": ")]}:=" * 200 + "\udfff",
    "parentheses": "x = " + "(" * 5000 + "a" + ")" * 5000,
    "open brackets": "([{" * 5000,
    "calls": "x = " + "f(" * 5000 + ")" * 5000,
    "lambdas": "x = " + "lambda: " * 5000 + "x",
    "walruses": "x = " + "(y := " * 1500 + "z" + ")" * 1500,
    "comprehensions": "x = " + "[a for a in " * 500 + "z" + "]" * 500,
    "attributes": "x = a" + ".b" * 20000,
    "operators": "x = " + "a + " * 20000 + "a",
    "not": "x = " + "not " * 5000 + "a",
    "targets": "(" * 3000 + "a," + ")" * 3000 + " = b",
    "ifs": "".join(" " * i + "if a:\n" for i in range(1500)),
    "functions": "".join(" " * i + "def f():\n" for i in range(1500)),
    "loops": "".join(" " * i + "while a:\n" for i in range(95)) + " " * 95 + "a = a\n",
    "finally": "".join("  " * i + "try: pass\n" + "  " * i + "finally:\n" for i in range(90)) + "  " * 90 + "x = 1\n",
    "elifs": "if a: pass\n" + "elif b: a = b\n" * 3000,
    "unpacking": "def f(b):\n "
    + ", ".join(f"a{i}" for i in range(2000))
    + " = "
    + " + ".join("b" for i in range(2000)),
    "inheriting from itself": "class A(A):\n def f(self): self.z(); super().g()\nclass B(C): pass\nclass C(B): x = 1\n",
    "states": "def f(s):\n while s:\n" + "  if s: s = s\n" * 800,
    "patterns": "match x:\n case " + "[" * 2000 + "a" + "]" * 2000 + ": y = a\n",
    "missing names": "class\nclass :\ndef\ndef (\n@\nimport\nfrom\nfrom . import\nfor in:\nwith:\nlambda\nx:\n: int\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_never_raises(case):
    source = HOSTILE[case]
    graph = extract(source)
    assert len(graph.triples) < 60 * len(source) + 1
    assert all(0 <= t.head_start < t.head_end <= len(source) for t in graph.triples)


def test_what_is_left_out_is_counted():
    assert extract(HOSTILE["functions"]).num_skipped["nested too deeply"] > 0
    assert extract(HOSTILE["unpacking"]).num_skipped["data flow of an oversized statement"] > 0
    assert extract(HOSTILE["states"]).num_skipped["data flow of an oversized scope"] > 0


def test_mutated_modules_never_raise():
    rng = random.Random(0)
    tokens = [
        "def ",
        "class ",
        "(",
        ")",
        ":",
        "\n",
        "    ",
        "import ",
        " as ",
        "lambda ",
        '"""',
        "\0",
        "\r",
        "é",
        "*",
        "=",
        ":=",
        "\\",
    ]
    for name in ("enum", "ast", "difflib"):
        with open(importlib.util.find_spec(name).origin, encoding="utf-8") as file:
            text = file.read()
        for _ in range(12):
            start = rng.randrange(len(text) - 8000)
            source = text[start : start + 8000]
            for _ in range(rng.choice([1, 10, 100])):
                at = rng.randrange(len(source))
                source = source[:at] + rng.choice(tokens) + source[at + rng.randrange(8) :]
            for triple in extract(source).triples:
                assert triple.head and triple.tail and triple.tail_start < triple.tail_end
                if triple.relation != "imports":  # `import a . b`: the head is the dotted name without the spaces
                    assert source[triple.head_start : triple.head_end] == triple.head


def test_refusals_name_the_input():
    with pytest.raises(ValueError, match=r"'cobol' is not supported; supported: python, java"):
        extract("x", language="cobol")
    with pytest.raises(ValueError, match=r"source must be a str .*not bytes"):
        extract(b"x")
    assert "python" in LANGUAGES


def test_imports_no_torch():
    code = (
        "import sys, graphmert.code_graph as c; c.extract('x = 1'); "
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
