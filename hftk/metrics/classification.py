"""Accuracy, F1, Matthews correlation and the like for one label a row or several, with intervals.

Every value equals scikit-learn's. The scores are made of three counts per class: rows that have it, rows for
which it is predicted, and rows with both (hits). Rows with the same true and predicted class are alike to
these scores, so drawing n rows with replacement is drawing the numbers of each such *cell* from a multinomial
distribution: the same bootstrap, at the cost of the cells and not of the rows.

Axes: n (rows); k (classes, or labels where a row may have several); cells (distinct pairs of true and
predicted class); lines (resamples of a chunk).

Sources: scikit-learn's user guide, Metrics and scoring, section 3.4.4; Gorodkin, Comparing two K-category
assignments by a K-category correlation coefficient (2004), for the Matthews correlation of several classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hftk.metrics.bootstrap import CHUNK, percentile_interval, resample_sums
from hftk.metrics.calibration import check_probabilities, confidence_gaps
from hftk.task import Score

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""
BLOCK = 2**24
"""Most numbers (8 bytes each) of rows x columns resampled at once, to bound the memory of many labels."""
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to this far from 0 and 1 before the logarithm, as scikit-learn's log_loss
does."""

COUNTED = {
    "accuracy": "rows whose class is right",
    "balanced_accuracy": "mean recall over the classes that rows have",
    "f1_macro": "mean over classes",
    "f1_weighted": "mean over classes, weighted by rows that have them",
    "f1_micro": "counts of all classes added",
    "matthews_corrcoef": "0 where undefined",
    "f1_samples": "mean over rows",
    "subset_accuracy": "rows whose labels are all right",
    "hamming_loss": "wrong labels out of rows x labels",
    "expected_calibration_error": f"highest probability, {BINS} bins of equal width, right-closed",
    "loss": f"mean negative log-likelihood, probabilities clipped at {LEAST_PROBABILITY:.3g}",
}
"""What the signature says of each score."""
LOWER_IS_BETTER = ("hamming_loss", "expected_calibration_error", "loss")


class Counts(NamedTuple):
    """Rows per class, three arrays (lines, k)."""

    hits: Floats
    """Rows that have the class and for which it is predicted."""
    true: Floats
    """Rows that have it."""
    predicted: Floats
    """Rows for which it is predicted."""


