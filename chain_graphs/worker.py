"""One worker process of a build: `python -m graphmert.chain_graphs.worker FD` serves tasks that come over a socket.

A program of its own and no forked copy: the parent may hold threads, and a script that calls `build_chain_graphs`
needs no `if __name__ == "__main__"`. Results go to files, whole or not at all; the socket carries only short messages:

    to the worker     (module, function, arguments, skip)     skip: reason by position, for files that are not to be read
    to the parent     ("file", position)    the file at this position of the batch is being read
                      ("done", None), ("error", exception, trace)

A file that takes longer than its time ends the process by SIGALRM, whatever code holds it; the parent starts another.
"""

import gc
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

TIMEOUT_SIGNAL = signal.SIGALRM


class Guard:
    """Tells the parent which file is being read, and ends the process when that takes too long.

    Args:
        send: gets each message for the parent.
        max_seconds: wall-clock time that one file may take.
    """

    def __init__(self, send: Callable[[tuple], None], max_seconds: float):
        self._send = send
        self._max_seconds = max_seconds

    def files(self, files: list[dict]) -> Iterator[tuple[int, dict]]:
        """Each file with its position; the time of a file runs until the next is asked for."""
        for position, file in enumerate(files):
            self._send(("file", position))
            signal.setitimer(signal.ITIMER_REAL, self._max_seconds)
            yield position, file
        signal.setitimer(signal.ITIMER_REAL, 0)


def serve(connection: Connection) -> None:
    """Work until the parent closes the connection or is gone."""
    path, max_seconds = connection.recv()
    sys.path[:] = path
    signal.signal(TIMEOUT_SIGNAL, signal.SIG_DFL)
    guard = Guard(connection.send, max_seconds)
    while True:
        try:
            module, function, arguments, skip = connection.recv()
        except EOFError:
            return
        try:
            getattr(importlib.import_module(module), function)(*arguments, guard=guard, skip=skip)
        except BaseException as error:
            # Not handled here: the parent raises it.
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(("error", _sendable(error), traceback.format_exc()))
        else:
            connection.send(("done", None))


def _sendable(error: BaseException) -> BaseException:
    try:
        return pickle.loads(pickle.dumps(error))
    except (pickle.PickleError, TypeError, AttributeError):
        return RuntimeError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    # Workers are parallel already; threads inside each would only compete. Ctrl-C is the parent's to handle.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A batch makes many small objects and hardly a cycle among them: looking for some is left to every so many.
    gc.set_threshold(100_000)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(Connection(int(sys.argv[1])))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(1)
