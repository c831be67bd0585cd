"""Killing and resuming: the same weights to the last bit, and no checkpoint that was cut short."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pretraining import tiny_collator, tiny_model, tiny_trainer

from graphmert.checkpoint_files import RECORD_NAME, newest_complete_checkpoint, why_incomplete

TESTS = Path(__file__).parent
# 5 steps in an epoch: step 3 lies within one, step 10 between two.
OPTIONS = {"num_windows": 40, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "relation_dropout": 0.3}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(directory, **options):
    return tiny_trainer(directory, model=tiny_model(**DROPOUT), collator=tiny_collator(), **{**OPTIONS, **options})


def assert_same_weights(first, second):
    first, second = first.model.state_dict(), second.model.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    torch.set_num_threads(1)
    trainer = make(tmp_path_factory.mktemp("left_alone"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("step", [3, 10, 12])
def test_resuming_gives_the_same_weights(tmp_path, left_alone, step):
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(Path(left_alone.args.output_dir) / f"checkpoint-{step}"))
    assert_same_weights(left_alone, resumed)
    losses = [{e["step"]: e["loss"] for e in t.state.log_history if "loss" in e} for t in (left_alone, resumed)]
    assert losses[0] == losses[1]


def test_resuming_without_the_epoch_would_differ(tmp_path, left_alone):
    """The test above can fail: masks of another epoch give other weights."""
    resumed = make(tmp_path)
    resumed.train_dataset.set_epoch = lambda epoch: None
    resumed.train(resume_from_checkpoint=str(Path(left_alone.args.output_dir) / "checkpoint-12"))
    with pytest.raises(AssertionError):
        assert_same_weights(left_alone, resumed)


def test_resuming_with_length_groups_and_workers(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "dataloader_num_workers": 1, "save_steps": 7}
    whole = make(tmp_path / "whole", **options)
    whole.train()
    resumed = make(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert_same_weights(whole, resumed)


def test_resuming_goes_on_with_the_weights_of_the_losses(tmp_path):
    whole = make(tmp_path / "whole", final_mnm_weight=0.0, save_steps=7)
    whole.train()
    resumed = make(tmp_path / "resumed", final_mnm_weight=0.0, save_steps=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert_same_weights(whole, resumed)
    logged = [entry["mnm_weight"] for entry in resumed.state.log_history if "mnm_weight" in entry]
    assert logged == [entry["mnm_weight"] for entry in whole.state.log_history if "mnm_weight" in entry] != []


def test_killed_while_saving(tmp_path, left_alone):
    """SIGKILL in the middle of writing the checkpoint of step 8: the one of step 7 is used."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(TESTS)!r})
import torch
torch.set_num_threads(1)
from test_trainer_resume import make
trainer = make(sys.argv[1])
save = trainer._save_optimizer_and_scheduler
def cut_short(directory):
    if trainer.state.global_step == 8:
        with open(os.path.join(directory, "optimizer.safetensors"), "wb") as file:
            file.write(b"PK")
        os.kill(os.getpid(), signal.SIGKILL)
    save(directory)
trainer._save_optimizer_and_scheduler = cut_short
trainer.train()
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=180)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (tmp_path / "checkpoint-8" / "model.safetensors").exists()
    checkpoint, passed_over = newest_complete_checkpoint(tmp_path)
    assert checkpoint == tmp_path / "checkpoint-7"
    assert (
        len(passed_over) == 1 and "checkpoint-8 is incomplete (checkpoint_complete.json is missing" in passed_over[0]
    )
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(left_alone, resumed)
    assert why_incomplete(tmp_path / "checkpoint-8") is None


def test_damage_is_recognised(tmp_path):
    trainer = make(tmp_path, num_windows=8, num_train_epochs=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert newest_complete_checkpoint(tmp_path) == (checkpoint, [])
    model = checkpoint / "model.safetensors"
    content = model.read_bytes()
    for damaged, text in (
        (content[: len(content) // 2], f"model.safetensors has {len(content) // 2} bytes instead of {len(content)}"),
        (content[:-1] + bytes([content[-1] ^ 1]), "model.safetensors does not have the recorded content"),
    ):
        model.write_bytes(damaged)
        assert why_incomplete(checkpoint) == text
        assert newest_complete_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-1"
    model.unlink()
    assert why_incomplete(checkpoint) == "model.safetensors is missing"
    model.write_bytes(content)
    assert why_incomplete(checkpoint) is None

    record = json.loads((checkpoint / RECORD_NAME).read_text())
    del record["files"]["optimizer.safetensors"]
    (checkpoint / RECORD_NAME).write_text(json.dumps(record))
    assert why_incomplete(checkpoint) == "it was saved without optimizer.safetensors"
    (checkpoint / RECORD_NAME).write_text("{")
    assert why_incomplete(checkpoint) == f"{RECORD_NAME} cannot be read"
    assert why_incomplete(tmp_path / "checkpoint-3") == "there is no such directory"
    (tmp_path / "checkpoint-1" / RECORD_NAME).unlink()
    checkpoint, passed_over = newest_complete_checkpoint(tmp_path)
    assert checkpoint is None and len(passed_over) == 2
    # By number, not by name: 10 comes after 9.
    assert newest_complete_checkpoint(tmp_path / "nothing") == (None, [])


def test_older_checkpoints_go_only_after_a_newer_one_is_whole(tmp_path, monkeypatch):
    import graphmert.checkpoint_trainer as module

    seen = []
    rotate = module.rotate_checkpoints

    def look(output_dir, **options):
        seen.append(newest_complete_checkpoint(output_dir)[0].name)
        rotate(output_dir=output_dir, **options)

    monkeypatch.setattr(module, "rotate_checkpoints", look)
    trainer = make(tmp_path, num_windows=24, num_train_epochs=1, save_total_limit=1)
    trainer.train()
    assert seen == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.args.save_total_limit == 1
    assert (tmp_path / "checkpoint-3" / "modeling_graphmert.py").exists()
