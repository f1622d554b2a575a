"""Bootstrap intervals and paired tests for any score that is a function of rows (documents, sentences,
examples).

A resample draws n of the n rows with replacement. It is held as *weights*: how often each row was drawn. A
score built from sums over rows (accuracy, F1, BLEU, perplexity) is then a matrix product, ``weights @ rows``,
and thousands of resamples cost one pass each over the rows. Memory stays bounded: the weights come in chunks
of at most 8 MiB, or one resample.

Axes: resamples; n (rows); columns (the sums that a score is made of).

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval); Koehn,
Statistical Significance Tests for Machine Translation Evaluation (EMNLP 2004) (paired test); Davison &
Hinkley, Bootstrap Methods and their Application (1997), section 4.2 (the added one in the p-value).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Any]
"""From weights (resamples, n), whole numbers that sum to n in each line, to values (resamples,), nan where
one is undefined."""

CHUNK = 2**20
"""Most weights (8 bytes each) held at once, unless one resample alone has more."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How much system a differs from system b on the same rows."""

    difference: float
    """Statistic of a minus statistic of b on the rows as they are."""
    interval: tuple[float, float] | None
    """Percentile interval of the difference; None below two rows or without resamples."""
    p_value: float | None
    """Two-sided, in (0, 1]: how easily a difference of no sign or of the other sign turns up; None as for
    ``interval``."""


def bootstrap_interval(
    statistic: Statistic, n: int, *, resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of a statistic of n rows.

    The same seed gives the same interval. Resamples where the statistic is nan (undefined, such as 0/0) are
    left out. None where no interval has a meaning: n < 2, no resamples, or a statistic that is undefined in
    all of them. Raises ValueError for a confidence outside (0, 1) or a negative number of resamples.
    """
    values = [np.asarray(statistic(weights), dtype=np.float64) for weights in _weights(n, resamples, seed)]
    return percentile_interval(np.concatenate(values) if values else np.empty(0), confidence=confidence)


def paired_bootstrap(
    statistic_a: Statistic,
    statistic_b: Statistic,
    n: int,
    *,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compare two systems on the same n rows: both are judged on the same resamples (Koehn 2004).

    Koehn counts the resamples in which the other system wins. Here ties count against the difference, the
    smaller of the two sides is doubled (two-sided), and one is added to both counts (Davison & Hinkley), so
    that p is never 0: the least is 2 / (resamples + 1). p < 0.05 and a 95 % interval that leaves out 0 mean
    the same, to within one resample. Raises ValueError as :func:`bootstrap_interval` does, and for n < 1.
    """
    if n < 1:
        raise ValueError(f"expected at least one row to compare systems on, found {n}")

    def difference(weights: Floats) -> Floats:
        return np.asarray(statistic_a(weights), dtype=np.float64) - np.asarray(
            statistic_b(weights), dtype=np.float64
        )

    observed = float(difference(np.ones((1, n)))[0])
    chunks = [difference(weights) for weights in _weights(n, resamples, seed)]
    values = np.concatenate(chunks) if chunks else np.empty(0)
    interval = percentile_interval(values, confidence=confidence)
    if interval is None:
        return PairedDifference(difference=observed, interval=None, p_value=None)
    defined = values[~np.isnan(values)]
    against = min(np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0))
    p_value = min(1.0, 2.0 * (against + 1) / (len(defined) + 1))
    return PairedDifference(difference=observed, interval=interval, p_value=p_value)


def ratio_interval(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    transform: Callable[[Floats], Floats] | None = None,
    resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of sum(numerators) / sum(denominators) over rows, both (n,).

    A mean over tokens, a perplexity (``transform=np.exp``), an accuracy (denominators of one), a precision or
    recall. ``transform`` maps the (resamples,) ratios to values. None as for :func:`bootstrap_interval`, and
    where a numerator or denominator is not finite. Raises ValueError for arrays that are not (n,) and (n,).
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(f"expected two arrays of one shape (n,), found {above.shape} and {below.shape}")
    sums = resample_sums(np.stack([above, below], axis=1), resamples=resamples, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = sums[:, 0] / sums[:, 1]
        return percentile_interval(transform(ratios) if transform else ratios, confidence=confidence)


def resample_sums(rows: npt.ArrayLike, *, resamples: int, seed: int) -> Floats:
    """Column sums of every resample: rows (n, columns) -> (resamples, columns).

    For several scores out of one pass: the sums of different columns come from the same resamples. Empty, (0,
    columns), for n < 2 or no resamples; nan where any row of a column is not finite. Raises ValueError for
    rows that are not a matrix.
    """
    matrix = np.array(rows, dtype=np.float64, order="C")
    if matrix.ndim != 2:
        raise ValueError(f"expected rows of shape (n, columns), found {matrix.shape}")
    # 0 x inf would be nan in some resamples and inf in others: one rule for all of them
    matrix[:, ~np.isfinite(matrix).all(axis=0)] = np.nan
    chunks = [weights @ matrix for weights in _weights(len(matrix), resamples, seed)]
    return np.concatenate(chunks) if chunks else np.empty((0, matrix.shape[1]))


def percentile_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval that holds the middle ``confidence`` of (resamples,) values; nan left out, None where nothing
    is left.

    Its ends are values themselves, rounded outwards. Nothing is interpolated, so infinite values do no harm,
    and the interval of a rising function of a score is that function of the score's interval.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, such as 0.95, found {confidence}")
    found = np.asarray(values, dtype=np.float64)
    ordered = np.sort(found[~np.isnan(found)])
    if not len(ordered):
        return None
    tail = (1 - confidence) / 2 * (len(ordered) - 1)
    low = int(np.floor(tail))
    return float(ordered[low]), float(ordered[len(ordered) - 1 - low])


def _weights(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn: (chunk, n) arrays, ``resamples`` lines in all. The chunk size does not
    alter them."""
    if resamples < 0:
        raise ValueError(f"expected a number of resamples of at least 0, found {resamples}")
    if n < 2:
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    most = max(1, CHUNK // n)
    for start in range(0, resamples, most):
        lines = min(most, resamples - start)
        drawn = generator.integers(0, n, size=(lines, n))
        drawn += np.arange(lines)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=lines * n).reshape(lines, n).astype(np.float64)
