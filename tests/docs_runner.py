"""Runs the examples of a page of the documentation: what stands in its fenced blocks, from the top to the bottom.

    ```python     runs in one namespace for the page
    ```console    lines that begin with `$ ` run one after the other; lines ending in a backslash go on in the next
    ```text       directly after one of these: what it prints; `...` stands for anything, as in doctest

A block after a comment `<!-- not run: REASON -->` is left out, as is a block in any other language. Commands of this package
run in this process by the entry points of setup.py, all others in a shell.
"""

import contextlib
import doctest
import importlib
import io
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^( {0,3})```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: [^>]+ -->\s*\Z")
_ENTRY_POINT = re.compile(r'"([\w-]+) = ([\w.]+):(\w+)"')


class Block(NamedTuple):
    """One fenced block: its language, text, line in the page, and the output that follows it, if any."""

    language: str
    text: str
    line: int
    output: str | None


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page that are run."""
    found = list(_FENCE.finditer(page))
    blocks = []
    for number, match in enumerate(found):
        language, text = match[2], match[3]
        if language not in ("python", "console") or _NOT_RUN.search(page[: match.start()]):
            continue
        following = found[number + 1] if number + 1 < len(found) else None
        output = None
        if following is not None and following[2] == "text":
            between = page[match.end() : following.start()].strip()
            # "prints" may stand between the two.
            output = following[3] if between in ("", "prints", "which prints") else None
        blocks.append(Block(language, text, page.count("\n", 0, match.start()) + 1, output))
    return blocks


def entry_points() -> dict[str, tuple[str, str]]:
    """Console commands of setup.py: (module, function) by name."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    return {name: (module, function) for name, module, function in _ENTRY_POINT.findall(text)}


def run_page(path: Path, directory: Path, monkeypatch) -> int:
    """Run a page's examples in a directory.

    Args:
        path: the page.
        directory: where they run; what they need must be there.
        monkeypatch: pytest's, which goes back to the old directory.

    Returns:
        The number of blocks that were run.

    Raises:
        AssertionError: a block failed or printed something else; the message names page and line.
    """
    monkeypatch.chdir(directory)
    namespace = {"__name__": "__main__"}
    blocks = blocks_of(path.read_text(encoding="utf-8"))
    for block in blocks:
        where = f"{path.name}, line {block.line}"
        printed = (
            _run_python(block, namespace, where) if block.language == "python" else _run_console(block.text, where)
        )
        if block.output is not None:
            same = doctest.OutputChecker().check_output(block.output, printed, doctest.ELLIPSIS)
            assert same, f"{where} prints\n{printed}\nbut the page says\n{block.output}"
    return len(blocks)


def _run_python(block: Block, namespace: dict, where: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, where, "exec"), namespace)
    return output.getvalue()


def _run_console(text: str, where: str) -> str:
    output = ""
    commands = re.findall(r"^\$ (.*)$", text.replace("\\\n", " "), re.M)
    assert commands, f"{where}: no line begins with `$ `"
    for command in commands:
        name, *arguments = shlex.split(command, comments=True)
        if name in entry_points():
            output += _run_entry_point(name, arguments, where)
            continue
        run = subprocess.run(command, shell=True, capture_output=True, text=True, env=os.environ)
        assert run.returncode == 0, f"{where}: {command}\n{run.stderr}"
        output += run.stdout
    return output


def _run_entry_point(name: str, arguments: list[str], where: str) -> str:
    module, function = entry_points()[name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = getattr(importlib.import_module(module), function)(arguments)
        except SystemExit as ended:
            status = ended.code
    assert status in (None, 0), f"{where}: {name} {' '.join(arguments)} ended with {status}\n{err.getvalue()}"
    return out.getvalue()
