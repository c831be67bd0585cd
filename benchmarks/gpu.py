"""One run on one GPU: correctness, then speed, then whole schedules. `python -m graphmert.benchmarks.gpu --help`.

In this order, within --minutes: (1) every layout and attention backend against eager attention in float64, losses and
gradients; a failure stops the run before any speed is reported. (2) The card's bf16 matrix rate. (3) Steps of forward,
backward and AdamW by layout, backend and length: time, peak memory, share of the matrix rate in model FLOPs. (4) What waits
for the device in a step. (5) The setup sheet's and the paper's schedules, from steps with the data path running.
The record is rewritten after each part, so that what was measured stays if time runs out. --dry-run does all of it at a
tiny size on the CPU and says "not yet measured" in the record.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from ..chain_graphs import WindowDataset, load_chain_graphs
from ..collator import GraphMertCollator
from ..configuration_graphmert import GraphMertConfig
from ..modeling_graphmert import GraphMertForPreTraining
from ..trainer_graphmert import mark_dynamic_sizes
from .flops import training_flops
from .record import text_table, write_record

# Roots of a window; the longest ones hold about 1024 nodes.
LENGTHS = {"128 roots": 128, "512 roots": 512, "1024 nodes": 900}
# Layout, backend, compiled.
ARMS = (
    ("packed", "flex_attention", True),
    ("packed", "flex_attention", False),
    ("packed", "sdpa", True),
    ("compact", "flex_attention", True),
    ("compact", "sdpa", True),
    ("compact", "sdpa", False),
    ("padded", "sdpa", False),
)
# Relative errors of the loss and of the whole gradient that a dtype may have.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 6e-2}
PAPER = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
SCHEDULES = {
    "setup sheet": {"examples": 10_485 * 25, "sizes": {}, "limit_hours": 10 / 60},
    "paper": {"examples": 989_666 * 25, "sizes": PAPER, "limit_hours": 1.5},
}


@dataclass
class Scale:
    """How large the run is: the real one, or a dry run on the CPU."""

    device: torch.device
    dry: bool
    nodes_per_step: int
    rounds: int
    schedule_steps: int

    def config(self, num_roots: int, **sizes) -> GraphMertConfig:
        """CodeBERT's size unless `sizes` say otherwise; two layers of 64 in a dry run."""
        if self.dry:
            sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        sizes = {"max_position_embeddings": max(1026, num_roots * 8 + 2)} | sizes
        # No dropout on attention weights, which flex_attention does not have.
        return GraphMertConfig(num_roots=num_roots, attention_probs_dropout_prob=0.0, **sizes)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", required=True, help="directory built by `python -m graphmert.chain_graphs.build`")
    add("--record", required=True, help="directory for the record")
    add("--minutes", type=float, default=9.0, help="begin no further part after so many minutes (9)")
    add("--nodes-per-step", type=int, default=65_536, help="nodes of a step (65,536)")
    add("--rounds", type=int, default=20, help="timed steps of each arm (20)")
    add("--schedule-steps", type=int, default=500, help="timed steps of each schedule (500)")
    add("--max-windows", type=int, default=20_000, help="windows to draw from (20,000)")
    add("--dry-run", action="store_true", help="a tiny size on the CPU, to see that the program runs")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run tries the program on the CPU")
    if args.nodes_per_step < 2048:
        parser.error("--nodes-per-step must be at least 2048")
    return args


def collate(tokenizer, layout: str, num_roots: int, examples: list[dict], nodes_per_step: int) -> dict:
    rows = {"max_nodes_per_row": max(nodes_per_step, num_roots * 8)} if layout == "packed" else {}
    multiple = 64 if layout == "compact" else None
    collator = GraphMertCollator(
        tokenizer, num_roots=num_roots, layout=layout, with_indices=True, pad_to_multiple_of=multiple, **rows
    )
    return collator(examples)


