"""Facts as tables: JSON lines, Parquet, and CSV for Neo4j's bulk import. Each has its way back."""

import csv
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from .facts import Fact, Place

_LIST_MARK = ";"


def fact_to_dict(fact: Fact) -> dict:
    """A fact as JSON holds it, its `id` first."""
    return {"id": fact.id, **asdict(fact)}


def fact_from_dict(data: dict) -> Fact:
    """The way back from `fact_to_dict`."""
    data = {name: value for name, value in data.items() if name != "id"}
    return Fact(**{**data, "places": [Place(**place) for place in data["places"]]})


def write_jsonl(facts: Iterable[Fact], path: Path) -> None:
    """One JSON object on each line."""
    with path.open("w", encoding="utf-8") as file:
        for fact in facts:
            # A lone surrogate cannot be written as UTF-8, so everything beyond ASCII is escaped.
            file.write(json.dumps(fact_to_dict(fact)) + "\n")


def read_jsonl(path: Path) -> list[Fact]:
    """The way back from `write_jsonl`."""
    with path.open(encoding="utf-8") as file:
        return [fact_from_dict(json.loads(line)) for line in file]


def write_parquet(facts: Iterable[Fact], path: Path) -> None:
    """One row for each fact; `places` is a list of structs."""
    import pyarrow as pa
    import pyarrow.parquet

    place = pa.struct(
        [
            ("project", pa.string()),
            ("path", pa.string()),
            ("line", pa.int32()),
            ("start", pa.int64()),
            ("end", pa.int64()),
        ]
    )
    texts = ("id", "project", "head", "relation", "tail", "head_name", "tail_name", "head_kind", "tail_kind")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in (*texts, "status", "mode")),
            ("probability", pa.float64()),
            ("model_probability", pa.float64()),
            ("rank", pa.int32()),
            ("places", pa.list_(place)),
        ]
    )
    pyarrow.parquet.write_table(pa.Table.from_pylist([fact_to_dict(fact) for fact in facts], schema=schema), path)


def read_parquet(path: Path) -> list[Fact]:
    """The way back from `write_parquet`."""
    import pyarrow.parquet

    return [fact_from_dict(row) for row in pyarrow.parquet.read_table(path).to_pylist()]


NODE_HEADER = ["name:ID", "kind", ":LABEL"]
EDGE_HEADER = [":START_ID", ":END_ID", ":TYPE", "id", "project", "status", "mode", "probability:double"]
EDGE_HEADER += ["model_probability:double", "rank:int", "places:string[]"]


def entity_kinds(facts: Iterable[Fact]) -> dict[str, str]:
    """Kind of every entity; what a definition says wins over what a mention suggests."""
    kinds: dict[str, str] = {}
    for fact in facts:
        kinds[fact.head] = fact.head_kind
    for fact in facts:
        if kinds.get(fact.tail, "name") == "name":
            kinds[fact.tail] = fact.tail_kind
    return kinds


def write_neo4j(facts: Iterable[Fact], directory: Path) -> None:
    """`nodes.csv` and `relationships.csv` with the headers that `neo4j-admin database import full` reads.

        neo4j-admin database import full --nodes=nodes.csv --relationships=relationships.csv --multiline-fields=true

    Relationship types are in capitals. A place is `path:line:start:end`; several are an array.
    """
    facts = list(facts)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "nodes.csv").open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(NODE_HEADER)
        for name, kind in sorted(entity_kinds(facts).items()):
            writer.writerow([name, kind, f"Entity;{kind.capitalize()}"])
    with (directory / "relationships.csv").open("w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(EDGE_HEADER)
        for fact in facts:
            said = "" if fact.model_probability is None else repr(fact.model_probability)
            rank = "" if fact.rank is None else fact.rank
            places = [f"{p.path}:{p.line}:{p.start}:{p.end}".replace(_LIST_MARK, ",") for p in fact.places]
            row = [fact.head, fact.tail, fact.relation.upper(), fact.id, fact.project, fact.status, fact.mode]
            writer.writerow([*row, repr(fact.probability), said, rank, _LIST_MARK.join(places)])


def read_neo4j(directory: Path) -> tuple[dict[str, str], list[dict]]:
    """Kinds of the nodes and the rows of the relationships, typed as the headers say.

    Raises:
        ValueError: a relationship names a node that is not there, which the import would refuse.
    """
    with (directory / "nodes.csv").open(encoding="utf-8", newline="") as file:
        kinds = {row["name:ID"]: row["kind"] for row in csv.DictReader(file)}
    with (directory / "relationships.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for end in (":START_ID", ":END_ID"):
            if row[end] not in kinds:
                raise ValueError(f"relationships.csv names {row[end]!r}, which is not in nodes.csv")
        row["probability:double"] = float(row["probability:double"])
        row["places:string[]"] = row["places:string[]"].split(_LIST_MARK)
    return kinds, rows


def _writers(max_page_edges: int) -> dict[str, tuple[str, Callable[[list[Fact], Path], None]]]:
    from .export_graph import write_graphml, write_jsonld, write_turtle
    from .page import write_page

    return {
        "jsonl": ("facts.jsonl", write_jsonl),
        "parquet": ("facts.parquet", write_parquet),
        "graphml": ("graph.graphml", write_graphml),
        "turtle": ("graph.ttl", write_turtle),
        "jsonld": ("graph.jsonld", write_jsonld),
        "neo4j": ("neo4j", write_neo4j),
        "html": ("graph.html", functools.partial(write_page, max_edges=max_page_edges)),
    }


FORMATS = ("jsonl", "parquet", "graphml", "turtle", "jsonld", "neo4j", "html")
_NEEDS = {"graphml": "networkx", "html": "networkx", "turtle": "rdflib", "jsonld": "rdflib"}


def check_formats(formats: Iterable[str]) -> None:
    """Refuse unknown formats and those whose library is missing, before any work is done.

    Raises:
        ValueError: names the format and what to install.
    """
    import importlib.util

    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--formats: unknown format {name!r}; formats are {', '.join(FORMATS)}")
        library = _NEEDS.get(name)
        if library is not None and importlib.util.find_spec(library) is None:
            raise ValueError(f"--formats {name} needs {library}: pip install 'graphmert[kg]'")


def write_formats(
    facts: list[Fact], directory: Path, formats: Iterable[str], max_page_edges: int = 2000
) -> list[Path]:
    """Write facts in some formats into a directory; the page shows at most `max_page_edges` of them.

    Returns:
        The files (a directory for neo4j).
    """
    directory.mkdir(parents=True, exist_ok=True)
    writers, written = _writers(max_page_edges), []
    for name in formats:
        file_name, write = writers[name]
        write(facts, directory / file_name)
        written.append(directory / file_name)
    return written
