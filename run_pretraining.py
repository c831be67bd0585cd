"""Pretrain GraphMERT on code: `python run_pretraining.py CONFIG.yaml [--option value ...]`.

Reads a data set built by `python -m graphmert.chain_graphs.build` (or builds it first, with --sources), trains from
scratch or from a RoBERTa, CodeBERT or GraphMERT checkpoint, and ends with a table of held-out figures beside their
baselines.
Exit status: 0; 1 when the loss became NaN or infinite; 2 for wrong input or a Hub token that may not write; 3 when the
trained model could not be pushed to the Hub or, on a full disk, not be saved; 130 when stopped from the keyboard, which
--resume goes on from.
"""

import hashlib
import json
import math
import re
import shutil
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback, set_seed
from transformers.utils import logging as hf_logging

from graphmert.attention_graphmert import preferred_attention
from graphmert.checkpoint_files import newest_complete_checkpoint, why_incomplete
from graphmert.checkpoint_trainer import is_disk_full
from graphmert.collator import GraphMertCollator
from graphmert.hub_training import PUSH_ERRORS, check_hub_access, short_reason, upload_command
from graphmert.pretraining_arguments import (
    PROGRAM,
    DataArguments,
    ModelArguments,
    RunArguments,
    parse_arguments,
)
from graphmert.processing_graphmert import GraphMertProcessor
from graphmert.run_summary import (
    environment,
    file_sha256,
    format_table,
    held_out_rows,
    plot_history,
)
from graphmert.trainer_graphmert import GraphMertTrainer, GraphMertTrainingArguments, NonFiniteLossError

# In the output directory; Trainer leaves names with a leading underscore out of pushes to the Hub.
DATASET_DIR = "_dataset"
# The masks of the evaluation are the same for every run, so that runs are scored on the same targets.
EVALUATION_SEED = 0
# Sizes that come from --base_model when it is given.
_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# Fields in which a checkpoint must agree with the run that resumes it.
_SAME_WHEN_RESUMING = (
    "vocab_size",
    *_SIZES,
    "max_position_embeddings",
    "num_roots",
    "leaves_per_root",
    "num_relations",
    "relation_names",
    "use_hgat",
    "head_memory_keys",
    "head_memory_folds",
    "head_memory_answers",
    "decay_mode",
    "leaf_position",
    "mnm_target",
)