def to_device(batch: dict, device: torch.device) -> dict:
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Norm of the difference by the norm, over all tensors as one vector, in float64."""
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


def losses_and_gradients(config, state: dict, batch: dict, dtype: torch.dtype, device, backend: str):
    """Loss and gradients of one step; bf16 by autocast over float32 weights, as in training."""
    model = GraphMertForPreTraining(config)
    model.load_state_dict(state)
    model.set_attn_implementation(backend)
    model.to(device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32).eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(**batch, sparse_prediction=True).loss
    loss.backward()
    gradients = {name: p.grad.detach().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach().cpu(), gradients


def check_correctness(scale: Scale, windows, tokenizer) -> dict:
    """Relative errors of loss, of all gradients and of the decay offset's gradient, by layout, backend and dtype."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    config = GraphMertConfig(vocab_size=len(tokenizer), attention_probs_dropout_prob=0.0, **sizes)
    torch.manual_seed(0)
    state = GraphMertForPreTraining(config).state_dict()
    # Untrained parts start at zero and would hide errors.
    state = {name: value + 0.02 * torch.randn_like(value) for name, value in state.items()}
    examples = [windows[i] for i in range(12)]
    reference_batch = to_device(collate(tokenizer, "padded", 128, examples, 2048), scale.device)
    expected = losses_and_gradients(config, state, reference_batch, torch.float64, scale.device, "eager")
    result = {}
    for layout in ("padded", "compact", "packed"):
        batch = to_device(collate(tokenizer, layout, 128, examples, 2048), scale.device)
        for backend in ("eager", "sdpa", "flex_attention"):
            if scale.device.type == "cpu" and backend == "flex_attention":
                continue
            for dtype, tolerance in TOLERANCES.items():
                loss, gradients = losses_and_gradients(config, state, batch, dtype, scale.device, backend)
                names = sorted(expected[1])
                errors = {
                    "loss": relative_error([loss], [expected[0]]),
                    "gradients": relative_error([gradients[n] for n in names], [expected[1][n] for n in names]),
                    "offset_gradient": relative_error(
                        *[[g[n] for n in names if n.endswith("decay.offset")] for g in (gradients, expected[1])]
                    ),
                }
                errors["passed"] = max(errors.values()) <= tolerance
                result[f"{layout}, {backend}, {str(dtype).removeprefix('torch.')}"] = errors
    return result


