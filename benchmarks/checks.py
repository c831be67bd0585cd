"""What must hold before a speed is worth writing down: all layouts and backends give the same losses and gradients."""

import subprocess
import sys

from .record import ROOT

EQUIVALENCE_TESTS = ("tests/test_packed.py", "tests/test_modeling.py", "tests/test_hgat.py", "tests/test_decay.py")


class NotEquivalentError(RuntimeError):
    """The equivalence tests fail, so no speed is reported."""


def require_equivalence(tests: tuple[str, ...] = EQUIVALENCE_TESTS) -> str:
    """Run the tests that hold every fast path against its slow reference.

    Args:
        tests: files of the repository to run with pytest.

    Returns:
        pytest's line of counts, for the record.

    Raises:
        NotEquivalentError: a test fails; the message holds the end of pytest's output.
    """
    command = [sys.executable, "-m", "pytest", "-o", "addopts=-q --strict-markers", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode != 0:
        raise NotEquivalentError("equivalence tests fail, no speed is reported:\n" + "\n".join(lines[-15:]))
    return next(line for line in reversed(lines) if " passed" in line)
