"""Knowledge-graph extraction: windows and questions as in training, names, merging, calibration, the command."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hub_server import HubServer
from kg_corpus import FILES, PROJECT, project_extractor, project_tokenizer, tiny_checkpoint

from graphmert.chain_graphs.windows import WindowDataset
from graphmert.code_graph import language_of
from graphmert.code_graph.schema import RELATION_IDS
from graphmert.collator import GraphMertCollator
from graphmert.kg_extraction.__main__ import main, parse_arguments
from graphmert.kg_extraction.calibration import (
    Calibration,
    Example,
    Scaling,
    expected_calibration_error,
    fit,
    top_answers,
)
from graphmert.kg_extraction.candidates import TAIL_RELATIONS
from graphmert.kg_extraction.decoding import TailTrie, length_prior
from graphmert.kg_extraction.extraction import Extractor, Grouping, Options
from graphmert.kg_extraction.facts import EXTRACTED, PREDICTED, Fact, Place, merge
from graphmert.kg_extraction.held_out import fit_calibration, strip_annotations, tail_questions, without_annotations
from graphmert.kg_extraction.project import Corpus
from graphmert.kg_extraction.questions import Question, QuestionCollator
from graphmert.kg_extraction.scoring import fetch_checkpoint, load_checkpoint

NODE_COLUMNS = (
    "root_index",
    "leaf_index",
    "input_ids",
    "relation_ids",
    "relation_reversed",
    "head_start",
    "head_length",
)


def corpus(num_roots: int = 48, leaves: int = 7, **options) -> Corpus:
    return Corpus(PROJECT, project_tokenizer(), num_roots, leaves, **options)


def nodes_of(batch: dict[str, torch.Tensor], row: int = 0) -> list[tuple]:
    real = batch["attention_mask"][row].bool()
    return sorted(zip(*(batch[name][row][real].tolist() for name in NODE_COLUMNS), strict=True))


def window_dataset(made: Corpus, **options) -> WindowDataset:
    rows = {name: [file.columns[name].tolist() for file in made.files] for name in made.files[0].columns}
    return WindowDataset(Dataset.from_dict(rows), project_tokenizer(), made.num_roots, made.leaves_per_root, **options)


CHOICES = [{}, {"include_uses": False}, {"include_site_anchors": False}, {"exclude_relations": ["calls", "declares"]}]


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_windows_are_those_of_training(options):
    made = corpus(**options)
    trained = window_dataset(made, **options)
    assert options == {} or trained.statistics()["facts_placed"] < window_dataset(made).statistics()["facts_placed"]
    assert len(made.windows) == len(trained) > 5
    for window, item in zip(made.windows, (trained[k] for k in range(len(trained))), strict=True):
        assert window.input_ids.tolist() == item["input_ids"].tolist()
        placed = [(p.root, p.slot, p.num_tokens, p.candidate.relation, p.candidate.reversed) for p in window.placed]
        names = ("leaf_root", "leaf_slot", "leaf_length", "relation", "reversed")
        assert placed == list(zip(*(item[name].tolist() for name in names), strict=True))


def test_a_relation_question_is_the_batch_of_training_with_the_relation_masked():
    made = corpus()
    trained = window_dataset(made)
    tokenizer = project_tokenizer()
    lay_out = GraphMertCollator(
        tokenizer, made.num_roots, made.leaves_per_root, mlm_probability=0.0, mnm_probability=0.0
    )
    ask = QuestionCollator(made, tokenizer.pad_token_id)
    num_asked = 0
    for number, window in enumerate(made.windows):
        expected = lay_out([trained[number]])
        for item in window.placed:
            c = item.candidate
            if item.num_tokens < len(c.leaf):
                continue
            question = Question(number, c.start, c.length, 12, tuple(c.leaf), c.reversed, frozenset([c.fact]))
            batch, places = ask([question])
            if int(places[0, 0]) != item.root:
                # Another root of the span has room once the leaf is gone.
                assert c.length > 1
                continue
            masked = {name: value.clone() for name, value in expected.items()}
            slots = masked["leaf_index"]
            at_root = (masked["root_index"] == item.root) & (slots >= 0)
            leaf = at_root & (slots >= item.slot) & (slots < item.slot + item.num_tokens)
            masked["relation_ids"][leaf] = 12
            # Leaves of a root are in no order; here the question's comes last.
            behind = at_root & (slots >= item.slot + item.num_tokens)
            num_behind = int(behind.sum())
            slots[leaf] += num_behind
            slots[behind] -= item.num_tokens
            assert nodes_of(batch) == nodes_of(masked)
            assert int(places[0, 1]) == item.slot + num_behind
            num_asked += 1
    assert num_asked > 50


def test_a_crowded_root_makes_room_by_whole_facts():
    made = corpus(leaves=4)
    ask = QuestionCollator(made, project_tokenizer().pad_token_id)
    full = next(
        (number, item)
        for number, window in enumerate(made.windows)
        for item in window.placed
        if sum(p.num_tokens for p in window.placed if p.root == item.root) == 4 and item.candidate.length == 1
    )
    number, item = full
    mask = project_tokenizer().mask_token_id
    batch, _ = ask([Question(number, item.root, 1, 5, (mask,) * 3)])
    at_root = (batch["root_index"][0] == item.root) & (batch["leaf_index"][0] >= 0)
    slots = batch["leaf_index"][0][at_root].tolist()
    assert sorted(slots) == list(range(len(slots))) and 3 <= len(slots) <= 4
    asked = batch["labels"][0] == 0
    assert batch["leaf_index"][0][asked].tolist() == sorted(slots)[-3:]
    assert batch["input_ids"][0][asked].tolist() == [mask] * 3


def test_trie_scores_equal_the_sum_over_tokens():
    rng = np.random.default_rng(0)
    names = ["".join(p) for n in (1, 2, 3) for p in product("abc", repeat=n)]
    trie = TailTrie([*names, "a"], lambda text: [ord(c) for c in text], max_tokens=2)
    assert len(trie) == len(names) and trie.lengths == [1, 2]
    scores = np.full(len(trie), np.nan)
    table = {length: np.log(rng.dirichlet(np.ones(128), length)) for length in trie.lengths}
    for length in trie.lengths:
        members, values = trie.score(table[length])
        scores[members] = values
    for name, score in zip(trie.names, scores, strict=True):
        cut = name[:2]
        # "ab" and the three names that the cut makes equal to it share its probability.
        sharing = sum(other[:2] == cut for other in names)
        expected = sum(table[len(cut)][k, ord(c)] for k, c in enumerate(cut)) - math.log(sharing)
        assert score == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least one name"):
        TailTrie([], lambda text: [1], 7)


def test_tail_scores_are_a_distribution_and_do_not_depend_on_the_batch():
    extractor = project_extractor()
    heads = [(2, head) for head in extractor.names.heads(2, "has_type")]
    assert [head.name for _, head in heads] == ["path", "mode", "text", "strict"]
    prior = length_prior([5, 3, 1], 7)
    answers = extractor.ask_tails("has_type", heads, prior)
    extractor.scorer.batch_size = 1
    again = extractor.ask_tails("has_type", heads, prior)
    for answer, other in zip(answers, again, strict=True):
        np.testing.assert_allclose(answer.scores, other.scores, atol=1e-5)
        # No name can have more than all; lengths and tokens are each normalised.
        assert np.exp(answer.scores).sum() <= 1 + 1e-6
        assert "str" in answer.texts and "Node" in answer.texts and "None | str" in answer.keys


def test_types_are_asked_where_names_are_used():
    extractor = project_extractor()
    heads = {head.entity: head for head in extractor.names.heads(1, "has_type") + extractor.names.heads(2, "returns")}
    root, read = heads["app.tree.Node.path_of.root"], heads["app.load.read"]
    code = FILES["app/tree.py"]
    assert [code[a - 5 : b + 1] for _, a, b in root.uses] == ["join(root,"] and read.uses == ()
    relation = RELATION_IDS["has_type"]
    at_use = extractor._tail_questions(1, root, relation, frozenset())
    assert [q.window for q in at_use] == [extractor.question_at(1, *root.uses[0][1:], relation).window]
    assert at_use[0] != extractor.question_at(1, root.start, root.end, relation)
    assert extractor._tail_questions(2, read, relation, frozenset()) == [
        extractor.question_at(2, read.start, read.end, relation)
    ]


def test_grouping_sums_spellings_of_a_type():
    grouping = Grouping(["Optional[str]", "int", "str | None"], "has_type")
    folded, best = grouping.fold(np.log([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(np.exp(folded), [0.5, 0.5])
    assert best == [2, 1]


def test_entities_join_across_files():
    extractor = project_extractor()
    facts = {fact.triple for fact in extractor.extracted()}
    assert {
        ("app.tree.Node", "contains", "app.tree.Node.walk"),
        ("app.tree.Leaf", "inherits", "app.tree.Node"),
        ("app.tree.Leaf", "has_field", "app.tree.Leaf.size"),
        ("app.tree.Node.__init__", "has_parameter", "app.tree.Node.__init__.parent"),
        ("app.tree.Node.__init__.name", "has_type", "str"),
        ("app.load.parse", "returns", "app.tree.Node"),
        ("app.load.parse", "instantiates", "app.tree.Node"),
        ("app.load.parse", "instantiates", "app.tree.Leaf"),
        ("app.load.read", "calls", "app.load.parse"),
        ("app.load.read", "calls", "read"),
        ("app.Node", "imported_from", "app"),
    } <= facts
    assert ("app.load.read", "calls", "app.load.read") not in facts
    assert all(fact.status == EXTRACTED and fact.probability == 1 and fact.places for fact in extractor.extracted())


def test_uses_add_places_and_no_facts():
    extractor = project_extractor()
    found = next(
        f for f in extractor.extracted() if f.triple == ("app.tree.Node", "has_field", "app.tree.Node.children")
    )
    code = FILES["app/tree.py"]
    assert [code[place.start : place.end] for place in found.places] == ["Node"]
    limit = next(f for f in extractor.extracted() if f.head == "app.load.read" and f.tail.endswith(".path"))
    assert limit.places[0].line == 5


def fact(tail: str, probability: float, status: str = PREDICTED, line: int = 1, **options) -> Fact:
    place = Place("p", "a.py", line, 0, 1)
    values = {"mode": "tail", "rank": 2 if status == PREDICTED else None, **options}
    return Fact(
        "p",
        "h",
        "has_type",
        tail,
        "h",
        tail,
        "parameter",
        "type",
        status,
        probability=probability,
        places=[place],
        **values,
    )


def test_merging_keeps_places_and_the_highest_probability():
    merged = merge([fact("int", 0.4), fact("int", 0.7, line=3, rank=1), fact("str", 0.9), fact("int", 0.7, line=3)])
    assert [(f.tail, f.probability, f.rank, [p.line for p in f.places]) for f in merged] == [
        ("str", 0.9, 2, [1]),
        ("int", 0.7, 1, [1, 3]),
    ]
    seen = merge([fact("int", 0.4), fact("int", 1.0, EXTRACTED, line=2)])[0]
    assert (seen.status, seen.probability, seen.model_probability, len(seen.places)) == (EXTRACTED, 1.0, 0.4, 2)


def test_extracted_and_predicted_facts_are_told_apart():
    extractor = project_extractor()
    facts = extractor.extract(options=Options(threshold=0.0, top_k=2))
    predicted = [f for f in facts if f.status == PREDICTED]
    assert {f.mode for f in predicted} == {"tail", "relation"}
    assert all(f.relation in TAIL_RELATIONS for f in predicted if f.mode == "tail")
    assert all(
        f.model_probability is not None for f in facts if f.status == EXTRACTED and f.relation == "has_parameter"
    )
    stated = {f.key for f in facts if f.status == EXTRACTED}
    assert not stated & {f.key for f in predicted} and len({f.key for f in facts}) == len(facts)
    walk = [f for f in predicted if f.head == "app.tree.Node.walk.depth" and f.mode == "tail"]
    assert len(walk) == 2 and {f.rank for f in walk} == {1, 2}
    # A parameter that is annotated, and self, are not asked about.
    assert not [
        f for f in predicted if f.mode == "tail" and f.relation == "has_type" and f.head.endswith(("limit", "self"))
    ]
    none = extractor.extract(options=Options(threshold=1.0))
    assert all(f.status == EXTRACTED for f in none)


def test_hidden_tails_are_not_shown_to_the_model():
    extractor = project_extractor()
    answers, gold = tail_questions(extractor, "instantiates", 20)
    assert gold.count("") == len(gold) / 2 and {"Node", "Leaf"} & {tail.rpartition(".")[2] for tail in gold if tail}
    for (example, answer), tail in zip(answers, gold, strict=True):
        assert (answer.texts[example.gold] == tail) if tail else example.gold == -1
        assert not (extractor.stated_tails(answer.file, "instantiates", answer.head) - {tail}) & set(answer.texts)


def test_annotations_are_hidden_in_text_and_graph():
    stripped, hidden = without_annotations(PROJECT)
    assert [slot.annotation for slots in hidden for slot in slots] == [
        "str",
        'Optional["Node"]',
        'Iterator["Node"]',
        "int",
        "Node",
    ]
    graph = Corpus(stripped, project_tokenizer(), 48, 7).files[2].graph
    assert not [t for t in graph.triples if t.relation in ("has_type", "returns")]
    assert strip_annotations(stripped[1][3])[1] == []


def synthetic(temperature: float, num: int, seed: int, other: float = 0.3) -> list[Example]:
    """Examples whose true probabilities are the softmax of their scores over `temperature`."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(num):
        scores = rng.normal(0, 3, 20)
        weights = np.append(np.exp(scores / temperature), math.exp(other))
        gold = int(rng.choice(21, p=weights / weights.sum()))
        examples.append(Example(scores, gold if gold < 20 else -1, number))
    return examples


