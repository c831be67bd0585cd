"""Tables of the training corpus, their probabilities, and the pools of a checkpoint with them."""

import json
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_tasks import LEAVES, checkpoint, context, corpora, scratch

import graphmert.tasks.relation_table as relation_table
import graphmert.tasks.tail_prediction as tail_prediction
import graphmert.tasks.tail_table as tail_table
from graphmert.chain_graphs.back_off import BackOff
from graphmert.chain_graphs.baselines import RELATION_BASELINES, asked_table, facts_table
from graphmert.chain_graphs.windows import canonical_ids
from graphmert.tasks import run_task
from graphmert.tasks.base import TaskArguments, run_tasks
from graphmert.tasks.corpora import TRAINING_SPLIT, Corpus
from graphmert.tasks.relation_prediction import predict_relations
from graphmert.tasks.relation_table import EXPERTS, RelationTable, pooled
from graphmert.tasks.tail_prediction import _opinions_without_copies, count_tails, predict_tails
from graphmert.tasks.tail_table import Opinions


def naive_back_off(counted, asked, keys, target, num_targets, strength, apart=None):
    """p_i = (c_i + s p_{i-1}) / (n_i + s), fact by fact."""
    rows = []
    for question in asked.to_dict("records"):
        shares = [1 / num_targets] * num_targets
        for key in reversed(keys):
            found = Counter(
                fact[target]
                for fact in counted.to_dict("records")
                if all(fact[column] == question[column] for column in key)
                and (apart is None or fact[apart] != question[apart])
            )
            total = sum(found.values())
            shares = [(found[t] + strength * shares[t]) / (total + strength) for t in range(num_targets)]
        rows.append(np.log(shares))
    return np.array(rows)


