"""Two systems on the same rows: is the difference real?

Both are judged on the same resamples, so that rows that are hard for both cancel out. The tests ask whether
other rows of the same kind would show the difference; what another seed in training would change, they do not
see.

Axes: n (rows); k (classes or labels); cells (distinct triples of true class and both predictions); lines
(resamples).

Sources: McNemar, Note on the sampling error of the difference between correlated proportions or percentages
(Psychometrika 12, 1947); Dietterich, Approximate statistical tests for comparing supervised classification
learning algorithms (Neural Computation 10, 1998); :mod:`hftk.metrics.bootstrap` for the paired bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hftk.metrics import classification
from hftk.metrics.bootstrap import paired_bootstrap, percentile_interval
from hftk.metrics.regression import ERRORS, regression_statistics

Floats = npt.NDArray[np.float64]

SINGLE_LABEL = ("accuracy", "f1_macro", "balanced_accuracy", "matthews_corrcoef")
MULTI_LABEL = ("f1_micro", "f1_macro", "subset_accuracy")
REGRESSION = ("pearson", "spearman", "mse", "r2")


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's exact test: do two systems get the same share of rows right?"""

    only_a: int
    """Rows that a has right and b has wrong."""
    only_b: int
    """Rows that b has right and a has wrong."""
    p_value: float
    """Two-sided, exact binomial: how often a fair coin would divide these rows at least as unevenly."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One score of two systems on the same rows."""

    name: str
    """As in :class:`hftk.task.Score`."""
    a: float
    b: float
    difference: float
    """a - b."""
    interval: tuple[float, float] | None
    """95 % percentile interval of the difference; None below two rows, without resamples, or where it is
    undefined."""
    p_value: float | None
    """Two-sided, paired bootstrap; None as for ``interval``."""
    higher_is_better: bool = True


def mcnemar(correct_a: npt.ArrayLike, correct_b: npt.ArrayLike) -> McNemar:
    """Test two systems by the rows that only one of them has right (McNemar 1947; advised by Dietterich
    1998).

    correct_a, correct_b: (n,) booleans. The p-value equals scipy.stats.binomtest(min(only_a, only_b), only_a
    + only_b); 1.0 where no row tells them apart. Raises ValueError for shapes that do not fit.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape (n,), found {a.shape} and {b.shape}")
    a, b = a.astype(np.bool_), b.astype(np.bool_)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return McNemar(only_a=0, only_b=0, p_value=1.0)
    from scipy.stats import binomtest

    p_value = float(binomtest(min(only_a, only_b), only_a + only_b).pvalue)
    return McNemar(only_a=only_a, only_b=only_b, p_value=p_value)


def compare_single_label(
    true: npt.ArrayLike,
    predicted_a: npt.ArrayLike,
    predicted_b: npt.ArrayLike,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Accuracy, macro F1, balanced accuracy and Matthews correlation of two systems, by the paired bootstrap.

    true, predicted_a, predicted_b: (n,) classes from 0 to k - 1; names: the k classes. Scores and errors as
    in :func:`hftk.metrics.classification.single_label_scores`, p-values as in
    :func:`hftk.metrics.bootstrap.paired_bootstrap`.
    """
    k = len(names)
    labels, a = classification.check_classes(true, predicted_a, k)
    _, b = classification.check_classes(true, predicted_b, k)
    (cell_true, cell_a, cell_b), rows = classification.find_cells(labels, a, b)

    def values(weights: npt.NDArray[np.float64], cell_predicted: classification.Ints) -> dict[str, Floats]:
        counts = classification.count_classes(weights, cell_true, cell_predicted, k)
        return classification.single_label_values(counts)

    whole = rows[None].astype(np.float64)
    drawn: dict[str, list[Floats]] = {name: [] for name in SINGLE_LABEL}
    for weights in classification.resample_cells(rows, resamples=resamples, seed=seed, columns=k):
        values_a, values_b = values(weights, cell_a), values(weights, cell_b)
        for name, chunks in drawn.items():
            chunks.append(values_a[name] - values_b[name])
    differences = {name: np.concatenate(chunks) if chunks else np.empty(0) for name, chunks in drawn.items()}
    return _judge(values(whole, cell_a), values(whole, cell_b), differences)


