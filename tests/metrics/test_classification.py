from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from hftk.metrics import classification
from hftk.metrics.calibration import expected_calibration_error
from hftk.metrics.classification import confusion_matrix, multi_label_scores, per_class, single_label_scores

NO_INTERVALS = {"resamples": 0, "seed": 0}
SINGLE_LABEL = ["accuracy", "f1_macro", "balanced_accuracy", "f1_weighted", "f1_micro", "matthews_corrcoef"]
MULTI_LABEL = ["f1_micro", "f1_macro", "f1_weighted", "f1_samples", "subset_accuracy", "hamming_loss"]


def letters(k):
    return [chr(ord("a") + place) for place in range(k)]


def random_single(n, k, seed):
    generator = np.random.default_rng(seed)
    true = generator.integers(0, k, size=n)
    predicted = np.where(generator.random(n) < 0.6, true, generator.integers(0, k, size=n))
    return true, predicted, generator.dirichlet(np.ones(k), size=n)


def random_multi(n, k, seed, share=0.3):
    generator = np.random.default_rng(seed)
    true = generator.random((n, k)) < share
    return true, true ^ (generator.random((n, k)) < 0.2), generator.random((n, k))


def values_of(scores):
    return {score.name: score.value for score in scores}


def sklearn_single(true, predicted):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": sklearn_metrics.accuracy_score(true, predicted),
            "f1_macro": sklearn_metrics.f1_score(true, predicted, average="macro", zero_division=0),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, predicted),
            "f1_weighted": sklearn_metrics.f1_score(true, predicted, average="weighted", zero_division=0),
            "f1_micro": sklearn_metrics.f1_score(true, predicted, average="micro", zero_division=0),
            "matthews_corrcoef": sklearn_metrics.matthews_corrcoef(true, predicted),
        }


def sklearn_multi(true, predicted):
    f1 = {
        f"f1_{kind}": sklearn_metrics.f1_score(true, predicted, average=kind, zero_division=0)
        for kind in ("micro", "macro", "weighted", "samples")
    }
    return {
        **f1,
        "subset_accuracy": sklearn_metrics.accuracy_score(true, predicted),
        "hamming_loss": sklearn_metrics.hamming_loss(true, predicted),
    }


def test_four_rows_by_hand():
    # a: hits 1, true 2, predicted 1; b: hits 2, true 2, predicted 3
    scores = values_of(single_label_scores([0, 0, 1, 1], [0, 1, 1, 1], None, ["a", "b"], **NO_INTERVALS))
    assert list(scores) == SINGLE_LABEL
    assert scores["accuracy"] == scores["f1_micro"] == scores["balanced_accuracy"] == 0.75
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    # true positives 2, true negatives 1, false positives 1: (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1)
    assert scores["matthews_corrcoef"] == pytest.approx(2 / math.sqrt(12))


DEGENERATE = {
    "one row, right": ([1], [1], 2),
    "one row, wrong": ([1], [0], 2),
    "a single class in all": ([0, 0, 0], [0, 0, 0], 1),
    "always the same prediction": ([0, 1, 2, 1], [1, 1, 1, 1], 3),
    "a class that is only true": ([0, 1, 2, 2], [0, 1, 1, 0], 3),
    "a class that is only predicted": ([0, 1, 0, 1], [0, 1, 2, 2], 3),
    "classes that are neither": ([1, 1, 5, 5], [1, 5, 5, 1], 9),
    "nothing right": ([0, 0, 1, 1], [1, 1, 0, 0], 2),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_rows_score_as_in_scikit_learn(case):
    true, predicted, k = DEGENERATE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = values_of(single_label_scores(true, predicted, None, letters(k), resamples=30, seed=0))
    assert scores == pytest.approx(sklearn_single(true, predicted), abs=1e-9)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (7, 5), (50, 3), (500, 2), (800, 40)])
def test_random_rows_score_as_in_scikit_learn(n, k):
    true, predicted, probabilities = random_single(n, k, seed=n)
    scores = values_of(single_label_scores(true, predicted, probabilities, letters(k), **NO_INTERVALS))
    assert {name: scores[name] for name in SINGLE_LABEL} == pytest.approx(
        sklearn_single(true, predicted), abs=1e-9
    )
    log_loss = sklearn_metrics.log_loss(true, y_proba=probabilities, labels=range(k))
    assert scores["loss"] == pytest.approx(log_loss, abs=1e-9)
    assert scores["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(true, probabilities)
    )
    assert list(scores) == [*SINGLE_LABEL, "loss", "expected_calibration_error"]


