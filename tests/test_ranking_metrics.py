"""The metrics of metrics/, loaded from their path, against slow loops and scikit-learn."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

METRICS = Path(__file__).parent.parent / "metrics"


@pytest.fixture(scope="module")
def reciprocal_rank():
    return evaluate.load(str(METRICS / "reciprocal_rank"), keep_in_memory=True)


@pytest.fixture(scope="module")
def map_at_r():
    return evaluate.load(str(METRICS / "map_at_r"), keep_in_memory=True)


def test_reciprocal_rank_by_hand(reciprocal_rank):
    result = reciprocal_rank.compute(predictions=[[0.9, 0.1, 0.5], [0.2, 0.3, 0.1, 0.4]], references=[0, 2], ks=[1, 2])
    assert result == {"mrr": (1 + 1 / 4) / 2, "recall_at_1": 0.5, "recall_at_2": 0.5, "ranks": [1.0, 4.0]}


def test_reciprocal_rank_against_scikit_learn(reciprocal_rank):
    rng = np.random.default_rng(0)
    scores, right = rng.random((40, 25)).astype(np.float32), rng.integers(25, size=40)
    result = reciprocal_rank.compute(predictions=scores, references=right)
    assert result["mrr"] == pytest.approx(label_ranking_average_precision_score(np.eye(25)[right], scores))
    assert result["recall_at_10"] == pytest.approx(top_k_accuracy_score(right, scores, k=10, labels=np.arange(25)))


def test_equal_scores_gain_nothing(reciprocal_rank):
    result = reciprocal_rank.compute(predictions=[[1.0] * 9], references=[0])
    assert result["ranks"] == [5.0] and result["recall_at_1"] == 0


def naive_map_at_r(scores, right) -> float:
    ranking = sorted(range(len(scores)), key=lambda i: -scores[i])
    total = 0.0
    for i in range(1, len(right) + 1):
        if ranking[i - 1] in right:
            total += sum(1 for found in ranking[:i] if found in right) / i
    return total / len(right)


def test_map_at_r_against_a_loop(map_at_r):
    rng = np.random.default_rng(1)
    scores = rng.random((30, 12)).astype(np.float32)
    right = [rng.choice(12, rng.integers(1, 6), replace=False).tolist() for _ in range(30)]
    result = map_at_r.compute(predictions=scores, references=right)
    expected = [naive_map_at_r(row.tolist(), own) for row, own in zip(scores, right, strict=True)]
    assert result["average_precisions"] == pytest.approx(expected)
    assert result["map_at_r"] == pytest.approx(np.mean(expected)) and 0 < result["map_at_r"] < 1
    assert result["precision_at_1"] == pytest.approx(
        np.mean([int(np.argmax(row)) in own for row, own in zip(scores, right, strict=True)])
    )


def test_map_at_r_leaves_out_the_query_itself(map_at_r):
    scores = [[-np.inf, 0.2, 0.1], [0.3, -np.inf, 0.1], [0.1, 0.2, -np.inf]]
    result = map_at_r.compute(predictions=scores, references=[[1], [0], [0]])
    assert result["average_precisions"] == [1.0, 1.0, 0.0]


def test_wrong_input_is_named(reciprocal_rank, map_at_r):
    with pytest.raises(ValueError, match="query 1 has 2 candidates"):
        reciprocal_rank.compute(predictions=[[0.1, 0.2], [0.1, 0.2]], references=[0, 2])
    with pytest.raises(ValueError, match="query 0: a score is not a number"):
        reciprocal_rank.compute(predictions=[[0.1, float("nan")]], references=[0])
    with pytest.raises(ValueError, match="at least one"):
        map_at_r.compute(predictions=[[0.1, 0.2]], references=[[]])
    with pytest.raises(ValueError, match="left out"):
        map_at_r.compute(predictions=[[-np.inf, 0.2]], references=[[0]])
