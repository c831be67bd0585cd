"""Ablations: settings and rows, which run is which, and a driver that goes on where it was stopped."""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ablation_runs import ROWS, SETTING, finish, summary_of, tiny_runs, write_setting

from graphmert.ablations.__main__ import main
from graphmert.ablations.driver import Driver, DriverArguments, Pace, _claimed, format_plan, plan
from graphmert.ablations.matching import adopt, differences, identity_of_run, identity_of_summary
from graphmert.ablations.settings import options_of, read_setting, runs_of, write_config
from graphmert.ablations.step_time import steps_in_the_same_time

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "ablations"
# Trains nothing: leaves the summary that the test laid ready, or fails, or takes its time.
TRAINER = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1]).parent
with (run / "calls").open("a") as file:
    file.write(" ".join(sys.argv[2:]) + "\\n")
print("training  step      1/4  loss 1.0", flush=True)
if (run / "fail").exists():
    sys.exit("run_pretraining.py: error: it broke")
while (run / "wait").exists():
    time.sleep(0.05)
(run / "model").mkdir(exist_ok=True)
(run / "model" / "summary.json").write_text((run / "ready.json").read_text())
"""
# Reports that name their task; the one called `broken` takes the others with it.
TASKS = """
import json, pathlib, sys
import numpy
names = []
while not sys.argv[1].startswith("-"):
    names.append(sys.argv.pop(1))
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
sys.argv.remove("--save-examples")
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
(output.parent / "training").write_text(options["--training-dataset"])
(output.parent / "cache").write_text(options["--cache-dir"])
with (output.parent / "calls").open("a") as file:
    file.write(" ".join(names + sys.argv[sys.argv.index("--output") + 2:]) + "\\n")
if "broken" in names:
    sys.exit("cannot")
for name in names:
    numpy.savez(output.with_suffix(f".{name}.npz"), figure=numpy.ones(2))
