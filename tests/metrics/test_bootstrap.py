from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hftk.metrics import bootstrap
from hftk.metrics.bootstrap import (
    bootstrap_interval,
    paired_bootstrap,
    percentile_interval,
    ratio_interval,
    resample_sums,
)

ROWS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])


def mean_of(rows):
    return lambda weights: weights @ rows / weights.sum(axis=1)


def test_an_interval_of_three_rows_is_the_one_of_all_27_resamples():
    rows = np.array([0.0, 1.0, 5.0])
    means = sorted(np.mean(drawn) for drawn in itertools.product(rows, repeat=3))
    low, high = bootstrap_interval(mean_of(rows), 3, resamples=20_000, seed=1, confidence=0.8)
    # the outer tenths: means[2] and means[24] of 27, each reached by steps of 1/27
    assert low == pytest.approx(means[2]) and high == pytest.approx(means[24])


def test_the_interval_of_a_mean_has_the_width_that_theory_gives():
    rows = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(mean_of(rows), 400, resamples=4000, seed=0)
    half = 1.96 * rows.std() / math.sqrt(400)
    assert low == pytest.approx(rows.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(rows.mean() + half, abs=0.1 * half)


def test_intervals_hold_the_truth_about_as_often_as_they_promise():
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(300):
        rows = generator.normal(loc=7.0, size=100)
        low, high = ratio_interval(rows, np.ones(100), resamples=400, seed=seed)
        held += low <= 7.0 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    first, again, other = (bootstrap_interval(mean_of(ROWS), 6, resamples=200, seed=s) for s in (5, 5, 6))
    assert first == again != other


def test_the_size_of_a_chunk_does_not_alter_the_resamples(monkeypatch):
    whole = resample_sums(ROWS[:, None], resamples=50, seed=2)
    monkeypatch.setattr(bootstrap, "CHUNK", 21)  # three resamples of six rows at a time
    assert np.array_equal(resample_sums(ROWS[:, None], resamples=50, seed=2), whole)
    monkeypatch.setattr(bootstrap, "CHUNK", 1)
    assert np.array_equal(resample_sums(ROWS[:, None], resamples=50, seed=2), whole)


def test_every_resample_draws_n_rows_each_with_the_same_chance():
    weights = np.concatenate(list(bootstrap._weights(5, 20_000, 0)))
    assert weights.shape == (20_000, 5)
    assert (weights.sum(axis=1) == 5).all()
    # multinomial: mean 1, variance n * 1/n * (1 - 1/n)
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.03)
    assert weights.var(axis=0) == pytest.approx(np.full(5, 0.8), abs=0.04)


def test_a_ratio_weighs_rows_by_their_denominator():
    nats, tokens = np.array([10.0, 2.0, 3.0]), np.array([10, 1, 1])
    ratio = bootstrap_interval(lambda w: (w @ nats) / (w @ tokens), 3, resamples=100, seed=0)
    assert ratio_interval(nats, tokens, resamples=100, seed=0) == pytest.approx(ratio)
    assert ratio_interval(nats, tokens, transform=np.exp, resamples=100, seed=0) == pytest.approx(
        np.exp(ratio)
    )


def test_rows_that_are_all_alike_have_an_interval_of_no_width():
    assert ratio_interval([3, 3, 3], [2, 2, 2], resamples=50, seed=0) == (1.5, 1.5)


@pytest.mark.parametrize(("n", "resamples"), [(0, 100), (1, 100), (5, 0)])
def test_there_is_no_interval_of_fewer_than_two_rows_or_without_resamples(n, resamples):
    assert bootstrap_interval(mean_of(np.ones(n)), n, resamples=resamples, seed=0) is None
    assert ratio_interval(np.ones(n), np.ones(n), resamples=resamples, seed=0) is None


