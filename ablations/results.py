"""docs/RESULTS.md and the README's table, from the records of ablations."""

import json
import re
from pathlib import Path

from . import tables
from .report import KIND

# The first marker may name a setting: `<!-- results:begin tiny_wide -->`.
_BEGIN, END = re.compile(r"<!-- results:begin(?: (\S+))? -->"), "<!-- results:end -->"
_COMMAND = "python -m graphmert.ablations results"


def read_records(root: str | Path) -> list[dict]:
    """The records of ablations, newest first.

    Args:
        root: directory that holds `records/`.

    Raises:
        ValueError: it does not.
    """
    if not Path(root, "records").is_dir():
        raise ValueError(f"{root} has no records/; --root is the directory that holds it, with docs/ and README.md")
    records = []
    for file in sorted(Path(root, "records").glob("*/run.json"), reverse=True):
        run = json.loads(file.read_text(encoding="utf-8"))
        if run.get("kind") == KIND:
            records.append({**run, "name": file.parent.name})
    return records


def newest_of_each_setting(records: list[dict]) -> list[dict]:
    """For each setting its newest record."""
    newest: dict[str, dict] = {}
    for run in records:
        newest.setdefault(run["setting"]["name"], run)
    return list(newest.values())


def results_page(records: list[dict]) -> str:
    """docs/RESULTS.md, whole."""
    parts = [
        "# Results",
        f"Written by `{_COMMAND}` from `records/`; do not edit. What the rows are and how the figures are made is told\n"
        "in [ABLATIONS.md](ABLATIONS.md).",
    ]
    if not records:
        parts.append("No record of ablations yet.")
    for run in newest_of_each_setting(records):
        folder = f"../records/{run['name']}"
        seeds = ", ".join(map(str, run["setting"]["seeds"]))
        parts += [
            f"## {run['setting']['name']}",
            f"{run['setting']['description']} {len(run['runs'])} runs, seeds {seeds}; [record]({folder}).",
            tables.short_table(run),
            "\n".join(f"- {line}" for line in tables.claims(run)),
        ]
        headline = [run["metrics"][metric] for metric in run["headline"]["metrics"]]
        # As `figures.draw_differences`, which draws nothing where no two rows have the same figure.
        if any(cell["difference"] for found in headline for cell in found["rows"].values()):
            parts.append(f"![Paired differences]({folder}/differences.png)")
        for metric in run["headline"]["metrics"]:
            parts += [f"### {run['setting']['name']}: {metric}", tables.metric_table(run, metric)]
            controls = tables.control_table(run, metric)
            if controls is not None:
                parts += ["The same checkpoints before a changed input:", controls]
    older = [run for run in records if run not in newest_of_each_setting(records)]
    if older:
        links = "\n".join(f"- [{run['name']}](../records/{run['name']})" for run in older)
        parts += ["## Earlier records", links]
    return "\n\n".join(parts) + "\n"


def readme_block(records: list[dict], setting: str | None = None) -> str:
    """What stands between the README's markers: one setting's table, and where those of the others are.

    Args:
        records: newest first.
        setting: its name; None: of the newest record.

    Raises:
        ValueError: there is no record of the setting.
    """
    parts = [f"<!-- written by `{_COMMAND}` -->"]
    if not records and setting is None:
        return "\n\n".join([*parts, "No record of ablations yet."])
    newest = newest_of_each_setting(records)
    names = [run["setting"]["name"] for run in newest]
    if setting is not None and setting not in names:
        raise ValueError(
            f"README.md asks for the results of {setting}; there are records of {', '.join(names) or 'none'}"
        )
    run = newest.pop(0 if setting is None else names.index(setting))
    parts += [
        f"Setting `{run['setting']['name']}`, {len(run['setting']['seeds'])} seeds, mean ± standard deviation; bold where "
        f"the paired difference to {run['setting']['baseline']} is shown ([record](records/{run['name']}), "
        "[all rows](docs/RESULTS.md)):",
        tables.short_table(run),
    ]
    if newest:
        names = ", ".join(
            f"[`{other['setting']['name']}`](docs/RESULTS.md#{other['setting']['name']})" for other in newest
        )
        parts.append(f"The tables of other settings: {names}.")
    return "\n\n".join(parts)


def with_results(readme: str, records: list[dict]) -> str:
    """A README with `readme_block` between its markers; as it is where it has none.

    The first marker may name the setting: `<!-- results:begin tiny_wide -->`. Without, it is that of the newest record.

    Raises:
        ValueError: one marker without the other, or out of order, or no record of the setting.
    """
    begins, ends = list(_BEGIN.finditer(readme)), readme.count(END)
    if not begins and not ends:
        return readme
    if len(begins) != 1 or ends != 1 or readme.find(END) < begins[0].end():
        raise ValueError(f"README.md needs <!-- results:begin --> once and {END} once after it")
    block = readme_block(records, begins[0][1])
    return f"{readme[: begins[0].end()]}\n\n{block}\n\n{readme[readme.find(END) :]}"


def write_results(root: str | Path, write: bool = True) -> list[Path]:
    """Bring the pages up to date.

    Args:
        root: directory with `records/`, `docs/` and `README.md`.
        write: write what changed; else only say.

    Returns:
        The pages that were out of date.
    """
    root = Path(root)
    records = read_records(root)
    pages = {root / "docs" / "RESULTS.md": results_page(records)}
    readme = root / "README.md"
    if readme.is_file():
        pages[readme] = with_results(readme.read_text(encoding="utf-8"), records)
    changed = []
    for path, text in pages.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            changed.append(path)
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return changed