def test_calibration_finds_the_temperature_and_mends_the_error():
    scaling = fit(synthetic(2.5, 3000, 0))
    assert scaling.temperature == pytest.approx(2.5, rel=0.1) and scaling.other == pytest.approx(0.3, abs=0.4)
    fresh = synthetic(2.5, 3000, 1)
    raw = expected_calibration_error(*top_answers(fresh, Scaling()))
    mended = expected_calibration_error(*top_answers(fresh, scaling))
    assert raw > 0.2 and mended < 0.04
    assert scaling.probabilities(np.zeros(4)).sum() < 1 and Scaling().probabilities(
        np.zeros(4)
    ).sum() == pytest.approx(1)


def test_the_fit_is_the_optimum_for_a_model_that_knows_less_than_the_table():
    """Widely spread scores that mean nothing get no weight: temperatures beyond any bound."""
    generator = np.random.default_rng(0)
    examples = []
    for number in range(400):
        prior = np.log(generator.dirichlet(np.full(20, 0.3)) + 1e-6)
        gold = int(generator.choice(20, p=np.exp(prior) / np.exp(prior).sum())) if generator.random() < 0.7 else -1
        examples.append(Example(generator.normal(-20, 12, 20) + prior, gold, number % 10, prior[:, None]))

    def loss(scaling: Scaling) -> float:
        values = []
        for example in examples:
            shares = scaling.probabilities(example.scores, example.prior)
            values.append(-np.log(shares[example.gold] if example.gold >= 0 else 1 - shares.sum()))
        return float(np.mean(values))

    both, model, table = fit(examples), fit(examples, num_priors=0), fit(examples, use_model=False)
    assert both.prior_weights[0] == pytest.approx(1.0, abs=0.2) and both.temperature > 20
    assert loss(both) < min(loss(model) - 0.1, loss(table) + 0.01)
    for change in (
        {"temperature": 0.9},
        {"temperature": 1.1},
        {"prior_weights": 0.9},
        {"prior_weights": 1.1},
        {"other": 1.1},
    ):
        near = replace(both, **{name: factor * np.array(getattr(both, name)) for name, factor in change.items()})
        assert loss(near) > loss(both) - 2e-3


