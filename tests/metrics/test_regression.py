from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hftk.metrics.regression import regression_scores, regression_statistics

NAMES = ["pearson", "spearman", "mse", "mae", "r2"]


def random_rows(n, seed, *, ties):
    generator = np.random.default_rng(seed)
    true = generator.normal(3.0, 1.0, size=n)
    predicted = 0.7 * true + generator.normal(size=n)
    return (np.round(true), np.round(predicted)) if ties else (true, predicted)


def values_of(true, predicted, resamples=0):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            score.name: score.value
            for score in regression_scores(true, predicted, resamples=resamples, seed=0)
        }


def reference(true, predicted):
    return {
        "pearson": stats.pearsonr(true, predicted).statistic,
        "spearman": stats.spearmanr(true, predicted).statistic,
        "mse": sklearn_metrics.mean_squared_error(true, predicted),
        "mae": sklearn_metrics.mean_absolute_error(true, predicted),
        "r2": sklearn_metrics.r2_score(true, predicted),
    }


def test_three_rows_by_hand():
    scores = values_of([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert list(scores) == NAMES
    assert scores == pytest.approx({"pearson": 0.5, "spearman": 0.5, "mse": 2 / 3, "mae": 2 / 3, "r2": 0.0})


@pytest.mark.parametrize("n", [2, 5, 40, 1500])
@pytest.mark.parametrize("ties", [False, True])
def test_scores_equal_scipy_and_scikit_learn(n, ties):
    true, predicted = random_rows(n, n, ties=ties)
    assert values_of(true, predicted) == pytest.approx(reference(true, predicted), abs=1e-9)


def test_a_large_mean_costs_no_digits():
    true, predicted = random_rows(200, 1, ties=False)
    assert values_of(true + 1e6, predicted + 1e6) == pytest.approx(values_of(true, predicted), abs=1e-8)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 / 3])
def test_a_constant_prediction_has_no_correlation_and_no_warning_escapes(constant):
    true = np.array([0.0, 1.0, 2.0, 5.0, 9.0, 4.0, 4.0])
    for columns in ((true, np.full(7, constant)), (np.full(7, constant), true)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = {score.name: score for score in regression_scores(*columns, resamples=100, seed=0)}
        for name in ("pearson", "spearman"):
            assert math.isnan(scores[name].value) and scores[name].interval is None
        assert scores["mse"].interval is not None
        assert scores["mse"].value == pytest.approx(sklearn_metrics.mean_squared_error(*columns))


def test_constant_labels_give_an_r2_of_one_or_zero_as_scikit_learn_says():
    assert values_of([0.1] * 3, [0.1] * 3)["r2"] == 1.0
    assert values_of([0.1] * 3, [0.1, 0.1, 0.2])["r2"] == 0.0
    assert sklearn_metrics.r2_score([2.0, 2.0], [2.0, 3.0]) == values_of([2.0, 2.0], [2.0, 3.0])["r2"] == 0.0


def test_one_row_has_errors_only():
    scores = values_of([1.0], [3.0], resamples=10)
    assert scores["mse"] == 4 and scores["mae"] == 2
    assert all(math.isnan(scores[name]) for name in ("pearson", "spearman", "r2"))


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e200])
def test_a_model_that_diverged_has_no_score(broken):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = regression_scores([1.0, 2.0, 3.0], [1.0, broken, 2.0], resamples=20, seed=0)
    assert all(math.isnan(score.value) and score.interval is None for score in scores)


@pytest.mark.parametrize("ties", [False, True])
def test_a_resample_scores_as_the_rows_that_it_stands_for(ties):
    true, predicted = random_rows(25, 3, ties=ties)
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = generator.integers(0, 25, size=25)
        weights = np.bincount(rows, minlength=25)[None].astype(float)
        found = {
            name: statistic(weights)[0] for name, statistic in regression_statistics(true, predicted).items()
        }
        assert found == pytest.approx(reference(true[rows], predicted[rows]), abs=1e-9)


def test_a_resample_of_one_row_drawn_again_and_again_has_no_correlation():
    statistics = regression_statistics([0.1, 0.2, 0.7], [0.3, 0.1, 0.2])
    weights = np.array([[0.0, 3.0, 0.0], [1.0, 2.0, 0.0]])
    for name in ("pearson", "spearman"):
        values = statistics[name](weights)
        assert math.isnan(values[0]) and values[1] == pytest.approx(-1)


def test_intervals_are_those_of_a_plain_bootstrap_over_rows():
    true, predicted = random_rows(60, 4, ties=True)
    generator = np.random.default_rng(1)
    plain = []
    for _ in range(1500):
        rows = generator.integers(0, 60, size=60)
        x, y = true[rows], predicted[rows]
        plain.append(
            {
                "pearson": np.corrcoef(x, y)[0, 1],
                "spearman": np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1],
                "mse": np.mean((x - y) ** 2),
                "mae": np.mean(abs(x - y)),
                "r2": 1 - np.mean((x - y) ** 2) / np.var(x),
            }
        )
    for score in regression_scores(true, predicted, resamples=4000, seed=0):
        low, high = np.percentile([values[score.name] for values in plain], [2.5, 97.5])
        assert score.interval == pytest.approx((low, high), abs=0.12 * (high - low)), score.name
        assert score.interval[0] < score.value < score.interval[1]


def test_directions_signatures_and_seeds():
    true, predicted = random_rows(30, 5, ties=False)
    first, again, other = (regression_scores(true, predicted, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [score.name for score in first if not score.higher_is_better] == ["mse", "mae"]
    assert first[1].signature == (
        "correlation of ranks, ties at their mean rank|bootstrap:rows x 100, percentile, seed 1|hftk"
    )
    assert all(score.n == 30 for score in first)


def test_rows_that_do_not_fit_are_refused():
    for true, predicted in (([], []), ([1.0], [1.0, 2.0]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match="expected true and predicted numbers"):
            regression_scores(true, predicted, resamples=0, seed=0)
