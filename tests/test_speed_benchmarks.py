"""What the speed benchmarks count, against PyTorch's own counter, and that they refuse what they must."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import random_window, tiny_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from graphmert.benchmarks import checks, gpu, training_speed
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
    counts = gpu.node_counts(_batch("packed"))
    assert counts.tolist() == gpu.node_counts(_batch("compact")).tolist()


def test_relative_error_is_of_all_tensors_together():
    expected = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert gpu.relative_error([torch.tensor([3.0]), torch.tensor([4.5])], expected) == pytest.approx(0.1)


def test_plain_arms_get_the_same_tokens_without_the_graph():
    rng = np.random.default_rng(1)
    examples = [random_window(rng, i, 128, 7, 30) for i in range(2)]
    ours = training_speed.arm_batch("graphmert compact", examples, tiny_tokenizer())
    plain = training_speed.arm_batch("roberta", examples, tiny_tokenizer())
    padded = training_speed.arm_batch("roberta padded", examples, tiny_tokenizer())
    assert torch.equal(ours["input_ids"], plain["input_ids"]) and set(plain) == set(training_speed._PLAIN_INPUTS)
    assert padded["input_ids"].shape == (2, 1024)
    assert padded["attention_mask"].sum() == plain["attention_mask"].sum()


def test_table_shows_ratios_of_one_run():
    found = {arm: {"step_times_s": [2.0, 4.0], "nodes": 9, "positions": 10} for arm in training_speed.ARMS}
    found["roberta padded"]["step_times_s"] = [20.0, 40.0]
    text = training_speed.tables({"arms": found})
    assert "10.0000" in next(line for line in text.splitlines() if line.startswith("graphmert packed"))


def test_no_speed_while_equivalence_fails(monkeypatch):
    def run(*_args, **_kwargs):
        return SimpleNamespace(returncode=1, stdout="1 failed", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(checks.NotEquivalentError, match="1 failed"):
        checks.require_equivalence()


def test_wrong_backends_stop_the_gpu_run(monkeypatch, tmp_path):
    wrong = {"compact, sdpa, float32": {"loss": 1.0, "gradients": 1.0, "offset_gradient": 1.0, "passed": False}}
    monkeypatch.setattr(gpu, "check_correctness", lambda *_args: wrong)
    monkeypatch.setattr(gpu, "load_chain_graphs", lambda _path: ({"train": []}, {}, tiny_tokenizer()))
    monkeypatch.setattr(gpu, "WindowDataset", lambda *_args, **_options: None)
    args = gpu.parse_arguments(["--dataset", "unused", "--record", str(tmp_path), "--dry-run"])
    figures = {"dry_run": True}
    assert gpu.measure(args, figures) is False
    assert "matrix_rate" not in figures and "NO" in (tmp_path / "log.txt").read_text()
    assert "not yet measured" in (tmp_path / "README.md").read_text()
