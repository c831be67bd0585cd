"""From a RoBERTa or CodeBERT checkpoint to GraphMERT."""

import os
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedConfig, RobertaConfig
from transformers.models.roberta.modeling_roberta import (
    RobertaClassificationHead,
    RobertaLMHead,
    RobertaModel,
    RobertaPreTrainedModel,
)
from transformers.utils import logging

from .configuration_graphmert import GraphMertConfig
from .loading_graphmert import damage_named

# Fields that the checkpoint decides: its weights have these shapes and meanings.
CHECKPOINT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)
POSITIONS = "roberta.embeddings.position_embeddings.weight"
TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"


@dataclass
class ConversionReport:
    """What became of each tensor in a conversion.

    Args:
        source: directory or hub id of the checkpoint.
        copied: parameters taken over as they are.
        extended: parameters with more rows than the checkpoint's, and what the new rows hold.
        new: parameters that the checkpoint does not have, with how they start.
        unused: tensors of the checkpoint that this class has no place for.
        notes: what changes in the model's function.
    """

    source: str
    copied: list[str] = field(default_factory=list)
    extended: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        groups: dict[str, int] = {}
        for name in self.copied:
            parts = name.removeprefix("roberta.").split(".")
            group = ".".join(parts[:3] if parts[0] == "encoder" else parts[:1])
            groups[group] = groups.get(group, 0) + 1
        copied = ", ".join(f"{group} ({count})" for group, count in groups.items())
        lines = [f"Converted from {self.source}:", f"  copied: {len(self.copied)} tensors: {copied}"]
        lines += [f"  extended: {name}: {text}" for name, text in self.extended.items()]
        lines += [f"  new: {name}" for name in self.new]
        lines += [f"  not used: {name}" for name in self.unused]
        lines += [f"  note: {text}" for text in self.notes]
        return "\n".join(lines)


class _RobertaCheckpoint(RobertaPreTrainedModel):
    """All that a RoBERTa checkpoint may hold; loading tells which of it was there."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.roberta = RobertaModel(config)
        self.lm_head = RobertaLMHead(config)
        self.classifier = RobertaClassificationHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder


def convert_roberta(
    model_class: type, path_or_id: str, *, position_init: str, allow_pickle: bool | None, graph_options: dict
) -> tuple[nn.Module, ConversionReport]:
    """Build `model_class` with a RoBERTa checkpoint's weights; see `GraphMertPreTrainedModel.from_roberta`.

    Returns:
        The model, in evaluation mode, and the report.

    Raises:
        ValueError: another architecture, an option that contradicts the checkpoint, or no usable weights.
    """
    if position_init not in ("copy", "random"):
        raise ValueError(f'position_init is {position_init!r}, but it must be "copy" or "random".')
    path = str(path_or_id)
    source_config = _read_config(path)
    config = _graph_config(source_config, path, graph_options)
    source, found, unexpected = _load_weights(path, source_config, allow_pickle)
    model = model_class(config)
    report = ConversionReport(source=path)
    _copy_weights(model, source, found, report, position_init)
    report.unused = sorted((found - set(report.copied) - set(report.extended)) | set(unexpected))
    if not any(name.startswith("roberta.encoder.") for name in report.copied):
        raise ValueError(
            f"{path} holds no RoBERTa encoder weights: none of its tensors has a name of that architecture."
        )
    report.notes.append(
        "no H-GAT."
        if not config.use_hgat
        else "H-GAT starts at W = 0: leaf embeddings are their word embeddings."
        if config.hgat_init == "zeros"
        else f"H-GAT starts with hgat_init={config.hgat_init!r}: leaf embeddings are not their word embeddings."
    )
    if config.decay_mode is None:
        report.notes.append("no decay: without a graph, states are those of the checkpoint.")
    else:
        report.notes.append(
            f"decay_mode={config.decay_mode!r} changes attention between distant tokens from the first step on; "
            "decay_mode=None keeps the checkpoint's function."
        )
    return model.eval(), report


def _read_config(path: str) -> RobertaConfig:
    """The checkpoint's configuration, where it is a RoBERTa."""
    looks_local = path.startswith((".", "/", "~")) or os.path.exists(path) or path.count("/") > 1
    if looks_local and not os.path.isfile(os.path.join(path, "config.json")):
        raise ValueError(f"{path} is no checkpoint: it has no config.json.")
    values, _ = PreTrainedConfig.get_config_dict(path)
    model_type = values.get("model_type")
    if model_type == GraphMertConfig.model_type:
        raise ValueError(f"{path} is a GraphMERT checkpoint already: load it with from_pretrained.")
    if model_type != RobertaConfig.model_type:
        raise ValueError(
            f"{path} has model_type {model_type!r}: from_roberta reads checkpoints with model_type 'roberta' only."
        )
    return RobertaConfig.from_dict(values)


