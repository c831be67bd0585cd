"""`GraphMertProcessor`: code in, model inputs out, the graph built inside.

This file travels with a checkpoint, so that `AutoProcessor` finds the class; what reads code (tree-sitter, linking, placing)
does not, so a processor works where the package `graphmert` is installed and says so where it is not.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedConfig, ProcessorMixin, RobertaConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging
from transformers.utils.hub import cached_file

logger = logging.get_logger(__name__)

INPUT_NAMES = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "root_index",
    "leaf_index",
    "relation_ids",
    "relation_reversed",
    "head_start",
    "head_length",
)
PROCESSOR_FILE = "processor_config.json"
# What a processor must know; without one of them a saved processor is refused.
_REQUIRED = ("num_roots", "leaves_per_root", "relation_names", "layout")
# What must be equal in a model and its processor.
_SHARED = ("relation_names", "num_roots", "leaves_per_root")
# Likewise, but older checkpoints do not name them: which facts the model was trained on, as `WindowDataset` takes them.
_GRAPH_OPTIONS = {
    "include_uses": True,
    "include_site_anchors": True,
    "exclude_relations": [],
    "edge_relations": [],
}
# Those in which one row is one window.
_LAYOUTS = ("compact", "padded")
_PADDINGS = (True, False, "longest", "max_length", "do_not_pad")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class GraphMertProcessor(ProcessorMixin):
    """Tokenizer, extractor and layout in one call.

    Code longer than a window becomes several windows; `overflow_to_sample_mapping` names the text of each, and a warning
    says so once. Which facts found no room is counted in `statistics`.

    Args:
        tokenizer: a fast tokenizer with `<s>`, `</s>` and a padding token.
        num_roots, leaves_per_root: R and L of the model.
        relation_names: the model's relations in the order of their ids. Default: the twelve of the code-graph schema.
        layout: "compact" (existing nodes only) or "padded" (all R(1+L) slots).
        include_uses, include_site_anchors, exclude_relations, edge_relations: which facts the model was trained on, as in
            `chain_graphs.WindowDataset`; with `edge_relations` the inputs hold `root_distance` too.
        vocabulary_sha256: of the tokenizer that was saved; another one is refused. Written by `save_pretrained`.

    Raises:
        ValueError: an argument is out of range or does not fit the tokenizer.
        ImportError: the package `graphmert` is not installed.

    Example:

        >>> processor = GraphMertProcessor(tokenizer)
        >>> inputs = processor("def load(path: str):\\n    return open(path)\\n", return_tensors="pt")
        >>> states = model(**inputs).last_hidden_state
    """

    def __init__(
        self,
        tokenizer,
        num_roots: int = 128,
        leaves_per_root: int = 7,
        relation_names: Sequence[str] | None = None,
        layout: str = "compact",
        vocabulary_sha256: str | None = None,
        include_uses: bool = True,
        include_site_anchors: bool = True,
        exclude_relations: Sequence[str] = (),
        edge_relations: Sequence[str] = (),
    ):
        super().__init__(tokenizer)
        for name, value, smallest in (("num_roots", num_roots, 3), ("leaves_per_root", leaves_per_root, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
        if layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer needs a padding token")
        if relation_names is None:
            relation_names = _package("code_graph.schema").RELATION_NAMES
        if not isinstance(relation_names, list | tuple) or not all(isinstance(name, str) for name in relation_names):
            raise ValueError(f"relation_names must be a list of names, got {relation_names!r}")
        if len(set(relation_names)) != len(relation_names) or not relation_names:
            raise ValueError(f"relation_names must be different names, at least one; got {list(relation_names)}")
        self.num_roots, self.leaves_per_root, self.layout = num_roots, leaves_per_root, layout
        self.relation_names = list(relation_names)
        self.include_uses, self.include_site_anchors = bool(include_uses), bool(include_site_anchors)
        self.exclude_relations, self.edge_relations = list(exclude_relations), list(edge_relations)
        self.vocabulary_sha256 = _fingerprint(tokenizer)
        if vocabulary_sha256 not in (None, self.vocabulary_sha256):
            raise ValueError(
                f"the tokenizer's vocabulary ({len(tokenizer)} entries) is not the one that this processor was saved with; "
                "put the tokenizer files of the checkpoint back"
            )
        self._collator = None
        # Made now, so that names that the schema does not have are refused here and not at the first text.
        self._reader = self._make_reader()

    @classmethod
    def for_model(cls, tokenizer, config: PreTrainedConfig, layout: str = "compact") -> "GraphMertProcessor":
        """The processor of a model.

        Args:
            tokenizer: the model's tokenizer.
            config: its configuration.
            layout: as in the class.

        Raises:
            ValueError: the tokenizer has entries that the model does not.
        """
        graph = {name: getattr(config, name) for name in _GRAPH_OPTIONS}
        processor = cls(tokenizer, config.num_roots, config.leaves_per_root, config.relation_names, layout, **graph)
        processor.check_config(config)
        return processor

    # Parsers and caches are made in each process when they are first used.
    @property
    def reader(self):
        """The `chain_graphs.reading.CodeReader` of this process."""
        if self._reader is None:
            self._reader = self._make_reader()
        return self._reader

    def _make_reader(self):
        reader_class = _package("chain_graphs.reading").CodeReader
        graph = {name: getattr(self, name) for name in _GRAPH_OPTIONS}
        return reader_class(self.tokenizer, self.num_roots, self.leaves_per_root, self.relation_names, **graph)

    @property
    def statistics(self) -> Counter:
        """Counts of this process: texts, windows, facts placed, cut (`facts_cut`), and left out for room."""
        return self.reader.statistics

    @property
    def model_input_names(self) -> list[str]:
        return list(INPUT_NAMES)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_reader": None, "_collator": None}

    def __call__(
        self,
        code: str | Sequence[str],
        language: str | Sequence[str | None] | None = "python",
        return_tensors: str | None = None,
        padding: bool | str = True,
        layout: str | None = None,
        pad_to_multiple_of: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Model inputs for one text or many.

        Args:
            code: one text or a list.
            language: one for all texts or one for each: "python", "java", "javascript", "go", "ruby", "php"; None is a text
                without a graph, such as a query in words.
            return_tensors: "pt", "np", or None for lists.
            padding: True or "longest" (the batch's longest window), "max_length" (all slots that a window can have), or
                False (lists of their own lengths; with tensors only where all are equally long).
            layout: in place of the processor's own.
            pad_to_multiple_of: pad the compact layout up to a multiple.

        Returns:
            `input_ids`, `attention_mask`, `token_type_ids`, `root_index`, `leaf_index`, `relation_ids`, `relation_reversed`,
            `head_start`, `head_length`: int64 (windows, nodes); `overflow_to_sample_mapping`: int64 (windows,), the text
            that each window is of. With `edge_relations` also `root_distance`: int16 (windows, R, R).

        Raises:
            ValueError: no text, one with a lone surrogate, an unknown language, or arguments that contradict each other.
        """
        if kwargs:
            raise ValueError(f"unknown argument {next(iter(kwargs))!r} of GraphMertProcessor")
        if padding not in _PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(map(repr, _PADDINGS))}, got {padding!r}")
        items = self.read_windows(code, language)
        batch = self.collate(items, layout, pad_to_multiple_of)
        if padding == "max_length":
            batch = self._pad_to_all_slots(batch)
        batch["overflow_to_sample_mapping"] = torch.tensor([item["text"] for item in items])
        if any(before["text"] == after["text"] for before, after in pairwise(items)):
            logger.warning_once(
                f"Code longer than a window of {self.num_roots} tokens becomes several windows: there are more rows than "
                "texts, and overflow_to_sample_mapping says which text each row is of."
            )
        if padding in (False, "do_not_pad"):
            if (layout or self.layout) == "padded":
                raise ValueError("the padded layout is padding; use layout='compact' with padding=False")
            sizes = batch["attention_mask"].sum(1).tolist()
            rows = {name: [row[:size] for row, size in zip(batch[name], sizes, strict=True)] for name in INPUT_NAMES}
            if "root_distance" in batch:
                rows["root_distance"] = list(batch["root_distance"])
            if return_tensors is None:
                mapping = batch["overflow_to_sample_mapping"].tolist()
                data = {name: [row.tolist() for row in value] for name, value in rows.items()}
                return BatchFeature({**data, "overflow_to_sample_mapping": mapping})
            if len(set(sizes)) > 1:
                raise ValueError(
                    "windows of different lengths make no tensor; use padding=True or return_tensors=None"
                )
        if return_tensors is None:
            return BatchFeature({name: value.tolist() for name, value in batch.items()})
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in batch.items()})
        if return_tensors == "pt":
            return BatchFeature(batch)
        raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {return_tensors!r}")

    def read_windows(
        self, code: str | Sequence[str], language: str | Sequence[str | None] | None = "python"
    ) -> list[dict[str, Any]]:
        """The windows of some texts, sparse: items as `WindowDataset` gives them, for `collate` or a collator.

        Args:
            code, language: as in `__call__`.

        Returns:
            The windows in the order of the texts; `item["text"]` is the number of the window's text, and every text has one.
        """
        texts = [code] if isinstance(code, str) else list(code)
        if not texts:
            raise ValueError("no code given: an empty list")
        languages = [language] * len(texts) if language is None or isinstance(language, str) else list(language)
        if len(languages) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(languages)} languages: give one for each, or one for all")
        return self.reader.read(texts, languages)

    def collate(
        self, items: Sequence[dict], layout: str | None = None, pad_to_multiple_of: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Lay windows out as node-aligned tensors, nothing masked.

        Args:
            items: of `read_windows`.
            layout, pad_to_multiple_of: as in `__call__`.

        Returns:
            int64 tensors (windows, nodes) by the names of the model's inputs; `root_distance` where facts are edges.
        """
        layout = self.layout if layout is None else layout
        if layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(_LAYOUTS)}, got {layout!r}")
        if self._collator is None:
            self._collator = _package("collator").GraphMertCollator(
                self.tokenizer,
                num_roots=self.num_roots,
                leaves_per_root=self.leaves_per_root,
                num_relations=len(self.relation_names),
                mlm_probability=0.0,
                mnm_probability=0.0,
            )
        self._collator.layout, self._collator.pad_to_multiple_of = layout, pad_to_multiple_of
        batch = self._collator(list(items))
        return {name: batch[name] for name in (*INPUT_NAMES, "root_distance") if name in batch}

    def _pad_to_all_slots(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        missing = self.num_roots * (1 + self.leaves_per_root) - batch["input_ids"].shape[1]
        fill = {"input_ids": self.tokenizer.pad_token_id, "leaf_index": -1, "relation_ids": -1}
        return {
            name: value
            if name == "root_distance"
            else torch.nn.functional.pad(value, (0, missing), value=fill.get(name, 0))
            for name, value in batch.items()
        }

    def check_config(self, config: PreTrainedConfig | dict) -> None:
        """Refuse a model that would misread this processor's inputs.

        Args:
            config: the model's configuration, or its dictionary.

        Raises:
            ValueError: relations, sizes or vocabulary differ; the message names which.
        """
        values = config if isinstance(config, dict) else config.to_dict()
        for name in (*_SHARED, *_GRAPH_OPTIONS):
            ours, theirs = getattr(self, name), values.get(name, _GRAPH_OPTIONS.get(name))
            theirs = list(theirs) if isinstance(theirs, tuple) else theirs
            if ours != theirs:
                raise ValueError(
                    f"the processor has {name} = {ours}, but the model has {theirs}: they are not of one checkpoint. "
                    "Load the model's own processor, or make one with GraphMertProcessor.for_model(tokenizer, config)."
                )
        vocab_size = values.get("vocab_size")
        if not isinstance(vocab_size, int) or vocab_size < len(self.tokenizer):
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} entries, but the model has vocab_size = {vocab_size}: "
                "load the model's own tokenizer"
            )
        if values.get("pad_token_id") != self.tokenizer.pad_token_id:
            raise ValueError(
                f"the tokenizer pads with {self.tokenizer.pad_token_id}, but the model has pad_token_id = "
                f"{values.get('pad_token_id')}: load the model's own tokenizer"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs) -> "GraphMertProcessor":
        """Load a processor from a directory or the Hub, as `save_pretrained` wrote it.

        A checkpoint without `processor_config.json` gets the processor of its `config.json`. Where both stand side by side
        they must agree. Only JSON is read; no code of the directory runs.

        Args:
            pretrained_model_name_or_path: directory or hub id.
            **kwargs: `revision`, `token`, `cache_dir` and so on; fields of the processor to override.

        Raises:
            ValueError: the files are incomplete or contradict each other.
            OSError: there are no such files.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = _read_json(pretrained_model_name_or_path, "config.json", kwargs)
        if config is not None:
            processor.check_config(config)
        return processor

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """The saved fields, checked; those of the model's configuration where no processor was saved."""
        # Read here: ProcessorMixin gives {} for a missing file, and would load what an "audio_tokenizer" in it names.
        values = _read_json(pretrained_model_name_or_path, PROCESSOR_FILE, kwargs)
        rest = {name: value for name, value in kwargs.items() if name in inspect.signature(cls).parameters}
        if values is not None:
            missing = [name for name in _REQUIRED if name not in values]
            if missing:
                raise ValueError(
                    f"{PROCESSOR_FILE} of {pretrained_model_name_or_path} lacks {', '.join(missing)}; "
                    "save the processor again"
                )
            known = ("processor_class", "auto_map", *inspect.signature(cls).parameters)
            unknown = [name for name in values if name not in known]
            if unknown:
                raise ValueError(
                    f"{PROCESSOR_FILE} of {pretrained_model_name_or_path} has a field {unknown[0]!r}, which this version "
                    "does not know; update graphmert, or save the processor again"
                )
            return values, rest
        config = _read_json(pretrained_model_name_or_path, "config.json", kwargs)
        if config is None or config.get("model_type") != "graphmert":
            raise OSError(
                f"{pretrained_model_name_or_path} holds neither a {PROCESSOR_FILE} nor the config.json of a GraphMERT model"
            )
        missing = [name for name in _SHARED if name not in config]
        if missing:
            raise ValueError(f"config.json of {pretrained_model_name_or_path} lacks {', '.join(missing)}")
        graph = {name: config.get(name, default) for name, default in _GRAPH_OPTIONS.items()}
        return {name: config[name] for name in _SHARED} | {"layout": _LAYOUTS[0]} | graph, rest

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type, pretrained_model_name_or_path, subfolder="", **kwargs
    ):
        # Without an explicit answer transformers would ask on the terminal.
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        # AutoTokenizer would load the model's configuration, remote code included, to learn that it is a RoBERTa.
        kwargs.setdefault("config", RobertaConfig())
        return super()._load_tokenizer_from_pretrained(
            sub_processor_type, pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )


def _fingerprint(tokenizer) -> str:
    """Hash of a tokenizer's entries with their ids."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256("\n".join(f"{index} {entry}" for entry, index in entries).encode("utf-8")).hexdigest()


def _read_json(path_or_id, name: str, kwargs: dict) -> dict | None:
    """A JSON file of a directory or of the Hub; None where it is missing."""
    options = {option: kwargs[option] for option in _HUB_OPTIONS if kwargs.get(option) is not None}
    found = cached_file(path_or_id, name, _raise_exceptions_for_missing_entries=False, **options)
    if found is None:
        return None
    try:
        with open(found, encoding="utf-8") as file:
            values = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} of {path_or_id} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} of {path_or_id} must hold fields with their values")
    return values


def _package(module: str):
    """A module of the package, which a checkpoint's copy of this file needs too."""
    import importlib

    try:
        return importlib.import_module(f"graphmert.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"GraphMertProcessor reads code with the package graphmert and tree-sitter, but {error.name} is not installed: "
            "pip install graphmert. Without it, the model takes the tokenizer's output (no graph): "
            "model(**AutoTokenizer.from_pretrained(...)(code, return_tensors='pt'))."
        ) from error


GraphMertProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["GraphMertProcessor"]
