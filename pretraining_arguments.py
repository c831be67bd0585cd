"""The command line of `run_pretraining.py`: options by group, from a YAML or JSON file and from the command line."""

import json
import os
from argparse import Action, ArgumentTypeError
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from .trainer_graphmert import GraphMertTrainingArguments, check_at_least

PROGRAM = "run_pretraining.py"
DESCRIPTION = """Pretrain GraphMERT on code. Reads a data set built by `python -m graphmert.chain_graphs.build`, or builds it
first (--sources); trains from scratch or from a RoBERTa, CodeBERT or GraphMERT checkpoint (--base_model); ends with a
table of held-out figures beside their baselines. Exit status: 0; 1 when the loss became NaN or infinite; 2 for wrong
input; 3 when the trained model could not be pushed to the Hub or, on a full disk, not be saved; 130 when stopped from the
keyboard, which --resume goes on from."""


@dataclass
class ModelArguments:
    """The model: its size or the checkpoint it starts from, and the parts that can be switched."""

    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from, of RoBERTa, CodeBERT or GraphMERT: hub name or directory. Only its weights "
            "are taken (--resume continues a run). Left out: from scratch."
        },
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width (768). Only from scratch."})
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Layers (12). Only from scratch."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Heads (12). Only from scratch."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the feed-forward layers (3072). Only from scratch."}
    )
    num_roots: int = field(default=128, metadata={"help": "R: code tokens of a window, <s> and </s> included."})
    leaves_per_root: int = field(default=7, metadata={"help": "L: leaf slots of each root; 0 switches the graph off."})
    num_relations: int | None = field(
        default=None, metadata={"help": "Must equal the data set's number of relations, which is used when left out."}
    )
    use_hgat: bool = field(default=True, metadata={"help": "Let relations change leaf embeddings (H-GAT)."})
    relation_dropout: float = field(default=0.3, metadata={"help": "Dropout on the relation parameters."})
    hgat_init: str = field(
        default="zeros",
        metadata={"help": "How H-GAT's matrices start.", "choices": ["zeros", "normal", "identity"]},
    )
    hgat_init_scale: float = field(
        default=0.02, metadata={"help": "Standard deviation of hgat_init 'normal', factor of 'identity'."}
    )
    head_memory_min_projects: int = field(
        default=0,
        metadata={
            "help": "Remember what tails the training projects have for heads that stand, under their relation, in so many "
            "of them; leaves look it up. 0: no memory, or that of --base_model."
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "Dropout on hidden states and attention weights."})
    attention_dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout on attention weights, if another than that of hidden states. flex_attention has none: on CUDA "
            "0 makes it the default backend."
        },
    )
    decay_mode: str = field(
        default="bias",
        metadata={
            "help": "How attention decays with graph distance: the decay's logarithm is added to its logits, or they are "
            "multiplied by the decay (masked tokens are predicted better, code search is worse), or not at all.",
            "choices": ["bias", "multiplicative", "none"],
        },
    )
    decay_base: list[float] = field(
        default_factory=lambda: [0.1, 1.0],
        metadata={
            "help": "Lambda of the attention decay, between 0 and 1; several are dealt to the heads in turn, where 1 is no "
            "decay: by default every other head sees its neighbourhood, the others all of the window."
        },
    )
    decay_offset_init: float = field(default=1.0, metadata={"help": "First value of the learnable distance offset p."})
    leaf_position: str = field(
        default="root_slot",
        metadata={
            "help": "Position of a leaf: its root's with an embedding of the slot, its root's alone, or its canonical "
            "slot's (the paper's).",
            "choices": ["root_slot", "root", "slot"],
        },
    )
    mnm_target: str = field(
        default="both",
        metadata={"help": "What masked node modelling predicts.", "choices": ["relation", "tail", "both"]},
    )
    mlm_weight: float = field(
        default=0.6,
        metadata={
            "help": "Weight of the masked-language-modelling loss at the first step and in evaluation. In training it takes "
            "over what final_mnm_weight takes from the other loss."
        },
    )
    mnm_weight: float = field(
        default=0.4,
        metadata={
            "help": "Weight of the masked-node-modelling loss at the first step and in evaluation. In training it moves to "
            "final_mnm_weight."
        },
    )
    span_boundary: bool = field(default=False, metadata={"help": "Add SpanBERT's span-boundary objective."})
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention backend: eager, sdpa or flex_attention. Left out: flex_attention on CUDA where attention "
            "dropout is 0 and there are no edge_relations, else sdpa."
        },
    )


