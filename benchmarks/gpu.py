"""One run on one GPU: correctness, then speed, then whole schedules. `python -m graphmert.benchmarks.gpu --help`.

In this order, within --minutes:

    correctness   every layout and attention backend, compiled ones too, against eager attention in float64: loss, logits
                  and gradients. What is wrong, or could not be checked, gets no speed; everything else does
    matrix rate   the card's own, in bf16
    schedules     the setup sheet's and the paper's, from steps with the data path running, packed and compiled
    waits         what waits for the device in a step, from the profiler's trace
    steps, ...    forward, backward, clipping and AdamW by layout, backend and length: time, peak memory, share of the
                  matrix rate in model FLOPs
    tests         the repository's tests that need a CUDA device

Each part runs in a process of its own (`gpu_parts.py`), so that one that fails, hangs or breaks the device's context costs
itself only; the record is written after each. Parts that the record already holds, from the same commit, device and
options, stay, so that the run can be cut into commands (`--parts`). --dry-run does everything at a tiny size on the CPU;
its record says "not yet measured".
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ..configuration_graphmert import DECAY_MODES, GraphMertConfig
from .gpu_parts import FAILED, LENGTHS, SCHEDULES, TOLERANCES, arm_name, arms_of
from .record import ROOT, commit, text_table, write_record

# Most minutes of each part.
LIMITS = {
    "correctness": 7.0,
    "matrix rate": 1.5,
    "schedules": 7.0,
    "waits": 3.0,
    **{f"steps, {length}": 6.0 if length == "128 roots" else 3.5 for length in LENGTHS},
    "tests": 4.0,
}
CUDA_TESTS = ("tests/test_flex_attention.py", "tests/test_device_path.py")
NOT_YET = "not yet measured"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m graphmert.benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--dataset",
        required=True,
        help="directory of `graphmert.chain_graphs.build` or `graphmert.benchmarks.portable`",
    )
    add("--record", required=True, help="directory for the record")
    add("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="what to run (everything)")
    add("--minutes", type=float, default=24.0, help="stop after so many minutes, whatever is left (24)")
    add("--nodes-per-step", type=int, default=65_536, help="nodes of a step (65,536)")
    add("--rounds", type=int, default=20, help="timed steps of each arm (20)")
    add("--schedule-steps", type=int, default=500, help="timed steps of each schedule (500)")
    add("--max-windows", type=int, default=20_000, help="windows to draw from (20,000)")
    add(
        "--decay-mode",
        choices=[mode for mode in DECAY_MODES if mode is not None],
        default=GraphMertConfig.decay_mode,
        help="how attention decays, another mode for another record (%(default)s)",
    )
    add("--commit", help="the commit that is run, where there is no git to ask")
    add("--dry-run", action="store_true", help="a tiny size on the CPU, to see that the program runs")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run tries the program on the CPU")
    if args.nodes_per_step < 4096:
        parser.error("--nodes-per-step must be at least 4096")
    for name in ("rounds", "schedule_steps", "max_windows"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.dry_run:
        args.nodes_per_step, args.rounds, args.schedule_steps, args.max_windows = 4096, 2, 4, 400
    return args


def verified(correctness: dict) -> list[str]:
    """Layouts with backends, compiled or not, that were checked in every dtype and are right."""
    arms = {}
    for name, found in correctness.items():
        if found.get("passed"):
            layout, backend, dtype, *compiled = name.split(", ")
            arms.setdefault(", ".join([layout, backend, *compiled]), set()).add(dtype)
    return [arm for arm, dtypes in arms.items() if dtypes == set(TOLERANCES)]


def run_part(part: str, args: argparse.Namespace, figures: dict, seconds: float) -> dict:
    """One part's figures by case; a case that failed, or was not reached, has an `error`."""
    rates = [rate for rate in figures.get("matrix rate", {}).values() if isinstance(rate, float)]
    command = [sys.executable, "-m", "graphmert.benchmarks.gpu_parts", "--part", part, "--dataset", args.dataset]
    for name in ("nodes_per_step", "rounds", "schedule_steps", "max_windows", "decay_mode"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--rate", str(max(rates))] if rates else []
    command += ["--dry-run"] if args.dry_run else []
    command += ["--verified", *verified(figures.get("correctness", {}))]
    deadline, found = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "cases"
        output.touch()
        while True:
            again = [*command, "--output", str(output), "--first", str(len(found))]
            try:
                status = subprocess.run(again, timeout=max(1, deadline - time.monotonic()), check=False).returncode
            except subprocess.TimeoutExpired:
                status = None
            before = len(found)
            found = dict(json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
            if status == FAILED and len(found) > before:
                continue
            if status is None:
                found["the rest"] = {"error": f"stopped after {seconds:.0f} s"}
            elif status != 0:
                found["the rest"] = {"error": f"the process ended with {status}"}
            return found


def run_tests(seconds: float) -> dict:
    """The tests that need a CUDA device: pytest's last lines."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=-q --strict-markers",
        "-p",
        "no:cacheprovider",
        *CUDA_TESTS,
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1, seconds), check=False)
    except subprocess.TimeoutExpired:
        return {"pytest": {"error": f"stopped after {seconds:.0f} s"}}
    lines = (done.stdout + done.stderr).strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    counts = next((line for line in reversed(lines) if " in " in line and ("passed" in line or "failed" in line)), "")
    if done.returncode != 0:
        return {"pytest": {"error": counts or f"ended with {done.returncode}", "lines": failures or lines[-15:]}}
    return {"pytest": {"counts": counts}}


# ---- what is said about it


def _has(figures: dict, part: str, case: str, name: str):
    found = figures.get(part, {}).get(case)
    return None if figures["dry_run"] or not isinstance(found, dict) else found.get(name)


def lines_of_the_issue(figures: dict) -> list[list]:
    """What a GPU has to show: [line, measured, asked]."""
    rows = []
    mfu = _has(figures, "steps, 128 roots", arm_name(arms_of("128 roots")[0]), "mfu")
    rows.append(["share of the matrix rate, packed, compiled, bf16", None if mfu is None else f"{mfu:.1%}", ">= 50 %"])
    for name, schedule in SCHEDULES.items():
        hours = _has(figures, "schedules", name, "extrapolated_hours")
        limit = schedule["limit_hours"]
        rows.append(
            [f"schedule: {name}", None if hours is None else f"{60 * hours:.1f} min", f"<= {60 * limit:.0f} min"]
        )
    for length in LENGTHS:
        for layout, backend, compiled, share in arms_of(length)[1:4]:
            case = arm_name((layout, backend, compiled, share))
            seconds, peak = (_has(figures, f"steps, {length}", case, n) for n in ("step_time_s", "peak_mem_bytes"))
            shown = None if seconds is None else f"{1000 * seconds:.0f} ms, {peak / 2**30:.1f} GiB"
            rows.append([f"step at {length}: {case}", shown, "flex beside the others"])
    calls = _has(figures, "waits", "packed", "calls")
    rows.append(["waits for the device in 10 steps", None if calls is None else str(sum(calls.values())), "0"])
    return [[line, NOT_YET if shown is None else shown, asked] for line, shown, asked in rows]


def failures(figures: dict) -> list[str]:
    """Everything that failed, was refused or came out wrong, a line each."""
    result = []
    for part in LIMITS:
        for case, found in figures.get(part, {}).items():
            if isinstance(found, dict):
                reason = found.get("error") or found.get("refused")
                reason = "WRONG" if found.get("passed") is False and not reason else reason
                result += [f"{part}: {case}: {reason}"] if reason else []
                result += [f"    {line}" for line in found.get("lines", ())]
    return result


def tables(figures: dict) -> str:
    """The lines, what failed, then all parts as text."""
    parts = [text_table(["line", "measured", "asked"], lines_of_the_issue(figures))]
    if figures["dry_run"]:
        parts.append(
            "NOT YET MEASURED. What follows is a dry run on the CPU at a tiny size; it answers none of the lines."
        )
    if failures(figures):
        parts.append("failed or refused\n" + "\n".join(failures(figures)))
    missing = [part for part in LIMITS if part not in figures]
    if missing:
        parts.append("not run: " + ", ".join(missing))

    def measured(part: str, name: str) -> dict:
        cases = figures.get(part, {})
        return {case: found for case, found in cases.items() if isinstance(found, dict) and name in found}

    names = ("loss", "logits", "gradients", "offset_gradient")
    rows = [
        [case, *(f"{found[name]:.1e}" for name in names), "yes" if found["passed"] else "NO"]
        for case, found in measured("correctness", "passed").items()
    ]
    if rows:
        parts.append(text_table(["against float64 eager", "loss", "logits", "gradients", "offset", "right"], rows))
    rates = [[size, rate / 1e12] for size, rate in figures.get("matrix rate", {}).items() if isinstance(rate, float)]
    if rates:
        parts.append(text_table(["bf16 matrix product, size", "TFLOP/s"], rates))
    rows = [
        [name, e["backend"], "yes" if e["compiled"] else "no", e["steps_timed"], e["step_time_s"],
         e["examples_per_step"], round(e["examples_per_s"]), e["extrapolated_hours"], e["limit_hours"]]
        for name, e in measured("schedules", "step_time_s").items()
    ]  # fmt: skip
    if rows:
        header = ["schedule", "backend", "compiled", "steps", "s", "examples a step", "examples/s", "hours", "at most"]
        parts.append(text_table(header, rows))
    for found in measured("waits", "calls").values():
        parts.append(f"waits in {found['steps']} steps ({found['backend']}): {found['calls']}")
    rows = [
        [f"{length}: {arm}", e["step_time_s"], round(e["graphs_per_s"]), round(e["nodes_per_s"]),
         None if e["mfu"] is None else f"{e['mfu']:.1%}", e.get("peak_mem_bytes", 0) / 2**30 or None, e["warm_up_s"]]
        for length in LENGTHS
        for arm, e in measured(f"steps, {length}", "step_time_s").items()
    ]  # fmt: skip
    if rows:
        header = ["steps", "s", "graphs/s", "nodes/s", "of the matrix rate", "peak GiB", "4 first steps, s"]
        parts.append(text_table(header, rows))
    parts += [f"tests: {found['counts']}" for found in measured("tests", "counts").values()]
    return "\n\n".join(parts)


def settings(args: argparse.Namespace) -> dict:
    """What decides the figures; the parts of one record share it."""
    names = ("nodes_per_step", "rounds", "schedule_steps", "max_windows", "decay_mode", "dry_run")
    return {name: getattr(args, name) for name in names}


def earlier_figures(args: argparse.Namespace, device: str) -> dict:
    """Figures of the record that this run adds to, or new ones.

    Raises:
        ValueError: the record is of another commit or device, or of other options.
    """
    figures = {
        "dry_run": args.dry_run,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": device,
        "options": settings(args),
        "run_commit": args.commit,
    }
    path = Path(args.record) / "run.json"
    if not path.exists():
        return figures
    earlier = json.loads(path.read_text(encoding="utf-8"))["figures"]
    other = [name for name, value in figures.items() if earlier.get(name) != value]
    if other:
        raise ValueError(f"{path} differs in {', '.join(other)}; choose another --record")
    return earlier


def save(args: argparse.Namespace, figures: dict) -> None:
    shown = " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in settings(args).items() if name != "dry_run"
    )
    command = "python -m graphmert.benchmarks.gpu --dataset DIR --record DIR " + (
        "--dry-run" if args.dry_run else shown
    )
    title = "One GPU: correctness and speed" + (f" ({NOT_YET}: a dry run on the CPU)" if args.dry_run else "")
    notes = (
        "Errors are relative norms against eager attention in float64 on the canonical layout. Speeds count existing "
        "nodes, never padding; model FLOPs are matrix products, three times the forward pass. Schedules are extrapolated "
        "from timed steps with the data path running."
    )
    write_record(args.record, title, command, figures, tables(figures), notes)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    deadline = time.monotonic() + 60 * args.minutes
    # Asked once: what is checked out may change while this runs.
    args.commit = args.commit or commit()
    try:
        figures = earlier_figures(args, "cpu" if args.dry_run else torch.cuda.get_device_name())
        if "correctness" not in args.parts and "correctness" not in figures:
            raise ValueError("no speed without correctness: run that part first, or add it to --parts")
    except (ValueError, OSError) as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2
    for part in [part for part in LIMITS if part in args.parts]:
        # The limits are a GPU's; nothing hangs on how long a dry run takes.
        limit = args.minutes if args.dry_run else LIMITS[part]
        seconds = min(60 * limit, deadline - time.monotonic())
        if seconds < 20:
            break
        print(f"gpu: {part}, at most {seconds:.0f} s", file=sys.stderr, flush=True)
        found = run_tests(seconds) if part == "tests" else run_part(part, args, figures, seconds)
        # Another process may have measured another part meanwhile.
        figures = earlier_figures(args, figures["device"]) | {part: found}
        save(args, figures)
    print(tables(figures))
    return 1 if failures(figures) or not set(args.parts) <= set(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
