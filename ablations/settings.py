"""A setting and its rows: what is trained, on what, with which seeds.

A setting is a YAML file: options of `run_pretraining.py` that all rows share, the tasks that judge a checkpoint, and the
rows. It may say of which other setting it is a variant (`extends`). A row is a YAML file in the folder `rows` beside it:
what it changes, and why.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..pretraining_arguments import parse_arguments

ROWS_DIR = "rows"
CONFIG_NAME = "config.yaml"
_SETTING_KEYS = {
    "extends",
    "description",
    "baseline",
    "recipe",
    "rows",
    "seeds",
    "training",
    "tasks",
    "task_arguments",
    "headline",
}
_TEXT_KEYS = ("extends", "description", "baseline", "recipe", "same_time_as")
# Of a setting that extends another, laid over the other's option by option.
_MERGED_KEYS = ("training", "tasks", "task_arguments")
_ROW_KEYS = {"description", "training", "same_time_as", "tasks"}
# The driver decides these for each run.
_OWN_OPTIONS = ("output_dir", "dataset", "sources", "seed", "data_seed", "num_threads", "resume", "overwrite")


@dataclass(frozen=True)
class Row:
    """One row of the table: what is changed against the setting.

    Attributes:
        name: file name of its YAML.
        description: what it changes, one sentence.
        training: options of `run_pretraining.py` over the setting's.
        same_time_as: row whose training time it is given: its steps are scaled by the measured time of a step.
        tasks: task -> options for this row's checkpoints, over the setting's.
    """

    name: str
    description: str
    training: dict
    same_time_as: str | None = None
    tasks: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        name: file name of its YAML.
        description: a sentence or two for the record.
        training: options of `run_pretraining.py`.
        rows: the chosen rows by name, in order.
        baseline: name of the row that the others are compared to.
        recipe: name of the row that they are compared to in figures that the baseline does not have.
        seeds: one run of each row for each.
        tasks: task -> its options; empty: every task that is installed.
        task_arguments: options common to all tasks; a task's own entry may give it another value.
        headline: `metrics` and `rows` for the short tables.
    """

    name: str
    description: str
    training: dict
    rows: dict[str, Row]
    baseline: str
    recipe: str
    seeds: tuple[int, ...]
    tasks: dict[str, dict] = field(default_factory=dict)
    task_arguments: dict = field(default_factory=dict)
    headline: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training: a row with a seed.

    Attributes:
        row, seed: of the table.
        directory: `OUTPUT/ROW/seed-N`; holds `config.yaml`, `log.txt`, `model/` and `tasks/`.
        options: all options of `run_pretraining.py` but those of `_OWN_OPTIONS`.
    """

    row: Row
    seed: int
    directory: Path
    options: dict

    @property
    def name(self) -> str:
        """For people: row and seed."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def model_dir(self) -> Path:
        """Where the checkpoint is: the run's own, or the adopted run's directory."""
        adopted = self.adopted
        return Path(adopted["directory"]) if adopted else self.directory / "model"

    @property
    def adopted(self) -> dict | None:
        """What was noted when another directory was taken for this run, None if none was."""
        file = self.directory / "adopted.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @property
    def summary(self) -> dict | None:
        """The finished run's `summary.json`, None before its training has ended."""
        file = self.model_dir / "summary.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _read_yaml(path: Path, allowed: set[str]) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold keys with values, among them {', '.join(sorted(allowed))}")
    unknown = sorted(set(map(str, values)) - allowed)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in {path}; known are {', '.join(sorted(allowed))}")
    for name in _TEXT_KEYS:
        if not isinstance(values.get(name), str | None):
            raise ValueError(f"{name} in {path} must be text, got {values[name]!r}")
    for name in ("training", "tasks", "task_arguments", "headline"):
        _check_options(f"{name} in {path}", values.get(name))
    _check_names(f"rows in {path}", values.get("rows"))
    _check_seeds(f"seeds in {path}", values.get("seeds"))
    for name, options in (values.get("tasks") or {}).items():
        _check_options(f"{name} of tasks in {path}", options)
    for name, names in (values.get("headline") or {}).items():
        _check_names(f"{name} of headline in {path}", names)
    own = [name for name in _OWN_OPTIONS if name in (values.get("training") or {})]
    if own:
        raise ValueError(f"{own[0]} in {path} is chosen for each run, take it out of `training`")
    return values


def _check_options(what: str, options) -> None:
    if not isinstance(options, dict | None):
        raise ValueError(f"{what} must hold options with their values, got {options!r}")


def _check_names(what: str, names) -> None:
    if not isinstance(names, list | None) or any(not isinstance(name, str) for name in names or []):
        raise ValueError(f"{what} must be a list of names, got {names!r}")


def _check_seeds(what: str, seeds) -> None:
    if not isinstance(seeds, list | None) or any(type(seed) is not int or seed < 0 for seed in seeds or []):
        raise ValueError(f"{what} must be a list of whole numbers from 0 on, got {seeds!r}")


