"""Writes a record of finished runs: README.md, run.json, log.txt, curves.png, differences.png."""

import json
import textwrap
import time
from pathlib import Path

from ..run_summary import environment
from . import tables
from .analysis import analyse, runs_as_json, setting_as_json
from .collect import Result, collect
from .figures import draw_curves, draw_differences
from .settings import Setting

KIND = "ablations"
_PAIRS = """\
Runs with the same seed are pairs: same weights at the start where they have the same parts, same windows in the same
order, same masked tokens. A difference is called better or worse only where the 95 % interval over seeds (Student's t)
and, where results by example are kept, that over seeds and examples (bootstrap) leave out zero. Of twenty differences
that are none, one is shown all the same. Rows that were judged on other examples than the baseline are not compared."""


def write_report(setting: Setting, runs_dir: str | Path, record: str | Path, command: str, resamples: int) -> str:
    """Write a record; one of the same name is replaced.

    Args:
        setting: rows, seeds, baseline, headline.
        runs_dir: directory of all runs.
        record: directory to write.
        command: the command that makes the record again from the runs.
        resamples: of the bootstrap.

    Returns:
        A few lines on what was found.

    Raises:
        ValueError: no run has ended, or the runs were tested on different corpora.
    """
    results = collect(setting, runs_dir)
    figures = analyse(setting, results, resamples)
    record = Path(record)
    record.mkdir(parents=True, exist_ok=True)
    run = {
        "kind": KIND,
        "name": record.name,
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "setting": setting_as_json(setting),
        "missing_runs": _missing(setting, results),
        "runs": runs_as_json(results),
        "corpora": _corpora(results),
        "environment": results[0].summary.get("environment"),
        "report_environment": environment(),
        **figures,
    }
    (record / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    draw_curves(results, figures["headline"]["rows"], record / "curves.png")
    drawn = draw_differences(figures, record / "differences.png")
    if not drawn:
        (record / "differences.png").unlink(missing_ok=True)
    (record / "log.txt").write_text(tables.plain_text(figures).rstrip() + "\n", encoding="utf-8")
    (record / "README.md").write_text(_readme(run, drawn), encoding="utf-8")
    done = f"{len(results)} runs of {len(setting.rows)} rows in {record}"
    return "\n".join([done, *tables.claims(figures)])


def _missing(setting: Setting, results: list[Result]) -> list[str]:
    there = {(result.run.row.name, result.run.seed) for result in results}
    return [f"{row}, seed {seed}" for row in setting.rows for seed in setting.seeds if (row, seed) not in there]


def _corpora(results: list[Result]) -> dict:
    """Fingerprints of what was trained and tested on.

    Raises:
        ValueError: they are not the same for all runs.
    """
    corpora: dict = {"training_manifest_sha256": None, "projects_of_validation": None, "held_out": {}}
    for result in results:
        sha256 = result.summary["manifest_sha256"]
        if corpora["training_manifest_sha256"] not in (None, sha256):
            raise ValueError(f"{result.run.directory} was trained on another corpus than the runs before it")
        corpora["training_manifest_sha256"] = sha256
        corpora["projects_of_validation"] = result.summary["projects_held_out"]
        for task, report in result.reports.items():
            if "not_applicable" in report:
                continue
            # Where the corpus lies says nothing of what it is.
            corpus = {key: value for key, value in (report.get("dataset") or {}).items() if key != "path"}
            if corpora["held_out"].setdefault(task, corpus) != corpus:
                raise ValueError(
                    f"{result.run.directory}: {task} was tested on another corpus than in the runs before it"
                )
    return corpora


def _readme(run: dict, drawn: bool) -> str:
    setting = run["setting"]
    figures = run
    config = f"configs/ablations/{setting['name']}.yaml"
    environment_of_runs = run["environment"] or {}
    versions = environment_of_runs.get("versions", {})
    commits = sorted({item["git_commit"] or "unknown" for item in run["runs"]})
    name_of_source = ", ".join(f"`{commit.split('+')[0][:12]}{'+changes' * ('+' in commit)}`" for commit in commits)
    about = (
        f"{setting['description']} Setting `{config}`, seeds {', '.join(map(str, setting['seeds']))}, {len(run['runs'])} "
        f"runs, trained and evaluated by `python -m graphmert.ablations --config {config} ...`. Python "
        f"{environment_of_runs.get('python')}, torch {versions.get('torch')}, {environment_of_runs.get('device')}; source "
        f"{name_of_source}."
    )
    parts = [f"# Ablations: {setting['name']}", f"    {run['command']}", textwrap.fill(about, 120), _PAIRS]
    if run["missing_runs"]:
        parts.append(f"Missing runs: {'; '.join(run['missing_runs'])}.")
    adopted = [
        f"{item['row']}, seed {item['seed']}: "
        + ", ".join(f"{name} is {pair['found']!r}, wanted {pair['wanted']!r}" for name, pair in changes.items())
        for item in run["runs"]
        if (changes := item["adopted_with_differences"])
    ]
    if adopted:
        parts.append(
            "Runs made elsewhere that differ from their row:\n\n" + "\n".join(f"- {line}" for line in adopted)
        )
    parts += ["## Rows", tables.rows_table(run), "## Summary", tables.short_table(figures)]
    parts.append("\n".join(f"- {line}" for line in tables.claims(figures)))
    parts.append("![Curves over training](curves.png)")
    if drawn:
        parts.append("![Paired differences](differences.png)")
    parts.append("## Metrics")
    for metric in figures["headline"]["metrics"]:
        parts += [f"### {metric}", tables.metric_table(figures, metric)]
        controls = tables.control_table(figures, metric)
        if controls is not None:
            parts += ["The same checkpoints before a changed input:", controls]
    parts.append("All other metrics are in `log.txt`, all figures in `run.json`.")
    return "\n\n".join(parts) + "\n"
