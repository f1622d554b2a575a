from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hftk.metrics.calibration import (
    expected_calibration_error,
    fit_binary_temperature,
    fit_temperature,
    reliability,
    tune_thresholds,
    wilson_interval,
)


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def drawn_from(logits, seed):
    """Classes drawn with the probabilities of softmax(logits)."""
    noise = np.random.default_rng(seed).gumbel(size=logits.shape)
    return (logits + noise).argmax(axis=1)


def test_four_rows_by_hand():
    # two bins: (0, 0.5] holds one row, right, sure to 0.5; (0.5, 1] three rows, one right, sure to 0.8 on
    # average
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    true = [0, 1, 0, 0]
    assert expected_calibration_error(true, probabilities, bins=2) == pytest.approx(
        1 / 4 * (1 - 0.5) + 3 / 4 * (0.8 - 1 / 3)
    )
    low, high = reliability(true, probabilities, bins=2)
    assert (low["low"], low["high"], low["rows"], low["accuracy"]) == (0.0, 0.5, 1, 1.0)
    assert (high["rows"], high["confidence"], high["accuracy"]) == (
        3,
        pytest.approx(0.8),
        pytest.approx(1 / 3),
    )


def test_the_error_is_that_of_a_loop_over_bins():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), size=500)
    true = generator.integers(0, 4, size=500)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    total = 0.0
    for place in range(15):
        inside = (confidence > place / 15) & (confidence <= (place + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(true, probabilities) == pytest.approx(total, abs=1e-12)
    points = reliability(true, probabilities)
    assert sum(point["rows"] for point in points) == 500 and all(point["rows"] for point in points)
    assert total == pytest.approx(sum(p["rows"] / 500 * abs(p["accuracy"] - p["confidence"]) for p in points))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    point = reliability([0], [[0.6, 0.4]], bins=5)[0]
    assert (point["low"], point["high"]) == (0.4, 0.6)
    assert reliability([0], [[1.0, 0.0]])[0]["high"] == 1.0
    assert reliability([0], [[0.0, 0.0]])[0]["low"] == 0.0


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_the_worst():
    assert expected_calibration_error([0, 1], np.eye(2)) == 0.0
    assert expected_calibration_error([1, 0], np.eye(2)) == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (7, 20), (999, 1000)])
