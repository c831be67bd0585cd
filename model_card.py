"""The model card: README.md of a model's directory, in the Hub's form, written from the run."""

import math
from dataclasses import dataclass, field
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .code_graph import RELATIONS
from .run_summary import environment, held_out_rows, names_of_facts

CARD_NAME = "README.md"
DEFAULT_LICENSE = "apache-2.0"
_PAPER = "https://arxiv.org/abs/2510.09580"
# Sources and projects beyond this number are counted, not listed; manifest.json has them all.
_MOST_ROWS = 40
_PARTS = {"MLM": ("token in a leaf", "token not in a leaf"), "": ("tail in the window", "tail not in it")}

_BODY = """---
{metadata}
---

# {name}

{status}A code encoder pretrained on source code joined with a knowledge graph of it: GraphMERT ([paper]({paper})), moved to
code. Each window of {num_roots} code tokens (the roots) carries up to {leaves_per_root} leaf tokens for each root with the
tails of its facts; a hierarchical graph attention tells a leaf what it hangs on, attention decays with distance in the
graph, and the model learned from masked tokens (MLM) and masked facts (MNM, target: {mnm_target}). {size}{base}

## How to load

```python
from transformers import AutoModel, AutoTokenizer

name = "{load_name}"
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)

inputs = tokenizer("def load(path: str):\\n    return open(path).read()\\n", return_tensors="pt")
print(model(**inputs).last_hidden_state.mean(1).shape)
```

Torch, transformers and safetensors are enough. `trust_remote_code=True` runs the Python files of this repository: read them
first, and give `revision="COMMIT"` to load the ones that you have read. `AutoModelForMaskedLM`, `AutoModelForPreTraining`
(token and relation predictions) and `AutoModelForSequenceClassification` load it too. Without a graph it is an encoder of up
to {num_positions} code tokens.

With the package `graphmert` installed, the processor builds the graph from the code:

```python
from graphmert import GraphMertProcessor

processor = GraphMertProcessor.from_pretrained(name)
code = ["def total(rows):\\n    return sum(rows)\\n", "def read(p):\\n    return open(p).read()\\n"]
outputs = model(**processor(code, language="python", return_tensors="pt"))
vectors = model.encode(code, processor, normalize=True)
print(vectors.shape)
```

Code longer than {num_roots} tokens becomes several windows; `encode` gives one vector for each text all the same.

## Results on code that was not trained on

{results}

## Data

{data}

## Relations

{relations}

## Training

{training}

## Intended use and limits

For embeddings of code, as a start for fine-tuning on code tasks, and for proposing facts of a code graph.

- The results above are those of the pretraining tasks; how well the model does on another task has to be measured there.
- A proposed fact is a guess with the error rates above, and its confidence says nothing about code unlike the training code.
- Code beyond a window's {num_roots} tokens is not seen; longer code has to be cut into windows.
- The model may reproduce fragments of its training code, which keeps the licences of its sources.

## Licence

{licence}

## Versions

{versions}
"""


@dataclass
class ModelFacts:
    """What a model card is written from; what is None or empty is left out of the card.

    Args:
        model_name: of the model, without its owner.
        config: the model's configuration as a dict.
        num_parameters: of the model, tied ones once.
        load_name: what `from_pretrained` takes: the repository on the Hub, or the model's directory.
        step, num_steps: optimizer steps done, and of the whole run.
        training_arguments: `TrainingArguments.to_dict()`.
        num_processes: that train together.
        model_arguments, data_arguments: of `run_pretraining.py`, as dicts.
        manifest: of the data set (`manifest.json`).
        evaluation: figures of the last evaluation, with prefix `eval_`.
        rows: `run_summary.held_out_rows` with baselines; without them the model's own figures of `evaluation` are shown.
        base_model: Hub name or directory of the checkpoint that training began with.
        license: identifier of the model's licence, as the Hub writes it.
    """

    model_name: str
    config: dict
    num_parameters: int
    load_name: str
    step: int = 0
    num_steps: int = 0
    training_arguments: dict = field(default_factory=dict)
    num_processes: int = 1
    model_arguments: dict = field(default_factory=dict)
    data_arguments: dict = field(default_factory=dict)
    manifest: dict | None = None
    evaluation: dict | None = None
    rows: list | None = None
    base_model: str | None = None
    license: str = DEFAULT_LICENSE


