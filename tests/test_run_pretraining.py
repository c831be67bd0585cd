"""The pretraining program from a data set to a summary, and what it says to wrong input."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, AutoTokenizer, RobertaConfig, RobertaForMaskedLM

import run_pretraining
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.collator import GraphMertCollator
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.pretraining_arguments import parse_arguments
from graphmert.run_summary import format_table, held_out_rows, names_of_facts
from graphmert.trainer_graphmert import GraphMertTrainer, NonFiniteLossError

ROOT = Path(__file__).parent.parent
MODULE = """
import json

class {name}(Base):
    size: int = 0

    def load_{low}(self, path: str, count: int) -> list:
        text = read(path)
        result = json.loads(text)
        for item in result:
            self.store(item, count)
        return result

    def store(self, item, count):
        self.size = self.size + count
        return item

def make_{low}(path: str) -> {name}:
    reader = {name}()
    reader.load_{low}(path, 3)
    return reader
"""
SIZES = ["--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--intermediate_size", "32"]
SMALL = [*SIZES, "--num_roots", "48", "--leaves_per_root", "3", "--use_cpu", "--disable_tqdm", "true"]
SMALL += [
    "--num_threads",
    "1",
    "--per_device_train_batch_size",
    "4",
    "--num_train_epochs",
    "2",
    "--logging_steps",
    "2",
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build_dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for name in ("Reader", "Writer", "Parser", "Loader", "Table", "Graph"):
        (root / name.lower()).mkdir()
        (root / name.lower() / "code.py").write_text(MODULE.format(name=name, low=name.lower()))
    output = tmp_path_factory.mktemp("data") / "set"
    build_chain_graphs(
        BuildArguments(
            source=[f"dir:{root},project=children"], output=str(output), validation_fraction=0.34, vocab_size=400
        )
    )
    return output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_dataset(tmp_path_factory)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A finished run: its directory and what it printed."""
    output = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, ROOT / "run_pretraining.py", "--dataset", dataset, "--output_dir", output, *SMALL]
    command += ["--report_to", "tensorboard"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "TENSORBOARD_LOGGING_DIR": str(output / "_tensorboard")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done.stdout


def run(*arguments) -> int:
    return run_pretraining.main([str(argument) for argument in arguments])


def error_of(capsys, *arguments) -> str:
    """The one line that the program prints for wrong arguments."""
    try:
        status = run(*arguments)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("run_pretraining.py")]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("run_pretraining.py: error: "), error
    return lines[0]


def test_run_leaves_a_model_a_summary_and_a_plot(finished, dataset):
    output, printed = finished
    assert "parameters" in printed and "relation head" in printed
    assert "facts placed" in printed and "optimizer steps" in printed
    assert re.search(r"loss weights +0.6 to 1   masked tokens; masked facts \(both\) 0.4 to 0\n", printed)
    assert re.search(r"layout +packed ", printed)
    summary = json.loads((output / "summary.json").read_text())
    rows = {(row["figure"], row["who"]): row["values"] for row in summary["table"]}
    assert rows[("MLM loss (nats)", "model")][0] == pytest.approx(summary["held_out"]["mlm_loss"])
    assert rows[("MLM loss (nats)", "unigram")][0] > 0
    lookups = {"majority", "tail's first token", "(head, tail) tokens", "tokens around the head with the tail"}
    for figure in ("relation accuracy", "relation macro-F1"):
        assert {who for name, who in rows if name == figure} == lookups | {"model"}
    for who in ("majority", "tokens around the head with the tail"):
        assert f"relation accuracy     {who}" in printed
    # The baselines are measured on the same masks as the model.
    assert summary["unigram"]["num_tokens_masked"] == summary["held_out"]["mlm_count"]
    assert summary["lookups"]["majority"]["num_relations_masked"] == summary["held_out"]["mnm_relation_count"]
    assert summary["arguments"]["training"]["seed"] == 42 and summary["environment"]["versions"]["torch"]
    assert summary["parameters"]["total"] == sum(v for k, v in summary["parameters"].items() if k != "total")
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "_tensorboard").rglob("events.*"))
    assert (output / "manifest.json").read_bytes() == (dataset / "manifest.json").read_bytes()
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert sum("eval_loss" in entry for entry in history) == 2


