"""Code graphs of Java, JavaScript, Go, Ruby and PHP: full sets of facts for snippets, spans, cut points, hostile text."""

import random
from pathlib import Path

import pytest

from graphmert.code_graph import (
    EXAMPLES,
    EXTENSIONS,
    LANGUAGES,
    RELATION_NAMES,
    RELATIONS,
    docs,
    extract,
    language_of,
    relations_of,
)

FOLDER = Path(__file__).parent / "languages"
OTHERS = [language for language in LANGUAGES if language != "python"]


def read_cases(language):
    """(title, snippet, expected facts) of a language's file."""
    cases = []
    for block in (FOLDER / f"{language}.txt").read_text(encoding="utf-8").split("=== ")[1:]:
        title, _, rest = block.partition("\n")
        source, _, expected = rest.partition("---\n")
        facts = []
        for line in expected.splitlines():
            relation, _, pairs = line.partition(": ")
            if pairs:
                facts += [f"{relation}: {pair}" for pair in pairs.split("; ")]
        cases.append((title, source, facts))
    return cases


CASES = [(language, *case) for language in OTHERS for case in read_cases(language)]


def facts(source, language):
    """The facts of a text, written as in the files of cases."""
    lines = []
    for t in extract(source, language).triples:
        head_line = source.count("\n", 0, t.head_start) + 1
        tail_line = source.count("\n", 0, t.tail_start) + 1
        lines.append(f"{t.relation}: {t.head}@{head_line}>{t.tail}@{tail_line}{' *' if t.is_use else ''}")
    return sorted(lines)


def check_spans(source, graph):
    assert len(set(graph.triples)) == len(graph.triples)
    for triple in graph.triples:
        assert source[triple.head_start : triple.head_end] == triple.head
        tail = source[triple.tail_start : triple.tail_end]
        assert tail
        if triple.relation in ("has_type", "returns"):
            assert " ".join(tail.split()) == triple.tail
        elif triple.relation in ("declares", "contains", "has_field", "has_parameter", "imports", "flows_to"):
            assert tail == triple.tail
        elif triple.relation == "imported_from":  # a member of a group may add to the namespace of the group
            assert "".join(tail.split()) == triple.tail or triple.tail.startswith(tail + "\\")
        elif triple.tail != tail and tail not in ("this", "self", "static", "super", "new"):
            # Resolved: the last part is the member's name, unless the name was given another one where it was imported.
            is_renamed = f"as {tail}" in source or f": {tail}" in source or f"{tail} from" in source
            assert triple.tail.endswith(tail.rpartition("\\")[2].rpartition(":")[2].rpartition(".")[2]) or is_renamed


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_full_set_of_facts(case):
    language, _, source, expected = case
    assert facts(source, language) == sorted(expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_spans_of_snippets(case):
    language, _, source, _ = case
    graph = extract(source, language)
    assert graph.num_errors == 0
    check_spans(source, graph)


@pytest.mark.parametrize("language", OTHERS)
def test_enough_cases_and_every_relation_of_the_language(language):
    cases = read_cases(language)
    assert len(cases) >= 15
    assert len({title for title, _, _ in cases}) == len(cases)
    seen = {fact.partition(":")[0] for _, _, expected in cases for fact in expected}
    assert seen == set(relations_of(language))


EXAMPLE_CASES = [(language, name) for language in EXAMPLES for name in EXAMPLES[language]]


@pytest.mark.parametrize("case", EXAMPLE_CASES, ids=lambda case: " ".join(case))
def test_examples(case):
    language, relation = case
    source, pair = EXAMPLES[language][relation]
    graph = extract(source, language)
    assert graph.num_errors == 0
    assert pair in {(t.head, t.tail) for t in graph.triples if t.relation == relation}


def test_languages_and_their_relations():
    assert set(LANGUAGES) == {"python", "java", "javascript", "go", "ruby", "php"} == set(EXTENSIONS) == set(EXAMPLES)
    missing = {language: sorted(set(RELATION_NAMES) - set(relations_of(language))) for language in LANGUAGES}
    assert missing == {
        "python": [],
        "java": ["imports"],
        "javascript": ["has_type", "returns"],
        "go": ["imported_from"],
        "ruby": ["has_type", "imported_from", "imports", "returns"],
        "php": ["imports"],
    }


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "python"), ("b.pyi", "python"), ("A.java", "java"), ("a.js", "javascript"), ("a.mjs", "javascript"),
        ("a.cjs", "javascript"), ("a.jsx", "javascript"), ("x\\y.GO", "go"), ("a.rb", "ruby"), ("a.php", "php"),
        ("README.md", None), ("Makefile", None), ("a.java/b", None), ("py", None), ("a.ts", None), ("", None),
    ],
)  # fmt: skip
def test_language_of(path, language):
    assert language_of(path) == language


