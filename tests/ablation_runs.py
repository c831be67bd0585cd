"""A small setting for the tests of the ablations, and runs that are finished without having been trained."""

import json
from dataclasses import asdict
from pathlib import Path

from graphmert.ablations.settings import Run, read_setting, runs_of, write_config
from graphmert.pretraining_arguments import parse_arguments
from graphmert.run_summary import file_sha256

SETTING = """
description: A tiny setting.
baseline: graph_off
rows: [graph_off, full]
seeds: [0, 1]
training:
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  intermediate_size: 32
  num_roots: 48
  leaves_per_root: 3
  mnm_target: relation
  max_steps: 4
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 1
  train_sampling_strategy: group_by_length
  order_leaves_per_root: 3
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 2
  save_strategy: steps
  save_steps: 2
  use_cpu: true
"""
ROWS = {
    "graph_off": "description: No leaves.\ntraining: {leaves_per_root: 0, mlm_weight: 1.0, mnm_weight: 0.0}\n",
    "full": "description: Nothing changed.\n",
    "both": "description: Relations and tails.\ntraining: {mnm_target: both}\n",
    "longer": "description: Graph off for as long.\nsame_time_as: full\ntraining: {leaves_per_root: 0}\n",
}


def write_setting(directory: Path, setting: str = SETTING) -> Path:
    """A setting with its rows; ends with the setting's path."""
    (directory / "rows").mkdir(parents=True, exist_ok=True)
    for name, text in ROWS.items():
        (directory / "rows" / f"{name}.yaml").write_text(text)
    path = directory / "tiny.yaml"
    path.write_text(setting)
    return path


def tiny_runs(directory: Path, rows: list[str] | None = None, seeds: list[int] | None = None):
    """The setting, its runs with their configurations written, and something that has a dataset's manifest."""
    setting = read_setting(write_setting(directory / "conf"), rows, seeds)
    dataset = directory / "data"
    dataset.mkdir(exist_ok=True)
    (dataset / "manifest.json").write_text("{}")
    runs = runs_of(setting, directory / "runs")
    for run in runs:
        write_config(run, dataset, 1)
    return setting, runs, dataset


def summary_of(run: Run, dataset: Path, **held_out) -> dict:
    """What `run_pretraining.py` would have written for a run, as far as the ablations read it."""
    model, data, _, training = parse_arguments([str(run.directory / "config.yaml")])
    return {
        "held_out": held_out,
        "unigram": {"loss": 7.0},
        "lookups": None,
        "arguments": {"model": asdict(model), "data": asdict(data), "training": training.to_dict()},
        "parameters": {"total": 1000},
        "optimizer_steps": 4,
        "windows": {"training": {"nodes_per_window": 30.0}},
        "times_s": {"train": 1.0},
        "manifest_sha256": file_sha256(dataset / "manifest.json"),
        "projects_held_out": ["held"],
        "environment": {"git_commit": "0123456789abcdef", "versions": {"torch": "2"}, "python": "3", "device": "cpu"},
    }


def finish(run: Run, dataset: Path, directory: Path | None = None, **held_out) -> Path:
    """Write what a finished run leaves, with these held-out figures, in its own directory or another one."""
    directory = run.directory / "model" if directory is None else directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "summary.json").write_text(json.dumps(summary_of(run, dataset, **held_out), default=str))
    history = [
        {
            "step": step,
            "loss": 1.0,
            "mlm_loss": 7 - step / 4,
            "eval_mlm_loss": 7 - step / 5,
            "eval_mnm_macro_f1": step / 9,
        }
        for step in (2, 4)
    ]
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return directory
