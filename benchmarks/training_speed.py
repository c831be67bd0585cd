"""Training steps of GraphMERT beside plain RoBERTa: `python -m graphmert.benchmarks.training_speed --help`.

Forward, backward and AdamW on the same windows, at CodeBERT's size unless told otherwise. The arms take turns on each
batch, so that whatever else the machine does falls on all of them; what counts is the ratio of their times. Peak memory
is that of a process of its own for each arm. Nothing is reported while the equivalence tests fail.

The arms:
    roberta padded      RobertaForMaskedLM on the window's tokens, padded to the canonical R(1+L) positions
    roberta             RobertaForMaskedLM on as many tokens as the graph has nodes; its LM head runs on every token
    roberta sparse head the same, with the LM head on masked tokens only: no graph, the same saving as ours
    graphmert compact   GraphMertForPreTraining: H-GAT, decay, LM head on masked tokens, relation head
    graphmert packed    the same, many graphs in a row
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import RobertaConfig, RobertaForMaskedLM

from ..chain_graphs import WindowDataset, load_chain_graphs
from ..collator import GraphMertCollator
from ..configuration_graphmert import GraphMertConfig
from ..modeling_graphmert import GraphMertForPreTraining
from .checks import NotEquivalentError, require_equivalence
from .record import text_table, write_record

ARMS = ("roberta padded", "roberta", "roberta sparse head", "graphmert compact", "graphmert packed")
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
    add("--threads", type=int, default=2, help="CPU threads (2)")
    add("--seed", type=int, default=0, help="of the choice of windows (0)")
    add("--nodes", type=int, nargs="*", default=[64, 128, 256, 512, 1024], help="sizes of the curve; none: no curve")
    add("--no-memory", action="store_true", help="leave peak memory out")
    add("--record", help="directory for the record")
    add("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("batch_size", "rounds", "layers", "threads"):
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
    if arm.startswith("graphmert"):
        return GraphMertForPreTraining(GraphMertConfig(num_roots=num_roots, **sizes)).train()
    return RobertaForMaskedLM(RobertaConfig(type_vocab_size=1, **sizes)).train()


def arm_batch(arm: str, examples: list[dict], tokenizer, num_roots: int = 128) -> dict:
    """The arm's inputs for the same windows; a plain model gets the nodes' tokens without their graph."""
    layout = {"graphmert packed": "packed", "roberta padded": "padded"}.get(arm, "compact")
    collator = GraphMertCollator(tokenizer, num_roots=num_roots, layout=layout, masked_span_leaves="hide")
    batch = collator(examples)
    if arm.startswith("graphmert"):
        return batch
    return {name: batch[name] for name in _PLAIN_INPUTS}


def step(arm: str, model, optimizer, batch: dict) -> None:
    """Forward, backward, AdamW."""
    if arm.startswith("graphmert"):
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


def interleaved(arms, groups: list[list[dict]], tokenizer, args, num_roots: int = 128, label: str = "") -> dict:
    """Step times by arm over the same groups of windows; the first group warms up and is not counted."""
    models = {arm: build_model(arm, args, len(tokenizer), num_roots) for arm in arms}
    optimizers = {arm: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for arm, model in models.items()}
    result = {arm: {"step_times_s": [], "positions": 0, "nodes": 0} for arm in arms}
    for number, examples in enumerate(tqdm(groups, desc=label, leave=False)):
        for arm in arms:
            batch = arm_batch(arm, examples, tokenizer, num_roots)
            start = time.perf_counter()
            step(arm, models[arm], optimizers[arm], batch)
            if number:
                result[arm]["step_times_s"].append(time.perf_counter() - start)
                result[arm]["positions"] += batch["input_ids"].numel()
                result[arm]["nodes"] += int(batch["attention_mask"].sum())
    return result


def chosen_windows(windows: WindowDataset, args: argparse.Namespace, among=None) -> list[list[dict]]:
    """Groups of windows, drawn once for all arms."""
    among = np.arange(len(windows)) if among is None else among
    needed = args.batch_size * (args.rounds + 1)
    if len(among) < needed:
        raise ValueError(f"{len(among)} windows fit, but {needed} are needed; lower --rounds or --batch-size")
    chosen = np.random.default_rng(args.seed).permutation(among)[:needed]
    return [[windows[int(i)] for i in part] for part in np.split(chosen, args.rounds + 1)]


def open_windows(args: argparse.Namespace, num_roots: int = 128):
    splits, _, tokenizer = load_chain_graphs(args.dataset)
    return WindowDataset(splits["train"], tokenizer, num_roots=num_roots, max_windows=5000), tokenizer


def measure_speed(args: argparse.Namespace) -> dict:
    windows, tokenizer = open_windows(args)
    return interleaved(ARMS, chosen_windows(windows, args), tokenizer, args, label="steps")


def measure_curve(args: argparse.Namespace) -> dict[int, dict]:
    """Step times of windows with about so many nodes; a plain model gets as many tokens."""
    result = {}
    for nodes in args.nodes:
        num_roots = max(3, round(nodes * _ROOTS_PER_NODE))
        windows, tokenizer = open_windows(args, num_roots)
        near = np.argsort(np.abs(windows.lengths - nodes), kind="stable")[: 4 * args.batch_size * (args.rounds + 1)]
        groups = chosen_windows(windows, args, near)
        result[nodes] = interleaved(_CURVE_ARMS, groups, tokenizer, args, num_roots, label=f"{nodes} nodes")
    return result


def measure_memory(args: argparse.Namespace, arguments: list[str]) -> dict[str, int]:
    """Peak resident bytes of a process that takes two steps, by arm."""
    result = {}
    for arm in tqdm(ARMS, desc="memory", leave=False):
        command = [sys.executable, "-m", "graphmert.benchmarks.training_speed", *arguments, "--memory-of", arm]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result[arm] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_memory(args: argparse.Namespace) -> None:
    """Take two steps of one arm and print this process's peak memory in bytes."""
    windows, tokenizer = open_windows(args)
    model = build_model(args.memory_of, args, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for examples in chosen_windows(windows, args)[:2]:
        step(args.memory_of, model, optimizer, arm_batch(args.memory_of, examples, tokenizer))
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def tables(figures: dict) -> str:
    """What is printed: arms beside plain RoBERTa, then the curve."""
    arms, memory = figures["arms"], figures.get("peak_mem_bytes", {})
    base = {name: sum(arms[name]["step_times_s"]) for name in ("roberta padded", "roberta", "roberta sparse head")}
    rows = []
    for arm, found in arms.items():
        total = sum(found["step_times_s"])
        rows.append(
            [
                arm,
                statistics.median(found["step_times_s"]),
                1 - found["nodes"] / found["positions"],
                *(value / total for value in base.values()),
                memory[arm] / 2**30 if memory else None,
                memory[arm] / memory["roberta sparse head"] if memory else None,
            ]
        )
    header = ["arm", "median step, s", "padding", *(f"speed / {name}" for name in base), "peak GiB", "/ sparse head"]
    text = text_table(header, rows)
    if figures.get("curve"):
        header = ["nodes", "mean", *(f"{arm}, s" for arm in _CURVE_ARMS), "compact / roberta", "packed / roberta"]
        rows = []
        for nodes, found in figures["curve"].items():
            times = [sum(found[arm]["step_times_s"]) / figures["curve_windows"] for arm in _CURVE_ARMS]
            mean = found["graphmert compact"]["nodes"] / figures["curve_windows"]
            rows.append([str(nodes), mean, *times, times[1] / times[0], times[2] / times[0]])
        text += "\n\ntime of one example, forward, backward and AdamW\n" + text_table(header, rows)
    return text


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        if args.memory_of:
            print_memory(args)
            return 0
        figures = {"equivalence": require_equivalence(), "arms": measure_speed(args)}
        if not args.no_memory:
            figures["peak_mem_bytes"] = measure_memory(args, arguments)
        figures["curve"] = measure_curve(args)
        figures["curve_windows"] = args.batch_size * args.rounds
    except NotEquivalentError as error:
        print(f"training_speed: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"training_speed: error: {error}", file=sys.stderr)
        return 2
    text = tables(figures)
    print(text)
    if args.record:
        options = {k: v for k, v in vars(args).items() if k not in ("record", "dataset", "memory_of")}
        figures |= {"options": options, "torch": torch.__version__, "threads": args.threads}
        command = "python -m graphmert.benchmarks.training_speed --dataset DIR " + " ".join(
            f"--{k.replace('_', '-')} {' '.join(map(str, v)) if isinstance(v, list) else v}"
            for k, v in options.items()
            if k != "no_memory"
        )
        notes = (
            "Every arm takes its step on the same windows before the next windows come; speeds are ratios of the total "
            "times in this run. Peak memory is the resident set of a process of its own for each arm. The plain arms get "
            "the nodes' tokens without their graph; `roberta padded` pads them to the canonical 1024 positions."
        )
        write_record(args.record, "Training speed beside plain RoBERTa", command, figures, text, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
