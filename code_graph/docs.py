"""Writes docs/RELATIONS.md from the schema, the examples and the notes in each language's reader.

    python -m graphmert.code_graph.docs            # prints the page
    python -m graphmert.code_graph.docs --write    # writes it to docs/RELATIONS.md

A test holds the page in the repository against what this module gives.
"""

import argparse
import importlib
import inspect
from pathlib import Path

from . import EXTENSIONS, LANGUAGES, RELATIONS, relations_of
from .examples import EXAMPLES

TITLES = {
    "python": "Python",
    "java": "Java",
    "javascript": "JavaScript",
    "go": "Go",
    "ruby": "Ruby",
    "php": "PHP",
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "RELATIONS.md"
INTRODUCTION = """\
# Relations of the code graph

Written by `python -m graphmert.code_graph.docs --write` from `code_graph/schema.py`, `code_graph/examples.py` and the
notes in the readers of the languages; a test runs every example and holds this page against them. Do not edit it by hand.

A fact is a triple: head, relation, tail. The head is always a place in the text. A tail that names something is qualified
as far as the file resolves it; its parts are joined by dots whatever the language writes. Every fact holds at a
definition, or at a *use* of a name whose definition may be far away.

Names are resolved by scope. A member is resolved on the instance (`self`, `this`, a receiver), on classes of the file and
their bases in the file, and on variables and fields whose declared type is a class of the file (in the languages besides
Python also on variables that are only ever bound to a new instance of one).

A language has the relations that are marked here, and no others:
"""


def _notes(language: str) -> str:
    """What the docstring of a language's reader says after its first paragraph."""
    reader = importlib.import_module(f".{language}", __package__)
    text = inspect.cleandoc(reader.__doc__ or "")
    lines = []
    for line in text.partition("\n\n")[2].split("\n"):
        if line.startswith("    - ") and lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
            lines.append("")  # a list begins
        lines.append(line[4:] if line.startswith("    ") else line)
    return "\n".join(lines)


def page() -> str:
    """The text of docs/RELATIONS.md."""
    lines = [INTRODUCTION]
    lines.append("| relation | " + " | ".join(TITLES[language] for language in LANGUAGES) + " |")
    lines.append("| --- |" + " --- |" * len(LANGUAGES))
    for relation in RELATIONS:
        marks = ["yes" if relation.name in relations_of(language) else "" for language in LANGUAGES]
        lines.append(f"| `{relation.name}` | " + " | ".join(marks) + " |")
    lines.append("")
    for relation in RELATIONS:
        lines += [f"## {relation.name}", "", relation.definition, ""]
        lines += [f"**Direction.** {relation.direction}", "", f"**Excluded.** {relation.excluded}", ""]
        for language in LANGUAGES:
            if relation.name in relations_of(language):
                code, (head, tail) = EXAMPLES[language][relation.name]
                lines += [f"{TITLES[language]}: `{head}` {relation.name} `{tail}`", ""]
                lines += [f"```{language}", code.rstrip("\n"), "```", ""]
    lines += ["# Languages", ""]
    for language in LANGUAGES:
        endings = ", ".join(f"`{extension}`" for extension in EXTENSIONS[language])
        lines += [f"## {TITLES[language]} ({endings})", "", _notes(language).strip(), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write docs/RELATIONS.md instead of printing it")
    if parser.parse_args().write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