@dataclass
class DataArguments:
    """The data set and how its windows are masked."""

    dataset: str | None = field(
        default=None, metadata={"help": "Directory built by `python -m graphmert.chain_graphs.build`."}
    )
    sources: list[str] | None = field(
        default=None,
        metadata={
            "help": "Build the data set from these sources (stdlib, dir:PATH, pypi:NAME==VERSION, ...) if --dataset is not "
            "there yet; --dataset then defaults to _dataset in the output directory."
        },
    )
    languages: list[str] | None = field(
        default=None, metadata={"help": "With --sources: languages to read (python, java, ...). Left out: python."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "With --sources: tokenizer to use instead of training one on the corpus."}
    )
    vocab_size: int = field(default=16_000, metadata={"help": "With --sources: entries of the trained tokenizer."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "With --sources: share of the code, by project, that is held out."}
    )
    split_seed: int = field(default=0, metadata={"help": "With --sources: changes which projects are held out."})
    num_proc: int = field(
        default=os.cpu_count() or 1, metadata={"help": "With --sources: processes that read the code."}
    )
    restart_build: bool = field(
        default=False,
        metadata={"help": "With --sources: throw away what a stopped build with other arguments has left."},
    )
    include_uses: bool = field(
        default=True, metadata={"help": "Take facts that hang on uses of a name whose definition is elsewhere."}
    )
    include_site_anchors: bool = field(
        default=True, metadata={"help": "Take facts anchored at the tail's place, which carry the owner's name."}
    )
    exclude_relations: list[str] = field(
        default_factory=list,
        metadata={"help": "Relations whose facts are left out of the graph, for instance flows_to."},
    )
    edge_relations: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Relations whose facts become edges between the first tokens of head and tail for the attention decay, "
            "in place of leaves, where both stand in the window; for instance flows_to. Not with flex_attention."
        },
    )
    order_leaves_per_root: int | None = field(
        default=None,
        metadata={
            "help": "With train_sampling_strategy group_by_length: group windows by their length with the whole graph and "
            "so many leaf slots, so that runs that switch parts of the graph off see the same batches in the same order."
        },
    )
    layout: str = field(
        default="packed",
        metadata={
            "help": "Rows of a batch: many windows in a row without padding (packed), each window's nodes (compact), or all "
            "slots (padded). The same losses; packed is the fastest.",
            "choices": ["packed", "compact", "padded"],
        },
    )
    max_nodes_per_row: int | None = field(
        default=None,
        metadata={
            "help": "With layout packed: rows of exactly so many nodes, so that shapes repeat. Left out: one row."
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None, metadata={"help": "With layout compact or packed: pad rows to a multiple of so many nodes."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of a window's tokens that are masked."})
    mnm_probability: float = field(
        default=0.3,
        metadata={
            "help": "Share of a window's facts that are masked, of those that are left when the ones on masked spans are "
            "dropped; with mnm_target both, so many lose their relation and as many others their tail."
        },
    )
    mnm_window_probability: float = field(
        default=1.0,
        metadata={
            "help": "Share of the windows whose facts are masked; the others show every fact, as a reader's do."
        },
    )
    masked_span_leaves: str = field(
        default="drop",
        metadata={
            "help": "Leaves that hang on a masked span: drop them, hide their relation, or keep them.",
            "choices": ["drop", "hide", "keep"],
        },
    )
    mask_visible_copies: bool = field(default=False, metadata={"help": "Also mask leaves that repeat a masked word."})
    mnm_skip_copied_tails: bool = field(
        default=False,
        metadata={
            "help": "Hide only tails whose first word stands nowhere else in the window's text and leaves, so that what is "
            "learned is to know them, not to copy them; mnm_probability is the share of such words."
        },
    )
    max_train_windows: int | None = field(
        default=None, metadata={"help": "Train on so many windows only, evenly spread over the data set."}
    )
    max_eval_windows: int | None = field(
        default=None, metadata={"help": "Evaluate on so many windows only, evenly spread over the data set."}
    )

    def __post_init__(self):
        check_at_least(1, self, "max_train_windows", "max_eval_windows")


@dataclass
class RunArguments:
    """How the run deals with its output directory and the machine."""

    resume: str | None = field(
        default=None,
        metadata={
            "help": "Go on from this checkpoint directory; 'auto', or no value: from the newest complete one in the output "
            "directory, or from the start if none is there.",
            "nargs": "?",
            "const": "auto",
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Start anew in an output directory with results; its checkpoints are removed."},
    )
    model_license: str = field(
        default="apache-2.0", metadata={"help": "Licence of the model in its card, as the Hub names licences."}
    )
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of PyTorch. Left out: PyTorch's choice."}
    )

    def __post_init__(self):
        check_at_least(1, self, "num_threads")


class _Parser(HfArgumentParser):
    """Reports an error in one line."""

    def error(self, message):
        self.exit(2, f"{PROGRAM}: error: {' '.join(message.split())}\n")


def parse_arguments(
    argv: list[str], config: dict | None = None, path: str = ""
) -> tuple[ModelArguments, DataArguments, RunArguments, GraphMertTrainingArguments]:
    """Read a YAML or JSON file, if one comes first, and the options after it, which override the file.

    Args:
        argv: command line without the program's name.
        config: options with their values, as such a file would hold them.
        path: of that file, for error messages; it need not be there.

    Raises:
        SystemExit: wrong arguments (status 2, one line) or --help.
    """
    parser = _Parser(
        (ModelArguments, DataArguments, RunArguments, GraphMertTrainingArguments),
        prog=PROGRAM,
        usage=f"{PROGRAM} [CONFIG.yaml|CONFIG.json] [--option value ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    for action in parser._actions:
        # `--bf16` alone means yes, as for options whose default is yes or no.
        if action.nargs is None and getattr(action.type, "__name__", "") == "string_to_bool":
            action.nargs, action.const = "?", True
    try:
        if config is not None:
            _set_defaults(parser, config, path)
        if argv and not argv[0].startswith("-"):
            _read_config(parser, argv[0])
            argv = argv[1:]
        *arguments, unknown = parser.parse_args_into_dataclasses(
            argv, look_for_args_file=False, return_remaining_strings=True
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown option {unknown[0]}; --help lists them all")
    return tuple(arguments)


def _read_config(parser: HfArgumentParser, path: str) -> None:
    """Make a file's values the parser's defaults, checked like those of the command line."""
    if Path(path).suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"expected a .yaml or .json file or an option, got {path!r}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold options with their values")
    _set_defaults(parser, values, path)


def _set_defaults(parser: HfArgumentParser, values: dict, path: str) -> None:
    """Make values the parser's defaults; `path` is the file that holds them, for error messages."""
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    kinds = _kinds_of_options(parser)
    for name, value in values.items():
        if name not in actions:
            raise ValueError(f"unknown option {name!r} in {path}; --help lists them all")
        if name == "decay_mode" and value is None:
            value = "none"
        if value is None and type(None) not in kinds[name]:
            raise ValueError(f"{name} in {path} has no value: give it one, or leave the option out")
        action = actions[name]
        try:
            value = _as_on_the_command_line(action, kinds[name], value)
        except (ValueError, TypeError, ArgumentTypeError) as error:
            raise ValueError(f"{name} in {path} has the value {value!r}: {error}") from error
        if action.choices is not None and value is not None and value not in action.choices:
            raise ValueError(f"{name} in {path} must be one of {', '.join(map(str, action.choices))}, got {value!r}")
        parser.set_defaults(**{name: value})


def _kinds_of_options(parser: HfArgumentParser) -> dict[str, set[type]]:
    """The types that each option takes, None among them; argparse's own actions know the first one only."""
    kinds = {}
    for cls in parser.dataclass_types:
        for name, hint in get_type_hints(cls).items():
            alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            kinds[name] = {get_origin(kind) or kind for kind in alternatives}
    return kinds


def _as_on_the_command_line(action: Action, kinds: set[type], value):
    """A value of a file in the option's own type.

    Raises:
        ValueError, TypeError, ArgumentTypeError: it is not of that type.
    """
    is_list = action.nargs == "+"
    # Dicts, and lists that the command line has no way to write, reach Trainer as they are.
    if value is None or (type(value) in kinds & {dict, list} and not is_list):
        return value
    items = value if isinstance(value, list) and is_list else [value]
    if any(item is None or isinstance(item, dict | list) for item in items):
        raise ValueError("expected a list of values" if is_list else "expected one value")
    converted = [action.type(str(item)) for item in items]
    return converted if is_list else converted[0]
