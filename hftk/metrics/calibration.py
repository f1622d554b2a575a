"""How far probabilities can be believed, and how to repair them: calibration error, temperature, thresholds.

Axes: n (rows); k (classes or labels); bins.

Sources: Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks (ICML 2017), sections 2 and
4.2 (expected calibration error, temperature scaling); Wilson, Probable Inference, the Law of Succession, and
Statistical Inference (JASA 22, 1927) (interval of a proportion); Lipton, Elkan & Naryanaswamy, Optimal
Thresholding of Classifiers to Maximize F1 Measure (ECML 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TEMPERATURES = (0.05, 20.0)
"""Least and greatest temperature that is fitted: beyond them only a few rows decide."""


def expected_calibration_error(true: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (ECE), in [0, 1], lower is better: how far confidence and accuracy lie
    apart.

    The confidence of a row is its highest probability, the row is right where that class is the true one.
    Rows go into ``bins`` bins of equal width, open on the left and closed on the right; ECE is the mean over
    rows of
    |accuracy - confidence| of their bin (Guo et al. 2017, equation 3). It depends on the number of bins, and
    is above
    0 for few rows even where the probabilities are right.

    true: (n,) classes; probabilities: (n, k). nan where a probability is. Raises ValueError for shapes that
    do not fit, no rows, values outside [0, 1] and fewer than one bin.
    """
    gaps, places = confidence_gaps(true, probabilities, bins)
    return float(np.abs(np.bincount(places, weights=gaps, minlength=bins)).sum() / len(gaps))