@pytest.mark.parametrize("strength", [1.0, 0.3, 20.0])
def test_back_off_against_a_naive_loop(strength):
    rng = np.random.default_rng(0)
    # Heads are bytes as in the tables; some questions have keys that were never counted.
    tables = [
        pd.DataFrame(
            {
                "head": [bytes([x]) for x in rng.integers(0, limit, number)],
                "before": rng.integers(0, limit, number),
                "relation": rng.integers(0, 4, number),
            }
        )
        for number, limit in ((60, 3), (25, 5))
    ]
    keys = (("head", "before"), ("head",), ())
    expected = naive_back_off(*tables, keys, "relation", 5, strength)
    found = BackOff.of(*tables, keys, "relation", 5, strength)
    np.testing.assert_allclose(found.log_p(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.log_p()).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.log_p(7, 12), found.log_p()[7:12])
    # Target 4 was never counted, and is not impossible.
    assert np.isfinite(found.log_p()[:, 4]).all()
    # Facts of a question's own file do not count for it.
    for table in tables:
        table["file"] = rng.integers(0, 3, len(table))
    keys = (("head", "before"), ("head",))
    expected = naive_back_off(*tables, keys, "relation", 5, strength, "file")
    found = BackOff.of(*tables, keys, "relation", 5, strength, apart="file")
    np.testing.assert_allclose(found.log_p(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="every key needs a column where facts are counted apart by 'file'"):
        BackOff.of(*tables, (*keys, ()), "relation", 5, apart="file")


def test_back_off_that_counted_nothing_is_uniform():
    asked = pd.DataFrame({"head": [1, 2]})
    counted = pd.DataFrame({"head": [], "relation": []}).astype(np.int64)
    found = BackOff.of(counted, asked, (("head",), ()), "relation", 4).log_p()
    np.testing.assert_allclose(found, np.log(0.25), rtol=1e-6)


def test_relation_table_counts_the_training_corpus_alone():
    opened = context()
    windows = opened.windows(opened.test)
    collator = opened.collator(mnm_probability=0.3)
    trained = opened.windows(opened.training)
    table, asked = RelationTable.count(opened, opened.training), RelationTable.ask(opened, windows, collator)
    number = opened.config.num_relations
    found = table.log_p(asked, number)
    assert found.shape == (len(asked.facts), number, len(EXPERTS)) and len(asked.facts) > 50
    facts, questions = facts_table(trained), asked_table(windows, collator)
    for place in (0, 1):
        keys = (*RELATION_BASELINES[EXPERTS[place]], ())
        expected = naive_back_off(facts, questions[:10], keys, "relation", number, 1.0)
        np.testing.assert_allclose(found[:10, :, place], expected, rtol=1e-4, atol=1e-5)


def test_relations_with_the_table():
    report = run_task(
        "relation_prediction", checkpoint(), corpora()[1], relation_share=0.3, save_examples=True, output=str(saved())
    )
    opened = context()
    windows, weighed_on = opened.windows(opened.test), opened.windows(opened.held_out)
    collator = opened.collator(mnm_probability=0.3)
    found, theirs = (predict_relations(opened, every, collator) for every in (windows, weighed_on))
    np.testing.assert_array_equal(found["log_p"].argmax(1), found["predicted"])
    table = RelationTable.count(opened, opened.training)
    known, their_known = (
        table.log_p(RelationTable.ask(opened, every, collator), opened.config.num_relations)
        for every in (windows, weighed_on)
    )
    both = [
        np.concatenate([mine["log_p"][..., None], log_p], axis=-1)
        for mine, log_p in ((theirs, their_known), (found, known))
    ]
    together, weights = pooled(both[0], theirs["relation"], both[1])
    alone, _ = pooled(their_known, theirs["relation"], known)
    assert report["figures"]["accuracy_with_table"] == pytest.approx((together == found["relation"]).mean())
    assert report["baselines"]["the table"]["accuracy"] == pytest.approx((alone == found["relation"]).mean())
    assert report["counts"]["relations_to_weigh_on"] == len(theirs["relation"]) > 0
    stated = report["details"]["weights"]
    assert stated.pop("projects") == ["beta"] and list(stated) == ["model", *EXPERTS]
    np.testing.assert_allclose(list(stated.values()), weights, atol=6e-4)
    with np.load(saved().with_suffix(".relation_prediction.npz")) as examples:
        np.testing.assert_array_equal(examples["predicted_with_table"], together)
        assert "log_p" not in examples
    # An untrained checkpoint is no help, the table is.
    assert report["figures"]["accuracy_with_table"] > report["figures"]["accuracy"] + 0.2
    without = run_task("relation_prediction", checkpoint(), corpora()[1], relation_share=0.3, relation_table=False)
    assert "the table" not in without["baselines"] and "weights" not in without["details"]
    assert without["figures"] == {k: v for k, v in report["figures"].items() if not k.endswith("_with_table")}


def saved():
    return scratch() / "with_table.json"


def test_pool_weighs_what_is_right():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 3000)
    good, noise = (np.log(rng.dirichlet(np.ones(4), 3000)) for _ in range(2))
    good[np.arange(3000), truth] += 2
    log_p = np.stack([good, noise], axis=-1).astype(np.float32)
    answers, weights = pooled(log_p[:2000], truth[:2000], log_p[2000:])
    assert weights[0] > 0.5 and abs(weights[1]) < 0.1
    in_turn, _ = pooled(log_p[:2000, :, ::-1], truth[:2000], log_p[2000:, :, ::-1])
    assert (in_turn == answers).mean() > 0.99
    assert (answers == truth[2000:]).mean() >= (good[2000:].argmax(1) == truth[2000:]).mean() - 0.02


@pytest.mark.parametrize("name", ["relation_prediction", "tail_prediction"])
def test_nothing_to_weigh_on(name, caplog):
    # Tested on what was held out of the training corpus, a single project: tables would be weighed on the test itself.
    report = run_task(name, checkpoint(), corpora()[0])
    assert "weights" not in report["details"] and "judged alone" in caplog.text
    assert not any(figure.endswith("_with_table") for figure in report["figures"])


