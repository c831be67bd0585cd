"""What the windows of a corpus hold, and what lookup tables make of its relations on a held-out corpus.

python -m graphmert.benchmarks.corpus_statistics data/training --heldout data/heldout --record records/corpus-statistics
"""

import argparse
import sys
import time

import numpy as np

from .record import corpus_of, text_table, write_record

# What issue and design ask of the training corpus: (figure, smallest or largest share allowed).
BOUNDS = {
    "heads_linked": (">=", 0.99),
    "tails_whole": (">=", 0.96),
    "facts_dropped_for_room": ("<=", 0.005),
    "windows_without_fact": ("<=", 0.24),
}

NOTES = """
Windows of at most 126 tokens between `<s>` and `</s>`, seven leaf slots for each root; all splits of the corpus together.

- heads linked: triples whose head has at least one token to hang on.
- tails whole: placed facts whose leaf is not cut for want of slots.
- facts dropped for room: of the facts that have their place in a window, those for which no slot was left. Facts whose
  own place is in another window ("extras") only take room that is left, and do not count.
- windows without fact: no leaf at all.
- visible: facts whose leaf's text also stands among the window's tokens, so that a model could copy it.
- overlap: distinct (head, relation, tail) texts of the held-out corpus that also stand in the training corpus.

The lookups count on windows of the training corpus, are scored on the relations that the collator masks in windows of the
held-out corpus, and know the direction of the anchor; see `chain_graphs/baselines.py`.
"""


def open_corpus(path: str):
    """All splits of a dataset as one, its manifest and its tokenizer."""
    from datasets import concatenate_datasets

    from ..chain_graphs.manifest import load_chain_graphs

    splits, manifest, tokenizer = load_chain_graphs(path)
    return concatenate_datasets(list(splits.values())), manifest, tokenizer


def window_figures(windows, linking: dict) -> dict:
    """Shares and distributions from `WindowDataset.statistics` and the manifest's linking counts.

    Args:
        windows: a `WindowDataset`.
        linking: counts with `heads` and `heads_linked`.

    Returns:
        The counts, the shares of `BOUNDS`, and quantiles of nodes per window.
    """
    counts = windows.statistics()
    lengths = np.asarray(windows.lengths)
    quantiles = {f"p{q}": int(np.percentile(lengths, q)) for q in (5, 25, 50, 75, 95, 100)}
    used = np.array(counts["leaves_used"])
    return counts | {
        "shares": {
            "heads_linked": linking["heads_linked"] / linking["heads"],
            "tails_whole": 1 - counts["facts_cut"] / counts["facts_placed"],
            "facts_dropped_for_room": counts["facts_dropped_for_room"] / counts["facts"],
            "windows_without_fact": counts["windows_without_fact"] / counts["windows"],
            "roots_with_leaves": float(used.sum() / counts["roots"]),
            "leaf_visible": float(
                sum(r["facts"] * r["visible"] for r in counts["relations"].values() if r["facts"])
                / counts["facts_placed"]
            ),
        },
        "nodes": quantiles | {"mean": counts["nodes_per_window"]},
    }


def window_table(figures: dict, title: str) -> str:
    """The figures of one corpus in plain text."""
    shares = []
    for name, share in figures["shares"].items():
        sign, bound = BOUNDS.get(name, ("", None))
        missed = bound is not None and not (share >= bound if sign == ">=" else share <= bound)
        shares.append([name.replace("_", " "), share, f"{sign} {bound}" if bound else "", "missed" if missed else ""])
    total = sum(figures["leaves_used"])
    leaves = [[str(n), count, count / total] for n, count in enumerate(figures["leaves_used"], 1)]
    relations = [[name, row["facts"], row["visible"]] for name, row in figures["relations"].items()]
    nodes = ", ".join(f"{name} {value:,.0f}" for name, value in figures["nodes"].items())
    return "\n\n".join(
        [
            f"{title}: {figures['windows']:,} windows, {figures['roots']:,} roots, {figures['leaves']:,} leaf tokens\n"
            f"nodes per window: {nodes}; canonical slots used: {figures['canonical_slots_used']:.4f}",
            text_table(["share", "value", "asked", ""], shares),
            text_table(["leaves of a root", "roots", "share of roots with any"], leaves),
            text_table(["relation", "facts placed", "leaf visible in window"], relations),
        ]
    )


def triples_of(dataset) -> dict[int, set[int]]:
    """Hashes of the distinct (head, tail) token texts of each relation, from the forward anchors."""
    names = (
        "input_ids",
        "anchor_start",
        "anchor_length",
        "anchor_relation",
        "anchor_reversed",
        "leaf_offsets",
        "leaf_ids",
    )
    found: dict[int, set[int]] = {}
    for row in dataset.select_columns(list(names)).with_format("numpy"):
        tokens, leaves, bounds = row["input_ids"].tolist(), row["leaf_ids"].tolist(), row["leaf_offsets"].tolist()
        anchors = np.stack([row[name] for name in names[1:5]], axis=1).tolist()
        for number, (start, length, relation, is_reversed) in enumerate(anchors):
            if not is_reversed:
                head, leaf = tokens[start : start + length], leaves[bounds[number] : bounds[number + 1]]
                found.setdefault(relation, set()).add(hash((tuple(head), tuple(leaf))))
    return found