def _graph_config(source: RobertaConfig, path: str, options: dict) -> GraphMertConfig:
    """The checkpoint's configuration with the graph's fields, enough positions and two token types."""
    for name in CHECKPOINT_FIELDS:
        if name in options and options[name] != getattr(source, name):
            raise ValueError(f"{name} is {getattr(source, name)!r} in {path} and cannot become {options[name]!r}.")
    values = source.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map", "_name_or_path", "dtype"):
        values.pop(name, None)
    values["type_vocab_size"] = max(2, source.type_vocab_size)
    options = dict(options)
    if options.get("max_position_embeddings", source.max_position_embeddings) < source.max_position_embeddings:
        raise ValueError(
            f"max_position_embeddings is {options['max_position_embeddings']}, but {path} has "
            f"{source.max_position_embeddings} already."
        )
    defaults = {name: getattr(GraphMertConfig, name) for name in ("num_roots", "leaves_per_root")}
    num_roots, num_leaves = (options.get(name, value) for name, value in defaults.items())
    try:
        num_needed = num_roots * (1 + num_leaves) + source.pad_token_id + 1
    except TypeError:
        # Not numbers: the configuration's own check says so better.
        num_needed = 0
    values["max_position_embeddings"] = max(source.max_position_embeddings, num_needed)
    return GraphMertConfig(**{**values, **options})


def _load_weights(
    path: str, config: RobertaConfig, allow_pickle: bool | None
) -> tuple[nn.Module, set[str], list[str]]:
    """The checkpoint, its parameters that were in the files, and what else the files hold."""
    is_local = os.path.isdir(path)
    safetensors_only = not allow_pickle if allow_pickle is not None else is_local
    if is_local and safetensors_only and not any(name.endswith(".safetensors") for name in os.listdir(path)):
        if os.path.isfile(os.path.join(path, "pytorch_model.bin")):
            raise ValueError(
                f"{path} has its weights in pytorch_model.bin only. Give allow_pickle=True to have torch read it "
                "(weights_only), or save the checkpoint as model.safetensors."
            )
        raise ValueError(f"{path} has no weights: no *.safetensors file.")
    # The library would warn of heads that were not in the checkpoint; the report says it better.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with damage_named(path):
            source, info = _RobertaCheckpoint.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True if safetensors_only else None,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    if info["mismatched_keys"]:
        # A classifier of another size (its labels are another task's) is as good as none.
        wrong = [str(key[0]) for key in info["mismatched_keys"] if not str(key[0]).startswith("classifier.")]
        if wrong:
            raise ValueError(f"{path}: the weights {', '.join(wrong)} do not have the shapes that config.json says.")
    missing = set(info["missing_keys"]) | {str(key[0]) for key in info["mismatched_keys"]}
    found = {name for name, _ in source.named_parameters() if name not in missing}
    return source, found, sorted(info["unexpected_keys"])


@torch.no_grad()
def _copy_weights(
    model: nn.Module, source: nn.Module, found: set[str], report: ConversionReport, position_init: str
) -> None:
    """Fill the model's parameters from the checkpoint's and write down how."""
    tensors = dict(source.named_parameters())
    prefix = "" if hasattr(model, "roberta") else "roberta."
    for name, parameter in model.named_parameters():
        key = prefix + name
        if key not in found:
            report.new.append(f"{name} {tuple(parameter.shape)}")
        elif tensors[key].shape == parameter.shape:
            parameter.copy_(tensors[key])
            report.copied.append(key)
        elif key == POSITIONS:
            report.extended[key] = _extend_positions(parameter, tensors[key], model.config, position_init)
        elif key == TOKEN_TYPES:
            num_old = tensors[key].shape[0]
            parameter[:num_old] = tensors[key]
            # A leaf starts as a token like any other.
            parameter[num_old:] = tensors[key][0]
            report.extended[key] = f"{num_old} -> {parameter.shape[0]} rows, new ones copies of row 0"
        else:
            raise ValueError(
                f"{key} is {tuple(tensors[key].shape)} in the checkpoint, {tuple(parameter.shape)} in the model."
            )


def _extend_positions(parameter: torch.Tensor, old: torch.Tensor, config: GraphMertConfig, position_init: str) -> str:
    """Old rows stay; new ones repeat them (Longformer, arXiv 2004.05150, sec. 5) or stay random."""
    num_old, first = old.shape[0], config.pad_token_id + 1
    parameter[:num_old] = old
    text = f"{num_old} -> {parameter.shape[0]} rows, new ones "
    if position_init == "random":
        return text + f"random (std {config.initializer_range})"
    new_rows = torch.arange(num_old, parameter.shape[0])
    parameter[num_old:] = old[first + (new_rows - first) % (num_old - first)]
    return text + f"copies of rows {first}.. in order"
