"""What the commands of the package share. Imports nothing heavy, so that `--help` answers at once."""

import argparse
import os
from pathlib import Path


class CommandParser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def check_output_file(option: str, path: str | Path) -> None:
    """Refuse a file that cannot be written, before any work is done for it. Writes nothing.

    Args:
        option: the one that names the file, for the message.
        path: the file; directories above it may be missing.

    Raises:
        ValueError: it is a directory, lies under a file, or may not be written.
    """
    path = Path(path)
    try:
        is_directory = path.is_dir()
        place = path if path.exists() else next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        raise ValueError(f"{option} {path}: cannot be written ({error.strerror}); choose another file") from error
    if is_directory:
        raise ValueError(f"{option} {path} is a directory; name a file")
    if place != path and not place.is_dir():
        raise ValueError(f"{option} {path}: {place} is not a directory; choose another file")
    if not os.access(place, os.W_OK):
        raise ValueError(f"{option} {path}: cannot be written (no permission for {place}); choose another file")
