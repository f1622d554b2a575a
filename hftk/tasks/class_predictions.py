"""What a classifier's numbers mean: labels as targets and features, losses, answers, scores, predictions.

Axes: rows; labels (the model's outputs). ``truth`` and answers are (rows,) class numbers, (rows, labels) 0
and 1, or (rows,) numbers, by the kind of problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.task import Score
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, Labels

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


SCORES = {
    SINGLE: ("accuracy", "f1_macro", "balanced_accuracy", "f1_weighted", "f1_micro", "matthews_corrcoef"),
    MULTI: ("f1_micro", "f1_macro", "f1_weighted", "f1_samples", "subset_accuracy"),
    REGRESSION: ("pearson", "spearman", "mse", "mae", "r2"),
}
"""Scores of each kind of problem, as scikit-learn spells them."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a system says about each row."""

    chosen: np.ndarray
    """(rows,) class numbers, (rows, labels) bool, or (rows,) numbers."""
    probabilities: np.ndarray | None = None
    """(rows, labels); None for regression."""


# --- Labels in data sets


def feature_of(labels: Labels) -> Any:
    """The type of the label column: it carries the names along."""
    from datasets import ClassLabel, List, Value

    if labels.problem_type == REGRESSION:
        return Value("float64")
    classes = ClassLabel(names=list(labels.names))
    return classes if labels.problem_type == SINGLE else List(classes)


def labels_in(rows: Dataset) -> Labels:
    """The labels of a data set as :func:`feature_of` keeps them."""
    feature = rows.features["label"]
    if hasattr(feature, "names"):
        return Labels(problem_type=SINGLE, names=tuple(feature.names))
    if hasattr(feature, "feature"):
        return Labels(problem_type=MULTI, names=tuple(feature.feature.names))
    return Labels(problem_type=REGRESSION)


def truth(rows: Dataset, labels: Labels) -> np.ndarray:
    """(rows,) int64, (rows, labels) float32 of 0 and 1, or (rows,) float32."""
    values = list(rows["label"])
    if labels.problem_type == SINGLE:
        return np.array(values, np.int64)
    if labels.problem_type == REGRESSION:
        return np.array(values, np.float32)
    found = np.zeros((len(values), len(labels.names)), np.float32)
    for row, classes in enumerate(values):
        found[row, list(classes)] = 1
    return found


def classes_of(rows: Dataset, labels: Labels) -> int:
    """Number of classes that some row has; 0 for regression."""
    if labels.problem_type == REGRESSION:
        return 0
    return len({i for value in rows["label"] for i in (value if isinstance(value, list) else [value])})


def label_counts(targets: Mapping[str, Sequence[Any]], labels: Labels) -> dict[str, Any]:
    """For the record: rows of each class by split, or the range of the numbers."""
    if labels.problem_type == REGRESSION:
        return {
            "range": {
                split: {"lowest": min(values), "mean": float(np.mean(values)), "highest": max(values)}
                for split, values in targets.items()
                if len(values)
            }
        }
    rows = {}
    for split, values in targets.items():
        flat = (
            np.concatenate([np.atleast_1d(np.array(v, np.int64)) for v in values])
            if len(values)
            else np.empty(0, np.int64)
        )
        counts = np.bincount(flat, minlength=len(labels.names)).tolist()
        rows[split] = dict(zip(labels.names, counts, strict=True))
    return {"classes": len(labels.names), "rows": rows}


def balanced_weights(targets: np.ndarray, labels: Labels) -> np.ndarray:
    """Weights like ``targets``, float32. One label per row: rows / (classes x rows of the class), as
    scikit-learn's ``class_weight="balanced"``; several: absences / presences where the label is present, else
    1."""
    if labels.problem_type == SINGLE:
        counts = np.bincount(targets, minlength=len(labels.names))
        by_class = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return by_class[targets].astype(np.float32)
    present = targets.sum(0)
    weight = np.where(present > 0, (len(targets) - present) / np.maximum(present, 1), 1)
    return np.where(targets > 0, weight, 1).astype(np.float32)


# --- Losses


