"""Precision of the facts that a checkpoint fills in, on packages that it was not trained on, beside a frequency table.

    python -m graphmert.benchmarks.kg_precision --model runs/mine --calibrate data/training --source pypi:rich==15.0.0 \
        --record records/kg-precision

Annotations are removed from the text and from the graph; the removed ones are the truth. The table knows the training split
only: the type that each parameter name (or function name) is most often annotated with there, with its relative frequency as
confidence, backing off to the most frequent type of all. Callees are hidden from the graph and stay in the text; there jedi
says what a call refers to.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..code_graph.annotations import RELATION_OF, Slot, find_slots
from ..code_graph.type_names import normalise_type
from ..kg_extraction.calibration import expected_calibration_error
from .record import text_table, write_record

THRESHOLDS = (0.5, 0.7, 0.9)
RELATIONS = ("has_type", "returns")
CALLEES = ("calls", "instantiates")

NOTES = """
A prediction is the best answer to one question; it counts where its probability reaches the threshold. Precision (`p`) is
the share of these that are right: the same type up to spelling (`type_names.normalise_type`); `n` is their number. `ece` is
the expected calibration error over all questions (10 bins, best answer). `in cand.` is the share of hidden types that are
among the answers; the frequency table is not so bound.

Ways to answer: `all`, what `graphmert-extract` does (docs/KNOWLEDGE_GRAPH.md): the model, the table of names and the signs
of use; `model`, `table`, `model and table`, `table and signs`: the same answers and fitting with these alone, so that
what the model adds is the difference of `all` and `table and signs`; `frequency table`, the type that the training split
gives the name most often, at its relative frequency. `at the first one's n` are the most confident predictions of a way, as
many as `all` makes at each threshold. Of answers that are equally confident the ones that stand first count.

