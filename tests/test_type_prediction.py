"""Hidden types: where they are asked for, among which candidates, and how a candidate is scored."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import window
from tiny_tasks import LEAVES, checkpoint, context, corpora

import graphmert.tasks.type_prediction as types
from graphmert.code_graph import Triple, extract
from graphmert.code_graph.annotations import HiddenType, hide_annotations, hide_in_graph
from graphmert.tasks import run_task
from graphmert.tasks.queries import Query, ask_in_leaf, ask_in_text, keep_facts, labels_at
from graphmert.tasks.type_fine_tuning import TEXT_ROOM, ask_all

SOURCE = """import os
class Reader:
    size: int = 0
    def walk(self, path: os.PathLike[str], *rest: "Reader", deep: bool=False) -> list[
        int]:
        found: list[int] = []  # type: list
        return self.walk(path)  # type: ignore
"""
HIDDEN = """import os
class Reader:
    size = 0
    def walk(self, path, *rest, deep=False):
        found = []@@
        return self.walk(path)  # type: ignore
""".replace("@@", "  ")


def test_annotations_are_taken_out():
    text, hidden, graph = hide_annotations(SOURCE)
    assert text == HIDDEN
    found = [(item.relation, item.name, item.type, item.prefix, text[item.place :][:3]) for item in hidden]
    assert found == [
        ("returns", "walk", "list[ int]", " -> ", ":\n "),
        ("has_type", "path", "os.PathLike[str]", ": ", ", *"),
        ("has_type", "rest", "Reader", ": ", ", d"),
        ("has_type", "deep", "bool", ": ", "=Fa"),
    ]
    assert all(text[item.start : item.end] == item.name for item in hidden)
    relations = {"imports", "contains", "has_field", "has_parameter", "declares", "calls"}
    assert {triple.relation for triple in graph.triples} == relations


def test_a_graph_keeps_the_types_that_its_text_has_lost():
    whole = extract(SOURCE)
    text, graph = hide_in_graph(SOURCE, whole)
    assert text == HIDDEN
    assert all(text[triple.head_start : triple.head_end] == triple.head for triple in graph.triples)
    types = [(t.relation, t.head, t.tail) for t in whole.triples if t.relation in ("has_type", "returns")]
    assert len(types) > 4
    assert [(t.relation, t.head, t.tail) for t in graph.triples if t.relation in ("has_type", "returns")] == types
    # What stood in an annotation is gone: the tails' places, and any fact that hangs on an annotation's own words.
    assert all(t.tail_start is None for t in graph.triples if t.relation == "returns" and not t.is_use)
    start = SOURCE.index("PathLike")
    on_annotation = whole.triples[0]._replace(head="PathLike", head_start=start, head_end=start + len("PathLike"))
    assert hide_in_graph(SOURCE, replace(whole, triples=[on_annotation, *whole.triples]))[1] == graph
    places = [t for t in graph.triples if t.tail_start is not None]
    moved = {t.tail for t in places if text[t.tail_start : t.tail_end] == t.tail}
    assert {"walk", "path", "found"} <= moved
    assert [offset for offset, _ in graph.boundaries] == sorted(offset for offset, _ in graph.boundaries)
    starts = [text[offset:].split()[0] for offset, _ in graph.boundaries]
    assert starts == ["import", "class", "size", "def", "found", "return"]
    assert hide_in_graph(HIDDEN, extract(HIDDEN)) is None


def query(head=(2, 1), place=3, prefix=(50,)) -> Query:
    hidden = HiddenType("has_type", "x", "int", 0, 0, 0, ": ")
    return Query(0, 0, "p", hidden, head, place, list(prefix), 5, [])


CONFIG = SimpleNamespace(leaves_per_root=4, num_roots=8)
FACTS = [
    (1, 1, 0, 0, 0, 1, 0, [11]),
    (2, 1, 1, 0, 0, 2, 0, [12, 13]),
    (2, 2, 2, 1, 0, 2, 2, [14]),
    (4, 1, 3, 0, 0, 4, 0, [15]),
]


def facts_of(item) -> list[tuple]:
    names = ("head_start", "head_length", "relation", "reversed", "visible", "leaf_root", "leaf_slot")
    leaves = np.split(item["leaf_ids"], np.cumsum(item["leaf_length"])[:-1])
    rows = np.stack([item[name] for name in names], axis=1).tolist()
    return [(*row, leaf.tolist()) for row, leaf in zip(rows, leaves, strict=True)]


def test_a_question_in_a_leaf():
    item = window([0, 21, 22, 23, 24, 2], FACTS)
    asked, where = ask_in_leaf(item, query(), [4], CONFIG)
    assert facts_of(asked) == [*FACTS[:3], (2, 1, 5, 0, 0, 2, 3, [4]), FACTS[3]] and where == (2, 3)
    # Without room for three the root's last leaf makes way.
    asked, where = ask_in_leaf(item, query(), [4, 4], CONFIG)
    assert facts_of(asked) == [*FACTS[:2], (2, 1, 5, 0, 0, 2, 2, [4, 4]), FACTS[3]] and where == (2, 2)
    # A name of several roots is asked at the one with the most room.
    asked, where = ask_in_leaf(item, query(head=(2, 2)), [4, 4], CONFIG)
    assert facts_of(asked) == [*FACTS[:3], (2, 2, 5, 0, 0, 3, 0, [4, 4]), FACTS[3]] and where == (3, 0)
    assert facts_of(item) == FACTS


def test_a_question_in_the_text():
    item = window([0, 21, 22, 23, 24, 2], FACTS)
    asked, where = ask_in_text(item, query(), [4], CONFIG)
    assert asked["input_ids"].tolist() == [0, 21, 22, 50, 4, 23, 24, 2] and where == (4, -1)
    assert facts_of(asked) == [*FACTS[:3], (6, 1, 3, 0, 0, 6, 0, [15])] and len(asked["word_starts"]) == 8
    # One token too many: the end gives way, or the beginning where the place is in the second half.
    asked, where = ask_in_text(item, query(), [4, 4], CONFIG)
    assert asked["input_ids"].tolist() == [0, 21, 22, 50, 4, 4, 23, 2] and where == (4, -1)
    assert facts_of(asked) == FACTS[:3]
    asked, where = ask_in_text(item, query(head=(4, 1), place=5), [4, 4], CONFIG)
    assert asked["input_ids"].tolist() == [0, 22, 23, 24, 50, 4, 4, 2] and where == (5, -1)
    assert facts_of(asked) == [
        (1, 1, 1, 0, 0, 1, 0, [12, 13]),
        (1, 2, 2, 1, 0, 1, 2, [14]),
        (3, 1, 3, 0, 0, 3, 0, [15]),
    ]
    assert facts_of(keep_facts(item, np.array([False, True, False, True]))) == [FACTS[1], FACTS[3]]


def test_several_questions_in_one_window():
    config = SimpleNamespace(leaves_per_root=4, num_roots=14)
    item = window([0, 21, 22, 23, 24, 2], FACTS)
    questions = [(query(head=(1, 1), place=2), [31, 32]), (query(head=(4, 1), place=5), [33])]
    asked, answers = ask_all(item, questions, 4, config, in_leaf=True)
    assert answers == [((1, 1), [31, 32]), ((4, 1), [33])]
    assert facts_of(asked) == [FACTS[0], (1, 1, 5, 0, 0, 1, 1, [4, 4]), *FACTS[1:], (4, 1, 5, 0, 0, 4, 1, [4])]
    asked, answers = ask_all(item, questions, 4, config, in_leaf=False)
    assert asked["input_ids"].tolist() == [0, 21, 50, 4, 4, 22, 23, 24, 50, 4, 2]
    assert answers == [((3, -1), [31, 32]), ((9, -1), [33])]
    # Room for 3 tokens: the first question needs as many, but the last place comes first.
    asked, answers = ask_all(item, questions, 4, SimpleNamespace(leaves_per_root=4, num_roots=9), in_leaf=False)
    assert asked["input_ids"].tolist() == [0, 21, 22, 23, 24, 50, 4, 2] and answers == [((6, -1), [33])]


@pytest.mark.parametrize("in_leaf", [True, False])
def test_labels_stand_at_the_masks_of_their_questions(in_leaf):
    opened = context()
    files, _ = types.read_files(opened, opened.test.rows, "hiding types")
    hidden = [(number, item) for number, file in enumerate(files) for item in file.hidden]
    windows, queries = types.find_queries(opened, files, hidden, num_roots=opened.config.num_roots - TEXT_ROOM)
    assert len(queries) > 10
    by_window = {}
    for number, item in enumerate(queries):
        # Each question has tokens of its own: one of them, or two.
        by_window.setdefault(item.window, []).append((item, [100 + number] * (1 + number % 2)))
    mask = opened.tokenizer.mask_token_id
    asked = [ask_all(windows[n], questions, mask, opened.config, in_leaf) for n, questions in by_window.items()]
    batch = opened.collator()([item for item, _ in asked])
    labels = labels_at(batch, [answers for _, answers in asked])
    assert ((labels >= 0) == (batch["input_ids"] == mask)).all()
    assert sum(len(answers) for _, answers in asked) > 0.8 * len(queries)
    for row, questions in enumerate(by_window.values()):
        for item, tokens in questions:
            at = (labels[row] == tokens[0]).nonzero()[:, 0]
            if in_leaf:
                assert len(at) == len(tokens)
                roots = batch["root_index"][row, at]
                assert ((roots >= item.head[0]) & (roots < sum(item.head))).all()
                assert (batch["relation_ids"][row, at] == item.relation).all()
            elif len(at):
                # Behind the prefix, which stands behind what is annotated.
                assert batch["input_ids"][row, at[0] - len(item.prefix) : at[0]].tolist() == item.prefix


@pytest.mark.parametrize("leaves", [LEAVES, 0])
def test_fine_tuning_learns_types_and_leaves_the_checkpoint_alone(leaves):
    path = checkpoint() if leaves else checkpoint("off", leaves_per_root=0, use_hgat=False, decay_mode=None)
    opened = context(path)
    before = {name: value.clone() for name, value in opened.model().state_dict().items()}
    settings = types.TypePredictionOptions(LEAVES, 1, type_steps=30, type_batch_size=4, type_learning_rate=3e-3)
    model, losses, counts = types.fine_tune_types(opened, leaves > 0, settings.fine_tuning())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]) and not model.training
    assert counts["types_to_learn_from"] > counts["windows_to_learn_from"] > 4
    files, _ = types.read_files(opened, opened.training.rows, "")
    total = sum(len(file.hidden) for file in files)
    assert counts["types_to_learn_from"] + counts["types_left_out_of_learning"] == total
    assert all(torch.equal(value, before[name]) for name, value in opened.model().state_dict().items())
    again = types.fine_tune_types(opened, leaves > 0, settings.fine_tuning())
    assert losses == again[1]
    few = replace(settings, type_files=1, type_steps=1).fine_tuning()
    assert (
        types.fine_tune_types(opened, leaves > 0, few)[2]["files_to_learn_from"] == 1 < counts["files_to_learn_from"]
    )


def declared(name, type_, relation="has_type") -> Triple:
    return Triple(name, 0, 1, relation, type_, 0, 1)


def candidates(max_tokens=2, **options) -> types.Candidates:
    facts = [declared("path", "str")] * 3 + [declared("path", "Path")] * 2 + [declared("size", "int")] * 4
    facts += [declared("x", "a b c")] * 2 + [declared("y", "rare")] + [declared("read", "str", "returns")] * 2
    ids = {"str": [1], "Path": [2, 3], "int": [4], "a b c": [1, 2, 3], "Reader": [5], "rare": [6]}
    options = types.TypePredictionOptions(max_tokens, 2, **options)
    return types.Candidates(facts, lambda text: ids.get(text, [7]), options)


def test_candidates_and_baselines():
    found = candidates()
    assert found.types == {"Path": [2, 3], "int": [4], "str": [1]}
    # One more of each length: 7 of one token and 2 of two.
    assert found.length_prior[5].tolist() == pytest.approx(np.log([8 / 11, 3 / 11]).tolist())
    assert found.length_prior[0].tolist() == pytest.approx(np.log([0.5, 0.5]).tolist())

    def asked(name, type_, classes=()):
        hidden = HiddenType("has_type", name, type_, 0, 0, 0, ": ")
        return Query(0, 0, "p", hidden, (1, 1), 2, [], 5, list(classes))

    queries = [asked("path", "Path"), asked("new", "str"), asked("_reader", "Reader", ["Reader"]), asked("q", "Gone")]
    ranks = found.baselines(queries, [{}, {}, {"Reader": [5]}, {}])
    # Of parameters: int 4, str 3, Path 2; of the name path: str 3, Path 2.
    assert ranks == {
        "majority": [2, 1, 4, 3],
        "frequency for the name": [1, 1, 4, 3],
        "class of the name, else frequency": [0, 1, 0, 3],
    }
    assert [found.is_seen(item.hidden) for item in queries] == [True, False, False, False]


def test_fine_tuning_refuses_windows_without_room():
    small = SimpleNamespace(config=SimpleNamespace(num_roots=TEXT_ROOM + 2))
    with pytest.raises(ValueError, match=f"more than {TEXT_ROOM + 2} root tokens in a window, this one has"):
        types.fine_tune_types(small, True, types.TypePredictionOptions(type_steps=1).fine_tuning())


def test_classes_of_the_project_are_candidates_and_known_to_the_baselines():
    hidden = HiddenType("has_type", "_tree", "Tree", 0, 0, 0, ": ")
    here = Query(0, 0, "p", hidden, (1, 1), 2, [], 5, ["Reader", "str"], ["Reader", "Tree", "int"])
    elsewhere = replace(here, file=1, classes=[])
    found = candidates(type_class_forms=False)
    own = found.of_queries([here, here, elsewhere])
    # What is a candidate of the training corpus already is not told twice; a file's own classes come first.
    assert [list(names.items()) for names in own] == [
        [("Reader", [5]), ("Tree", [7])],
        [("Reader", [5]), ("Tree", [7])],
        [("Reader", [5]), ("Tree", [7])],
    ]
    assert own[0] is own[1] is not own[2]
    assert found.baselines([here], own[:1])["class of the name, else frequency"] == [0]
    without = candidates(type_project_classes=False, type_class_forms=False)
    own = without.of_queries([here, here, elsewhere])
    assert own == [{"Reader": [5]}, {"Reader": [5]}, {}]
    # 3 candidates of the training corpus and one of the file, none of them right.
    assert without.baselines([here], own[:1])["class of the name, else frequency"] == [4]
    forms = candidates(type_project_classes=False).of_queries([replace(here, classes=["Node", "int"])])
    assert list(forms[0])[:3] == ["Node", "Node | None", "int | None"]
    assert {"Optional[Node]", "list[Node]", "type[int]"} <= set(forms[0]) and "int" not in forms[0]


def test_files_know_the_classes_of_their_project_alone():
    opened = context()
    files, _ = types.read_files(opened, opened.test.rows, "")
    rows = opened.test.rows
    for file in files:
        texts = [row["code"] for row in rows if row["project"] == file.project and row["language"] == "python"]
        written = {name for text in texts for name in re.findall(r"^\s*class (\w+)", text, re.MULTILINE)}
        assert file.project_classes == sorted(written)
    assert any(file.project_classes for file in files)
    _, queries = types.find_queries(opened, files, [(0, hidden) for hidden in files[0].hidden])
    assert queries and all(query.project_classes is files[0].project_classes for query in queries)


@pytest.mark.parametrize("way", [types.LEAF, types.TEXT])
def test_ranks_against_a_naive_loop(way, monkeypatch):
    opened = context(max_examples=20)
    files, _ = types.read_files(opened, opened.test.rows, "hiding types")
    windows, queries = types.find_queries(opened, files, [(0, hidden) for hidden in files[0].hidden[:4]])
    options = types.TypePredictionOptions(2, 1)
    chosen = types.Candidates(types.trained_types(opened), types.LeafEncoder(opened.tokenizer), options)
    # One of the hidden types is a class of the file and not of the training corpus.
    moved = next(item.hidden.type for item in queries if item.hidden.type in chosen.types)
    classes = {moved: chosen.types.pop(moved)}
    own = [{**names, **classes} for names in chosen.of_queries(queries)]
    # A candidate with the same tokens is a tie, which counts against the model.
    tied = [{**names, "Twin": classes[moved]} for names in own]
    ranks = types.rank_types(opened, windows, queries, tied, chosen, way)
    mask = opened.tokenizer.mask_token_id
    for item, names, rank in zip(queries, tied, ranks, strict=True):
        scores = {}
        for size in (1, 2):
            ask = ask_in_leaf if way == types.LEAF else ask_in_text
            asked, _ = ask(windows[item.window], item, [mask] * size, opened.config)
            batch = opened.collator()([asked])
            with torch.no_grad():
                logits = opened.model()(**opened.inputs(batch)).logits[0].log_softmax(-1)
            at = (batch["input_ids"][0] == mask).nonzero()[:, 0].tolist()
            assert len(at) == size
            for text, tokens in {**chosen.types, **names}.items():
                if len(tokens) == size:
                    score = sum(float(logits[column, token]) for column, token in zip(at, tokens, strict=True))
                    scores[text] = score + chosen.length_prior[item.relation][size - 1]
        better = (
            sum(value >= scores[item.hidden.type] for value in scores.values()) - 1
            if item.hidden.type in scores
            else len(scores)
        )
        assert rank == better
    assert len(queries) > 2

    # A model that knows the answers gives each hidden type that is a candidate the first rank.
    def knowing(batch, model=None, real=opened.predict):
        logits = real(batch, model).logits * 0
        for row, item in enumerate(order[: len(batch["labels"])]):
            tokens = {**chosen.types, **own[item]}.get(queries[item].hidden.type, [])
            size = int((batch["labels"][row] == 0).sum())
            for place, token in enumerate(tokens if len(tokens) == size else []):
                logits[row * size + place, token] = 50.0
        return SimpleNamespace(logits=logits)

    order = np.argsort(-windows.lengths[[item.window for item in queries]], kind="stable").tolist()
    monkeypatch.setattr(opened, "predict", knowing)
    for item, names, rank in zip(
        queries, own, types.rank_types(opened, windows, queries, own, chosen, way), strict=True
    ):
        assert (rank == 0) == (item.hidden.type in {**chosen.types, **names})


def test_the_task_on_checkpoints_with_and_without_leaves(tmp_path):
    options = {"type_max_tokens": LEAVES, "type_min_count": 1, "max_examples": 12, "batch_size": 8}
    output = tmp_path / "report.json"
    # Left out, the longest candidate has as many tokens as a root has slots.
    rest = {name: value for name, value in options.items() if name != "type_max_tokens"}
    both = run_task("type_prediction", checkpoint(), corpora()[1], output=str(output), save_examples=True, **rest)
    with np.load(output.with_suffix(".type_prediction.npz"), allow_pickle=False) as arrays:
        saved = dict(arrays)
    assert (saved["rank model"] < 1).mean() == both["figures"]["top1"]
    assert len(saved["file_number"]) == len(saved["start"]) == both["counts"]["asked"]
    off = run_task(
        "type_prediction",
        checkpoint("off", leaves_per_root=0, use_hgat=False, decay_mode=None),
        corpora()[1],
        **options,
    )
    tuned = run_task("type_prediction", checkpoint(), corpora()[1], type_steps=2, type_files=3, **options)
    names = {f"zero-shot, {types.LEAF}", f"zero-shot, {types.TEXT}"}
    assert tuned["details"]["asked"] == f"fine-tuned, {types.LEAF}" and set(tuned["controls"]) == names
    assert tuned["controls"][f"zero-shot, {types.LEAF}"] == both["figures"]
    assert tuned["controls"][f"zero-shot, {types.TEXT}"] == both["controls"][types.TEXT]
    assert tuned["baselines"] == both["baselines"] and 0 < tuned["counts"]["files_to_learn_from"] <= 3
    assert both["details"]["asked"] == types.LEAF and set(both["controls"]) == {types.TEXT}
    assert off["details"]["asked"] == types.TEXT and off["controls"] == {}
    for name, figures in off["baselines"].items():
        assert figures["top1"] == both["baselines"][name]["top1"]
    assert both["counts"]["asked"] == off["counts"]["asked"] <= 12
    for name in ("top1", "top5", "top1_seen_name", "top1_parameter"):
        assert 0 <= both["figures"][name] <= 1 and name in both["baselines"]["frequency for the name"]


@pytest.mark.parametrize(
    ("name", "value"), [("type_max_tokens", 0), ("type_steps", -1), ("type_files", 0), ("type_learning_rate", 0.0)]
)
def test_wrong_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be"):
        types.TypePredictionOptions(**{name: value})
