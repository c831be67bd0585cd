"""Directories that somebody changed: refused with a clear error, and nothing in them runs."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import RELATIONS, tiny_config, tiny_model
from tiny_pretraining import tiny_model as trained_model
from tiny_pretraining import tiny_trainer
from transformers import AutoConfig, AutoModel

from graphmert import GraphMertConfig
from graphmert.checkpoint_files import RECORD_NAME, newest_complete_checkpoint, why_incomplete, write_record
from graphmert.modeling_graphmert import (
    GraphMertForMaskedLM,
    GraphMertForPreTraining,
    GraphMertForSequenceClassification,
    GraphMertModel,
)
from graphmert.training_state import load_tree, save_tree

CLASSES = (GraphMertModel, GraphMertForMaskedLM, GraphMertForPreTraining, GraphMertForSequenceClassification)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def write_payload(path: Path, trace: Path) -> None:
    """Write a pickle, in the form of torch.save, that makes the directory `trace` when it is read."""
    torch.save({"roberta.embeddings.word_embeddings.weight": Payload(trace)}, path)


@pytest.fixture
def saved(tmp_path) -> Path:
    directory = tmp_path / "model"
    tiny_model(GraphMertForPreTraining, dtype=torch.float32).save_pretrained(directory)
    return directory


def change_weights(directory: Path, change) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory: Path, **values) -> None:
    config = json.loads((directory / "config.json").read_text())
    config = {name: value for name, value in {**config, **values}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))


def test_payload_would_run(tmp_path):
    """The tests below can fail."""
    write_payload(tmp_path / "pickle", tmp_path / "trace")
    torch.load(tmp_path / "pickle", weights_only=False)
    assert (tmp_path / "trace").is_dir()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "pickle")


@pytest.mark.parametrize("model_class", [*CLASSES, AutoModel])
def test_pickled_weights_are_never_read(saved, tmp_path, model_class):
    trace = tmp_path / "trace"
    write_payload(saved / "pytorch_model.bin", trace)
    options = {"trust_remote_code": True} if model_class is AutoModel else {}
    model_class.from_pretrained(saved, **options)
    (saved / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        model_class.from_pretrained(saved, **options)
    # Harmless weights in a pickle are refused too.
    torch.save(tiny_model(GraphMertForPreTraining).state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        model_class.from_pretrained(saved, **options)
    assert not trace.exists()


@pytest.mark.parametrize("model_class", CLASSES)
def test_encoder_with_holes_is_refused(saved, model_class):
    change_weights(saved, lambda weights: weights.pop("roberta.encoder.layer.1.output.dense.weight"))
    with pytest.raises(
        ValueError, match=r"does not hold a whole GraphMert.*: 1 of \d+ tensors of the encoder are missing"
    ):
        model_class.from_pretrained(saved)


def test_other_holes(saved):
    change_weights(saved, lambda weights: [weights.pop(name) for name in list(weights) if "hgat" in name])
    with pytest.raises(ValueError, match=r"3 of \d+ tensors of the encoder are missing, first hgat"):
        GraphMertModel.from_pretrained(saved)
    # Left off by the one who loads, it is not missing.
    assert GraphMertModel.from_pretrained(saved, use_hgat=False).config.use_hgat is False
    tiny_model(GraphMertForPreTraining, dtype=torch.float32).save_pretrained(saved)
    change_weights(saved, lambda weights: weights.pop("lm_head.dense.bias"))
    with pytest.raises(ValueError, match=r"1 of 5 tensors of the lm_head are missing, first lm_head\.dense\.bias"):
        GraphMertForPreTraining.from_pretrained(saved)
    # Who does not ask for this head is not concerned; a head that is new as a whole is what fine-tuning wants.
    GraphMertForSequenceClassification.from_pretrained(saved)
    change_weights(saved, lambda weights: weights.clear())
    with pytest.raises(ValueError, match="tensors of the encoder are missing"):
        GraphMertForPreTraining.from_pretrained(saved)


def test_wrong_shapes_are_refused(saved):
    def cut(weights):
        weights["relation_head.weight"] = weights["relation_head.weight"][:2].clone()

    change_weights(saved, cut)
    text = r"relation_head\.weight has shape \(2, 32\), config\.json asks for \(5, 32\)"
    with pytest.raises(ValueError, match=text):
        GraphMertForPreTraining.from_pretrained(saved)
    GraphMertForPreTraining.from_pretrained(saved, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_damaged_weights_are_refused(saved, size):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(ValueError, match=f"the weights of {saved} are damaged, copy them again"):
        GraphMertForPreTraining.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_bytes(content[:size])
    with pytest.raises(ValueError, match=f"the weights of {saved} are damaged, copy them again"):
        GraphMertForPreTraining.from_pretrained(saved)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"relation_names": ...}, "relation_names is missing in the saved configuration"),
        ({"relation_names": None}, "relation_names is missing in the saved configuration"),
        ({"relation_names": ["calls"] * RELATIONS}, "different names"),
        ({"relation_names": ["calls", "declares"]}, "must hold num_relations = 5 different names"),
        ({"relation_names": [["calls"], 1, 2, 3, 4]}, "must hold num_relations = 5 different names"),
        ({"num_relations": RELATIONS + 1}, "must hold num_relations = 6 different names"),
        ({"num_relations": 2, "relation_names": ["calls", "declares"]}, "does not hold a whole"),
        ({"vocab_size": 101}, r"word_embeddings\.weight has shape \(100, 32\), config\.json asks for \(101, 32\)"),
        ({"hidden_size": 64}, "does not hold a whole"),
        ({"num_hidden_layers": 3}, "tensors of the encoder are missing"),
        ({"num_roots": 10**6}, "max_position_embeddings"),
        ({"decay_base": 7.0}, "decay_base"),
        ({"hidden_size": "32"}, "the configuration of .*model does not fit: .*'hidden_size' expected int, got str"),
    ],
)
def test_configuration_that_does_not_fit(saved, values, text):
    change_config(saved, **values)
    with pytest.raises(ValueError, match=text):
        GraphMertForPreTraining.from_pretrained(saved)


def test_configuration_made_anew_needs_no_names():
    assert GraphMertConfig().relation_names[0] == "calls" and len(tiny_config().relation_names) == RELATIONS
    assert GraphMertConfig.from_dict({"num_relations": 12}).num_relations == 12


def test_code_of_a_directory_runs_only_when_trusted(saved, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    (saved / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    # Nobody names it: neither the package nor trusted code runs it.
    GraphMertModel.from_pretrained(saved)
    AutoModel.from_pretrained(saved, trust_remote_code=True)
    change_config(saved, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    GraphMertModel.from_pretrained(saved)
    for auto_class in (AutoConfig, AutoModel):
        with pytest.raises(ValueError, match="trust_remote_code"):
            auto_class.from_pretrained(saved, trust_remote_code=False)
    assert not trace.exists()
    # What is saved again names this project's code.
    again = tmp_path / "again"
    GraphMertModel.from_pretrained(saved).save_pretrained(again)
    assert "evil" not in (again / "config.json").read_text() and not (again / "evil.py").exists()


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    tiny_trainer(directory, num_windows=16, save_strategy="steps", save_steps=1, num_train_epochs=1).train()
    return directory


def test_changed_checkpoints_are_not_resumed(run_directory, tmp_path):
    trace, last = tmp_path / "trace", run_directory / "checkpoint-2"
    for name in ("optimizer.pt", "rng_state.pth", "evil.py"):
        write_payload(last / name, trace)
        assert why_incomplete(last) == f"{name} is not one of the files that the run wrote"
        assert newest_complete_checkpoint(run_directory)[0] == run_directory / "checkpoint-1"
        (last / name).unlink()
    record = json.loads((last / RECORD_NAME).read_text())
    weights = (last / "model.safetensors").read_bytes()
    (last / "model.safetensors").unlink()
    write_payload(last / "pytorch_model.bin", trace)
    write_record(last)
    assert why_incomplete(last) == "it was saved without model.safetensors"
    (last / "pytorch_model.bin").unlink()
    (last / "model.safetensors").write_bytes(weights)
    (last / RECORD_NAME).write_text(json.dumps(record))
    assert why_incomplete(last) is None and not trace.exists()


def test_resuming_reads_no_pickle(run_directory, tmp_path):
    """Even where nobody looks at the record: pickles beside or instead of the state are not opened."""
    trace, first = tmp_path / "trace", run_directory / "checkpoint-1"
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin")
    for name in names:
        write_payload(first / name, trace)
    trainer = tiny_trainer(tmp_path / "resumed", model=trained_model(), num_windows=16, num_train_epochs=1)
    trainer.train(resume_from_checkpoint=str(first))
    for name in names:
        (first / name).unlink()
    assert trainer.state.global_step == 2 and not trace.exists()


def test_training_state_keeps_every_bit(tmp_path):
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 2)}, 1: {"step": 7}},
        "groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "foreach": None, "fused": True, "names": []}],
        "nothing": float("inf"),
        "bfloat": torch.randn(4).to(torch.bfloat16),
    }
    shared = torch.arange(6.0)
    tree["views"] = [shared[:3], shared[3:], shared.view(2, 3).t()]
    save_tree(tree, tmp_path / "state.safetensors")
    again = load_tree(tmp_path / "state.safetensors")

    def same(ours, theirs):
        assert type(ours) is type(theirs)
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        elif isinstance(ours, dict):
            assert list(ours) == list(theirs)
            [same(ours[name], theirs[name]) for name in ours]
        elif isinstance(ours, list | tuple):
            assert len(ours) == len(theirs)
            [same(a, b) for a, b in zip(ours, theirs, strict=True)]
        else:
            assert ours == theirs

    same(tree, again)
    with pytest.raises(ValueError, match=r"state\.groups\.0 is a Payload, which a checkpoint cannot hold"):
        save_tree({"groups": [Payload(tmp_path)]}, tmp_path / "bad.safetensors")
    for content in (b"", b"\x80\x04.", (tmp_path / "state.safetensors").read_bytes()[:200]):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="holds no training state"):
            load_tree(tmp_path / "bad.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="holds no training state"):
        load_tree(tmp_path / "bad.safetensors")