def test_a_probability_of_zero_for_the_true_class_costs_as_much_as_in_scikit_learn():
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5]])
    scores = values_of(single_label_scores([1, 0], [0, 0], probabilities, ["a", "b"], **NO_INTERVALS))
    assert scores["loss"] == pytest.approx(
        sklearn_metrics.log_loss([1, 0], y_proba=probabilities, labels=[0, 1])
    )


def test_a_model_that_answers_nan_has_a_loss_of_nan_and_no_interval():
    probabilities = np.array([[np.nan, np.nan], [0.5, 0.5], [0.4, 0.6]])
    scores = single_label_scores([0, 0, 1], [0, 0, 1], probabilities, ["a", "b"], resamples=50, seed=0)
    assert all(math.isnan(score.value) and score.interval is None for score in scores[-2:])
    assert scores[0].value == 1.0 and scores[0].interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("n", "k", "share"), [(1, 1, 0.5), (1, 3, 0.0), (40, 4, 0.3), (300, 28, 0.05), (20, 3, 0.0)]
)
def test_multi_label_rows_score_as_in_scikit_learn(n, k, share):
    true, predicted, probabilities = random_multi(n, k, n + k, share)
    if k > 1:  # a label that is never true and never predicted
        true[:, 0] = predicted[:, 0] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = multi_label_scores(true, predicted, probabilities, letters(k), resamples=20, seed=0)
    values = values_of(scores)
    assert list(values) == [*MULTI_LABEL, "loss"]
    if k > 1:
        assert {name: values[name] for name in MULTI_LABEL} == pytest.approx(
            sklearn_multi(true, predicted), abs=1e-9
        )
    losses = [
        sklearn_metrics.log_loss(true[:, label], y_proba=probabilities[:, label], labels=[False, True])
        for label in range(k)
    ]
    assert values["loss"] == pytest.approx(np.mean(losses), abs=1e-9)


