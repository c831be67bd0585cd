"""Training steps in each node layout, on the same windows: `python -m graphmert.benchmarks.layouts --help`.

Forward, backward and AdamW of `GraphMertForPreTraining`. The arms take turns on each batch, so that whatever else the
machine does falls on all of them; what counts is the ratio of their times over the same windows.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch

from ..chain_graphs import WindowDataset, load_chain_graphs
from ..collator import GraphMertCollator
from ..configuration_graphmert import GraphMertConfig
from ..modeling_graphmert import GraphMertForPreTraining
from ..trainer_graphmert import EpochSampler
from .record import text_table, write_record
from .training_speed import SETUP_SHEET_FACTS

# Name: layout, attention backend, whether windows of similar length come together.
ARMS = {
    "padded": ("padded", "sdpa", False),
    "compact": ("compact", "sdpa", False),
    "compact, grouped": ("compact", "sdpa", True),
    "compact, eager": ("compact", "eager", False),
    "compact, grouped, eager": ("compact", "eager", True),
    "packed": ("packed", "sdpa", False),
    "packed, eager": ("packed", "eager", False),
}
BASELINE = "compact"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m graphmert.benchmarks.layouts", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True, help="directory built by `python -m graphmert.chain_graphs.build`")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what to measure")
    parser.add_argument("--batch-size", type=int, default=8, help="windows of a step")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each arm, after one that is not counted")
    parser.add_argument("--layers", type=int, default=12, help="layers")
    parser.add_argument("--hidden-size", type=int, default=768, help="width; heads are 64 wide")
    parser.add_argument("--vocab-size", type=int, default=50_265, help="rows of the word embeddings")
    parser.add_argument("--dropout", type=float, default=0.1, help="on hidden states")
    parser.add_argument("--attention-dropout", type=float, default=0.0, help="on attention weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of windows")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for one thread on a machine that others use too",
    )
    parser.add_argument(
        "--collator-only", action="store_true", help="padding and the collator's speed, no training steps"
    )
    parser.add_argument("--record", help="directory for the record")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.batch_size < 1 or args.layers < 1:
        parser.exit(2, "layouts: error: rounds, batch-size and layers must be at least 1\n")
    if args.hidden_size < 64 or args.hidden_size % 64:
        parser.exit(2, "layouts: error: --hidden-size must be a multiple of 64\n")
    if args.clock == "cpu" and args.threads != 1:
        parser.exit(2, "layouts: error: --clock cpu counts the time of all threads; it needs --threads 1\n")
    if BASELINE not in args.arms:
        parser.exit(2, f"layouts: error: the arms are measured against {BASELINE!r}, which must be one of them\n")
    return args


def batches(windows: WindowDataset, tokenizer, arm: str, args: argparse.Namespace) -> list[dict]:
    """The same windows for every arm, in its layout and order; the first batch is for warming up."""
    chosen = np.random.default_rng(args.seed).permutation(len(windows))[: args.batch_size * (args.rounds + 1)]
    layout, _, grouped = ARMS[arm]
    first, rest = chosen[: args.batch_size], chosen[args.batch_size :]
    if grouped:
        # As `train_sampling_strategy="group_by_length"` does with eight batches in an optimizer step.
        rest = rest[list(EpochSampler(len(rest), args.seed, windows.lengths[rest], 8 * args.batch_size))]
    collator = GraphMertCollator(tokenizer, layout=layout, **SETUP_SHEET_FACTS)
    parts = np.split(np.concatenate([first, rest]), args.rounds + 1)
    return [collator([windows[int(i)] for i in part]) for part in parts]


def collator_speed(windows: WindowDataset, tokenizer, layout: str, with_indices: bool, batch_size: int) -> float:
    """Windows that one worker makes batches of in a second of processor time, reading them included."""
    collator = GraphMertCollator(tokenizer, layout=layout, with_indices=with_indices, **SETUP_SHEET_FACTS)
    rates = []
    for start in range(0, len(windows) - batch_size + 1, batch_size):
        before = time.process_time()
        collator([windows[i] for i in range(start, start + batch_size)])
        rates.append(batch_size / (time.process_time() - before))
    return statistics.median(rates)


def step_time(model, optimizer, batch: dict, now) -> float:
    start = now()
    model(**batch, sparse_prediction=True).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return now() - start


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Seconds of each step and the nodes computed, by arm."""
    splits, _, tokenizer = load_chain_graphs(args.dataset)
    if args.vocab_size < len(tokenizer):
        raise ValueError(f"--vocab-size must be at least the tokenizer's, {len(tokenizer)}")
    windows = WindowDataset(splits["train"], tokenizer, max_windows=args.batch_size * (args.rounds + 1))
    torch.set_num_threads(args.threads)
    data = {arm: batches(windows, tokenizer, arm, args) for arm in args.arms}
    times = {arm: [] for arm in args.arms} if args.collator_only else training_times(data, args)
    result = {}
    for arm in args.arms:
        computed = sum(batch["input_ids"].numel() for batch in data[arm][1:])
        real = sum(int(batch["attention_mask"].sum()) for batch in data[arm][1:])
        result[arm] = {"step_times_s": times[arm][1:], "positions": computed, "nodes": real}
        speed = collator_speed(windows, tokenizer, ARMS[arm][0], ARMS[arm][0] == "packed", args.batch_size)
        result[arm]["collator_windows_per_cpu_second"] = speed
    return result


