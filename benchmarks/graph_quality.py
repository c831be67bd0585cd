"""Precision and recall of the Python code graph on a corpus, against oracles that share nothing with it.

    python -m graphmert.benchmarks.graph_quality data/heldout --record records/graph-quality

Three oracles: `ast` for what syntax settles, a structural interpreter of `ast` for data flow, and jedi for what names at
their uses refer to. The dataset is one that `python -m graphmert.chain_graphs.build` made; its `code` column is read.
"""

import argparse
import ast
import sys
import time
import warnings
from collections import Counter

from .record import corpus_of, text_table, write_record

SYNTAX = ("calls", "has_parameter", "inherits", "imports", "imported_from", "has_type", "returns", "declares")
SYNTAX += ("contains", "has_field")

NOTES = """
`calls` takes in `instantiates` in the first part, because syntax does not tell them apart. In the first part a fact is
right when relation, place of the head, text and place of the tail agree with `ast`; files that `ast` does not parse are
left out and counted. `flows_to` is held against a structural interpreter, at definitions and at the reads themselves.

In the jedi part, precision is over a seeded sample of what the graph says at uses, equally many of each relation;
"weighted" weighs each relation as often as it occurs. A fact is undecided where jedi finds no definition, and does not
count. Recall is over a seeded sample of reads: where jedi finds a definition in the project, what that definition
declares (its type, return type, bases, owner, module) should be said at the read. It is printed apart for definitions in
the same file and in other files of the project.
"""


def read_files(path: str) -> tuple[list[dict], dict]:
    """The Python files of all splits of a dataset, as (project, path, code), and its manifest."""
    from ..chain_graphs.manifest import load_chain_graphs

    splits, manifest, _ = load_chain_graphs(path)
    files = []
    for split in splits.values():
        columns = split.select_columns(["project", "path", "language", "code"])
        files.extend(row for row in columns if row["language"] == "python")
    return files, manifest


class Score:
    """Counts of one relation: what was found and right, found in all, and expected in all."""

    def __init__(self):
        self.right = self.found = self.expected = 0

    def add(self, found: set, expected: set) -> None:
        self.right += len(found & expected)
        self.found += len(found)
        self.expected += len(expected)

    def figures(self) -> dict:
        return {
            "found": self.found,
            "expected": self.expected,
            "precision": self.right / self.found if self.found else None,
            "recall": self.right / self.expected if self.expected else None,
        }


def compare_syntax_and_flow(files: list[dict], examples: int = 0) -> dict:
    """Holds every file against the `ast` oracles.

    Args:
        files: dicts with `path` and `code`.
        examples: number of disagreements to print for each relation.

    Returns:
        `relations`: figures by relation (`flows_to` twice, at definitions and at reads), `files`, `not_parsed`.
    """
    from ..code_graph import extract
    from .ast_oracle import SyntaxOracle, comparable
    from .flow_oracle import expected_flows

    scores = {name: Score() for name in (*SYNTAX, "flows_to", "flows_to (reads)")}
    shown: Counter[str] = Counter()
    not_parsed = Counter()
    for file in files:
        source = file["code"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(source)
            expected = SyntaxOracle(source).facts
            flows, reads = expected_flows(source)
        except (SyntaxError, RecursionError, ValueError) as error:
            not_parsed[type(error).__name__] += 1
            continue
        graph = extract(source)
        found = comparable(source, graph)
        pairs = [(name, _of(found, name), _of(expected, name)) for name in SYNTAX]
        for name, is_use, wanted in (("flows_to", False, flows), ("flows_to (reads)", True, reads)):
            stated = {
                (t.head_start, t.tail_start) for t in graph.triples if t.relation == "flows_to" and t.is_use == is_use
            }
            pairs.append((name, stated, wanted))
        for name, stated, wanted in pairs:
            scores[name].add(stated, wanted)
            for kind, facts in (("too many", stated - wanted), ("missing", wanted - stated)):
                for fact in sorted(facts, key=str):
                    if shown[name] < examples:
                        shown[name] += 1
                        print(f"{name} {kind}: {file['project']} {file['path']} {fact}", file=sys.stderr)
    return {
        "files": len(files),
        "not_parsed": dict(not_parsed),
        "relations": {name: score.figures() for name, score in scores.items()},
    }


def _of(facts: set, relation: str) -> set:
    return {fact for fact in facts if fact[0] == relation}


def main(argv: list[str] | None = None) -> int:
    """Prints the tables and, if asked, writes the record."""
    parser = argparse.ArgumentParser(prog="python -m graphmert.benchmarks.graph_quality", description=__doc__)
    parser.add_argument("dataset", help="a dataset of chain graphs, such as the standard held-out corpus")
    parser.add_argument("--record", metavar="DIR", help="write the figures there")
    parser.add_argument(
        "--sample", type=int, default=250, help="facts of each relation for jedi, default 250; 0: none"
    )
    parser.add_argument("--reads", type=int, default=1000, help="reads for jedi's recall, default 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--examples", type=int, default=0, help="disagreements to print for each relation")
    parser.add_argument("--skip-syntax", action="store_true", help="only the jedi part")
    parser.add_argument(
        "--across-files",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="resolve imports across the files of a project in the jedi part, default yes",
    )
    arguments = parser.parse_args(argv)
    files, manifest = read_files(arguments.dataset)
    figures: dict = {"corpus": corpus_of(manifest), "seed": arguments.seed}
    parts = []
    if not arguments.skip_syntax:
        begin = time.perf_counter()
        figures["syntax"] = compare_syntax_and_flow(files, arguments.examples)
        figures["syntax"]["time_s"] = round(time.perf_counter() - begin, 1)
        parts.append(syntax_table(figures["syntax"]))
        print(parts[-1], flush=True)
    if arguments.sample:
        from .jedi_oracle import compare_references, reference_table

        figures["references"] = compare_references(
            files, arguments.sample, arguments.reads, arguments.seed, arguments.examples, arguments.across_files
        )
        parts.append(reference_table(figures["references"]))
        print(parts[-1], flush=True)
    if arguments.record:
        command = f"python -m graphmert.benchmarks.graph_quality {arguments.dataset} --record {arguments.record}"
        write_record(
            arguments.record, "Precision and recall of the code graph", command, figures, "\n\n".join(parts), NOTES
        )
    return 0


def syntax_table(figures: dict) -> str:
    """The first table in plain text."""
    rows = [[name, s["found"], s["expected"], s["precision"], s["recall"]] for name, s in figures["relations"].items()]
    left_out = ", ".join(f"{n} {reason}" for reason, n in figures["not_parsed"].items()) or "none"
    title = f"against ast: {figures['files']} files, not parsed by ast: {left_out}"
    return title + "\n" + text_table(["relation", "found", "expected", "precision", "recall"], rows)


if __name__ == "__main__":
    sys.exit(main())
