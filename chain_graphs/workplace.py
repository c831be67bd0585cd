"""The hidden directory in which a build works: taken up where an earlier run of the same command was stopped.

.NAME.building/state.json      what is being built, as a hash of the arguments and versions
.NAME.building/lock            held while a build runs
.NAME.building/staging, tokenizer, rows    finished parts
.NAME.building/dataset         the dataset; complete once it holds manifest.json
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from .sources import BuildError
from .staging import write_whole


class Workplace:
    """The working directory of a build; in a `with` statement it is locked, and kept where there is work to take up.

    Args:
        output: where the dataset will stand.
        arguments: those that shape the dataset.
        restart: throw away what an earlier run has left.
    """

    def __init__(self, output: Path, arguments: dict, restart: bool = False):
        self.output = output
        self.path = output.absolute().parent / f".{output.name}.building"
        self._arguments = arguments
        self._restart = restart
        self._lock = None

    def _identity(self) -> str:
        from .manifest import FORMAT_VERSION, versions

        content = {
            "arguments": self._arguments,
            "versions": versions(self._arguments.get("languages", ())),
            "format_version": FORMAT_VERSION,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _state(self) -> dict:
        try:
            return json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def finished_manifest(self) -> dict | None:
        """The manifest, where an earlier run was stopped after the dataset had come to its place."""
        finished = self._state().get("manifest_sha256")
        manifest = self.output / "manifest.json"
        if (
            not finished
            or self._restart
            or self._state().get("identity") != self._identity()
            or not manifest.is_file()
        ):
            return None
        content = manifest.read_bytes()
        if hashlib.sha256(content).hexdigest() != finished:
            return None
        shutil.rmtree(self.path)
        return json.loads(content)

    def __enter__(self) -> "Workplace":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "w")
        except OSError as error:
            raise BuildError(f"--output {self.output}: cannot be made ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BuildError(f"--output {self.output}: another build is writing it; wait for it or stop it") from error
        state, identity = self._state(), self._identity()
        if state and state.get("identity") != identity and not self._restart:
            self._lock.close()
            raise BuildError(
                f"--output {self.output}: a build with other arguments or versions was stopped here; run its command again "
                f"to continue it, or add --restart to throw away what it left in {self.path}"
            )
        if state and not self._restart:
            print(f"continuing the build that was stopped in {self.path}", file=sys.stderr, flush=True)
        else:
            self._clear()
            self._write_state({"identity": identity, "arguments": self._arguments})
        return self

    def __exit__(self, kind, error, trace) -> None:
        # A mistake of the user's that shows before any rows are made leaves nothing behind, nor does any other end before
        # something is read: there is nothing to take up, and what is left would refuse the corrected command.
        has_rows = any(self.path.glob("rows/*.arrow"))
        has_work = has_rows or any(self.path.glob("staging/*/*.arrow"))
        if error is None or not has_work or (isinstance(error, BuildError) and not has_rows):
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _clear(self) -> None:
        for item in self.path.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != "lock":
                item.unlink()

    def _write_state(self, state: dict) -> None:
        write_whole(self.path / "state.json", json.dumps(state, indent=1).encode())

    def put_in_place(self) -> dict:
        """Move the finished dataset to its place; what stood there goes only when the new one is whole.

        Returns:
            Its manifest.
        """
        dataset = self.path / "dataset"
        content = (dataset / "manifest.json").read_bytes()
        self._write_state(self._state() | {"manifest_sha256": hashlib.sha256(content).hexdigest()})
        if self.output.exists():
            replaced = self.path / "replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(self.output, replaced)
        os.replace(dataset, self.output)
        return json.loads(content)
