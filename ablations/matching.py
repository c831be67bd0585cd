"""Which finished run is which: two runs are the same if all that decides their figures is the same.

Runs are told apart by the arguments in their `summary.json`, not by the names of their directories, so that a changed
row is never mistaken for the old one, and runs made elsewhere can be taken for those that a table wants.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

from ..pretraining_arguments import DataArguments, ModelArguments
from ..run_summary import file_sha256
from ..trainer_graphmert import GraphMertTrainingArguments
from .settings import Run, arguments_of

# Options of model and data that change where a run happens or how fast, but no figure.
_NO_FIGURE = {
    "attn_implementation",
    "num_relations",
    "dataset",
    "sources",
    "tokenizer",
    "vocab_size",
    "validation_fraction",
    "split_seed",
    "num_proc",
    "layout",
}
# Options that change nothing where there is no leaf.
_ONLY_WITH_LEAVES = (
    "use_hgat",
    "hgat_init",
    "hgat_init_scale",
    "head_memory_min_projects",
    "relation_dropout",
    "leaf_position",
    "mnm_target",
    "mnm_weight",
    "final_mnm_weight",
    "mnm_probability",
    "mnm_window_probability",
    "masked_span_leaves",
    "mask_visible_copies",
    "mnm_skip_copied_tails",
    "include_uses",
    "include_site_anchors",
    "exclude_relations",
    "edge_relations",
)
# Options of the trainer that do.
_TRAINING_FIGURE = (
    "seed",
    "data_seed",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "min_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "train_sampling_strategy",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
)


def identity_of_run(run: Run, dataset: str | Path) -> dict:
    """What decides the figures of a run that is wanted.

    Returns:
        Options by name, with defaults filled in; see `identity_of_summary`.
    """
    model, data, _, training = arguments_of(run, dataset, None)
    return _identity(asdict(model), asdict(data), training.to_dict())


def identity_of_summary(summary: dict) -> dict:
    """What decided a finished run's figures, from its `summary.json`.

    Options that did not exist when the run was made have their defaults, but for `final_mnm_weight`: it is the run's
    `mnm_weight`, since weights stayed as they were.

    Raises:
        ValueError: not the summary of a pretraining run.
    """
    try:
        arguments = summary["arguments"]
        return _identity(arguments["model"], arguments["data"], arguments["training"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the summary of a pretraining run: {error} is missing") from error


def _identity(model: dict, data: dict, training: dict) -> dict:
    values = {}
    for given, cls in ((model, ModelArguments), (data, DataArguments)):
        defaults = asdict(cls())
        values.update({name: given.get(name, default) for name, default in defaults.items() if name not in _NO_FIGURE})
    defaults = {option.name: option.default for option in fields(GraphMertTrainingArguments)}
    values.update({name: training.get(name, defaults.get(name)) for name in _TRAINING_FIGURE})
    # Weights of runs older than the option stayed as they were.
    final_mnm_weight = training.get("final_mnm_weight")
    values["final_mnm_weight"] = values["mnm_weight"] if final_mnm_weight is None else final_mnm_weight
    if isinstance(values["decay_base"], int | float):
        # Runs older than bases of several kinds of heads have a number.
        values["decay_base"] = [values["decay_base"]]
    if values["data_seed"] is None:
        values["data_seed"] = values["seed"]
    if (values["max_steps"] or 0) > 0:
        values["num_train_epochs"] = None
    if values["train_sampling_strategy"] != "group_by_length":
        values["order_leaves_per_root"] = None
    if values["leaves_per_root"] == 0:
        # Without leaves nothing reads these.
        values.update(dict.fromkeys(_ONLY_WITH_LEAVES))
    left_out = values["exclude_relations"] or values["edge_relations"]
    whole = values["include_uses"] and values["include_site_anchors"] and not left_out
    if whole and values["order_leaves_per_root"] == values["leaves_per_root"]:
        # The order of the whole graph is a graph's own order if nothing was left out.
        values["order_leaves_per_root"] = None
    return values


def differences(wanted: dict, found: dict) -> dict[str, tuple]:
    """Options in which two identities differ: name -> (wanted, found)."""
    return {name: (wanted[name], found[name]) for name in wanted if wanted[name] != found[name]}


def describe_differences(found: dict[str, tuple]) -> str:
    """Differences in words."""
    return ", ".join(f"{name} is {theirs!r} and not {ours!r}" for name, (ours, theirs) in found.items())


def why_not_this_run(run: Run, dataset: str | Path, summary: dict) -> dict[str, tuple]:
    """In what a finished run differs from the one that is wanted; empty if it is the same.

    Args:
        run: what is wanted.
        dataset: what it is trained on; compared by manifest.
        summary: of the finished run.
    """
    found = differences(identity_of_run(run, dataset), identity_of_summary(summary))
    manifest = file_sha256(Path(dataset) / "manifest.json")
    if summary.get("manifest_sha256") != manifest:
        found["data set (sha256 of its manifest)"] = (manifest[:12], str(summary.get("manifest_sha256"))[:12])
    return found


def adopt(
    runs: list[Run],
    directories: list[str | Path],
    dataset: str | Path,
    accepted: set[str],
    dry_run: bool = False,
) -> list[str]:
    """Take finished runs from elsewhere for those that are wanted and not there yet.

    Each directory is compared with every run that lacks a result, by the arguments in its `summary.json`; the run with
    the fewest differences gets it, if all of them are accepted. Nothing is copied.

    Args:
        runs: what is wanted.
        directories: output directories of `run_pretraining.py`, or directories that hold such.
        dataset: the training corpus.
        accepted: options that may differ; they are noted in `adopted.json` and from there in the record.
        dry_run: say what would be adopted, write nothing.

    Returns:
        A line for each directory: what became of it.

    Raises:
        ValueError: a directory without any finished run.
    """
    lines, taken = [], []
    adopted = {run.adopted["directory"]: run.name for run in runs if run.adopted}
    for directory in map(Path, directories):
        found = [directory] if (directory / "summary.json").is_file() else sorted(directory.glob("*/"))
        found = [path for path in found if (path / "summary.json").is_file() and (path / "config.json").is_file()]
        if not found:
            raise ValueError(f"--adopt {directory}: no finished run there (no summary.json beside a config.json)")
        for path in found:
            if str(path.resolve()) in adopted:
                lines.append(f"{path}: already adopted as {adopted[str(path.resolve())]}")
                continue
            summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
            wanted = [run for run in runs if run.summary is None and run not in taken]
            ranked = sorted(
                ((why_not_this_run(run, dataset, summary), run) for run in wanted), key=lambda pair: len(pair[0])
            )
            if not ranked or set(ranked[0][0]) - accepted:
                why = (
                    f"nearest is {ranked[0][1].name}, but {describe_differences(ranked[0][0])}"
                    if ranked
                    else "all runs are there"
                )
                lines.append(f"{path}: not adopted; {why}")
                continue
            other, run = ranked[0]
            note = {
                "directory": str(path.resolve()),
                "git_commit": summary.get("environment", {}).get("git_commit"),
                "differences": {name: {"wanted": ours, "found": theirs} for name, (ours, theirs) in other.items()},
            }
            text = json.dumps(note, indent=1, default=str) + "\n"
            taken.append(run)
            if not dry_run:
                run.directory.mkdir(parents=True, exist_ok=True)
                (run.directory / "adopted.json").write_text(text, encoding="utf-8")
            suffix = f" although {describe_differences(other)}" if other else ""
            lines.append(f"{path}: adopted as {run.name}{suffix}")
    return lines