def losses(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0
) -> torch.Tensor:
    """The loss of every decision: (rows,) cross-entropy in nats, (rows, labels) binary cross-entropy, or
    (rows,) squared error.

    Told apart by ``labels``: whole numbers, a matrix, or numbers. With ``focal_gamma`` each is multiplied by
    (1 - p)^gamma, p the probability of what is right (Lin et al. 2017, arXiv:1708.02002). Smoothing pulls a
    label of several towards 1/2.
    """
    import torch
    from torch.nn import functional

    if not labels.is_floating_point():
        found = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    elif labels.ndim == 2:
        soft = labels * (1 - label_smoothing) + label_smoothing / 2
        found = functional.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    else:
        return (logits.squeeze(-1) - labels) ** 2
    # 1 - p without rounding to 0, where a power below 1 has no slope
    return found * (-torch.expm1(-found)).clamp_min(1e-12) ** focal_gamma if focal_gamma else found


def thresholds(config: Any, logits: torch.Tensor) -> torch.Tensor:
    """(labels,) probability from which on a label is predicted, as tuned on a validation split, else 0.5."""
    tuned = getattr(config, "thresholds", None)
    return logits.new_tensor(tuned) if tuned else logits.new_full((logits.shape[-1],), 0.5)


# --- Answers


def answers(outputs: Mapping[str, np.ndarray]) -> Answers:
    """What the collected outputs of a model say; see
    :meth:`hftk.tasks.classification.Classification.outputs`."""
    logits = outputs["logits"].astype(np.float64)
    if "chosen" in outputs:
        return Answers(chosen=outputs["chosen"].astype(bool), probabilities=sigmoid(logits))
    if logits.shape[1] == 1:
        return Answers(chosen=logits[:, 0])
    return Answers(chosen=logits.argmax(1), probabilities=softmax(logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """(rows, labels) probabilities that sum to 1 in each row."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, each by itself; no overflow."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return found


def scores(found: Answers, rows: Dataset, *, resamples: int, seed: int) -> list[Score]:
    """Scores by the kind of problem, with bootstrap intervals over rows."""
    from hftk.metrics.classification import multi_label_scores, single_label_scores
    from hftk.metrics.regression import regression_scores

    labels = labels_in(rows)
    if (
        labels.problem_type == REGRESSION
    ):  # the labels as the data have them, not rounded to the model's precision
        return regression_scores(
            np.array(list(rows["label"]), np.float64), found.chosen, resamples=resamples, seed=seed
        )
    true = truth(rows, labels)
    score = single_label_scores if labels.problem_type == SINGLE else multi_label_scores
    true = true if labels.problem_type == SINGLE else true.astype(bool)
    return score(true, found.chosen, found.probabilities, labels.names, resamples=resamples, seed=seed)


def predictions(found: Answers, rows: Dataset, labels: Labels | None) -> list[dict[str, Any]]:
    """One dictionary per row: ``index``, ``prediction``, ``reference`` where it is known, ``probability`` of
    the prediction (one label per row), ``probabilities`` of all labels."""
    labels = labels or labels_in(rows)
    references = [None] * len(found.chosen)
    if "label" in rows.column_names:
        references = [said_of(value, labels) for value in rows["label"]]
    lines = []
    for index, reference in enumerate(references):
        line: dict[str, Any] = {
            "index": index,
            "prediction": said_of(_row(found.chosen[index], labels), labels),
        }
        if "label" in rows.column_names:
            line["reference"] = reference
        if found.probabilities is not None:
            by_name = dict(
                zip(labels.names, (round(float(p), 6) for p in found.probabilities[index]), strict=True)
            )
            if labels.problem_type == SINGLE:
                line["probability"] = by_name[line["prediction"]]
            line["probabilities"] = by_name
        lines.append(line)
    return lines


def said_of(value: Any, labels: Labels) -> Any:
    """A target as people write it: the label's name, a list of names, or the number."""
    if labels.problem_type == REGRESSION:
        return float(value)
    return labels.names[value] if labels.problem_type == SINGLE else [labels.names[i] for i in value]


def _row(chosen: Any, labels: Labels) -> Any:
    return np.flatnonzero(chosen).tolist() if labels.problem_type == MULTI else chosen
