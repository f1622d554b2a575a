"""Correlation and error of predicted numbers, with intervals.

A score is a function of how often each row was drawn, (lines, n) weights to (lines,) values: once each for
the value, a thousand resamples for the interval. The ranks of all resamples of a chunk come from one
cumulative sum.

Axes: n (rows); groups (distinct values of a column, ascending); lines (resamples of a chunk).

Sources: Pearson, Notes on regression and inheritance (Proc. R. Soc. 58, 1895); Spearman, The proof and
measurement of association between two things (Am. J. Psychol. 15, 1904), ties getting their mean rank.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hftk.metrics.bootstrap import Statistic, bootstrap_interval
from hftk.task import Score

Floats = npt.NDArray[np.float64]

ERRORS = ("mse", "mae")
"""Lower is better; in the unit of the labels, squared for mse."""
LARGEST = 1e150
"""Numbers from here on are treated as infinite: the sum of their squares would be."""
COUNTED = {
    "pearson": "linear correlation",
    "spearman": "correlation of ranks, ties at their mean rank",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "r2": "1 - squared errors / squared deviations from the mean, 0 or 1 where the labels are constant",
}
"""What the signature says of each score."""


def regression_scores(
    true: npt.ArrayLike, predicted: npt.ArrayLike, *, resamples: int, seed: int
) -> list[Score]:
    """Scores of predicted numbers.

    ``pearson`` and ``spearman`` (-1 .. 1; scipy.stats.pearsonr and spearmanr) and ``r2`` (coefficient of
    determination, at most 1; scikit-learn's r2_score): higher is better. ``mse`` and ``mae`` (scikit-learn's
    mean squared and mean absolute error): lower is better.

    true, predicted: (n,) numbers. A correlation is nan, without interval, where either column is constant or
    has one row; r2 is nan for one row. Everything is nan where a number is not finite: a model that diverged
    has no score. Intervals: 95 % percentile bootstrap over rows, resamples in which a correlation is
    undefined left out. Raises ValueError for no rows and for shapes that do not fit.
    """
    statistics = regression_statistics(true, predicted)
    n = len(np.asarray(true))
    scores = []
    for name, statistic in statistics.items():
        value = float(np.asarray(statistic(np.ones((1, n))))[0])
        undefined = math.isnan(value)
        interval = None if undefined else bootstrap_interval(statistic, n, resamples=resamples, seed=seed)
        how = f"rows x {resamples}, percentile, seed {seed}" if interval else "none"
        scores.append(
            Score(
                name=name,
                value=value,
                higher_is_better=name not in ERRORS,
                n=n,
                interval=interval,
                signature=f"{COUNTED[name]}|bootstrap:{how}|hftk",
            )
        )
    return scores


def regression_statistics(true: npt.ArrayLike, predicted: npt.ArrayLike) -> dict[str, Statistic]:
    """The scores of :func:`regression_scores` as functions of weights (lines, n) to (lines,) values, for a
    bootstrap.

    Raises ValueError for no rows and for shapes that do not fit.
    """
    labels, outputs = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != outputs.shape or not len(labels):
        raise ValueError(
            f"expected true and predicted numbers of one shape (n,) and at least one row, "
            f"found {labels.shape} and {outputs.shape}"
        )
    if not (np.abs([labels, outputs]) < LARGEST).all():
        return dict.fromkeys(COUNTED, _undefined)
    # the means say nothing about a correlation, and large ones would cost it digits
    x, y, errors = _group(labels), _group(outputs), labels - outputs
    x_off, y_off = labels - labels.mean(), outputs - outputs.mean()

    def pearson(weights: Floats) -> Floats:
        n = weights.sum(axis=1)
        x_sum, y_sum = weights @ x_off, weights @ y_off
        covariance = weights @ (x_off * y_off) - x_sum * y_sum / n
        x_squares = weights @ x_off**2 - x_sum**2 / n
        y_squares = weights @ y_off**2 - y_sum**2 / n
        constant = x.constant(x.drawn(weights)) | y.constant(y.drawn(weights))
        return _correlation(covariance, x_squares, y_squares, constant)

    def spearman(weights: Floats) -> Floats:
        x_drawn, y_drawn = x.drawn(weights), y.drawn(weights)
        x_ranks, y_ranks = x.ranks(x_drawn), y.ranks(y_drawn)
        covariance = (weights * x_ranks[:, x.of_row] * y_ranks[:, y.of_row]).sum(axis=1)
        x_squares, y_squares = (x_drawn * x_ranks**2).sum(axis=1), (y_drawn * y_ranks**2).sum(axis=1)
        return _correlation(covariance, x_squares, y_squares, x.constant(x_drawn) | y.constant(y_drawn))

    def mse(weights: Floats) -> Floats:
        return _mean(weights, errors**2)

    def mae(weights: Floats) -> Floats:
        return _mean(weights, np.abs(errors))

    def r2(weights: Floats) -> Floats:
        squares = weights @ errors**2
        deviations = weights @ x_off**2 - (weights @ x_off) ** 2 / weights.sum(axis=1)
        constant = x.constant(x.drawn(weights))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values: Floats = np.where(constant, squares == 0, 1 - squares / deviations)
        return values if weights.shape[1] > 1 else np.full(len(weights), np.nan)

    return {"pearson": pearson, "spearman": spearman, "mse": mse, "mae": mae, "r2": r2}


class _Groups(NamedTuple):
    """The rows of a column by value."""

    order: npt.NDArray[np.intp]
    """(n,) rows, ascending by value."""
    starts: npt.NDArray[np.intp]
    """(groups,) where each value begins in ``order``."""
    of_row: npt.NDArray[np.intp]
    """(n,) group of each row."""

    def drawn(self, weights: Floats) -> Floats:
        """How often each value was drawn: (lines, groups)."""
        return np.add.reduceat(weights[:, self.order], self.starts, axis=1)

    def constant(self, drawn: Floats) -> npt.NDArray[np.bool_]:
        """(lines,) whether a single value was drawn: exact, where a variance of 0 may be hidden by
        rounding."""
        constant: npt.NDArray[np.bool_] = drawn.max(axis=1) == drawn.sum(axis=1)
        return constant

    def ranks(self, drawn: Floats) -> Floats:
        """Mean rank of each value less the mean of all ranks: (lines, groups), multiples of 1/2."""
        ranks = np.cumsum(drawn, axis=1)
        n = ranks[:, -1:].copy()
        ranks -= (drawn - 1) / 2 + (n + 1) / 2
        return ranks


def _group(values: Floats) -> _Groups:
    _, of_row, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    return _Groups(np.argsort(of_row, kind="stable"), starts, of_row)


def _correlation(
    covariance: Floats, x_squares: Floats, y_squares: Floats, constant: npt.NDArray[np.bool_]
) -> npt.NDArray[Any]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = covariance / (np.sqrt(x_squares) * np.sqrt(y_squares))
    return np.where(constant, np.nan, np.clip(values, -1.0, 1.0))


def _mean(weights: Floats, values: Floats) -> Floats:
    return (weights @ values) / weights.sum(axis=1)


def _undefined(weights: Floats) -> Floats:
    return np.full(len(weights), np.nan)
