"""Types by signs of use in knowledge-graph extraction: the classifier that is learned and saved, its say on answers."""

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest
from kg_corpus import PROJECT, tiny_checkpoint
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neural_network import MLPClassifier
from tiny_tasks import checkpoint, corpora

from graphmert.code_graph.class_features import ClassNames, class_features
from graphmert.code_graph.project_usage import ProjectUsage
from graphmert.code_graph.type_names import class_names_in
from graphmert.code_graph.usage import read_usage
from graphmert.kg_extraction import sign_classifier
from graphmert.kg_extraction.__main__ import main
from graphmert.kg_extraction.calibration import PARTS, Calibration, Example, calibrate
from graphmert.kg_extraction.decoding import length_prior
from graphmert.kg_extraction.extraction import Extractor
from graphmert.kg_extraction.held_out import type_heads, without_annotations
from graphmert.kg_extraction.sign_classifier import (
    BATCH_SIZE,
    HIDDEN_UNITS,
    SignClassifier,
    declared_with_signs,
    learn_signs,
)
from graphmert.kg_extraction.type_evidence import PRIORS
from graphmert.kg_extraction.type_table import TypeTable


def some_signs(answers: list[str], number: int = 900) -> tuple[list[list[str]], list[str]]:
    """Signs that tell an answer most of the time."""
    rng = np.random.default_rng(1)
    chosen = rng.choice(answers, number).tolist()
    return [[f"of {rng.choice([text, answers[0]])}", f"noise {rng.integers(3)}"] for text in chosen], chosen


@pytest.mark.parametrize("answers", [["int", "str", "{}"], ["int", "str"], ["int"]])
def test_the_saved_layers_are_those_that_scikit_learn_fitted(answers, tmp_path):
    signs, chosen = some_signs(answers)
    classifier = SignClassifier.fit(signs, chosen, seed=3)
    vectorizer = CountVectorizer(analyzer=list, min_df=8, binary=True, dtype=np.float32)
    fitted = MLPClassifier((HIDDEN_UNITS,), batch_size=BATCH_SIZE, max_iter=75, random_state=3)
    presence = vectorizer.fit_transform(signs)
    with pytest.warns(UserWarning) if len(answers) > 1 else pytest.MonkeyPatch.context():
        fitted.fit(presence, chosen)
    asked = [*signs[:50], [], ["never seen"], ["of int", "of int"]]
    expected = fitted.predict_proba(vectorizer.transform(asked))
    if len(answers) > 1:
        np.testing.assert_allclose(np.exp(classifier.log_p(asked)), expected, atol=1e-5)
    else:
        assert np.exp(classifier.log_p(asked)) == pytest.approx(np.ones((len(asked), 1)))
    assert classifier.log_p([]).shape == (0, len(answers))
    classifier.save(tmp_path / "signs.safetensors")
    read = SignClassifier.load(tmp_path / "signs.safetensors")
    np.testing.assert_array_equal(read.log_p(asked), classifier.log_p(asked))
    assert [part.tolist() for part in read.places(["int", "?"])] == [
        part.tolist() for part in classifier.places(["int", "?"])
    ]


def test_what_is_no_classifier_is_refused(tmp_path):
    (tmp_path / "signs.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no classifier of signs"):
        SignClassifier.load(tmp_path / "signs.safetensors")
    classifier = SignClassifier.fit(*some_signs(["int", "str"]))
    with pytest.raises(ValueError, match=r"sign_bias must have the shape|sign_weights must have the shape"):
        replace(classifier, signs=classifier.signs[:-1])
    made = Calibration(source="here", types=TypeTable.of(PROJECT), signs=classifier)
    made.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json").signs.answers == ["int", "str"]
    (tmp_path / "calibration.safetensors").unlink()
    with pytest.raises(ValueError, match=r"calibration\.safetensors"):
        Calibration.load(tmp_path / "calibration.json")


def test_types_are_learned_without_their_annotations():
    other = ("other", "b.js", "javascript", "function f(a) {}")
    found = list(declared_with_signs([("app", [code for *_, code in PROJECT])]))
    assert {(project, type_) for project, _, type_ in found} == {
        ("app", type_) for type_ in ("str", 'Optional["Node"]', 'Iterator["Node"]', "int", "Node")
    }
    assert not any(
        "Node" in sign for _, signs, type_ in found if type_ != "Node" for sign in signs if "given" not in sign
    )
    classifier = learn_signs([*PROJECT, other])
    # Spellings of one type are one answer, and a class of the project is a form.
    assert set(classifier.answers) == {"str", "None | {}", "Iterator[{}]", "int", "{}"}
    # Annotations of another language are another language's.
    assert learn_signs([(*other[:3], PROJECT[1][3])]) is None
    assert learn_signs([other]) is None and learn_signs([("p", "a.py", "python", "def f(a): ...")]) is None


def test_doctest():
    tried = doctest.testmod(sign_classifier)
    assert tried.failed == 0 and tried.attempted


