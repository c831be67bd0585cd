"""Reads what the runs left behind: figures by row and seed, baselines of the tasks, results by example."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .examples import ExampleSums, example_sums
from .settings import Run, Setting, runs_of

VALIDATION = "validation"
"""The name under which the figures of `run_pretraining.py` itself stand: held-out projects of the training corpus."""


# Arrays of a task that say which examples it took, not what came out.
_WHICH_EXAMPLES = ("window", "column", "relation", "visible", "no_copy", "count", "file", "start", "is_return")


@dataclass
class Result:
    """One finished run.

    Attributes:
        run, summary: the run and its `summary.json`.
        reports: report of each task that is there.
        figures: all figures by `TASK/figure`; those of a control by `TASK [control]/figure`.
        history: the trainer's log.
    """

    run: Run
    summary: dict
    reports: dict[str, dict]
    figures: dict[str, float]
    history: list[dict]
    _arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    def arrays(self, task: str) -> dict[str, np.ndarray]:
        """What a task kept by example; empty where it kept nothing."""
        if task not in self._arrays:
            file = self.run.directory / "tasks" / f"{task}.npz"
            if file.is_file():
                with np.load(file, allow_pickle=False) as arrays:
                    self._arrays[task] = dict(arrays)
            else:
                self._arrays[task] = {}
        return self._arrays[task]

    def judged_like(self, other: "Result", metric: str) -> bool:
        """Whether another run's figure was measured on the same examples, as far as anything says.

        Which facts are hidden, and which tokens stand in a leaf, may depend on the graph that a row knows.
        """
        task, figure = metric.rsplit("/", 1)
        task = task.partition(" [")[0]
        if task == VALIDATION:
            ours, theirs = (_count_of(result.summary, figure) for result in (self, other))
            return ours == theirs
        # What came out is named for whom it came out of, "relations hidden: loss".
        ours, theirs = (
            {
                name: array
                for name, array in result.arrays(task).items()
                if name.startswith(_WHICH_EXAMPLES) and ": " not in name
            }
            for result in (self, other)
        )
        return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)

    def examples(self, metric: str) -> ExampleSums | None:
        """What each example adds to a figure; None where the task kept no examples for it."""
        task, figure = metric.rsplit("/", 1)
        task, _, control = task.partition(" [")
        arrays = self.arrays(task)
        if not arrays:
            return None
        if control:
            return example_sums(figure, arrays, control.removesuffix("]"))
        report = self.reports[task]
        others = {*report.get("controls", {}), *report.get("baselines", {})}
        speakers = {key.split(": ")[0] for key in arrays if ": " in key} - others
        # A task may call the checkpoint by the way that it was used, or say in which way it was asked.
        if report.get("details", {}).get("asked"):
            speakers = {report["details"]["asked"]}
        if "model" not in speakers and len(speakers) == 1:
            found = example_sums(figure, arrays, speakers.pop())
            if found is not None:
                return found
        return example_sums(figure, arrays)


def collect(setting: Setting, runs_dir: str | Path) -> list[Result]:
    """The finished runs of a setting.

    Args:
        setting: rows and seeds.
        runs_dir: directory of all runs.

    Raises:
        ValueError: not a single run has ended.
    """
    results = []
    for run in runs_of(setting, runs_dir):
        summary = run.summary
        if summary is None:
            continue
        reports = {}
        for file in sorted((run.directory / "tasks").glob("*.json")):
            if not file.name.startswith("."):
                reports[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        state = run.model_dir / "trainer_state.json"
        history = json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []
        results.append(Result(run, summary, reports, _figures(summary, reports), history))
    if not results:
        raise ValueError(f"no run of these rows has ended in {runs_dir}")
    return results


def _figures(summary: dict, reports: dict[str, dict]) -> dict[str, float]:
    target = summary["arguments"]["model"]["mnm_target"]
    figures = {}
    for name, value in summary["held_out"].items():
        name = held_out_name(name, target)
        if name is not None and value is not None:
            figures[f"{VALIDATION}/{name}"] = float(value)
    for task, report in reports.items():
        parts = {"": report.get("figures", {})}
        parts.update({f" [{who}]": values for who, values in report.get("controls", {}).items()})
        for suffix, values in parts.items():
            figures.update(
                {f"{task}{suffix}/{name}": float(value) for name, value in values.items() if value is not None}
            )
    return figures


def held_out_name(name: str, mnm_target: str) -> str | None:
    """The name of a figure of `run_pretraining.py` whatever the objective; None for one that compares nothing.

    `mnm_accuracy` is of relations or of tails, by `mnm_target`; here it is `relation_accuracy` or `tail_accuracy`.
    """
    name = name.removeprefix("eval_")
    if name.startswith("mlm_") and "_count" not in name:
        return name
    for prefix, kind in (("mnm_relation_", "relation_"), ("mnm_tail_", "tail_")):
        if name.startswith(prefix) and "_count" not in name:
            return kind + name.removeprefix(prefix)
    if name.startswith("mnm_") and "_count" not in name and mnm_target in ("relation", "tail"):
        return f"{mnm_target}_{name.removeprefix('mnm_')}"
    return None


def _count_of(summary: dict, figure: str) -> int | None:
    """How many tokens or facts a figure of `run_pretraining.py` is a mean over."""
    held_out, target = summary["held_out"], summary["arguments"]["model"]["mnm_target"]
    kind, _, rest = figure.partition("_")
    suffix = next((item for item in ("_not_in_leaf", "_in_leaf", "_invisible", "_visible") if rest.endswith(item)), "")
    prefix = "mlm" if kind == "mlm" else "mnm" if kind == target else f"mnm_{kind}"
    return held_out.get(f"{prefix}_count{suffix}")
