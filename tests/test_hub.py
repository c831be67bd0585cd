"""Pushes while training: what they carry, and that nothing on the Hub's side or the disk's can stop the run."""

import errno
import io
import logging
import os
import zipfile
from pathlib import Path

import pytest
import torch
from hub_server import READ_TOKEN, HubServer
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load
from test_run_pretraining import run
from tiny_pretraining import tiny_arguments, tiny_model, tiny_trainer
from transformers.dynamic_module_utils import get_relative_import_files

from graphmert import checkpoint_trainer, hub_training
from graphmert import modeling_graphmert as modeling
from graphmert.checkpoint_files import newest_complete_checkpoint, why_incomplete
from graphmert.hub_training import HubAccessError, check_hub_access, upload_command

MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "training_args.json"}
# The modeling file and all that it imports.
CODE = {Path(name).name for name in (modeling.__file__, *get_relative_import_files(modeling.__file__))}
STATE = {"optimizer.safetensors", "scheduler.safetensors", "rng_state.safetensors", "trainer_state.json"}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "relation_dropout": 0.3}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch)
        yield server


@pytest.fixture
def warnings(caplog):
    """The warnings that a user sees on the terminal."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("graphmert.")]


def make(directory, **options):
    """Three steps, each saved and pushed."""
    values = {"num_windows": 24, "save_strategy": "steps", "save_steps": 1, "push_to_hub": True}
    values |= {"hub_model_id": "someone/tiny", "hub_always_push": True}
    return tiny_trainer(directory, model=tiny_model(**DROPOUT), **{**values, **options})


def weights_of(content: bytes) -> dict[str, torch.Tensor]:
    return load(content)


def assert_without_pickles(commit: dict) -> None:
    """Neither by name nor by content: a zip of torch.save, or the first byte of a bare pickle."""
    for name, content in commit["content"].items():
        assert Path(name).suffix in {".json", ".safetensors", ".py", ".md", ".png"}, name
        assert not zipfile.is_zipfile(io.BytesIO(content)) and content[:1] != b"\x80", name


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints", "end"])
def test_each_strategy_pushes_what_it_says(tmp_path, hub, strategy):
    trainer = make(tmp_path, hub_strategy=strategy)
    trainer.train()
    assert {"modeling_graphmert.py", "configuration_graphmert.py", "loading_graphmert.py"} <= CODE
    during = len(hub.commits)
    trainer.push_to_hub()
    folders = {
        "every_save": [[], [], []],
        "checkpoint": [["last-checkpoint"]] * 3,
        "all_checkpoints": [[f"checkpoint-{step}"] for step in (1, 2, 3)],
        "end": [],
    }[strategy]
    assert during == len(folders) and len(hub.commits) == during + 1
    for step, (commit, expected) in enumerate(zip(hub.commits, folders, strict=False), start=1):
        names = set(commit["files"])
        assert commit["summary"].startswith(f"Training in progress, step {step}")
        assert {name.split("/")[0] for name in names if "/" in name} == {*expected}
        assert {name for name in names if "/" not in name} == MODEL_FILES | CODE | {"tokenizer_config.json"}
        assert {name.split("/")[1] for name in names if "/" in name} >= STATE or not expected
        assert_without_pickles(commit)
        pushed = weights_of(commit["content"]["model.safetensors"])
        saved = weights_of((tmp_path / f"checkpoint-{step}" / "model.safetensors").read_bytes())
        assert all(torch.equal(pushed[name], saved[name]) for name in saved)
        card = commit["content"]["README.md"].decode()
        assert (f"step {step} of 3" in card) == (step < 3)
    assert_without_pickles(hub.commits[-1])
    assert {name for name in hub.commits[-1]["files"] if "/" not in name} >= MODEL_FILES | CODE
    assert not (tmp_path / "_push").exists() and not list(tmp_path.glob("**/*.bin"))


def test_pushed_checkpoint_resumes_the_run(tmp_path, hub):
    whole = make(tmp_path / "whole", hub_strategy="checkpoint")
    whole.train()
    checkpoint = hub.write(tmp_path / "downloaded", hub.commits[1]["oid"], folder="last-checkpoint/")
    assert why_incomplete(checkpoint) is None
    resumed = make(tmp_path / "resumed", push_to_hub=False)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 3
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# The library asks six times in all where the server fails, with pauses; a token that is no longer valid is told at once.
@pytest.mark.parametrize(("status", "times"), [(500, 6), (401, 1)])
def test_server_that_fails_in_the_middle_of_a_push(tmp_path, hub, warnings, monkeypatch, status, times):
    hub.fail("/commit/", status, times=times)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    trainer = make(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 3
    (warning,) = warnings()
    assert warning.startswith("the push of step 1 to someone/tiny failed: ") and str(status) in warning
    assert f"Training goes on, the checkpoint is in {tmp_path / 'checkpoint-1'}" in warning
    assert all(why_incomplete(tmp_path / f"checkpoint-{step}") is None for step in (1, 2, 3))
    assert [commit["summary"] for commit in hub.commits] == [f"Training in progress, step {step}" for step in (2, 3)]


def test_slow_push_outlives_its_checkpoint(tmp_path, hub, warnings):
    """The checkpoint is rotated away while its push waits; what arrives is that checkpoint, whole."""
    hub.open.clear()
    trainer = make(tmp_path, save_total_limit=1, hub_always_push=False)
    finish = trainer._finish_current_push

    def open_and_finish():
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
        hub.open.set()
        finish()

    trainer._finish_current_push = open_and_finish
    trainer.train()
    texts = [f"step {step} is not pushed to someone/tiny: an earlier push is still under way" for step in (2, 3)]
    assert warnings() == texts
    (commit,) = hub.commits
    assert commit["summary"] == "Training in progress, step 1" and set(commit["files"]) >= MODEL_FILES | CODE
    assert len(weights_of(commit["content"]["model.safetensors"])) > 10


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_while_a_push_is_prepared(tmp_path, hub, warnings, monkeypatch):
    monkeypatch.setattr(hub_training, "link_files", full)
    trainer = make(tmp_path)
    trainer.train()
    assert trainer.state.global_step == 3 and hub.commits == []
    assert len(warnings()) == 3 and "No space left on device" in warnings()[0]
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", [])
    assert not (tmp_path / "_push").exists()


# What the libraries raised on a full disk, in the order in which a checkpoint is written.
FULL = {
    "weights": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "tokenizer": Exception("No space left on device (os error 28)"),
    "optimizer": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "history": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "record": OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
}


@pytest.mark.parametrize("place", FULL)
def test_checkpoint_that_does_not_fit(tmp_path, warnings, monkeypatch, place):
    """The second checkpoint does not fit: it is removed, the first is kept though only one may be, the third is saved."""
    trainer = make(tmp_path, push_to_hub=False, save_total_limit=1)
    owner, name = {
        "weights": (type(trainer.model), "save_pretrained"),
        "tokenizer": (type(trainer.processing_class), "save_pretrained"),
        "optimizer": (checkpoint_trainer, "save_tree"),
        "history": (type(trainer.state), "save_to_json"),
        "record": (checkpoint_trainer, "write_record"),
    }[place]
    seen, write = [], getattr(owner, name)

    def write_or_fail(*args, **kwargs):
        if trainer.state.global_step == 2:
            raise FULL[place]
        if trainer.state.global_step == 3 and not seen:
            seen.append(newest_complete_checkpoint(tmp_path)[0].name)
            seen.append((tmp_path / "checkpoint-2").exists())
        return write(*args, **kwargs)

    monkeypatch.setattr(owner, name, write_or_fail)
    trainer.train()
    assert trainer.state.global_step == 3 and seen == ["checkpoint-1", False]
    (warning,) = warnings()
    assert warning.startswith(f"step 2 could not be saved in {tmp_path / 'checkpoint-2'}, the disk is full")
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", [])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_other_errors_while_saving_end_the_run(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(checkpoint_trainer, "save_tree", refuse)
    with pytest.raises(PermissionError):
        make(tmp_path, push_to_hub=False).train()


@pytest.mark.parametrize(
    ("token", "status", "text"),
    [
        ("hf_wrong", None, "the Hub refuses the token (401)"),
        (READ_TOKEN, None, "the Hub token of someone may only read"),
        (None, None, "--push_to_hub needs a Hub token"),
        ("hf_token", 403, "the Hub refuses the token (403)"),
        ("hf_token", 404, "the Hub cannot be used"),
    ],
)
def test_token_is_tried_before_anything_else(tmp_path, monkeypatch, capsys, token, status, text):
    """Not even the data set, which is not there, is looked at; nothing is written."""
    with HubServer() as hub:
        hub.use_in_process(monkeypatch, token)
        if status:
            hub.fail("/whoami", status)
        status = run("--dataset", tmp_path / "none", "--output_dir", tmp_path / "out", "--push_to_hub", "--use_cpu")
    errors = capsys.readouterr().err.splitlines()
    assert status == 2 and len(errors) == 1 and errors[0].startswith(f"run_pretraining.py: error: {text}"), errors
    assert not (tmp_path / "out").exists() and hub.repositories == set()


def test_repositories_that_cannot_be_written_to(tmp_path, hub, monkeypatch):
    with pytest.raises(HubAccessError, match=r"refuses the token \(403\).*under this namespace"):
        make(tmp_path, hub_model_id="stranger/tiny")
    hub.fail("/auth-check/write", 403, times=1)
    with pytest.raises(HubAccessError, match=r"refuses the token \(403\)"):
        make(tmp_path)
    # A server that does not know the question has not refused.
    hub.fail("/auth-check/write", 404, times=1)
    assert make(tmp_path).hub_model_id == "someone/tiny"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubAccessError, match="the Hub cannot be used"):
        check_hub_access(tiny_arguments(tmp_path, push_to_hub=True))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubAccessError, match="HF_HUB_OFFLINE"):
        check_hub_access(tiny_arguments(tmp_path, push_to_hub=True))


def test_pickles_of_others_are_left_out_and_named(tmp_path, hub, warnings):
    trainer = make(tmp_path, hub_strategy="end")
    trainer.train()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    trainer.push_to_hub()
    assert warnings() == ["not pushed, because reading them would run code: pytorch_model.bin"]
    assert_without_pickles(hub.commits[-1])


def test_card_of_a_trainer_that_knows_no_data_set(tmp_path, hub):
    trainer = make(tmp_path, push_to_hub=False, save_strategy="no", eval_strategy="epoch")
    trainer.train()
    trainer.create_model_card(license="mit", tags="mine", language=["code", "en"], model_name="other")
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    assert card.data.license == "mit" and "mine" in card.data.tags and card.data.language == ["code", "en"]
    assert {result.metric_name for result in card.data.eval_results} >= {"MLM accuracy", "relation macro-F1"}
    assert (
        "manifest was not given" in card.text and "`calls`" in card.text and "| learning_rate | 0.001 |" in card.text
    )


def test_upload_command_leaves_out_what_the_push_leaves_out():
    command = upload_command("runs/my run", "someone/tiny")
    assert command.startswith("hf upload someone/tiny 'runs/my run' . ")
    assert "--exclude '_*'" in command and "--exclude 'checkpoint-*'" in command and "--exclude '*.bin'" in command
