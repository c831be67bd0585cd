"""Records of measurements: a directory with `README.md` (what and how), `run.json` (figures) and `log.txt` (the table)."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tree-sitter", "tree-sitter-python", "datasets", "tokenizers", "transformers")


def write_record(directory: str | Path, title: str, command: str, figures: dict, table: str, notes: str = "") -> None:
    """Writes one record; a record of the same name is replaced.

    Args:
        directory: where to write.
        title: first line of the README.
        command: the command that makes the record again.
        figures: what was measured, as JSON can hold it.
        table: what the command printed.
        notes: sentences for the README about what is counted and what the figures say.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    run = {
        "command": command,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "num_cpus": os.cpu_count(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "figures": figures,
    }
    (directory / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (directory / "log.txt").write_text(table.rstrip() + "\n", encoding="utf-8")
    readme = (
        f"# {title}\n\n    {command}\n\n{notes.strip()}\n\nThe table is in `log.txt`, all figures in `run.json`.\n"
    )
    (directory / "README.md").write_text(readme.replace("\n\n\n", "\n\n"), encoding="utf-8")


def installed_version(package: str) -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def resident_memory() -> tuple[int, int]:
    """Bytes that this process has resident, now and at most so far.

    Not `ru_maxrss` on Linux: a process takes that over from the one that started it, however large that was.

    Returns:
        (now, peak); where there is no /proc, both are the peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        found = {words[0]: 1024 * int(words[1]) for words in lines if words[0] in ("VmRSS:", "VmHWM:")}
        return found["VmRSS:"], found["VmHWM:"]
    # Bytes on macOS, KiB elsewhere.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def commit() -> str | None:
    """The commit that is checked out, with a mark where files differ from it; None outside a repository or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def corpus_of(manifest: dict) -> list[dict]:
    """The sources of a dataset, as a record keeps them."""
    return [{key: source.get(key) for key in ("spec", "sha256")} for source in manifest["sources"]]


def text_table(header: list[str], rows: list[list]) -> str:
    """A table in plain text: the first column to the left, the others to the right; floats with four places."""
    cells = [header, *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
