"""A user's path: pretrain, push, load by name in a process without this project; and a push that has to be made later."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from test_hub import CODE, MODEL_FILES, assert_without_pickles
from test_hub_tampered import write_payload
from test_remote_code import STRANGER
from test_run_pretraining import ROOT, SMALL, build_dataset, run
from transformers import AutoTokenizer

from graphmert.modeling_graphmert import GraphMertModel

TEXT = "def load(path: str) -> list:\n    return read(path)\n"
# Runs elsewhere: nothing but torch, transformers and safetensors can be imported.
STRANGER = STRANGER.split("import torch, transformers")[0]
LOAD = """
import os, torch
from transformers import AutoModel, AutoTokenizer
torch.set_num_threads(1)
vectors = []
for place, revision in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=True)
    model = AutoModel.from_pretrained(place, revision=revision, trust_remote_code=True, add_pooling_layer=False)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        vectors.append(model(**tokenizer(sys.argv[2], return_tensors="pt")).last_hidden_state.mean(1)[0].tolist())
print("vectors", json.dumps(vectors))
exec(sys.argv[3])
"""
FUNCTION = "def f{0}(a{0}, b):\n    c{0} = a{0} * {0}\n    return c{0} + b\n\n\n"
USE = f"""
from graphmert.embed_code import main as embed
from graphmert.kg_extraction.__main__ import main as extract