def training_times(data: dict[str, list[dict]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step, by arm, the arms taking turns."""
    torch.manual_seed(0)
    config = GraphMertConfig(
        mnm_target="relation",
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        intermediate_size=4 * args.hidden_size,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.attention_dropout,
    )
    model = GraphMertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    now = time.perf_counter if args.clock == "wall" else time.process_time
    times: dict[str, list[float]] = {arm: [] for arm in args.arms}
    for number in range(args.rounds + 1):
        for arm in args.arms:
            model.set_attn_implementation(ARMS[arm][1])
            times[arm].append(step_time(model, optimizer, data[arm][number], now))
    return times


def table(result: dict[str, dict]) -> str:
    base = sum(result[BASELINE]["step_times_s"])
    rows = []
    for arm, figures in result.items():
        times = figures["step_times_s"]
        padding = 1 - figures["nodes"] / figures["positions"]
        collated = round(figures["collator_windows_per_cpu_second"])
        measured = [statistics.median(times), base / sum(times)] if times else [None, None]
        rows.append([arm, measured[0], padding, measured[1], collated])
    return text_table(["layout", "median step, s", "padding", f"speed / {BASELINE}", "collator, windows/s"], rows)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        result = measure(args)
    except (ValueError, OSError) as error:
        print(f"layouts: error: {error}", file=sys.stderr)
        return 2
    text = table(result)
    print(text)
    if args.record:
        options = {name: value for name, value in vars(args).items() if name not in ("record", "dataset")}
        figures = {"options": options, "torch": torch.__version__, "arms": result}
        shown = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if name != "arms"]
        arms = " ".join(f"'{arm}'" for arm in args.arms)
        shown = [text for text in shown if "collator" not in text] + ["--collator-only"] * args.collator_only
        command = f"python -m graphmert.benchmarks.layouts --dataset DIR --arms {arms} {' '.join(shown)}"
        notes = (
            "Padding is the share of positions without a node. The collator's speed is per second of processor time of one "
            "thread, reading of the windows included; packed batches come with their indices."
        )
        if not args.collator_only:
            notes = (
                "Steps of forward, backward and AdamW on the same windows in every arm; the arms take turns on each batch. "
                "Speed is examples per second over all rounds, as a ratio to the compact layout in the same run. "
            ) + notes
        what = "padding and the collator's speed" if args.collator_only else "training steps"
        write_record(args.record, f"Node layouts: {what}", command, figures, text, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