def test_undefined_resamples_are_left_out_and_infinite_ones_are_kept():
    assert percentile_interval([np.nan, 1.0, 2.0, np.nan, 3.0]) == (1.0, 3.0)
    assert percentile_interval([1.0, np.inf, 2.0, np.inf, -np.inf]) == (-np.inf, np.inf)
    assert percentile_interval([np.nan, np.nan]) is None
    # in a quarter of the resamples neither row counts: 0/0
    assert ratio_interval([1, 0], [2, 0], resamples=100, seed=0) == (0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_row_that_is_not_finite_leaves_no_interval():
    assert ratio_interval([1.0, np.inf, 2.0], [1, 1, 1], resamples=100, seed=0) is None
    assert ratio_interval([1.0, np.nan, 2.0], [1, 1, 1], resamples=100, seed=0) is None
    sums = resample_sums([[1.0, np.inf], [1.0, 2.0]], resamples=3, seed=0)
    assert np.isnan(sums[:, 1]).all() and (sums[:, 0] == 2).all()


def test_percentiles_are_values_rounded_outwards():
    values = np.arange(1000.0)
    assert percentile_interval(values) == (24.0, 975.0)
    assert percentile_interval(np.arange(101.0), confidence=0.5) == (25.0, 75.0)
    low, high = percentile_interval(values)
    assert percentile_interval(np.exp(values / 100)) == (math.exp(low / 100), math.exp(high / 100))


def test_a_system_that_is_better_on_every_row_has_the_least_p_value():
    result = paired_bootstrap(mean_of(ROWS + 1), mean_of(ROWS), 6, resamples=999, seed=0)
    assert result.difference == pytest.approx(1.0)
    assert result.interval == pytest.approx((1.0, 1.0))
    assert result.p_value == pytest.approx(2 / 1000)


def test_two_systems_that_are_alike_do_not_differ():
    result = paired_bootstrap(mean_of(ROWS), mean_of(ROWS), 6, resamples=200, seed=0)
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_swapping_the_systems_turns_the_difference_and_keeps_the_p_value():
    generator = np.random.default_rng(0)
    a = generator.normal(size=50)
    b = a + generator.normal(0.15, 0.5, size=50)
    one, two = (
        paired_bootstrap(mean_of(x), mean_of(y), 50, resamples=500, seed=9) for x, y in ((a, b), (b, a))
    )
    assert one.difference == -two.difference
    assert one.interval == (-two.interval[1], -two.interval[0])
    assert one.p_value == two.p_value
    assert 0 < one.p_value < 1


def test_pairing_sees_what_two_separate_intervals_do_not():
    easy_to_hard = np.linspace(0, 10, 60)
    better = easy_to_hard + 0.2 + 0.1 * np.sin(np.arange(60))
    low = bootstrap_interval(mean_of(better), 60, resamples=500, seed=0)[0]
    high = bootstrap_interval(mean_of(easy_to_hard), 60, resamples=500, seed=0)[1]
    assert low < high
    assert paired_bootstrap(mean_of(better), mean_of(easy_to_hard), 60, resamples=500, seed=0).p_value < 0.01


def test_p_values_below_a_twentieth_go_with_intervals_that_leave_out_zero():
    generator = np.random.default_rng(1)
    seen = set()
    for shift in np.linspace(0, 0.6, 40):
        a = generator.normal(shift, 1, size=40)
        result = paired_bootstrap(mean_of(a), mean_of(np.zeros(40)), 40, resamples=1000, seed=0)
        outside = not result.interval[0] <= 0 <= result.interval[1]
        assert outside == (result.p_value < 0.05)
        seen.add(outside)
    assert seen == {True, False}


def test_a_difference_on_one_row_has_no_interval():
    result = paired_bootstrap(mean_of(np.array([2.0])), mean_of(np.array([5.0])), 1, resamples=100, seed=0)
    assert (result.difference, result.interval, result.p_value) == (-3.0, None, None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bootstrap_interval(mean_of(ROWS), 6, resamples=-1, seed=0), "at least 0, found -1"),
        (lambda: bootstrap_interval(mean_of(ROWS), 6, resamples=9, seed=0, confidence=95), "found 95"),
        (lambda: ratio_interval([1, 2], [1], resamples=9, seed=0), r"found \(2,\) and \(1,\)"),
        (lambda: resample_sums([1, 2], resamples=9, seed=0), r"found \(2,\)"),
        (lambda: paired_bootstrap(mean_of(ROWS), mean_of(ROWS), 0, resamples=9, seed=0), "at least one row"),
    ],
)
def test_wrong_arguments_say_what_was_expected_and_found(call, words):
    with pytest.raises(ValueError, match=words):
        call()
