"""What the speed benchmarks count, against PyTorch's own counter, and that they refuse what they must."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_run_pretraining import build_dataset
from tiny import random_window, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from graphmert.benchmarks import checks, gpu, gpu_parts, portable, record, training_speed
from graphmert.benchmarks.flops import forward_flops, training_flops
from graphmert.collator import GraphMertCollator
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.modeling_graphmert import GraphMertForPreTraining

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def _batch(layout: str, count: int = 4):
    rng = np.random.default_rng(0)
    examples = [random_window(rng, i, 24, 3, 30) for i in range(count)]
    return GraphMertCollator(tiny_tokenizer(), num_roots=24, leaves_per_root=3, layout=layout)(examples)


def test_flops_are_those_that_pytorch_counts():
    """One graph at a time, so that nothing is padded; what H-GAT adds beside W_r is small."""
    config = GraphMertConfig(
        vocab_size=len(tiny_tokenizer()), num_roots=24, leaves_per_root=3, attn_implementation="eager", **SIZES
    )
    batch = _batch("compact", count=1)
    nodes, labelled = batch["attention_mask"].sum(1).numpy(), int((batch["labels"] != -100).sum())
    leaves = int((batch["relation_ids"] >= 0).sum())
    assert labelled and leaves
    model = GraphMertForPreTraining(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**batch, sparse_prediction=True)
    expected = forward_flops(config, nodes, labelled, leaves, int(nodes.sum()))
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert expected <= counter.get_total_flops()
    assert training_flops(config, nodes, labelled, leaves) == 3 * forward_flops(config, nodes, labelled, leaves)


def test_packed_nodes_are_counted_by_graph():
    counts = gpu_parts.node_counts(_batch("packed"))
    assert counts.tolist() == gpu_parts.node_counts(_batch("compact")).tolist()


def test_relative_error_is_of_all_tensors_together():
    expected = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert gpu_parts.relative_error([torch.tensor([3.0]), torch.tensor([4.5])], expected) == pytest.approx(0.1)


def test_plain_arms_get_the_same_tokens_without_the_graph():
    rng = np.random.default_rng(1)
    examples = [random_window(rng, i, 128, 7, 30) for i in range(2)]
    ours = training_speed.arm_batch("graphmert compact", examples, tiny_tokenizer())
    plain = training_speed.arm_batch("roberta", examples, tiny_tokenizer())
    padded = training_speed.arm_batch("roberta padded", examples, tiny_tokenizer())
    assert torch.equal(ours["input_ids"], plain["input_ids"]) and set(plain) == set(training_speed._PLAIN_INPUTS)
    assert padded["input_ids"].shape == (2, 1024)
    assert padded["attention_mask"].sum() == plain["attention_mask"].sum()


def test_graph_free_packed_rows_are_those_of_the_graph():
    """Packing must not count as a merit of the graph: the same rows, without H-GAT and decay."""
    rng = np.random.default_rng(1)
    examples = [random_window(rng, i, 128, 7, 30) for i in range(2)]
    ours, free = (training_speed.arm_batch(arm, examples, tiny_tokenizer()) for arm in training_speed.ARMS[-2:])
    assert "graph_ids" in free and all(torch.equal(ours[name], free[name]) for name in ours if name != "indices")
    args = training_speed.parse_arguments(["--dataset", "unused", "--layers", "1", "--hidden-size", "64"])
    model = training_speed.build_model("graph-free packed", args, 60)
    assert model.roberta.hgat is None and model.roberta.decay is None
    for mode in ("multiplicative", "bias"):
        args.decay_mode = mode
        assert training_speed.build_model("graphmert packed", args, 60).config.decay_mode == mode
    optimizer = torch.optim.AdamW(model.parameters())
    before = model.lm_head.dense.weight.clone()
    training_speed.step("graph-free packed", model, optimizer, free)
    assert not torch.equal(before, model.lm_head.dense.weight)


def test_table_shows_medians_of_ratios_of_the_same_step():
    found = {arm: {"step_times_s": [2.0, 4.0, 4.0], "nodes": 9, "positions": 10} for arm in training_speed.ARMS}
    # The last step was disturbed.
    found["roberta padded"]["step_times_s"] = [20.0, 40.0, 400.0]
    text = training_speed.tables({"steps": found}, {"batch_size": 4, "rounds": 3})
    assert "10.0000" in next(line for line in text.splitlines() if line.startswith("graphmert packed"))


def test_memory_table_counts_with_and_without_what_was_there():
    memory = {arm: {"before_bytes": 2**30, "peak_bytes": 3 * 2**30} for arm in training_speed.ARMS[1:]}
    memory["graphmert packed"]["peak_bytes"] = 4 * 2**30
    line = next(line for line in training_speed.memory_table(memory).splitlines() if "graphmert packed" in line)
    assert line.split()[2:] == ["4.0000", "1.3333", "1.3333", "1.3333", "1.5000"]


def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    held = np.ones(300 * 2**20, dtype=np.uint8)
    code = "from graphmert.benchmarks.record import resident_memory; print(*resident_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    now, peak = map(int, done.stdout.split())
    own = record.resident_memory()
    assert held[-1] and own[1] >= own[0] > 300 * 2**20
    assert 0 < now <= peak < 150 * 2**20


def test_parts_of_one_record_must_be_of_one_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(training_speed, "require_equivalence", lambda: "1 passed")
    monkeypatch.setattr(training_speed, "measure_memory", lambda *_args: {})
    found = {arm: {"step_times_s": [1.0], "nodes": 9, "positions": 10} for arm in training_speed.ARMS}

    def measure_speed(_args):
        # Someone commits meanwhile.
        commits.append("2")
        return found

    commits = ["1"]
    monkeypatch.setattr(training_speed, "measure_speed", measure_speed)
    monkeypatch.setattr(training_speed, "commit", lambda: commits[-1])
    command = ["--dataset", "unused", "--record", str(tmp_path / "record"), "--threads", str(torch.get_num_threads())]
    assert training_speed.main([*command, "--parts", "steps"]) == 0
    commits.append("1")
    assert "Not measured: memory, curve." in (tmp_path / "record" / "README.md").read_text()
    assert training_speed.main([*command, "--parts", "memory"]) == 0
    figures = json.loads((tmp_path / "record" / "run.json").read_text())["figures"]
    assert figures["steps"] == found and figures["memory"] == {} and figures["equivalence"] == "1 passed"
    assert training_speed.main([*command, "--parts", "memory", "--batch-size", "2"]) == 2


def test_curve_is_drawn(tmp_path):
    arms = {arm: {"example_time_s": 1.0} for arm in training_speed._CURVE_ARMS}
    training_speed.draw_curve(
        {"64": arms | {"mean_nodes": 63.0}, "128": arms | {"mean_nodes": 128.0}}, tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_no_speed_while_equivalence_fails(monkeypatch):
    def run(*_args, **_kwargs):
        return SimpleNamespace(returncode=1, stdout="1 failed", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(checks.NotEquivalentError, match="1 failed"):
        checks.require_equivalence()


# ---- the GPU's, without one


def _correctness(**wrong) -> dict:
    right = {f"packed, {b}, {d}": {"passed": True} for b in ("eager", "sdpa") for d in gpu_parts.TOLERANCES}
    return right | {name.replace("_", ", "): found for name, found in wrong.items()}


def test_only_what_was_checked_in_every_dtype_gets_a_speed():
    assert gpu.verified(_correctness()) == ["packed, eager", "packed, sdpa"]
    assert gpu.verified(_correctness(packed_sdpa_bfloat16={"passed": False})) == ["packed, eager"]
    assert gpu.verified(_correctness(packed_sdpa_bfloat16={"error": "out of memory"})) == ["packed, eager"]
    correctness = _correctness()
    del correctness["packed, eager, float32"]
    assert gpu.verified(correctness | {"the rest": {"error": "stopped after 1 s"}}) == ["packed, sdpa"]


def test_schedules_take_the_best_backend_that_is_right():
    order = ["packed, flex_attention, compiled", "packed, sdpa, compiled", "packed, flex_attention", "packed, sdpa"]
    expected = [("flex_attention", True), ("sdpa", True), ("flex_attention", False), ("sdpa", False), None]
    # Any order in the list will do; other layouts do not count.
    found = [gpu_parts.best_verified(["compact, sdpa", *reversed(order[i:])]) for i in range(5)]
    assert found == expected


def test_errors_are_found_and_nan_is_no_pass(monkeypatch):
    check = gpu_parts.Correctness.__new__(gpu_parts.Correctness)
    vector = {name: [torch.ones(3)] for name in ("loss", "logits", "gradients", "offset_gradient")}
    check.expected = vector
    for value, passed in ((1.0, True), (1.1, False), (float("nan"), False)):
        check.outcome = lambda *_args, value=value: vector | {"logits": [torch.full((3,), value)]}
        assert check.errors("packed", "sdpa", "bfloat16")["passed"] is passed


def _arguments(tmp_path, *more):
    return gpu.parse_arguments(["--dataset", "unused", "--record", str(tmp_path), "--dry-run", *more])


def _processes(monkeypatch, outcomes: list):
    """Stands for the processes of a part: each writes cases and ends with a status, or hangs."""
    started = []

    def run(command, timeout, check):
        started.append(int(command[command.index("--first") + 1]))
        cases, status = outcomes.pop(0)
        with open(command[command.index("--output") + 1], "a") as output:
            output.writelines(json.dumps(case) + "\n" for case in cases)
        if status is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    return started


def test_a_failing_case_costs_itself_only(tmp_path, monkeypatch):
    outcomes = [([["a", 1.0], ["b", {"error": "CUDA error"}]], gpu_parts.FAILED), ([["c", 2.0]], 0)]
    started = _processes(monkeypatch, outcomes)
    found = gpu.run_part("matrix rate", _arguments(tmp_path), {}, 60)
    assert started == [0, 2] and found == {"a": 1.0, "b": {"error": "CUDA error"}, "c": 2.0}


@pytest.mark.parametrize(
    ("status", "reason"), [(None, "stopped after 60 s"), (-9, "ended with -9"), (3, "ended with 3")]
)
def test_a_hanging_or_dying_part_keeps_what_it_has(tmp_path, monkeypatch, status, reason):
    first = [([["a", 1.0]], status)] if status != gpu_parts.FAILED else [([["a", 1.0]], 3), ([], 3)]
    _processes(monkeypatch, first)
    found = gpu.run_part("matrix rate", _arguments(tmp_path), {}, 60)
    assert found["a"] == 1.0 and reason in found["the rest"]["error"]


def test_no_speed_without_correctness(tmp_path, capsys):
    assert gpu.main(["--dataset", "unused", "--record", str(tmp_path), "--dry-run", "--parts", "waits"]) == 2
    assert "run that part first" in capsys.readouterr().err


def test_a_red_backend_is_refused_and_said(tmp_path, monkeypatch):
    wrong = {
        "packed, sdpa, float32": {"passed": False, "loss": 1.0, "logits": 1.0, "gradients": 1.0, "offset_gradient": 1}
    }
    monkeypatch.setattr(
        gpu, "run_part", lambda part, *_args: wrong if part == "correctness" else {"x": {"error": "no"}}
    )
    command = ["--dataset", "unused", "--record", str(tmp_path), "--dry-run", "--parts", "correctness", "waits"]
    assert gpu.main(command) == 1
    text = (tmp_path / "log.txt").read_text()
    assert "packed, sdpa, float32: WRONG" in text and "waits: x: no" in text
    assert "not yet measured" in (tmp_path / "README.md").read_text()
    args = SimpleNamespace(dataset="unused", max_windows=8, verified=[], rate=None)
    monkeypatch.setattr(gpu_parts, "open_training_split", lambda _path: (None, None))
    monkeypatch.setattr(gpu_parts, "WindowDataset", lambda *_args, **_options: None)
    scale = gpu_parts.Scale(torch.device("cpu"), False, 4096, 1, 1)
    for part in ("steps, 128 roots", "waits", "schedules"):
        assert all("refused" in measure() for measure in gpu_parts.cases_of(part, args, scale).values())


def test_each_line_is_shown_where_there_is_a_gpu():
    figures = {
        "dry_run": False,
        "waits": {"packed": {"calls": {"cudaStreamSynchronize": 2}, "steps": 10, "backend": "x"}},
    }
    step = {
        "mfu": 0.51,
        "step_time_s": 0.1,
        "peak_mem_bytes": 2**31,
        "graphs_per_s": 1,
        "nodes_per_s": 1,
        "warm_up_s": 1,
    }
    for length in gpu_parts.LENGTHS:
        figures[f"steps, {length}"] = {gpu_parts.arm_name(arm): step for arm in gpu_parts.arms_of(length)}
    hours = {"extrapolated_hours": 0.1, "limit_hours": 1, "step_time_s": 1, "backend": "x", "steps_timed": 1}
    hours |= {"compiled": True}
    hours |= {"examples_per_step": 1, "examples_per_s": 1}
    figures["schedules"] = dict.fromkeys(gpu_parts.SCHEDULES, hours)
    rows = gpu.lines_of_the_issue(figures)
    assert len(rows) == 4 + 3 * len(gpu_parts.LENGTHS) and gpu.NOT_YET not in str(rows) and "51.0%" in str(rows)
    assert gpu.NOT_YET in str(gpu.lines_of_the_issue(figures | {"dry_run": True})[0])
    assert gpu.tables(figures)


def test_dry_run_where_neither_datasets_nor_tree_sitter_is(tmp_path, tmp_path_factory):
    """The whole program on a machine that has little but torch and transformers, from an exported split."""
    portable.export(build_dataset(tmp_path_factory), tmp_path / "portable")
    (tmp_path / "site").mkdir()
    absent = (
        "import sys\nfor name in ('datasets', 'tree_sitter', 'evaluate', 'bm25s'):\n    sys.modules[name] = None\n"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(absent)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    parts = ["correctness", "schedules", "steps, 128 roots"]
    command = [sys.executable, "-m", "graphmert.benchmarks.gpu", "--dataset", tmp_path / "portable", "--dry-run"]
    command += ["--record", tmp_path / "record", "--parts", *parts]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "record" / "run.json").read_text())["figures"]
    assert set(parts) <= set(figures) and all(found["passed"] for found in figures["correctness"].values())
    assert set(figures["schedules"]) == set(gpu_parts.SCHEDULES)