BOUNDARIES = {
    "java": (
        "import a.B;\n@Ann\nclass A {\n  int x;\n  void f() {\n    if (x) {\n      g();\n    }\n  }\n}\n",
        [(1, 0), (2, 0), (4, 2), (5, 1), (6, 2), (7, 3)],
    ),
    "javascript": (
        "import b from 'b';\nclass A {\n  x = 1;\n  f() {\n    if (x)\n      g();\n  }\n}\nfunction h() {\n  g();\n}\n",
        [(1, 0), (2, 0), (3, 2), (4, 1), (5, 2), (6, 3), (9, 0), (10, 2)],
    ),
    "go": (
        "package p\n\nimport \"b\"\n\nfunc f() {\n\tif x {\n\t\tg()\n\t}\n\th()\n}\n",
        [(1, 0), (3, 0), (5, 0), (6, 2), (7, 3), (9, 2)],
    ),
    "ruby": (
        "require 'b'\nclass A\n  X = 1\n  def f\n    if x\n      g 1\n    end\n  end\nend\n",
        [(1, 0), (2, 0), (3, 2), (4, 1), (5, 2), (6, 3)],
    ),
    "php": (
        "<?php\nuse A\\B;\nclass C {\n  public $x;\n  function f() {\n    if ($x) {\n      g();\n    }\n  }\n}\n",
        [(1, 0), (2, 0), (3, 0), (4, 2), (5, 1), (6, 2), (7, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("language", OTHERS)
def test_boundaries(language):
    source, expected = BOUNDARIES[language]
    found = extract(source, language).boundaries
    assert found == sorted(set(found))
    assert [(source.count("\n", 0, offset) + 1, depth) for offset, depth in found] == expected


@pytest.mark.parametrize("ending", ["\r", "\r\n"])
@pytest.mark.parametrize("language", OTHERS)
def test_line_ends(language, ending):
    for _, source, expected in read_cases(language):
        graph = extract(source.replace("\n", ending), language)
        assert graph.num_errors == 0
        assert len(graph.triples) == len(expected)
        check_spans(source.replace("\n", ending), graph)


NAMES = {
    "java": "class Größe { int é = 1; /* 名前 😀 */ int naïve(int ñ) { return ñ; } }",
    "javascript": "class Größe { é = 1; /* 名前 😀 */ naïve(ñ) { const λ = ñ; } }",
    "go": "package p\n// 名前 😀\ntype Größe struct { é int }\nfunc naïve(ñ int) { λ := ñ }",
    "ruby": "# 名前 😀\nclass Größe\n  É = 1\n  def naïve(ñ)\n    λ = ñ\n  end\nend",
    "php": "<?php /* 名前 😀 */ class Größe { public $é = 1; function naïve($ñ) { $λ = $ñ; } }",
}


@pytest.mark.parametrize("language", OTHERS)
def test_text_outside_ascii_keeps_its_offsets(language):
    source = NAMES[language]
    graph = extract(source, language)
    assert graph.num_errors == 0
    check_spans(source, graph)
    names = {t.head for t in graph.triples} | {t.tail for t in graph.triples}
    assert {"Größe", "naïve"} <= names and any("ñ" in name for name in names)


N = 5000
HOSTILE = {
    "java": [
        "class A { void f() {" + "{" * N + "}" * N + "}}", "class A {" * 1500 + "}" * 1500, "class A{int x=" + "(" * N,
        "class A{void f(){" + "if(a) " * N + ";}}", "class A{void f(){" + "if(a==1) a=2; else " * 3000 + ";}}",
        "class A{Object x=" + "a -> " * N + "1;}", "class A{void f(){a" + ".b()" * N + ";}}",
        "class A{Object x=" + "new B(){Object x=" * 1200 + "1" + ";}" * 1200 + ";}", "class A{" + "List<" * N + "X x;}",
        "class A{void f(){" + "try{" * 400 + "}finally{}" * 400 + "}}", "class A{int x=" + "a+" * 20000 + "a;}",
        "class A extends A { void f(){ g(); super.h(); } } class B extends C{} class C extends B{ void k(){ z(); } }",
        "class A{void f(){" + "switch(a){case 1: " * 400 + "}" * 400 + "}}",
    ],
    "javascript": [
        "{" * N + "}" * N, "function f(){" * 1500 + "}" * 1500, "x=" + "a=>" * N + "1", "[" * N, "a=" * N + "1",
        "let " + "[" * 3000 + "a" + "]" * 3000 + "=b", "x=" + "{a:" * N + "1" + "}" * N, "a" + ".b()" * N,
        "if(a) a=2; else " * 3000 + ";", "x=" + "class{a=" * 1000 + "1" + "}" * 1000, "`${" * 1000 + "}`" * 1000,
        "try{" * 400 + "}finally{}" * 400, "[a,b]=" * 2000 + "[b,a]", "(function(){" * 1000 + "})()" * 1000,
        "x=" + "<a>" * 1000 + "</a>" * 1000, "function f(){ g=class{}; h=()=>1 } function g(){} var h = class extends h {}",
    ],
    "go": [
        "package p\nfunc f(){" + "{" * N + "}" * N + "}", "package p\nvar x=" + "func(){" * 1000 + "}" * 1000,
        "package p\ntype A " + "[]" * N + "int", "package p\nfunc f(){" + "if a { b = 1 } else " * 3000 + "{}}",
        "package p\nvar x=" + "(" * N + "1" + ")" * N, "package p\nvar x=" + "A{" * N + "}" * N,
        "package p\nfunc f(){" + "for {" * 400 + "}" * 400, "package p\ntype A " + "struct { a " * 1500 + "int" + "}" * 1500,
        "func (a b) c(){}\nfunc b(){}\nfunc (x *(y)) z(){}\ntype A struct{A}\ntype B struct {C}\ntype C struct {B}\n"
        "func (b B) f(){ b.g(); b.x = 1}",
    ],
    "ruby": [
        "if a\n" * 1500 + "end\n" * 1500, "def f\n" * 1500 + "end\n" * 1500, "a { " * 1500 + "}" * 1500, "[" * N,
        "x = " + "->(a) { " * 800 + "}" * 800, "begin\n" * 800 + "ensure\nend\n" * 800, "a" + ".b()" * N,
        "x = " + "if a then " * 500 + "1" + " end" * 500, "a = b if c " * 500, '"#{' * 500 + '}"' * 500,
        "a, " + "(b, " * 1000 + "c" + ")" * 1000 + " = d", "if a\n b = 1\n" + "elsif c\n b = 2\n" * 2000 + "end",
        "class A < A; def f; g; super; end; end\nsuper\nself.x = 1\n@a = 1\ndef x; A = 1; end\nundef x\nalias a b",
    ],
    "php": [
        "<?php " + code
        for code in (
            "{" * N + "}" * N, "function f(){" * 1500 + "}" * 1500, "$x=" + "function(){ return " * 1000 + "1;}" * 1000,
            "[" * 3000 + "$a" + "]" * 3000 + "=$b;", "namespace A {" * 500 + "}" * 500, "$a" + "->b()" * N + ";",
            "if($a) {} " + "else if($b) {} " * 1500, "$x=" + "new class { public $a=" * 500 + "1;}" * 500, "$x=" + "[" * N,
            "$$a = 1; $this->$b(); $a::$b; $a::$b(); new $a; self::$$x; namespace\\f(); use \\A; use A\\; \\f(); $this=1;",
            "parent::$x; $a->{$b}=1; (function(){})(); unset($this); global $x; static fn()=>1; new static; new self;",
            "$x = " + "match($a) { default => " * 500 + "1" + "}" * 500 + ";",
            "class A extends A { function f() { $this->g(); } }",
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("language", OTHERS)
def test_hostile_text_never_raises(language):
    for source in [*HOSTILE[language], "", "\0" * 50 + "a = 1\0", ")]}:=" * 300 + "\udfff", "\ufeff\r\r\n\n"]:
        graph = extract(source, language)
        for t in graph.triples:
            assert source[t.head_start : t.head_end] == t.head and t.head


TOKENS = (
    "{", "}", "(", ")", "[", "]", ";", ",", "=", "=>", "->", "::", ".", "'", '"', "`", "\0", "\r", "é", "😀", "$", "@",
    "#", "/*", "*/", "//", "\n", "class ", "def ", "end ", "if ", "else ", "new ", "for ", "switch ", "case ", "try ",
    "return ", "import ", "use ", "func ", "function ", "type ", "<?php ", "\ud800", "\ufeff",
)  # fmt: skip


@pytest.mark.parametrize("language", OTHERS)
def test_mutated_text_never_raises(language):
    rng = random.Random(0)
    cases = [source for _, source, _ in read_cases(language)]
    for _ in range(60):
        source = "".join(rng.sample(cases, 3))
        for _ in range(rng.choice([1, 5, 40])):
            at = rng.randrange(len(source))
            source = source[:at] + rng.choice(TOKENS) + " " * rng.randrange(2) + source[at + rng.randrange(8) :]
        graph = extract(source, language)
        for t in graph.triples:
            assert source[t.head_start : t.head_end] == t.head and t.tail and t.tail_start < t.tail_end
        assert {t.relation for t in graph.triples} <= set(relations_of(language))


BROKEN = {
    "java": ("class A { void f() { int x = = 3; } void g(int p) { int b = p; } }", "flows_to: p@1>b@1"),
    "javascript": ("function f() { let x = = 3; }\nfunction g(p) { const b = p; }", "flows_to: p@2>b@2"),
    "go": ("package p\nfunc f() { x := := 3 }\nfunc g(p int) { b := p }", "flows_to: p@3>b@3"),
    "ruby": ("def f\n  x = = 3\nend\ndef g(p)\n  b = p\nend", "flows_to: p@4>b@5"),
    "php": ("<?php\nfunction f() { $x = = 3; }\nfunction g($p) { $b = $p; }", "flows_to: $p@3>$b@3"),
}


@pytest.mark.parametrize("language", OTHERS)
def test_broken_text_gives_what_parses(language):
    source, fact = BROKEN[language]
    assert extract(source, language).num_errors > 0
    assert fact in facts(source, language)


def test_what_is_left_out_is_counted():
    assert extract("class A { void f() {" + "{" * 200 + "}" * 200 + "}}", "java").num_skipped["nested too deeply"] > 0
    assert extract('import . "x"', "go").num_skipped == {"import of everything": 1}
    assert extract("require 'x'", "ruby").num_skipped == {"import that binds no name": 1}
    assert extract("<?php new $x;", "php").num_skipped == {"instance of what is not a name": 1}
    assert extract("f()();", "javascript").num_skipped["callee that is not a name"] == 1


def test_page_of_relations_is_what_the_schema_gives():
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run: python -m graphmert.code_graph.docs --write"
    for relation in RELATIONS:
        assert relation.definition in docs.page() and relation.direction and relation.excluded
