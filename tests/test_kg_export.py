"""Every format, read back by its own library with the same triples; the page holds what it shows."""

import csv
import json
import re

import networkx as nx
import pyarrow.parquet
import pytest
import rdflib
from kg_corpus import project_extractor

from graphmert.kg_extraction import export, export_graph, page
from graphmert.kg_extraction.extraction import Options
from graphmert.kg_extraction.facts import EXTRACTED, PREDICTED, Fact, Place


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    found = project_extractor().extract(["has_type", "returns", "calls", "inherits"], options=Options(threshold=0.0))
    # Names that every format must quote: commas, quotes, semicolons, line ends, other alphabets, markup.
    odd = ["Literal[\"a, b\", 'c;d']", "</script><b>", "größe", "a\nb", "x%20y z"]
    for number, tail in enumerate(odd):
        place = Place("app", "app/odd name.py", 3, 1, 2)
        found.append(
            Fact(
                "app",
                "app.odd",
                "has_type",
                tail,
                "odd",
                tail,
                "parameter",
                "type",
                PREDICTED,
                "tail",
                0.25,
                rank=number + 1,
                places=[place],
            )
        )
    return found


@pytest.fixture(scope="module")
def written(facts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kg")
    export.write_formats(facts, directory, export.FORMATS)
    return directory


def triples(facts) -> set:
    return {fact.triple for fact in facts}


def test_jsonl_and_parquet_give_the_same_facts(facts, written):
    assert export.read_jsonl(written / "facts.jsonl") == facts
    assert export.read_parquet(written / "facts.parquet") == facts
    assert pyarrow.parquet.read_table(written / "facts.parquet").column("id").to_pylist() == [
        fact.id for fact in facts
    ]
    assert len({fact.id for fact in facts}) == len(facts)


def test_graphml_gives_the_same_triples(facts, written):
    assert export_graph.read_graphml(written / "graph.graphml") == triples(facts)
    graph = nx.read_graphml(written / "graph.graphml", force_multigraph=True)
    assert graph.number_of_edges() == len(facts)
    head, _, data = next(edge for edge in graph.edges(data=True) if edge[1] == "größe")
    assert (data["status"], data["probability"], json.loads(data["places"])[0]["line"]) == ("predicted", 0.25, 3)
    assert graph.nodes[head]["kind"] == "parameter"


@pytest.mark.parametrize("name", ["graph.ttl", "graph.jsonld"])
def test_rdf_gives_the_same_triples_and_probabilities(facts, written, name):
    assert export_graph.read_rdf(written / name) == {fact.triple: pytest.approx(fact.probability) for fact in facts}
    graph = rdflib.Graph().parse(written / name)
    plain = list(graph.triples((None, rdflib.URIRef(export_graph.RELATION + "has_type"), None)))
    extracted = {f.triple for f in facts if f.relation == "has_type" and f.status == EXTRACTED}
    # Predictions are stated about, not stated.
    assert len(plain) == len(extracted) > 0
    place, path = (f"<{export_graph.VOCABULARY}{name}>" for name in ("place", "path"))
    query = f"SELECT ?p WHERE {{ ?s a rdf:Statement ; {place} ?w . ?w {path} ?p }}"
    assert {str(row.p) for row in graph.query(query)} == {place.path for fact in facts for place in fact.places}


def test_neo4j_tables_join_and_give_the_same_triples(facts, written):
    kinds, rows = export.read_neo4j(written / "neo4j")
    assert {(row[":START_ID"], row[":TYPE"].lower(), row[":END_ID"]) for row in rows} == triples(facts)
    assert set(kinds) == {name for fact in facts for name in (fact.head, fact.tail)}
    assert [row["probability:double"] for row in rows] == [fact.probability for fact in facts]
    with (written / "neo4j" / "relationships.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    assert header[:3] == [":START_ID", ":END_ID", ":TYPE"]
    (written / "neo4j" / "nodes.csv").write_text("name:ID,kind,:LABEL\n")
    with pytest.raises(ValueError, match=r"not in nodes\.csv"):
        export.read_neo4j(written / "neo4j")


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_page_holds_the_facts_and_needs_no_address(facts, written):
    text = (written / "graph.html").read_text(encoding="utf-8")
    data = data_of(text)
    names = [node["n"] for node in data["nodes"]]
    found = {(names[edge["h"]], data["relations"][edge["r"]], names[edge["t"]]) for edge in data["edges"]}
    assert found == triples(facts)
    assert not re.search(
        r"(src|href)=|https?://|@import", re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    )
    assert all(-2 < node["x"] < 2 and -2 < node["y"] < 2 for node in data["nodes"])
    seen = next(edge for edge in data["edges"] if edge["x"])
    assert seen["p"] == 1 and re.fullmatch(r"app/\w+\.py:\d+", seen["l"][0])


def test_page_of_too_many_facts_shows_predictions_first_and_says_so(facts):
    num_predicted = sum(fact.status == PREDICTED for fact in facts)
    text = page.render_page(facts, num_predicted + 3)
    data = data_of(text)
    assert sum(not edge["x"] for edge in data["edges"]) == num_predicted and len(data["edges"]) == num_predicted + 3
    assert f"{len(facts) - num_predicted - 3:,} more facts" in text


def test_nothing_to_write_gives_empty_files(tmp_path):
    export.write_formats([], tmp_path, export.FORMATS)
    assert export.read_jsonl(tmp_path / "facts.jsonl") == export.read_parquet(tmp_path / "facts.parquet") == []
    assert (
        export_graph.read_rdf(tmp_path / "graph.ttl") == {}
        and export_graph.read_graphml(tmp_path / "graph.graphml") == set()
    )


def test_formats_are_checked_before_the_work():
    with pytest.raises(ValueError, match="unknown format 'xml'"):
        export.check_formats(["jsonl", "xml"])
