"""Two small corpora of this project's own code and an untrained checkpoint, for the tests of tasks."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tiny_model import randomize

from graphmert.chain_graphs import load_chain_graphs
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
from graphmert.configuration_graphmert import GraphMertConfig
from graphmert.modeling_graphmert import GraphMertForPreTraining
from graphmert.tasks.base import TaskArguments, TaskContext

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {
    "alpha": ["code_graph/graph.py", "code_graph/scopes.py"],
    "epsilon": ["code_graph/syntax.py"],
    "beta": ["run_summary.py"],
}
HELD_OUT = {
    "gamma": ["chain_graphs/layout.py", "chain_graphs/duplicates.py", "chain_graphs/projects.py"],
    "delta": ["chain_graphs/splitting.py", "checkpoint_files.py"],
}
NUM_ROOTS, LEAVES = 48, 4


@functools.cache
def scratch() -> Path:
    """A directory that is removed when the tests end."""
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def corpora() -> tuple[Path, Path]:
    """Directories of the training and the held-out corpus, which share a tokenizer but no project."""
    built = []
    for name, projects in (("training", TRAINING), ("heldout", HELD_OUT)):
        for project, files in projects.items():
            (scratch() / name / project).mkdir(parents=True)
            for file in files:
                shutil.copy(ROOT / file, scratch() / name / project / Path(file).name)
        tokenizer = str(built[0] / "tokenizer") if built else None
        output = scratch() / f"{name}.data"
        build_chain_graphs(
            BuildArguments(
                [f"dir:{scratch() / name}"],
                str(output),
                validation_projects=[list(projects)[-1]],
                tokenizer=tokenizer,
                vocab_size=600,
            )
        )
        built.append(output)
    return built[0], built[1]


@functools.cache
def checkpoint(name: str = "both", recipe: tuple = (), **options) -> Path:
    """A saved checkpoint with random weights, and beside it what a pretraining run leaves."""
    training, _ = corpora()
    _, _, tokenizer = load_chain_graphs(training)
    torch.manual_seed(0)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_roots": NUM_ROOTS,
        "leaves_per_root": LEAVES,
        "max_position_embeddings": NUM_ROOTS * (1 + LEAVES) + 16,
        "mnm_target": "both",
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = randomize(GraphMertForPreTraining(GraphMertConfig(**{**values, **options})))
    directory = scratch() / "models" / name
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    shutil.copy(training / "manifest.json", directory / "manifest.json")
    arguments = {"model": {}, "data": {"dataset": str(training), **dict(recipe)}}
    (directory / "summary.json").write_text(json.dumps({"arguments": arguments}), encoding="utf-8")
    return directory


def context(model: Path | None = None, **arguments) -> TaskContext:
    """The tasks' context for a checkpoint and the held-out corpus."""
    values = {"dataset": str(corpora()[1]), "batch_size": 4} | arguments
    return TaskContext(TaskArguments(model=str(model or checkpoint()), **values), show_progress=False)
