"""Training steps of GraphMERT beside plain RoBERTa: `python -m graphmert.benchmarks.training_speed --help`.

Forward, backward and AdamW on the same windows, at CodeBERT's size unless told otherwise. The arms take turns on each
batch, so that whatever else the machine does falls on all of them; what counts is the ratio of their times. Peak memory
is that of a process of its own for each arm. Nothing is reported while the equivalence tests fail. The record is written
after each part; parts that it holds from the same commit, with the same options, stay (`--parts`).

The arms:
    roberta padded      RobertaForMaskedLM on the window's tokens, padded to the canonical R(1+L) positions
    roberta             RobertaForMaskedLM on as many tokens as the graph has nodes; its LM head runs on every token
    roberta sparse head the same, with the LM head on masked tokens only: no graph, the same saving as ours
    graphmert compact   GraphMertForPreTraining: H-GAT, decay, LM head on masked tokens, relation head
    graphmert packed    the same, many graphs in a row
    graph-free packed   the same rows without H-GAT and decay, which no plain model has: packing is no merit of the graph
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import RobertaConfig, RobertaForMaskedLM

from ..chain_graphs import WindowDataset, load_chain_graphs
from ..collator import GraphMertCollator
from ..configuration_graphmert import DECAY_MODES, GraphMertConfig
from ..modeling_graphmert import GraphMertForPreTraining
from .checks import NotEquivalentError, require_equivalence
from .record import commit, resident_memory, text_table, write_record

PARTS = ("memory", "steps", "curve")
SETUP_SHEET_FACTS = {"mnm_target": "relation", "mnm_probability": 0.15}
"""What the setup sheet masks of the graph."""
ARMS = (
    "roberta padded",
    "roberta",
    "roberta sparse head",
    "graphmert compact",
    "graphmert packed",
    "graph-free packed",
)
_BASELINES = ("roberta padded", "roberta", "roberta sparse head", "graph-free packed")
_CURVE_ARMS = ("roberta", "graphmert compact", "graphmert packed")
_PLAIN_INPUTS = ("input_ids", "attention_mask", "labels")
# A run of 1,024 nodes is fitted into so many roots: the median window has about 1.13 nodes for each root.
_ROOTS_PER_NODE = 0.88


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", required=True, help="directory built by `python -m graphmert.chain_graphs.build`")
    add("--batch-size", type=int, default=4, help="windows of a step (4)")
    add("--rounds", type=int, default=5, help="steps of each arm, after one that is not counted (5)")
    add("--layers", type=int, default=12, help="layers (12)")
    add("--hidden-size", type=int, default=768, help="width; heads are 64 wide (768)")
    add("--dropout", type=float, default=0.1, help="on hidden states (0.1)")
    add("--attention-dropout", type=float, default=0.0, help="on attention weights (0)")
    add("--attention", default="sdpa", choices=("sdpa", "eager"), help="backend of every arm (sdpa)")
    add(
        "--decay-mode",
        choices=[mode for mode in DECAY_MODES if mode is not None],
        default=GraphMertConfig.decay_mode,
        help="how attention decays in the arms with a graph (%(default)s)",
    )
    add("--threads", type=int, default=2, help="CPU threads (2)")
    add("--seed", type=int, default=0, help="of the choice of windows (0)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (everything)")
    add("--nodes", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="sizes of the curve")
    add("--curve-rounds", type=int, default=3, help="steps of each arm for each size of the curve (3)")
    add("--memory-batch-size", type=int, default=32, help="a second size for peak memory, without the padded arm (32)")
    add("--record", help="directory for the record")
    add("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("batch_size", "rounds", "layers", "threads", "curve_rounds", "memory_batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.hidden_size % 64:
        parser.error("--hidden-size must be a multiple of 64")
    if any(not 16 <= nodes <= 1024 for nodes in args.nodes):
        parser.error("--nodes must lie between 16 and 1024")
    return args


def build_model(arm: str, args: argparse.Namespace, vocab_size: int, num_roots: int = 128):
    """The arm's model, in training mode, with the same sizes for all."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden_size // 64,
        "intermediate_size": 4 * args.hidden_size,
        "max_position_embeddings": max(1026, num_roots * 8 + 2),
        "hidden_dropout_prob": args.dropout,
        "attention_probs_dropout_prob": args.attention_dropout,
        "attn_implementation": args.attention,
    }
    torch.manual_seed(0)
    if not arm.startswith("roberta"):
        sizes["decay_mode"] = args.decay_mode
        if arm == "graph-free packed":
            sizes |= {"use_hgat": False, "decay_mode": None}
        return GraphMertForPreTraining(GraphMertConfig(num_roots=num_roots, mnm_target="relation", **sizes)).train()
    return RobertaForMaskedLM(RobertaConfig(type_vocab_size=1, **sizes)).train()