def test_evidence_is_that_of_table_classifier_and_classes():
    stripped, hidden = without_annotations([*PROJECT, ("app", "b.js", "javascript", "function f(a) {}")])
    table, signs = TypeTable.of(PROJECT), learn_signs(PROJECT)
    extractor = Extractor(*tiny_checkpoint(), stripped, batch_size=8, types=table, signs=signs)
    usages = [read_usage(code) for *_, code in stripped]
    together = ProjectUsage(usages[:-1])
    asked = 0
    for relation in ("has_type", "returns"):
        heads = [(number, head) for number, head, _ in type_heads(extractor, hidden, relation)]
        for answer in extractor.ask_tails(relation, heads, length_prior(None, 7)):
            prior = extractor.type_prior(relation, answer)
            assert prior.shape == (len(answer.keys), len(PRIORS))
            np.testing.assert_array_equal(prior[:, 0], table.log_prior(relation, answer.head, answer.keys))
            (usage,) = (
                usage
                for usage in usages[answer.file].usages
                if (usage.relation, usage.start) == (relation, answer.head.start)
            )
            (log_p,) = signs.log_p([together.signs(usage)])
            names = ClassNames(sorted({name for key in answer.keys for name in class_names_in(key)}))
            assert {"Node", "Leaf"} <= set(names.names)
            classes = class_features(usage, together, [names])
            for key, row in zip(answer.keys, prior, strict=True):
                form = key.replace("Node", "{}").replace("Leaf", "{}").replace("{} | None", "None | {}")
                (column,), (share,) = signs.places([form if form.count("{}") == 1 else key])
                assert row[1] == pytest.approx(log_p[column] + share)
                words = class_names_in(key)
                assert row[2:].tolist() == pytest.approx(
                    [max((values.get(word, 0.0) for word in words), default=0.0) for values in classes]
                )
            asked += bool(prior[:, 2:].any())
    assert asked >= 2
    # Without signs only the table is left, and what is no type has nothing at all.
    plain = Extractor(*tiny_checkpoint(), stripped, batch_size=8, types=table)
    np.testing.assert_array_equal(plain.type_prior(relation, answer), prior[:, :1])
    assert extractor.type_prior("calls", answer) is None


def test_a_name_whose_use_cannot_be_read_has_the_signs_of_nothing():
    files = [("app", "a.py", "python", "def f(node, text): ...\n"), ("app", "b.py", "python", "def g(a):\n  if\n")]
    signs = learn_signs(PROJECT)
    extractor = Extractor(*tiny_checkpoint(), files, types=TypeTable.of(PROJECT), signs=signs)
    heads = [(1, head) for head in extractor.names.heads(1, "has_type")]
    (answer,) = extractor.ask_tails("has_type", heads, length_prior(None, 7))
    prior = extractor.type_prior("has_type", answer)
    (log_p,) = signs.log_p([[]])
    columns, shares = signs.places(answer.keys)
    np.testing.assert_allclose(prior[:, 1], log_p[columns] + shares)
    assert not prior[:, 2:].any()


def test_answers_of_several_files_are_not_mixed_up():
    """More files than are remembered, each with a class of its own."""
    code = "def make(thing):\n    return {0}()\n\n\nclass {0}:\n    pass\n"
    classes = [f"N{first}{second}" for first in "abcdefghil" for second in "nopersti"[:7]]
    files = [(f"p{n % 3}", f"m{n}.py", "python", code.format(name)) for n, name in enumerate(classes)]
    extractor = Extractor(*tiny_checkpoint(), files, types=TypeTable.of(PROJECT), signs=learn_signs(PROJECT))
    heads = [(n, head) for n in range(len(files)) for head in extractor.names.heads(n, "returns")]
    made = PRIORS.index("an instance is made")
    answers = extractor.ask_tails("returns", heads, length_prior(None, 7))
    assert len(answers) == 70 == len(set(classes))
    for answer in [*answers, *answers[:3]]:
        prior = extractor.type_prior("returns", answer)
        marked = {key for key, row in zip(answer.keys, prior, strict=True) if row[made]}
        # Its own class, in all of its forms, and no other.
        assert {name for key in marked for name in class_names_in(key)} == {classes[answer.file]}


