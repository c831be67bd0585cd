"""Hidden types: where they are asked for, among which candidates, and how a candidate is scored."""

import re
from collections import ChainMap, Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import window
from tiny_tasks import LEAVES, checkpoint, context, corpora

import graphmert.tasks.type_candidates as type_candidates
import graphmert.tasks.type_prediction as types
from graphmert.code_graph import Triple, extract
from graphmert.code_graph.annotations import HiddenType, hide_annotations, hide_in_graph
from graphmert.tasks import run_task
from graphmert.tasks.log_linear import fit_weights, merge_equal
from graphmert.tasks.queries import Query, ask_in_leaf, ask_in_text, keep_facts, labels_at
from graphmert.tasks.type_candidates import Candidates, DeclaredTypes, OwnTypes, form_of
from graphmert.tasks.type_fine_tuning import TEXT_ROOM, ask_all
from graphmert.tasks.type_queries import read_files, uses_of_names
from graphmert.tasks.type_ranker import MODEL, OPINIONS, TABLE, TypePools
from graphmert.tasks.type_scoring import Questions

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
    # As many masks for each; 99 stands behind a type that is shorter.
    asked, answers = ask_all(item, questions, [4, 4], 99, config, in_leaf=True)
    assert answers == [((1, 1), [31, 32]), ((4, 1), [33, 99])]
    assert facts_of(asked) == [FACTS[0], (1, 1, 5, 0, 0, 1, 1, [4, 4]), *FACTS[1:], (4, 1, 5, 0, 0, 4, 1, [4, 4])]
    assert ask_all(item, questions, [4] * 3, 99, config, in_leaf=True)[1] == [
        ((1, 1), [31, 32, 99]),
        ((4, 1), [33, 99]),
    ]
    asked, answers = ask_all(item, questions, [4, 4], 99, config, in_leaf=False)
    assert asked["input_ids"].tolist() == [0, 21, 50, 4, 4, 22, 23, 24, 50, 4, 4, 2]
    assert answers == [((3, -1), [31, 32]), ((9, -1), [33, 99])]
    # Room for one question and a part of another: three masks each.
    three = SimpleNamespace(leaves_per_root=4, num_roots=13)
    assert ask_all(item, questions, [4] * 3, 99, three, in_leaf=False)[1] == [((6, -1), [33, 99])]
    # Room for one question: the last place comes first.
    small = SimpleNamespace(leaves_per_root=4, num_roots=11)
    asked, answers = ask_all(item, questions, [4, 4], 99, small, in_leaf=False)
    assert asked["input_ids"].tolist() == [0, 21, 22, 23, 24, 50, 4, 4, 2] and answers == [((6, -1), [33, 99])]


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
    asked = [
        ask_all(windows[n], questions, [mask] * 2, 99, opened.config, in_leaf) for n, questions in by_window.items()
    ]
    batch = opened.collator()([item for item, _ in asked])
    labels = labels_at(batch, [answers for _, answers in asked])
    assert ((labels >= 0) == (batch["input_ids"] == mask)).all() and (labels == 99).any()
    assert sum(len(answers) for _, answers in asked) > 0.8 * len(queries)
    for row, questions in enumerate(by_window.values()):
        for item, tokens in questions:
            at = (labels[row] == tokens[0]).nonzero()[:, 0]
            if in_leaf:
                assert len(at) == len(tokens)
                assert len(tokens) == 2 or labels[row, at[0] + 1] == 99
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
    left = types.fine_tune_types(opened, leaves > 0, replace(settings, type_steps=1).fine_tuning(), ["alpha"])[2]
    rest = sum(len(file.hidden) for file in files if file.project != "alpha")
    assert left["types_to_learn_from"] + left["types_left_out_of_learning"] == rest != total - rest
    few = replace(settings, type_files=1, type_steps=1).fine_tuning()
    assert (
        types.fine_tune_types(opened, leaves > 0, few)[2]["files_to_learn_from"] == 1 < counts["files_to_learn_from"]
    )


def declared(name, type_, relation="has_type") -> Triple:
    return Triple(name, 0, 1, relation, type_, 0, 1)


FACTS_OF_TYPES = [
    *[declared("path", "str")] * 3,
    *[declared("path", "Path")] * 2,
    *[declared("size", "int")] * 4,
    *[declared("x", "a b c")] * 2,
    declared("y", "rare"),
    *[declared("read", "str", "returns")] * 2,
]
IDS = {"str": [1], "Path": [2, 3], "int": [4], "a b c": [1, 2, 3], "Reader": [5], "rare": [6], "Tree | None": [8, 9]}