def overlap_figures(train, heldout) -> dict[str, dict]:
    """Distinct held-out triples that also stand in the training corpus, by relation."""
    from ..code_graph import RELATION_NAMES

    seen, asked = triples_of(train), triples_of(heldout)
    figures = {}
    for relation, name in enumerate(RELATION_NAMES):
        mine = asked.get(relation, set())
        shared = len(mine & seen.get(relation, set()))
        figures[name] = {"distinct": len(mine), "overlap": shared / len(mine) if mine else None}
    return figures


def lookup_figures(train_windows, heldout_windows, tokenizer) -> dict[str, dict]:
    """Scores of the relation lookups on the held-out windows."""
    from ..chain_graphs.baselines import relation_baselines
    from ..code_graph import RELATION_NAMES
    from ..collator import GraphMertCollator
    from .training_speed import SETUP_SHEET_FACTS

    collator = GraphMertCollator(
        tokenizer,
        **SETUP_SHEET_FACTS,
        num_roots=heldout_windows.num_roots,
        leaves_per_root=heldout_windows.leaves_per_root,
        num_relations=len(RELATION_NAMES),
        diagnostics=True,
    )
    return relation_baselines(train_windows, heldout_windows, collator)


def main(argv: list[str] | None = None) -> int:
    """Prints the tables and, if asked, writes the record."""
    from ..chain_graphs.windows import WindowDataset

    parser = argparse.ArgumentParser(prog="python -m graphmert.benchmarks.corpus_statistics", description=__doc__)
    parser.add_argument("dataset", help="the training corpus, a dataset of chain graphs")
    parser.add_argument("--heldout", metavar="DIR", help="a dataset built with the same tokenizer")
    parser.add_argument("--num-roots", type=int, default=128, help="with <s> and </s>, default 128")
    parser.add_argument("--leaves-per-root", type=int, default=7, help="default 7")
    parser.add_argument("--lookup-windows", type=int, default=20_000, help="windows of each corpus for the lookups")
    parser.add_argument("--record", metavar="DIR", help="write the figures there")
    arguments = parser.parse_args(argv)
    sizes = (arguments.num_roots, arguments.leaves_per_root)

    begin = time.perf_counter()
    train, manifest, tokenizer = open_corpus(arguments.dataset)
    figures: dict = {"corpus": corpus_of(manifest), "tokenizer": manifest["tokenizer"]["sha256"]}
    windows = WindowDataset(train, tokenizer, *sizes)
    figures["training"] = window_figures(windows, manifest["linking"])
    parts = [window_table(figures["training"], arguments.dataset)]
    print(parts[-1], flush=True)
    if arguments.heldout:
        heldout, other, _ = open_corpus(arguments.heldout)
        if other["tokenizer"]["sha256"] != manifest["tokenizer"]["sha256"]:
            print(
                f"error: {arguments.heldout} was built with another tokenizer than {arguments.dataset}",
                file=sys.stderr,
            )
            return 2
        figures["heldout_corpus"] = corpus_of(other)
        figures["overlap"] = overlap_figures(train, heldout)
        rows = [[name, row["distinct"], row["overlap"]] for name, row in figures["overlap"].items()]
        parts.append(text_table(["relation", "distinct held-out triples", "also in training"], rows))
        print("\n" + parts[-1], flush=True)
        few = arguments.lookup_windows
        scores = lookup_figures(
            WindowDataset(train, tokenizer, *sizes, max_windows=few),
            WindowDataset(heldout, tokenizer, *sizes, max_windows=few),
            tokenizer,
        )
        figures["lookups"] = scores
        columns = ("num_relations_masked", "accuracy", "macro_f1", "accuracy_visible", "accuracy_invisible")
        rows = [[name, *[score.get(column) for column in columns]] for name, score in scores.items()]
        parts.append(text_table(["lookup", *[c.replace("_", " ") for c in columns]], rows))
        print("\n" + parts[-1], flush=True)
    figures["time_s"] = round(time.perf_counter() - begin, 1)
    if arguments.record:
        heldout_option = f"--heldout {arguments.heldout} " if arguments.heldout else ""
        command = f"python -m graphmert.benchmarks.corpus_statistics {arguments.dataset} {heldout_option}"
        command += f"--record {arguments.record}"
        write_record(
            arguments.record,
            "What the windows of the standard corpora hold",
            command,
            figures,
            "\n\n".join(parts),
            NOTES,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
