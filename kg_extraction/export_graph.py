"""Facts as graphs: GraphML through networkx, Turtle and JSON-LD through rdflib. Each has its way back to triples.

In RDF a fact the parser saw is a plain triple as well; every fact, seen or predicted, is an `rdf:Statement`
(reification) that carries its probability, status and places. So a plain query finds what is certain, and who wants
predictions asks for statements and sees their probability. Reification needs nothing beyond RDF 1.1.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote, unquote

from .export import entity_kinds
from .facts import EXTRACTED, Fact

ENTITY, RELATION, VOCABULARY, FACT = (
    f"urn:graphmert:{name}:" for name in ("entity", "relation", "vocabulary", "fact")
)
# What XML cannot hold, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def to_networkx(facts: Iterable[Fact]):
    """The facts as a `networkx.MultiDiGraph`: nodes are full names, edges have the relation as key and attribute."""
    import networkx as nx

    facts = list(facts)
    graph = nx.MultiDiGraph()
    for name, kind in entity_kinds(facts).items():
        graph.add_node(_xml_text(name), kind=kind)
    for fact in facts:
        attributes = {
            "relation": fact.relation,
            "project": _xml_text(fact.project),
            "status": fact.status,
            "mode": fact.mode,
            "probability": fact.probability,
            "places": json.dumps([asdict(place) for place in fact.places]),
        }
        if fact.model_probability is not None:
            attributes["model_probability"] = fact.model_probability
        if fact.rank is not None:
            attributes["rank"] = fact.rank
        graph.add_edge(_xml_text(fact.head), _xml_text(fact.tail), key=fact.id, **attributes)
    return graph


def write_graphml(facts: Iterable[Fact], path: Path) -> None:
    """GraphML; places are JSON in a text attribute. Characters that XML cannot hold become U+FFFD."""
    import networkx as nx

    nx.write_graphml(to_networkx(facts), path)


def read_graphml(path: Path) -> set[tuple[str, str, str]]:
    """The triples of a file that `write_graphml` wrote."""
    import networkx as nx

    graph = nx.read_graphml(path, force_multigraph=True)
    return {(head, data["relation"], tail) for head, tail, data in graph.edges(data=True)}


def to_rdf(facts: Iterable[Fact]):
    """The facts as an `rdflib.Graph`."""
    from rdflib import RDF, RDFS, XSD, BNode, Graph, Literal, Namespace, URIRef

    graph = Graph()
    terms = Namespace(VOCABULARY)
    for prefix, name in (("gm", VOCABULARY), ("entity", ENTITY), ("relation", RELATION), ("fact", FACT)):
        graph.bind(prefix, name)
    facts = list(facts)

    def entity(name: str) -> URIRef:
        return URIRef(ENTITY + quote(name, safe="", errors="surrogatepass"))

    def text(value: str) -> Literal:
        return Literal(_xml_text(value))

    for name, kind in entity_kinds(facts).items():
        graph.add((entity(name), RDFS.label, text(name)))
        graph.add((entity(name), terms.kind, Literal(kind)))
    for fact in facts:
        node, relation = URIRef(FACT + fact.id), URIRef(RELATION + fact.relation)
        if fact.status == EXTRACTED:
            graph.add((entity(fact.head), relation, entity(fact.tail)))
        graph.add((node, RDF.type, RDF.Statement))
        graph.add((node, RDF.subject, entity(fact.head)))
        graph.add((node, RDF.predicate, relation))
        graph.add((node, RDF.object, entity(fact.tail)))
        graph.add((node, terms.status, Literal(fact.status)))
        graph.add((node, terms.mode, Literal(fact.mode)))
        graph.add((node, terms.project, text(fact.project)))
        graph.add((node, terms.probability, Literal(fact.probability, datatype=XSD.double)))
        if fact.model_probability is not None:
            graph.add((node, terms.modelProbability, Literal(fact.model_probability, datatype=XSD.double)))
        if fact.rank is not None:
            graph.add((node, terms.rank, Literal(fact.rank)))
        for place in fact.places:
            where = BNode()
            graph.add((node, terms.place, where))
            graph.add((where, terms.path, text(place.path)))
            for name in ("line", "start", "end"):
                graph.add((where, terms[name], Literal(getattr(place, name))))
    return graph


def write_turtle(facts: Iterable[Fact], path: Path) -> None:
    """Turtle."""
    to_rdf(facts).serialize(destination=str(path), format="turtle", encoding="utf-8")


def write_jsonld(facts: Iterable[Fact], path: Path) -> None:
    """JSON-LD with a context for the prefixes."""
    context = {"gm": VOCABULARY, "entity": ENTITY, "relation": RELATION, "fact": FACT}
    to_rdf(facts).serialize(destination=str(path), format="json-ld", context=context, encoding="utf-8")


def read_rdf(path: Path) -> dict[tuple[str, str, str], float]:
    """The facts of a Turtle or JSON-LD file (by its ending) with their probability, from the statements."""
    from rdflib import RDF, Graph, URIRef

    graph = Graph().parse(str(path), format="turtle" if path.suffix == ".ttl" else "json-ld")

    def name(term) -> str:
        return unquote(str(term).removeprefix(ENTITY), errors="surrogatepass")

    return {
        (
            name(graph.value(node, RDF.subject)),
            str(graph.value(node, RDF.predicate)).removeprefix(RELATION),
            name(graph.value(node, RDF.object)),
        ): float(graph.value(node, URIRef(VOCABULARY + "probability")))
        for node in graph.subjects(RDF.type, RDF.Statement)
    }