def confidence_gaps(
    true: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """What the calibration error is summed from: (n,) right (1 or 0) minus confidence, and (n,) bin of each
    row."""
    right, confidence, places = _binned(true, probabilities, bins)
    return right - confidence, places


def reliability(true: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int = 15) -> list[dict[str, Any]]:
    """Points of a reliability diagram: one dictionary per bin that has rows, from low to high confidence.

    ``low`` and ``high``: edges, rows with low < confidence <= high; ``rows``: their number; ``confidence``
    and ``accuracy``: means over them; ``accuracy_interval``: [low, high], 95 % (Wilson 1927). Arguments and
    errors as in :func:`expected_calibration_error`.
    """
    right, confidence, places = _binned(true, probabilities, bins)
    rows = np.bincount(places, minlength=bins)
    rights = np.bincount(places, weights=right, minlength=bins)
    confidences = np.bincount(places, weights=confidence, minlength=bins)
    return [
        {
            "low": float(place / bins),
            "high": float((place + 1) / bins),
            "rows": int(rows[place]),
            "confidence": float(confidences[place] / rows[place]),
            "accuracy": float(rights[place] / rows[place]),
            "accuracy_interval": wilson_interval(int(rights[place]), int(rows[place])),
        }
        for place in np.flatnonzero(rows)
    ]


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> list[float]:
    """[low, high] of a proportion (Wilson 1927, without continuity correction). ValueError below one
    trial."""
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected successes out of at least one trial, found {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # no row or every row: that end is 0 or 1 but for rounding
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    return [low, 1.0 if successes == trials else min(1.0, middle + half)]


def fit_temperature(logits: npt.ArrayLike, true: npt.ArrayLike) -> float:
    """Temperature T for which softmax(logits / T) has the least mean negative log-likelihood (Guo et al.
    2017).

    logits: (n, k); true: (n,) classes. T > 1 makes a model that is too sure less sure; the predicted classes
    stay. Found within 0.05 .. 20, which is where it ends when every row is right (no minimum) or the logits
    are worse than chance. 1.0 where the rows do not tell: none, the same logit for all classes, rows so sure
    that no temperature in that range changes the loss, or a logit that is not finite. Fit it on validation
    rows, never on the rows that are judged. Raises ValueError for shapes that do not fit.
    """
    scores, classes = np.asarray(logits, dtype=np.float64), np.asarray(true)
    if scores.ndim != 2 or classes.shape != scores.shape[:1]:
        raise ValueError(f"expected logits (n, k) and classes (n,), found {scores.shape} and {classes.shape}")
    if not len(scores) or not np.isfinite(scores).all():
        return 1.0
    classes = _whole(classes, scores.shape[1])
    margins = scores - scores[np.arange(len(scores)), classes][:, None]  # (n, k), 0 at the true class
    top = margins.max(axis=1)
    margins -= top[:, None]
    return _least(lambda scale: float(np.mean(scale * top + np.log(np.exp(scale * margins).sum(axis=1)))))


def fit_binary_temperature(logits: npt.ArrayLike, true: npt.ArrayLike) -> float:
    """One temperature T for sigmoid(logits / T) of several labels: least mean binary cross-entropy over all
    of them.

    logits: (n, k); true: (n, k) booleans. Range, special cases and errors as in :func:`fit_temperature`.
    """
    scores, labels = np.asarray(logits, dtype=np.float64), np.asarray(true)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            f"expected logits and labels of one shape (n, k), found {scores.shape} and {labels.shape}"
        )
    if not scores.size or not np.isfinite(scores).all():
        return 1.0
    wrong_by = np.where(labels.astype(bool), -scores, scores)
    return _least(lambda scale: float(np.logaddexp(0.0, scale * wrong_by).mean()))


def tune_thresholds(true: npt.ArrayLike, probabilities: npt.ArrayLike, *, enough: int = 1) -> Floats:
    """For each label the threshold with the highest F1 on these rows: (k,). Predict where probability >=
    threshold.

    A label that fewer than ``enough`` rows have takes the threshold with the highest micro F1 of all labels
    together: its own would be chosen by chance, and may give a rare label to most rows (Fan & Lin 2007, *A
    study on threshold selection for multi-label classification*, have a similar rule against it).

    true: (n, k) booleans; probabilities: (n, k). A threshold lies halfway between neighbouring distinct
    probabilities, the one that predicts every row halfway between 0 and the least; of equally good ones the
    nearest to 0.5 is taken.
    0.5 for a label that no row has, unless ``enough`` is more than 1. Tune on validation rows, never on the
    rows that are judged. Raises ValueError for
    shapes that do not fit and values outside [0, 1].
    """
    labels = np.asarray(true)
    values = check_probabilities(probabilities, labels.shape)
    if values.ndim != 2 or np.isnan(values).any():
        raise ValueError(f"expected probabilities (n, k) without nan, found shape {values.shape}")
    thresholds = np.full(values.shape[1], 0.5)
    counts = labels.astype(bool).sum(axis=0)
    rare = (counts < enough) & bool(enough > 1 and labels.any())
    if rare.any():
        thresholds[rare] = _best_threshold(labels.astype(bool).ravel(), values.ravel())
    for label in np.flatnonzero((counts > 0) & ~rare):
        thresholds[label] = _best_threshold(labels[:, label].astype(bool), values[:, label])
    return thresholds


def check_probabilities(probabilities: npt.ArrayLike, shape: tuple[int, ...]) -> Floats:
    """Probabilities as float64; ValueError where the shape is another or a value lies outside [0, 1]; nan may
    pass."""
    values = np.asarray(probabilities, dtype=np.float64)
    if values.shape != tuple(shape):
        raise ValueError(f"expected probabilities of shape {tuple(shape)}, found {values.shape}")
    # softmax in single precision may miss 1 by a few units in the last place
    if (values < -1e-6).any() or (values > 1 + 1e-6).any():
        raise ValueError(
            f"expected probabilities from 0 to 1, found {np.nanmin(values):.6g} .. {np.nanmax(values):.6g}:"
            " logits?"
        )
    return values


def _binned(
    true: npt.ArrayLike, probabilities: npt.ArrayLike, bins: int
) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    """(n,) right, (n,) confidence and (n,) bin."""
    if bins < 1:
        raise ValueError(f"expected at least one bin, found {bins}")
    shape = np.shape(probabilities)
    values = check_probabilities(probabilities, shape)
    if len(shape) != 2 or not values.size or np.shape(true) != shape[:1]:
        raise ValueError(
            f"expected classes (n,) and probabilities (n, k) of rows, found {np.shape(true)} and {shape}"
        )
    classes = _whole(np.asarray(true), shape[1])
    confidence = values.max(axis=1)
    right = (values.argmax(axis=1) == classes).astype(np.float64)
    edges = np.arange(bins + 1) / bins
    # a confidence of exactly 0 has no bin that is open on the left: it goes to the first
    return right, confidence, np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def _whole(classes: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    if classes.dtype.kind not in "iu" or (len(classes) and not 0 <= classes.min() <= classes.max() < k):
        raise ValueError(
            f"expected classes as whole numbers from 0 to {k - 1}, found {classes.dtype} {classes[:5]}"
        )
    return classes.astype(np.int64)


def _least(loss: Callable[[float], float]) -> float:
    """The temperature with the least loss(1 / T): convex in 1 / T, so that a search on the scale of log T
    finds it."""
    from scipy.optimize import minimize_scalar

    low, high = TEMPERATURES
    ends = [loss(1 / low), loss(1.0), loss(1 / high)]
    # a convex function that is equal in three places is flat between them
    if max(ends) - min(ends) < 1e-12:
        return 1.0
    found = minimize_scalar(
        lambda place: loss(math.exp(-place)),
        bounds=(math.log(low), math.log(high)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return min([math.exp(found.x), low, high], key=lambda temperature: loss(1 / temperature))


def _best_threshold(labels: npt.NDArray[np.bool_], values: Floats) -> float:
    order = np.argsort(-values, kind="stable")
    falling, hits = values[order], np.cumsum(labels[order])
    below = np.append(falling[1:], min(0.0, falling[-1]))  # (n,) what comes after each cut
    cuts = np.append(np.flatnonzero(falling[:-1] > falling[1:]), len(falling) - 1)
    f1 = 2 * hits[cuts] / (cuts + 1 + hits[-1])
    middles = (falling[cuts] + below[cuts]) / 2
    # between neighbours among the floats the middle may round down to the lower one, which is not to be
    # predicted
    lower_is_out = (middles <= below[cuts]) & (cuts < len(falling) - 1)
    middles = np.where(lower_is_out, falling[cuts], middles)
    best = middles[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])