def single_label_scores(
    true: npt.ArrayLike,
    predicted: npt.ArrayLike,
    probabilities: npt.ArrayLike | None,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """Scores of rows with one class each, named as scikit-learn names its scorers and equal to them.

    ``accuracy``, ``f1_macro``, ``balanced_accuracy``, ``f1_weighted``, ``f1_micro`` (equal to the accuracy),
    ``matthews_corrcoef``: higher is better, 1 is perfect. With probabilities also ``loss``, the mean negative
    log-likelihood of the true class in nats per row, and ``expected_calibration_error``: lower is better.

    F1 of a class is 2 hits / (rows that have it + rows for which it is predicted). Macro averages leave out
    classes that no row has and none is predicted to have; balanced accuracy those that no row has. 0/0 is 0.

    true, predicted: (n,) classes from 0 to k - 1, names: their k names. probabilities: (n, k). Intervals: 95
    % percentile bootstrap over rows, the classes present being those of each resample; None below two rows.
    That of the calibration error may lie above its value: fewer distinct rows look less calibrated. Raises
    ValueError for no rows, classes out of range and shapes that do not fit.
    """
    k = len(names)
    true, predicted = check_classes(true, predicted, k)
    (cell_true, cell_predicted), rows = find_cells(true, predicted)
    observed = single_label_values(count_classes(rows[None], cell_true, cell_predicted, k))
    chunks = [
        single_label_values(count_classes(weights, cell_true, cell_predicted, k))
        for weights in resample_cells(rows, resamples=resamples, seed=seed, columns=k)
    ]
    settings = _Settings(
        n=len(true), classes=f"classes:{k}", loss_unit="nats/row", resamples=resamples, seed=seed
    )
    scores = [
        settings.score(name, float(value[0]), [chunk[name] for chunk in chunks])
        for name, value in observed.items()
    ]
    if probabilities is not None:
        scores += _probability_scores(true, check_probabilities(probabilities, (len(true), k)), settings)
    return scores


def multi_label_scores(
    true: npt.ArrayLike,
    predicted: npt.ArrayLike,
    probabilities: npt.ArrayLike | None,
    names: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """Scores of rows with any number of labels each, equal to scikit-learn's.

    ``f1_micro``, ``f1_macro``, ``f1_weighted``, ``f1_samples``, ``subset_accuracy`` (scikit-learn's
    accuracy_score): higher is better. ``hamming_loss`` (share of wrong decisions) and, with probabilities,
    ``loss`` (mean binary cross-entropy over rows and labels, in nats): lower is better. 0/0 is 0, so that a
    label that no row has and none is predicted to have lowers ``f1_macro``, and a row without labels that
    rightly gets none lowers ``f1_samples``.

    true, predicted: (n, k) booleans; probabilities: (n, k); names: the k labels. Intervals: 95 % percentile
    bootstrap over rows; None below two. Raises ValueError for no rows, no labels, values that are not
    booleans and shapes that do not fit.
    """
    k = len(names)
    true, predicted = check_labels(true, predicted, k)
    n = len(true)
    if not n or not k:
        raise ValueError(f"expected at least one row and one label, found {n} rows and {k} labels")
    losses = None
    if probabilities is not None:
        clipped = np.clip(
            check_probabilities(probabilities, true.shape), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY
        )
        losses = -np.log(np.where(true, clipped, 1 - clipped)).mean(axis=1)
    observed, drawn = (
        multi_label_values(sums, n, k)
        for sums in multi_label_sums(true, predicted, losses, resamples=resamples, seed=seed)
    )
    settings = _Settings(n=n, classes=f"labels:{k}", loss_unit="nats/label", resamples=resamples, seed=seed)
    return [settings.score(name, float(value[0]), [drawn[name]]) for name, value in observed.items()]


def per_class(
    true: npt.ArrayLike, predicted: npt.ArrayLike, names: Sequence[str], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class or label, each with ``NAME_interval`` ([low, high] or None), in
    order.

    ``class``: its name; ``support``: rows that have it; ``predicted``: rows for which it is predicted. Values
    equal scikit-learn's precision_recall_fscore_support(average=None, labels=range(k), zero_division=0).

    true, predicted: (n,) classes, or (n, k) booleans. Intervals as in :func:`single_label_scores`, with 0/0
    counted as 0 in the resamples too; None where the value itself is 0/0. Raises ValueError as the scores do,
    save for no rows.
    """
    k = len(names)
    if np.ndim(true) == 2:
        true, predicted = check_labels(true, predicted, k)
        rows = label_columns(true, predicted)
        observed = split_counts(rows.sum(axis=0, dtype=np.float64)[None], k)
        drawn: Counts | None = split_counts(resample_columns(rows, resamples=resamples, seed=seed), k)
    else:
        true, predicted = check_classes(true, predicted, k, least=0)
        (cell_true, cell_predicted), cells = find_cells(true, predicted)
        observed = count_classes(cells[None], cell_true, cell_predicted, k)
        chunks = [
            count_classes(weights, cell_true, cell_predicted, k)
            for weights in resample_cells(cells, resamples=resamples, seed=seed, columns=k)
        ]
        drawn = Counts(*(np.concatenate(part) for part in zip(*chunks, strict=True))) if chunks else None
    values = _precision_recall_f1(observed)
    # the values of one class at a time: three more arrays (resamples, k) would double the memory
    table = []
    for place, name in enumerate(names):
        entry: dict[str, Any] = {"class": name}
        draws = _precision_recall_f1(Counts(*(part[:, place] for part in drawn))) if drawn else {}
        for key, (value, below) in values.items():
            interval = percentile_interval(draws[key][0]) if drawn and below[0, place] else None
            entry[key] = float(value[0, place])
            entry[f"{key}_interval"] = list(interval) if interval else None
        entry["support"] = int(observed.true[0, place])
        entry["predicted"] = int(observed.predicted[0, place])
        table.append(entry)
    return table


def confusion_matrix(true: npt.ArrayLike, predicted: npt.ArrayLike, classes: int) -> Ints:
    """How many rows of each true class (line) got each predicted class (column): (classes, classes) whole
    numbers.

    true, predicted: (n,) classes from 0; ValueError where they are out of range or differ in shape.
    """
    true, predicted = check_classes(true, predicted, classes, least=0)
    return (
        np.bincount(true * classes + predicted, minlength=classes**2)
        .reshape(classes, classes)
        .astype(np.int64)
    )


def single_label_values(counts: Counts) -> dict[str, Floats]:
    """The scores of :func:`single_label_scores` that are made of counts: name to (lines,) values."""
    hits, true, predicted = counts
    n = true.sum(axis=1)
    f1, seen = _divide(2 * hits, true + predicted), true + predicted > 0
    accuracy = hits.sum(axis=1) / n
    # whole numbers, exact below 2^53: n up to 9e7 rows
    covariance = hits.sum(axis=1) * n - (true * predicted).sum(axis=1)
    variances = (n**2 - (true**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
    return {
        "accuracy": accuracy,
        "f1_macro": f1.sum(axis=1) / seen.sum(axis=1),
        "balanced_accuracy": _divide(hits, true).sum(axis=1) / (true > 0).sum(axis=1),
        "f1_weighted": (f1 * true).sum(axis=1) / n,
        "f1_micro": accuracy,
        "matthews_corrcoef": _divide(covariance, np.sqrt(variances)),
    }


def multi_label_values(sums: Floats, n: int, k: int) -> dict[str, Floats]:
    """The scores of :func:`multi_label_scores` from (lines, columns) of :func:`multi_label_sums`: name to
    (lines,) values; ``loss`` where there is a column of it."""
    hits, true, predicted = split_counts(sums, k)
    f1 = _divide(2 * hits, true + predicted)
    values = {
        "f1_micro": _divide(2 * hits.sum(axis=1), (true + predicted).sum(axis=1)),
        "f1_macro": f1.mean(axis=1),
        "f1_weighted": _divide((f1 * true).sum(axis=1), true.sum(axis=1)),
        "f1_samples": sums[:, 3 * k] / n,
        "subset_accuracy": sums[:, 3 * k + 1] / n,
        "hamming_loss": (true + predicted - 2 * hits).sum(axis=1) / (n * k),
    }
    return {**values, "loss": sums[:, 3 * k + 2] / n} if sums.shape[1] > 3 * k + 2 else values


def multi_label_sums(
    true: Bools, predicted: Bools, losses: Floats | None = None, *, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Sums over all rows, (1, columns), and over the rows of each resample, (resamples, columns).

    Columns: hits, true and predicted of the k labels; F1 of the row; whether all its labels are right; its
    loss, where ``losses`` (n,) are given. The same seed draws the same rows, whatever the labels.
    """
    labels = label_columns(true, predicted)
    hits, both = (true & predicted).sum(axis=1), true.sum(axis=1) + predicted.sum(axis=1)
    of_row = [
        _divide(2.0 * hits, both),
        (true == predicted).all(axis=1),
        *([] if losses is None else [losses]),
    ]
    columns = np.stack(of_row, axis=1)
    observed = np.concatenate([labels.sum(axis=0), columns.sum(axis=0)])[None]
    drawn = [resample_columns(rows, resamples=resamples, seed=seed) for rows in (labels, columns)]
    return observed, np.concatenate(drawn, axis=1)


def label_columns(true: Bools, predicted: Bools) -> Bools:
    """(n, 3 k): hits, true and predicted of every label, to be summed over rows."""
    return np.concatenate([true & predicted, true, predicted], axis=1)


def split_counts(sums: Floats, k: int) -> Counts:
    """Sums (lines, 3 k and more) of :func:`label_columns`, cut into their three parts."""
    return Counts(sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k])


def find_cells(*columns: Ints) -> tuple[tuple[Ints, ...], Ints]:
    """Distinct combinations of the (n,) columns: their values, (cells,) for each column, and (cells,) rows of
    each."""
    found, rows = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return tuple(found.T), rows.astype(np.int64)


def count_classes(weights: npt.NDArray[Any], true: Ints, predicted: Ints, k: int) -> Counts:
    """Counts of the k classes from how often each cell was drawn, (lines, cells), and its two classes,
    (cells,)."""
    right = true == predicted
    return Counts(
        _sum_by(weights[:, right], true[right], k), _sum_by(weights, true, k), _sum_by(weights, predicted, k)
    )


def resample_cells(rows: Ints, *, resamples: int, seed: int, columns: int) -> Iterator[Floats]:
    """How often each cell is drawn when as many rows are drawn with replacement as there are: (lines, cells)
    chunks.

    rows: (cells,) rows of each cell. columns: width of what the caller makes of a line, which bounds the
    lines of a chunk; the chunk size does not alter the draws. Nothing below two rows. ValueError for a
    negative ``resamples``.
    """
    if resamples < 0:
        raise ValueError(f"expected a number of resamples of at least 0, found {resamples}")
    n, cells = int(rows.sum()), len(rows)
    if n < 2:
        return
    generator = np.random.Generator(np.random.PCG64(seed))
    # a binomial draw per cell costs about as much as eight rows drawn one by one
    one_by_one = cells * 8 > n
    most = max(1, CHUNK // max(cells, columns, n if one_by_one else 1))
    cell_of_row = np.repeat(np.arange(cells), rows)
    for start in range(0, resamples, most):
        lines = min(most, resamples - start)
        if one_by_one:
            drawn = cell_of_row[generator.integers(0, n, size=(lines, n))]
            drawn += np.arange(lines)[:, None] * cells
            yield np.bincount(drawn.ravel(), minlength=lines * cells).reshape(lines, cells).astype(np.float64)
        else:
            yield generator.multinomial(n, rows / n, size=lines).astype(np.float64)


def resample_columns(rows: npt.NDArray[Any], *, resamples: int, seed: int) -> Floats:
    """:func:`hftk.metrics.bootstrap.resample_sums` in blocks of columns, so that many labels need no more
    memory."""
    width = max(1, BLOCK // max(1, len(rows)))
    blocks = [rows[:, start : start + width] for start in range(0, rows.shape[1], width)]
    return np.concatenate([resample_sums(block, resamples=resamples, seed=seed) for block in blocks], axis=1)


def check_classes(
    true: npt.ArrayLike, predicted: npt.ArrayLike, k: int, *, least: int = 1
) -> tuple[Ints, Ints]:
    """Both as int64 (n,); ValueError for other shapes, other types, classes outside 0 .. k - 1 or too few
    rows."""
    arrays = {"true": np.asarray(true), "predicted": np.asarray(predicted)}
    shapes = [array.shape for array in arrays.values()]
    if len(shapes[0]) != 1 or shapes[0] != shapes[1] or shapes[0][0] < least:
        raise ValueError(
            f"expected true and predicted classes of one shape (n,) and at least {least} row, found {shapes}"
        )
    for name, array in arrays.items():
        if not array.size:
            continue
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= k:
            raise ValueError(
                f"expected {name} classes as whole numbers from 0 to {k - 1}, "
                f"found {array.dtype} from {array.min()} to {array.max()}"
            )
    return arrays["true"].astype(np.int64), arrays["predicted"].astype(np.int64)


def check_labels(true: npt.ArrayLike, predicted: npt.ArrayLike, k: int) -> tuple[Bools, Bools]:
    """Both as booleans (n, k); ValueError for other shapes and for values other than False, True, 0 and 1."""
    arrays = [np.asarray(true), np.asarray(predicted)]
    if any(array.ndim != 2 or array.shape != arrays[0].shape or array.shape[1] != k for array in arrays):
        raise ValueError(
            f"expected true and predicted labels of one shape (n, {k}), found"
            f" {[array.shape for array in arrays]}"
        )
    if any(array.dtype != np.bool_ and not np.isin(array, (0, 1)).all() for array in arrays):
        raise ValueError("expected true and predicted labels as booleans, found other values")
    return arrays[0].astype(np.bool_), arrays[1].astype(np.bool_)


class _Settings(NamedTuple):
    """What all scores of one call have in common."""

    n: int
    classes: str
    loss_unit: str
    resamples: int
    seed: int

    def score(self, name: str, value: float, draws: Sequence[Floats]) -> Score:
        interval = percentile_interval(np.concatenate(draws)) if draws else None
        how = f"rows x {self.resamples}, percentile, seed {self.seed}" if interval else "none"
        zero = ["scikit-learn zero_division=0"] if name.startswith("f1_") else []
        return Score(
            name=name,
            value=value,
            unit=self.loss_unit if name == "loss" else "",
            higher_is_better=name not in LOWER_IS_BETTER,
            n=self.n,
            interval=interval,
            signature="|".join([self.classes, COUNTED[name], *zero, f"bootstrap:{how}", "hftk"]),
        )


def _probability_scores(true: Ints, probabilities: Floats, settings: _Settings) -> list[Score]:
    """Loss and calibration error, both made of sums over rows: one pass of the bootstrap."""
    n = len(true)
    losses = -np.log(np.clip(probabilities[np.arange(n), true], LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
    gaps, places = confidence_gaps(true, probabilities, BINS)
    rows = np.zeros((n, 1 + BINS))
    rows[:, 0] = losses
    rows[np.arange(n), 1 + places] = gaps
    sums = resample_sums(rows, resamples=settings.resamples, seed=settings.seed)
    error = float(np.abs(rows[:, 1:].sum(axis=0)).sum() / n)
    errors = np.abs(sums[:, 1:]).sum(axis=1) / n
    return [
        settings.score("loss", float(losses.mean()), [sums[:, 0] / n]),
        settings.score("expected_calibration_error", error, [errors]),
    ]


def _precision_recall_f1(counts: Counts) -> dict[str, tuple[Floats, Floats]]:
    """Name to (value, denominator), of the shape of the counts."""
    hits, true, predicted = counts
    both = true + predicted
    return {
        "precision": (_divide(hits, predicted), predicted),
        "recall": (_divide(hits, true), true),
        "f1": (_divide(2 * hits, both), both),
    }


def _sum_by(weights: npt.NDArray[Any], groups: Ints, k: int) -> Floats:
    """Columns of (lines, cells) added up by their group: (lines, k)."""
    sums = np.zeros((len(weights), k))
    if len(groups):
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        sums[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def _divide(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> Floats:
    """above / below, and 0 for 0/0."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below != 0)
