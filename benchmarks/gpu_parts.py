"""The parts of `graphmert.benchmarks.gpu`, each in a process of its own, which that program starts.

A part is a list of cases. Each case's figures are written as one line of JSON as soon as it ends. A case that runs out of
memory says so and the next one begins; any other failure ends the process, since it may have broken the device's context,
and the program starts a new one at the next case.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler

from ..chain_graphs import WindowDataset
from ..collator import GraphMertCollator
from ..configuration_graphmert import GraphMertConfig
from ..modeling_graphmert import GraphMertForPreTraining
from ..trainer_graphmert import mark_dynamic_sizes
from .flops import training_flops
from .portable import open_training_split
from .training_speed import SETUP_SHEET_FACTS

VOCAB_SIZE = 50_265
FAILED = 3
# Roots of a window; the longest ones hold about 1024 nodes.
LENGTHS = {"128 roots": 128, "512 roots": 512, "1024 nodes": 900}
LAYOUTS, BACKENDS = ("padded", "compact", "packed"), ("eager", "sdpa", "flex_attention")
# Relative errors that a dtype may have: of loss, logits, gradients, each as one vector.
TOLERANCES = {"float32": 2e-4, "bfloat16": 6e-2}
# Layout, backend, compiled, share of --nodes-per-step. What is compared is compared at the same size, which eager's
# scores must fit in.
ARMS = (
    ("packed", "flex_attention", True, 1.0),
    ("packed", "flex_attention", False, 0.25),
    ("packed", "sdpa", False, 0.25),
    ("packed", "eager", False, 0.25),
)
ARMS_OF_SHORT = (
    ("packed", "flex_attention", True, 0.25),
    ("packed", "sdpa", True, 0.25),
    ("compact", "sdpa", True, 0.25),
    ("compact", "flex_attention", True, 0.25),
    ("padded", "sdpa", False, 0.25),
)
PAPER = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
# Windows of an optimizer step: the sheet's 4 GPUs x 32 x 2; None: as many as --nodes-per-step holds.
SCHEDULES = {
    "setup sheet": {"examples": 10_485 * 25, "per_step": 256, "sizes": {}, "limit_hours": 10 / 60},
    "paper": {"examples": 989_666 * 25, "per_step": None, "sizes": PAPER, "limit_hours": 1.5},
}


def arm_name(arm: tuple) -> str:
    layout, backend, compiled, share = arm
    return (
        f"{layout}, {backend}" + (", compiled" if compiled else "") + ("" if share == 1 else f", {share:g} of a step")
    )


def arms_of(length: str) -> tuple:
    return ARMS + ARMS_OF_SHORT if length == "128 roots" else ARMS


@dataclass
class Scale:
    """How large the run is: the real one, or a dry run on the CPU."""

    device: torch.device
    dry: bool
    nodes_per_step: int
    rounds: int
    schedule_steps: int
    decay_mode: str = GraphMertConfig.decay_mode

    def config(self, num_roots: int, **sizes) -> GraphMertConfig:
        """CodeBERT's size unless `sizes` say otherwise; two layers of 64 in a dry run."""
        if self.dry:
            sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        sizes = {"max_position_embeddings": max(1026, num_roots * 8 + 2)} | sizes
        # No dropout on attention weights, which flex_attention does not have.
        sizes |= {"attention_probs_dropout_prob": 0.0, "decay_mode": self.decay_mode}
        return GraphMertConfig(vocab_size=VOCAB_SIZE, num_roots=num_roots, **sizes)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def collate(tokenizer, layout: str, num_roots: int, examples: list[dict]) -> dict:
    """A batch whose lengths repeat: packed, one row; compact, rows of a multiple of 64 nodes."""
    multiple = {"packed": 1024, "compact": 64}.get(layout)
    return GraphMertCollator(
        tokenizer, num_roots=num_roots, layout=layout, with_indices=True, pad_to_multiple_of=multiple
    )(examples)


def to_device(batch: dict, device: torch.device) -> dict:
    return {
        name: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for name, value in batch.items()
    }


