"""The command that shows the leafy chain graph of one file: `python -m graphmert.chain_graphs.show --help`.

What is shown is what a model is given: the windows of the file, their tokens, and each token's leaves as they fit into
the slots. A leaf names the other end of a fact; `calls> json.dumps` is read from the token to the leaf, `<calls load`
from the leaf to the token.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..code_graph.schema import RELATION_NAMES
from ..command_line import CommandParser
from .languages import decode
from .sources import BuildError

# A tokenizer that is trained on the shown file alone: large enough for whole names, small enough to be quick.
OWN_VOCAB_SIZE = 2_000


@dataclass(frozen=True)
class Fact:
    """One fact of a window: tokens `first` to `last` - 1 of the window carry `leaf` under `relation`.

    Attributes:
        first, last: tokens of the head span, counted in the window's own tokens.
        root: the token whose slots hold the leaf.
        relation: its name.
        is_reversed: the leaf is the relation's head, the tokens its tail.
        is_visible: the leaf's text also stands in the window.
        leaf: the leaf's tokens as text.
    """

    first: int
    last: int
    root: int
    relation: str
    is_reversed: bool
    is_visible: bool
    leaf: tuple[str, ...]

    @property
    def label(self) -> str:
        """The relation with its direction."""
        return f"<{self.relation}" if self.is_reversed else f"{self.relation}>"


@dataclass(frozen=True)
class Window:
    """One window: character spans of its tokens without overlap, and its facts in the order of the tokens."""

    tokens: tuple[tuple[int, int], ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class FileView:
    """What is shown of one file."""

    title: str
    code: str
    windows: tuple[Window, ...]
    statistics: dict
    leaves_per_root: int


def view_row(row: dict, tokenizer, title: str, num_roots: int = 128, leaves_per_root: int = 7) -> FileView:
    """The view of one row of a dataset of chain graphs.

    Args:
        row: a row with `code` and the columns of `linking.ROW_COLUMNS`.
        tokenizer: the one that made the row.
        title: what to call the file.
        num_roots, leaves_per_root: as in `WindowDataset`.

    Returns:
        The windows with their facts.
    """
    from datasets import Dataset

    from .windows import WindowDataset

    columns = {name: [value] for name, value in row.items() if not isinstance(value, str)}
    windows = WindowDataset(Dataset.from_dict(columns), tokenizer, num_roots, leaves_per_root)
    shown = []
    for index, (start, end) in enumerate(windows.token_range.tolist()):
        item = windows[index]
        # A tokenizer may leave the space between tokens out of their offsets, and the bytes of one character share its own:
        # each token is shown from the end of the one before.
        tokens, position = [], int(row["char_ends"][start - 1]) if start else 0
        for number in range(start, end):
            first, position = position, max(int(row["char_ends"][number]), position)
            tokens.append((first, position))
        facts, offset = [], 0
        names = ("head_start", "head_length", "leaf_root", "relation", "reversed", "visible", "leaf_length")
        for values in np.stack([item[name] for name in names], axis=1).tolist():
            first, length, root, relation, is_reversed, visible, size = values
            leaf = [tokenizer.decode([token]) for token in item["leaf_ids"][offset : offset + size].tolist()]
            offset += size
            # Root 0 is <s>.
            facts.append(
                Fact(
                    first - 1,
                    first - 1 + length,
                    root - 1,
                    RELATION_NAMES[relation],
                    bool(is_reversed),
                    bool(visible),
                    (leaf[0].lstrip(" "), *leaf[1:]),
                )
            )
        shown.append(Window(tuple(tokens), tuple(facts)))
    return FileView(title, row["code"], tuple(shown), windows.statistics(), leaves_per_root)


def view_file(path: Path, tokenizer_path: str | None, num_roots: int = 128, leaves_per_root: int = 7) -> FileView:
    """The view of a source file on disk.

    Args:
        path: the file; its language goes by its suffix.
        tokenizer_path: a fast tokenizer; None trains a small one on the file itself.
        num_roots, leaves_per_root: as in `WindowDataset`.

    Raises:
        BuildError: the file cannot be read, holds nothing, or is in no language that is read.
    """
    from ..code_graph import LANGUAGES, extract, language_of
    from .linking import link_file
    from .tokenizer import load_tokenizer, train_tokenizer

    language = language_of(path.name)
    if language is None:
        raise BuildError(
            f"{path}: {path.suffix or 'a file without a suffix'} is not read; languages: {', '.join(LANGUAGES)}"
        )
    try:
        code = decode(path.read_bytes(), language)
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeError as error:
        raise BuildError(f"{path}: is not text ({error})") from error
    if not code.strip():
        raise BuildError(f"{path}: is empty")
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path else train_tokenizer([code], OWN_VOCAB_SIZE)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.encode_special_tokens = True
    columns, _ = link_file(code, extract(code, language), tokenizer, language=language)
    return view_row(columns | {"code": code}, tokenizer, str(path), num_roots, leaves_per_root)


def view_dataset(dataset: str, path: str, num_roots: int = 128, leaves_per_root: int = 7) -> FileView:
    """The view of a file as it stands in a dataset.

    Raises:
        BuildError: no such dataset, or not exactly one file whose path ends so.
    """
    from .manifest import load_chain_graphs

    splits, _, tokenizer = load_chain_graphs(dataset)
    found = []
    for split in splits.values():
        for index, stored in enumerate(split["path"]):
            if stored == path or stored.endswith("/" + path):
                found.append((stored, split, index))
    if len(found) != 1:
        names = ", ".join(sorted({stored for stored, _, _ in found})[:5])
        raise BuildError(
            f"{path}: {len(found)} files of {dataset} have this path"
            + (f" ({names}); give more of it" if found else "")
        )
    stored, split, index = found[0]
    return view_row(split[index], tokenizer, stored, num_roots, leaves_per_root)


def summary_of(view: FileView) -> str:
    """One line about the whole file."""
    counts = view.statistics
    return (
        f"{view.title}: {counts['windows']} windows, {counts['facts_placed']} facts placed, {counts['facts_cut']} cut, "
        f"{counts['facts_dropped_for_room']} without room, {counts['nodes_per_window']:.0f} nodes per window"
    )


def lines_of(code: str, window: Window) -> list[tuple[int, int, int, list[Fact]]]:
    """The lines of a window: (line number, first and last token, the facts whose head begins on the line)."""
    lines: list[tuple[int, int, int, list[Fact]]] = []
    number = code.count("\n", 0, window.tokens[0][0]) + 1
    line_of, first = [], 0
    for index, (start, end) in enumerate(window.tokens):
        text = code[start:end]
        # A token may begin with the line end before it; it belongs to the line of its last character but one.
        number += text[: len(text.rstrip("\n"))].count("\n")
        if index and number != line_of[-1]:
            lines.append((line_of[-1], first, index, []))
            first = index
        line_of.append(number)
        number += text[len(text.rstrip("\n")) :].count("\n")
    lines.append((line_of[-1], first, len(window.tokens), []))
    place = {line[0]: line for line in lines}
    for fact in window.facts:
        place[line_of[fact.first]][3].append(fact)
    return lines


def render_text(view: FileView, only: int | None = None, show_tokens: bool = False, width: int = 0) -> str:
    """The view as plain text.

    Args:
        view: what to show.
        only: number of the only window to show, from 1.
        show_tokens: mark the edges between tokens of the code.
        width: cut longer lines; 0 cuts none.
    """
    out = [summary_of(view), ""]
    for number, window in enumerate(view.windows, 1):
        if only not in (None, number):
            continue
        out.append(f"== window {number}: {len(window.tokens)} tokens, {len(window.facts)} facts")
        for line, first, last, facts in lines_of(view.code, window):
            pieces = [view.code[a:b].strip("\n") for a, b in window.tokens[first:last]]
            out.append(f"{line:5d} | {('¦' if show_tokens else '').join(pieces)}".rstrip())
            for head, said in _by_head(view.code, window, facts):
                out.append(f"      |     {head}  {'  '.join(said)}")
        out.append("")
    return "\n".join(line if not width or len(line) <= width else line[: width - 1] + "…" for line in out)


def _by_head(code: str, window: Window, facts: list[Fact]) -> list[tuple[str, list[str]]]:
    """Facts of a line in one entry for each head: its text, and what it carries."""
    entries: dict[tuple[int, int], list[str]] = {}
    for fact in sorted(facts, key=lambda fact: (fact.first, fact.last)):
        said = entries.setdefault((fact.first, fact.last), [])
        said.append(f"{fact.label} {''.join(fact.leaf)}{'' if fact.is_visible else ' *'}")
    return [(text_of(code, window, first, last), said) for (first, last), said in entries.items()]


def text_of(code: str, window: Window, first: int, last: int) -> str:
    """The text of a span of tokens, on one line."""
    return " ".join(code[window.tokens[first][0] : window.tokens[last - 1][1]].split())


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    parser = CommandParser(
        prog="python -m graphmert.chain_graphs.show",
        description="Show a file's leafy chain graph: its windows, their tokens, and what hangs on them. A star marks "
        "leaves that the window does not show.",
    )
    parser.add_argument("file", help="a source file; with --dataset the path of a file in it, or the end of the path")
    parser.add_argument("--dataset", metavar="DIR", help="show the file as it stands in this dataset")
    parser.add_argument("--tokenizer", metavar="PATH_OR_ID", help="default: a small one, trained on the file itself")
    parser.add_argument("--html", metavar="OUT", help="write a page that needs nothing else, instead of text")
    parser.add_argument("--window", type=int, metavar="N", help="only this window, from 1 (text)")
    parser.add_argument("--tokens", action="store_true", help="mark the edges between tokens (text)")
    parser.add_argument("--num-roots", type=int, default=128, metavar="R", help="tokens of a window, default 128")
    parser.add_argument("--leaves-per-root", type=int, default=7, metavar="L", help="leaf slots, default 7")
    arguments = parser.parse_args(argv)
    sizes = (arguments.num_roots, arguments.leaves_per_root)
    try:
        if arguments.html:
            for option, is_given in (("--window", arguments.window is not None), ("--tokens", arguments.tokens)):
                if is_given:
                    raise ValueError(f"{option} and --html: the page shows everything; leave one of them out")
        if arguments.dataset:
            view = view_dataset(arguments.dataset, arguments.file, *sizes)
        else:
            view = view_file(Path(arguments.file), arguments.tokenizer, *sizes)
        if arguments.window is not None and not 1 <= arguments.window <= len(view.windows):
            number = len(view.windows)
            raise ValueError(
                f"--window {arguments.window}: {view.title} has {number} windows; name one from 1 to {number}"
            )
        if arguments.html:
            from .show_page import render_html

            Path(arguments.html).write_text(render_html(view), encoding="utf-8")
            print(summary_of(view))
            print(f"written to {arguments.html}")
            return 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print(render_text(view, arguments.window, arguments.tokens, width))
    return 0


if __name__ == "__main__":
    sys.exit(main())