def candidates(max_tokens=2, extra=(), **options) -> Candidates:
    found = DeclaredTypes({"p": FACTS_OF_TYPES, **dict(extra)}, {"p": set(), **{name: {"Node"} for name, _ in extra}})
    return Candidates(found, lambda text: IDS.get(text, [7]), max_tokens, 2, **options)


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
    queries = [replace(item, file=number) for number, item in enumerate(queries)]
    ranks = found.baselines(queries, found.of_queries(queries))
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


def test_fine_tuning_in_the_text_refuses_types_without_room():
    wide = SimpleNamespace(config=SimpleNamespace(num_roots=128))
    options = types.TypePredictionOptions(TEXT_ROOM, type_steps=1)
    with pytest.raises(
        ValueError, match="--type-max-tokens must be at most 20 for types that are asked for in the text"
    ):
        types.fine_tune_types(wide, False, options.fine_tuning())


def test_classes_of_the_project_are_candidates_and_known_to_the_baselines():
    hidden = HiddenType("has_type", "_tree", "Tree", 0, 0, 0, ": ")
    here = Query(0, 0, "p", hidden, (1, 1), 2, [], 5, ["Reader", "str"], ["Reader", "Tree", "int"])
    elsewhere = replace(here, file=1, classes=[])
    found = candidates()
    own = found.of_queries([here, here, elsewhere])
    # What is a candidate of the training corpus already is not told twice.
    assert [[part.tokens for part in parts] for parts in own] == [
        [{"Reader": [5], "Tree": [7]}, {}],
        [{"Reader": [5], "Tree": [7]}, {}],
        [{"Reader": [5], "Tree": [7]}, {}],
    ]
    # One table for the project, one for what the file names beside it.
    assert own[0] is own[1] is not own[2] and own[0][0] is own[2][0]
    beside = replace(here, file=2, classes=["Leaf", "Tree"])
    assert [part.names for part in found.of_queries([beside])[0]] == [["Reader", "Tree", "int"], ["Leaf"]]
    assert found.baselines([here], own[:1])["class of the name, else frequency"] == [0]
    # A class of the file comes before one of the project that is spelled alike.
    both = replace(here, classes=["TREE"])
    ranks = found.baselines([both], found.of_queries([both]))
    assert ranks["class of the name, else frequency"] == [1]
    without = candidates(project_classes=False)
    own = without.of_queries([here, here, elsewhere])
    assert [[part.tokens for part in parts] for parts in own] == [
        [{}, {"Reader": [5]}],
        [{}, {"Reader": [5]}],
        [{}, {}],
    ]
    # 3 candidates of the training corpus and one of the file, none of them right.
    assert without.baselines([here], own[:1])["class of the name, else frequency"] == [4]


def test_forms_are_what_many_projects_make_of_their_own_names(monkeypatch):
    assert form_of("dict[str, Node]", {"Node"}) == "dict[str, {}]" and form_of("a.Node", {"Node"}) is None
    assert form_of("Node | Leaf", {"Node", "Leaf"}) is None and form_of("Node_", {"Node"}) is None
    monkeypatch.setattr(type_candidates, "FORM_PROJECTS", 2)
    monkeypatch.setattr(type_candidates, "FORM_COUNT", 3)
    one = [
        declared("x", "Node | None"),
        declared("x", "list[Node]"),
        declared("x", "list[Node]"),
        declared("x", "Node"),
    ]
    only_here = [declared("x", "Box[Node]")] * 3
    extra = [
        ("q", [*one, *only_here, declared("x", "Maybe[Node]")]),
        ("r", [one[0], one[0], one[1], declared("x", "Maybe[int]")]),
    ]
    found = candidates(extra=extra)
    # Written three times each, in two projects; Box[Node] in one, Maybe[Node] once; "Node" is a form of its own.
    assert found.forms == ["list[{}]", "{} | None"]
    asked = replace(query(), classes=["Tree"], project_classes=["int"])
    project, file = found.of_queries([asked])[0]
    assert project.tokens == {"list[int]": [7], "int | None": [7]} and project.form.tolist() == [1, 2]
    assert list(file.tokens.items()) == [("Tree", [7]), ("list[Tree]", [7]), ("Tree | None", [8, 9])]
    assert file.form.tolist() == [0, 1, 2] and file.name.tolist() == [0, 0, 0]
    plain = candidates(extra=extra, class_forms=False).of_queries([asked])[0]
    assert [part.tokens for part in plain] == [{}, {"Tree": [7]}]
    few = DeclaredTypes(dict(extra), {"q": {"Node"}, "r": {"Node"}}).without(["r"])
    assert list(few.triples) == ["q"] and few.forms()[1]["{} | None"] == 1


