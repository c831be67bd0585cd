"""From runs to figures: what `run.json` of a record holds."""

from collections.abc import Iterable
from dataclasses import asdict

from tqdm.auto import tqdm

from .collect import VALIDATION, Result
from .examples import stack
from .settings import Setting
from .statistics import BOOTSTRAP, CONFIDENCE, bootstrap_interval, compare, higher_is_better, mean_and_deviation

_DEFAULT_HEADLINE = ("mlm_loss", "relation_accuracy", "relation_macro_f1", "tail_accuracy")


def metrics_of(results: Iterable[Result]) -> list[str]:
    """All metrics that any run has, in the order in which they appear."""
    return list(dict.fromkeys(name for result in results for name in result.figures))


def headline_metrics(setting: Setting, metrics: list[str]) -> list[str]:
    """The setting's headline metrics as far as there are any, after those of the training's own held-out projects."""
    wanted = [f"{VALIDATION}/{name}" for name in _DEFAULT_HEADLINE] + list(setting.headline.get("metrics") or [])
    return [name for name in dict.fromkeys(wanted) if name in metrics]


def analyse(setting: Setting, results: list[Result], resamples: int) -> dict:
    """Every metric of every row, with paired differences.

    Args:
        setting: rows, baseline, headline.
        results: of `collect`.
        resamples: of the bootstrap, which is made for headline metrics.

    Returns:
        `metrics`: metric -> `higher_is_better`, `against` (the row that the others are compared to: the baseline, or the
        recipe where the baseline has no such figure), `rows`: row -> `values` by seed, `mean`, `deviation`, `difference`,
        `comparable` (whether it was judged on the same examples; if not, there is no difference).
        `controls`: headline metric -> row -> control -> `mean`, `deviation`, and the differences of the figure before the
        changed input `to_model` (the same checkpoints before their own input) and `to_baseline` (the baseline row's
        checkpoints). `baselines`: task -> method -> figures. `headline`: `metrics` and `rows`.
    """
    metrics = metrics_of(results)
    headline = headline_metrics(setting, metrics)
    by_row: dict[str, list[Result]] = {name: [] for name in setting.rows}
    for result in results:
        by_row[result.run.row.name].append(result)
    by_row = {name: found for name, found in by_row.items() if found}
    analysed = {}
    for metric in tqdm(metrics, desc="comparing rows", disable=None, leave=False):
        values = {
            name: {result.run.seed: result.figures[metric] for result in found if metric in result.figures}
            for name, found in by_row.items()
        }
        against = next((name for name in (setting.baseline, setting.recipe) if values.get(name)), None)
        rows = {}
        for name, by_seed in values.items():
            if not by_seed:
                continue
            mean, deviation = mean_and_deviation(list(by_seed.values()))
            difference, comparable = None, True
            if against is not None and name != against:
                pairs = _pairs(by_row[name], by_row[against])
                comparable = all(mine.judged_like(yours, metric) for mine, yours in pairs)
            if against is not None and name != against and comparable:
                interval = None
                if metric in headline:
                    interval = _bootstrap(pairs, metric, resamples)
                difference = compare(by_seed, values[against], higher_is_better(metric), interval)
            rows[name] = {
                "values": {str(seed): value for seed, value in by_seed.items()},
                "mean": mean,
                "deviation": deviation,
                "difference": None if difference is None else difference.as_json(),
                "comparable": comparable,
            }
        analysed[metric] = {"higher_is_better": higher_is_better(metric), "against": against, "rows": rows}
    return {
        "metrics": analysed,
        "controls": {metric: _controls(metric, analysed) for metric in headline},
        "baselines": _baselines(by_row, setting),
        "headline": {
            "metrics": headline,
            "rows": [name for name in setting.headline.get("rows") or list(by_row) if name in by_row],
        },
        "intervals": {
            "confidence": CONFIDENCE,
            "t": "Student's t over seeds",
            "bootstrap": BOOTSTRAP,
            "resamples": resamples,
        },
    }


def _pairs(ours: list[Result], theirs: list[Result]) -> list[tuple[Result, Result]]:
    """Runs with the same seed."""
    other = {result.run.seed: result for result in theirs}
    return [(result, other[result.run.seed]) for result in ours if result.run.seed in other]