def arm_batch(arm: str, examples: list[dict], tokenizer, num_roots: int = 128) -> dict:
    """The arm's inputs for the same windows; a plain model gets the nodes' tokens without their graph."""
    layout = arm.split()[-1] if arm.endswith(("packed", "padded")) else "compact"
    collator = GraphMertCollator(
        tokenizer, num_roots=num_roots, layout=layout, masked_span_leaves="hide", **SETUP_SHEET_FACTS
    )
    batch = collator(examples)
    if not arm.startswith("roberta"):
        return batch
    return {name: batch[name] for name in _PLAIN_INPUTS}


def step(arm: str, model, optimizer, batch: dict) -> None:
    """Forward, backward, AdamW."""
    if not arm.startswith("roberta"):
        loss = model(**batch, sparse_prediction=True).loss
    elif arm == "roberta sparse head":
        states = model.roberta(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        labelled = batch["labels"] != -100
        loss = F.cross_entropy(model.lm_head(states[labelled]), batch["labels"][labelled])
    else:
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def build_arms(arms, args: argparse.Namespace, vocab_size: int, num_roots: int = 128) -> dict[str, tuple]:
    """Model and optimizer of each arm."""
    models = {arm: build_model(arm, args, vocab_size, num_roots) for arm in arms}
    return {arm: (m, torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True)) for arm, m in models.items()}


def interleaved(built: dict[str, tuple], groups: list[list[dict]], tokenizer, num_roots: int = 128, label="") -> dict:
    """Step times by arm over the same groups of windows, the arms taking turns on each group."""
    result = {arm: {"step_times_s": [], "positions": 0, "nodes": 0} for arm in built}
    for examples in tqdm(groups, desc=label, leave=False):
        for arm, (model, optimizer) in built.items():
            batch = arm_batch(arm, examples, tokenizer, num_roots)
            start = time.perf_counter()
            step(arm, model, optimizer, batch)
            result[arm]["step_times_s"].append(time.perf_counter() - start)
            result[arm]["positions"] += batch["input_ids"].numel()
            result[arm]["nodes"] += int(batch["attention_mask"].sum())
    return result


def chosen_windows(
    windows: WindowDataset, batch_size: int, num_groups: int, seed: int, among=None
) -> list[list[dict]]:
    """Groups of windows, drawn once for all arms."""
    among = np.arange(len(windows)) if among is None else among
    needed = batch_size * num_groups
    if len(among) < needed:
        raise ValueError(f"{len(among)} windows fit, but {needed} are needed; lower --rounds or --batch-size")
    chosen = np.random.default_rng(seed).permutation(among)[:needed]
    return [[windows[int(i)] for i in part] for part in np.split(chosen, num_groups)]


def open_windows(args: argparse.Namespace, num_roots: int = 128):
    splits, _, tokenizer = load_chain_graphs(args.dataset)
    return WindowDataset(splits["train"], tokenizer, num_roots=num_roots, max_windows=5000), tokenizer


def measure_speed(args: argparse.Namespace) -> dict:
    """Step times of all arms; the first group of windows warms up and is not counted."""
    windows, tokenizer = open_windows(args)
    first, *counted = chosen_windows(windows, args.batch_size, args.rounds + 1, args.seed)
    built = build_arms(ARMS, args, len(tokenizer))
    interleaved(built, [first], tokenizer, label="warming up")
    return interleaved(built, counted, tokenizer, label="steps")