For `calls` and `instantiates` a fact at a time is hidden from the graph, its call stays in the text, and the other tails of
the head are no answers; right is what the code graph states. Half of these questions hide nothing, there every answer is
wrong. The frequency table knows the callees of the project's other heads. `confirmed by jedi` is the share of the
predictions from 0.5 on, of those jedi could resolve, whose callee jedi finds in the caller's body.
"""


class FrequencyTable:
    """Which type a name is annotated with most often.

    Args:
        files: (project, path, language, code) to count in.
    """

    def __init__(self, files: Iterable[tuple[str, str, str, str]]):
        self._by_name: dict[tuple[str, str], Counter] = defaultdict(Counter)
        self._by_relation: dict[str, Counter] = defaultdict(Counter)
        for _, _, language, code in files:
            if language != "python":
                continue
            for slot in find_slots(code):
                if slot.annotation is not None and not slot.is_instance:
                    relation = RELATION_OF[slot.kind]
                    self._by_name[relation, slot.name][slot.annotation] += 1
                    self._by_relation[relation][slot.annotation] += 1

    def predict(self, relation: str, name: str) -> tuple[str, float]:
        """The type and its relative frequency; ("", 0) where the corpus has no annotation at all."""
        counts = self._by_name.get((relation, name)) or self._by_relation[relation]
        if not counts:
            return "", 0.0
        text, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        return text, count / counts.total()


def predictions_at(confidence: np.ndarray, correct: np.ndarray) -> dict:
    """Counts and precision at each threshold, calibration error, and accuracy over all."""
    result = {
        "questions": len(confidence),
        "accuracy": float(np.mean(correct)) if len(correct) else None,
        "ece": expected_calibration_error(confidence, correct),
    }
    for threshold in THRESHOLDS:
        kept = confidence >= threshold
        result[f"predicted_at_{threshold}"] = int(kept.sum())
        result[f"precision_at_{threshold}"] = float(correct[kept].mean()) if kept.any() else None
    return result


def at_same_coverage(counts: Sequence[int], confidence: np.ndarray, correct: np.ndarray) -> dict:
    """Precision of the most confident predictions, as many as `counts` says for each threshold."""
    order = np.argsort(-confidence, kind="stable")
    figures = {}
    for threshold, count in zip(THRESHOLDS, counts, strict=True):
        figures[f"predicted_at_{threshold}"] = int(count)
        figures[f"precision_at_{threshold}"] = float(correct[order[:count]].mean()) if count else None
    return figures


def figures_of(answers: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict]:
    """Figures of each way to answer, and of each baseline at the coverage of the first.

    Args:
        answers: by way, confidence in the best answer of each question and whether it is right.
    """
    figures = {way: predictions_at(*found) for way, found in answers.items()}
    first = next(iter(answers))
    counts = [figures[first][f"predicted_at_{threshold}"] for threshold in THRESHOLDS]
    others = {
        f"{way}, at the first one's n": at_same_coverage(counts, *answers[way]) for way in answers if way != first
    }
    return figures | others


def hidden_from_graph(extractor, hidden: Sequence[Sequence[Slot]]) -> tuple[list[Sequence[Slot]], int]:
    """The hidden annotations without those of files whose graph still states a type, and the number of such files."""
    left = [
        file.language == "python" and any(triple.relation in RELATIONS for triple in file.graph.triples)
        for file in extractor.corpus.files
    ]
    return [() if still else slots for slots, still in zip(hidden, left, strict=True)], sum(left)


def measure_types(extractor, hidden: list[list[Slot]], table: FrequencyTable, calibration, limit: int) -> dict:
    """Figures of the model and of the tables for hidden annotations.

    Args:
        extractor: over files without annotations.
        hidden: what was removed from each.
        table: the baseline.
        calibration: of the checkpoint.
        limit: most questions of a relation, drawn at random.
    """
    from ..kg_extraction.calibration import PARTS, WITHOUT_SIGNS
    from ..kg_extraction.decoding import length_prior
    from ..kg_extraction.held_out import type_heads

    hidden, num_left = hidden_from_graph(extractor, hidden)
    figures = {"files_left_out": num_left}
    rng = np.random.default_rng(0)
    for relation in RELATIONS:
        heads = type_heads(extractor, hidden, relation)
        if len(heads) > limit:
            heads = [heads[k] for k in np.sort(rng.choice(len(heads), limit, replace=False))]
        if not heads:
            continue
        prior = length_prior(calibration.length_counts.get(f"tail:{relation}"), extractor.corpus.leaves_per_root)
        gold = {(number, head.start): normalise_type(text) for number, head, text in heads}
        answers = extractor.ask_tails(relation, [(number, head) for number, head, _ in heads], prior)
        ways = {"all": calibration.scaling("tail", relation)}
        parts = PARTS if calibration.signs is not None else WITHOUT_SIGNS
        ways |= {part: calibration.scaling("tail", relation, part) for part in parts}
        rows: dict[str, list] = {way: [] for way in (*ways, "frequency table")}
        ranks = []
        for answer in answers:
            truth, known = gold[answer.file, answer.head.start], extractor.type_prior(relation, answer)
            for way, scaling in ways.items():
                probabilities = scaling.probabilities(answer.scores, known)
                best = int(probabilities.argmax())
                rows[way].append((probabilities[best], answer.keys[best] == truth))
                if way == "all":
                    place = answer.keys.index(truth) if truth in answer.keys else -1
                    ranks.append(1 + int((probabilities > probabilities[place]).sum()) if place >= 0 else 0)
            guess, share = table.predict(relation, answer.head.name)
            rows["frequency table"].append((share, normalise_type(guess) == truth))
        found = {way: tuple(map(np.array, zip(*values, strict=True))) for way, values in rows.items()}
        figures[relation] = figures_of(found)
        ranks = np.array(ranks)
        figures[relation]["all"] |= {
            "in_candidates": float((ranks > 0).mean()),
            "in_top_5": float(((ranks > 0) & (ranks <= 5)).mean()),
            "mrr": float(np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0).mean()),
            "candidates": float(np.mean([len(answer.keys) for answer in answers])),
            "without_window": len(heads) - len(answers),
        }
    return figures


def measure_callees(extractor, calibration, limit: int) -> tuple[dict, list]:
    """Figures for hidden callees, and the predictions from 0.5 on as (file, head, callee)."""
    from ..kg_extraction.calibration import top_answers
    from ..kg_extraction.held_out import tail_questions

    figures, predicted = {}, []
    for relation in CALLEES:
        answers, gold = tail_questions(extractor, relation, limit, calibration.length_counts.get(f"tail:{relation}"))
        if not answers:
            continue
        confidence, correct = top_answers([example for example, _ in answers], calibration.scaling("tail", relation))
        stated = [
            (number, triple.head_start, triple.tail)
            for number, file in enumerate(extractor.corpus.files)
            for triple in file.graph.triples
            if triple.relation == relation and not triple.is_use
        ]
        shares, hits = callee_table(stated, [(answer.file, answer.head.start) for _, answer in answers], gold)
        figures[relation] = figures_of({"model": (confidence, correct), "frequency table": (shares, hits)})
        for (example, answer), sure in zip(answers, confidence, strict=True):
            if sure >= THRESHOLDS[0]:
                predicted.append((answer.file, answer.head, answer.texts[int(np.argmax(example.scores))]))
    return figures, predicted


def callee_table(
    stated: Sequence[tuple[int, int, str]], heads: Sequence[tuple[int, int]], gold: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """What counting alone answers: the callee that most of the other heads have and that this head is not known to have.

    Args:
        stated: (file, start of the head, tail) of each fact.
        heads: (file, start) of each question.
        gold: the right tail of each, "" where nothing is hidden.

    Returns:
        Confidence, the share of the other heads with that callee, and whether it is right.
    """
    of_head: dict[tuple[int, int], set[str]] = defaultdict(set)
    for number, start, tail in stated:
        of_head[number, start].add(tail)
    counts = Counter(tail for tails in of_head.values() for tail in tails)
    ranked = sorted(counts, key=lambda tail: (-counts[tail], tail))
    shares, hits = [], []
    for head, tail in zip(heads, gold, strict=True):
        own = of_head[head]
        # The hidden one is not known; it counts for this head's own fact no more than for the others.
        known = own - {tail}
        best = next((name for name in ranked if name not in known and counts[name] > (name in own)), "")
        shares.append((counts[best] - (best in own)) / max(1, len(of_head) - 1))
        hits.append(bool(tail) and best == tail)
    return np.array(shares), np.array(hits)


def confirm_with_jedi(extractor, predicted: list, limit: int) -> dict:
    """How many predicted callees jedi finds among what the caller's body refers to.

    Args:
        extractor: over the unchanged files.
        predicted: (number of the file, head, callee).
        limit: at most so many are looked up.

    Returns:
        `looked_up`, `resolved` (jedi names at least one function or class called in the body), `confirmed`.
    """
    import ast

    import jedi

    counts = Counter(looked_up=0, resolved=0, confirmed=0)
    with tempfile.TemporaryDirectory() as directory:
        for file in extractor.corpus.files:
            path = Path(directory, file.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(file.code, encoding="utf-8")
        project = jedi.Project(directory)
        for number, head, callee in predicted[:limit]:
            file = extractor.corpus.files[number]
            try:
                tree = ast.parse(file.code)
            except (SyntaxError, ValueError):
                continue
            line = file.line_of(head.start)
            functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            body = next((n for n in functions if n.name == head.name and n.lineno <= line <= n.body[0].lineno), None)
            if body is None:
                continue
            counts["looked_up"] += 1
            script = jedi.Script(file.code, path=str(Path(directory, file.path)), project=project)
            names = set()
            for call in ast.walk(body):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute):
                    func = call.func
                    column = (
                        len(file.code.splitlines()[func.end_lineno - 1].encode()[: func.end_col_offset].decode()) - 1
                    )
                    try:
                        found = script.goto(func.end_lineno, column, follow_imports=True)
                    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, NotImplementedError):
                        # jedi itself fails on some code; such a call is not resolved.
                        continue
                    names |= {definition.name for definition in found}
            counts["resolved"] += bool(names)
            counts["confirmed"] += callee.rpartition(".")[2] in names
    return dict(counts)


def calibration_for(arguments: argparse.Namespace, model, tokenizer, splits, relations: tuple[str, ...]):
    """The calibration that the arguments name, or one that is fitted on facts hidden in the validation split."""
    from ..kg_extraction.calibration import Calibration
    from ..kg_extraction.held_out import code_of, fit_calibration
    from ..kg_extraction.sign_classifier import learn_signs
    from ..kg_extraction.type_table import TypeTable

    if arguments.calibration:
        return Calibration.load(Path(arguments.calibration))
    declared = code_of(splits["train"])
    calibration = fit_calibration(
        model,
        tokenizer,
        code_of(splits["validation"]),
        "validation split of the training corpus",
        ("tail",),
        relations,
        max_facts=arguments.calibration_facts,
        progress=True,
        types=TypeTable.of(declared),
        signs=learn_signs(declared, progress=True) if arguments.type_signs else None,
    )
    if arguments.write_calibration:
        calibration.save(Path(arguments.write_calibration))
    return calibration


def run(arguments: argparse.Namespace) -> dict:
    """Everything that is measured."""
    from ..chain_graphs.manifest import load_chain_graphs
    from ..chain_graphs.sources import ReadOptions
    from ..kg_extraction.extraction import Extractor
    from ..kg_extraction.held_out import choose_files, code_of, without_annotations
    from ..kg_extraction.project import read_sources
    from ..kg_extraction.scoring import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model)
    splits, manifest, _ = load_chain_graphs(arguments.calibrate)
    calibration = calibration_for(arguments, model, tokenizer, splits, (*RELATIONS, *CALLEES))
    table = FrequencyTable(code_of(splits["train"]))
    trained = {project for split in manifest["splits"].values() for project in split["projects"]}
    figures = {"sources": {}, "calibration": calibration.figures}
    for spec in arguments.source:
        begin = time.perf_counter()
        read, _ = read_sources([spec], ReadOptions(cache_dir=arguments.cache_dir))
        files = [(file.project, file.path, file.language, file.text) for file in read]
        both = sorted({file[0] for file in files} & trained)
        if both:
            raise ValueError(
                f"--source {spec}: {', '.join(both)} stands in the training corpus; give a held-out package"
            )
        files = choose_files(files, arguments.max_chars)
        stripped, hidden = without_annotations(files)
        found = measure_types(
            Extractor(model, tokenizer, stripped, progress=True, types=calibration.types, signs=calibration.signs),
            hidden,
            table,
            calibration,
            arguments.max_questions,
        )
        plain = Extractor(model, tokenizer, files, progress=True)
        callees, predicted = measure_callees(plain, calibration, arguments.max_questions // 2)
        figures["sources"][spec] = found | callees | {"jedi": confirm_with_jedi(plain, predicted, arguments.max_jedi)}
        figures["sources"][spec] |= {"files": len(files), "seconds": round(time.perf_counter() - begin, 1)}
    return figures


def table_of(figures: dict) -> str:
    """The figures as text."""
    rows = []
    for spec, found in figures["sources"].items():
        for relation in (*RELATIONS, *CALLEES):
            for who, values in found.get(relation, {}).items():
                row = [f"{spec} {relation} {who}"]
                row += [
                    values.get("questions"),
                    values.get("accuracy"),
                    values.get("in_candidates"),
                    values.get("ece"),
                ]
                for threshold in THRESHOLDS:
                    row += [values.get(f"precision_at_{threshold}"), values.get(f"predicted_at_{threshold}")]
                rows.append(row)
    header = ["source, relation", "questions", "accuracy", "in cand.", "ece"]
    for threshold in THRESHOLDS:
        header += [f"p@{threshold}", "n"]
    lines = [text_table(header, rows), ""]
    for spec, found in figures["sources"].items():
        jedi = found.get("jedi", {})
        lines.append(
            f"{spec}: jedi confirms {jedi.get('confirmed', 0)} of {jedi.get('resolved', 0)} predicted callees "
            f"({jedi.get('looked_up', 0)} looked up)"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.kg_precision", description=__doc__.split("\n")[0]
    )
    add_common(parser)
    parser.add_argument("--max-questions", type=int, default=1500, metavar="N", help="of each relation (%(default)s)")
    parser.add_argument("--max-jedi", type=int, default=100, metavar="N", help="callees looked up (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        figures = run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    table = table_of(figures)
    print(table)
    if arguments.record:
        command = "python -m graphmert.benchmarks.kg_precision " + " ".join(argv if argv is not None else sys.argv[1:])
        write_record(arguments.record, "Precision of predicted facts", command, figures, table, NOTES)
    return 0


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options that this benchmark shares with `type_proposals`."""
    from ..chain_graphs.sources import DEFAULT_CACHE_DIR

    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="checkpoint trained with --mnm_target tail or both")
    add("--calibrate", required=True, metavar="DIR", help="its training corpus: the validation split calibrates, the "
        "training split makes the frequency table")  # fmt: skip
    add("--calibration", metavar="FILE", help="use this calibration.json")
    add(
        "--write-calibration",
        metavar="FILE",
        help="keep the fitted calibration here, for --calibration of a later call",
    )
    add(
        "--type-signs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="learn signs of use from the training split (default: yes)",
    )
    add("--calibration-facts", type=int, default=600, metavar="N", help="hidden facts of each relation (%(default)s)")
    add("--source", action="append", required=True, metavar="SPEC", help="held-out package; several may be given")
    add("--max-chars", type=int, default=1_000_000, metavar="N", help="text of each source (%(default)s)")
    add("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR, help="where downloaded wheels are kept")
    add("--record", metavar="DIR", help="write a record here")


if __name__ == "__main__":
    sys.exit(main())