def test_saved_model_loads_as_remote_code(finished):
    output, _ = finished
    for directory in (output, *output.glob("checkpoint-*")):
        model = AutoModelForPreTraining.from_pretrained(directory, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        logits = model(**tokenizer("def f(x): return x", return_tensors="pt")).logits
        assert logits.shape[-1] == len(tokenizer) and torch.isfinite(logits).all()


def test_output_dir_with_results(finished, dataset, tmp_path, capsys):
    output, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    arguments = ("--dataset", dataset, "--output_dir", copy, *SMALL)
    assert "is not empty; go on with --resume, or start anew with --overwrite" in error_of(capsys, *arguments)
    assert "exclude each other" in error_of(capsys, *arguments, "--resume", "--overwrite")
    # The newest checkpoint is broken: the one before it is used, and the same model comes out.
    first, last = sorted(copy.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    with (last / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert f"cannot resume from {last}: model.safetensors has 1000 bytes" in error_of(
        capsys, *arguments, "--resume", last
    )
    (copy / "model.safetensors").unlink()
    assert run(*arguments, "--resume") == 0
    printed = capsys.readouterr().out
    assert f"{last} is incomplete (model.safetensors has 1000 bytes" in printed and f"resuming from {first}" in printed
    ours, theirs = (load_file(directory / "model.safetensors") for directory in (output, copy))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5
    message = error_of(capsys, *arguments, "--resume", "--leaves_per_root", "2")
    assert "was trained with leaves_per_root=3, this run has 2" in message
    assert run(*arguments, "--overwrite", "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no") == 0
    assert not list(copy.glob("checkpoint-*"))


def test_wrong_data_sets(dataset, tmp_path, capsys):
    assert "give --dataset DIR, or --sources" in error_of(capsys, "--output_dir", tmp_path / "a", *SMALL)
    missing = error_of(capsys, "--dataset", tmp_path / "none", "--output_dir", tmp_path / "a", *SMALL)
    assert "none does not exist" in missing
    (tmp_path / "empty").mkdir()
    assert "is not a chain-graph dataset" in error_of(
        capsys, "--dataset", tmp_path / "empty", "--output_dir", tmp_path / "a", *SMALL
    )
    other = ("--dataset", dataset, "--sources", "stdlib", "--output_dir", tmp_path / "a", *SMALL)
    assert "was built from dir:" in error_of(capsys, *other)
    relations = ("--dataset", dataset, "--num_relations", "11", "--output_dir", tmp_path / "a", *SMALL)
    assert "num_relations is 11, but the data set" in error_of(capsys, *relations)
    nowhere = ("--sources", f"dir:{tmp_path / 'no'}", "--output_dir", tmp_path / "a", *SMALL)
    assert "no" in error_of(capsys, *nowhere)
    roots = ("--dataset", dataset, "--output_dir", tmp_path / "a", *SMALL, "--num_roots", "2")
    assert "num_roots must be at least 3" in error_of(capsys, *roots)


def test_build_of_another_language_over_what_another_build_left(tmp_path, capsys):
    for name in "abc":
        code = f"class {name.upper()} extends Base {{\n  int size(int {name}) {{ return {name}; }}\n}}\n"
        (tmp_path / "code" / name).mkdir(parents=True)
        (tmp_path / "code" / name / f"{name.upper()}.java").write_text(code)
    stopped = tmp_path / ".data.building"
    stopped.mkdir()
    (stopped / "state.json").write_text('{"identity": "of other arguments"}')
    options = ["--sources", f"dir:{tmp_path / 'code'}", "--dataset", tmp_path / "data", "--languages", "java", *SMALL]
    options = [str(option) for option in [*options, "--validation_fraction", "0.4", "--vocab_size", "300"]]
    options += ["--num_proc", "1", "--output_dir", str(tmp_path / "run")]
    assert "or add --restart_build to throw away" in error_of(capsys, *options)
    model, data, _, args = parse_arguments([*options, "--restart_build"])
    train, _, _, manifest = run_pretraining.open_dataset(model, data, args)
    assert len(train) and manifest["languages"]["java"]["files"] == 3
    options[options.index("java")] = "go"
    assert "was built from java, not from go" in error_of(capsys, *options)


def small_roberta(directory: Path, vocab_size: int) -> None:
    config = RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    RobertaForMaskedLM(config).save_pretrained(directory)


def test_base_model(dataset, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer")
    base = tmp_path / "roberta"
    small_roberta(base, len(tokenizer))
    arguments = ["--dataset", dataset, "--base_model", base, "--output_dir", tmp_path / "out", *SMALL[len(SIZES) :]]
    assert "has no tokenizer" in error_of(capsys, *arguments)
    tokenizer.save_pretrained(base)
    assert "hidden_size cannot be chosen with --base_model" in error_of(capsys, *arguments, "--hidden_size", "16")
    assert run(*arguments, "--max_steps", "2", "--save_strategy", "no") == 0
    assert "Converted from" in capsys.readouterr().out

    arguments[5] = tmp_path / "out2"
    tokens = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    first, second = (next(t for t, i in vocabulary.items() if i == k) for k in (300, 301))
    vocabulary[first], vocabulary[second] = 301, 300
    (base / "tokenizer.json").write_text(json.dumps(tokens))
    assert "2 of them other or elsewhere); build the data set with --tokenizer" in error_of(capsys, *arguments)

    (base / "tokenizer.json").write_text('{"a": 1}')
    assert f"{base}: the tokenizer cannot be loaded" in error_of(capsys, *arguments)

    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    assert "model_type 'bert'" in error_of(capsys, *arguments)


def test_a_graphmert_checkpoint_as_base_model(dataset, tmp_path, capsys, monkeypatch):
    # Nobody is asked whether the checkpoint's code may run.
    monkeypatch.setattr("builtins.input", lambda *prompt: pytest.fail(f"asked {prompt}"))
    first, second = tmp_path / "first", tmp_path / "second"
    without_graph = ["--leaves_per_root", "0", "--use_hgat", "false", "--decay_mode", "none", "--mnm_weight", "0"]
    common = ["--max_steps", "1", "--save_strategy", "no"]
    arguments = ["--dataset", dataset, *SMALL, *common]
    assert run(*arguments, *without_graph, "--mlm_weight", "1", "--output_dir", first) == 0
    arguments = ["--dataset", dataset, "--base_model", first, *SMALL[len(SIZES) :], *common]
    capsys.readouterr()
    assert (
        run(
            *arguments,
            "--learning_rate",
            "1e-12",
            "--min_learning_rate",
            "1e-13",
            "--output_dir",
            second,
            "--leaf_position",
            "root_slot",
        )
        == 0
    )
    assert "Continued from" in capsys.readouterr().out
    # A step that changes next to nothing: the weights are those of the base model, and what it lacked is new.
    before, after = (load_file(path / "model.safetensors") for path in (first, second))
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-9) for name in before)
    new = {name.split(".")[1] for name in set(after) - set(before)}
    assert new == {"hgat", "decay", "leaf_slots"}
    assert json.loads((second / "config.json").read_text())["leaves_per_root"] > 0
    assert "hidden_size cannot be chosen with --base_model" in error_of(
        capsys, *arguments, "--hidden_size", "16", "--output_dir", tmp_path / "third"
    )


def test_loss_that_is_not_finite_ends_with_status_1(dataset, tmp_path, capsys, monkeypatch):
    def train(self, **kwargs):
        raise NonFiniteLossError("the loss is NaN or infinite at step 3; lower learning_rate")

    monkeypatch.setattr(GraphMertTrainer, "train", train)
    assert run("--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL) == 1
    error = capsys.readouterr().err
    assert (
        error.splitlines()[-1]
        == "run_pretraining.py: error: the loss is NaN or infinite at step 3; lower learning_rate"
    )


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("on_step_begin", "no checkpoint was saved; begin again with --resume or --overwrite"),
        ("on_save", "go on from OUT/checkpoint-1 with --resume"),
    ],
)
def test_stopped_from_the_keyboard(dataset, tmp_path, capsys, monkeypatch, when, what):
    def stop(*arguments, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_pretraining._Console, when, stop, raising=False)
    options = ["--save_strategy", "steps", "--save_steps", "1"]
    assert run("--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, *options) == 130
    error = capsys.readouterr().err
    assert error == f"run_pretraining.py: stopped; {what.replace('OUT', str(tmp_path / 'out'))}\n"


def test_parts_that_two_models_share_start_with_the_same_weights(dataset):
    """Whatever else they have, so that runs with and without the graph are paired; the trainer gives the same order."""
    tokenizer = AutoTokenizer.from_pretrained(dataset / "tokenizer")
    manifest = json.loads((dataset / "manifest.json").read_text())

    def weights(seed, *options):
        model_args = parse_arguments([*SMALL, *options])[0]
        return run_pretraining.build_model(model_args, tokenizer, manifest, seed=seed).state_dict()

    full, bare = weights(1), weights(1, "--leaves_per_root", "0", "--use_hgat", "false", "--decay_mode", "none")
    assert set(bare) < set(full) and all(torch.equal(bare[name], full[name]) for name in bare)
    other = weights(2)
    for name in ("roberta.embeddings.word_embeddings.weight", "relation_head.weight", "roberta.hgat.attention"):
        assert not torch.equal(other[name], full[name]), name
    assert 0.01 < full["roberta.encoder.layer.0.attention.self.query.weight"].std() < 0.03


def test_the_order_of_windows_does_not_depend_on_the_graph(dataset, tmp_path):
    def order(*options):
        strategy = ["--train_sampling_strategy", "group_by_length", "--output_dir", str(tmp_path / "unused")]
        # Short windows, so that there are many and their leaves decide which is longer.
        arguments = parse_arguments(["--dataset", str(dataset), *SMALL, "--num_roots", "16", *strategy, *options])
        model_args, data_args, _, args = arguments
        train, held_out, tokenizer, manifest = run_pretraining.open_dataset(model_args, data_args, args)
        model = run_pretraining.build_model(model_args, tokenizer, manifest)
        trainer = run_pretraining.build_trainer(model, model_args, data_args, args, tokenizer, train, held_out)
        return list(trainer._get_train_sampler())

    full = order()
    assert full == order("--order_leaves_per_root", "3")
    assert full == order("--order_leaves_per_root", "3", "--leaves_per_root", "0")
    assert full == order("--order_leaves_per_root", "3", "--include_uses", "false", "--exclude_relations", "calls")
    assert full != order("--leaves_per_root", "0")


def test_windows_that_show_every_fact_are_for_training_only(dataset, tmp_path):
    options = ["--mnm_window_probability", "0", "--final_mnm_weight", "0", "--output_dir", str(tmp_path / "unused")]
    model_args, data_args, _, args = parse_arguments(["--dataset", str(dataset), *SMALL, *options])
    assert args.final_mnm_weight == 0
    train, held_out, tokenizer, manifest = run_pretraining.open_dataset(model_args, data_args, args)
    model = run_pretraining.build_model(model_args, tokenizer, manifest)
    trainer = run_pretraining.build_trainer(model, model_args, data_args, args, tokenizer, train, held_out)
    examples = [held_out[i] for i in range(len(held_out))]
    masked = [(c(examples)["relation_labels"] >= 0).any() for c in (trainer.data_collator, trainer.eval_data_collator)]
    assert masked == [False, True]


def test_config_file_and_overrides(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "hidden_size: 64\nlearning_rate: 1e-3\nsources: [stdlib, 'dir:x']\nuse_hgat: false\n"
        "decay_mode: null\ndecay_base: 0.5\n"
    )
    model, data, _, args = parse_arguments([str(config), "--learning_rate", "2e-3", "--use_cpu"])
    assert model.hidden_size == 64 and model.use_hgat is False and model.decay_mode == "none"
    assert model.decay_base == [0.5]
    assert data.sources == ["stdlib", "dir:x"] and args.learning_rate == 2e-3 and args.weight_decay == 0.01
    written = tmp_path / "run.json"
    written.write_text(json.dumps({"hidden_size": 32, "bf16": False, "decay_base": [0.1, 1]}))
    model, _, run_args, args = parse_arguments([str(written), "--resume"])
    assert (
        model.hidden_size == 32 and model.decay_base == [0.1, 1.0] and args.bf16 is False and run_args.resume == "auto"
    )
    assert parse_arguments(["--resume", "auto", "--use_cpu"])[2].resume == "auto"
    config.write_text(
        "sources:\nfinal_mnm_weight:\nlr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 1}\n"
        "report_to: [tensorboard]\n"
    )
    _, data, _, args = parse_arguments([str(config), "--use_cpu"])
    assert (data.sources, args.final_mnm_weight, args.lr_scheduler_kwargs) == (None, None, {"num_cycles": 1})
    assert args.report_to == ["tensorboard"]


@pytest.mark.parametrize("name", ["setup_sheet.yaml", "small.yaml"])
def test_shipped_configs_are_valid(name):
    model, data, _, args = parse_arguments([str(ROOT / "configs" / name), "--use_cpu"])
    assert args.output_dir == f"runs/{Path(name).stem}"
    assert bool(model.base_model) != bool(data.sources)


def test_setup_sheet_gives_the_sheet():
    model, data, _, args = parse_arguments([str(ROOT / "configs" / "setup_sheet.yaml"), "--use_cpu"])
    assert (model.num_roots, model.leaves_per_root, model.mlm_weight, model.mnm_weight) == (128, 7, 0.6, 0.4)
    assert (model.decay_base, model.decay_offset_init, model.relation_dropout, model.dropout) == ([0.6], 1.0, 0.3, 0.1)
    assert (data.mlm_probability, data.mnm_probability, model.mnm_target) == (0.15, 0.15, "relation")
    # The weights stay.
    assert args.final_mnm_weight == model.mnm_weight
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (25, 32, 2)
    assert (args.learning_rate, args.min_learning_rate, args.warmup_steps) == (4e-4, 1e-5, 0.1)
    assert model.leaf_position == "slot"
    assert model.base_model == "microsoft/codebert-base" and args.save_every_epochs == 5


def test_wrong_arguments(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    for text, message in (
        ("hidden_sise: 64", "unknown option 'hidden_sise'"),
        ("learning_rate: fast", "learning_rate in"),
        ("decay_mode: slow", "must be one of bias, multiplicative, none"),
        ("- 1", "must hold options with their values"),
        ("a: [", "is not valid"),
        ("learning_rate:", "learning_rate in"),
        ("per_device_train_batch_size:", "has no value: give it one, or leave the option out"),
        ("num_roots: ", "has no value"),
        ("exclude_relations: ", "has no value"),
        ("sources: [stdlib, null]", "expected a list of values"),
        ("mlm_probability: {a: 1}", "mlm_probability in"),
        ("learning_rate: {a: 1}", "has the value {'a': 1}: expected one value"),
        ("output_dir: [a]", "has the value ['a']: expected one value"),
        ("use_hgat: maybe", "use_hgat in"),
    ):
        config.write_text(text)
        assert message in error_of(capsys, config)
    for arguments, message in (
        ([tmp_path / "missing.yaml"], "cannot read"),
        (["--hidden_sise", "3"], "unknown option --hidden_sise"),
        (["--save_steps", "60"], "give --save_strategy steps too"),
        (["--eval_steps", "60"], "give --eval_strategy steps too"),
        (["--num_roots", "many"], "invalid int value: 'many'"),
        (["--mnm_target", "root"], "invalid choice: 'root'"),
        (["--min_learning_rate", "1"], "min_learning_rate must lie between"),
        (["--max_train_windows", "0"], "max_train_windows must be at least 1, got 0"),
        (["--max_eval_windows", "-1"], "max_eval_windows must be at least 1, got -1"),
        (["--num_threads", "-1"], "num_threads must be at least 1, got -1"),
        (["--num_threads", "0"], "num_threads must be at least 1, got 0"),
        (["--num_train_epochs", "0"], "num_train_epochs must be above 0, or max_steps be given"),
        (["corpus.txt"], "expected a .yaml or .json file or an option"),
    ):
        assert message in error_of(capsys, *arguments)


def test_what_cannot_be_prepared_is_one_line(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    arguments = ["--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL]
    for options, message in (
        (["--report_to", "wandb"], "requires wandb to be installed"),
        (["--pad_to_multiple_of", "-3"], "pad_to_multiple_of must be at least 1"),
        (["--hidden_size", "0"], "hidden_size is 0"),
    ):
        assert message in error_of(capsys, *arguments, *options)
    assert not (tmp_path / "out").exists()


def test_default_recipe_is_facts_first_words_last():
    model, data, _, args = parse_arguments(["--sources", "stdlib", "--use_cpu"])
    assert (model.mnm_target, data.mnm_probability, model.mnm_weight, args.final_mnm_weight) == ("both", 0.3, 0.4, 0)
    collator = inspect.signature(GraphMertCollator).parameters
    assert collator["mnm_probability"].default == data.mnm_probability
    assert collator["mnm_target"].default == GraphMertConfig().mnm_target == model.mnm_target


def test_weights_that_move_to_masked_tokens_need_some(dataset, tmp_path, capsys):
    options = ["--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, "--mlm_probability", "0"]
    options += ["--mlm_weight", "0", "--mnm_weight", "1"]
    assert run_pretraining.main(list(map(str, options))) == 2
    captured = capsys.readouterr().err
    assert "falls from 1 to 0" in captured and "give --final_mnm_weight 1" in captured
    assert not (tmp_path / "out").exists()
    assert run_pretraining.main(list(map(str, [*options, "--final_mnm_weight", "1", "--max_steps", "1"]))) == 0
    assert re.search(r"loss weights +0   masked tokens; masked facts \(both\) 1\n", capsys.readouterr().out)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        run_pretraining.main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for option in ("--base_model", "--sources", "--resume", "--save_every_epochs", "--report_to", "--push_to_hub"):
        assert option in printed


def test_table_leaves_out_what_was_not_measured():
    metrics = {"eval_mlm_loss": 2.0, "eval_mlm_accuracy": 0.5, "eval_mlm_loss_in_leaf": 1.0}
    rows = held_out_rows(metrics, {"loss": 3.0}, None)
    assert rows == [
        ("MLM loss (nats)", "model", [2.0, 1.0, None]),
        ("MLM loss (nats)", "unigram", [3.0, None, None]),
        ("MLM accuracy", "model", [0.5, None, None]),
    ]
    assert format_table(rows).splitlines()[1].split() == ["MLM", "loss", "(nats)", "model", "2.0000", "1.0000", "-"]


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        ({"eval_mnm_accuracy": 0.5, "eval_mnm_macro_f1": 0.4}, ("mnm", None)),
        ({"eval_mnm_accuracy": 0.5}, (None, "mnm")),
        (
            {"eval_mnm_relation_accuracy": 0.5, "eval_mnm_relation_macro_f1": 0.4, "eval_mnm_tail_accuracy": 0.3},
            ("mnm_relation", "mnm_tail"),
        ),
        # Relations and tails were to be predicted, and no relation was hidden.
        ({"eval_mnm_tail_accuracy": 0.3, "eval_mnm_loss": 2.0}, (None, "mnm_tail")),
        ({"eval_mlm_loss": 2.0}, (None, None)),
    ],
)
def test_table_finds_relations_and_tails_by_their_names(metrics, names):
    assert names_of_facts(metrics) == names
    figures = {figure for figure, _, _ in held_out_rows(metrics, None, None)}
    assert ("relation accuracy" in figures) == (names[0] is not None)
    assert ("tail accuracy" in figures) == (names[1] is not None)