def _bootstrap(pairs: list[tuple[Result, Result]], metric: str, resamples: int) -> tuple[float, float] | None:
    """Interval over seeds and examples, None where a run kept no examples or they are not the same ones."""
    parts = [(mine.examples(metric), yours.examples(metric)) for mine, yours in pairs]
    if not parts or any(part is None for pair in parts for part in pair):
        return None
    stacked = stack([mine for mine, _ in parts] + [yours for _, yours in parts])
    if stacked is None or 0 in stacked.shape:
        return None
    return bootstrap_interval(stacked[: len(parts)], stacked[len(parts) :], parts[0][0].figure, resamples)


def _controls(metric: str, analysed: dict) -> dict:
    """What the figure is, in each row, when the input of the same checkpoints is changed."""
    task, figure = metric.rsplit("/", 1)
    found: dict[str, dict] = {}
    for name, values in analysed.items():
        if not name.startswith(f"{task} [") or name.rsplit("/", 1)[1] != figure:
            continue
        control = name.rsplit("/", 1)[0].removeprefix(f"{task} [").removesuffix("]")
        for row, changed in values["rows"].items():
            model = analysed[metric]["rows"].get(row)
            if model is not None:
                pair = ({int(seed): value for seed, value in item["values"].items()} for item in (changed, model))
                to_model, to_baseline = compare(*pair, values["higher_is_better"]), None
                against = analysed[metric]["against"]
                if against not in (None, row) and model["comparable"]:
                    baseline = analysed[metric]["rows"][against]
                    pair = (
                        {int(seed): value for seed, value in item["values"].items()} for item in (changed, baseline)
                    )
                    to_baseline = compare(*pair, values["higher_is_better"])
                found.setdefault(row, {})[control] = {
                    "mean": changed["mean"],
                    "deviation": changed["deviation"],
                    "to_model": None if to_model is None else to_model.as_json(),
                    "to_baseline": None if to_baseline is None else to_baseline.as_json(),
                }
    return found


def _baselines(by_row: dict[str, list[Result]], setting: Setting) -> dict:
    """What trivial methods reach, from the recipe's runs where it has the task."""
    order = [name for name in (setting.recipe, setting.baseline, *by_row) if name in by_row]
    found: dict[str, dict] = {}
    for name in order:
        for result in by_row[name]:
            for task, report in result.reports.items():
                if report.get("baselines"):
                    found.setdefault(task, report["baselines"])
            lookups = result.summary.get("lookups") or {}
            methods = {
                method: {
                    f"relation_{figure}": value for figure, value in figures.items() if not figure.startswith("num")
                }
                for method, figures in lookups.items()
            }
            unigram = result.summary.get("unigram") or {}
            methods["unigram"] = {f"mlm_{key}": value for key, value in unigram.items() if not key.startswith("num")}
            if lookups:
                found.setdefault(VALIDATION, methods)
    return found


def runs_as_json(results: list[Result]) -> list[dict]:
    """What each run was: steps, seconds, parameters, source, what an adopted run differs in, sizes of the tests."""
    runs = []
    for result in results:
        summary, adopted = result.summary, result.run.adopted
        environment = summary.get("environment", {})
        runs.append(
            {
                "row": result.run.row.name,
                "seed": result.run.seed,
                "optimizer_steps": summary["optimizer_steps"],
                "seconds": summary.get("times_s"),
                "parameters": summary["parameters"]["total"],
                "nodes_per_window": summary["windows"]["training"]["nodes_per_window"],
                "git_commit": environment.get("git_commit"),
                "adopted_with_differences": None if adopted is None else adopted["differences"],
                "counts": {
                    task: report["counts"]
                    for task, report in result.reports.items()
                    if report.get("counts") is not None
                },
                "not_applicable": {
                    task: report["not_applicable"]
                    for task, report in result.reports.items()
                    if "not_applicable" in report
                },
            }
        )
    return runs


def setting_as_json(setting: Setting) -> dict:
    """The setting and its rows, whole."""
    return {**asdict(setting), "rows": {name: asdict(row) for name, row in setting.rows.items()}}
