from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from hftk.metrics.bootstrap import paired_bootstrap
from hftk.metrics.classification import multi_label_scores, single_label_scores
from hftk.metrics.comparison import (
    Comparison,
    compare_multi_label,
    compare_regression,
    compare_single_label,
    in_words,
    mcnemar,
)
from hftk.metrics.regression import regression_scores

NAMES = ["a", "b", "c"]


def systems(n, seed, *, share_a=0.8, share_b=0.7):
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 3, size=n)
    a, b = (
        np.where(generator.random(n) < share, true, generator.integers(0, 3, size=n))
        for share in (share_a, share_b)
    )
    return true, a, b


def by_name(comparisons):
    return {comparison.name: comparison for comparison in comparisons}


def test_mcnemar_by_hand():
    # only a right: 4 rows, only b: none; a fair coin falls so unevenly twice in 16
    found = mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0])
    assert (found.only_a, found.only_b, found.p_value) == (4, 0, pytest.approx(2 / 16))


def test_mcnemar_equals_scipy_and_takes_no_side():
    for seed in range(20):
        a, b = np.random.default_rng(seed).random((2, 60)) < [[0.8], [0.6]]
        found, other = mcnemar(a, b), mcnemar(b, a)
        wanted = stats.binomtest(min(found.only_a, found.only_b), found.only_a + found.only_b).pvalue
        assert found.p_value == other.p_value == pytest.approx(wanted, abs=1e-12)
        assert (found.only_a, found.only_b) == (other.only_b, other.only_a)


def test_mcnemar_of_rows_that_do_not_tell_them_apart_is_one():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert mcnemar([], []).p_value == 1.0
    assert mcnemar([True, False], [False, True]).p_value == 1.0
    with pytest.raises(ValueError, match="of one shape"):
        mcnemar([True], [True, False])


def test_values_are_those_of_the_scores():
    true, a, b = systems(80, 0)
    scores_a, scores_b = (
        {s.name: s.value for s in single_label_scores(true, x, None, NAMES, resamples=0, seed=0)}
        for x in (a, b)
    )
    comparisons = compare_single_label(true, a, b, NAMES, resamples=50, seed=0)
    assert [c.name for c in comparisons] == ["accuracy", "f1_macro", "balanced_accuracy", "matthews_corrcoef"]
    for found in comparisons:
        assert found.a == pytest.approx(scores_a[found.name]) and found.b == pytest.approx(
            scores_b[found.name]
        )
        assert found.difference == pytest.approx(found.a - found.b)


def test_the_cells_and_the_rows_are_two_routes_to_one_test():
    true, a, b = systems(150, 1, share_b=0.68)
    right_a, right_b = (a == true).astype(float), (b == true).astype(float)
    wanted = paired_bootstrap(
        lambda weights: weights @ right_a / 150,
        lambda weights: weights @ right_b / 150,
        150,
        resamples=8000,
        seed=3,
    )
    found = compare_single_label(true, a, b, NAMES, resamples=8000, seed=0)[0]
    assert found.difference == pytest.approx(wanted.difference)
    assert found.interval == pytest.approx(wanted.interval, abs=0.011)  # a row and a half
    assert found.p_value == pytest.approx(wanted.p_value, abs=0.02)


