"""Loading that refuses a checkpoint which is not the model's; travels with a checkpoint."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn


class CheckedLoading:
    """Mixin before a `PreTrainedModel`: weights come from safetensors only, and all of the encoder must be there.

    Transformers fills what a checkpoint lacks with random numbers and says so in a report. Fine-tuning wants that for a new
    head; an encoder or half a head of random numbers means that the checkpoint is damaged.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs,
    ):
        """Load a checkpoint, as `PreTrainedModel.from_pretrained` does.

        `use_safetensors` is True unless given: weights in `pytorch_model.bin` are not read.

        Raises:
            ValueError: files of weights are damaged, a value of the configuration has the wrong type, tensors of the
                encoder are missing, a head is there in part, or shapes differ from the configuration's (the last not
                with `ignore_mismatched_sizes=True`).
            OSError: there are no weights in safetensors.
        """
        kwargs.setdefault("use_safetensors", True)
        # Sizes are compared below, where the message can name the tensors.
        with damage_named(pretrained_model_name_or_path):
            model, report = super().from_pretrained(
                pretrained_model_name_or_path,
                *model_args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        missing, problem = set(report["missing_keys"]), None
        if missing:
            problem = _missing_parts(model, missing, cls._parts_switched_on(pretrained_model_name_or_path, kwargs))
        if not ignore_mismatched_sizes:
            problem = _wrong_sizes(report["mismatched_keys"]) or problem
        if problem:
            raise ValueError(f"{pretrained_model_name_or_path} does not hold a whole {cls.__name__}: {problem}")
        return (model, report) if output_loading_info else model

    @classmethod
    def _parts_switched_on(cls, path: str | os.PathLike | None, options: dict) -> set[str]:
        """Parts that the saved configuration has off and that therefore may be new: `use_hgat=True` given when loading."""
        if path is None:
            return {"hgat", "decay", "leaf_slots", "head_memory"}
        names = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download", "proxies")
        where = {name: options[name] for name in names if name in options}
        saved, _ = cls.config_class.get_config_dict(path, **where)
        parts = set() if saved.get("use_hgat", True) else {"hgat"}
        if saved.get("decay_mode", "bias") is None:
            parts.add("decay")
        # A model without leaves has no slots, whatever their position would be.
        if saved.get("leaf_position", "slot") != "root_slot" or saved.get("leaves_per_root", 1) == 0:
            parts.add("leaf_slots")
        if not saved.get("head_memory_keys") or saved.get("leaves_per_root", 1) == 0:
            parts.add("head_memory")
        return parts


@contextmanager
def damage_named(path: str | os.PathLike | None) -> Iterator[None]:
    """Make the libraries' errors about damaged files, which name none of them, a `ValueError` that names the checkpoint."""
    try:
        yield
    # A config.json that is not JSON is an OSError with its name; what is left to parse is the index of the weights.
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the weights of {path} are damaged, copy them again ({error})") from error
    except StrictDataclassError as error:
        raise ValueError(f"the configuration of {path} does not fit: {' '.join(str(error).split())}") from error


def _wrong_sizes(mismatched) -> str | None:
    """What is wrong with the shapes of a checkpoint's tensors."""
    texts = sorted(
        f"{name} has shape {tuple(found)}, config.json asks for {tuple(asked)}" for name, found, asked in mismatched
    )
    return None if not texts else "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")


def _missing_parts(model: nn.Module, missing: set[str], may_be_new: set[str]) -> str | None:
    """What is wrong with the tensors that a checkpoint lacks; None where only whole heads or parts switched on are new."""
    prefix = f"{model.base_model_prefix}."
    is_base = not any(name.startswith(prefix) for name in model.state_dict())
    parts: dict[str, list[str]] = {}
    for name in model.state_dict():
        inner = name.removeprefix(prefix)
        part, in_base = inner.split(".")[0], is_base or inner != name
        if in_base and part not in {"pooler", *may_be_new}:
            part = "encoder"
        if name not in model.all_tied_weights_keys:
            parts.setdefault(part, []).append(name)
    for part, names in parts.items():
        absent = [name for name in names if name in missing]
        if absent and (part == "encoder" or len(absent) < len(names)):
            return f"{len(absent)} of {len(names)} tensors of the {part} are missing, first {absent[0]}"
    return None
