"""Records of ablations and the pages that are written from them."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ablation_runs import finish, tiny_runs, write_setting
from test_run_pretraining import MODULE

from graphmert.ablations.__main__ import main
from graphmert.ablations.collect import held_out_name
from graphmert.ablations.report import write_report
from graphmert.ablations.results import END, with_results, write_results
from graphmert.chain_graphs.build import BuildArguments, build_chain_graphs

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- results:begin -->"
MLM = {0: (6.0, 5.0), 1: (6.2, 5.3), 2: (5.9, 4.8)}


def write_task(run, name, figures, controls=None, baselines=None, sha256="abc", **arrays):
    folder = run.directory / "tasks"
    folder.mkdir(exist_ok=True)
    report = {"figures": figures, "controls": controls or {}, "baselines": baselines or {}, "counts": {"queries": 3}}
    (folder / f"{name}.json").write_text(json.dumps({"dataset": {"path": "/here", "sha256": sha256}, **report}))
    if arrays:
        np.savez(folder / f"{name}.npz", **arrays)


@pytest.fixture
def runs(tmp_path):
    """Finished runs of two rows and three seeds, the second half a nat better, with two tasks."""
    setting, runs, dataset = tiny_runs(tmp_path, ["graph_off", "full"], [0, 1, 2])
    setting.headline.update(metrics=["search/mrr", "tokens/loss"], rows=["graph_off", "full"])
    for run in runs:
        loss = MLM[run.seed][run.row.name == "full"]
        held_out = {"mlm_loss": loss, "mlm_count": 50, "mlm_loss_not_in_leaf": loss, "eval_runtime": 3.0}
        held_out["mlm_count_not_in_leaf"] = 50 if run.row.name == "graph_off" else 30
        if run.row.name == "full":
            held_out.update(mnm_accuracy=0.9, mnm_count=20, mnm_macro_f1=0.8 + run.seed / 100)
        finish(run, dataset, **held_out)
        noise = (-1) ** run.seed * 0.1
        ranks = np.array([0.5, 0.5, 1.0]) + noise * (run.row.name == "full")
        write_task(
            run, "search", {"mrr": ranks.mean()}, baselines={"BM25": {"mrr": 0.4}}, **{"tuned: reciprocal_rank": ranks}
        )
        if run.row.name == "graph_off":
            (run.directory / "tasks" / "facts.json").write_text('{"not_applicable": "no leaves", "dataset": null}')
        else:
            write_task(run, "facts", {"accuracy": 0.7 + run.seed / 10})
        sums = {
            "model: loss": np.full(4, 2 * loss),
            "no leaves: loss": np.full(4, 2 * loss + 1),
            "count": np.full(4, 2),
        }
        write_task(run, "tokens", {"loss": loss}, controls={"no leaves": {"loss": loss + 0.5}}, **sums)
    return setting, runs, tmp_path


def report(runs, **changes):
    setting, _, root = runs
    write_report(setting, root / "runs", root / "records" / "2030-01-01-ablations-tiny", "command", 400)
    return json.loads((root / "records" / "2030-01-01-ablations-tiny" / "run.json").read_text())


def test_record_holds_means_differences_and_intervals(runs):
    run = report(runs)
    found = run["metrics"]["validation/mlm_loss"]["rows"]
    assert found["graph_off"]["mean"] == pytest.approx(np.mean([6.0, 6.2, 5.9]))
    assert found["graph_off"]["deviation"] == pytest.approx(np.std([6.0, 6.2, 5.9], ddof=1))
    difference = found["full"]["difference"]
    assert difference["by_seed"] == pytest.approx({"0": -1.0, "1": -0.9, "2": -1.1})
    assert difference["t_interval"] == pytest.approx([-1 - 0.2484, -1 + 0.2484], abs=1e-3)
    assert difference["verdict"] == "better" and difference["bootstrap_interval"] is None
    # Another metric whose interval holds zero is not claimed; its examples were resampled too.
    search = run["metrics"]["search/mrr"]["rows"]["full"]["difference"]
    assert search["verdict"] == "not shown" and search["bootstrap_interval"][0] < 0 < search["bootstrap_interval"][1]
    assert run["metrics"]["tokens/loss"]["rows"]["full"]["difference"]["verdict"] == "better"
    # Figures that the baseline does not have are compared to the recipe; groups of other tokens to nothing.
    assert run["metrics"]["validation/relation_macro_f1"]["against"] == "full"
    other = run["metrics"]["validation/mlm_loss_not_in_leaf"]["rows"]["full"]
    assert other["difference"] is None and not other["comparable"]
    assert run["metrics"]["facts/accuracy"]["against"] == "full"
    assert run["runs"][0]["not_applicable"] == {"facts": "no leaves"}
    # The same checkpoints without leaves are half a nat worse, whatever the seed.
    control = run["controls"]["tokens/loss"]["full"]["no leaves"]
    assert control["to_model"]["mean"] == pytest.approx(0.5) and control["to_model"]["verdict"] == "worse"
    assert control["to_baseline"]["mean"] == pytest.approx(-0.5) and control["mean"] == pytest.approx(5.5333, abs=1e-4)
    assert run["baselines"]["search"] == {"BM25": {"mrr": 0.4}} and run["missing_runs"] == []
    assert run["corpora"]["held_out"]["search"] == {"sha256": "abc"} and "/here" not in json.dumps(run)
    record = runs[2] / "records" / "2030-01-01-ablations-tiny"
    for name in ("curves.png", "differences.png"):
        assert (record / name).read_bytes().startswith(b"\x89PNG")
    readme = (record / "README.md").read_text()
    assert "| full | 3 | 5.0333 ± 0.2517 | -1.0000 | [-1.2484, -0.7516] | - | better |" in readme
    assert "| *BM25* |  | 0.4000 |" in readme and "full is better than graph_off in validation/mlm_loss" in readme
    assert "not shown" in readme and "search/mrr" in (record / "log.txt").read_text()


def test_figures_that_neither_baseline_nor_recipe_has_are_compared_to_nothing(runs):
    setting, every, root = runs
    for run in every:
        if run.row.name == "full":
            write_task(run, "facts", {"accuracy": 0.7}, controls={"no leaves": {"accuracy": 0.4}})
    setting.headline.update(metrics=["facts/accuracy"])
    run = report((dataclasses.replace(setting, recipe="graph_off"), every, root))
    assert run["metrics"]["facts/accuracy"]["against"] is None
    control = run["controls"]["facts/accuracy"]["full"]["no leaves"]
    assert control["to_baseline"] is None and control["to_model"]["mean"] == pytest.approx(-0.3)
    readme = (root / "records" / "2030-01-01-ablations-tiny" / "README.md").read_text()
    assert "| difference | 95 % over seeds |" in readme and "None" not in readme


def test_a_page_shows_the_figures_that_there_are(runs):
    setting, every, root = runs
    for rows in (["graph_off", "full"], ["full"]):
        report((dataclasses.replace(setting, rows={name: setting.rows[name] for name in rows}), every, root))
        write_results(root)
        page = (root / "docs" / "RESULTS.md").read_text()
        figure = root / "records" / "2030-01-01-ablations-tiny" / "differences.png"
        # With a single row there is no difference to draw.
        assert ("differences.png" in page) == (len(rows) == 2)
        assert figure.is_file() or len(rows) == 1
        figure.unlink(missing_ok=True)


def test_runs_that_are_missing_or_differ_are_named(runs):
    setting, items, _ = runs
    for path in (items[0].directory / "model").iterdir():
        path.unlink()
    adopted = {"directory": str(items[2].directory / "model"), "differences": {"optim": {"wanted": "a", "found": "b"}}}
    (items[2].directory / "adopted.json").write_text(json.dumps(adopted))
    run = report(runs)
    assert run["missing_runs"] == ["graph_off, seed 0"]
    assert set(run["metrics"]["validation/mlm_loss"]["rows"]["full"]["difference"]["by_seed"]) == {"1", "2"}
    readme = (runs[2] / "records" / "2030-01-01-ablations-tiny" / "README.md").read_text()
    assert "Missing runs: graph_off, seed 0." in readme and "- graph_off, seed 1: optim is 'b', wanted 'a'" in readme
    write_task(items[3], "search", {"mrr": 0.5}, sha256="def")
    with pytest.raises(ValueError, match="search was tested on another corpus"):
        report(runs)
    with pytest.raises(ValueError, match="no run of these rows has ended"):
        write_report(setting, runs[2] / "none", runs[2] / "record", "command", 10)


def test_pages_follow_the_records(runs, capsys):
    root = runs[2]
    report(runs)
    (root / "README.md").write_text(f"# Project\n\n{BEGIN}\nstale\n{END}\n\nrest\n")
    assert main(["results", "--root", str(root), "--check"]) == 1
    assert "README.md is out of date" in capsys.readouterr().out and "stale" in (root / "README.md").read_text()
    assert main(["results", "--root", str(root)]) == 0 and main(["results", "--root", str(root), "--check"]) == 0
    readme, page = (root / "README.md").read_text(), (root / "docs" / "RESULTS.md").read_text()
    row = "| validation/mlm_loss (lower is better) | 6.0333 ± 0.1528 | **5.0333 ± 0.2517** (better) |"
    assert row in readme and row in page and readme.endswith(f"{END}\n\nrest\n") and "stale" not in readme
    assert "../records/2030-01-01-ablations-tiny/differences.png" in page and "| *BM25* |" in page
    assert (
        "| full | no leaves | 5.5333 ± 0.2517 | +0.5000 [+0.5000, +0.5000] worse | -0.5000 [-0.7484, -0.2516] better |"
        in page
    )
    # A newer record of the same setting takes its place.
    old, new = (root / "records" / f"{year}-01-01-ablations-tiny" for year in (2030, 2031))
    new.mkdir()
    text = (old / "run.json").read_text().replace('"mean": 5.0333', '"mean": 4.0333')
    (new / "run.json").write_text(text)
    assert write_results(root) and "**4.0333" in (root / "README.md").read_text()
    assert "[2030-01-01-ablations-tiny]" in (root / "docs" / "RESULTS.md").read_text()
    # Of another setting the README has no table, but a link to it.
    other = root / "records" / "2029-01-01-ablations-other"
    other.mkdir()
    run = json.loads((old / "run.json").read_text())
    run["setting"]["name"] = "other"
    (other / "run.json").write_text(json.dumps(run))
    write_results(root)
    readme = (root / "README.md").read_text()
    assert (
        readme.count("Setting `") == 1 and "The tables of other settings: [`other`](docs/RESULTS.md#other)." in readme
    )
    assert "## other\n" in (root / "docs" / "RESULTS.md").read_text()
    # Unless its marker asks for that one, however old.
    chosen = readme.replace(BEGIN, "<!-- results:begin other -->")
    (root / "README.md").write_text(chosen)
    assert write_results(root) == [root / "README.md"] and write_results(root) == []
    readme = (root / "README.md").read_text()
    assert "Setting `other`, 3 seeds" in readme and "of other settings: [`tiny`](docs/RESULTS.md#tiny)." in readme
    assert readme.startswith("# Project\n\n<!-- results:begin other -->\n")
    (root / "README.md").write_text(chosen.replace("begin other", "begin gone"))
    assert main(["results", "--root", str(root)]) == 2
    assert "asks for the results of gone; there are records of tiny, other" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_root_without_records_is_refused(tmp_path, capsys, options):
    assert main(["results", "--root", str(tmp_path / "nowhere"), *options]) == 2
    assert "nowhere has no records/; --root is the directory that holds it" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_markers_must_be_a_pair():
    assert with_results("no markers", []) == "no markers"
    assert "No record of ablations yet." in with_results(f"{BEGIN}{END}", [])
    for text in (BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(ValueError, match=r"README.md needs"):
            with_results(text, [])


def test_pages_of_this_repository_are_up_to_date():
    """If this fails: python -m graphmert.ablations results."""
    assert write_results(ROOT, write=False) == []


def test_one_name_for_a_figure_whatever_the_objective():
    names = [
        held_out_name(*item)
        for item in (
            ("eval_mnm_accuracy", "relation"),
            ("mnm_accuracy", "tail"),
            ("mnm_relation_accuracy_visible", "both"),
            ("mnm_tail_loss", "both"),
            ("mlm_loss", "tail"),
            ("mnm_count", "relation"),
            ("runtime", "tail"),
            ("mnm_loss", "both"),
        )
    ]
    assert names == [
        "relation_accuracy",
        "tail_accuracy",
        "relation_accuracy_visible",
        "tail_loss",
        "mlm_loss",
        None,
        None,
        None,
    ]


def test_from_corpus_to_record(tmp_path, capsys):
    """Two rows trained by the program itself, once; the second call trains nothing."""
    for name in ("Reader", "Writer", "Parser", "Loader"):
        (tmp_path / "code" / name.lower()).mkdir(parents=True)
        (tmp_path / "code" / name.lower() / "code.py").write_text(MODULE.format(name=name, low=name.lower()))
    build_chain_graphs(
        BuildArguments(
            source=[f"dir:{tmp_path / 'code'},project=children"],
            output=str(tmp_path / "data"),
            validation_fraction=0.34,
            vocab_size=400,
        )
    )
    common = ["--config", str(write_setting(tmp_path)), "--seeds", "0"]
    command = [*common, "--dataset", str(tmp_path / "data"), "--output", str(tmp_path / "runs"), "--tasks", "none"]
    assert main([*command, "--jobs", "2", "--num-threads", "1"]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert "2 of 2 runs to train" in printed and "full, seed 0: done" in printed
    assert main([*command, "--dry-run", "--num-threads", "1"]) == 0
    assert "0 of 2 runs to train" in capsys.readouterr().out
    assert main(["report", *common, "--runs", str(tmp_path / "runs"), "--record", str(tmp_path / "record")]) == 0
    run = json.loads((tmp_path / "record" / "run.json").read_text())
    rows = run["metrics"]["validation/mlm_loss"]["rows"]
    assert 4 < rows["graph_off"]["mean"] < 8 and rows["full"]["difference"]["t_interval"] is None
    assert "relation_accuracy" in run["baselines"]["validation"]["majority"]
    assert sys.executable not in json.dumps(run)
