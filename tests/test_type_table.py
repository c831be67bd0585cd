"""The table of declared types, its prior, and scalings of a model together with it."""

import doctest
import math

import numpy as np
import pytest

from graphmert.code_graph.annotations import find_slots
from graphmert.kg_extraction import type_table
from graphmert.kg_extraction.calibration import Calibration, Example, Scaling, calibrate, fit, top_answers
from graphmert.kg_extraction.candidates import Head
from graphmert.kg_extraction.type_table import SHRINKAGE, TypeTable, default_kind, word_of

CODE = """
def load(path: str, base_path: "str", strict: bool = False, item: Node = None) -> Optional[int]: ...
def read(path: Path, strict: bool = True, many: List[int] = None, some: typing.List[int] = None) -> None: ...
def show(path: str) -> None: ...
"""
FILES = [("p", "a.py", "python", CODE), ("p", "b.js", "javascript", "function f() {}")]


def head(code: str, name: str) -> Head:
    slot = next(slot for slot in find_slots(code) if slot.name == name)
    return Head(slot.name, slot.start, slot.end, slot.name, "parameter", slot)


def test_prior_is_the_shrunken_share_level_by_level():
    table = TypeTable.of(FILES)
    keys = ["str", "Path", "bool", "int", "float"]
    prior = np.exp(table.log_prior("has_type", head("def f(path): ...", "path"), keys))
    # 9 annotations of parameters: str 3, bool 2, list[int] 2, Path and Node once; three types here are unknown to it.
    once = (2 + 1) / (9 + 2)
    first = np.array([(1 - once) * 3 / 9, (1 - once) / 9, (1 - once) * 2 / 9, once / 2, once / 2])
    plain = (np.array([3, 1, 0, 0, 0]) + SHRINKAGE * first) / (4 + SHRINKAGE)
    word = (np.array([3, 1, 0, 0, 0]) + SHRINKAGE * plain) / (4 + SHRINKAGE)
    name = (np.array([2, 1, 0, 0, 0]) + SHRINKAGE * word) / (3 + SHRINKAGE)
    assert prior == pytest.approx(name)


def test_default_and_words_tell_what_a_new_name_is():
    table = TypeTable.of(FILES)
    keys = ["str", "bool", "Path"]
    for code, name, best in (
        ("def f(other=True): ...", "other", "bool"),
        ("def f(old_path): ...", "old_path", "str"),
    ):
        assert keys[int(table.log_prior("has_type", head(code, name), keys).argmax())] == best
    assert [word_of("has_type", "baseURL2"), word_of("returns", "is_open"), word_of("has_type", "_")] == [
        "url",
        "is",
        "_",
    ]
    kinds = [default_kind(slot) for slot in find_slots("def f(a, b=None, c=-1, d=1.5, e=b'', f=x(), *g): ...")]
    assert kinds == ["return", "", "None", "int", "float", "bytes", "other", "star"]


def test_candidates_are_types_that_any_file_can_name():
    table = TypeTable.of(FILES)
    # `Path` and `Node` are classes of some file; what is written once is no candidate; spellings count together.
    assert table.spellings == {"has_type": ["str", "bool", "List[int]"], "returns": ["None"]}


def test_doctest():
    tried = doctest.testmod(type_table, extraglobs={"find_slots": find_slots})
    assert tried.failed == 0 and tried.attempted


def examples(number: int, with_prior: bool, seed: int = 0) -> list[Example]:
    """Questions of four answers whose right one is drawn from softmax(s / 2 + q), or is none of them."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(number):
        scores, prior = rng.normal(size=4) * 4, np.log(rng.dirichlet(np.ones(4)))
        weights = np.exp(np.append(scores / 2 + prior, -1.0))
        gold = int(rng.choice(5, p=weights / weights.sum()))
        made.append(Example(scores, -1 if gold == 4 else gold, index, prior[:, None] if with_prior else None))
    return made


def test_fit_finds_temperature_weight_and_something_else():
    scaling = fit(examples(4000, True))
    assert scaling.temperature == pytest.approx(2, rel=0.1)
    assert scaling.prior_weights == (pytest.approx(1, rel=0.1),)
    assert scaling.other == pytest.approx(-1, abs=0.2)
    fresh = examples(2000, True, seed=1)
    right = {
        name: top_answers(fresh, made)[1].mean()
        for name, made in (
            ("both", scaling),
            ("model", fit(fresh, num_priors=0)),
            ("table", fit(fresh, use_model=False)),
        )
    }
    assert right["both"] > max(right["model"], right["table"]) + 0.01


def test_table_alone_does_not_see_the_model():
    scaling = fit(examples(500, True), use_model=False)
    prior = np.log([[0.5], [0.3], [0.2]])
    assert math.isinf(scaling.temperature)
    assert scaling.probabilities(np.array([0.0, 50.0, -3.0]), prior) == pytest.approx(
        scaling.probabilities(np.zeros(3), prior)
    )
    with pytest.raises(ValueError, match="neither"):
        fit(examples(60, False), use_model=False)


def test_calibration_with_a_table_is_saved_and_read(tmp_path):
    made = Calibration(source="here", types=TypeTable.of(FILES))
    calibrate({"tail:has_type": examples(80, True), "tail:calls": examples(80, False)}, made)
    assert {"tail:has_type", "tail:has_type:model", "tail:has_type:table", "tail:calls", "tail"} == set(made.scalings)
    made.save(tmp_path / "calibration.json")
    read = Calibration.load(tmp_path / "calibration.json")
    assert read == made and read.scaling("tail", "has_type", "table").temperature == math.inf
    assert read.scaling("tail", "calls", "table") == Scaling()
    assert "Infinity" not in (tmp_path / "calibration.json").read_text()