# Which facts of the graph windows hold; the model's configuration says it too.
GRAPH_OPTIONS = ("include_uses", "include_site_anchors", "exclude_relations", "edge_relations")
# What the console shows of a log: the figure's name and its label.
_LOGGED = (
    ("loss", "loss"),
    ("mlm_loss", "MLM"),
    ("mlm_accuracy", "accuracy"),
    ("sbo_loss", "span boundary"),
    ("mnm_loss", "MNM"),
    ("mnm_accuracy", "accuracy"),
    ("mnm_macro_f1", "macro-F1"),
    ("mnm_relation_accuracy", "relation accuracy"),
    ("mnm_relation_macro_f1", "macro-F1"),
    ("mnm_tail_accuracy", "tail accuracy"),
    ("grad_norm", "gradient"),
    ("learning_rate", "lr"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: command line without the program's name; default that of the process.

    Returns:
        The exit status.
    """
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    try:
        return pretrain(*arguments)
    except KeyboardInterrupt:
        return _stopped(arguments[-1])


def pretrain(
    model_args: ModelArguments, data_args: DataArguments, run_args: RunArguments, args: GraphMertTrainingArguments
) -> int:
    """Do what the command line asks for.

    Returns:
        The exit status.
    """
    if run_args.num_threads:
        torch.set_num_threads(run_args.num_threads)
    hf_logging.disable_progress_bar()
    clock = [time.time()]
    try:
        check_hub_access(args)
        checkpoint = prepare_output_dir(run_args, args)
        check_edge_relations(model_args, data_args)
        check_head_memory(model_args)
        check_loss_weights(model_args, data_args, args)
        train_windows, eval_windows, tokenizer, manifest = open_dataset(model_args, data_args, args)
        set_seed(args.seed)
        options = {
            "verbose": args.process_index == 0,
            "seed": args.seed,
            "memory": head_votes(model_args, train_windows),
        }
        model = build_model(model_args, tokenizer, manifest, **options)
        # What the model is trained on, for whoever reads code for it.
        model.config.update({name: getattr(data_args, name) for name in GRAPH_OPTIONS})
        if model_args.attn_implementation is None:
            choose_attention_backend(model, args.device, with_edges=bool(data_args.edge_relations))
        if checkpoint is not None:
            check_same_model(checkpoint, model.config)
        trainer = build_trainer(model, model_args, data_args, args, tokenizer, train_windows, eval_windows)
        trainer.card_facts = {
            "manifest": manifest,
            "base_model": model_args.base_model,
            "license": run_args.model_license,
            "data_arguments": asdict(data_args),
        }
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        # With the last two Transformers names a library that an option needs, as report_to does.
        return _fail(args, error, status=2)
    say = print if trainer.is_world_process_zero() else _silent
    describe_run(say, trainer, model, train_windows, eval_windows)
    clock.append(time.time())
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except NonFiniteLossError as error:
        return _fail(args, error, status=1)
    clock.append(time.time())
    metrics = last_evaluation(trainer)
    try:
        save_results(trainer, data_args, args)
        if trainer.is_world_process_zero():
            arguments = {"model": asdict(model_args), "data": asdict(data_args), "run": asdict(run_args)}
            summarise(say, trainer, metrics, arguments, manifest, checkpoint, clock)
            trainer.create_model_card()
    except Exception as error:
        # Each library raises a type of its own when it cannot write, so the cause decides, not the type.
        if not is_disk_full(error):
            raise
        newest, _ = newest_complete_checkpoint(args.output_dir)
        reason = f"the disk is full, the trained model could not be saved in {args.output_dir}"
        return _fail(args, OSError(f"{reason}; make room and call again with --resume, which begins at {newest}"), 3)
    trainer.accelerator.wait_for_everyone()
    status = push_model(trainer) if args.push_to_hub else 0
    trainer.accelerator.end_training()
    return status


def push_model(trainer: GraphMertTrainer) -> int:
    """Push the saved model; when that fails, say how to do it later.

    Returns:
        The exit status.
    """
    args = trainer.args
    try:
        trainer.push_to_hub()
    except PUSH_ERRORS as error:
        later = upload_command(args.output_dir, trainer.hub_model_id, args.hub_revision)
        reason = (
            f"the push failed: {short_reason(error)}; the model is saved in {args.output_dir}, push it with: {later}"
        )
        return _fail(args, RuntimeError(reason), status=3)
    return 0


def _silent(*_args, **_kwargs) -> None:
    pass


def _fail(args: GraphMertTrainingArguments, error: Exception, status: int) -> int:
    if args.local_process_index == 0:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return status


def _stopped(args: GraphMertTrainingArguments) -> int:
    """Say how to go on with a run that was stopped from the keyboard."""
    newest, _ = newest_complete_checkpoint(args.output_dir)
    how = f"go on from {newest} with --resume"
    if newest is None:
        how = "no checkpoint was saved; begin again with --resume or --overwrite"
    if args.local_process_index == 0:
        print(f"{PROGRAM}: stopped; {how}", file=sys.stderr, flush=True)
    return 130


def prepare_output_dir(run_args: RunArguments, args: GraphMertTrainingArguments) -> Path | None:
    """Check the output directory and find the checkpoint to go on from.

    Returns:
        The checkpoint, or None to start anew.

    Raises:
        ValueError: results are there and neither --resume nor --overwrite was given, or the checkpoint is incomplete.
    """
    output_dir, resume = Path(args.output_dir), run_args.resume or args.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file")
    if run_args.overwrite and resume:
        raise ValueError("--resume and --overwrite exclude each other")
    if resume and resume != "auto":
        reason = why_incomplete(resume)
        if reason is not None:
            raise ValueError(f"cannot resume from {resume}: {reason}")
        return Path(resume)
    if resume:
        checkpoint, passed_over = newest_complete_checkpoint(output_dir)
        if args.local_process_index == 0:
            for line in passed_over:
                print(f"{line}; the one before it is used", flush=True)
            print(
                f"resuming from {checkpoint}"
                if checkpoint
                else f"no complete checkpoint in {output_dir}, starting anew"
            )
        return checkpoint
    # Another process may be building the data set already.
    old = [path for path in output_dir.glob("*") if not re.match(rf"(\.{DATASET_DIR}\.|{DATASET_DIR}$)", path.name)]
    if old and not run_args.overwrite:
        raise ValueError(f"output_dir {output_dir} is not empty; go on with --resume, or start anew with --overwrite")
    with args.main_process_first(desc="removing old checkpoints"):
        for path in old if args.process_index == 0 else []:
            if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir():
                shutil.rmtree(path)
    return None


def open_dataset(model_args: ModelArguments, data_args: DataArguments, args: GraphMertTrainingArguments):
    """Open the data set, built first if it is not there yet, and cut it into windows.

    Returns:
        Training windows, validation windows, tokenizer, manifest.

    Raises:
        ValueError: no data set and no sources, a directory that is none, or one that disagrees with the arguments.
    """
    from graphmert.chain_graphs import WindowDataset, load_chain_graphs
    from graphmert.chain_graphs.languages import parse_languages

    if data_args.dataset is None and not data_args.sources:
        raise ValueError("give --dataset DIR, or --sources to build one, for example --sources stdlib")
    directory = Path(data_args.dataset or Path(args.output_dir) / DATASET_DIR)
    with args.main_process_first(desc="building the data set"):
        if data_args.sources and not (directory / "manifest.json").exists():
            _build_dataset(directory, data_args)
    splits, manifest, tokenizer = load_chain_graphs(directory)
    built_from = [source["spec"] for source in manifest["sources"]]
    if data_args.sources and list(dict.fromkeys(data_args.sources)) != built_from:
        raise ValueError(
            f"{directory} was built from {', '.join(built_from)}, not from {', '.join(data_args.sources)}; "
            "remove it or give another --dataset"
        )
    languages = manifest["arguments"].get("languages", ["python"])
    if data_args.sources and data_args.languages and list(parse_languages(data_args.languages)) != languages:
        raise ValueError(
            f"{directory} was built from {', '.join(languages)}, not from {', '.join(data_args.languages)}; "
            "remove it or give another --dataset"
        )
    num_relations = len(manifest["relation_names"])
    if model_args.num_relations not in (None, num_relations):
        raise ValueError(
            f"num_relations is {model_args.num_relations}, but the data set {directory} has {num_relations} relations: "
            f"{', '.join(manifest['relation_names'])}"
        )
    windows = []
    for split, limit in (("train", data_args.max_train_windows), ("validation", data_args.max_eval_windows)):
        if split not in splits or len(splits[split]) == 0:
            raise ValueError(f"the data set {directory} has no {split} split; build it again with one")
        options = window_options(model_args, data_args)
        common = {"max_windows": limit, "progress": args.local_process_index == 0 and not args.disable_tqdm}
        windows.append(WindowDataset(splits[split], tokenizer, **options, **common))
        windows[-1].projects = splits[split]["project"]
        if split == "train" and data_args.order_leaves_per_root is not None:
            whole = {"num_roots": model_args.num_roots, "leaves_per_root": data_args.order_leaves_per_root}
            same = options == {**window_options(ModelArguments(), DataArguments()), **whole}
            ordered = windows[0] if same else WindowDataset(splits[split], tokenizer, **whole, **common)
            windows[0].order_lengths = ordered.lengths
    return *windows, tokenizer, manifest


def window_options(model_args: ModelArguments, data_args: DataArguments) -> dict:
    """The options of `WindowDataset` that shape the graphs of a run."""
    return {
        "num_roots": model_args.num_roots,
        "leaves_per_root": model_args.leaves_per_root,
        "include_uses": data_args.include_uses,
        "include_site_anchors": data_args.include_site_anchors,
        "exclude_relations": data_args.exclude_relations,
        "edge_relations": data_args.edge_relations,
    }


def _build_dataset(directory: Path, data_args: DataArguments) -> None:
    from datasets import disable_progress_bars

    from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs
    from graphmert.chain_graphs.languages import parse_languages
    from graphmert.chain_graphs.sources import BuildError

    print(f"building the data set {directory} from {', '.join(data_args.sources)}", flush=True)
    disable_progress_bars()
    build = BuildArguments(
        source=list(data_args.sources),
        output=str(directory),
        languages=parse_languages(data_args.languages or ["python"]),
        validation_fraction=data_args.validation_fraction,
        seed=data_args.split_seed,
        tokenizer=data_args.tokenizer,
        vocab_size=data_args.vocab_size,
        num_proc=data_args.num_proc,
        restart=data_args.restart_build,
    )
    try:
        build_chain_graphs(build)
    except BuildError as error:
        # The build's own command names its own option.
        raise ValueError(str(error).replace("add --restart ", "add --restart_build ")) from error


def initialise_by_name(model, seed: int) -> None:
    """Draw each module's weights from the seed and the module's name.

    Models that share a part then start with the same weights in it, whatever else they have: runs are paired.
    """
    done: set[int] = set()
    for name, module in model.named_modules():
        parameters = {id(parameter) for parameter in module.parameters(recurse=False)}
        # The LM head's decoder is tied to the word embeddings, which come first.
        if parameters and not parameters & done:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]))
                model._init_weights(module)
        done |= parameters


def head_votes(model_args: ModelArguments, windows) -> dict[str, torch.Tensor] | None:
    """What a new head memory holds, if the run is to have one.

    Raises:
        ValueError: no head stands in so many projects.
    """
    from graphmert.chain_graphs.known_heads import count_votes

    least = model_args.head_memory_min_projects
    return count_votes(windows, windows.projects, least) if least else None


def build_model(
    model_args: ModelArguments,
    tokenizer,
    manifest: dict,
    verbose: bool = True,
    seed: int | None = None,
    memory: dict[str, torch.Tensor] | None = None,
):
    """Make the model, from scratch or from a RoBERTa or GraphMERT checkpoint.

    Args:
        model_args: the model's options.
        tokenizer, manifest: of the data set.
        verbose: say what was converted.
        seed: of weights from scratch, drawn module by module (`initialise_by_name`); None: from PyTorch's generator.
        memory: what a new head memory holds (`known_heads.count_votes`).

    Raises:
        ValueError: impossible sizes, a checkpoint of another architecture, one with another vocabulary, or a second head
            memory.
        OSError: there is no such checkpoint.
    """
    from graphmert.configuration_graphmert import GraphMertConfig
    from graphmert.modeling_graphmert import GraphMertForPreTraining

    options = {
        "num_roots": model_args.num_roots,
        "leaves_per_root": model_args.leaves_per_root,
        "num_relations": len(manifest["relation_names"]),
        "relation_names": manifest["relation_names"],
        "use_hgat": model_args.use_hgat,
        "relation_dropout": model_args.relation_dropout,
        "hgat_init": model_args.hgat_init,
        "hgat_init_scale": model_args.hgat_init_scale,
        "hidden_dropout_prob": model_args.dropout,
        "attention_probs_dropout_prob": model_args.dropout
        if model_args.attention_dropout is None
        else model_args.attention_dropout,
        "decay_mode": None if model_args.decay_mode == "none" else model_args.decay_mode,
        "decay_base": model_args.decay_base[0] if len(model_args.decay_base) == 1 else model_args.decay_base,
        "decay_offset_init": model_args.decay_offset_init,
        "leaf_position": model_args.leaf_position,
        "mnm_target": model_args.mnm_target,
        "mlm_weight": model_args.mlm_weight,
        "mnm_weight": model_args.mnm_weight,
        "span_boundary": model_args.span_boundary,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if memory is not None:
        names = ("head_memory_keys", "head_memory_folds", "head_memory_answers")
        options |= dict(zip(names, memory["votes"].shape, strict=True))
    given = {name: getattr(model_args, name) for name in _SIZES if getattr(model_args, name) is not None}
    if model_args.base_model is None:
        # Plain code of 1024 tokens fits, whatever the graph's size.
        num_positions = max(1024, model_args.num_roots * (1 + model_args.leaves_per_root))
        config = GraphMertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=num_positions + tokenizer.pad_token_id + 1,
            **{**_SIZES, **given},
            **options,
        )
        model = GraphMertForPreTraining(config)
        if seed is not None:
            initialise_by_name(model, seed)
    else:
        if given:
            raise ValueError(f"{', '.join(given)} cannot be chosen with --base_model, which brings its own sizes")
        if is_graphmert(model_args.base_model):
            if memory is not None and GraphMertConfig.from_pretrained(model_args.base_model).head_memory_keys:
                raise ValueError(
                    f"{model_args.base_model} has a head memory already, which training goes on with: leave out "
                    "--head_memory_min_projects"
                )
            # What of the graph it has never used (H-GAT, decay) is new.
            model = GraphMertForPreTraining.from_pretrained(model_args.base_model, **options)
            report = f"Continued from {model_args.base_model}, a GraphMERT checkpoint"
        else:
            model = GraphMertForPreTraining.from_roberta(model_args.base_model, verbose=False, **options)
            report = model.conversion_report
        check_same_vocabulary(model_args.base_model, tokenizer)
        if verbose:
            print(report, flush=True)
    if memory is not None:
        model.roberta.head_memory.remember(memory)
    if model_args.attn_implementation is not None:
        model.set_attn_implementation(model_args.attn_implementation)
    return model


def choose_attention_backend(model, device, with_edges: bool = False) -> None:
    """Set the backend that suits the device, for a run that asked for none; flex_attention knows no edges between roots."""
    preferred = preferred_attention(device.type, model.config.attention_probs_dropout_prob)
    model.set_attn_implementation("sdpa" if with_edges else preferred)


def check_edge_relations(model_args: ModelArguments, data_args: DataArguments) -> None:
    """Refuse edges between roots that nothing would read.

    Raises:
        ValueError: names the option that stands against them.
    """
    if not data_args.edge_relations:
        return
    named = f"edge_relations {', '.join(data_args.edge_relations)}"
    if model_args.decay_mode == "none":
        raise ValueError(f"{named} act on the attention decay, but decay_mode is none")
    if model_args.leaves_per_root == 0:
        raise ValueError(f"{named} belong to the graph, but leaves_per_root 0 switches it off")
    if model_args.attn_implementation == "flex_attention":
        raise ValueError(
            f"{named} need attn_implementation sdpa or eager: flex_attention knows no edges between roots"
        )


def check_head_memory(model_args: ModelArguments) -> None:
    """Refuse a head memory that nothing would look up.

    Raises:
        ValueError: names the options.
    """
    if model_args.head_memory_min_projects < 0:
        raise ValueError(f"head_memory_min_projects is {model_args.head_memory_min_projects}; it must be 0 or more")
    if model_args.head_memory_min_projects and model_args.leaves_per_root == 0:
        raise ValueError("head_memory_min_projects belongs to the graph, but leaves_per_root 0 switches it off")


def check_loss_weights(model_args: ModelArguments, data_args: DataArguments, args: GraphMertTrainingArguments) -> None:
    """Refuse weights that move to masked tokens where none are masked.

    Raises:
        ValueError: names the options.
    """
    final = args.final_mnm_weight
    if final is not None and data_args.mlm_probability == 0 and final < model_args.mnm_weight:
        raise ValueError(
            f"the weight of masked facts falls from {model_args.mnm_weight:g} to {final:g} over the training, but "
            f"mlm_probability is 0 and nothing else is learned: give --final_mnm_weight {model_args.mnm_weight:g}"
        )


def is_graphmert(base_model: str) -> bool:
    """Whether a checkpoint says in its configuration that it is one of GraphMERT.

    Raises:
        OSError: there is no such checkpoint.
    """
    from graphmert.configuration_graphmert import GraphMertConfig

    return GraphMertConfig.get_config_dict(base_model)[0].get("model_type") == GraphMertConfig.model_type


def check_same_vocabulary(base_model: str, tokenizer) -> None:
    """Refuse a checkpoint whose tokens are not the data set's.

    Args:
        base_model: hub name or directory of the checkpoint.
        tokenizer: the data set's.

    Raises:
        ValueError: the vocabularies differ, or the checkpoint has none or a damaged one.
    """
    from graphmert.chain_graphs.tokenizer import read_tokenizer

    directory = Path(base_model)
    # Transformers makes up a tokenizer of five entries where there is none.
    if directory.is_dir() and not any((directory / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{base_model} has no tokenizer to compare with the data set's; put its tokenizer.json there")
    vocabulary = read_tokenizer(base_model).get_vocab()
    ours = tokenizer.get_vocab()
    if vocabulary != ours:
        different = sum(vocabulary.get(token) != index for token, index in ours.items())
        raise ValueError(
            f"the vocabulary of {base_model} ({len(vocabulary)} entries) is not the data set's ({len(ours)} entries, "
            f"{different} of them other or elsewhere); build the data set with --tokenizer {base_model}"
        )


def check_same_model(checkpoint: Path, config) -> None:
    """Refuse to resume a checkpoint of another model.

    Raises:
        ValueError: a field that shapes the model differs.
    """
    saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    for name in ("model_type", *_SAME_WHEN_RESUMING):
        ours = getattr(config, name)
        if saved.get(name, ours) != ours:
            raise ValueError(f"{checkpoint} was trained with {name}={saved[name]!r}, this run has {ours!r}")


class _Console(ProgressCallback):
    """Trainer's progress bar, with one short line for each log instead of a dict."""

    def __init__(self, show_bar: bool):
        super().__init__()
        self.show_bar = show_bar

    def on_train_begin(self, args, state, control, **kwargs):
        if self.show_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.show_bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.show_bar:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.show_bar:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        prefix = "eval_" if "eval_loss" in (logs or {}) else ""
        if not state.is_world_process_zero or f"{prefix}loss" not in (logs or {}):
            return
        parts = [f"{'held out' if prefix else 'training'}  step {state.global_step:>6,}/{state.max_steps:,}"]
        for name, label in _LOGGED:
            if prefix + name in logs:
                parts.append(f"{label} {logs[prefix + name]:.4g}")
        line = "  ".join(parts)
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)


def last_evaluation(trainer: GraphMertTrainer) -> dict[str, float]:
    """The figures of the trained model: those of the last epoch's evaluation, if there was one."""
    for entry in reversed(trainer.state.log_history):
        if (
            "eval_loss" in entry
            and entry["step"] == trainer.state.global_step
            and not trainer.args.load_best_model_at_end
        ):
            return entry
    return trainer.evaluate()


def build_trainer(model, model_args, data_args, args, tokenizer, train_windows, eval_windows) -> GraphMertTrainer:
    """Put collators and trainer together."""
    if model.config.head_memory_keys:
        from graphmert.chain_graphs.known_heads import folds_of

        train_windows.file_fold = folds_of(train_windows.projects, model.config.head_memory_folds)
    options = {
        "tokenizer": tokenizer,
        "num_roots": model_args.num_roots,
        "leaves_per_root": model_args.leaves_per_root,
        "num_relations": model.config.num_relations,
        "layout": data_args.layout,
        "max_nodes_per_row": data_args.max_nodes_per_row,
        "pad_to_multiple_of": data_args.pad_to_multiple_of,
        # Elsewhere the model would wait for the device to count.
        "with_indices": args.device.type != "cpu" or args.torch_compile,
        "mlm_probability": data_args.mlm_probability,
        "mnm_probability": data_args.mnm_probability,
        "mnm_window_probability": data_args.mnm_window_probability,
        "mnm_target": model_args.mnm_target,
        "masked_span_leaves": data_args.masked_span_leaves,
        "mask_visible_copies": data_args.mask_visible_copies,
        "mnm_skip_copied_tails": data_args.mnm_skip_copied_tails,
        "span_boundary": model_args.span_boundary,
    }
    trainer = GraphMertTrainer(
        model=model,
        args=args,
        data_collator=GraphMertCollator(**options, seed=args.seed),
        eval_data_collator=GraphMertCollator(
            **{**options, "mnm_window_probability": 1.0}, seed=EVALUATION_SEED, diagnostics=True
        ),
        train_dataset=train_windows,
        eval_dataset=eval_windows,
        # Saved with every checkpoint: the tokenizer, and what else turns code into inputs.
        processing_class=GraphMertProcessor.for_model(tokenizer, model.config),
    )
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    # In a file the bars would be thousands of lines; the logged figures show the progress there.
    trainer.add_callback(_Console(show_bar=not args.disable_tqdm and sys.stderr.isatty()))
    return trainer


def describe_run(say, trainer: GraphMertTrainer, model, train_windows, eval_windows) -> None:
    """Print the model's parameters by part, what the data set holds, and the number of steps."""
    from graphmert.modeling_graphmert import parameter_counts

    args = trainer.args
    parts = parameter_counts(model)
    say(f"parameters          {parts.pop('total'):>12,}")
    for part, number in parts.items():
        say(f"  {part:17} {number:>12,}")
    for split, windows in (("training", train_windows), ("held out", eval_windows)):
        counts = windows.statistics()
        say(
            f"{split} windows    {counts['windows']:>12,}   {counts['nodes_per_window']:.0f} nodes each, "
            f"{counts['facts_placed']:,} facts placed, {counts['facts_dropped_for_room']:,} dropped for room, "
            f"{counts['facts_cut']:,} cut, {counts['windows_without_fact']:,} windows without any"
        )
    batch = args.train_batch_size * args.world_size
    batches = math.ceil(len(train_windows) / batch)
    steps = math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)
    steps = args.max_steps if args.max_steps > 0 else steps
    say(
        f"optimizer steps     {steps:>12,}   of {batch * args.gradient_accumulation_steps} windows on {args.world_size} "
        f"device(s), warm-up {args.get_warmup_steps(steps):,}, {'bfloat16' if args.bf16 else 'float32'}"
    )
    config = model.config
    fall = 0.0 if args.final_mnm_weight is None else config.mnm_weight - args.final_mnm_weight
    say(
        f"loss weights        {_from_to(config.mlm_weight, config.mlm_weight + fall):>12}   masked tokens; masked facts "
        f"({config.mnm_target}) {_from_to(config.mnm_weight, config.mnm_weight - fall)}"
    )
    say(
        f"layout              {trainer.data_collator.layout:>12}   attention: {config._attn_implementation}, dropout on its "
        f"weights {config.attention_probs_dropout_prob:g}"
    )