def test_what_is_known_before_code_is_read():
    found = candidates()
    asked = replace(query(), hidden=HiddenType("has_type", "path", "Tree", 0, 0, 0, ": "))
    uses = {"path": Counter(Path=3, Node=1, Other=9), "other": Counter(Tree=5)}
    asked = replace(asked, classes=["Tree"], project_classes=["Node", "Tree"], project_uses=uses)
    (known,) = found.features([asked], found.of_queries([asked]))
    texts = ["Path", "int", "str", "Node", "Tree"]
    assert known.shape == (5, len(Candidates.FEATURES)) and known.dtype == np.float32
    rows = dict(zip(texts, known.tolist(), strict=True))
    # Of 12 parameters 4 are int, 3 str, 2 Path, and a share of 0.1 for each candidate.
    base = np.array([2.1, 4.1, 3.1]) / (12 + 0.3 + 1)
    for _ in ("word", "name"):
        base = (np.array([2, 0, 3]) + 2 * base) / 7
    np.testing.assert_allclose(known[:3, 0], np.log(base), rtol=1e-5)
    # Nobody writes a name of its own project: 0.1 of 13, for one of two names.
    np.testing.assert_allclose(known[3:, 0], np.log(0.1 / 13 / 2), rtol=1e-5)
    assert [rows[text][1:4] for text in texts] == [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert [row[4] for row in known] == [1, 0, 0, 0, 0]
    # The project makes a Path under this name three times and a Node once.
    np.testing.assert_allclose(known[:, 5], np.log([4, 1, 1, 2, 1]), rtol=1e-6)
    # A type of several classes counts by the one that is met most.
    found = candidates(extra=[("q", [declared("z", "Box | Path | Nut")] * 2)])
    for counts in (Counter(Box=1, Path=3, Nut=2), Counter(Nut=2, Path=3, Box=1)):
        asked = replace(asked, project_uses={"path": counts})
        (known,) = found.features([asked], found.of_queries([asked]))
        assert next(iter(found.types)) == "Box | Path | Nut"
        np.testing.assert_allclose(known[0, 5], np.log(4), rtol=1e-6)


def test_what_a_name_means_in_a_project():
    code = """
self._tree = pkg.Tree(1)
tree = Tree()
Tree = 3
call(leaf=Leaf(2), other = other)
if isinstance(self.tree, (Node, pkg.Leaf,)) and isinstance(leaf, str):
    tree == Tree()
"""
    assert uses_of_names(code) == {
        "tree": Counter(Tree=2, Node=1, Leaf=1),
        "leaf": Counter(Leaf=1, str=1),
    }


def test_uses_of_names_are_those_of_all_files_of_a_project_without_annotations():
    code = [
        "def f(tree: Leaf = Tree()):\n    pass\n",
        "tree = Tree()\n",  # no type to hide, but it counts
        "def g(a: int):\n    tree: Tree = Root()\n",
        "def h(tree: int):\n    tree = Other()\n",
    ]
    rows = Dataset.from_dict({"project": ["p", "p", "p", "q"], "language": ["python"] * 4, "code": code})
    files, _ = read_files(context(), rows, "reading")
    assert [file.project for file in files] == ["p", "p", "q"]
    assert files[0].project_uses is files[1].project_uses == {"tree": Counter(Tree=2, Root=1)}
    assert files[2].project_uses == {"tree": Counter(Other=1)}


def test_the_table_leaves_out_what_projects_make_of_their_own_names():
    more = {"p": FACTS_OF_TYPES, "q": [declared("path", "Path")] * 5}
    found = Candidates(DeclaredTypes(more, {"p": set(), "q": {"Path"}}), lambda text: IDS.get(text, [7]), 2)
    asked = replace(query(), hidden=HiddenType("has_type", "new", "Path", 0, 0, 0, ": "))
    (known,) = found.features([asked], found.of_queries([asked]))
    # Path is twice another project's; 17 parameters are declared.
    np.testing.assert_allclose(known[:, 0], np.log(np.array([2.1, 4.1, 3.1]) / (17 + 0.3 + 1)), rtol=1e-5)


def test_types_to_weigh_on_have_the_candidates_of_other_projects(monkeypatch):
    opened = context()
    every = DeclaredTypes.of(opened)
    options = types.TypePredictionOptions(LEAVES, 1)
    for project, other in (("alpha", "epsilon"), ("epsilon", "alpha")):
        questions = types._questions_of_projects(opened, every, [project], options)
        assert {asked.project for asked in questions.queries} == {project}
        assert set(questions.candidates.types) <= {triple.tail for triple in every.triples[other]}
    monkeypatch.setattr(Questions, "right", lambda self: [None] * len(self.queries))
    with pytest.raises(ValueError, match="no hidden type of alpha is a candidate of the other projects"):
        types._questions_of_projects(opened, every, ["alpha"], options)


def test_weights_are_those_that_made_the_data():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(rng.integers(3, 9), 2)) for _ in range(4000)]
    truth = np.array([1.5, -0.7])
    right = [int(np.argmax(found @ truth + rng.gumbel(size=len(found)))) for found in features]
    np.testing.assert_allclose(fit_weights(features, right), truth, atol=0.1)
    # Candidates that are equal may be given as one.
    few = [found.round() for found in features[:300]]
    merged = [merge_equal(found, place) for found, place in zip(few, right[:300], strict=True)]
    rows, counts, places = zip(*merged, strict=True)
    assert sum(map(len, rows)) < sum(map(len, few)) == sum(map(np.sum, counts))
    np.testing.assert_allclose(fit_weights(rows, places, counts), fit_weights(few, right[:300]), atol=1e-4)
    with pytest.raises(ValueError, match="no question to fit weights on"):
        fit_weights([], [])