assert embed(["--model", name, "--source", "dir:project", "--output", "vectors.parquet"]) == 0
query = ["--query", {FUNCTION.format(3).strip()!r}, "--query-language", "python", "--top", "3"]
assert embed(["--model", name, "--index", "vectors.parquet", *query]) == 0
assert extract(["--model", name, "--source", "dir:project", "--output", "kg", "--formats", "jsonl,html"]) == 0
"""


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build_dataset(tmp_path_factory)


def test_pretrain_push_and_load_by_name(dataset, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "run_pretraining.py", "--dataset", dataset, "--output_dir", output, *SMALL]
    command += ["--push_to_hub", "--hub_model_id", "someone/tiny", "--hub_always_push"]
    (tmp_path / "elsewhere").mkdir()
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "cache")}
        options = {"capture_output": True, "text": True, "timeout": 600, "cwd": tmp_path / "elsewhere"}
        done = subprocess.run(command, env=environment, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        during, last = hub.commits[0], hub.commits[-1]
        assert [commit["summary"] for commit in hub.commits] == [
            "Training in progress, epoch 1",
            "Training in progress, epoch 2",
            "End of training",
        ]
        for commit in hub.commits:
            assert {*commit["files"]} >= MODEL_FILES | CODE
            assert_without_pickles(commit)
        assert {"summary.json", "loss.png", "manifest.json"} <= {*last["files"]}
        card = ModelCard(last["content"]["README.md"].decode())
        snippet, with_package = re.findall(r"```python\n(.*?)```", card.text, re.S)
        # The second example goes on from the first, where the package is installed; then search and facts, by name.
        project = tmp_path / "elsewhere" / "project"
        project.mkdir()
        (project / "app.py").write_text("".join(FUNCTION.format(i) for i in range(10)))
        installed = subprocess.run([sys.executable, "-c", snippet + with_package + USE], env=environment, **options)
        assert installed.returncode == 0, installed.stderr[-3000:]
        printed = installed.stdout.splitlines()
        assert "(2, 16)" in printed and "10 functions written to vectors.parquet" in printed
        # The function itself is the nearest to itself; its graph is the one of its file.
        assert next(line for line in printed if "app.py:" in line).endswith("f3")
        facts = [json.loads(line) for line in (project.parent / "kg" / "facts.jsonl").read_text().splitlines()]
        assert {("app.f3", "has_parameter", "app.f3.a3")} <= {(f["head"], f["relation"], f["tail"]) for f in facts}
        assert "<script" in (project.parent / "kg" / "graph.html").read_text()
        assert 'name = "someone/tiny"' in snippet
        # -I: neither the working directory nor PYTHONPATH is searched.
        tampered, trace = tamper(output, tmp_path)
        # The page about the Hub has an example of its own.
        snippet += re.search(r"```python\n(.*?)```", (ROOT / "docs" / "HUB.md").read_text(), re.S)[1]
        places = [["someone/tiny", during["oid"]], ["someone/tiny", None], [str(tampered), None]]
        stranger = [sys.executable, "-I", "-c", STRANGER + LOAD, json.dumps(places), TEXT, snippet]
        loaded = subprocess.run(stranger, env=environment, stdin=subprocess.DEVNULL, **options)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    printed = loaded.stdout.splitlines()
    assert printed[-2:] == ["torch.Size([1, 16])"] * 2
    # Neither the pickle nor the file that no auto_map names has run.
    assert not trace.exists()
    vectors = torch.tensor(json.loads(next(line for line in printed if line.startswith("vectors"))[8:]))
    first = min(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for vector, directory in zip(vectors, (first, output, tampered), strict=True):
        model = GraphMertModel.from_pretrained(directory, add_pooling_layer=False)
        with torch.no_grad():
            states = model(**AutoTokenizer.from_pretrained(directory)(TEXT, return_tensors="pt")).last_hidden_state
        assert torch.equal(vector, states.mean(1)[0])
    assert not torch.equal(vectors[0], vectors[1])
    check_card(card, json.loads((output / "summary.json").read_text()), dataset)
    assert (output / "README.md").read_text() == str(card)


def tamper(output: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of a model with a pickle and code that would leave a trace when they run, and that trace."""
    copy, trace = tmp_path / "tampered", tmp_path / "trace"
    shutil.copytree(output, copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    for name in ("pytorch_model.bin", "training_args.bin"):
        write_payload(copy / name, trace)
    for name in ("evil.py", "__init__.py", "torch.py", "sitecustomize.py"):
        (copy / name).write_text(f"open({str(trace)!r}, 'w').close()\n")
    return copy, trace


def check_card(card: ModelCard, summary: dict, dataset: Path) -> None:
    """The card says what the run measured and was made of."""
    measured = {result.metric_name: result.metric_value for result in card.data.eval_results}
    held_out = summary["held_out"]
    assert measured == {
        "MLM loss (nats)": held_out["mlm_loss"],
        "MLM accuracy": held_out["mlm_accuracy"],
        "relation accuracy": held_out["mnm_relation_accuracy"],
        "relation macro-F1": held_out["mnm_relation_macro_f1"],
        "tail accuracy": held_out["mnm_tail_accuracy"],
    }
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    for who, scores in summary["lookups"].items():
        row = f"| relation accuracy | {who} (baseline) | {scores['accuracy']:.4f} | {scores['accuracy_visible']:.4f} |"
        assert row in card.text
    assert f"| MLM loss (nats) | unigram (baseline) | {summary['unigram']['loss']:.4f} |" in card.text
    manifest = json.loads((dataset / "manifest.json").read_text())
    for name, split in manifest["splits"].items():
        row = f"| {name} | {', '.join(split['projects'])} | {split['files']} | {split['tokens']} | {split['num_triples']} |"
        assert row in card.text
    # A directory of this machine is nobody else's business.
    assert manifest["sources"][0]["spec"] not in card.text and "| a directory |" in card.text
    for name in manifest["relation_names"]:
        assert f"`{name}`" in card.text
    for text in ("learning_rate | 0.0004 |", "| mnm_probability | 0.3 |", "| optimizer steps | 4 of 4 |"):
        assert text in card.text
    tokens, relations, tails = (held_out[f"{name}_count"] for name in ("mlm", "mnm_relation", "mnm_tail"))
    counts = (
        f"{tokens:,} masked tokens, {relations:,} masked relations and {tails:,} tokens of masked tails at step 4."
    )
    assert counts in card.text
    assert f"torch {torch.__version__}" in card.text and "Training in progress" not in card.text


def test_push_that_fails_at_the_end(dataset, tmp_path, monkeypatch, capsys):
    output = tmp_path / "my run"
    arguments = [
        "--dataset",
        dataset,
        "--output_dir",
        output,
        *SMALL,
        "--save_strategy",
        "no",
        "--hub_strategy",
        "end",
    ]
    with HubServer() as hub:
        hub.use_in_process(monkeypatch)
        hub.fail("/commit/", 500)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        status = run(*arguments, "--push_to_hub", "--hub_model_id", "someone/tiny")
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_pretraining.py")]
        assert status == 3 and len(errors) == 1 and hub.commits == []
        assert errors[0].startswith("run_pretraining.py: error: the push failed: ") and "500" in errors[0]
        assert f"the model is saved in {output}, push it with: hf upload someone/tiny " in errors[0]
        GraphMertModel.from_pretrained(output)
        hub.faults.clear()
        command = errors[0].split("push it with: ")[1]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **hub.environment(tmp_path / "cache"), "PATH": path}
        done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {*hub.files} >= MODEL_FILES | CODE
    assert hub.files["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_disk_that_is_full_at_the_end(dataset, tmp_path, monkeypatch, capsys):
    """The message names the checkpoint to go on from, and going on gives the finished run."""
    import run_pretraining

    def full(*args):
        raise OSError(28, os.strerror(28))

    arguments = ("--dataset", dataset, "--output_dir", tmp_path / "out", *SMALL, "--eval_strategy", "no")
    with monkeypatch.context() as patch:
        patch.setattr(run_pretraining, "save_results", full)
        assert run(*arguments) == 3
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_pretraining.py")]
    newest = tmp_path / "out" / "checkpoint-4"
    assert "the disk is full, the trained model could not be saved" in error and f"begins at {newest}" in error
    assert run(*arguments, "--resume") == 0
    assert (tmp_path / "out" / "README.md").exists()
