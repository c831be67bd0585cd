"""Worker processes that survive their files: one that hangs or dies is replaced and only the file at fault is lost.

Starts processes and talks to them; the work itself is in the functions that the tasks name (see `worker.py`).
"""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from .sources import BuildError
from .worker import TIMEOUT_SIGNAL

# The kernel kills processes when memory runs out. So many in a row, without a finished task between, end the build:
# going on would lose file after file for a reason that is not in the files.
MAX_KILLS_IN_A_ROW = 8


@dataclass
class Task:
    """One call in a worker: `function` of `module` with `arguments`, plus keywords `guard` and `skip`.

    Attributes:
        function: `module:function`, importable in the worker.
        arguments: picklable.
        skip: reason by position in the batch, for files that an earlier attempt did not survive.
    """

    function: str
    arguments: tuple
    skip: dict[int, str] = field(default_factory=dict)


class _Worker:
    """A process and the parent's end of its socket."""

    def __init__(self, max_file_seconds: float):
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
            )
        self.connection = Connection(ours.detach())
        self.task: Task | None = None
        self.position: int | None = None
        self.connection.send((sys.path, max_file_seconds))

    def start(self, task: Task) -> None:
        self.task, self.position = task, None
        self.connection.send((*task.function.split(":"), task.arguments, task.skip))

    def end(self) -> int:
        """Stop the process; its exit status, negative for a signal."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()


class WorkerPool:
    """Runs tasks in processes, each file under a time limit; use it in a `with` statement.

    Args:
        num_proc: processes.
        max_file_seconds: wall-clock time that one file may take.
    """

    def __init__(self, num_proc: int, max_file_seconds: float):
        self.num_proc = num_proc
        self.max_file_seconds = max_file_seconds
        self._workers: list[_Worker] = []
        self._kills_in_a_row = 0

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def run(self, tasks: Iterable[Task], done: Callable[[], None] | None = None) -> None:
        """Run all tasks, in any order.

        With one worker, this process and the worker take turns: one processor is used, as was asked for. With more, the
        next task is made while all of them are busy, so that none waits for it.

        Args:
            tasks: what to do; taken one by one.
            done: called after each task.

        Raises:
            BuildError: workers die for a reason that is not in the files.
            Exception: what a task raised.
        """
        source, again = iter(tasks), deque()
        idle = deque(self._workers)
        while True:
            while idle or len(self._workers) < self.num_proc:
                task = again.popleft() if again else next(source, None)
                if task is None:
                    break
                if not idle:
                    self._workers.append(_Worker(self.max_file_seconds))
                    idle.append(self._workers[-1])
                self._start(idle.popleft(), task, again)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy and not again:
                return
            if self.num_proc > 1 and not again:
                task = next(source, None)
                if task is not None:
                    again.append(task)
            ready = set(wait([worker.connection for worker in busy]))
            for worker in busy:
                if worker.connection not in ready:
                    continue
                try:
                    kind, *content = worker.connection.recv()
                except (EOFError, OSError):
                    again.append(self._bury(worker))
                    continue
                if kind == "file":
                    worker.position = content[0]
                elif kind == "error":
                    error, trace = content
                    error.add_note(f"in a worker process:\n{trace}")
                    raise error
                else:
                    worker.task = None
                    self._kills_in_a_row = 0
                    idle.append(worker)
                    if done:
                        done()

    def _start(self, worker: _Worker, task: Task, again: deque) -> None:
        try:
            worker.start(task)
        except (BrokenPipeError, ConnectionResetError):
            again.append(self._bury(worker))

    def _bury(self, worker: _Worker) -> Task:
        """Remove a dead worker; its task, which now leaves out the file at fault."""
        self._workers.remove(worker)
        worker.connection.close()
        status = worker.process.wait()
        if status == -signal.SIGKILL or worker.position is None:
            self._kills_in_a_row += 1
            if self._kills_in_a_row >= MAX_KILLS_IN_A_ROW:
                raise BuildError(
                    f"a worker process was killed {self._kills_in_a_row} times in a row ({_cause(status)}), most likely for "
                    "lack of memory; lower --num-proc or --max-file-bytes and run the same command again: it continues"
                )
        if worker.position is None:
            return worker.task
        if status == -TIMEOUT_SIGNAL:
            reason = f"took longer than {self.max_file_seconds:g} seconds (--max-file-seconds)"
        else:
            reason = f"reading it ended the process ({_cause(status)})"
        return Task(worker.task.function, worker.task.arguments, worker.task.skip | {worker.position: reason})


def _cause(status: int) -> str:
    try:
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
    except ValueError:
        return f"signal {-status}"