def read_row(path: str | Path) -> Row:
    """Read a row.

    Args:
        path: its YAML file; keys `description`, `training`, `same_time_as`, `tasks`.

    Raises:
        ValueError: a file that cannot be read, unknown keys, values of another kind, no description.
    """
    path = Path(path)
    values = _read_yaml(path, _ROW_KEYS)
    if not values.get("description"):
        raise ValueError(f"{path} has no description: one sentence on what the row changes")
    return Row(
        name=path.stem,
        description=" ".join(values["description"].split()),
        training=values.get("training") or {},
        same_time_as=values.get("same_time_as"),
        tasks={name: options or {} for name, options in (values.get("tasks") or {}).items()},
    )


def _read_setting_yaml(path: Path) -> dict:
    """A setting's keys; those of the setting that it extends, where it has one, with its own over them.

    `training`, `tasks` and `task_arguments` are laid over each other option by option, other keys whole.
    """
    values = _read_yaml(path, _SETTING_KEYS)
    if not values.get("extends"):
        return values
    other = path.parent / values["extends"]
    base = _read_yaml(other, _SETTING_KEYS)
    if base.get("extends"):
        raise ValueError(f"{path} extends {other}, which extends another setting itself; name that one")
    merged = {name: {**(base.get(name) or {}), **(values.get(name) or {})} for name in _MERGED_KEYS}
    return {**base, **values, **merged}


def read_setting(path: str | Path, rows: list[str] | None = None, seeds: list[int] | None = None) -> Setting:
    """Read a setting and its rows.

    Args:
        path: the setting's YAML file; `extends: OTHER.yaml` in it takes what it does not say from the setting beside it.
        rows: names of rows in place of the file's.
        seeds: in place of the file's.

    Raises:
        ValueError: files that cannot be read, unknown keys, values of another kind, rows that do not exist, a row or seed
            named twice.
    """
    path = Path(path)
    values = _read_setting_yaml(path)
    known = {file.stem: file for file in sorted((path.parent / ROWS_DIR).glob("*.yaml"))}
    names = rows if rows is not None else values.get("rows") or list(known)
    seeds = seeds if seeds is not None else values.get("seeds") or [0, 1, 2]
    _check_seeds("seeds", seeds)
    for what, items in (("row", names), ("seed", seeds)):
        double = [item for i, item in enumerate(items) if item in items[:i]]
        if double or not items:
            raise ValueError(f"{what} {double[0]!r} is named twice" if double else f"give at least one {what}")
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"there is no row {missing[0]!r} in {path.parent / ROWS_DIR}; there are {', '.join(known)}")
    chosen = {name: read_row(known[name]) for name in names}
    for row in chosen.values():
        if row.same_time_as is not None and row.same_time_as not in known:
            raise ValueError(f"row {row.name} wants the time of {row.same_time_as!r}, which is no row")
    return Setting(
        name=path.stem,
        description=" ".join(str(values.get("description") or "").split()),
        training=values.get("training") or {},
        rows=chosen,
        baseline=values.get("baseline") or "graph_off",
        recipe=values.get("recipe") or "full",
        seeds=tuple(seeds),
        tasks={name: options or {} for name, options in (values.get("tasks") or {}).items()},
        task_arguments=values.get("task_arguments") or {},
        headline=values.get("headline") or {},
    )


def options_of(setting: Setting, row: Row) -> dict:
    """All options of a row: the setting's with the row's over them."""
    return {**setting.training, **row.training}


def runs_of(setting: Setting, output: str | Path, num_steps: dict[str, int] | None = None) -> list[Run]:
    """The runs of a setting, seed by seed, so that pairs are complete early.

    Args:
        setting: what to run.
        output: directory that holds all runs.
        num_steps: steps of the rows that have `same_time_as`, by row.
    """
    runs = []
    for seed in setting.seeds:
        for row in setting.rows.values():
            options = options_of(setting, row)
            if num_steps and row.name in num_steps:
                options["max_steps"] = num_steps[row.name]
            runs.append(Run(row, seed, Path(output) / row.name / f"seed-{seed}", options))
    return runs


def config_of(run: Run, dataset: str | Path, num_threads: int | None) -> dict:
    """The whole configuration of a run, as `run_pretraining.py` reads it from a file."""
    config = {**run.options, "dataset": str(dataset), "output_dir": str(run.directory / "model"), "seed": run.seed}
    return config if num_threads is None else {**config, "num_threads": num_threads}


def arguments_of(run: Run, dataset: str | Path, num_threads: int | None) -> tuple:
    """A run's arguments as `run_pretraining.py` takes them (`parse_arguments`); nothing is written.

    Raises:
        SystemExit: an option that `run_pretraining.py` does not know or take (status 2, one line).
    """
    return parse_arguments([], config_of(run, dataset, num_threads), str(run.directory / CONFIG_NAME))


def write_config(run: Run, dataset: str | Path, num_threads: int | None) -> Path:
    """Write a run's `config.yaml`; `python run_pretraining.py FILE` trains it by hand.

    Raises:
        SystemExit: as `arguments_of`.
    """
    arguments_of(run, dataset, num_threads)
    path = run.directory / CONFIG_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# {run.name}: {run.row.description}\n"
    text = yaml.safe_dump(config_of(run, dataset, num_threads), sort_keys=False, allow_unicode=True)
    path.write_text(head + text, encoding="utf-8")
    return path
