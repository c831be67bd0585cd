"""Checkpoints for embeddings: loading an encoder with its processor, and the files that sentence-transformers looks for."""

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .embedding_graphmert import check_pooling
from .modeling_graphmert import GraphMertModel
from .processing_graphmert import GraphMertProcessor

MODULE_FILE = "sentence_transformers_graphmert.py"
MODULE_CLASS = "GraphMertSentenceEncoder"
# GraphMertSentenceEncoder.config_file_name; written here because the class needs sentence-transformers.
SETTINGS_FILE = "sentence_graphmert_config.json"


def load_encoder(path_or_id: str | Path, **options) -> tuple[GraphMertModel, GraphMertProcessor]:
    """The encoder of any GraphMERT checkpoint, without heads, and its processor. Runs no code of the checkpoint.

    Args:
        path_or_id: directory or hub id; weights as safetensors.
        **options: of `from_pretrained`, such as `revision`.

    Returns:
        The model in evaluation mode, and the processor, checked against it.

    Raises:
        ValueError: another model, weights that are missing or have other shapes, files that are damaged or that contradict
            each other; the message names the checkpoint.
        OSError: there is no such checkpoint, or it has no safetensors.
    """
    processor = _load_processor(path_or_id, options)
    # The library's report would name the heads, which are left out on purpose; what is missing is checked below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = GraphMertModel.from_pretrained(
            path_or_id, add_pooling_layer=False, use_safetensors=True, output_loading_info=True, **options
        )
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        # What transformers raises for sizes and names in the configuration that no model can have.
        raise ValueError(f"the weights of {path_or_id} do not fit its config.json: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise ValueError(
            f"the weights of {path_or_id} lack {len(info['missing_keys'])} tensors, such as {min(info['missing_keys'])}"
        )
    processor.check_config(model.config)
    return model.eval(), processor


def _load_processor(path_or_id: str | Path, options: dict) -> GraphMertProcessor:
    try:
        return GraphMertProcessor.from_pretrained(path_or_id, **options)
    except (OSError, ImportError):
        raise
    # `tokenizers` raises Exception itself for a file that it cannot parse, transformers KeyError, TypeError and more.
    except Exception as error:
        if isinstance(error, ValueError) and str(path_or_id) in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path_or_id}: tokenizer and processor cannot be loaded ({type(error).__name__}: {reason}); their files must "
            "be there and whole"
        ) from error


def save_for_sentence_transformers(
    directory: str | Path, pooling: str = "mean", normalize: bool = False, language: str | None = "python"
) -> list[Path]:
    """Make a saved checkpoint one that `SentenceTransformer(directory, trust_remote_code=True)` loads.

    Beside `modules.json` and the settings it puts the module's code and the model's, of the installed version.

    Args:
        directory: a checkpoint with `config.json`, `model.safetensors` and a tokenizer.
        pooling, normalize, language: what `encode` of the sentence-transformers model does, as in `GraphMertModel.encode`.

    Returns:
        The files that were written.

    Raises:
        ValueError: the directory is no such checkpoint, or a setting is unknown.

    Example:

        >>> save_for_sentence_transformers("runs/small", normalize=True)
        >>> SentenceTransformer("runs/small", trust_remote_code=True).encode(["def f(x): return x"])
    """
    directory = Path(directory)
    check_pooling(pooling)
    if not (directory / "config.json").exists() or not (directory / "model.safetensors").exists():
        raise ValueError(f"{directory} is no saved GraphMERT model: it needs config.json and model.safetensors")
    processor = _load_processor(directory, {})
    if language is not None:
        # Refused now and not at the first text.
        processor.reader.row("", language)
    written = []
    if not (directory / "processor_config.json").exists():
        processor.save_pretrained(directory)
        written.append(directory / "processor_config.json")
    module = Path(__file__).with_name(MODULE_FILE)
    for file in dict.fromkeys([module, *map(Path, get_relative_import_files(module))]):
        shutil.copyfile(file, directory / file.name)
        written.append(directory / file.name)
    type_name = f"{module.stem}.{MODULE_CLASS}"
    for name, values in (
        (SETTINGS_FILE, {"pooling": pooling, "normalize": normalize, "language": language}),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}),
        # Last: what it names is there then.
        ("modules.json", [{"idx": 0, "name": "0", "path": "", "type": type_name}]),
    ):
        (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        written.append(directory / name)
    return written


def weights_sha256(model: GraphMertModel) -> str:
    """Hash of an encoder's weights, to tell vectors of different models apart."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode("utf-8"))
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
