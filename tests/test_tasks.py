"""Tasks: figures against naive computations, reports, and refusals in one line."""

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import window
from tiny_tasks import LEAVES, checkpoint, context, corpora, scratch
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

import graphmert.tasks.masked_language_model as mlm
import graphmert.tasks.tail_prediction as tails
from graphmert.chain_graphs.baselines import relation_baselines
from graphmert.chain_graphs.windows import canonical_ids
from graphmert.tasks import TASKS, run_task
from graphmert.tasks.__main__ import main
from graphmert.tasks.base import plain, task_class
from graphmert.tasks.relation_prediction import predict_relations


def one_window_at_a_time(opened, windows, collator):
    """(index, batch, outputs) of each window alone, with logits for every node."""
    for index in range(len(windows)):
        batch = collator([windows[index]])
        with torch.no_grad():
            yield index, batch, opened.model()(**opened.inputs(batch))


def test_every_task_is_listed_with_options_of_its_own():
    seen = set()
    for name in TASKS:
        cls = task_class(name)
        fields = {field.name for field in dataclasses.fields(cls.options_class)} if cls.options_class else set()
        assert cls.name == name and not fields & seen
        seen |= fields


def test_masked_language_model_against_a_naive_loop():
    report = run_task(
        "masked_language_model", checkpoint(), corpora()[1], batch_size=4, mlm_roots=48, mlm_leaves=LEAVES
    )
    opened = context()
    windows = opened.windows(opened.test)
    collator = opened.collator(mlm_probability=0.15)
    losses, in_leaf, excluding = [], [], []
    targets = mlm.collect_targets(opened, mlm.MaskedLanguageModelOptions(48, LEAVES), windows)
    whole = opened.collator(mlm_probability=0.15, masked_span_leaves="keep")
    for index, batch, outputs in one_window_at_a_time(opened, windows, collator):
        labels = batch["labels"]
        losses.append(F.cross_entropy(outputs.logits[labels >= 0], labels[labels >= 0], reduction="none"))
        kept = whole([windows[index]])
        in_leaf.append(kept["label_in_leaf"][kept["labels"] >= 0] > 0)
        clean = targets["clean"][targets["window"] == index].tolist()
        for logits, label, is_clean in zip(
            outputs.logits[labels >= 0].tolist(), labels[labels >= 0].tolist(), clean, strict=True
        ):
            if is_clean:
                excluding.append(naive_loss_excluding(opened.tokenizer, logits, label, windows[index]["leaf_ids"]))
    losses, in_leaf = torch.cat(losses), torch.cat(in_leaf)
    figures, counts = report["figures"], report["counts"]
    assert figures["loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
    assert figures["loss_in_leaf"] == pytest.approx(losses[in_leaf].mean().item(), abs=1e-5)
    assert figures["loss_not_in_leaf"] == pytest.approx(losses[~in_leaf].mean().item(), abs=1e-5)
    assert counts["masked_tokens"] == len(losses) and 0 < counts["masked_tokens_clean"] < (~in_leaf).sum()
    assert len(excluding) == counts["masked_tokens_clean"]
    assert figures["loss_clean_excluding"] == pytest.approx(np.mean(excluding), abs=1e-5)
    # Fewer words to choose among.
    assert figures["loss_clean_excluding"] < figures["loss_clean"]
    assert set(report["controls"]) == {mlm.SHUFFLED, mlm.HIDDEN, mlm.REMOVED}
    assert len({round(figures["loss"], 6) for figures in report["controls"].values()}) == 3
    # The unigram baseline, counted by hand.
    tokens = opened.training.tokens[1]
    share = (np.bincount(tokens, minlength=600) + 1) / (len(tokens) + opened.config.vocab_size)
    unigram = report["baselines"]["unigram"]
    assert unigram["loss"] == pytest.approx(-np.log(share[targets["token"]]).mean())
    expected = [
        naive_loss_excluding(opened.tokenizer, np.log(share), token, windows[window]["leaf_ids"])
        for window, token, clean in zip(*(targets[name] for name in ("window", "token", "clean")), strict=True)
        if clean
    ]
    assert unigram["loss_clean_excluding"] == pytest.approx(np.mean(expected))


def naive_loss_excluding(tokenizer, logits, label: int, leaf_ids) -> float:
    """-log p(label) among the entries that stand in no leaf, one by one."""
    tokens = [token.lstrip("Ġ▁") or token for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    words = {tokens[entry] for entry in leaf_ids}
    total = 0.0
    for entry, logit in enumerate(logits):
        if entry >= len(tokens) or tokens[entry] not in words:
            total += math.exp(logit)
    return math.log(total) - logits[label]


def test_what_a_model_expects_of_leaf_words_does_not_change_the_loss_that_excludes_them():
    """Two models with the same odds among other words; one gives half of its probability to words in leaves."""

    class Windows(list):
        lengths = np.array([4])

    opened = context()
    size = len(opened.tokenizer)
    windows = Windows([window([0, 50, 51, 2], [(1, 1, 5, 0, 0, 1, 0, [60, 61])])])
    targets = {"window": np.array([0, 0]), "token": np.array([50, 51]), "clean": np.array([True, True])}
    words = mlm.LeafWords(windows, canonical_ids(opened.tokenizer), size)(np.array([0]))[0]
    assert words[[60, 61]].all() and not words[[50, 51]].any() and 2 <= words.sum() <= 4
    odds = np.random.default_rng(0).random(size)
    found = []
    for expected in (0.01, 0.5):
        share = np.where(words, expected / words.sum(), (1 - expected) * odds / odds[~words].sum())

        class Model:
            tokenizer, config, predict = opened.tokenizer, opened.config, None
            batches = staticmethod(lambda lengths, name: [np.array([0])])

        logits = torch.from_numpy(np.log(share)).expand(2, -1)
        Model.predict = staticmethod(lambda batch, logits=logits: SimpleNamespace(logits=logits))
        found.append(mlm.score(Model, lambda indices: {"labels": torch.tensor([[50, 51]])}, windows, targets, "x"))
    assert found[1]["loss"].mean() - found[0]["loss"].mean() == pytest.approx(math.log(0.99 / 0.5), abs=1e-5)
    assert found[1]["loss_excluding"] == pytest.approx(found[0]["loss_excluding"], abs=1e-5)


def test_checkpoints_without_graph_are_scored_at_the_same_tokens(tmp_path):
    def score(name, **options):
        output = tmp_path / f"{name}.json"
        roots = {"mlm_roots": 48, "mlm_leaves": LEAVES}
        report = run_task(
            "masked_language_model",
            checkpoint(name, **options),
            corpora()[1],
            output=str(output),
            save_examples=True,
            **roots,
        )
        with np.load(output.with_suffix(".masked_language_model.npz"), allow_pickle=False) as arrays:
            return report, dict(arrays)

    both, with_graph = score("both")
    off, without = score("off", leaves_per_root=0, use_hgat=False, decay_mode=None)
    # 12 roots more: the tokens before the window and behind it.
    wide, wider = score("wide", leaves_per_root=0, num_roots=60, use_hgat=False, decay_mode=None)
    assert both["counts"] == off["counts"] == wide["counts"]
    assert both["baselines"] == off["baselines"] == wide["baselines"]
    for name in ("window_file", "window_start", "count", "count_clean", "count_in_leaf", "count_clean_excluding"):
        assert np.array_equal(with_graph[name], without[name]) and np.array_equal(with_graph[name], wider[name])
    assert off["controls"] == {} and off["figures"]["loss"] != both["figures"]["loss"] != wide["figures"]["loss"]
    total = with_graph["model: loss"].sum() / with_graph["count"].sum()
    assert total == pytest.approx(both["figures"]["loss"])
    assert np.array_equal(with_graph["count_clean_excluding"], with_graph["count_clean"])
    for who, figures in (("model", both["figures"]), *both["controls"].items()):
        total = with_graph[f"{who}: loss_clean_excluding"].sum() / with_graph["count_clean_excluding"].sum()
        assert total == pytest.approx(figures["loss_clean_excluding"])
    above = both["details"]["loss_above_model"][mlm.SHUFFLED]["loss_clean_excluding"]["mean"]
    shuffled = both["controls"][mlm.SHUFFLED]["loss_clean_excluding"]
    assert above == pytest.approx(shuffled - both["figures"]["loss_clean_excluding"])
    # Without its leaves the same checkpoint gives what its control says.
    again = run_task(
        "masked_language_model", checkpoint(), corpora()[1], without_graph=True, mlm_roots=48, mlm_leaves=LEAVES
    )
    assert again["figures"]["loss"] == pytest.approx(both["controls"][mlm.REMOVED]["loss"], abs=1e-6)
    plain = run_task(
        "masked_language_model", checkpoint(), corpora()[1], mlm_controls=False, mlm_roots=48, mlm_leaves=LEAVES
    )
    assert plain["controls"] == {} and plain["figures"] == pytest.approx(both["figures"], abs=1e-6)


def test_more_roots_read_the_tokens_around_the_window():
    opened = context(checkpoint("wide", leaves_per_root=0, num_roots=60, use_hgat=False, decay_mode=None))
    options = mlm.MaskedLanguageModelOptions(mlm_roots=48)
    windows = opened.windows(opened.test, num_roots=48)
    batches = mlm.TextBatches(opened, options, windows, opened.test)
    offsets, tokens = opened.test.tokens
    plain_collator = opened.collator(mlm_probability=0.15, num_roots=48, leaves_per_root=0)
    for index in range(len(windows)):
        batch, narrow = batches(np.array([index])), plain_collator([windows[index]])
        start, end = windows.token_range[index]
        file = tokens[offsets[windows.file_index[index]] : offsets[windows.file_index[index] + 1]]
        before = min(12, start)
        expected = np.concatenate([[0], file[start - before : min(len(file), end + 12 - before)], [2]])
        ids, labels = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
        assert np.array_equal(np.where(labels >= 0, labels, ids), expected)
        inside = slice(before + 1, before + 1 + end - start)
        assert np.array_equal(ids[inside], narrow["input_ids"][0, 1:-1].numpy())
        assert np.array_equal(labels[inside], narrow["labels"][0, 1:-1].numpy())
        assert (labels >= 0).sum() == (labels[inside] >= 0).sum()


def test_tokens_by_a_leaf_span():
    batch = {
        # Masked runs: 1-2, 4, 6-7; leaves hang on 2-3 and on 5.
        "labels": np.array([[-100, 9, 9, -100, 9, -100, 9, 9, -100, -100]]),
        "leaf_index": np.array([[-1] * 8 + [0, 0]]),
        "attention_mask": np.ones((1, 10), dtype=np.int64),
        "head_start": np.array([[0] * 8 + [2, 5]]),
        "head_length": np.array([[0] * 8 + [2, 1]]),
    }
    assert mlm.on_leaf_span(batch)[0].nonzero()[0].tolist() == [1, 2]
    batch["head_length"][0, 9] = 2
    assert mlm.on_leaf_span(batch)[0].nonzero()[0].tolist() == [1, 2, 6, 7]


def test_shuffled_leaf_words_come_from_other_files_with_the_same_shape():
    rng = np.random.default_rng(0)

    class Windows(list):
        file_index = np.repeat(np.arange(6), 5)

    windows = Windows()
    for file in Windows.file_index:
        # The words tell the file, the relation and the length.
        facts = []
        for slot, relation, length in zip(range(0, 12, 3), rng.integers(0, 3, 4), rng.integers(1, 3, 4), strict=True):
            facts.append((1, 1, int(relation), 0, 0, 1, slot, [int(file) + 10 * int(relation)] * int(length)))
        windows.append(window([0, 5, 2], facts))
    words = mlm.shuffled_leaf_words(windows, np.random.default_rng(1))
    own = np.concatenate([item["leaf_ids"] for item in windows])
    found = np.concatenate(words)
    assert (own // 10 == found // 10).all() and (own % 10 != found % 10).all()
    assert sorted(own.tolist()) == sorted(found.tolist())
    assert [len(item["leaf_ids"]) for item in windows] == [len(item) for item in words]


def test_paired_interval_covers_the_mean_of_clusters():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(200), 30)
    difference = 0.1 + rng.normal(size=200)[cluster] + 0.1 * rng.normal(size=6000)
    result = mlm.paired_interval(difference, cluster, np.random.default_rng(1))
    assert result["mean"] == pytest.approx(difference.mean())
    # The spread is that of 200 clusters, not of 6,000 items.
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.15)


def test_relation_prediction_against_a_naive_loop():
    opened = context()
    windows = opened.windows(opened.test)
    collator = opened.collator(mnm_probability=0.3)
    found = predict_relations(opened, windows, collator)
    expected = []
    for index, batch, outputs in one_window_at_a_time(opened, windows, collator):
        for column in (batch["relation_labels"][0] >= 0).nonzero()[:, 0].tolist():
            root, slot = int(batch["root_index"][0, column]), int(batch["leaf_index"][0, column])
            guess = int(outputs.relation_logits[0, root, slot].argmax())
            label, visible = batch["relation_labels"][0, column], batch["leaf_in_window"][0, column]
            expected.append((int(label), guess, int(visible), index))
    names = ("relation", "predicted", "visible", "window")
    assert list(zip(*(found[name].tolist() for name in names), strict=True)) == expected
    lookups = relation_baselines(opened.windows(opened.training), windows, collator)
    report = run_task("relation_prediction", checkpoint(), corpora()[1], relation_share=0.3)
    assert report["baselines"]["majority"]["accuracy"] == lookups["majority"]["accuracy"]
    assert report["figures"]["accuracy"] == pytest.approx(np.mean([label == guess for label, guess, *_ in expected]))


def test_tail_prediction_against_a_naive_loop():
    opened = context()
    windows = opened.windows(opened.test)
    found, features = tails.predict_tails(opened, windows, 0.3)
    collator = opened.collator(mnm_probability=0.3, mnm_target="tail")
    mask, place = opened.tokenizer.mask_token_id, 0
    for index in range(len(windows)):
        batch = collator([windows[index]])
        hidden = batch["labels"][0] >= 0
        batch["input_ids"][0, hidden] = mask
        with torch.no_grad():
            logits = opened.model()(**opened.inputs(batch)).logits[0]
        shown = set(batch["input_ids"][0].tolist())
        for column in (hidden & (batch["fact_place"][0] == 0)).nonzero()[:, 0].tolist():
            tail = [int(batch["labels"][0, column])]
            while (
                column + len(tail) < len(hidden)
                and hidden[column + len(tail)]
                and batch["fact_place"][0, column + len(tail)]
            ):
                tail.append(int(batch["labels"][0, column + len(tail)]))
            best = [int(logits[column + i].argmax()) for i in range(len(tail))]
            assert (found["window"][place], found["column"][place]) == (index, column)
            fact = features.iloc[place]
            assert fact["tail"] == np.array(tail, dtype=">i8").tobytes() and fact["length"] == len(tail)
            assert fact["first"] == tail[0] and fact["relation"] == int(batch["relation_ids"][0, column])
            start, size = int(batch["head_start"][0, column]), int(batch["head_length"][0, column])
            assert fact["head"] == np.array(windows[index]["input_ids"][start : start + size], ">i8").tobytes()
            assert found["first_rank"][place] == int((logits[column] > logits[column, tail[0]]).sum())
            assert found["whole"][place] == (best == tail)
            if found["no_copy"][place]:
                assert tail[0] not in shown and not found["visible"][place]
            place += 1
    assert place == len(found["window"]) > 50 and 0 < found["no_copy"].sum() < (~found["visible"]).sum()


def test_tail_lookups_by_hand():
    facts = [
        (1, 1, 5, 0, 0, 1, 0, [8]),
        (2, 1, 5, 0, 0, 2, 0, [9]),
        (3, 1, 5, 0, 0, 3, 0, [9]),
        (4, 1, 5, 0, 0, 4, 0, [7, 7]),
    ]
    counted = tails.tails_table([window([0, 20, 21, 22, 23, 2], facts)], np.arange(100))

    def tokens(*ids):
        return np.array(ids, dtype=">i8").tobytes()

    asked = counted.iloc[:0]
    for length, tail in ((1, (8,)), (1, (9,)), (2, (7, 7)), (2, (7, 8)), (1, (55,))):
        asked.loc[len(asked)] = (0, 5, 0, tokens(20), 20, 20, length, tail[0], tokens(*tail))
    scores = {
        name: list(zip(*map(list, found), strict=True))
        for name, found in tails.score_tail_lookups(counted, asked).items()
    }
    none = (tails.TOP, False)
    # The head 20 has had the tail 8; without it the relation's most frequent one of this length.
    assert scores["relation and head"] == [(0, True), (1, False), (1, False), (1, False), none]
    assert scores["relation"] == [(1, False), (0, True), (0, True), (0, False), none]
    assert scores["majority"] == [(1, False), (0, True), (0, True), (0, False), none]
    # A head that never was, asked in the other direction: the answers of the length, then all.
    asked["head"], asked["reversed"] = tokens(21, 22), 1
    assert list(tails.score_tail_lookups(counted, asked)["relation"][0]) == [1, 0, 0, 0, tails.TOP]


def test_graph_tasks_say_that_they_do_not_apply():
    off = checkpoint("off", leaves_per_root=0, use_hgat=False, decay_mode=None)
    for name in ("relation_prediction", "tail_prediction"):
        assert "leaves" in run_task(name, off, corpora()[1])["not_applicable"]
    report = run_task("relation_prediction", checkpoint("tail", mnm_target="tail"), corpora()[1])
    assert "not trained" in report["not_applicable"]


def test_command_writes_a_report(capsys):
    output = scratch() / "report.json"
    argv = ["relation_prediction", "tail_prediction", "--model", str(checkpoint()), "--dataset", str(corpora()[1])]
    assert main([*argv, "--max-examples", "10", "--output", str(output), "--relation-share", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "relation_prediction (" in printed and "tokens around the head with the tail" in printed
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report["tasks"]) == {"relation_prediction", "tail_prediction"}
    assert report["tasks"]["relation_prediction"]["counts"]["windows"] == 10
    assert report["tasks"]["relation_prediction"]["options"]["relation_share"] == 0.5
    assert report["dataset"]["projects"] == ["delta", "gamma"] and len(report["dataset"]["fingerprint"]) == 16
    assert report["training_dataset"]["splits"] == ["train"] and report["model"]["trained_on"] == ["alpha", "epsilon"]
    assert report["model"]["weights_sha256"] and report["environment"]["versions"]["torch"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sorting", "--model", "x"], "there is no task 'sorting'"),
        (["tail_prediction"], "--model"),
        (["tail_prediction", "--model", "nowhere"], "no checkpoint there"),
        (["tail_prediction", "--model", "MODEL"], "needs --dataset"),
        (["tail_prediction", "--model", "MODEL", "--dataset", "nowhere"], "does not exist"),
        (["tail_prediction", "--model", "MODEL", "--dataset", "DATA", "--splits", "other"], "not other"),
        (["tail_prediction", "--model", "MODEL", "--dataset", "DATA", "--batch-size", "0"], "at least 1"),
        (["tail_prediction", "--model", "MODEL", "--dataset", "DATA", "--colour", "red"], "unknown option --colour"),
        (["tail_prediction", "--model", "MODEL", "--search-functions", "9"], "is an option of code_search"),
        (["tail_prediction", "--model", "MODEL", "--dataset", "DATA", "--save-examples"], "needs --output"),
        (["tail_prediction", "--model", "MODEL", "--cache-dir", __file__], "test_tasks.py is not a directory"),
        (
            ["tail_prediction", "--model", "MODEL", "--output", str(Path(__file__).parent)],
            "is a directory; name a file",
        ),
        (
            ["tail_prediction", "--model", "MODEL", "--output", f"{__file__}/r.json"],
            "test_tasks.py is not a directory",
        ),
        (["masked_language_model", "--model", "MODEL", "--dataset", "DATA", "--mlm-roots", "32"], "--mlm-roots 48"),
        (["--model", "MODEL"], "name a task first"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(argv, message, capsys):
    names = {"MODEL": str(checkpoint()), "DATA": str(corpora()[1])}
    # Where this test comes first, the corpora are built here, with lines of their own.
    capsys.readouterr()
    try:
        status = main([names.get(word, word) for word in argv])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors", "", "are damaged, copy them again"),
        ("config.json", "{not json", "config.json cannot be read"),
        ("config.json", "[1]", "config.json cannot be read"),
        (
            "config.json",
            '{"model_type": "graphmert"}',
            "cannot be loaded (ValueError: GraphMertConfig: relation_names",
        ),
        ("config.json", '{"model_type": "roberta", "hidden_size": "16"}', "'hidden_size' expected int, got str"),
        ("config.json", '{"model_type": "roberta", "hidden_act": "x"}', "cannot be loaded (KeyError: 'x')"),
        ("config.json", '{"model_type": "bert"}', "model_type is 'bert', not graphmert or roberta"),
        ("tokenizer.json", '{"a": 1}', "the tokenizer cannot be loaded (KeyError: 'added_tokens')"),
        ("tokenizer.json", "{not json", "the tokenizer cannot be loaded (JSONDecodeError"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path, file, text, message):
    directory = tmp_path / "model"
    shutil.copytree(checkpoint(), directory)
    (directory / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        opened = context(directory)
        _ = opened.model(), opened.tokenizer
    assert str(caught.value).startswith(f"--model {directory}: ")


def test_damaged_weights_of_a_roberta_are_named(tmp_path):
    config = RobertaConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    RobertaModel(config).save_pretrained(tmp_path)
    assert context(tmp_path).model().config.leaves_per_root == 0
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match="are damaged, copy them again"):
        context(tmp_path).model()


def test_stopped_from_the_keyboard(capsys, monkeypatch):
    def run_tasks(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphmert.tasks.base.run_tasks", run_tasks)
    assert main(["tail_prediction", "--model", "x"]) == 130
    assert capsys.readouterr().err == "python -m graphmert.tasks: stopped; no report was written\n"


def test_help_lists_the_tasks_and_loads_nothing_heavy():
    code = (
        "import sys; from graphmert.tasks.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stopped: print(stopped.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in TASKS) and done.stdout.split()[-2:] == ["0", "False"]


def test_reports_hold_plain_numbers():
    value = plain({"a": np.float32(0.5), "b": [np.int64(3), float("nan")], 7: np.arange(2), "c": scratch()})
    assert json.loads(json.dumps(value, allow_nan=False)) == {
        "a": 0.5,
        "b": [3, None],
        "7": [0, 1],
        "c": str(scratch()),
    }