def test_pools_see_the_opinions_that_they_are_given():
    found = candidates()
    asked = [
        replace(query(), hidden=HiddenType("has_type", name, "str", 0, 0, 0, ": ")) for name in ("path", "q", "z")
    ]
    questions = Questions(None, asked, found, found.of_queries(asked))
    pools = {"table": TABLE, "both": [*MODEL, *TABLE]}
    # Where the model is always right and the table not, the model counts.
    knowing = [np.array([0.0, 0.0, 9.0]) for _ in asked]
    fitted = TypePools(questions, knowing, pools)
    assert len(fitted.weights["table"]) == 6 and fitted.weights["both"][0] > 0.5
    ranks = fitted.ranks(questions, knowing)
    assert (ranks["both"] == 0).all() and not (ranks["table"] == 0).all()
    misled = fitted.ranks(questions, [-values for values in knowing])
    assert (misled["table"] == ranks["table"]).all() and not (misled["both"] == 0).any()
    # Scores count from the best one, to 8 below it.
    expected = np.array([-8.0, -8.0, 0.0]) * fitted.weights["both"][0]
    expected += list(questions.known())[1] @ fitted.weights["both"][1:]
    assert ranks["both"][1] == (expected >= expected[questions.right()[1]]).sum() - 1
    assert len(OPINIONS) == len(set(OPINIONS))


def test_files_know_the_classes_of_their_project_alone():
    opened = context()
    files, _ = types.read_files(opened, opened.test.rows, "")
    rows = opened.test.rows
    for file in files:
        texts = [row["code"] for row in rows if row["project"] == file.project and row["language"] == "python"]
        found = [pair for text in texts for pair in re.findall(r"^\s*class (\w+)|^(_?[A-Z]\w*) = ", text, re.M)]
        written = {name for pair in found for name in pair if name}
        assert file.project_classes == sorted(written)
    assert any(file.project_classes for file in files)
    _, queries = types.find_queries(opened, files, [(0, hidden) for hidden in files[0].hidden])
    assert queries and all(query.project_classes is files[0].project_classes for query in queries)