def model_card(facts: ModelFacts, language=None, tags=None, datasets=None) -> ModelCard:
    """Write the card of a model.

    Args:
        facts: of the run.
        language, tags, datasets: further metadata, in the Hub's form.

    Returns:
        A card whose metadata holds the figures as a model-index.
    """
    config, environ = facts.config, environment()
    metadata = ModelCardData(
        language=language or "code",
        license=facts.license,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        base_model=facts.base_model if _is_hub_name(facts.base_model) else None,
        datasets=datasets or _hub_datasets(facts.manifest) or None,
        tags=["code", "graphmert", "knowledge-graph", *([tags] if isinstance(tags, str) else tags or [])],
        model_name=facts.model_name,
        eval_results=eval_results(facts) or None,
    )
    unfinished = 0 < facts.step < facts.num_steps
    body = _BODY.format(
        metadata=metadata.to_yaml(),
        name=facts.model_name,
        status=f"**Training in progress: step {facts.step:,} of {facts.num_steps:,}.** " if unfinished else "",
        paper=_PAPER,
        load_name=facts.load_name,
        num_positions=config["max_position_embeddings"] - config["pad_token_id"] - 1,
        size=f"It has {facts.num_parameters:,} parameters.",
        base=f" Training began with `{_public_name(facts.base_model)}`." if facts.base_model else "",
        results=_results(facts),
        data=_data(facts.manifest),
        relations=_relations(config["relation_names"]),
        training=_training(facts),
        licence=f"{facts.license}. The modeling code is Apache-2.0.",
        versions=_versions(environ),
        **{name: config[name] for name in ("num_roots", "leaves_per_root", "mnm_target")},
    )
    return ModelCard(body)


def eval_results(facts: ModelFacts) -> list[EvalResult]:
    """The held-out figures as entries of the Hub's model-index; figures that are not finite are left out."""
    figures = facts.evaluation or {}
    relation, tail = names_of_facts(figures)
    wanted = [
        ("fill-mask", "Masked tokens", "mlm_loss", "loss", "MLM loss (nats)"),
        ("fill-mask", "Masked tokens", "mlm_accuracy", "accuracy", "MLM accuracy"),
    ]
    if relation is not None:
        wanted += [
            ("graph-ml", "Masked relations", f"{relation}_accuracy", "accuracy", "relation accuracy"),
            ("graph-ml", "Masked relations", f"{relation}_macro_f1", "f1", "relation macro-F1"),
        ]
    if tail is not None:
        wanted.append(("graph-ml", "Masked tails", f"{tail}_accuracy", "accuracy", "tail accuracy"))
    datasets = _hub_datasets(facts.manifest)
    projects = (facts.manifest or {}).get("splits", {}).get("validation", {}).get("projects", [])
    dataset = {
        "dataset_type": datasets[0] if datasets else "code",
        "dataset_name": f"Held-out projects ({', '.join(projects[:10])}{', ...' if len(projects) > 10 else ''})"
        if projects
        else "Held-out code",
        "dataset_split": "validation",
    }
    return [
        EvalResult(task_type=task, task_name=title, metric_type=kind, metric_name=label, metric_value=value, **dataset)
        for task, title, name, kind, label in wanted
        if isinstance(value := figures.get(f"eval_{name}"), int | float) and math.isfinite(value)
    ]


def _is_hub_name(name: str | None) -> bool:
    """Whether a base model is named as on the Hub; a path of this machine is nobody else's business."""
    return bool(name) and name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def _public_name(name: str) -> str:
    return name if _is_hub_name(name) else "a local checkpoint"


