"""The quality benchmark can find fault: its referee refuses wrong facts, and its scores count them."""

import pytest

from graphmert.benchmarks.graph_quality import compare_syntax_and_flow, syntax_table
from graphmert.benchmarks.jedi_oracle import Referee, compare_references, judge, reference_table
from graphmert.benchmarks.record import text_table
from graphmert.code_graph import ProjectIndex, extract

FILES = {
    "app/__init__.py": "",
    "app/tools.py": "class Tool:\n    pass\n\ndef make() -> Tool:\n    return Tool()\n",
    "app/use.py": """import json as j
from .tools import Tool, make

class Box(Tool):
    size: int = 0

    def grow(self, by: float):
        self.limit = by
        self.grow(self.size)
        return make(), j.dumps(self.limit)

def start(box: Box) -> tuple:
    local = Tool()
    return box, start, Box(local)
""",
}


@pytest.fixture
def referee(tmp_path):
    for path, code in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(code, encoding="utf-8")
    return Referee(tmp_path, FILES)


def test_referee_accepts_right_facts_and_refuses_wrong_ones(referee):
    graph = extract(FILES["app/use.py"], project=ProjectIndex(FILES.items()), path="app/use.py")
    callees = ("calls", "instantiates")
    at_uses = [t for t in graph.triples if t.relation in callees or (t.is_use and t.relation != "flows_to")]
    assert len({t.relation for t in at_uses}) == 10
    for triple in at_uses:
        assert judge(referee, "app/use.py", triple) is True, triple
        is_head = triple.relation in ("has_parameter", "contains", "has_field")
        wrong = triple._replace(head="start_") if is_head else triple._replace(tail=".tools.wrong")
        assert judge(referee, "app/use.py", wrong) is False, wrong
        if triple.relation in callees:
            other = "instantiates" if triple.relation == "calls" else "calls"
            assert judge(referee, "app/use.py", triple._replace(relation=other)) is False


def test_recall_misses_what_another_file_says():
    files = [{"project": "app", "path": path, "code": code} for path, code in FILES.items()]
    across = compare_references(files, 5, 1000, 0, across_files=True)
    alone = compare_references(files, 5, 1000, 0, across_files=False)
    assert across["precision_all"] == alone["precision_all"] == 1.0
    assert across["recall"]["returns"]["other_file"] == {"expected": 1, "recall": 1.0}
    assert alone["recall"]["returns"]["other_file"] == {"expected": 1, "recall": 0.0}
    assert alone["recall_all"] < across["recall_all"] == 1.0
    assert "weighted" in reference_table(across)


def test_scores_count_what_is_wrong_and_what_is_missing(monkeypatch):
    files = [
        {"project": "app", "path": "use.py", "code": FILES["app/use.py"]},
        {"project": "", "path": "", "code": "("},
    ]
    right = compare_syntax_and_flow(files)
    assert right["not_parsed"] == {"SyntaxError": 1}
    assert {(score["precision"], score["recall"]) for score in right["relations"].values()} == {(1.0, 1.0)}

    def careless(source, *args, **kwargs):
        graph = extract(source)
        graph.triples = [
            t._replace(tail_start=0) if t.relation == "inherits" else t
            for t in graph.triples
            if t.relation != "returns"
        ]
        graph.triples += [t._replace(head_start=0) for t in graph.triples if t.relation == "contains"]
        return graph

    monkeypatch.setattr("graphmert.code_graph.extract", careless)
    wrong = compare_syntax_and_flow(files)["relations"]
    assert wrong["contains"] == {"found": 2, "expected": 1, "precision": 0.5, "recall": 1.0}
    assert (wrong["returns"]["precision"], wrong["returns"]["recall"]) == (None, 0.0)
    assert (wrong["inherits"]["precision"], wrong["calls"]["recall"]) == (0.0, 1.0)
    assert "0.5000" in syntax_table({"files": 2, "not_parsed": {}, "relations": wrong})


def test_table_is_aligned():
    assert text_table(["name", "n"], [["a", 1000], ["long", None], ["b", 0.5]]) == (
        "name       n\n------------\na      1,000\nlong       -\nb     0.5000"
    )