# ---- correctness


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Norm of the difference by the norm, over all tensors as one vector, in float64."""
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected, strict=True))
    return (difference / sum(float(b.double().square().sum()) for b in expected)) ** 0.5


class Correctness:
    """A small model's losses, logits and gradients by layout, backend and dtype, against eager attention in float64."""

    def __init__(self, scale: Scale, windows, tokenizer):
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        self.scale, self.tokenizer = scale, tokenizer
        sizes |= {"attention_probs_dropout_prob": 0.0, "decay_mode": scale.decay_mode}
        self.config = GraphMertConfig(vocab_size=len(tokenizer), **sizes)
        torch.manual_seed(0)
        state = GraphMertForPreTraining(self.config).state_dict()
        # Untrained parts start at zero and would hide errors.
        self.state = {name: value + 0.02 * torch.randn_like(value) for name, value in state.items()}
        self.examples = [windows[i] for i in range(min(3 if scale.dry else 12, len(windows)))]
        self.expected = None

    def outcome(self, layout: str, backend: str, dtype: str, compiled: bool = False) -> dict[str, list[torch.Tensor]]:
        """What one step gives; bfloat16 by autocast over float32 weights, as in training."""
        device = self.scale.device
        batch = to_device(collate(self.tokenizer, layout, 128, self.examples), device)
        model = GraphMertForPreTraining(self.config)
        model.load_state_dict(self.state)
        model.set_attn_implementation(backend)
        model.to(device=device, dtype=torch.float64 if dtype == "float64" else torch.float32).eval()
        run = torch.compile(model) if compiled else model
        if compiled:
            mark_dynamic_sizes(batch)

        def step(**options) -> tuple:
            """Outputs of one way to take the losses, and the gradients by name."""
            model.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                output = run(**batch, **options)
            output.loss.backward()
            named = sorted(model.named_parameters(), key=lambda item: item[0])
            return output, {name: p.grad.detach().cpu() for name, p in named if p.grad is not None}

        output, gradients = step(sparse_prediction=True)
        # As the trainer asks for them.
        fused, fused_gradients = step(fused_loss=True)
        return {
            "loss": [output.loss.detach().cpu()],
            "logits": [output.logits.detach().cpu(), output.relation_logits.detach().cpu()],
            "gradients": list(gradients.values()),
            "offset_gradient": [value for name, value in gradients.items() if name.endswith("decay.offset")],
            "fused_loss": [fused.loss.detach().cpu()],
            "fused_gradients": list(fused_gradients.values()),
        }

    def errors(self, layout: str, backend: str, dtype: str, compiled: bool = False) -> dict:
        if self.expected is None:
            self.expected = self.outcome("padded", "eager", "float64")
        found = self.outcome(layout, backend, dtype, compiled)
        errors = {name: relative_error(found[name], expected) for name, expected in self.expected.items()}
        # flex_attention has the offset's gradient from a difference of two outputs, each rounded.
        allowed = {name: TOLERANCES[dtype] * (2 if name == "offset_gradient" else 1) for name in errors}
        # Not `max(...) <= tolerance`, which a NaN may pass.
        return errors | {"passed": all(errors[name] <= allowed[name] for name in errors)}

    def cases(self) -> dict[str, Callable]:
        cuda = self.scale.device.type == "cuda"
        cases = {
            f"{layout}, {backend}, {dtype}": partial(self.errors, layout, backend, dtype)
            for backend in BACKENDS
            for layout in LAYOUTS
            for dtype in TOLERANCES
            # It has no backward pass on the CPU.
            if backend != "flex_attention" or cuda
        }
        for layout, backend, compiled, _ in ARMS + ARMS_OF_SHORT if cuda else ():
            if compiled:
                for dtype in TOLERANCES:
                    arguments = (layout, backend, dtype, True)
                    cases[f"{layout}, {backend}, {dtype}, compiled"] = partial(self.errors, *arguments)
        return cases


# ---- speed


