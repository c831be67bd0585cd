"""Which checkpoints of a run are whole: a record written last, with the size and hash of every file.

The record tells a checkpoint that was cut short, damaged or changed from one that was not. It is no signature: who can
change a checkpoint can write a new record. Therefore nothing in a checkpoint is ever unpickled either.
"""

import hashlib
import json
import os
import re
from pathlib import Path

RECORD_NAME = "checkpoint_complete.json"
# Files without which Trainer would resume with a fresh optimizer or from step 0.
_NEEDED = ("config.json", "optimizer.safetensors", "scheduler.safetensors", "trainer_state.json")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Names that hold what Python could run. None of them is ever loaded here; one that the run did not write is a sign that
# somebody else was in the directory.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
_CODE = ("*.py", "*.pyc", "*.so", *PICKLES)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(checkpoint: str | os.PathLike) -> None:
    """Record the size and hash of every file of a checkpoint, as the last step of saving it.

    Args:
        checkpoint: the checkpoint's directory.
    """
    checkpoint = Path(checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != RECORD_NAME)
    record = {
        "files": {
            path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
    }
    unfinished = checkpoint / f"{RECORD_NAME}.tmp"
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, checkpoint / RECORD_NAME)


def remove_record(checkpoint: str | os.PathLike) -> None:
    """Take the record away before a checkpoint's files are written again."""
    (Path(checkpoint) / RECORD_NAME).unlink(missing_ok=True)


def why_incomplete(checkpoint: str | os.PathLike) -> str | None:
    """Say what is wrong with a checkpoint.

    Args:
        checkpoint: the checkpoint's directory.

    Returns:
        A reason, or None when the checkpoint is whole and can be resumed.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such directory"
    try:
        files = json.loads((checkpoint / RECORD_NAME).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"{RECORD_NAME} is missing: saving was cut short"
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"{RECORD_NAME} cannot be read"
    missing = [name for name in _NEEDED if name not in files]
    if not any(name in files for name in _WEIGHTS):
        missing.append(_WEIGHTS[0])
    if missing:
        return f"it was saved without {', '.join(missing)}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(path) != expected["sha256"]:
            return f"{name} does not have the recorded content"
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if name not in files and any(path.match(pattern) for pattern in _CODE):
            return f"{name} is not one of the files that the run wrote"
    return None


def newest_complete_checkpoint(output_dir: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint of a run that can be resumed.

    Args:
        output_dir: the run's directory, with `checkpoint-<step>` directories.

    Returns:
        The checkpoint or None, and one line for each newer checkpoint that was passed over.
    """
    output_dir = Path(output_dir)
    found = []
    for path in output_dir.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    passed_over = []
    for _, path in sorted(found, reverse=True):
        reason = why_incomplete(path)
        if reason is None:
            return path, passed_over
        passed_over.append(f"{path} is incomplete ({reason})")
    return None, passed_over