def matrix_rate(scale: Scale) -> float:
    """bf16 FLOP/s of the best of three square matrix products, the median of 20 each."""
    best = 0.0
    for size in (256,) if scale.dry else (4096, 8192, 16384):
        a, b = (torch.randn(size, size, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
        times = []
        for _ in range(23):
            scale.wait()
            start = time.perf_counter()
            a @ b
            scale.wait()
            times.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / statistics.median(times[3:]))
    return best


class Steps:
    """A model and its optimizer, and a step of training as `GraphMertTrainer` takes it."""

    def __init__(self, scale: Scale, config: GraphMertConfig, backend: str, compiled: bool):
        torch.manual_seed(0)
        self.scale, self.compiled = scale, compiled
        self.model = GraphMertForPreTraining(config).to(scale.device).train()
        self.model.set_attn_implementation(backend)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.run = torch.compile(self.model) if compiled else self.model

    def step(self, batch: dict) -> torch.Tensor:
        """Forward, backward, clipping, AdamW; the loss stays on the device."""
        if self.compiled:
            mark_dynamic_sizes(batch)
        with torch.autocast(self.scale.device.type, dtype=torch.bfloat16):
            loss = self.run(**batch, sparse_prediction=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def batch_flops(config, batch: dict, lengths: np.ndarray) -> int:
    num_leaves = int((batch["relation_ids"] >= 0).sum())
    labelled = int((batch["labels"] != -100).sum())
    return training_flops(config, lengths, labelled, num_leaves, int(batch["attention_mask"].sum()))


def node_counts(batch: dict) -> np.ndarray:
    """Existing nodes of each graph of a batch on the CPU."""
    if "graph_ids" in batch:
        ids = batch["graph_ids"]
        return torch.bincount(ids[ids >= 0]).numpy()
    return batch["attention_mask"].sum(1).numpy()


def measure_arm(scale: Scale, windows, tokenizer, num_roots: int, arm, rate: float) -> dict:
    """Times of steps over batches that are already on the device."""
    layout, backend, compiled = arm
    config = scale.config(num_roots, vocab_size=50_265)
    mean = float(windows.lengths.mean())
    # The same number of existing nodes in each step; the canonical layout cannot hold as many.
    per_step = max(1, int(scale.nodes_per_step * 0.97 / mean) // (6 if layout == "padded" else 1))
    order = np.random.default_rng(0).permutation(len(windows))
    batches, flops, nodes, graphs = [], [], [], []
    for number in range(4):
        examples = [
            windows[int(i)] for i in np.take(order, range(number * per_step, (number + 1) * per_step), mode="wrap")
        ]
        batch = collate(tokenizer, layout, num_roots, examples, scale.nodes_per_step)
        lengths = node_counts(batch)
        flops.append(batch_flops(config, batch, lengths))
        nodes.append(int(lengths.sum()))
        graphs.append(len(examples))
        batches.append(to_device(batch, scale.device))
    steps = Steps(scale, config, backend, compiled)
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(4):
        steps.step(batches[number])
    scale.wait()
    times = []
    for number in range(scale.rounds):
        start = time.perf_counter()
        steps.step(batches[number % 4])
        scale.wait()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    result = {
        "step_time_s": seconds,
        "graphs_per_s": statistics.mean(graphs) / seconds,
        "nodes_per_s": statistics.mean(nodes) / seconds,
        "model_flops_per_s": statistics.mean(flops) / seconds,
        "mfu": statistics.mean(flops) / seconds / rate,
    }
    if scale.device.type == "cuda":
        result["peak_mem_bytes"] = torch.cuda.max_memory_allocated()
    return result


def waits_in_a_step(scale: Scale, windows, tokenizer) -> dict:
    """Calls that wait for the device, in ten steps after warming up, from the profiler's trace."""
    if scale.device.type != "cuda":
        return {}
    config = scale.config(128, vocab_size=50_265)
    per_step = int(scale.nodes_per_step * 0.97 / windows.lengths.mean())
    batches = [
        collate(
            tokenizer, "packed", 128, [windows[number * per_step + i] for i in range(per_step)], scale.nodes_per_step
        )
        for number in range(2)
    ]
    batches = [to_device(batch, scale.device) for batch in batches]
    steps = Steps(scale, config, "flex_attention", True)
    for number in range(4):
        steps.step(batches[number % 2])
    scale.wait()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for number in range(10):
            steps.step(batches[number % 2])
    counts = {event.key: event.count for event in profile.key_averages()}
    names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
    waits = {name: counts.get(name, 0) for name in names}
    waits["Memcpy DtoH"] = sum(count for name, count in counts.items() if "DtoH" in name)
    return {"steps": 10, "calls": waits}


def measure_schedule(scale: Scale, windows, tokenizer, sizes: dict, examples: int, limit_hours: float) -> dict:
    """A schedule's hours from steps with the collator's workers running, packed rows, flex_attention, compiled."""
    config = scale.config(128, vocab_size=50_265, **sizes)
    per_step = max(1, int(scale.nodes_per_step * 0.97 / windows.lengths.mean()))
    collator = GraphMertCollator(
        tokenizer, layout="packed", max_nodes_per_row=max(1024, scale.nodes_per_step), with_indices=True
    )
    sampler = RandomSampler(windows, replacement=True, num_samples=per_step * (scale.schedule_steps + 20))
    workers = 0 if scale.dry else 6
    loader = DataLoader(
        windows,
        per_step,
        sampler=sampler,
        collate_fn=collator,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=not scale.dry,
        drop_last=True,
    )
    backend = "sdpa" if scale.device.type == "cpu" else "flex_attention"
    steps = Steps(scale, config, backend, not scale.dry)
    done, start = 0, None
    for number, batch in enumerate(loader):
        if number == min(20, scale.schedule_steps // 2):
            scale.wait()
            start = time.perf_counter()
        loss = steps.step(to_device(batch, scale.device))
        done += start is not None
    scale.wait()
    seconds = (time.perf_counter() - start) / done
    return {
        "steps_timed": done,
        "step_time_s": seconds,
        "examples_per_step": per_step,
        "examples_per_s": per_step / seconds,
        "last_loss": float(loss),
        "examples_of_schedule": examples,
        "extrapolated_hours": examples / per_step * seconds / 3600,
        "limit_hours": limit_hours,
        "parameters": sum(p.numel() for p in steps.model.parameters()),
    }


def tables(figures: dict) -> str:
    """All parts that were measured, as text."""
    parts = []
    if figures["dry_run"]:
        parts.append("NOT YET MEASURED: a dry run on the CPU at a tiny size; only correctness means anything here.")
    rows = [[name, *(f"{v:.1e}" for k, v in e.items() if k != "passed"), "yes" if e["passed"] else "NO"]
            for name, e in figures["correctness"].items()]  # fmt: skip
    parts.append(text_table(["against float64 eager", "loss", "gradients", "offset gradient", "passed"], rows))
    if "matrix_rate" in figures:
        parts.append(f"bf16 matrix rate: {figures['matrix_rate'] / 1e12:.1f} TFLOP/s")
    rows = []
    for length, arms in figures.get("steps", {}).items():
        for arm, e in arms.items():
            memory = e.get("peak_mem_bytes")
            rows.append([f"{length}: {arm}", e["step_time_s"], round(e["graphs_per_s"]), round(e["nodes_per_s"]),
                         f"{e['mfu']:.1%}", None if memory is None else memory / 2**30])  # fmt: skip
    if rows:
        parts.append(text_table(["steps", "s", "graphs/s", "nodes/s", "of the matrix rate", "peak GiB"], rows))
    if figures.get("waits"):
        parts.append(f"waits in {figures['waits']['steps']} steps: {figures['waits']['calls']}")
    rows = [[name, e["steps_timed"], e["step_time_s"], round(e["examples_per_s"]), e["extrapolated_hours"],
             e["limit_hours"]] for name, e in figures.get("schedules", {}).items()]  # fmt: skip
    if rows:
        parts.append(text_table(["schedule", "steps", "s", "examples/s", "hours", "at most"], rows))
    return "\n\n".join(parts)


def save(args: argparse.Namespace, figures: dict) -> None:
    dry = " --dry-run" if args.dry_run else ""
    command = (
        f"python -m graphmert.benchmarks.gpu --dataset DIR --record DIR --nodes-per-step {args.nodes_per_step} "
        f"--rounds {args.rounds} --schedule-steps {args.schedule_steps}{dry}"
    )
    title = "One GPU: correctness and speed" + (" (not yet measured: a dry run on the CPU)" if args.dry_run else "")
    notes = (
        "Errors are relative norms against eager attention in float64 on the canonical layout. Speeds count existing "
        "nodes, never padding; model FLOPs are matrix products, three times the forward pass. Schedules are extrapolated "
        "from timed steps with the data path running."
    )
    write_record(args.record, title, command, figures, tables(figures), notes)


def measure(args: argparse.Namespace, figures: dict) -> bool:
    """Fill in `figures` part by part; False when a backend is wrong."""
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cpu" if args.dry_run else "cuda")
    scale = Scale(device, args.dry_run, args.nodes_per_step, args.rounds, args.schedule_steps)
    if args.dry_run:
        scale.nodes_per_step, scale.rounds, scale.schedule_steps = 2048, 2, 4
    splits, _, tokenizer = load_chain_graphs(args.dataset)
    windows = WindowDataset(splits["train"], tokenizer, max_windows=args.max_windows)
    figures["correctness"] = check_correctness(scale, windows, tokenizer)
    save(args, figures)
    if not all(errors["passed"] for errors in figures["correctness"].values()):
        return False
    rate = figures["matrix_rate"] = matrix_rate(scale)
    figures["schedules"], figures["steps"], figures["skipped"] = {}, {}, []
    for name, schedule in SCHEDULES.items():
        figures["schedules"][name] = measure_schedule(scale, windows, tokenizer, **schedule)
        save(args, figures)
    figures["waits"] = waits_in_a_step(scale, windows, tokenizer)
    for length, num_roots in LENGTHS.items():
        longer = WindowDataset(splits["train"], tokenizer, num_roots=num_roots, max_windows=4000)
        for layout, backend, compiled in ARMS:
            name = f"{layout}, {backend}" + (", compiled" if compiled else "")
            if args.dry_run and (num_roots > 128 or backend == "flex_attention" or compiled):
                continue
            if time.monotonic() > deadline:
                figures["skipped"].append(f"{length}: {name}")
                continue
            arm = (layout, backend, compiled)
            found = measure_arm(scale, longer, tokenizer, num_roots, arm, rate)
            figures["steps"].setdefault(length, {})[name] = found
            save(args, figures)
    return True


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    figures = {
        "dry_run": args.dry_run,
        "torch": torch.__version__,
        "device": "cpu" if args.dry_run else torch.cuda.get_device_name(),
    }
    try:
        right = measure(args, figures)
    except (ValueError, OSError) as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2
    print(tables(figures))
    if not right:
        print("gpu: a backend differs from float64 eager attention, no speed is reported", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