reports = {name: {"figures": {"accuracy": 0.5}, "counts": {}} for name in names}
output.write_text(json.dumps({"dataset": {"path": "x", "sha256": "y"}, "tasks": reports}))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A setting whose runs are done by stubs: setting, runs, a function that does what is left, dataset."""
    monkeypatch.setattr("graphmert.ablations.driver.installed_tasks", lambda: ["first", "second", "broken"])
    setting, runs, dataset = tiny_runs(tmp_path)
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "tasks.py").write_text(TASKS)
    for run in runs:
        (run.directory / "ready.json").write_text(json.dumps(summary_of(run, dataset, mlm_loss=5.0), default=str))

    def driver(tasks=(), jobs=2):
        arguments = DriverArguments(dataset, dataset, jobs, 1, list(tasks))
        states = plan(setting, runs, arguments)
        driver = Driver(setting, states, arguments, say=lambda line: None)
        driver.training_command = [sys.executable, str(tmp_path / "trainer.py")]
        driver.tasks_command = [sys.executable, str(tmp_path / "tasks.py")]
        return driver

    return setting, runs, driver, dataset


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_runs_are_done_once_and_failures_again(tiny):
    setting, runs, driver, _ = tiny
    (runs[1].directory / "fail").touch()
    failed = driver().execute()
    assert [state.run for state in failed] == [runs[1]] and "it broke" in failed[0].failures[0]
    assert [calls(run.directory) for run in runs] == [["--resume auto"]] * 4
    (runs[1].directory / "fail").unlink()
    again = driver()
    text = format_plan(setting, again.states, {})
    assert "1 of 4 runs to train" in text and text.count("trained") == 3 and "4 steps" in text
    assert again.execute() == []
    assert [len(calls(run.directory)) for run in runs] == [1, 2, 1, 1]
    assert driver().execute() == [] and [len(calls(run.directory)) for run in runs] == [1, 2, 1, 1]


def test_tasks_may_count_in_another_corpus(tiny, tmp_path):
    _, runs, driver, dataset = tiny
    first, second = driver(["first"]), driver(["second"])
    second.arguments.training_dataset = tmp_path / "annotated"
    for each, expected in ((first, dataset), (second, tmp_path / "annotated")):
        assert each.execute() == []
        assert {(run.directory / "tasks" / "training").read_text() for run in runs} == {str(expected)}
    # What is counted there is kept for all runs together.
    (kept,) = {(run.directory / "tasks" / "cache").read_text() for run in runs}
    assert all(Path(kept).parent in run.directory.parents for run in runs)


def test_a_task_with_another_value_of_a_common_option_runs_by_itself(tiny):
    setting, runs, driver, _ = tiny
    setting.tasks.update({"first": {"max_examples": 9, "pool_size": 3}, "second": {"pool_size": 4}})
    object.__setattr__(setting, "task_arguments", {"max_examples": 7})
    assert driver(["first", "second"]).execute() == []
    assert calls(runs[0].directory / "tasks") == [
        "first --max-examples 9 --pool-size 3 --num-threads 1",
        "second --max-examples 7 --pool-size 4 --num-threads 1",
    ]


def test_reports_are_kept_one_by_one(tiny):
    setting, runs, driver, _ = tiny
    setting.tasks["first"] = {"pool_size": 9, "search_masks": ["a", "b"]}
    object.__setattr__(setting, "task_arguments", {"max_examples": 7})
    failed = driver(["first", "broken", "second"]).execute()
    folder = runs[0].directory / "tasks"
    assert len(failed) == 4 and "no report of broken" in failed[0].failures[0] and len(failed[0].failures) == 1
    common = "--max-examples 7 --pool-size 9 --search-masks a b --num-threads 1"
    # All at once, then one by one since one of them cannot be done.
    assert calls(folder) == [
        f"first broken second {common}",
        f"first {common}",
        *[f"{name} --max-examples 7 --num-threads 1" for name in ("broken", "second")],
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "cache",
        "calls",
        "first.json",
        "first.npz",
        "log.txt",
        "second.json",
        "second.npz",
        "training",
    ]
    report = json.loads((folder / "first.json").read_text())
    assert report["figures"] == {"accuracy": 0.5} and report["dataset"]["sha256"] == "y" and "tasks" not in report
    assert np.load(folder / "first.npz")["figure"].tolist() == [1, 1]
    states = driver(["first", "second"]).states
    assert all(not state.train and not state.tasks for state in states)


def test_stopping_ends_the_children_and_the_next_driver_goes_on(tiny):
    _, runs, driver, _ = tiny
    for run in runs:
        (run.directory / "wait").touch()
    first = driver()
    thread = threading.Thread(target=first.execute)
    thread.start()
    deadline = time.monotonic() + 60
    while len(first._children) < 2 or not all((run.directory / "calls").exists() for run in runs[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Two drivers never train the same run.
    busy = driver(jobs=4)
    busy.states = busy.states[:1]
    assert "another process works on it" in busy.execute()[0].failures
    children = [child.pid for child in first._children]
    first.stop()
    thread.join(60)
    assert not thread.is_alive() and len(children) == 2
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for run in runs:
        (run.directory / "wait").unlink()
    assert driver().execute() == []


def test_a_run_stays_claimed_while_its_child_lives(tiny):
    """A driver that is killed leaves its children behind; the next one must not train beside them."""
    _, runs, driver, _ = tiny
    folder = runs[0].directory
    (folder / "wait").touch()
    command = [
        sys.executable,
        "-c",
        f"import os, time\nwhile os.path.exists({str(folder / 'wait')!r}): time.sleep(0.05)",
    ]
    first = driver()
    with _claimed(folder) as claim:
        thread = threading.Thread(target=first._run, args=(command, folder / "log.txt", claim))
        thread.start()
        while not first._children:
            time.sleep(0.05)
    # The driver's own claim is gone, as if it had been killed.
    with _claimed(folder) as claim:
        assert claim is None
    (folder / "wait").unlink()
    thread.join(60)
    with _claimed(folder) as claim:
        assert claim is not None


def test_a_dry_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("graphmert.chain_graphs.load_chain_graphs", lambda directory: None)
    setting = write_setting(tmp_path / "conf")
    _, runs, dataset = tiny_runs(tmp_path)
    elsewhere = finish(runs[0], dataset, tmp_path / "elsewhere")
    command = [
        "--config",
        str(setting),
        "--dataset",
        str(dataset),
        "--output",
        str(tmp_path / "new"),
        "--tasks",
        "none",
    ]
    assert main([*command, "--dry-run", "--adopt", str(elsewhere)]) == 0
    printed = capsys.readouterr().out
    assert "adopted as graph_off, seed 0" in printed and "4 of 4 runs to train" in printed
    assert not (tmp_path / "new").exists()
    # What is planned is checked all the same.
    with (tmp_path / "conf" / "rows" / "full.yaml").open("a") as file:
        file.write("training: {hidden: 3}\n")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--dry-run"])
    assert stop.value.code == 2 and not (tmp_path / "new").exists()
    assert (
        f"unknown option 'hidden' in {tmp_path / 'new' / 'full' / 'seed-0' / 'config.yaml'}" in capsys.readouterr().err
    )


def test_another_run_in_the_directory_is_refused(tiny):
    _, runs, driver, dataset = tiny
    summary = summary_of(runs[0], dataset)
    summary["arguments"]["training"]["learning_rate"] = 0.1
    (runs[0].directory / "model").mkdir()
    (runs[0].directory / "model" / "summary.json").write_text(json.dumps(summary, default=str))
    with pytest.raises(
        ValueError, match=r"holds another run: learning_rate is 0.1 and not 0.0004; choose another --output"
    ):
        driver()


def test_pace_of_the_runs():
    pace = Pace()
    _, run, other = object(), *[type("Run", (), {"name": name, "options": {"max_steps": 100}})() for name in "ab"]
    assert pace.seconds_left([run], 1) is None
    pace.note("a", "training  step      1/100  loss 3\nheld out  step 1/100", 10.0)
    assert pace.seconds_left([run], 1) is None
    pace.note("a", "training  step      1/100  loss 3\ntraining  step     51/100  loss 2", 35.0)
    # Half a second for a step: 49 steps are left of one run, 100 of the other.
    assert pace.seconds_left([run, other], 1) == pytest.approx(0.5 * 149)
    pace.note("a", "training  step     51/100  loss 2", 99.0)
    assert pace.seconds_left([run, other], 2) == pytest.approx(0.5 * 149 / 2)
    pace.note("b", "training  step  1,000/2,000", 99.0)
    assert pace.seconds_left([other], 1) == pytest.approx(0.5 * 1000)


# ---- which run is which


def test_runs_are_told_apart_by_what_decides_their_figures(tmp_path):
    _, runs, dataset = tiny_runs(tmp_path)
    off, full = runs[:2]
    summary = summary_of(full, dataset)
    wanted = identity_of_run(full, dataset)
    assert identity_of_summary(summary) == wanted
    # What changes no figure, and options that did not exist then.
    summary["arguments"]["model"]["attn_implementation"] = "sdpa"
    summary["arguments"]["training"]["logging_steps"] = 7
    del summary["arguments"]["model"]["hgat_init"], summary["arguments"]["data"]["exclude_relations"]
    # The order of the whole graph is its own order.
    summary["arguments"]["data"]["order_leaves_per_root"] = None
    assert identity_of_summary(summary) == wanted
    # Before heads could have bases of their own, the base was a number.
    one = replace(full, options={**full.options, "decay_base": 0.6})
    summary["arguments"]["model"]["decay_base"] = 0.6
    assert identity_of_summary(summary) == identity_of_run(one, dataset)
    summary["arguments"]["model"]["decay_base"] = [0.1, 1.0]
    # Before the weights could move they stayed.
    del summary["arguments"]["training"]["final_mnm_weight"]
    assert differences(wanted, identity_of_summary(summary)) == {"final_mnm_weight": (0, 0.4)}
    for constant in (None, 0.4):
        other = replace(full, options={**full.options, "final_mnm_weight": constant})
        assert identity_of_summary(summary) == identity_of_run(other, dataset)
    summary["arguments"]["training"]["final_mnm_weight"] = 0.0
    summary["arguments"]["model"]["hgat_init"] = "normal"
    assert differences(wanted, identity_of_summary(summary)) == {"hgat_init": ("zeros", "normal")}
    # Without leaves nothing reads the options of leaves.
    bare = summary_of(off, dataset)
    bare["arguments"]["model"].update(use_hgat=False, mnm_target="tail")
    assert identity_of_summary(bare) == identity_of_run(off, dataset)
    bare["arguments"]["data"]["order_leaves_per_root"] = None
    assert set(differences(identity_of_run(off, dataset), identity_of_summary(bare))) == {"order_leaves_per_root"}
    with pytest.raises(ValueError, match="not the summary of a pretraining run"):
        identity_of_summary({"arguments": {}})


def test_finished_runs_are_adopted(tmp_path):
    _, runs, dataset = tiny_runs(tmp_path, ["graph_off", "full", "both"], [0, 1])
    elsewhere = tmp_path / "elsewhere"
    for run in (runs[1], runs[5]):
        finish(run, dataset, elsewhere / run.row.name / str(run.seed) if run.seed else elsewhere / "full-0")
    near = finish(runs[3], dataset, elsewhere / "off-1")
    summary = json.loads((near / "summary.json").read_text())
    summary["arguments"]["data"]["order_leaves_per_root"] = None
    (near / "summary.json").write_text(json.dumps(summary))
    lines = adopt(runs, [elsewhere, elsewhere / "both" / "1"], dataset, set())
    assert len(lines) == 3 and lines[0].endswith("full-0: adopted as full, seed 0")
    assert "off-1: not adopted; nearest is graph_off, seed 1, but order_leaves_per_root is None and not 3" in lines[1]
    assert lines[2].endswith("adopted as both, seed 1")
    assert runs[1].summary is not None and runs[1].adopted["differences"] == {} and runs[3].adopted is None
    assert "already adopted as full, seed 0" in adopt(runs, [elsewhere], dataset, set(), dry_run=True)[0]
    [_, line] = adopt(runs, [elsewhere], dataset, {"order_leaves_per_root"})
    assert "adopted as graph_off, seed 1 although order_leaves_per_root is None" in line
    assert runs[3].adopted["differences"] == {"order_leaves_per_root": {"wanted": 3, "found": None}}
    (dataset / "manifest.json").write_text('{"other": 1}')
    other = finish(runs[2], dataset, tmp_path / "again")
    (dataset / "manifest.json").write_text("{}")
    assert "not adopted" in adopt(runs, [other], dataset, set())[0]
    with pytest.raises(ValueError, match="no finished run there"):
        adopt(runs, [tmp_path / "conf"], dataset, set())


def test_steps_in_the_same_time(tmp_path, monkeypatch):
    setting, _, dataset = tiny_runs(tmp_path, ["full", "longer"])
    measured = []
    monkeypatch.setattr("graphmert.ablations.step_time.measure", lambda runs, *rest: measured.append(runs) or 0.64)
    arguments = (setting, tmp_path / "conf" / "rows", tmp_path / "runs", dataset, 1)
    assert steps_in_the_same_time(*arguments, only_known=True) == {} and not measured
    assert steps_in_the_same_time(*arguments) == {"longer": 6}
    assert [run.row.name for run in measured[0]] == ["longer", "full"]
    assert steps_in_the_same_time(*arguments) == {"longer": 6} and len(measured) == 1
    steps = {run.row.name: run.options["max_steps"] for run in runs_of(setting, tmp_path / "runs", {"longer": 6})}
    assert steps == {"full": 4, "longer": 6}


# ---- files


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_shipped_settings_are_valid(name, tmp_path):
    assert len(read_setting(CONFIGS / f"{name}.yaml").seeds) >= 3
    setting = read_setting(CONFIGS / f"{name}.yaml", seeds=[0])
    assert {setting.baseline, setting.recipe} <= set(setting.rows) and setting.description
    assert set(setting.headline["rows"]) <= set(setting.rows)
    rows = []
    for run in runs_of(setting, tmp_path):
        identity = identity_of_run(run, "data/training")
        rows.append({**identity, "same_time_as": run.row.same_time_as, "tasks": run.row.tasks})
    # No two rows of the table are the same run.
    assert all(rows[i] != rows[k] for i in range(len(rows)) for k in range(i))


@pytest.mark.parametrize("name", ["small", "codebert"])
def test_shipped_rows_change_something(name, tmp_path):
    every = read_setting(
        CONFIGS / f"{name}.yaml", rows=sorted(path.stem for path in (CONFIGS / "rows").glob("*.yaml")), seeds=[0]
    )
    for run in runs_of(every, tmp_path):
        write_config(run, "data/training", 1)
    for row in every.rows.values():
        same = {
            name for name, value in row.training.items() if options_of(every, every.rows["full"]).get(name) == value
        }
        assert row.description.endswith("."), row.name
        assert (
            not same
            or row.name in ("mnm_relation", "masked_span_drop", "mnm_015", "leaf_at_slot", "constant_weights")
            or row.name == "decay_only_bias"
            or "graph_off" in row.name
            or "facts_first" in row.name
        ), row.name


def test_mistakes_in_settings_are_named(tmp_path, capsys):
    path = write_setting(tmp_path)

    def error(*arguments, setting=SETTING, row=None):
        path.write_text(setting)
        for name, text in ROWS.items():
            (tmp_path / "rows" / f"{name}.yaml").write_text(row if row and name == "full" else text)
        command = ["--config", str(path), "--dataset", str(tmp_path), "--output", str(tmp_path / "out"), *arguments]
        try:
            status = main(command)
        except SystemExit as stop:
            status = stop.code
        lines = capsys.readouterr().err.splitlines()
        assert status == 2 and len(lines) == 1, lines
        return lines[0]

    assert "there is no row 'none'" in error("--rows", "none")
    assert "row 'full' is named twice" in error("--rows", "full,full")
    assert "expected whole numbers" in error("--seeds", "a")
    assert "expected a number of at least 1" in error("--jobs", "0")
    assert "unknown key 'row'" in error(setting=SETTING + "row: 1\n")
    assert "is not valid YAML" in error(setting="a: [")
    assert "seed in" in error(setting=SETTING + "  seed: 1\n")
    assert "has no description" in error(row="training: {}\n")
    assert "which is no row" in error(row="description: x\nsame_time_as: none\n")
    assert "none.yaml: No such file" in error(setting="extends: none.yaml\n")
    assert "extends another setting itself" in error(setting="extends: tiny.yaml\n")
    listed = SETTING.replace("rows: [graph_off, full]", "{}").replace("seeds: [0, 1]", "")
    for line, message in (
        ("seeds: 3", "seeds in {} must be a list of whole numbers from 0 on, got 3"),
        ("seeds: 0", "seeds in {} must be a list of whole numbers from 0 on, got 0"),
        ("seeds: [a]", "seeds in {} must be a list of whole numbers from 0 on, got ['a']"),
        ("seeds: [-1]", "seeds in {} must be a list of whole numbers"),
        ("rows: 5", "rows in {} must be a list of names, got 5"),
        ("rows: full", "rows in {} must be a list of names, got 'full'"),
        ("rows: [{a: 1}]", "rows in {} must be a list of names"),
        ("headline: {rows: full}", "rows of headline in {} must be a list of names, got 'full'"),
        ("tasks: {code_search: 5}", "code_search of tasks in {} must hold options with their values, got 5"),
        ("recipe: 5", "recipe in {} must be text, got 5"),
        # YAML's way of writing False.
        ("recipe: off", "recipe in {} must be text, got False"),
        ("extends: 5", "extends in {} must be text, got 5"),
    ):
        assert message.format(path) in error(setting=listed.replace("{}", line))
    assert "description in" in error(row="description: 5\n") and "must be text, got 5" in error(row="description: 5\n")
    assert "same_time_as in" in error(row="description: x\nsame_time_as: [a]\n")
    assert "is not a chain-graph dataset" in error()
    assert "cannot read" in error("--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["--config", "x", "--dataset", "x", "--output", "x"], "stopped; the same command goes on"),
        (["report", "--config", "x", "--runs", "x", "--record", "x"], "stopped"),
    ],
)
def test_stopped_from_the_keyboard(command, what, capsys, monkeypatch):
    def read_setting(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphmert.ablations.settings.read_setting", read_setting)
    assert main(command) == 130
    assert capsys.readouterr().err == f"python -m graphmert.ablations: {what}\n"


def test_a_setting_extends_another(tmp_path):
    base = read_setting(
        write_setting(tmp_path, SETTING + "tasks: {first: {a: 1}, second: {}}\ntask_arguments: {b: 2}\n")
    )
    path = tmp_path / "variant.yaml"
    path.write_text(
        "extends: tiny.yaml\ndescription: Longer.\nrows: [full, both]\ntraining: {max_steps: 8, decay_mode: bias}\n"
        "tasks: {first: {c: 3}}\n"
    )
    found = read_setting(path)
    assert (found.name, found.description, list(found.rows)) == ("variant", "Longer.", ["full", "both"])
    assert found.training == {**base.training, "max_steps": 8, "decay_mode": "bias"}
    assert found.tasks == {"first": {"c": 3}, "second": {}}
    assert (found.seeds, found.baseline, found.task_arguments) == (base.seeds, base.baseline, {"b": 2})


def test_an_option_that_pretraining_does_not_know_is_named(tmp_path, capsys):
    setting, _, dataset = tiny_runs(tmp_path, ["full"], [0])
    setting.rows["full"].training["hidden"] = 3
    with pytest.raises(SystemExit) as stop:
        write_config(runs_of(setting, tmp_path / "runs")[0], dataset, None)
    assert stop.value.code == 2 and "unknown option 'hidden' in" in capsys.readouterr().err


def test_tasks_need_a_corpus_and_must_exist(tiny):
    setting, runs, _, dataset = tiny
    with pytest.raises(ValueError, match="give --heldout DIR"):
        plan(setting, runs, DriverArguments(dataset, None))
    with pytest.raises(ValueError, match="there is no task 'third'; there are first, second, broken"):
        plan(setting, runs, DriverArguments(dataset, dataset, tasks=["third"]))
    assert plan(setting, runs, DriverArguments(dataset, dataset))[0].tasks == ["first", "second", "broken"]