def test_held_out_projects_are_not_weighed_on_if_they_were_trained_on():
    assert context().held_out.projects == ["beta"] and context().held_out.splits == ["validation"]
    directory = scratch() / "models" / "trained-on-beta"
    shutil.copytree(checkpoint(), directory)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    splits = manifest["splits"]
    splits["train"]["projects"], splits["validation"]["projects"] = ["beta", "epsilon"], ["alpha"]
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert context(directory).trained_on == ["beta", "epsilon"] and context(directory).held_out is None


def test_another_build_of_the_held_out_projects_is_not_weighed_on_when_it_is_tested_on(monkeypatch):
    opened = context(dataset=str(corpora()[0]))
    assert opened.test.projects == ["beta"]
    monkeypatch.setattr(opened.test, "fingerprint", "of another build")
    assert opened.held_out is None


def test_tables_that_were_kept_give_the_same_figures_and_are_not_counted_again(tmp_path, monkeypatch):
    def figures(names, **values):
        arguments = TaskArguments(str(checkpoint()), str(corpora()[1]), batch_size=4, **values)
        report = run_tasks(names, arguments, show_progress=False)
        return {name: {**task, "seconds": None} for name, task in report["tasks"].items()}

    names = ["relation_prediction", "tail_prediction"]
    counted = figures(names)
    assert figures(names, cache_dir=str(tmp_path)) == counted
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    kinds = ["neighbours", "relations", "tails", "tails-of-files"]
    assert sorted(file.name.rpartition("-")[0] for file in files) == kinds
    assert {file.suffix for file in files} == {".feather"}

    def refuse(*arguments):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        for module, name in (
            (relation_table, "facts_table"),
            (relation_table, "neighbour_table"),
            (tail_prediction, "tails_table"),
        ):
            patch.setattr(module, name, refuse)
        assert figures(names, cache_dir=str(tmp_path)) == counted
        # Another corpus, another split or another graph is counted apart, and so are all once the code has changed.
        opened = context(cache_dir=str(tmp_path))
        other = context(checkpoint("fewer-leaves", leaves_per_root=LEAVES - 1), cache_dir=str(tmp_path))
        for each, corpus in (
            (opened, Corpus(opened.test.path, [TRAINING_SPLIT])),
            (opened, Corpus(opened.training.path, ["validation"])),
            (other, other.training),
        ):
            with pytest.raises(AssertionError, match="counted again"):
                RelationTable.count(each, corpus)
        patch.setattr("graphmert.tasks.counted._source_sha256", lambda: "other")
        with pytest.raises(AssertionError, match="counted again"):
            figures(names[:1], cache_dir=str(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files


def test_a_table_is_kept_with_its_types(tmp_path):
    opened = context(cache_dir=str(tmp_path))
    for count in (
        lambda: RelationTable.count(opened, opened.training).facts,
        lambda: RelationTable.count(opened, opened.training).neighbours,
        lambda: count_tails(opened, opened.training),
    ):
        first, again = count(), count()
        assert len(first) > 50
        pd.testing.assert_frame_equal(first, again)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no table"])
def test_a_kept_table_that_is_damaged_is_named(tmp_path, damage):
    opened = context(cache_dir=str(tmp_path))
    count_tails(opened, opened.training)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"{file.name} is damaged .*remove it"):
        count_tails(opened, opened.training)


def test_opinions_on_tails_against_a_naive_loop(monkeypatch):
    # Every token is a candidate then, so that ranks are those among all that stand nowhere in the window.
    monkeypatch.setattr(tail_table, "_CANDIDATES", 10_000)
    monkeypatch.setattr(tail_table, "_AT_ONCE", 7)
    opened = context()
    tails, asked = predict_tails(opened, opened.windows(opened.test), 0.5)
    canonical = canonical_ids(opened.tokenizer)
    trained = opened.windows(opened.training)
    counted = tail_table.tails_table([trained[i] for i in range(len(trained))], canonical)
    for table in (counted, asked):
        heads = [np.frombuffer(head, ">i8") for head in table["head"]]
        assert table["head_first"].tolist() == [canonical[head[0]] for head in heads]
        assert table["head_last"].tolist() == [canonical[head[-1]] for head in heads]
        assert any(len(head) > 1 for head in heads)
    chosen = np.flatnonzero(tails["no_copy"])
    shown = [tails["shown"][i] for i in chosen]
    every, projects = opened.windows(opened.test), opened.test.rows["project"]
    found = tail_table.tails_table([every[i] for i in range(len(every))], canonical)
    # Windows that are a part of all lead to the same files.
    fewer = opened.windows(opened.test, 7)
    part = tail_table.tails_table([fewer[i] for i in range(7)], canonical)
    for facts, windows in ((found, every), (part, fewer)):
        files = tail_table.with_files(facts, windows, projects)
        rows = [opened.test.rows[int(file)] for file in files["file"]]
        names = [row["project"] for row in rows]
        assert len({*zip(names, files["project"], strict=True)}) == len(set(names)) == 2
        heads = [np.frombuffer(head, ">i8").tolist() for head in files["head"]]
        assert all(str(head)[1:-1] in str(row["input_ids"]) for head, row in zip(heads, rows, strict=True))
    elsewhere, asked = (tail_table.with_files(facts, every, projects) for facts in (found, asked))
    opinions = Opinions.of(tails["log_p"][chosen], shown, canonical, counted, asked.iloc[chosen], elsewhere)
    assert len(chosen) > 5
    experts = [
        naive_back_off(counted, asked.iloc[chosen[:3]], keys, "first", len(canonical), 1.0)
        for keys in tail_table.EXPERTS.values()
    ]
    keys = (("project", "relation", "reversed", "head", "length"), ("project", "relation", "reversed", "head"))
    experts.append(naive_back_off(elsewhere, asked.iloc[chosen[:3]], keys, "first", len(canonical), 1.0, "file"))
    weights = [0.3, 0.5, -0.1, 0.2, 0.4]
    for place, index in enumerate(chosen):
        allowed = [token for token in range(len(canonical)) if canonical[token] not in set(shown[place])]
        assert opinions.candidates[place].tolist() == allowed
        np.testing.assert_array_equal(
            opinions.features[place][:, 0], tails["log_p"][index][allowed].astype(np.float32)
        )
        if place < 3:
            for column, expected in enumerate(experts, 1):
                np.testing.assert_allclose(
                    opinions.features[place][:, column], expected[place][allowed], rtol=1e-4, atol=1e-4
                )
        first = asked["first"].iloc[index]
        scores = opinions.features[place] @ np.array(weights)
        expected = sum(score >= scores[allowed.index(first)] for score in scores) - 1
        assert opinions.ranks(weights)[place] == expected


def test_tails_of_some_windows_are_asked_for_in_their_own_files(monkeypatch):
    seen = {}

    def remember(cls, log_p, shown, canonical, counted, asked, elsewhere):
        seen.update(asked=asked, elsewhere=elsewhere)

    monkeypatch.setattr(Opinions, "of", classmethod(remember))
    opened = context()
    fewer, every = opened.windows(opened.test, 7), opened.windows(opened.test)
    tails, asked = predict_tails(opened, fewer, 0.5)
    everything = np.ones(len(asked), dtype=bool)
    _opinions_without_copies(opened, fewer, everything, tails["log_p"], tails["shown"], asked, asked)
    files = fewer.file_index[asked["window"]]
    assert seen["asked"]["file"].tolist() == files.tolist() != every.file_index[asked["window"]].tolist()
    assert len(seen["elsewhere"]) > len(asked) and set(files) < set(seen["elsewhere"]["file"]) | {-1}


def test_tails_that_are_no_candidate_are_wrong():
    opinions = Opinions(
        [np.array([3, 5, 9]), np.array([4]), np.array([7, 8])],
        [np.array([[0.0], [-1.0], [-2.0]]), np.array([[0.0]]), np.array([[-1.0], [-1.0]])],
        np.array([5, 6, 8]),
        np.array([4, 2, 6]),
    )
    # The second, the only candidate is another; the third, a tie counts against the tail.
    assert opinions.ranks([1.0]).tolist() == [1, tail_table.TOP, 1]
    assert opinions.ranks([-1.0]).tolist() == [1, tail_table.TOP, 1]
    assert opinions.projects_to_weigh_on == {4, 6}


def test_a_project_is_judged_by_weights_of_the_others():
    """Two experts: in two projects the first is right, in the third the second, which only its own tails could tell."""
    rng = np.random.default_rng(0)
    projects = np.repeat([7, 3, 5], 200)
    candidates, features, first = [], [], []
    for project in projects:
        right, tokens = rng.integers(20), np.arange(20)
        log_p = rng.normal(size=(20, 2))
        log_p[right, int(project == 5)] += 6
        candidates.append(tokens)
        features.append(log_p)
        first.append(right)
    opinions = Opinions(candidates, features, np.array(first), projects)
    ranks, weights = opinions.cross_fitted()
    right = {project: (ranks[projects == project] == 0).mean() for project in (3, 5, 7)}
    assert right[3] > 0.9 and right[7] > 0.9 and right[5] < 0.2
    for project in (3, 5, 7):
        others = opinions.of_tails(projects != project)
        assert set(others.projects.tolist()) == {3, 5, 7} - {project} and len(others.first) == 400
        own = opinions.of_tails(projects == project)
        np.testing.assert_array_equal(ranks[projects == project], own.ranks(others.fit()))
    each = [opinions.of_tails(projects != project).fit() for project in (3, 5, 7)]
    np.testing.assert_allclose(weights, np.mean(each, axis=0))
    with pytest.raises(ValueError, match="no question"):
        opinions.of_tails(projects == 5).cross_fitted()


def test_tails_with_the_table():
    report = run_task("tail_prediction", checkpoint(), corpora()[1], tail_share=0.5)
    figures, baselines, counts = report["figures"], report["baselines"], report["counts"]
    assert counts["hidden_tails_no_copy"] > 0 and report["details"]["weights"]["projects"] == 2
    weights, both = report["details"]["weights"], "the table and the project's other files"
    assert set(weights) == {"projects", "the table", both}
    assert list(weights["the table"]) == ["model", *tail_table.EXPERTS]
    assert list(weights[both]) == ["model", *tail_table.EXPERTS, tail_table.ELSEWHERE]
    for name in ("first_top1_no_copy_excluding", "first_top5_no_copy_excluding"):
        assert all(name in baselines[one] for one in (*tail_table.EXPERTS, tail_table.ELSEWHERE, "the table", both))
        assert name + "_with_project" in figures
        assert name + "_with_table" in figures
    # What the project's other files say is most of what there is to know of so small a corpus.
    assert figures["first_top1_no_copy_excluding_with_project"] > figures["first_top1_no_copy_excluding"]
    without = run_task("tail_prediction", checkpoint(), corpora()[1], tail_share=0.5, tail_table=False)
    assert "the table" not in without["baselines"] and "first_top1_no_copy_excluding" in without["figures"]


def test_words_of_the_window_are_out_of_the_answers():
    opened = context()
    tails, asked = predict_tails(opened, opened.windows(opened.test), 0.5)
    canonical = canonical_ids(opened.tokenizer)
    for index in np.flatnonzero(tails["no_copy"]):
        assert canonical[asked["first"].iloc[index]] not in tails["shown"][index]
    assert np.exp(tails["log_p"].astype(np.float32)).sum(1) == pytest.approx(1, abs=5e-3)
    assert tails["log_p"].dtype == np.float16 and not torch.is_tensor(tails["log_p"])


def test_projects_without_such_tails_are_not_weighed_on(monkeypatch, caplog):
    monkeypatch.setattr(Opinions, "projects_to_weigh_on", {1})
    report = run_task("tail_prediction", checkpoint(), corpora()[1], tail_share=0.5)
    assert "at least two must have a tail" in caplog.text and "weights" not in report["details"]
    assert "first_top1_no_copy_excluding" in report["figures"] and "the table" not in report["baselines"]
