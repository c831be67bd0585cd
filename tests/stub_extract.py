"""Extractors that stand in for the real one in tests of builds; they run in worker processes, so they import little."""

import os
import re
import signal
import time
from types import SimpleNamespace


def stub_extract(code: str, language: str = "python"):
    """Parameters of one-parameter functions; texts with a marker fail as an extractor may."""
    if "PLEASE_FAIL" in code:
        raise ValueError("cannot read this\nsecond line")
    if "PLEASE_RECURSE" in code:
        raise RecursionError
    triples, boundaries = [], []
    for match in re.finditer(r"def (\w+)\((\w+)", code):
        boundaries.append((match.start(), 0))
        head, tail = match.span(1), match.span(2)
        triples.append(
            SimpleNamespace(
                head=match[1],
                head_start=head[0],
                head_end=head[1],
                relation="has_parameter",
                tail=match[2],
                tail_start=tail[0],
                tail_end=tail[1],
                is_use=False,
            )
        )
    return SimpleNamespace(
        triples=triples, boundaries=boundaries, num_errors=int("ERROR" in code), num_skipped={"a reason": 1}
    )


def broken_extract(code: str, language: str = "python"):
    raise TypeError("a programming error")


def interrupted_extract(code: str, language: str = "python"):
    raise KeyboardInterrupt


def killed_extract(code: str, language: str = "python"):
    os.kill(os.getpid(), signal.SIGKILL)


def hostile_extract(code: str, language: str = "python"):
    """Hangs or crashes on marked texts, as C code may."""
    if "PLEASE_HANG" in code:
        time.sleep(1000)
    if "PLEASE_CRASH" in code:
        os.kill(os.getpid(), signal.SIGSEGV)
    return stub_extract(code, language)


def slow_extract(code: str, language: str = "python"):
    """Leaves time to kill a build in the middle."""
    time.sleep(0.02)
    return stub_extract(code, language)