def measure_curve(args: argparse.Namespace) -> dict[str, dict]:
    """Step times of windows with about so many nodes; a plain model gets as many tokens.

    The models are those for the longest windows at every size, and warm up on the shortest.
    """
    roots = {nodes: max(3, round(nodes * _ROOTS_PER_NODE)) for nodes in args.nodes}
    result, built = {}, None
    for nodes, num_roots in sorted(roots.items()):
        windows, tokenizer = open_windows(args, num_roots)
        near = np.argsort(np.abs(windows.lengths - nodes), kind="stable")[: 4 * args.batch_size * args.curve_rounds]
        groups = chosen_windows(windows, args.batch_size, args.curve_rounds, args.seed, near)
        if built is None:
            built = build_arms(_CURVE_ARMS, args, len(tokenizer), max(roots.values()))
            interleaved(built, groups[:1], tokenizer, num_roots, label="warming up")
        found = result[str(nodes)] = interleaved(built, groups, tokenizer, num_roots, label=f"{nodes} nodes")
        for arm in _CURVE_ARMS:
            found[arm]["example_time_s"] = statistics.median(found[arm]["step_times_s"]) / args.batch_size
        found["mean_nodes"] = found[_CURVE_ARMS[0]]["nodes"] / (args.batch_size * args.curve_rounds)
    return result


def measure_memory(args: argparse.Namespace, arguments: list[str]) -> dict[str, dict]:
    """Resident bytes of a process that trains, by windows of a step and arm: at its peak, and before it has a model."""
    result = {}
    for batch_size in sorted({args.batch_size, args.memory_batch_size}):
        arms = [arm for arm in ARMS if arm != "roberta padded" or batch_size == args.batch_size]
        for arm in tqdm(arms, desc=f"memory, {batch_size} windows", leave=False):
            command = [sys.executable, "-m", "graphmert.benchmarks.training_speed", *arguments]
            command += ["--batch-size", str(batch_size), "--memory-of", arm]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise ValueError(f"the process of the arm {arm!r} ended with {done.returncode}")
            result.setdefault(str(batch_size), {})[arm] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_memory(args: argparse.Namespace) -> None:
    """Train one arm and print this process's memory: a step of one window, for AdamW's state, then a whole one."""
    windows, tokenizer = open_windows(args)
    (group,) = chosen_windows(windows, args.batch_size, 1, args.seed)
    before, _ = resident_memory()
    interleaved(build_arms([args.memory_of], args, len(tokenizer)), [group[:1], group], tokenizer)
    print(json.dumps({"before_bytes": before, "peak_bytes": resident_memory()[1]}))


def tables(figures: dict, options: dict) -> str:
    """What is printed: arms beside plain RoBERTa, their memory, then the curve."""
    parts = []
    if "steps" in figures:
        arms = figures["steps"]

        def ratio(base: str, arm: str) -> float:
            times = (arms[name]["step_times_s"] for name in (base, arm))
            return statistics.median(one / other for one, other in zip(*times, strict=True))

        rows = [
            [
                arm,
                statistics.median(found["step_times_s"]),
                1 - found["nodes"] / found["positions"],
                *(ratio(base, arm) for base in _BASELINES),
            ]
            for arm, found in arms.items()
        ]
        header = ["arm", "median step, s", "padding", *(f"/ {name}" for name in _BASELINES)]
        title = f"windows a second, {options['batch_size']} in a step, {options['rounds']} steps, beside each baseline"
        parts.append(f"{title}\n{text_table(header, rows)}")
    for batch_size, memory in figures.get("memory", {}).items():
        parts.append(f"peak memory, {batch_size} windows in a step\n{memory_table(memory)}")
    if "curve" in figures:
        header = ["nodes", "mean", *(f"{arm}, s" for arm in _CURVE_ARMS), "compact / roberta", "packed / roberta"]
        rows = []
        for nodes, found in figures["curve"].items():
            times = [found[arm]["example_time_s"] for arm in _CURVE_ARMS]
            rows.append([nodes, found["mean_nodes"], *times, times[1] / times[0], times[2] / times[0]])
        title = f"time of one example, {options['batch_size']} in a step, {options['curve_rounds']} steps"
        parts.append(f"{title}\n{text_table(header, rows)}")
    return "\n\n".join(parts)


def memory_table(memory: dict[str, dict]) -> str:
    """Peaks of whole processes beside the baselines', and without what a process holds before it has a model."""
    bases = _BASELINES[1:]
    rows = []
    for arm, found in memory.items():
        peak, added = found["peak_bytes"], found["peak_bytes"] - found["before_bytes"]
        sparse = memory["roberta sparse head"]
        rows.append(
            [
                arm,
                peak / 2**30,
                *(peak / memory[base]["peak_bytes"] for base in bases),
                added / (sparse["peak_bytes"] - sparse["before_bytes"]),
            ]
        )
    return text_table(
        ["arm", "GiB", *(f"/ {name}" for name in bases), "the model's share / roberta sparse head"], rows
    )