def test_two_rows_of_three_labels_by_hand():
    true, predicted = [[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]]
    scores = values_of(multi_label_scores(true, predicted, None, ["a", "b", "c"], **NO_INTERVALS))
    assert scores["f1_micro"] == pytest.approx(4 / 5)
    assert scores["f1_macro"] == scores["f1_weighted"] == pytest.approx(2 / 3)
    assert scores["f1_samples"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["subset_accuracy"] == 0.5 and scores["hamming_loss"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("case", [*DEGENERATE, "random"])
def test_each_class_scores_as_in_scikit_learn(case):
    true, predicted, k = (*random_single(200, 6, 1)[:2], 8) if case == "random" else DEGENERATE[case]
    wanted = sklearn_metrics.precision_recall_fscore_support(
        true, predicted, average=None, labels=range(k), zero_division=0
    )
    table = per_class(true, predicted, letters(k), resamples=20, seed=0)
    assert [entry["class"] for entry in table] == letters(k)
    for key, column in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        assert [entry[key] for entry in table] == pytest.approx(list(column), abs=1e-9)
    assert [entry["predicted"] for entry in table] == np.bincount(predicted, minlength=k).tolist()


def test_each_label_scores_as_in_scikit_learn():
    true, predicted, _ = random_multi(60, 5, 2)
    true[:, 1] = predicted[:, 2] = False
    wanted = sklearn_metrics.precision_recall_fscore_support(true, predicted, average=None, zero_division=0)
    table = per_class(true, predicted, letters(5), resamples=50, seed=0)
    for key, column in zip(("precision", "recall", "f1", "support"), wanted, strict=True):
        assert [entry[key] for entry in table] == pytest.approx(list(column), abs=1e-9)
    assert table[1]["recall_interval"] is None and table[2]["precision_interval"] is None
    low, high = table[0]["f1_interval"]
    assert low <= table[0]["f1"] <= high


def test_single_label_rows_and_their_one_hot_labels_give_the_same_table():
    true, predicted, _ = random_single(80, 4, 3)
    classes = per_class(true, predicted, letters(4), resamples=4000, seed=0)
    labels = per_class(np.eye(4)[true], np.eye(4)[predicted], letters(4), resamples=4000, seed=1)
    for one, other in zip(classes, labels, strict=True):
        for key in ("precision", "recall", "f1"):
            assert one[key] == pytest.approx(other[key])
            # cells and rows are two routes to one distribution
            assert one[f"{key}_interval"] == pytest.approx(other[f"{key}_interval"], abs=0.04)


def test_the_confusion_matrix_has_the_true_classes_as_lines():
    assert confusion_matrix([0, 0, 2], [1, 1, 2], 3).tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]
    true, predicted, _ = random_single(300, 7, 4)
    wanted = sklearn_metrics.confusion_matrix(true, predicted, labels=range(7))
    assert np.array_equal(confusion_matrix(true, predicted, 7), wanted)
    assert confusion_matrix(np.empty(0, dtype=int), np.empty(0, dtype=int), 2).tolist() == [[0, 0], [0, 0]]


def test_a_resample_of_cells_scores_as_the_rows_that_it_stands_for():
    true, predicted, _ = random_single(30, 4, 5)
    (cell_true, cell_predicted), rows = classification.find_cells(true, predicted)
    weights = np.concatenate(list(classification.resample_cells(rows, resamples=25, seed=0, columns=4)))
    assert (weights.sum(axis=1) == 30).all()
    values = classification.single_label_values(
        classification.count_classes(weights, cell_true, cell_predicted, 4)
    )
    for line, drawn in enumerate(weights.astype(int)):
        wanted = sklearn_single(np.repeat(cell_true, drawn), np.repeat(cell_predicted, drawn))
        assert {name: values[name][line] for name in values} == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("rows", [[60, 30, 10], [3, 2, 1]], ids=["multinomial", "row by row"])
def test_cells_are_drawn_with_the_chances_of_their_rows(rows):
    rows = np.array(rows)
    n = rows.sum()
    weights = np.concatenate(list(classification.resample_cells(rows, resamples=20_000, seed=0, columns=1)))
    assert weights.mean(axis=0) == pytest.approx(rows, rel=0.02)
    shares = rows / n
    covariance = n * (np.diag(shares) - np.outer(shares, shares))
    assert np.cov(weights.T) == pytest.approx(covariance, abs=0.03 * n)


@pytest.mark.parametrize("rows", [[60, 30, 10], [3, 2, 1]], ids=["multinomial", "row by row"])
def test_the_size_of_a_chunk_does_not_alter_the_draws(rows, monkeypatch):
    def draws():
        return np.concatenate(
            list(classification.resample_cells(np.array(rows), resamples=9, seed=3, columns=2))
        )

    whole = draws()
    monkeypatch.setattr(classification, "CHUNK", 13)
    assert np.array_equal(draws(), whole)


def test_blocks_of_columns_come_from_the_same_resamples(monkeypatch):
    true, predicted, probabilities = random_multi(40, 5, 6)
    whole = multi_label_scores(true, predicted, probabilities, letters(5), resamples=50, seed=0)
    monkeypatch.setattr(classification, "BLOCK", 80)
    blocks = multi_label_scores(true, predicted, probabilities, letters(5), resamples=50, seed=0)
    for one, other in zip(blocks, whole, strict=True):
        assert (one.name, one.value) == (other.name, pytest.approx(other.value, rel=1e-12))
        assert one.interval == pytest.approx(other.interval, rel=1e-9)


def plain_bootstrap(function, n, resamples, seed):
    generator = np.random.default_rng(seed)
    return np.percentile([function(generator.integers(0, n, size=n)) for _ in range(resamples)], [2.5, 97.5])


def test_intervals_are_those_of_a_plain_bootstrap_over_rows():
    true, predicted, probabilities = random_single(120, 3, 7)
    scores = {
        score.name: score.interval
        for score in single_label_scores(true, predicted, probabilities, letters(3), resamples=4000, seed=0)
    }
    losses = -np.log(probabilities[np.arange(120), true])
    functions = {
        "accuracy": lambda rows: np.mean(true[rows] == predicted[rows]),
        "loss": lambda rows: losses[rows].mean(),
        "expected_calibration_error": lambda rows: expected_calibration_error(
            true[rows], probabilities[rows]
        ),
    }
    for name, function in functions.items():
        low, high = plain_bootstrap(function, 120, 1500, 1)
        assert scores[name] == pytest.approx((low, high), abs=0.12 * (high - low)), name


def test_multi_label_intervals_are_those_of_a_plain_bootstrap_over_rows():
    true, predicted, _ = random_multi(90, 4, 8)
    scores = multi_label_scores(true, predicted, None, letters(4), resamples=4000, seed=0)
    functions = {
        "f1_micro": lambda rows: (
            2 * (true[rows] & predicted[rows]).sum() / (true[rows].sum() + predicted[rows].sum())
        ),
        "subset_accuracy": lambda rows: (true[rows] == predicted[rows]).all(axis=1).mean(),
        "hamming_loss": lambda rows: (true[rows] != predicted[rows]).mean(),
    }
    intervals = {score.name: score.interval for score in scores}
    for name, function in functions.items():
        low, high = plain_bootstrap(function, 90, 1500, 1)
        assert intervals[name] == pytest.approx((low, high), abs=0.12 * (high - low)), name


def test_the_seed_decides_the_intervals():
    true, predicted, probabilities = random_single(50, 3, 9)
    first, again, other = (
        single_label_scores(true, predicted, probabilities, letters(3), resamples=200, seed=seed)
        for seed in (5, 5, 6)
    )
    assert first == again
    assert [score.interval for score in first] != [score.interval for score in other]


def test_one_row_or_no_resamples_give_no_interval_and_the_signature_says_so():
    for true, resamples in (([1], 100), ([1, 0, 1], 0)):
        for score in single_label_scores(
            true, true, np.eye(2)[true], ["a", "b"], resamples=resamples, seed=0
        ):
            assert score.interval is None and "bootstrap:none" in score.signature and score.n == len(true)
    table = per_class([1], [1], ["a", "b"], resamples=100, seed=0)
    assert table[1]["f1_interval"] is None


def test_signatures_units_and_directions_say_what_was_counted():
    true, predicted, probabilities = random_single(20, 3, 10)
    scores = single_label_scores(true, predicted, probabilities, letters(3), resamples=100, seed=4)
    by_name = {score.name: score for score in scores}
    assert (
        by_name["f1_macro"].signature
        == "classes:3|mean over classes|scikit-learn zero_division=0|bootstrap:rows x 100, percentile, seed"
        " 4|hftk"
    )
    assert {name for name, score in by_name.items() if not score.higher_is_better} == {
        "loss",
        "expected_calibration_error",
    }
    assert by_name["loss"].unit == "nats/row" and by_name["accuracy"].unit == ""
    true, predicted, probabilities = random_multi(20, 3, 10)
    scores = multi_label_scores(true, predicted, probabilities, letters(3), resamples=100, seed=4)
    assert [score.name for score in scores if not score.higher_is_better] == ["hamming_loss", "loss"]


@pytest.mark.parametrize(
    ("true", "predicted", "probabilities", "found"),
    [
        ([0, 2], [0, 1], None, "from 0 to 1, found"),
        ([0, 1], [0, -1], None, "expected predicted classes"),
        ([0, 1], [0], None, "of one shape"),
        ([], [], None, "at least 1 row"),
        ([0.5, 1.0], [0, 1], None, "whole numbers"),
        ([0, 1], [0, 1], [[0.5, 0.5]], "expected probabilities of shape"),
        ([0, 1], [0, 1], [[-3.0, 4.0], [1.0, 0.0]], "logits"),
    ],
)
def test_input_that_does_not_fit_is_refused(true, predicted, probabilities, found):
    with pytest.raises(ValueError, match=found):
        single_label_scores(true, predicted, probabilities, ["a", "b"], **NO_INTERVALS)


def test_labels_that_do_not_fit_are_refused():
    for true, predicted in (
        ([[0.2, 1.0]], [[0, 1]]),
        ([[0, 1]], [[0, 1, 1]]),
        (np.empty((0, 2)), np.empty((0, 2))),
    ):
        with pytest.raises(ValueError, match="expected"):
            multi_label_scores(true, predicted, None, ["a", "b"], **NO_INTERVALS)