def test_expected_calibration_error_by_hand():
    assert expected_calibration_error([0.95, 0.95, 0.15, 0.15], [True, False, False, False]) == pytest.approx(0.3)
    assert expected_calibration_error([], []) == 0.0


def test_calibration_of_a_checkpoint_is_saved_and_read(tmp_path):
    model, tokenizer = tiny_checkpoint()
    made = fit_calibration(model, tokenizer, PROJECT, "here", ("relation", "tail"), max_facts=60)
    assert {"tail", "relation"} <= set(made.scalings) and made.length_counts["tail:has_type"]
    assert all(0 <= figures["ece"] <= 1 for figures in made.figures.values())
    made.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == made
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.load(tmp_path / "calibration.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    for target in ("both", "relation"):
        model, tokenizer = tiny_checkpoint(target)
        model.save_pretrained(directory / target)
        tokenizer.save_pretrained(directory / target)
    for path, text in FILES.items():
        (directory / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / "code" / path).write_text(text)
    (directory / "code" / "broken.py").write_bytes(b"\xff\xfe\x00")
    return directory


def test_command_writes_facts_calibration_patch_and_stubs(checkpoints, tmp_path, capsys):
    out = tmp_path / "kg"
    code = checkpoints / "code"
    arguments = ["--model", str(checkpoints / "both"), "--source", f"dir:{code}", "--output", str(out)]
    arguments += [
        "--relations",
        "has_type,returns",
        "--threshold",
        "0",
        "--calibrate",
        f"dir:{code}",
        "--batch-size",
        "8",
    ]
    arguments += ["--write-patch", str(tmp_path / "types.patch"), "--write-stubs", str(tmp_path / "stubs")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "facts.jsonl").read_text().splitlines()]
    assert {row["relation"] for row in rows} == {"has_type", "returns"}
    assert {row["status"] for row in rows} == {"extracted", "predicted"}
    assert {"project", "path", "line", "start", "end"} == set(rows[0]["places"][0])
    record = json.loads((out / "run.json").read_text())
    assert [item["path"] for item in record["skipped"]] == ["broken.py"] and record["type_proposals"]["slots"] == 9
    assert "expected calibration error" in printed and (out / "calibration.json").exists()
    assert (tmp_path / "types.patch").read_text().startswith("--- a/app/")
    assert list((tmp_path / "stubs").rglob("*.pyi"))