def test_the_wilson_interval_is_that_of_scipy(successes, trials):
    wanted = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx([wanted.low, wanted.high], abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_again(temperature):
    logits = np.random.default_rng(1).normal(scale=2.0, size=(20_000, 3))
    true = drawn_from(logits, 2)
    assert fit_temperature(logits * temperature, true) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_has_the_least_loss_of_a_grid():
    logits = np.random.default_rng(3).normal(scale=4.0, size=(300, 5))
    true = drawn_from(logits / 3, 4)

    def loss(temperature):
        return sklearn_metrics.log_loss(true, y_proba=softmax(logits / temperature), labels=range(5))

    found = fit_temperature(logits, true)
    assert loss(found) <= min(loss(temperature) for temperature in np.geomspace(0.05, 20, 200)) + 1e-9
    assert fit_temperature(logits + 1000.0, true) == pytest.approx(found, rel=1e-4)


def test_a_temperature_that_rows_cannot_tell_is_one():
    assert fit_temperature(np.empty((0, 3)), np.empty(0, dtype=int)) == 1.0
    assert fit_temperature(np.zeros((5, 3)), [0, 1, 2, 0, 1]) == 1.0
    assert fit_temperature([[1e5, 0.0]] * 3, [0, 0, 0]) == 1.0  # no temperature in range makes it less sure
    assert fit_temperature([[np.inf, 0.0]], [0]) == 1.0
    assert fit_binary_temperature(np.zeros((4, 2)), np.ones((4, 2), dtype=bool)) == 1.0
    assert fit_binary_temperature(np.empty((0, 2)), np.empty((0, 2), dtype=bool)) == 1.0


def test_the_temperature_ends_at_its_bounds():
    assert fit_temperature([[2.0, 0.0], [0.0, 1.0]], [0, 1]) == 0.05  # all right: the surer the better
    assert fit_temperature([[2.0, 0.0], [0.0, 1.0]], [1, 0]) == 20.0  # all wrong


def test_the_temperature_of_several_labels_is_found_again():
    generator = np.random.default_rng(5)
    logits = generator.normal(scale=2.0, size=(8000, 4))
    true = generator.random((8000, 4)) < 1 / (1 + np.exp(-logits))
    assert fit_binary_temperature(logits * 2.5, true) == pytest.approx(2.5, rel=0.05)


def test_two_classes_and_one_label_have_the_same_temperature():
    logits = np.random.default_rng(6).normal(scale=3.0, size=(400, 1))
    true = drawn_from(np.hstack([np.zeros((400, 1)), logits / 2]), 7)
    two_classes = fit_temperature(np.hstack([np.zeros((400, 1)), logits]), true)
    assert fit_binary_temperature(logits, true[:, None] == 1) == pytest.approx(two_classes, rel=1e-4)


def test_a_threshold_by_hand():
    # predicting the three highest gives 2 hits of 3 with 2 positives: F1 4/5, the best
    thresholds = tune_thresholds(np.array([[1, 0, 1, 0]]).T, np.array([[0.9, 0.4, 0.3, 0.1]]).T)
    assert thresholds == pytest.approx([0.2])


def test_a_rare_label_takes_the_threshold_of_all_labels_together():
    r = np.random.default_rng(0)
    true = np.stack([r.random(300) < 0.4, np.arange(300) == 299], 1)
    often = np.where(true[:, 0], 0.6, 0.3) + 0.2 * r.random(300)
    rare = np.full(
        300, 0.02
    )  # a model that knows nothing of it: its own best threshold gives it to every row
    probabilities = np.stack([often, rare], 1)
    own, both = tune_thresholds(true, probabilities), tune_thresholds(true, probabilities, enough=10)
    assert own[1] < 0.02 < both[1] and own[0] == both[0]
    nobody = tune_thresholds(true & [True, False], probabilities)
    assert nobody[1] == 0.5


def test_equally_good_thresholds_go_towards_a_half():
    # one hit of one (above 0.85) or two of four (below 0.15): both 2/3; the former is nearer to 0.5 after the
    # shift
    true = np.array([[1, 0, 0, 1]]).T
    assert tune_thresholds(true, np.array([[0.9, 0.8, 0.2, 0.1]]).T) == pytest.approx([0.85])
    assert tune_thresholds(true, np.array([[0.98, 0.97, 0.6, 0.5]]).T) == pytest.approx([0.25])


def test_a_label_that_no_row_has_keeps_a_half_and_one_that_all_have_is_always_predicted():
    true = np.array([[False, True], [False, True]])
    probabilities = np.array([[0.9, 0.4], [0.1, 0.0]])
    thresholds = tune_thresholds(true, probabilities)
    assert thresholds.tolist() == [0.5, 0.0]
    assert tune_thresholds(np.empty((0, 2), dtype=bool), np.empty((0, 2))).tolist() == [0.5, 0.5]


def test_no_other_threshold_is_better():
    generator = np.random.default_rng(8)
    for decimals, n in itertools.product((1, 2, 8), (1, 3, 30)):
        true = generator.random((n, 6)) < 0.4
        probabilities = np.round(generator.random((n, 6)) * 0.6 + 0.4 * true, decimals)
        probabilities = np.minimum(probabilities, 1.0)
        thresholds = tune_thresholds(true, probabilities)
        for label in np.flatnonzero(true.any(axis=0)):
            labels, column = true[:, label], probabilities[:, label]
            f1 = [
                2 * (labels & (column >= threshold)).sum() / (labels.sum() + (column >= threshold).sum())
                for threshold in (thresholds[label], *column)
            ]
            assert f1[0] == pytest.approx(max(f1), abs=1e-12)


def test_neighbours_among_the_floats_are_told_apart():
    lower = 0.5
    upper = np.nextafter(lower, 1.0)
    threshold = tune_thresholds(np.array([[True], [False]]), np.array([[upper], [lower]]))[0]
    assert lower < threshold <= upper


def test_input_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="logits"):
        expected_calibration_error([0], [[3.0, -1.0]])
    with pytest.raises(ValueError, match="at least one bin"):
        expected_calibration_error([0], [[0.5, 0.5]], bins=0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        expected_calibration_error([2], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="found"):
        expected_calibration_error([], np.empty((0, 2)))
    with pytest.raises(ValueError, match="expected logits"):
        fit_temperature([[1.0, 2.0]], [0, 1])
    with pytest.raises(ValueError, match="expected logits"):
        fit_binary_temperature([[1.0, 2.0]], [True])
    with pytest.raises(ValueError, match="without nan"):
        tune_thresholds([[True]], [[np.nan]])