def test_a_macro_f1_is_tested_as_in_a_plain_paired_bootstrap():
    true, a, b = systems(100, 2)
    generator = np.random.default_rng(0)

    def macro_f1(x, y):
        return np.mean(
            [2 * ((x == c) & (y == c)).sum() / ((x == c).sum() + (y == c).sum()) for c in range(3)]
        )

    drawn = []
    for _ in range(1500):
        rows = generator.integers(0, 100, size=100)
        drawn.append(macro_f1(true[rows], a[rows]) - macro_f1(true[rows], b[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = by_name(compare_single_label(true, a, b, NAMES, resamples=4000, seed=0))["f1_macro"]
    assert found.interval == pytest.approx((low, high), abs=0.12 * (high - low))


def test_the_same_system_twice_is_equal():
    true, a, _ = systems(60, 3)
    labels, outputs = np.eye(3)[true], np.eye(3)[a]
    comparisons = [
        *compare_single_label(true, a, a, NAMES, resamples=100, seed=0),
        *compare_multi_label(labels, outputs, outputs, NAMES, resamples=100, seed=0),
        *compare_regression(true, a, a, resamples=100, seed=0),
    ]
    for found in comparisons:
        assert (found.difference, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)
        assert in_words(found, "A", "B").endswith("equal.")


def test_swapping_the_systems_swaps_the_sign_and_nothing_else():
    true, a, b = systems(60, 4)
    there, back = (
        compare_single_label(true, *pair, NAMES, resamples=501, seed=0) for pair in ((a, b), (b, a))
    )
    for one, other in zip(there, back, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        # the cells are sorted otherwise, so the draws are others
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=0.06)
    assert in_words(there[0], "X", "Y").split(": ")[1].startswith("X") and "X is better" in in_words(
        back[0], "Y", "X"
    )


def test_a_system_that_is_right_everywhere_beats_one_that_is_wrong_everywhere():
    true = np.arange(30) % 3
    for found in compare_single_label(true, true, (true + 1) % 3, NAMES, resamples=999, seed=0):
        assert found.p_value == pytest.approx(2 / 1000) and found.interval[0] > 0
        assert in_words(found, "A", "B").endswith("p = 0.002: the difference is real.")


def test_without_a_true_difference_few_tests_call_it_real():
    calls = 0
    for seed in range(200):
        true, a, b = systems(100, 100 + seed, share_a=0.7, share_b=0.7)
        calls += compare_single_label(true, a, b, NAMES, resamples=200, seed=seed)[0].p_value < 0.05
    assert calls <= 20  # 5 % of 200 are 10


def test_multi_label_values_are_those_of_the_scores_and_the_rows_are_paired():
    generator = np.random.default_rng(5)
    true = generator.random((200, 3)) < 0.4
    a = true ^ (generator.random((200, 3)) < 0.1)
    b = a ^ (generator.random((200, 3)) < 0.1)
    scores = {s.name: s for s in multi_label_scores(true, a, None, NAMES, resamples=300, seed=0)}
    comparisons = compare_multi_label(true, a, b, NAMES, resamples=300, seed=0)
    assert [c.name for c in comparisons] == ["f1_micro", "f1_macro", "subset_accuracy"]
    assert all(found.a == pytest.approx(scores[found.name].value) for found in comparisons)
    right = [(x == true).all(axis=1).astype(float) for x in (a, b)]
    wanted = paired_bootstrap(
        lambda weights: weights @ right[0] / 200,
        lambda weights: weights @ right[1] / 200,
        200,
        resamples=300,
        seed=0,
    )
    found = comparisons[-1]
    assert found.interval == pytest.approx(wanted.interval) and found.p_value == pytest.approx(wanted.p_value)


def test_regression_values_are_those_of_the_scores_and_errors_are_better_when_low():
    generator = np.random.default_rng(6)
    true = generator.normal(size=300)
    a, b = true + generator.normal(scale=0.3, size=300), true + generator.normal(scale=1.0, size=300)
    scores = {s.name: s.value for s in regression_scores(true, a, resamples=0, seed=0)}
    comparisons = by_name(compare_regression(true, a, b, resamples=200, seed=0))
    assert list(comparisons) == ["pearson", "spearman", "mse", "r2"]
    for name, found in comparisons.items():
        assert found.a == scores[name]
        words = in_words(found, "A", "B")
        assert "A is better by" in words and words.endswith("the difference is real."), words
    assert comparisons["mse"].difference < 0 and not comparisons["mse"].higher_is_better


def test_a_constant_system_cannot_be_compared_by_correlation():
    true = np.arange(10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparisons = by_name(compare_regression(true, true, np.ones(10), resamples=50, seed=0))
    assert math.isnan(comparisons["pearson"].difference) and comparisons["pearson"].p_value is None
    assert in_words(comparisons["pearson"], "A", "B").endswith("undefined, so they cannot be compared.")
    assert comparisons["mse"].p_value is not None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            (
                "accuracy: A 0.912 against B 0.887: A is better by 0.025 [0.011, 0.039], p = 0.001: the"
                " difference is real."
            ),
        ),
        (
            {"p_value": 0.3, "interval": (-0.004, 0.05)},
            (
                "accuracy: A 0.912 against B 0.887: A is better by 0.025 [-0.004, 0.050], p = 0.300: "
                "the difference may be chance."
            ),
        ),
        (
            {"name": "mse", "higher_is_better": False},
            (
                "mse: A 0.912 against B 0.887: B is better by 0.025 [0.011, 0.039], p = 0.001: the difference"
                " is real."
            ),
        ),
        (
            {"a": 0.887, "b": 0.912, "difference": -0.025, "interval": (-0.039, -0.011), "p_value": 0.0002},
            (
                "accuracy: A 0.887 against B 0.912: B is better by 0.025 [0.011, 0.039], p < 0.001: the"
                " difference is real."
            ),
        ),
        (
            {"interval": None, "p_value": None},
            (
                "accuracy: A 0.912 against B 0.887: A is better by 0.025: not tested, so the difference may"
                " be chance."
            ),
        ),
        (
            {"a": 0.5004, "b": 0.5, "difference": 0.0004, "interval": (0.0001, 0.0007)},
            (
                "accuracy: A 0.50040 against B 0.50000: A is better by 0.00040 [0.00010, 0.00070], p = 0.001:"
                " the difference is real."
            ),
        ),
    ],
)
def test_a_comparison_in_words(changes, sentence):
    fields = {
        "name": "accuracy",
        "a": 0.912,
        "b": 0.887,
        "difference": 0.025,
        "interval": (0.011, 0.039),
        "p_value": 0.001,
    }
    assert in_words(Comparison(**{**fields, **changes}), "A", "B") == sentence


def test_the_level_decides_what_is_called_real():
    fields = {
        "name": "accuracy",
        "a": 0.9,
        "b": 0.8,
        "difference": 0.1,
        "interval": (0.01, 0.2),
        "p_value": 0.02,
    }
    assert "is real" in in_words(Comparison(**fields), "A", "B")
    assert "may be chance" in in_words(Comparison(**fields), "A", "B", level=0.01)


def test_one_row_is_not_tested():
    for found in compare_single_label([0], [0], [1], NAMES, resamples=100, seed=0):
        assert found.interval is None and found.p_value is None