@pytest.mark.parametrize("by_end", [False, True])
@pytest.mark.parametrize("way", [types.LEAF, types.TEXT])
def test_ranks_against_a_naive_loop(way, by_end, monkeypatch):
    opened = context(max_examples=20)
    files, _ = types.read_files(opened, opened.test.rows, "hiding types")
    windows, queries = types.find_queries(opened, files, [(0, hidden) for hidden in files[0].hidden[:4]])
    chosen = Candidates(DeclaredTypes.of(opened), types.LeafEncoder(opened.tokenizer), 2, 1)
    # One of the hidden types is a class of the file and not of the training corpus.
    moved = next(item.hidden.type for item in queries if item.hidden.type in chosen.types)
    tokens = chosen.types.pop(moved)
    own = [
        (*parts, OwnTypes({moved: tokens}, [moved], *np.zeros((2, 1), int))) for parts in chosen.of_queries(queries)
    ]
    # A candidate with the same tokens is a tie, which counts against the model.
    twin = OwnTypes({"Twin": tokens}, ["Twin"], *np.zeros((2, 1), int))
    asked = Questions(windows, queries, chosen, [(*parts, twin) for parts in own])
    given = types.score_types(opened, asked, way, by_end=by_end)
    ranks = asked.ranks(given)
    mask, end = opened.tokenizer.mask_token_id, opened.tokenizer.sep_token_id
    for item, tables, values, rank in zip(queries, asked.tables(), given, ranks, strict=True):
        scores = {}
        for size in (1, 2):
            ask = ask_in_leaf if way == types.LEAF else ask_in_text
            masks = 2 if by_end else size
            question, _ = ask(windows[item.window], item, [mask] * masks, opened.config)
            batch = opened.collator()([question])
            with torch.no_grad():
                logits = opened.model()(**opened.inputs(batch)).logits[0].log_softmax(-1)
            at = (batch["input_ids"][0] == mask).nonzero()[:, 0].tolist()
            assert len(at) == masks
            for text, tokens in ChainMap(*tables).items():
                if len(tokens) == size:
                    told = [*tokens, end][:2] if by_end else tokens
                    score = sum(float(logits[column, token]) for column, token in zip(at, told, strict=True))
                    scores[text] = score + (0 if by_end else chosen.length_prior[item.relation][size - 1])
        assert {len(tokens) for tokens in ChainMap(*tables).values()} == {1, 2}
        np.testing.assert_allclose(values, [scores[text] for table in tables for text in table], rtol=1e-4)
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
            tokens = ChainMap(*asked.tables()[item]).get(queries[item].hidden.type, [])
            size = int((batch["labels"][row] == 0).sum())
            tokens = [*tokens, end][:size] if by_end else tokens
            for place, token in enumerate(tokens if len(tokens) == size else []):
                logits[row * size + place, token] = 50.0
        return SimpleNamespace(logits=logits)

    order = np.argsort(-windows.lengths[[item.window for item in queries]], kind="stable").tolist()
    monkeypatch.setattr(opened, "predict", knowing)
    asked = replace(asked, own=own)
    ranks = asked.ranks(types.score_types(opened, asked, way, by_end=by_end))
    for item, tables, rank in zip(queries, asked.tables(), ranks, strict=True):
        assert (rank == 0) == (item.hidden.type in ChainMap(*tables))


def test_one_project_is_too_few_to_weigh_a_table_on(caplog):
    opened = context()
    one = DeclaredTypes({"p": FACTS_OF_TYPES, "q": []}, {})
    assert types._projects_left_out(opened, one) == []
    assert "only one project of the training corpus" in caplog.text
    two = DeclaredTypes({"p": FACTS_OF_TYPES, "q": FACTS_OF_TYPES}, {})
    assert len(types._projects_left_out(opened, two)) == 1


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
    name = f"fine-tuned, {types.LEAF}"
    assert tuned["details"]["asked"] == f"{name}, with table and signs"
    zero_shot = {f"zero-shot, {types.LEAF}", f"zero-shot, {types.TEXT}"}
    assert set(tuned["controls"]) == {name, f"{name}, with the table", *zero_shot}
    assert tuned["controls"][f"zero-shot, {types.LEAF}"] == both["controls"][types.LEAF]
    assert tuned["controls"][f"zero-shot, {types.TEXT}"] == both["controls"][types.TEXT]
    assert tuned["baselines"] == both["baselines"] and 0 < tuned["counts"]["files_to_learn_from"] < 3
    # Only the other of the two projects is learned from.
    (left_out,) = tuned["details"]["weights"]["projects"]
    annotated, _ = types.read_files(context(), context().training.rows, "")
    learned = sum(tuned["counts"][name] for name in ("types_to_learn_from", "types_left_out_of_learning"))
    assert learned == sum(len(file.hidden) for file in annotated if file.project != left_out)
    assert tuned["details"]["weights"]["projects"] == both["details"]["weights"]["projects"] != []
    assert both["details"]["asked"] == f"{types.LEAF}, with table and signs"
    assert set(both["controls"]) == {f"{types.LEAF}, with the table", types.LEAF, types.TEXT}
    assert off["details"]["asked"] == f"{types.TEXT}, with table and signs"
    assert set(off["controls"]) == {f"{types.TEXT}, with the table", types.TEXT}
    without = run_task("type_prediction", checkpoint(), corpora()[1], type_signs=False, type_controls=False, **options)
    assert without["figures"] == both["controls"][f"{types.LEAF}, with the table"]
    assert without["baselines"] == {k: v for k, v in both["baselines"].items() if k != "table and signs"}
    alone = run_task("type_prediction", checkpoint(), corpora()[1], type_table=False, type_controls=False, **options)
    assert alone["figures"] == both["controls"][types.LEAF] and alone["controls"] == {}
    assert set(both["baselines"]) - set(alone["baselines"]) == {"the table", "table and signs"}
    assert "weights" not in alone["details"]
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