def matrix_rate(scale: Scale, size: int) -> float:
    """bf16 FLOP/s of a square matrix product of random numbers, the median of 20."""
    a, b = (torch.randn(size, size, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(23):
        scale.wait()
        start = time.perf_counter()
        a @ b
        scale.wait()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[3:])


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
            loss = self.run(**batch, fused_loss=True).loss
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


def some_batches(windows, tokenizer, layout: str, num_roots: int, per_step: int, number: int) -> list[dict]:
    order = np.random.default_rng(0).permutation(len(windows))
    parts = (np.take(order, range(i * per_step, (i + 1) * per_step), mode="wrap") for i in range(number))
    return [collate(tokenizer, layout, num_roots, [windows[int(i)] for i in part]) for part in parts]


def measure_arm(scale: Scale, windows, tokenizer, num_roots: int, arm: tuple, rate: float | None) -> dict:
    """Times of steps over batches that are already on the device."""
    layout, backend, compiled, share = arm
    # Of the longest windows at every length, so that a compiled graph serves them all.
    config = scale.config(max(LENGTHS.values()) if not scale.dry else num_roots)
    # The same number of existing nodes in each step; the canonical layout cannot hold as many.
    per_step = max(1, int(scale.nodes_per_step * share / windows.lengths.mean()) // (6 if layout == "padded" else 1))
    batches = some_batches(windows, tokenizer, layout, num_roots, per_step, 4)
    lengths = [node_counts(batch) for batch in batches]
    flops = statistics.mean(batch_flops(config, *pair) for pair in zip(batches, lengths, strict=True))
    batches = [to_device(batch, scale.device) for batch in batches]
    steps = Steps(scale, config, backend, compiled)
    start = time.perf_counter()
    for batch in batches:
        steps.step(batch)
    scale.wait()
    warm_up_s = time.perf_counter() - start
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for number in range(scale.rounds):
        start = time.perf_counter()
        steps.step(batches[number % 4])
        scale.wait()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    result = {
        "step_time_s": seconds,
        "graphs_per_s": per_step / seconds,
        "nodes_per_s": statistics.mean(int(counts.sum()) for counts in lengths) / seconds,
        "model_flops_per_s": flops / seconds,
        "mfu": None if rate is None else flops / seconds / rate,
        "warm_up_s": warm_up_s,
    }
    if scale.device.type == "cuda":
        result["peak_mem_bytes"] = torch.cuda.max_memory_allocated()
    return result


_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


def waits_in_a_step(scale: Scale, windows, tokenizer, backend: str, compiled: bool) -> dict:
    """Calls that wait for the device in ten packed steps, less those of a profile of nothing."""
    per_step = max(1, int(scale.nodes_per_step / windows.lengths.mean()))
    batches = [to_device(b, scale.device) for b in some_batches(windows, tokenizer, "packed", 128, per_step, 2)]
    steps = Steps(scale, scale.config(128), backend, compiled)
    for number in range(4):
        steps.step(batches[number % 2])

    def waits(count: int) -> dict[str, int]:
        scale.wait()
        with torch.profiler.profile() as profile:
            for number in range(count):
                steps.step(batches[number % 2])
        counts = {event.key: event.count for event in profile.key_averages()}
        copies = sum(count for name, count in counts.items() if "DtoH" in name)
        return {name: counts.get(name, 0) for name in _WAITS} | {"Memcpy DtoH": copies}

    waits(1)
    nothing, ten = waits(0), waits(10)
    return {
        "steps": 10,
        "backend": backend,
        "compiled": compiled,
        "calls": {name: ten[name] - nothing[name] for name in ten},
    }


def measure_schedule(
    scale: Scale, windows, tokenizer, backend: str, compiled: bool, examples, per_step, sizes, limit_hours
) -> dict:
    """A schedule's hours from steps with the collator's workers running, packed rows."""
    if per_step is None or scale.dry:
        per_step = max(1, int(scale.nodes_per_step / windows.lengths.mean()))
    collator = GraphMertCollator(
        tokenizer, layout="packed", with_indices=True, pad_to_multiple_of=1024, **SETUP_SHEET_FACTS
    )
    warm_up = min(20, scale.schedule_steps // 2)
    total = scale.schedule_steps + warm_up
    workers = 0 if scale.dry else 6
    loader = DataLoader(
        windows,
        per_step,
        sampler=RandomSampler(windows, replacement=True, num_samples=per_step * total),
        collate_fn=collator,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=not scale.dry,
        drop_last=True,
    )
    steps = Steps(scale, scale.config(128, **sizes), backend, compiled)
    start = 0.0
    for number, batch in enumerate(loader):
        if number == warm_up:
            scale.wait()
            start = time.perf_counter()
        loss = steps.step(to_device(batch, scale.device))
    scale.wait()
    seconds = (time.perf_counter() - start) / scale.schedule_steps
    return {
        "backend": backend,
        "compiled": compiled,
        "steps_timed": scale.schedule_steps,
        "step_time_s": seconds,
        "examples_per_step": per_step,
        "examples_per_s": per_step / seconds,
        "last_loss": float(loss),
        "examples_of_schedule": examples,
        "extrapolated_hours": examples / per_step * seconds / 3600,
        "limit_hours": limit_hours,
        "parameters": sum(p.numel() for p in steps.model.parameters()),
    }


# ---- a part in this process


def refuse() -> dict:
    return {"refused": "its results are not shown to be those of eager attention in float64"}


def best_verified(verified: list[str]) -> tuple[str, bool] | None:
    """The backend that training would take for packed rows, and whether compiled; None where none is right."""
    for compiled in (True, False):
        for backend in ("flex_attention", "sdpa"):
            if f"packed, {backend}" + (", compiled" if compiled else "") in verified:
                return backend, compiled
    return None


def cases_of(part: str, args: argparse.Namespace, scale: Scale) -> dict[str, Callable]:
    """What a part measures, by name.

    Speeds of a layout and backend that `args.verified` does not name are refused.
    """
    if part == "matrix rate":
        sizes = (256,) if scale.dry else (4096, 8192, 16384)
        return {str(size): partial(matrix_rate, scale, size) for size in sizes}
    split, tokenizer = open_training_split(args.dataset)
    num_roots = LENGTHS.get(part.removeprefix("steps, "), 128)
    most = args.max_windows if num_roots == 128 else args.max_windows // 4
    windows = WindowDataset(split, tokenizer, num_roots=num_roots, max_windows=most)
    if part == "correctness":
        return Correctness(scale, windows, tokenizer).cases()
    if part in ("waits", "schedules"):
        how = best_verified(args.verified)
        if how is None:
            return dict.fromkeys(SCHEDULES if part == "schedules" else ["packed"], refuse)
        common = (scale, windows, tokenizer, *how)
        if part == "waits":
            return {"packed": partial(waits_in_a_step, *common)}
        return {name: partial(measure_schedule, *common, **schedule) for name, schedule in SCHEDULES.items()}
    cases = {}
    for arm in arms_of(part.removeprefix("steps, ")):
        layout, backend, compiled, _ = arm
        # Neither has much to say on a CPU.
        if not (scale.dry and (compiled or backend == "flex_attention")):
            right = f"{layout}, {backend}" + (", compiled" if compiled else "") in args.verified
            measure = partial(measure_arm, scale, windows, tokenizer, num_roots, arm, args.rate)
            cases[arm_name(arm)] = measure if right else refuse
    return cases


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.gpu_parts", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--part", required=True)
    add("--dataset", required=True)
    add("--output", required=True, help="a line of JSON for each case is added here: [case, figures]")
    add("--first", type=int, default=0, help="begin with this case")
    add("--verified", nargs="*", default=[], help="layouts and backends whose results are right")
    add("--rate", type=float, help="FLOP/s that shares are of")
    add("--nodes-per-step", type=int, required=True)
    add("--rounds", type=int, required=True)
    add("--schedule-steps", type=int, required=True)
    add("--max-windows", type=int, required=True)
    add("--decay-mode", required=True)
    add("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    device = torch.device("cpu" if args.dry_run else "cuda")
    scale = Scale(device, args.dry_run, args.nodes_per_step, args.rounds, args.schedule_steps, args.decay_mode)
    with open(args.output, "a", encoding="utf-8") as output:
        for name, measure in list(cases_of(args.part, args, scale).items())[args.first :]:
            failed = False
            try:
                found = measure()
            except torch.OutOfMemoryError:
                found = {"error": "out of memory"}
            except Exception as error:
                traceback.print_exc()
                found, failed = {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}, True
            output.write(json.dumps([name, found]) + "\n")
            output.flush()
            if failed:
                return FAILED
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
