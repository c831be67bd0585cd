"""State of optimizer, scheduler and random generators as safetensors, so that resuming never unpickles anything.

A state dict is a tree of dicts, lists and tuples with tensors and plain values as leaves. The tensors go into the file as
they are; the tree, with each tensor's name in its place, goes as JSON into the file's metadata. Floats keep every bit.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME = "optimizer.safetensors", "scheduler.safetensors", "scaler.safetensors"
_TREE = "tree"


def rng_name(process_index: int, world_size: int) -> str:
    """The file with the random generators of one process."""
    return "rng_state.safetensors" if world_size == 1 else f"rng_state_{process_index}.safetensors"


def is_training_state(name: str | os.PathLike) -> bool:
    """Whether a file of a checkpoint serves only to resume: optimizer, scheduler, generators, history, record."""
    name = Path(name).name
    return name.startswith(("optimizer.", "scheduler.", "scaler.", "rng_state")) or name in (
        "trainer_state.json",
        "checkpoint_complete.json",
    )


def save_tree(tree: Any, path: str | os.PathLike) -> None:
    """Write a state dict.

    Args:
        tree: dicts with str or int keys, lists and tuples; leaves are tensors, NumPy arrays, str, int, float, bool, None.
        path: the file to write.

    Raises:
        ValueError: a leaf of another type; the message names its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    encoded = _encode(tree, "state", tensors)
    save_file(tensors, path, metadata={_TREE: json.dumps(encoded)})


def load_tree(path: str | os.PathLike, device: str | torch.device = "cpu") -> Any:
    """Read what `save_tree` wrote; arrays come back as arrays, tensors on `device`.

    Raises:
        ValueError: the file is none of `save_tree`, or is damaged.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            return _decode(json.loads((file.metadata() or {})[_TREE]), tensors)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no training state ({error})") from error


def _encode(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain values as they are, everything else as a list with its kind first."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        # A copy: safetensors refuses tensors that share memory.
        tensors[place] = torch.as_tensor(value).detach().contiguous().clone()
        return [kind, place]
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise ValueError(f"{place} has keys that are neither text nor numbers")
        return ["dict", [[key, _encode(item, f"{place}.{key}", tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return ["list" if isinstance(value, list) else "tuple", items]
    raise ValueError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold; save without the state to resume from "
        "(save_only_model) or choose another optimizer"
    )


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    return (list if kind == "list" else tuple)(_decode(item, tensors) for item in content)


def random_state() -> dict:
    """The state of every random generator of this process: Python, NumPy, PyTorch on the CPU and on each CUDA device."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state_all()
    return state


def set_random_state(state: dict) -> None:
    """Put the generators back into the state of `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.random.set_rng_state_all(state["cuda"])
