"""The benchmarks of predicted facts: coverage, baselines that know no answer, and what is hidden."""

import numpy as np
import pytest
from kg_corpus import PROJECT, tiny_checkpoint

from graphmert.benchmarks.kg_precision import at_same_coverage, callee_table, figures_of, hidden_from_graph
from graphmert.kg_extraction.extraction import Extractor
from graphmert.kg_extraction.held_out import without_annotations


def test_figures_at_the_same_coverage():
    model = (np.array([0.95, 0.8, 0.6, 0.2]), np.array([True, False, True, False]))
    table = (np.array([0.1, 0.9, 0.3, 0.4]), np.array([True, True, False, False]))
    figures = figures_of({"model": model, "table": table})
    assert [figures["model"][f"predicted_at_{t}"] for t in (0.5, 0.7, 0.9)] == [3, 2, 1]
    assert [figures["model"][f"precision_at_{t}"] for t in (0.5, 0.7, 0.9)] == pytest.approx([2 / 3, 0.5, 1])
    same = figures["table, at the first one's n"]
    # The table's most confident three are right, wrong, wrong.
    assert [same[f"predicted_at_{t}"] for t in (0.5, 0.7, 0.9)] == [3, 2, 1]
    assert [same[f"precision_at_{t}"] for t in (0.5, 0.7, 0.9)] == pytest.approx([1 / 3, 0.5, 1])
    assert at_same_coverage([0, 0, 0], *table)["precision_at_0.5"] is None


def test_the_table_of_callees_does_not_know_the_hidden_one():
    # `run` of file 0 calls `only`, which nobody else calls: counting cannot find it.
    stated = [(0, 1, "open"), (0, 1, "only"), (0, 9, "open"), (0, 20, "read")]
    shares, hits = callee_table(stated, [(0, 1), (0, 9), (0, 20)], ["only", "open", ""])
    assert hits.tolist() == [False, True, False]
    # The first head knows `open`, so `read` is the best of the others; nothing is hidden of the third.
    assert shares == pytest.approx([1 / 2, 1 / 2, 1])


def test_files_that_still_state_a_type_are_left_out():
    stripped, hidden = without_annotations(PROJECT)
    assert any(hidden)
    checkpoint = tiny_checkpoint()
    asked, left = hidden_from_graph(Extractor(*checkpoint, stripped), hidden)
    assert left == 0 and asked == hidden
    asked, left = hidden_from_graph(Extractor(*checkpoint, PROJECT), hidden)
    assert left > 0 and sum(map(len, asked)) < sum(map(len, hidden))
