"""How many of the proposed annotations a type checker accepts, beside those of a frequency table at the same coverage.

    python -m graphmert.benchmarks.type_proposals --model runs/mine --calibrate data/training --source pypi:httpx==0.28.1 \
        --record records/type-proposals

The package loses its annotations; pyrefly checks that text, and again with proposals put in. A proposal is accepted where it
adds no error to the package, together with all that were accepted before it (the most probable first). An annotation that
says less than it could (`object`, `Any`) is accepted easily, so the share that equals the removed one stands beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm

from ..code_graph.annotations import RELATION_OF
from ..code_graph.type_names import normalise_type
from ..kg_extraction.type_proposals import Proposal, annotate_all
from .kg_precision import RELATIONS, FrequencyTable, add_common, calibration_for
from .record import text_table, write_record

NOTES = """
`slots` are the annotations that were removed, `proposed` those with an answer whose probability reaches the threshold,
`written` those whose names can be resolved in the file, at most --max-proposals of the most probable. `errors` are those of
the checker on the package without annotations, and with all written proposals at once. `accepted` is found by halving: a
group that adds no error is accepted whole, others are split. The table gets as many proposals for the same slots, its most
confident ones whose names can be resolved. `says little` is the share of the accepted that are `Any` or `object`.
"""
CHECKER = "pyrefly"


class Checker:
    """pyrefly over one package in a directory of its own.

    Args:
        files: path and text of each file.
        directory: an empty one.
    """

    def __init__(self, files: dict[str, str], directory: Path):
        self.directory = directory
        self.num_runs = 0
        for path, text in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text, encoding="utf-8")
        (directory / "pyrefly.toml").write_text(
            'search-path = ["."]\nproject-includes = ["**/*.py"]\n', encoding="utf-8"
        )

    def errors(self, changed: dict[str, str]) -> Counter:
        """Errors with some files changed: (path, kind, message) -> how often. Lines are left out: insertions move them."""
        original = {path: (self.directory / path).read_text(encoding="utf-8") for path in changed}
        for path, text in changed.items():
            (self.directory / path).write_text(text, encoding="utf-8")
        command = [Path(sys.executable).with_name(CHECKER), "check", "--output-format", "json", "--threads", "1"]
        done = subprocess.run(
            [*command, "--python-interpreter-path", sys.executable],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        self.num_runs += 1
        for path, text in original.items():
            (self.directory / path).write_text(text, encoding="utf-8")
        if done.returncode not in (0, 1) or not done.stdout.startswith("{"):
            raise ValueError(f"{CHECKER} failed with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout)["errors"]
        return Counter((error["path"], error["name"], error["concise_description"]) for error in found)


@dataclass
class Outcome:
    """What the checker said of some proposals."""

    written: list[Proposal]
    accepted: list[Proposal] = field(default_factory=list)
    errors_before: int = 0
    errors_after: int = 0


def judge(extractor, proposals: Sequence[Proposal], checker: Checker) -> Outcome:
    """Which proposals the checker accepts.

    Args:
        extractor: over the files without annotations.
        proposals: the most probable first; all of them can be resolved.
        checker: over the same files.
    """
    before = checker.errors({})
    outcome = Outcome(list(proposals), errors_before=before.total())

    def errors_with(chosen: list[Proposal]) -> Counter:
        annotated = annotate_all(chosen, extractor)
        return checker.errors({extractor.corpus.files[k].path: result.text for k, result in annotated.items()})

    if proposals:
        outcome.errors_after = errors_with(list(proposals)).total()
    allowed = before
    groups = [list(proposals)] if proposals else []
    bar = tqdm(total=len(proposals), desc="checking proposals", disable=None, leave=False)
    while groups:
        group = groups.pop()
        found = errors_with([*outcome.accepted, *group])
        if not found - allowed:
            outcome.accepted.extend(group)
            # A type may also mend an error; what is gone must not come back unseen.
            allowed = found
            bar.update(len(group))
        elif len(group) == 1:
            bar.update(1)
        else:
            half = len(group) // 2
            groups += [group[half:], group[:half]]
    bar.close()
    return outcome


def resolvable(extractor, proposals: Sequence[Proposal], limit: int) -> list[Proposal]:
    """The first proposals whose names their files can name, at most `limit`."""
    annotated = annotate_all(proposals, extractor)
    kept = {(p.file, p.slot.start, p.slot.kind) for result in annotated.values() for p in result.proposals}
    return [p for p in proposals if (p.file, p.slot.start, p.slot.kind) in kept][:limit]


def figures_of(outcome: Outcome, gold: dict[tuple, str]) -> dict:
    """Counts and shares of an outcome."""
    written, accepted = outcome.written, outcome.accepted
    right = [p for p in written if normalise_type(p.type) == gold.get((p.file, p.slot.start, p.slot.kind))]
    added = max(0, outcome.errors_after - outcome.errors_before)
    little = [p for p in accepted if p.type in ("Any", "object")]
    return {
        "written": len(written),
        "accepted": len(accepted),
        "acceptance": len(accepted) / len(written) if written else None,
        "errors_before": outcome.errors_before,
        "errors_after": outcome.errors_after,
        "errors_per_proposal": added / len(written) if written else None,
        "equal_to_removed": len(right) / len(written) if written else None,
        "says_little": len(little) / len(accepted) if accepted else None,
        "mean_probability": sum(p.probability for p in written) / len(written) if written else None,
    }


def table_proposals(extractor, hidden, table: FrequencyTable) -> list[Proposal]:
    """What the frequency table proposes for the same slots, the most confident first."""
    found = []
    for number, slots in enumerate(hidden):
        for slot in slots:
            text, share = table.predict(RELATION_OF[slot.kind], slot.name)
            if text:
                found.append(Proposal(number, replace(slot, annotation=None), text, share))
    return sorted(found, key=lambda p: (-p.probability, p.file, p.slot.start))


def run(arguments: argparse.Namespace) -> dict:
    """Everything that is measured."""
    from ..chain_graphs.manifest import load_chain_graphs
    from ..chain_graphs.sources import ReadOptions
    from ..kg_extraction.extraction import Extractor, Options
    from ..kg_extraction.held_out import code_of, without_annotations
    from ..kg_extraction.project import read_sources
    from ..kg_extraction.scoring import load_checkpoint
    from ..kg_extraction.type_proposals import proposals_of

    model, tokenizer = load_checkpoint(arguments.model)
    splits, _, _ = load_chain_graphs(arguments.calibrate)
    calibration = calibration_for(arguments, model, tokenizer, splits, RELATIONS)
    table = FrequencyTable(code_of(splits["train"]))
    figures = {"checker": CHECKER, "sources": {}, "calibration": calibration.figures}
    options = Options(threshold=arguments.threshold, top_k=1)
    for spec in arguments.source:
        begin = time.perf_counter()
        read, _ = read_sources([spec], ReadOptions(cache_dir=arguments.cache_dir))
        files, hidden = without_annotations((file.project, file.path, file.language, file.text) for file in read)
        extractor = Extractor(model, tokenizer, files, progress=True, types=calibration.types, signs=calibration.signs)
        gold = {
            (number, slot.start, slot.kind): normalise_type(slot.annotation)
            for number, slots in enumerate(hidden)
            for slot in slots
        }
        facts = extractor.extract(RELATIONS, ("tail",), calibration, options)
        # Both propose for the slots whose annotation was removed, and for no other.
        found = [p for p in proposals_of(facts, extractor)[0] if (p.file, p.slot.start, p.slot.kind) in gold]
        proposals = resolvable(extractor, found, arguments.max_proposals)
        others = resolvable(extractor, table_proposals(extractor, hidden, table), len(proposals))
        outcome = {"slots": len(gold), "proposed": len(found)}
        for who, chosen in (("model", proposals), ("table", others)):
            with tempfile.TemporaryDirectory() as directory:
                checker = Checker({file[1]: file[3] for file in files}, Path(directory))
                outcome[who] = figures_of(judge(extractor, chosen, checker), gold) | {"checks": checker.num_runs}
        figures["sources"][spec] = outcome | {"seconds": round(time.perf_counter() - begin, 1)}
    return figures


def table_of(figures: dict) -> str:
    """The figures as text."""
    names = ("written", "accepted", "acceptance", "errors_before", "errors_after", "errors_per_proposal")
    names += ("equal_to_removed", "says_little", "mean_probability")
    rows = [
        [
            f"{spec} {who}",
            found["slots"],
            found["proposed"] if who == "model" else None,
            *(found[who][n] for n in names),
        ]
        for spec, found in figures["sources"].items()
        for who in ("model", "table")
    ]
    return text_table(["source", "slots", "proposed", *(name.replace("_", " ") for name in names)], rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.type_proposals", description=__doc__.split("\n")[0]
    )
    add_common(parser)
    parser.add_argument("--threshold", type=float, default=0.5, metavar="P", help="least probability (%(default)s)")
    parser.add_argument(
        "--max-proposals", type=int, default=200, metavar="N", help="judged for each package (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    if not Path(sys.executable).with_name(CHECKER).exists():
        print(f"error: {CHECKER} is not installed beside this Python: pip install {CHECKER}", file=sys.stderr)
        return 2
    try:
        figures = run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    table = table_of(figures)
    print(table)
    if arguments.record:
        command = "python -m graphmert.benchmarks.type_proposals " + " ".join(
            argv if argv is not None else sys.argv[1:]
        )
        write_record(arguments.record, "Type proposals before a type checker", command, figures, table, NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
