"""Ray Data in place of local processes, for more than one machine (`pip install graphmert[ray]`).

The batches travel through Ray's object store, so the machines need no shared disk; each Ray worker guards a process of its
own as the local engine does (time limits, crashes). The row files, and so the dataset, are the same to the byte.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .pool import Task, WorkerPool
from .sources import BuildError
from .staging import write_whole

# Batches that are under way at once; with the default size of a batch about 100 MB of code.
GROUP = 256


class BatchReader:
    """Makes the rows of batches that come as bytes; lives in a Ray worker.

    Args:
        tokenizer_json: content of `tokenizer.json`.
        extract, hide_annotations: as in `RowMaker`.
        max_file_seconds: as in `WorkerPool`.
    """

    def __init__(self, tokenizer_json: bytes, extract: Callable, hide_annotations: float, max_file_seconds: float):
        self._directory = tempfile.TemporaryDirectory(prefix="graphmert-")
        self._how = (extract, hide_annotations)
        root = Path(self._directory.name)
        self._staged, self._out, self._tokenizer = root / "staged.arrow", root / "rows.arrow", root / "tokenizer.json"
        self._tokenizer.write_bytes(tokenizer_json)
        self._pool = WorkerPool(1, max_file_seconds)

    def __call__(self, row: dict) -> dict:
        self._staged.write_bytes(row["batch"])
        dropped = set(map(int, row["dropped"]))
        arguments = (self._staged, self._out, dropped, self._tokenizer, *self._how)
        self._pool.run([Task(f"{__package__}.rows:write_rows", arguments)])
        return {"number": row["number"], "rows": self._out.read_bytes()}

    def __del__(self):
        self._pool.__exit__(None, None, None)


def run_with_ray(tasks: list[Task], num_proc: int, max_file_seconds: float) -> None:
    """Run `rows.write_rows` tasks on a Ray cluster: that of `RAY_ADDRESS`, else one started here.

    Raises:
        BuildError: Ray is not installed.
    """
    if not tasks:
        return
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BuildError("--engine ray needs Ray Data: pip install 'graphmert[ray]'") from error
    started = not ray.is_initialized()
    if started:
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_proc, "include_dashboard": False}
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
        ray.init(log_to_driver=False, runtime_env=environment, **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        *_, tokenizer_file, extract, hide_annotations = tasks[0].arguments
        for start in range(0, len(tasks), GROUP):
            group = tasks[start : start + GROUP]
            rows = [
                {
                    "number": number,
                    "batch": task.arguments[0].read_bytes(),
                    # Never empty: an empty list has no type in Arrow.
                    "dropped": [-1, *sorted(task.arguments[2])],
                }
                for number, task in enumerate(group)
            ]
            made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                BatchReader,
                fn_constructor_args=(
                    tokenizer_file.read_bytes(),
                    extract,
                    hide_annotations,
                    max_file_seconds,
                ),
                concurrency=min(num_proc, len(rows)),
                num_cpus=1,
            )
            for row in made.iter_rows():
                write_whole(group[row["number"]].arguments[1], row["rows"])
    finally:
        if started:
            ray.shutdown()