def compare_multi_label(
    true: npt.ArrayLike,
    predicted_a: npt.ArrayLike,
    predicted_b: npt.ArrayLike,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Micro F1, macro F1 and subset accuracy of two systems, by the paired bootstrap.

    true, predicted_a, predicted_b: (n, k) booleans; names: the k labels. Scores and errors as in
    :func:`hftk.metrics.classification.multi_label_scores`.
    """
    k = len(names)
    observed, drawn = [], []
    for predicted in (predicted_a, predicted_b):
        labels, outputs = classification.check_labels(true, predicted, k)
        n = len(labels)
        if not n or not k:
            raise ValueError(f"expected at least one row and one label, found {n} rows and {k} labels")
        # the same seed draws the same rows for both
        whole, sums = classification.multi_label_sums(labels, outputs, resamples=resamples, seed=seed)
        observed.append(classification.multi_label_values(whole, n, k))
        drawn.append(classification.multi_label_values(sums, n, k))
    return _judge(observed[0], observed[1], {name: drawn[0][name] - drawn[1][name] for name in MULTI_LABEL})


def compare_regression(
    true: npt.ArrayLike, predicted_a: npt.ArrayLike, predicted_b: npt.ArrayLike, *, resamples: int, seed: int
) -> list[Comparison]:
    """Pearson and Spearman correlation, mean squared error and R2 of two systems, by the paired bootstrap.

    true, predicted_a, predicted_b: (n,) numbers. Scores and errors as in
    :func:`hftk.metrics.regression.regression_scores`; resamples in which either correlation is undefined are
    left out.
    """
    statistics_a, statistics_b = (
        regression_statistics(true, predicted_a),
        regression_statistics(true, predicted_b),
    )
    whole = np.ones((1, len(np.asarray(true))))
    comparisons = []
    for name in REGRESSION:
        a, b = statistics_a[name], statistics_b[name]
        found = paired_bootstrap(a, b, whole.shape[1], resamples=resamples, seed=seed)
        undefined = math.isnan(found.difference)
        comparisons.append(
            Comparison(
                name=name,
                a=float(a(whole)[0]),
                b=float(b(whole)[0]),
                difference=found.difference,
                interval=None if undefined else found.interval,
                p_value=None if undefined else found.p_value,
                higher_is_better=name not in ERRORS,
            )
        )
    return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for several tests at once, in the order given (Holm, A simple sequentially rejective
    multiple test procedure, Scandinavian Journal of Statistics 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = so_far
    return adjusted


def in_words(comparison: Comparison, name_a: str, name_b: str, *, level: float = 0.05) -> str:
    """One sentence that says which system is better, by how much, and whether the difference is real (p <
    ``level``).

    The interval is that of the better system's lead: above 0 where it leads.
    """
    found = comparison
    digits = _digits(found.difference)
    both = f"{found.name}: {name_a} {found.a:.{digits}f} against {name_b} {found.b:.{digits}f}"
    if math.isnan(found.difference):
        return f"{both}: undefined, so they cannot be compared."
    # the same value reached by other counts may differ in its last bits
    if math.isclose(found.a, found.b, rel_tol=1e-12, abs_tol=1e-15):
        return f"{both}: equal."
    low, high = found.interval or (math.nan, math.nan)
    a_is_better = (found.difference > 0) == found.higher_is_better
    if found.difference < 0:
        low, high = -high, -low
    span = f" [{low:.{digits}f}, {high:.{digits}f}]" if found.interval else ""
    lead = (
        f"{both}: {name_a if a_is_better else name_b} is better by {abs(found.difference):.{digits}f}{span}"
    )
    if found.p_value is None:
        return f"{lead}: not tested, so the difference may be chance."
    p_value = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    verdict = "the difference is real" if found.p_value < level else "the difference may be chance"
    return f"{lead}, {p_value}: {verdict}."


def _judge(
    a: Mapping[str, Floats], b: Mapping[str, Floats], differences: Mapping[str, Floats]
) -> list[Comparison]:
    """Comparisons of (1,) values and (resamples,) differences, with the p-value of ``paired_bootstrap``."""
    comparisons = []
    for name, drawn in differences.items():
        against = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
        p_value = min(1.0, 2.0 * (against + 1) / (len(drawn) + 1)) if len(drawn) else None
        value_a, value_b = float(a[name][0]), float(b[name][0])
        comparisons.append(
            Comparison(
                name=name,
                a=value_a,
                b=value_b,
                difference=value_a - value_b,
                interval=percentile_interval(drawn),
                p_value=p_value,
            )
        )
    return comparisons


def _digits(difference: float) -> int:
    """Decimals that show two digits of the difference: three or more."""
    if not difference or not math.isfinite(difference):
        return 3
    return min(9, max(3, 1 - math.floor(math.log10(abs(difference)))))
