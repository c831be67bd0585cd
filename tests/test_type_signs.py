"""Hidden types by signs of use: the classifier, which classes fit, and where opinions stand among the candidates."""

import builtins
import re
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from tiny_tasks import context

import graphmert.tasks.type_prediction as types
from graphmert.code_graph.class_features import CLASS_FEATURES, ClassNames, class_features
from graphmert.code_graph.project_usage import ProjectUsage
from graphmert.code_graph.usage import read_usage
from graphmert.kg_extraction.sign_classifier import SignClassifier
from graphmert.tasks import type_candidates, type_signs
from graphmert.tasks.type_candidates import DeclaredTypes
from graphmert.tasks.type_scoring import Questions
from graphmert.tasks.type_signs import TypeSigns


def test_classes_are_found_by_their_words():
    names = ClassNames(["IfExpr", "Expr", "Expression", "URL", "_Node"])
    assert names.within(["visit", "if", "expr"]) == {"IfExpr": 2.0, "Expr": 1.0}
    assert names.sharing(["left", "expr"]) == pytest.approx({"IfExpr": 1 / 3, "Expr": 1 / 2})
    assert names.sharing(["expr", "expr"])["Expr"] == 1.0
    assert names.beginning(["expr"]) == {"IfExpr", "Expr", "Expression"} and names.beginning(["base", "url"]) == {
        "URL"
    }
    # A single letter is short for everything.
    assert names.beginning(["e"]) == set() and names.beginning(["no"]) == {"_Node"}


SOURCE = '''
class Node:
    def walk(self):
        return self

    def visit_leaf(self, leaf, n, other=None):
        """Visit a Leaf."""
        if isinstance(leaf, Twig):
            leaf.fall()
        n.walk()
        return Leaf()


class Leaf:
    def fall(self): ...


class Twig(Leaf): ...


class Walk: ...


def walk_on(walk): ...


def start(n):
    Node().visit_leaf(Twig(), Node())
    Node().visit_leaf(Twig(), other=Leaf())
    n.fall()
'''


def test_how_classes_fit():
    usages = {(one.relation, one.name, one.function): one for one in read_usage(SOURCE).usages}
    project, names = ProjectUsage([read_usage(SOURCE)]), ClassNames(["Node", "Leaf", "Twig", "Walk"])

    def features(*key) -> dict[str, dict[str, float]]:
        return dict(zip(CLASS_FEATURES, class_features(usages[key], project, [names]), strict=True))

    leaf = features("has_type", "leaf", "visit_leaf")
    assert leaf["its attributes"] == pytest.approx({"Leaf": 1.0, "Twig": 1.0})
    # A parameter is not what the first word of its function says that it does.
    assert features("has_type", "walk", "walk_on")["in the function's name"] == {}
    assert features("returns", "walk_on", "walk_on")["in the function's name"] == {"Walk": 1.0}
    assert leaf["in the function's name"] == {"Leaf": 1.0} and leaf["the class around"] == {"Node": 1.0}
    assert set(leaf["in the docstring"]) == {"Visit", "Leaf"}
    assert leaf["words shared"] == leaf["short for it"] == {"Leaf": 1.0}
    assert leaf["an instance is made"] == {}
    n = features("has_type", "n", "visit_leaf")
    # `start` reads something else on a parameter of the same name.
    assert set(n["its attributes"]) == {"Node"} and set(n["its attributes in the project"]) == {"Node", "Leaf", "Twig"}
    result = features("returns", "visit_leaf", "visit_leaf")
    assert result["an instance is made"] == {"Leaf": 1.0}
    assert features("returns", "walk", "walk")["an instance is made"] == {"Node": 1.0}
    assert features("has_type", "other", "visit_leaf")["its attributes"] == {}


def test_the_classifier_learns_types_by_their_signs():
    rng = np.random.default_rng(0)
    words = {"int": ["operand", "index"], "str": ["method:join", "element"], "{}": ["attribute:walk", "isinstance"]}
    signs, answers = [], []
    for answer in rng.choice(list(words), 3000):
        signs.append(["everywhere", *rng.choice(words[answer], 1), *rng.choice(["noise", "more"], 1)])
        answers.append(str(answer))
    answers[:5] = ["rare", "rare", "rare", "rarer", "rarer"]
    classifier = SignClassifier.fit(signs, answers)
    texts = ["int", "str", "{}", "rare", "rarer", "never"]
    columns, shares = classifier.places(texts)
    log_p = classifier.log_p([["everywhere", "index"], ["everywhere", "method:join"], ["attribute:walk"]])
    assert (log_p[:, columns[:3]].argmax(1) == [0, 1, 2]).all() and (np.exp(log_p[:, columns[:3]]).max(1) > 0.9).all()
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-5)
    # Rare answers share one column, by how often they were seen.
    assert columns[3] == columns[4] == columns[5] and shares[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.exp(shares[3:]), np.array([3, 2, 0.3]) / 6)
    again = SignClassifier.fit(signs, answers).log_p([["everywhere", "index"]])
    np.testing.assert_array_equal(again, classifier.log_p([["everywhere", "index"]]))
    with pytest.raises(ValueError, match="no signs of types"):
        SignClassifier.fit([[], []], ["int", "str"])