def draw_curve(curve: dict[str, dict], path: Path) -> None:
    """Time of one example against its nodes, as a PNG file."""
    # Not pyplot: it would choose a window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for arm, marker in zip(_CURVE_ARMS, "os^", strict=True):
        points = [(found["mean_nodes"], found[arm]["example_time_s"]) for found in curve.values()]
        axis.plot(*zip(*points, strict=True), marker=marker, label=arm)
    axis.set(xscale="log", yscale="log", xlabel="nodes of a window (tokens for roberta)", ylabel="seconds per window")
    axis.set_xticks([int(nodes) for nodes in curve], labels=list(curve))
    low, high = axis.get_ylim()
    seconds = [factor * 10.0**power for power in range(-4, 4) for factor in (1, 2, 5)]
    seconds = [value for value in seconds if low <= value <= high]
    axis.set_yticks(seconds, labels=[f"{value:g}" for value in seconds])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend()
    axis.set_title("forward, backward and AdamW")
    figure.savefig(path, dpi=120)


NOTES = """Every arm takes its step on the same windows before the next windows come; speeds are ratios to a baseline's step
on the same windows, the median over the steps. Peak memory is the resident set of a process of its own for each arm,
libraries and data included; the last column leaves out what a process holds before it has a model. The plain arms get the
nodes' tokens without their graph; `roberta padded` pads them to the canonical 1024 positions, `roberta` and `roberta sparse
head` as far as the batch's longest window. `graph-free packed` is the packed layout without H-GAT and decay."""


def settings(args: argparse.Namespace) -> dict:
    """What decides the figures; the parts of one record share it."""
    left_out = ("record", "dataset", "memory_of", "parts")
    return {name: value for name, value in vars(args).items() if name not in left_out}


def earlier_parts(args: argparse.Namespace, now: dict) -> dict:
    """Figures of the record that this run adds to; those of `now`, what the run is of, where there is none.

    Raises:
        ValueError: the record is of other options, another commit or another torch.
    """
    path = Path(args.record or "") / "run.json"
    if not args.record or not path.exists():
        return now
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    if any(figures.get(name) != value for name, value in now.items()):
        raise ValueError(f"{path} is of other options, another commit or another torch; choose another --record")
    return figures


def save(args: argparse.Namespace, figures: dict) -> None:
    options = settings(args)
    command = "python -m graphmert.benchmarks.training_speed --dataset DIR --record DIR " + " ".join(
        f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in options.items()
    )
    missing = [part for part in PARTS if part not in figures]
    notes = NOTES + (f"\n\nNot measured: {', '.join(missing)}." if missing else "")
    if "curve" in figures:
        Path(args.record).mkdir(parents=True, exist_ok=True)
        draw_curve(figures["curve"], Path(args.record) / "curve.png")
        notes += "\n\n![time of one window against its nodes](curve.png)"
    write_record(args.record, "Training speed beside plain RoBERTa", command, figures, tables(figures, options), notes)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        if args.memory_of:
            print_memory(args)
            return 0
        # Asked once: what is checked out may change while this runs.
        now = {"options": settings(args), "torch": torch.__version__, "run_commit": commit()}
        figures = earlier_parts(args, now)
        # The same commit has passed already where the record says so.
        if "equivalence" not in figures or (now["run_commit"] or "dirty").endswith("dirty"):
            figures = figures | {"equivalence": require_equivalence()}
            if args.record:
                save(args, figures)
        measures = {
            "memory": lambda: measure_memory(args, arguments),
            "steps": lambda: measure_speed(args),
            "curve": lambda: measure_curve(args),
        }
        for part in args.parts:
            found = measures[part]()
            # Another process may have measured another part meanwhile.
            figures |= (earlier_parts(args, now) if args.record else {}) | {part: found}
            if args.record:
                save(args, figures)
    except NotEquivalentError as error:
        print(f"training_speed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"training_speed: error: {error}", file=sys.stderr)
        return 2
    print(tables(figures, settings(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
