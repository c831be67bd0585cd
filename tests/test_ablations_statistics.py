"""Paired differences, their intervals, and what each example adds to a figure."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from graphmert.ablations.collect import Result
from graphmert.ablations.examples import example_sums, stack
from graphmert.ablations.statistics import (
    bootstrap_interval,
    compare,
    higher_is_better,
    macro_f1_of_sums,
    mean_and_deviation,
    ratio_of_sums,
    t_interval,
    verdict,
)


def test_t_interval_is_that_of_the_paired_test():
    ours, theirs = [0.52, 0.61, 0.55, 0.58], [0.50, 0.55, 0.56, 0.51]
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    found = t_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    assert found == pytest.approx((expected.low, expected.high))
    assert t_interval([0.1]) is None
    assert mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_deviation([1.0]) == (1.0, None)


def test_bootstrap_equals_the_loops():
    """The same draws, one resample, seed and example at a time."""
    rng = np.random.default_rng(0)
    seeds, examples, resamples = 3, 7, 40
    ours, theirs = rng.random((seeds, examples, 2)), rng.random((seeds, examples, 2))
    found = bootstrap_interval(ours, theirs, ratio_of_sums, resamples=resamples, seed=5)
    generator = np.random.default_rng(5)
    weights = generator.multinomial(examples, np.full(examples, 1 / examples), size=resamples)
    drawn = generator.integers(seeds, size=(resamples, seeds))
    means = []
    for weight, chosen in zip(weights, drawn, strict=True):
        differences = []
        for seed in chosen:
            sums = [np.zeros(2), np.zeros(2)]
            for example in range(examples):
                sums[0] += weight[example] * ours[seed, example]
                sums[1] += weight[example] * theirs[seed, example]
            differences.append(sums[0][0] / sums[0][1] - sums[1][0] / sums[1][1])
        means.append(np.mean(differences))
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_bootstrap_covers_the_truth():
    """95 % intervals hold the true difference in about 95 of 100 experiments; few seeds make them a little too short."""
    rng = np.random.default_rng(1)
    truth, held, rounds, seeds, examples = 0.3, 0, 120, 8, 60
    for _ in range(rounds):
        base = rng.normal(size=(1, examples)) + rng.normal(scale=0.3, size=(seeds, 1))
        noise = rng.normal(scale=0.2, size=(seeds, 1)) + rng.normal(size=(seeds, examples))
        ours, theirs = base + truth + noise, base
        low, high = bootstrap_interval(
            *(np.stack([values, np.ones_like(values)], axis=-1) for values in (ours, theirs)),
            ratio_of_sums,
            resamples=300,
        )
        held += low <= truth <= high
    assert 0.85 <= held / rounds <= 1


def test_bootstrap_refuses_results_that_are_no_pairs():
    with pytest.raises(ValueError, match="not of the same pairs"):
        bootstrap_interval(np.ones((2, 3, 2)), np.ones((2, 4, 2)), ratio_of_sums)


def test_macro_f1_of_sums_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    gold, predicted = rng.integers(5, size=80), rng.integers(6, size=80)
    confusion = np.zeros((6, 6))
    np.add.at(confusion, (gold, predicted), 1)
    expected = f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0)
    assert macro_f1_of_sums(confusion.reshape(1, -1))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("intervals", "higher", "expected"),
    [
        ([(0.1, 0.2), (0.05, 0.3)], True, "better"),
        ([(0.1, 0.2), None], True, "better"),
        ([(0.1, 0.2), (0.05, 0.3)], False, "worse"),
        ([(-0.2, -0.1), (-0.3, -0.05)], False, "better"),
        ([(0.1, 0.2), (-0.01, 0.3)], True, "not shown"),
        ([(0.1, 0.2), (-0.3, -0.1)], True, "not shown"),
        ([(0.0, 0.2)], True, "not shown"),
        ([(0.1, math.nan)], True, "not shown"),
        ([None, None], True, "not shown"),
    ],
)
def test_nothing_is_claimed_while_an_interval_holds_zero(intervals, higher, expected):
    assert verdict(intervals, higher) == expected


def test_pairs_are_runs_with_the_same_seed():
    difference = compare({0: 2.0, 1: 3.0, 5: 9.0}, {1: 1.0, 0: 1.0, 7: 0.0}, higher_is_better=False)
    assert difference.by_seed == {0: 1.0, 1: 2.0} and difference.mean == 1.5
    assert difference.t_interval == pytest.approx((1.5 - 6.353, 1.5 + 6.353), abs=1e-3)
    assert compare({0: 1.0}, {1: 1.0}, True) is None
    # One pair says nothing about seeds, however sure its examples are.
    assert compare({0: 2.0}, {0: 1.0}, True, (0.5, 1.5)).verdict == "not shown"
    assert compare({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.1001}, True, (-0.5, 1.5)).verdict == "not shown"
    assert compare({0: 2.0, 1: 2.1}, {0: 1.0, 1: 1.1001}, True, (0.5, 1.5)).verdict == "better"


def test_losses_fall():
    assert not higher_is_better("masked_language_model/loss_clean")
    assert higher_is_better("code_search/mrr") and higher_is_better("relation_prediction/macro_f1_invisible")


def test_sums_by_window_make_the_figure():
    arrays = {
        "count": np.array([2, 0, 3]),
        "model: loss": np.array([1.0, 0.0, 5.0]),
        "count_clean": np.array([1, 0, 1]),
    }
    arrays |= {"model: correct_clean": np.array([1, 0, 0]), "no leaves: loss": np.array([2.0, 0.0, 8.0])}
    assert _figure("loss", arrays) == pytest.approx(6 / 5)
    assert _figure("accuracy_clean", arrays) == pytest.approx(1 / 2)
    assert _figure("loss", arrays, "no leaves") == pytest.approx(2.0)
    assert example_sums("loss_clean", arrays) is None and example_sums("other", arrays) is None


def test_facts_are_gathered_by_window():
    rng = np.random.default_rng(0)
    size = 50
    arrays = {"window": np.sort(rng.integers(9, size=size)), "visible": rng.integers(2, size=size)}
    arrays |= {"relation": rng.integers(12, size=size), "predicted": rng.integers(12, size=size)}
    hidden = arrays["visible"] == 0
    gold, predicted = arrays["relation"][hidden], arrays["predicted"][hidden]
    assert _figure("accuracy_invisible", arrays) == pytest.approx((gold == predicted).mean())
    expected = f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0)
    assert _figure("macro_f1_invisible", arrays) == pytest.approx(expected)
    tails = {"window": arrays["window"], "first_rank": rng.integers(9, size=size), "no_copy": rng.random(size) < 0.5}
    assert _figure("first_top5_no_copy", tails) == pytest.approx((tails["first_rank"][tails["no_copy"]] < 5).mean())
    # Runs whose last windows have no fact are as long as the others.
    shorter = {name: array[arrays["window"] < 6] for name, array in arrays.items()}
    parts = [example_sums("accuracy", item) for item in (arrays, shorter)]
    assert stack(parts).shape == (2, 9, 2) and stack(parts)[1, 6:].sum() == 0
    assert stack([parts[0], example_sums("macro_f1", arrays)]) is None


def test_one_value_for_each_query():
    arrays = {"tuned: reciprocal_rank_name_masked": np.array([1.0, 0.5, np.nan])}
    assert _figure("mrr_name_masked", arrays, "tuned") == pytest.approx(0.75)


def test_how_often_the_right_answer_came_first():
    arrays = {"model: reciprocal_rank": np.array([1.0, 0.5, 1.0, np.nan]), "rank leaf": np.array([0, 4, 7])}
    arrays["is_return"] = np.array([True, False, True])
    assert _figure("accuracy", arrays) == pytest.approx(2 / 3)
    assert _figure("top5", arrays, "leaf") == pytest.approx(2 / 3)
    assert _figure("top5_return", arrays, "leaf") == pytest.approx(1 / 2)
    assert example_sums("top5_parameter", arrays, "leaf") is None


def _figure(name: str, arrays: dict, who: str = "model") -> float:
    found = example_sums(name, arrays, who)
    return float(found.figure(found.sums.sum(0)))


def test_results_of_a_control_are_not_the_choice_of_examples():
    """A control's name may begin like an array that says which examples were taken ("relations hidden", "relation")."""
    kept = {"count": np.array([2, 3]), "model: loss": np.array([1.0, 2.0])}
    plain, controlled, other = (Result(None, {}, {}, {}, [], {"task": arrays}) for arrays in (
        kept, {**kept, "relations hidden: loss": np.array([3.0, 4.0])}, {**kept, "count": np.array([2, 4])}
    ))  # fmt: skip
    assert plain.judged_like(controlled, "task/loss")
    assert not plain.judged_like(other, "task/loss")