def _from_to(first: float, last: float) -> str:
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


def save_results(trainer: GraphMertTrainer, data_args: DataArguments, args: GraphMertTrainingArguments) -> None:
    """Save the final model with its code and tokenizer, the training history and the data set's manifest."""
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        directory = Path(data_args.dataset or Path(args.output_dir) / DATASET_DIR)
        shutil.copyfile(directory / "manifest.json", Path(args.output_dir) / "manifest.json")


def summarise(say, trainer, metrics, arguments, manifest, checkpoint, clock) -> None:
    """Score the baselines on the evaluation's masks, print the table, write summary.json and loss.png."""
    from graphmert.chain_graphs.baselines import relation_baselines, unigram_cross_entropy
    from graphmert.modeling_graphmert import parameter_counts

    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    collator = trainer.eval_data_collator
    train_windows, eval_windows = trainer.train_dataset, trainer.eval_dataset
    eval_windows.set_epoch(0)
    unigram = unigram_cross_entropy(train_windows, eval_windows, collator)
    lookups = None
    if arguments["model"]["mnm_target"] != "tail" and arguments["model"]["leaves_per_root"]:
        lookups = relation_baselines(train_windows, eval_windows, collator)
    rows = held_out_rows(metrics, unigram, lookups)
    trainer.card_facts |= {"rows": rows, "evaluation": metrics}
    clock.append(time.time())
    times = dict(zip(("prepare", "train", "evaluate"), (b - a for a, b in pairwise(clock)), strict=True))
    summary = {
        "held_out": {name.removeprefix("eval_"): value for name, value in metrics.items()},
        "unigram": unigram,
        "lookups": lookups,
        "table": [{"figure": figure, "who": who, "values": values} for figure, who, values in rows],
        "arguments": {**arguments, "training": args.to_dict()},
        "parameters": parameter_counts(trainer.model),
        "optimizer_steps": trainer.state.global_step,
        "windows": {"training": train_windows.statistics(), "held_out": eval_windows.statistics()},
        "manifest_sha256": file_sha256(output_dir / "manifest.json"),
        "projects_held_out": manifest["splits"]["validation"]["projects"],
        "resumed_from": None if checkpoint is None else str(checkpoint),
        "times_s": {name: round(seconds, 1) for name, seconds in times.items()},
        "num_processes": args.world_size,
        "environment": environment(),
    }
    (output_dir / "summary.json").write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")
    plot_history(trainer.state.log_history, output_dir / "loss.png", unigram, lookups)
    projects = len(manifest["splits"]["validation"]["projects"])
    say(f"\nheld out: {len(eval_windows):,} windows of {projects} project(s) never trained on")
    say(format_table(rows))
    say("\ntime: " + ", ".join(f"{name} {seconds / 60:.1f} min" for name, seconds in times.items()))
    say(f"model, summary.json and loss.png are in {output_dir}")


if __name__ == "__main__":
    sys.exit(main())