def _hub_datasets(manifest: dict | None) -> list[str]:
    """Names of the sources that are data sets of the Hub."""
    sources = (manifest or {}).get("sources", [])
    return [source["name"] for source in sources if source.get("kind") == "hf" and _is_hub_name(source.get("name"))]


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _table(header: tuple[str, ...], rows: list, numbers: int = 0) -> str:
    """A Markdown table, its last `numbers` columns to the right."""
    marks = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    lines = [header, marks, *[[_cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results(facts: ModelFacts) -> str:
    rows = facts.rows or held_out_rows(facts.evaluation or {}, None, None)
    if not rows:
        return "Not measured yet." if facts.step < facts.num_steps else "Not measured."
    texts = []
    for kind, parts in _PARTS.items():
        chosen = [row for row in rows if row[0].startswith("MLM") == (kind == "MLM")]
        if chosen:
            best = [
                (figure, who if who == "model" else f"{who} (baseline)", *values) for figure, who, values in chosen
            ]
            texts.append(_table(("figure", "who", "all", *parts), best, numbers=3))
    figures = facts.evaluation or {}
    relation, tail = names_of_facts(figures)
    counted = (("mlm", "masked tokens"), (relation, "masked relations"), (tail, "tokens of masked tails"))
    counts = [
        f"{int(figures[f'eval_{name}_count']):,} {what}" for name, what in counted if figures.get(f"eval_{name}_count")
    ]
    if counts:
        *first, last = counts
        listed = " and ".join([", ".join(first), last] if first else [last])
        texts.append(f"One seed, measured on {listed} at step {figures.get('step', facts.step):,}.")
    texts.append(
        "Model and baselines are scored on the same masks. The unigram baseline knows how often each token occurs; the "
        "lookups count in the training windows and back off to the majority."
        if facts.rows
        else "The trivial baselines, without which these figures say little, are scored at the end of training."
    )
    return "\n\n".join(texts)


def _data(manifest: dict | None) -> str:
    if manifest is None:
        return "The data set's manifest was not given."
    rows = [
        (
            # A path of this machine stays there.
            source["spec"] if source.get("kind") != "dir" else "a directory",
            source.get("version") or source.get("revision"),
            source.get("licence") or "not stated",
            source["files"],
            source["tokens"],
            source["num_triples"],
        )
        for source in manifest["sources"]
    ]
    texts = [_table(("source", "version", "licence", "files", "tokens", "facts"), rows[:_MOST_ROWS], numbers=3)]
    if len(rows) > _MOST_ROWS:
        texts.append(f"and {len(rows) - _MOST_ROWS:,} more sources, all of them in `manifest.json`.")
    splits = [
        (name, _listed(split["projects"]), split["files"], split["tokens"], split["num_triples"])
        for name, split in manifest["splits"].items()
    ]
    texts += [
        "No project stands in two splits.",
        _table(("split", "projects", "files", "tokens", "facts"), splits, numbers=3),
    ]
    skipped = manifest.get("skipped", {}).get("by_reason", {})
    texts.append(
        "Left out (files): " + "; ".join(f"{reason}: {count:,}" for reason, count in skipped.items()) + "."
        if skipped
        else "No file was left out."
    )
    texts.append("`manifest.json` names every source, version and file left out.")
    return "\n\n".join(texts)


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _relations(names: list[str]) -> str:
    known = {relation.name: relation for relation in RELATIONS}
    rows = [
        (
            index,
            f"`{name}`",
            known[name].definition if name in known else "",
            f"`{known[name].example_triple[0]}` {name} `{known[name].example_triple[1]}`" if name in known else "",
        )
        for index, name in enumerate(names)
    ]
    return _table(("id", "relation", "head *relation* tail says", "example"), rows)


def _training(facts: ModelFacts) -> str:
    args, config = facts.training_arguments, facts.config
    batch = args.get("per_device_train_batch_size", 0) * args.get("gradient_accumulation_steps", 1)
    rows = [
        ("layers, width, heads", _joined(config, "num_hidden_layers", "hidden_size", "num_attention_heads")),
        ("feed-forward width", config["intermediate_size"]),
        ("vocabulary", config["vocab_size"]),
        ("roots, leaf slots of each", _joined(config, "num_roots", "leaves_per_root")),
    ]
    names = ("decay_mode", "decay_base", "use_hgat", "relation_dropout", "hidden_dropout_prob", "leaf_position")
    rows += [(name, _plain(config[name])) for name in (*names, "mnm_target", "mlm_weight", "mnm_weight")]
    masks = (
        "mlm_probability",
        "mnm_probability",
        "mnm_window_probability",
        "masked_span_leaves",
        "mask_visible_copies",
        "mnm_skip_copied_tails",
    )
    rows += [(name, _plain(facts.data_arguments[name])) for name in masks if name in facts.data_arguments]
    if args:
        rows += [
            ("windows in an optimizer step", batch * facts.num_processes),
            ("optimizer steps", f"{facts.step:,} of {facts.num_steps:,}"),
        ]
    for name in (
        "num_train_epochs",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "final_mnm_weight",
        "bf16",
        "fp16",
        "seed",
    ):
        if args.get(name) is not None:
            rows.append((name, _plain(args[name])))
    return _table(("hyperparameter", "value"), rows)


def _joined(values: dict, *names: str) -> str:
    return ", ".join(str(values[name]) for name in names)


def _plain(value) -> str:
    """A hyperparameter as it is written on a command line: no thousands separators, no rounding."""
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _versions(environ: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environ["versions"].items())
    commit = f" Commit of the code: `{quote(environ['git_commit'], safe='+')}`." if environ["git_commit"] else ""
    return f"{versions}, Python {environ['python']}.{commit}"
