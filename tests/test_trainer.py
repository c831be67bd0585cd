"""The trainer: which parameters learn, what is logged, and that a batch may be split in any way."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from tiny_pretraining import RandomWindows, tiny_arguments, tiny_collator, tiny_model, tiny_trainer
from transformers import TrainerCallback

from graphmert.pretraining_metrics import macro_f1
from graphmert.trainer_graphmert import EpochSampler, GraphMertTrainingArguments, NonFiniteLossError

TESTS = Path(__file__).parent
COMPARED = ("loss", "grad_norm", "mlm_loss", "mlm_accuracy", "mnm_loss", "mnm_accuracy", "mnm_macro_f1")
COMPARED += (
    "mnm_relation_loss",
    "mnm_relation_accuracy",
    "mnm_relation_macro_f1",
    "mnm_tail_loss",
    "mnm_tail_accuracy",
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def history(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "learning_rate" in entry]


def test_defaults_are_those_of_the_setup_sheet(tmp_path):
    args = GraphMertTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (25, 32, 2)
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (4e-4, 0.01, 1.0)
    assert args.lr_scheduler_type == "cosine_with_min_lr" and args.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert args.get_warmup_steps(5000) == 500
    assert args.bf16 is False and args.eval_strategy == "epoch" and args.save_strategy == "epoch"
    assert "adamw" in args.optim


def test_arguments_refuse_what_cannot_work(tmp_path):
    for options, text in (
        ({"min_learning_rate": 1.0}, "min_learning_rate must lie between 0 and learning_rate"),
        ({"learning_rate": 0.0, "min_learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"save_every_epochs": 0}, "save_every_epochs must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0"),
        (
            {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 0},
            "dataloader_prefetch_factor must be at least 1",
        ),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0, or max_steps be given"),
        ({"num_train_epochs": -1}, "num_train_epochs must be above 0"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs must be above 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 to train for num_train_epochs"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
    ):
        with pytest.raises(ValueError, match=text):
            tiny_arguments(tmp_path, **options)
    assert tiny_arguments(tmp_path, num_train_epochs=0, max_steps=3).max_steps == 3


def test_learning_rate_rises_and_falls_to_the_minimum(tmp_path):
    trainer = tiny_trainer(tmp_path, num_windows=160, warmup_steps=0.1, learning_rate=4e-4)
    trainer.create_optimizer_and_scheduler(num_training_steps=20)
    rates = []
    for _ in range(21):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates[:3] == pytest.approx([0, 2e-4, 4e-4])
    # Half a cosine between the peak at step 2 and the minimum at step 20.
    assert rates[11] == pytest.approx((4e-4 + 1e-5) / 2) and rates[20] == pytest.approx(1e-5)


@pytest.mark.parametrize("options", [{"span_boundary": True, "mnm_target": "both"}, {"decay_mode": "multiplicative"}])
def test_every_parameter_moves(tmp_path, options):
    model = tiny_model(**options)
    before = copy.deepcopy(model.state_dict())
    collator = tiny_collator(
        mnm_target=model.config.mnm_target, span_boundary=model.config.span_boundary, mnm_probability=0.4
    )
    tiny_trainer(tmp_path, model=model, collator=collator, num_train_epochs=2, weight_decay=0.0).train()
    still = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert still == []
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_weight_decay_only_on_matrices(tmp_path):
    trainer = tiny_trainer(tmp_path, model=tiny_model(span_boundary=True))
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed, plain = (
        {names[id(parameter)] for parameter in group["params"]} for group in trainer.optimizer.param_groups
    )
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.0]
    assert decayed | plain == set(names.values())
    expected = {
        name
        for name, parameter in trainer.model.named_parameters()
        if parameter.ndim > 1 and "hgat.attention" not in name and "direction_gain" not in name
    }
    assert decayed == expected
    assert "roberta.hgat.weight" in decayed
    for name in ("roberta.hgat.attention", "roberta.hgat.direction_gain", "roberta.decay.offset", "lm_head.bias"):
        assert name in plain


# Losses of 20 steps of the tiny model (two layers of 16, 24 roots, 3 leaf slots), logged one by one.
# fmt: off
GOLDEN = [
    4.45569, 4.4814, 4.39432, 4.32723, 4.18632, 4.00098, 3.93724, 3.84585, 3.75155, 3.6591,
    3.48199, 3.44654, 3.30461, 3.45363, 3.38268, 3.30159, 3.2978, 3.28864, 3.2649, 3.30811,
]
# fmt: on


def test_golden_losses(tmp_path):
    model = tiny_model(leaf_position="slot", decay_base=0.6)
    trainer = tiny_trainer(tmp_path, num_windows=80, num_train_epochs=2, learning_rate=1e-2, model=model)
    trainer.train()
    losses = [entry["loss"] for entry in history(trainer)]
    assert len(losses) == 20
    np.testing.assert_allclose(losses, GOLDEN, rtol=2e-4)


@pytest.mark.parametrize("mnm_target", ["relation", "tail", "both"])
def test_accumulation_changes_nothing(tmp_path, mnm_target):
    logs = []
    for batch, steps in ((8, 1), (4, 2), (1, 8)):
        trainer = tiny_trainer(
            tmp_path,
            num_windows=28,
            model=tiny_model(mnm_target=mnm_target),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        trainer.train()
        logs.append(history(trainer))
    for other in logs[1:]:
        assert_same_logs(logs[0], other)
    # And all of them are what the model itself says of the first eight windows.
    batch = next(iter(tiny_trainer(tmp_path, num_windows=28, collator=trainer.data_collator).get_train_dataloader()))
    output, first = tiny_model(mnm_target=mnm_target)(**batch), logs[0][0]
    for name in ("loss", "mlm_loss", "mnm_loss"):
        assert first[name] == pytest.approx(output[name].item(), rel=1e-6), name


def assert_same_logs(first: list[dict], second: list[dict], names=COMPARED) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert [name for name in names if name in a] == [name for name in names if name in b]
        for name in names:
            if name in a:
                assert a[name] == pytest.approx(b[name], abs=2e-6, rel=2e-6), name


def test_processes_change_nothing(tmp_path):
    """2 processes x 2 windows x 2 accumulated, against one process with 8 windows; then resuming with 2 processes."""
    options = {"num_windows": 28, "per_device_train_batch_size": 8, "model": {"mnm_target": "both"}}
    reference = tiny_trainer(
        tmp_path,
        num_windows=28,
        model=tiny_model(mnm_target="both"),
        per_device_train_batch_size=8,
        num_train_epochs=2,
    )
    reference.train()
    metrics = reference.evaluate()
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    options |= {
        "per_device_eval_batch_size": 2,
        "output_dir": str(tmp_path),
        "save_steps": 6,
        "save_strategy": "steps",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(TESTS / "tiny_pretraining.py"), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_processes"] == 2
    entries = result["history"]
    assert_same_logs(history(reference), [entry for entry in entries if "learning_rate" in entry])
    found = next(entry for entry in reversed(entries) if "eval_loss" in entry)
    for name in (
        "loss",
        "mlm_loss",
        "mlm_accuracy",
        "mlm_count",
        "mnm_loss",
        "mnm_relation_macro_f1",
        "mnm_tail_count",
    ):
        assert found[f"eval_{name}"] == pytest.approx(metrics[f"eval_{name}"], rel=2e-6), name
    assert result["resumed_equal"]


def test_logged_loss_is_the_weighted_sum_and_metrics_are_counts(tmp_path):
    """One step over the whole set: what is logged against a plain loop over the windows."""
    trainer = tiny_trainer(
        tmp_path, num_windows=12, per_device_train_batch_size=3, gradient_accumulation_steps=4, logging_steps=1
    )
    expected = plain_figures(copy.deepcopy(trainer.model), trainer.train_dataset, trainer.data_collator)
    trainer.train()
    (entry,) = history(trainer)
    for name in ("mlm_loss", "mlm_accuracy", "mnm_loss", "mnm_accuracy", "mnm_macro_f1"):
        assert entry[name] == pytest.approx(expected[name], rel=1e-5), name
    assert entry["loss"] == pytest.approx(0.6 * expected["mlm_loss"] + 0.4 * expected["mnm_loss"], rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_of_the_losses_move_from_step_to_step(tmp_path, accumulation):
    trainer = tiny_trainer(
        tmp_path,
        num_windows=40,
        final_mnm_weight=0.1,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=accumulation,
    )
    trainer.train()
    entries, steps = history(trainer), 5 if accumulation == 1 else 6
    assert len(entries) == steps
    for number, entry in enumerate(entries):
        mnm_weight = 0.4 - 0.3 * number / (steps - 1)
        expected = (1 - mnm_weight) * entry["mlm_loss"] + mnm_weight * entry["mnm_loss"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5), number
        assert entry["mnm_weight"] == pytest.approx(mnm_weight)
    # Evaluations stay comparable with each other.
    metrics = trainer.evaluate()
    weighted = 0.6 * metrics["eval_mlm_loss"] + 0.4 * metrics["eval_mnm_loss"]
    assert metrics["eval_loss"] == pytest.approx(weighted, rel=1e-5)


def test_a_weight_at_the_end_beyond_the_sum_of_both_is_refused(tmp_path):
    for wrong in (-0.1, 1.2):
        with pytest.raises(ValueError, match="final_mnm_weight must lie between 0 and the sum"):
            tiny_trainer(tmp_path, final_mnm_weight=wrong)


def plain_figures(model, windows, collator, split: bool = False) -> dict[str, float]:
    """MLM and relation figures, one window, one node at a time."""
    model.eval()
    tokens, relations = [], []
    for i in range(len(windows)):
        batch = collator([windows[i]])
        inputs = {k: v for k, v in batch.items() if k not in ("label_in_leaf", "leaf_in_window", "fact_place")}
        with torch.no_grad():
            output = model(**inputs)
        for n in range(batch["labels"].shape[1]):
            label, relation = batch["labels"][0, n].item(), batch["relation_labels"][0, n].item()
            if label >= 0:
                scores = output.logits[0, n].double()
                loss = (scores.logsumexp(0) - scores[label]).item()
                tokens.append(
                    (loss, scores.argmax().item() == label, bool(batch["label_in_leaf"][0, n]) if split else 0)
                )
            if relation >= 0:
                root, slot = batch["root_index"][0, n], batch["leaf_index"][0, n]
                scores = output.relation_logits[0, root, slot].double()
                loss = (scores.logsumexp(0) - scores[relation]).item()
                shown = bool(batch["leaf_in_window"][0, n]) if split else 0
                relations.append((loss, relation, scores.argmax().item(), shown))
    figures = {}
    token_parts = {"": tokens}
    relation_parts = {"": relations}
    if split:
        token_parts |= {"_in_leaf": [t for t in tokens if t[2]], "_not_in_leaf": [t for t in tokens if not t[2]]}
        relation_parts |= {
            "_visible": [r for r in relations if r[3]],
            "_invisible": [r for r in relations if not r[3]],
        }
    for suffix, part in token_parts.items():
        figures[f"mlm_loss{suffix}"] = np.mean([t[0] for t in part])
        figures[f"mlm_accuracy{suffix}"] = np.mean([t[1] for t in part])
        figures[f"mlm_count{suffix}"] = len(part)
    for suffix, part in relation_parts.items():
        gold, predicted = [r[1] for r in part], [r[2] for r in part]
        figures[f"mnm_loss{suffix}"] = np.mean([r[0] for r in part])
        figures[f"mnm_accuracy{suffix}"] = accuracy_score(gold, predicted)
        figures[f"mnm_macro_f1{suffix}"] = f1_score(
            gold, predicted, labels=np.unique(gold), average="macro", zero_division=0
        )
        figures[f"mnm_count{suffix}"] = len(part)
    return figures


@pytest.mark.parametrize("layout, batch_size", [("compact", 3), ("padded", 8)])
def test_evaluation_equals_a_plain_loop(tmp_path, layout, batch_size):
    collator = tiny_collator(diagnostics=True, layout=layout)
    model = tiny_model()
    # Far from the start, so that predictions are not all one class.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trainer = tiny_trainer(tmp_path, model=model, collator=tiny_collator(), per_device_eval_batch_size=batch_size)
    trainer.eval_data_collator = collator
    metrics = trainer.evaluate()
    expected = plain_figures(model, trainer.eval_dataset, collator, split=True)
    assert expected["mlm_count_in_leaf"] > 0 and expected["mnm_count_visible"] > 0 < expected["mnm_count_invisible"]
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name
    assert metrics["eval_loss"] == pytest.approx(0.6 * expected["mlm_loss"] + 0.4 * expected["mnm_loss"], rel=1e-5)


def test_evaluation_uses_the_same_masks_each_time(tmp_path):
    trainer = tiny_trainer(tmp_path, num_windows=8, dataloader_num_workers=1, dataloader_persistent_workers=True)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_mlm_loss"] == second["eval_mlm_loss"]


def test_graph_off_has_no_relation_figures(tmp_path):
    """No leaf slots: nothing to predict on leaves, and no figure of it."""
    trainer = tiny_trainer(tmp_path, model=tiny_model(leaves_per_root=0), collator=tiny_collator(leaves_per_root=0))
    for windows in (trainer.train_dataset, trainer.eval_dataset):
        for window in windows.windows:
            for name in list(window):
                if name.startswith(("head", "relation", "reversed", "visible", "leaf")):
                    window[name] = window[name][:0]
    trainer.train()
    entry, metrics = history(trainer)[-1], trainer.evaluate()
    assert entry["loss"] == pytest.approx(0.6 * entry["mlm_loss"]) and "mnm_accuracy" not in entry
    assert metrics["eval_loss"] == pytest.approx(0.6 * metrics["eval_mlm_loss"])
    assert not [name for name in metrics if "mnm" in name]


def test_macro_f1_against_sklearn():
    rng = np.random.default_rng(0)
    for num_classes, size in ((12, 400), (12, 7), (3, 1), (5, 30)):
        gold = rng.integers(0, max(1, num_classes - 1), size)
        predicted = np.where(rng.random(size) < 0.5, gold, rng.integers(0, num_classes, size))
        confusion = np.zeros((num_classes, num_classes))
        np.add.at(confusion, (gold, predicted), 1)
        expected = f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0)
        assert macro_f1(confusion) == pytest.approx(expected)
    assert math.isnan(macro_f1(np.zeros((3, 3))))


class _Poison(TrainerCallback):
    """Spoils a weight before a step."""

    def __init__(self, value, before_step):
        self.value, self.before_step = value, before_step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.before_step:
            with torch.no_grad():
                model.relation_head.bias.fill_(self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_and_names_the_step(tmp_path, value):
    trainer = tiny_trainer(tmp_path, num_windows=80, save_strategy="steps", save_steps=2)
    trainer.add_callback(_Poison(value, before_step=6))
    with pytest.raises(NonFiniteLossError, match="NaN or infinite at step 6"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("options", [{"logging_steps": 4}, {"save_strategy": "steps", "save_steps": 4}])
def test_loss_that_is_not_finite_is_found_later_where_steps_do_not_wait(tmp_path, options):
    """On a device the step is only noted; logging or saving raises."""
    trainer = tiny_trainer(tmp_path, num_windows=80, **{"logging_steps": 100, **options})
    trainer.add_callback(_Poison(float("nan"), before_step=2))
    trainer._check_each_step = False
    with pytest.raises(NonFiniteLossError, match="at step 2"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert not list(tmp_path.glob("checkpoint-*"))


def test_epochs_reach_the_data_with_and_without_workers(tmp_path):
    """Masks differ between epochs, and are the same whoever loads the data."""
    logs = []
    for options in (
        {},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    ):
        trainer = tiny_trainer(tmp_path, num_windows=24, num_train_epochs=3, **options)
        trainer.train()
        logs.append(history(trainer))
        assert set(trainer.train_dataset.epochs_told) >= {0, 1, 2}
    for other in logs[1:]:
        assert_same_logs(logs[0], other)
    frozen = tiny_trainer(tmp_path, num_windows=24, num_train_epochs=3)
    frozen.train_dataset.set_epoch = lambda epoch: None
    frozen.train()
    assert history(frozen)[2]["loss"] == logs[0][2]["loss"]
    assert history(frozen)[3]["loss"] != logs[0][3]["loss"]


def test_sampler_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50)) and list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochSampler(50, seed=2)) != first


def test_grouping_by_length_saves_padding(tmp_path):
    def padding(strategy):
        trainer = tiny_trainer(tmp_path, num_windows=400, train_sampling_strategy=strategy)
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        assert sum(len(mask) for mask in masks) == 400
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding("group_by_length") < 0.3 * padding("random")


def test_save_every_epochs(tmp_path):
    options = {"num_windows": 8, "num_train_epochs": 5, "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = tiny_trainer(tmp_path, save_every_epochs=2, **options)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 5


def test_own_metrics_only(tmp_path):
    with pytest.raises(ValueError, match="computes its own metrics"):
        from graphmert.trainer_graphmert import GraphMertTrainer

        GraphMertTrainer(model=tiny_model(), args=tiny_arguments(tmp_path), compute_metrics=lambda p: {})
    assert len(RandomWindows(3)) == 3