def asked_of_the_tiny_corpus() -> tuple[Questions, TypeSigns]:
    opened = context()
    declared = DeclaredTypes.of(opened)
    signs = TypeSigns.of(opened, declared)
    files, _ = types.read_files(opened, opened.test.rows, "", with_usage=True)
    every = [(number, hidden) for number, file in enumerate(files) for hidden in file.hidden]
    windows, queries = types.find_queries(opened, files, every)
    options = types.TypePredictionOptions(12, 1)
    return Questions.of(windows, queries, options.candidates(declared, opened), signs), signs


def every_class_fits(usage, project, names: list[ClassNames]) -> list[dict[str, float]]:
    """Values that differ for every class and feature."""
    every = [name for some in names for name in some.names]
    return [
        {name: 1 + zlib.crc32(f"{column} {name}".encode()) % 997 for name in every}
        for column in range(len(CLASS_FEATURES))
    ]


def test_opinions_stand_at_their_candidates(monkeypatch):
    monkeypatch.setattr(type_signs, "class_features", every_class_fits)
    for name in ("FORM_PROJECTS", "FORM_COUNT"):
        monkeypatch.setattr(type_candidates, name, 1)
    questions, signs = asked_of_the_tiny_corpus()
    assert len(questions.queries) > 50 and all(query.usage is not None for query in questions.queries)
    # One whose usage is not known has opinions all the same.
    questions.queries[0] = replace(questions.queries[0], usage=None)
    found = list(signs.features(questions.candidates, questions.queries, questions.own))
    known = list(questions.known())
    seen = Counter()
    with_name = {
        name: {list(questions.candidates.types)[i] for i in at} for name, at in questions.candidates.with_name.items()
    }
    for query, own, features, everything in zip(questions.queries, questions.own, found, known, strict=True):
        np.testing.assert_array_equal(everything[:, -features.shape[1] :], features)
        texts = [*questions.candidates.types, *(text for part in own for text in part.tokens)]
        assert features.shape == (len(texts), len(TypeSigns.FEATURES))
        if query.usage is None:
            assert not features[:, 1:].any()
            continue
        (log_p,) = signs._classifier.log_p([query.project_usage.signs(query.usage)])
        names = [None] * len(questions.candidates.types) + [part.names[i] for part in own for i in part.name]
        forms = ["{}", *questions.candidates.forms]
        answers = [*questions.candidates.types, *(forms[i] for part in own for i in part.form)]
        columns, shares = signs._classifier.places(answers)
        np.testing.assert_allclose(features[:, 0], log_p[columns] + shares, rtol=1e-5)
        every_name = ClassNames([*questions.candidates.with_name, *(name for part in own for name in part.names)])
        by_class = every_class_fits(None, None, [every_name])
        for text, name, given in zip(texts, names, features[:, 1:], strict=True):
            words = [name] if name else [word for word, types_ in with_name.items() if text in types_]
            assert given.tolist() == [max((values[word] for word in words), default=0.0) for values in by_class], text
            seen["own" if name else "of a class" if words else "of no class"] += 1
    assert questions.candidates.forms and min(seen.values()) > 40 and len(seen) == 3, seen


def test_a_type_has_the_highest_value_of_its_names():
    chosen = object.__new__(type_candidates.Candidates)
    chosen.types = {"dict[Leaf, Node]": [1], "Leaf": [2], "int": [3]}
    for leaf, node in ((2.0, 1.0), (1.0, 2.0)):
        assert chosen.by_name({"Leaf": leaf, "Node": node, "Other": 5.0}).tolist() == [2.0, leaf, 0.0]


def test_signs_hold_nothing_of_annotations():
    opened = context()
    files, _ = types.read_files(opened, opened.test.rows, "", with_usage=True)
    told = 0
    for file in files:
        # What only imports name, was imported for annotations.
        texts = [other.text for other in files if other.project == file.project]
        known = re.sub(r"^(?:from|import) .*", "", "\n".join(texts), flags=re.MULTILINE)
        for hidden in file.hidden:
            usage = file.usages[hidden.relation, hidden.start]
            found = " ".join([*file.project_usage.signs(usage), *usage.made, *usage.mentioned, *usage.attributes])
            for word in re.findall(r"[A-Za-z_]\w+", hidden.type):
                if word not in known and not hasattr(builtins, word):
                    told += 1
                    assert not re.search(rf"\b{word}\b", found), (file.project, hidden)
    assert told > 5


def test_projects_that_are_left_out_are_not_learned_from(monkeypatch):
    opened = context()
    declared = DeclaredTypes.of(opened)
    learned = {}

    def remember(signs, answers, seed):
        learned["answers"] = Counter(answers)

    monkeypatch.setattr(type_signs.SignClassifier, "fit", remember)
    TypeSigns.of(opened, declared)
    every = learned["answers"]
    # Every declared type is learned from, a project's own class as a form.
    assert sum(every.values()) == sum(map(len, declared.triples.values())) and every["{}"] > 0
    project = max(declared.triples, key=lambda name: len(declared.triples[name]))
    TypeSigns.of(opened, declared, [project])
    rest = sum(len(found) for name, found in declared.triples.items() if name != project)
    assert 0 < sum(learned["answers"].values()) == rest