def test_other_projects_do_not_count_and_the_best_class_of_an_answer_does():
    code = "class Node:\n    def walk(self): ...\n    def fall(self): ...\n\n\n"
    code += "class Leaf:\n    def fall(self): ...\n    def rot(self): ...\n\n\n"
    code += "def go(node):\n    node.walk()\n    node.fall()\n"
    other = "def put(node):\n    node.rot()\n"

    def evidence_of(files: list) -> tuple[list[str], np.ndarray]:
        extractor = Extractor(*tiny_checkpoint(), files, types=TypeTable.of(PROJECT), signs=learn_signs(PROJECT))
        (head,) = [head for head in extractor.names.heads(0, "has_type") if head.name == "node"]
        (answer,) = extractor.ask_tails("has_type", [(0, head)], length_prior(None, 7))
        answer = replace(answer, keys=[*answer.keys, "dict[Leaf, Node]", "dict[Node, Leaf]", "tuple[Leaf, Leaf]"])
        return answer.keys, extractor.type_prior("has_type", answer)

    keys, alone = evidence_of([("app", "a.py", "python", code)])
    _, beside = evidence_of([("app", "a.py", "python", code), ("more", "b.py", "python", other)])
    _, together = evidence_of([("app", "a.py", "python", code), ("app", "b.py", "python", other)])
    np.testing.assert_array_equal(alone, beside)
    fits, elsewhere = PRIORS.index("its attributes"), PRIORS.index("its attributes in the project")
    assert not np.array_equal(alone[:, elsewhere], together[:, elsewhere])
    # Whichever class comes first in it, an answer has the value of the one that fits best.
    node, leaf, *both, leaves = [float(alone[keys.index(key), fits]) for key in ("Node", "Leaf", *keys[-3:])]
    assert both == [node, node] == [1, 1] and 0 <= leaf == leaves < 1


def examples(number: int, seed: int = 0) -> list[Example]:
    """Questions of five answers, drawn from softmax(s / 2 + q_1 / 2 + 2 q_3); what is in the second column means nothing."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(number):
        scores, prior = rng.normal(size=5) * 3, rng.normal(size=(5, 3))
        weights = np.exp(scores / 2 + prior @ [0.5, 0.0, 2.0])
        made.append(Example(scores, int(rng.choice(5, p=weights / weights.sum())), index, prior))
    return made


def test_each_opinion_has_its_weight():
    made = Calibration()
    calibrate({"tail:has_type": examples(6000)}, made)
    scaling = made.scaling("tail", "has_type")
    assert scaling.temperature == pytest.approx(2, rel=0.1)
    assert scaling.prior_weights == pytest.approx((0.5, 0.0, 2.0), abs=0.1)
    assert {f"tail:has_type:{part}" for part in PARTS} < set(made.scalings)
    number = {part: len(made.scaling("tail", "has_type", part).prior_weights) for part in PARTS}
    assert number == {"model": 0, "table": 1, "model and table": 1, "table and signs": 3}
    assert np.isinf(made.scaling("tail", "has_type", "table and signs").temperature)
    right = {part: made.figures[f"tail:has_type:{part}"]["accuracy"] for part in PARTS}
    right["all"] = made.figures["tail:has_type"]["accuracy"]
    assert right["all"] > right["table and signs"] + 0.02 > right["table"] + 0.1


def test_columns_without_an_answer_stay_impossible():
    """Questions of two answers beside one of forty: nothing may be gained by what is not there."""
    few = [Example(np.zeros(2), -(n % 2), n, np.zeros((2, 2))) for n in range(60)]
    many = Example(np.zeros(40), 0, 60, np.zeros((40, 2)))
    made = Calibration()
    calibrate({"tail:has_type": [*few, many]}, made)
    for part in (None, *PARTS):
        scaling = made.scaling("tail", "has_type", part)
        # The first answer is right in every second one; with 38 phantoms beside it "something else" would take all.
        assert scaling.probabilities(few[0].scores, few[0].prior).sum() == pytest.approx(0.5, abs=0.05), part


def test_the_command_learns_signs_and_uses_them_again(tmp_path, capsys):
    training, _ = corpora()
    model = str(checkpoint("both"))
    common = [
        "--model",
        model,
        "--source",
        f"dir:{_code(tmp_path)}",
        "--relations",
        "has_type,returns",
        "--threshold",
        "0",
    ]
    assert main([*common, "--output", str(tmp_path / "first"), "--calibrate", str(training)]) == 0
    calibration = tmp_path / "first" / "calibration.json"
    figures = json.loads((tmp_path / "first" / "run.json").read_text())["calibration"]
    # Too few facts for each relation by itself.
    assert {f"tail:{part}" for part in PARTS} < set(figures)
    assert Calibration.load(calibration).signs.answers
    assert main([*common, "--output", str(tmp_path / "again"), "--calibration", str(calibration)]) == 0
    first, again = ((tmp_path / name / "facts.jsonl").read_text() for name in ("first", "again"))
    assert first == again and first
    assert main([*common, "--output", str(tmp_path / "no"), "--calibrate", str(training), "--no-type-signs"]) == 0
    assert not (tmp_path / "no" / "calibration.safetensors").exists()
    assert Calibration.load(tmp_path / "no" / "calibration.json").signs is None
    figures = json.loads((tmp_path / "no" / "run.json").read_text())["calibration"]
    assert "tail:table" in figures and "tail:table and signs" not in figures
    # Types that nobody asks for are not learned.
    calls = [*common[:4], "--relations", "calls", "--output", str(tmp_path / "calls"), "--calibrate", str(training)]
    assert main(calls) == 0 and not (tmp_path / "calls" / "calibration.safetensors").exists()
    capsys.readouterr()


def _code(directory):
    for _, path, _, text in PROJECT:
        (directory / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / "code" / path).write_text(text)
    return directory / "code"