@pytest.mark.parametrize("option", ["--write-patch", "--write-stubs"])
def test_proposals_of_several_sources_do_not_take_each_others_place(checkpoints, tmp_path, capsys, option):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "q.py").write_text("def f(n): ...\n")
    (tmp_path / "two" / "r.py").write_text("def f(n): ...\n")
    sources = ["--source", f"dir:{tmp_path / 'one'}", "--source", f"dir:{tmp_path / 'two'}"]
    arguments = ["--model", str(checkpoints / "both"), "--output", str(tmp_path / "kg"), option, str(tmp_path / "out")]
    assert main([*arguments, *sources]) == 2
    assert f"{option}: q.py stands in several sources" in capsys.readouterr().err
    assert not (tmp_path / "kg").exists() and not (tmp_path / "out").exists()
    # The same source twice is one source; other paths may come from anywhere.
    assert main([*arguments, *sources[2:], *sources[2:]]) == 0
    (tmp_path / "two" / "q.py").unlink()
    assert main([*arguments, *sources]) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--modes": "tail"}, "run_pretraining.py --mnm_target both"),
        ({"--write-patch": "x.patch"}, "run_pretraining.py --mnm_target both"),
        ({"--relations": "has_typ"}, "unknown relation 'has_typ'"),
        ({"--formats": "rdf"}, "unknown format 'rdf'"),
        ({"--model": "nowhere"}, "no config.json there"),
        ({"--device": "foo"}, "--device foo: cannot be used"),
        ({"--device": "cuda:99"}, "--device cuda:99: cannot be used"),
        ({"--source": "dir:nowhere"}, "does not exist"),
        ({"--threshold": "2"}, "between 0 and 1"),
        ({"--calibration": "nowhere.json"}, "not a calibration.json"),
        ({"--num-threads": "0"}, "--num-threads must be at least 1, got 0"),
        ({"--num-threads": "-1"}, "--num-threads must be at least 1, got -1"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(checkpoints, tmp_path, capsys, changed, message):
    given = {
        "--model": str(checkpoints / "relation"),
        "--source": f"dir:{checkpoints / 'code'}",
        "--output": str(tmp_path),
    }
    assert main([part for pair in {**given, **changed}.items() for part in pair]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("graphmert-extract: error: ") and message in error


def test_options_come_from_a_file_and_the_command_line_overrides_them(tmp_path):
    path = tmp_path / "kg.yaml"
    path.write_text(
        "model: runs/small\nsource: dir:a\noutput: kg\nthreshold: 1\nrelations: [has_type, returns]\nno-verify: true\n"
    )
    read = parse_arguments(["--config", str(path), "--source", "dir:b", "--top-k", "2", "--output", "other"])
    assert (read.model, read.source, read.output, read.top_k) == ("runs/small", ["dir:b"], "other", 2)
    assert (read.threshold, read.relations, read.no_verify) == (1.0, "has_type,returns", True)
    assert parse_arguments(["--config", str(path)]).source == ["dir:a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "unknown option 'colour'"),
        ("threshold: high", "threshold cannot be 'high'"),
        ("no_verify: 3", "no_verify cannot be 3"),
        ("[1]", "must hold options"),
        ("a: [", "cannot be read"),
        ("model: x", "--source, --output missing"),
    ],
)
def test_files_of_options_that_are_wrong(tmp_path, capsys, text, message):
    (tmp_path / "kg.yaml").write_text(text)
    assert main(["--config", str(tmp_path / "kg.yaml")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors", "", "are damaged, copy them again"),
        ("config.json", "{not json", "is not a valid JSON file"),
        ("config.json", "[1]", "cannot be loaded (AttributeError"),
        ("tokenizer.json", '{"a": 1}', "the tokenizer cannot be loaded (KeyError: 'added_tokens')"),
        ("tokenizer.json", "[1]", "the tokenizer cannot be loaded (TypeError"),
        ("tokenizer.json", "{not json", "the tokenizer cannot be loaded (JSONDecodeError"),
    ],
)
def test_damaged_checkpoints_are_named(checkpoints, tmp_path, file, text, message):
    directory = tmp_path / "model"
    shutil.copytree(checkpoints / "relation", directory)
    (directory / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_checkpoint(directory)
    assert str(caught.value).startswith(f"--model {directory}: cannot be loaded")


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--output", "file.txt", "is a file; give a directory"),
        ("--output", "file.txt/kg", "{tmp_path}/file.txt is not a directory"),
        ("--write-patch", "directory", "is a directory; name a file"),
        ("--write-patch", "file.txt/x.patch", "{tmp_path}/file.txt is not a directory"),
        ("--write-stubs", "file.txt", "is a file; give a directory"),
        ("--write-stubs", "file.txt/deep/stubs", "{tmp_path}/file.txt is not a directory"),
    ],
)
def test_outputs_are_checked_before_the_work(tmp_path, capsys, option, place, message):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "directory").mkdir()
    given = {"--model": "nowhere", "--source": "dir:nowhere", "--output": str(tmp_path / "kg")}
    given[option] = str(tmp_path / place)
    assert main([part for pair in given.items() for part in pair]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert f"{option} {tmp_path / place}" in error and message.format(tmp_path=tmp_path) in error
    assert not (tmp_path / "kg").exists()


@pytest.mark.parametrize("option", ["--output", "--write-patch", "--write-stubs"])
@pytest.mark.parametrize("exists", [False, True])
def test_outputs_must_be_writable(tmp_path, capsys, monkeypatch, option, exists):
    place = tmp_path / "place"
    if exists:
        place.touch() if option == "--write-patch" else place.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(tmp_path))
    given = {"--model": "nowhere", "--source": "dir:nowhere", "--output": "kg"} | {option: str(place)}
    assert main([part for pair in given.items() for part in pair]) == 2
    assert f"{option} {place}: cannot be written (no permission" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--nonsense"], ["--top-k", "many"], ["--model"]])
def test_wrong_options_are_one_line(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--source", "stdlib", "--output", "x", *option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert option[0] in error and error.count("\n") == 1


def test_files_that_are_too_large_and_tables_are_kept_where_asked(checkpoints, tmp_path, capsys):
    code = tmp_path / "code"
    code.mkdir()
    (code / "table.py").write_text("topics = [\n" + "    'a text of a help page',\n" * 300 + "]\n")
    (code / "large.py").write_text("def f(n):\n    return n\n" * 10)
    arguments = ["--model", str(checkpoints / "relation"), "--source", f"dir:{code}", "--output", str(tmp_path / "kg")]
    reasons = {"table.py": "table of data (--include-tables keeps it)"}

    def skipped(*options: str) -> dict[str, str]:
        assert main([*arguments, "--no-verify", *options]) == 0
        record = json.loads((tmp_path / "kg" / "run.json").read_text())
        return {item["path"]: item["reason"] for item in record["skipped"]}

    assert skipped() == reasons
    assert skipped("--include-tables") == {}
    (code / "small.py").write_text("def f(n): ...\n")
    too_large = "larger than 100 bytes (--max-file-bytes)"
    assert skipped("--max-file-bytes", "100") == {"large.py": too_large, "table.py": too_large}
    assert main([*arguments, "--max-file-bytes", "0"]) == 2
    assert "--max-file-bytes must be at least 1, got 0" in capsys.readouterr().err


def test_a_checkpoint_is_fetched_from_the_hub_without_its_code(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with HubServer() as hub:
        hub.use_in_process(monkeypatch)
        hub.repositories.add("someone/kg")
        hub.files = {path.name: path.read_bytes() for path in (checkpoints / "both").iterdir() if path.is_file()}
        hub.files |= {"evil.py": b"raise SystemExit", "training_args.bin": b"pickle"}
        hub.commit("someone/kg", [{"key": "header", "value": {"summary": "push"}}])
        fetched = fetch_checkpoint("someone/kg")
        model, _ = load_checkpoint(fetched)
        with pytest.raises(ValueError, match="not to be had from the Hub"):
            fetch_checkpoint("someone/other")
    assert model.config.mnm_target == "both"
    assert not {path.name for path in fetched.iterdir()} & {"evil.py", "training_args.bin"}
    assert fetch_checkpoint(checkpoints / "both") == checkpoints / "both"


def test_the_example_of_the_documentation_runs(checkpoints, capsys):
    text = (Path(__file__).parent.parent / "docs" / "KNOWLEDGE_GRAPH.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(example.replace("runs/small", str(checkpoints / "both")).replace("threshold=0.3", "threshold=0.0"), {})
    printed = capsys.readouterr().out
    assert "extracted 1.00 app.load.load has_parameter app.load.load.path 1" in printed and "predicted" in printed


def test_a_checkpoint_of_relations_classifies_relations_only(checkpoints, tmp_path, capsys):
    arguments = ["--model", str(checkpoints / "relation"), "--source", f"dir:{checkpoints / 'code'}"]
    assert main([*arguments, "--output", str(tmp_path), "--threshold", "0.1"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in rows} == {"parser", "relation"}
    assert "no calibration" in capsys.readouterr().err


def test_weights_without_heads_are_refused(checkpoints, tmp_path, capsys):
    from graphmert.modeling_graphmert import GraphMertModel

    GraphMertModel.from_pretrained(checkpoints / "both").save_pretrained(tmp_path)
    project_tokenizer().save_pretrained(tmp_path)
    arguments = ["--source", f"dir:{checkpoints / 'code'}", "--output", str(tmp_path / "kg")]
    assert main(["--model", str(tmp_path), *arguments]) == 2
    assert "GraphMertForPreTraining" in capsys.readouterr().err


OTHERS = {
    "app/Shape.java": "package app;\nimport app.Node;\nimport lib.Base;\nclass Shape extends Base {\n"
    "    int area(int w, int h) { return scale(w) * h; }\n    int scale(int x) { new Node(); return x; }\n}\n",
    "app/shape.js": "class Box extends Base {\n  area(w, h) { return this.scale(w) * h; }\n  scale(x) { return x; }\n}\n",
    "app/shape.go": "package app\n\nfunc Area(w int, h int) int { return Scale(w) * h }\n\n"
    "func Scale(x int) int { return x }\n",
    "app/shape.rb": "class Cube < Base\n  def area(w, h)\n    scale(w) * h\n  end\n\n  def scale(x)\n    x\n  end\nend\n",
    "app/shape.php": "<?php\nclass Disk extends Base {\n  function area($w, $h) { return $this->scale($w) * $h; }\n"
    "  function scale($x) { return $x; }\n}\n",
}


@pytest.fixture
def mixed(tmp_path):
    for path, text in {**FILES, **OTHERS}.items():
        (tmp_path / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / path).write_text(text)
    return tmp_path / "code"


def test_the_command_reads_the_languages_that_are_asked_for(checkpoints, mixed, tmp_path, capsys):
    arguments = ["--model", str(checkpoints / "both"), "--source", f"dir:{mixed}", "--output", str(tmp_path / "kg")]
    arguments += ["--threshold", "0.01", "--batch-size", "8", "--formats", "jsonl"]

    def extract(*options: str) -> tuple[dict, list[dict]]:
        assert main([*arguments, *options]) == 0
        lines = (tmp_path / "kg" / "facts.jsonl").read_text().splitlines()
        return json.loads((tmp_path / "kg" / "run.json").read_text()), [json.loads(line) for line in lines]

    record, python = extract()
    others = {"go": 1, "java": 1, "javascript": 1, "php": 1, "ruby": 1}
    assert record["files_by_language"] == {"python": 3} and record["files_of_other_languages"] == others
    said = "left out: files of go (1), java (1), javascript (1), php (1), ruby (1); add --languages"
    assert said in capsys.readouterr().out
    languages = ["--languages", "python", "java", "js", "go", "ruby", "php"]
    every = ["--calibrate", f"dir:{mixed}", "--calibration-facts", "20", "--write-stubs", str(tmp_path / "stubs")]
    record, rows = extract(*languages, *every)
    assert record["files_by_language"] == {"python": 3, **others} and not record["files_of_other_languages"]
    assert "left out" not in capsys.readouterr().out
    triples = {(row["head"], row["relation"], row["tail"]) for row in rows if row["status"] == "extracted"}
    assert {
        ("app.Shape.Shape", "inherits", "lib.Base"),
        ("app.Shape.Shape.area", "calls", "app.Shape.Shape.scale"),
        # Not followed through the Python package of the same name.
        ("app.Shape.Shape.scale", "instantiates", "app.Node"),
        ("app.shape.Box.area", "calls", "app.shape.Box.scale"),
        ("app.shape.Area", "calls", "app.shape.Scale"),
        ("app.shape.Cube.area", "calls", "app.shape.Cube.scale"),
        ("app.shape.Disk.area", "has_parameter", "app.shape.Disk.area.$h"),
    } <= triples
    assert {(r["head"], r["relation"], r["tail"]) for r in python if r["status"] == "extracted"} <= triples
    # The names that a tail may be are Python's: of the others the model is asked for relations alone.
    modes = {(row["mode"], row["places"][0]["path"].rpartition(".")[2]) for row in rows}
    assert modes == {
        *((mode, end) for mode in ("parser", "relation") for end in ("py", "java", "js", "go", "rb", "php")),
        ("tail", "py"),
    }
    assert {path.name for path in (tmp_path / "stubs").rglob("*") if path.is_file()} == {"tree.pyi", "load.pyi"}


def test_tails_of_python_are_not_names_of_other_languages():
    model, tokenizer = tiny_checkpoint()
    names = []
    for others in ({}, OTHERS):
        languages = [language_of(path) for path in others]
        files = [
            ("app", path, language, text) for language, (path, text) in zip(languages, others.items(), strict=True)
        ]
        names.append(Extractor(model, tokenizer, [*PROJECT, *files]).names)
    for relation, number in product(TAIL_RELATIONS, range(len(PROJECT))):
        assert names[0].tails(number, relation) == names[1].tails(number, relation)
    assert not any(names[1].heads(3 + k, relation) for k in range(len(OTHERS)) for relation in TAIL_RELATIONS)


def test_calibration_hides_no_tails_of_other_languages():
    model, tokenizer = tiny_checkpoint()
    for path, text in OTHERS.items():
        files = [("app", path, language_of(path), text)]
        assert set(fit_calibration(model, tokenizer, files, "here", ("relation", "tail")).scalings) == {"relation"}


def test_one_language_without_python_gives_what_its_parser_and_relations_say(checkpoints, mixed, tmp_path):
    arguments = ["--model", str(checkpoints / "both"), "--source", f"dir:{mixed}", "--output", str(tmp_path / "kg")]
    arguments += ["--languages", "java", "--threshold", "0", "--calibrate", f"dir:{mixed}"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "kg" / "facts.jsonl").read_text().splitlines()]
    assert {row["mode"] for row in rows} == {"parser", "relation"}


def test_sources_without_the_languages_that_are_asked_for(checkpoints, mixed, tmp_path, capsys):
    (tmp_path / "java").mkdir()
    (mixed / "app" / "Shape.java").rename(tmp_path / "java" / "Shape.java")
    arguments = ["--model", str(checkpoints / "both"), "--output", str(tmp_path / "kg")]
    arguments += ["--source", f"dir:{tmp_path / 'java'}"]
    assert main(arguments) == 2
    said = "no file of code in python there (left out: files of java (1); add --languages)"
    assert said in capsys.readouterr().err
    assert main([*arguments, "--languages", "klingon"]) == 2
    assert "--languages: klingon; choose from python, java" in capsys.readouterr().err
    (tmp_path / "kg.yaml").write_text("languages: [java, go]\n")
    assert parse_arguments(["--config", str(tmp_path / "kg.yaml"), *arguments]).languages == ("java", "go")
    assert parse_arguments(arguments).languages == ("python",)
