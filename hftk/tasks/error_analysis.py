"""Where a classifier errs: confusion matrix, scores by class, calibration, and its most confident mistakes
with their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.metrics.calibration import expected_calibration_error, reliability
from hftk.metrics.classification import confusion_matrix, per_class
from hftk.tasks.class_predictions import Answers, labels_in, said_of, truth
from hftk.tasks.labels import REGRESSION, SINGLE, Labels

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN = 20
"""Mistakes that are shown."""
LONGEST = 500
"""Characters of a text that are shown."""
POINTS = 1000


def analyze(found: Answers, rows: Dataset, *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Sections for the report; see :attr:`hftk.reports.record.RunRecord.analysis`."""
    labels = labels_in(rows)
    true = truth(rows, labels)
    if labels.problem_type == REGRESSION:
        step = max(1, len(true) // POINTS)
        points = [
            [round(float(t), 4), round(float(p), 4)]
            for t, p in zip(true[::step], found.chosen[::step], strict=True)
        ]
        scatter = {
            "title": "Predicted against true",
            "kind": "scatter",
            "points": points,
            "x_title": "true value",
            "y_title": "predicted value",
        }
        return [scatter, _errors(found, rows, true)]
    sections = []
    if labels.problem_type == SINGLE:
        sections.append(
            {
                "title": "Confusion matrix",
                "kind": "matrix",
                "rows": list(labels.names),
                "columns": list(labels.names),
                "values": confusion_matrix(true, found.chosen, len(labels.names)).tolist(),
                "row_title": "true label",
                "column_title": "predicted label",
            }
        )
    whole = true if labels.problem_type == SINGLE else true.astype(bool)
    sections.append(_by_class(per_class(whole, found.chosen, labels.names, resamples=resamples, seed=seed)))
    if found.probabilities is not None:
        sections.append(_calibration(found.probabilities, true, labels))
    return [*sections, _mistakes(found, rows, true, labels)]


def _calibration(probabilities: np.ndarray, true: np.ndarray, labels: Labels) -> dict[str, Any]:
    """How sure and how right. With several labels per row each of them is one question with the answers yes
    and no."""
    if labels.problem_type != SINGLE:
        yes = probabilities.ravel()
        probabilities, true = np.stack([1 - yes, yes], axis=1), (true > 0).ravel().astype(np.int64)
    error = expected_calibration_error(true, probabilities)
    return {
        "title": "Calibration",
        "kind": "reliability",
        "bins": reliability(true, probabilities),
        "note": (
            "How often the likelier answer is right, by how sure the model is; on the diagonal it is as"
            f" right as it is sure. Expected calibration error {error:.4f}."
        ),
    }


def _by_class(lines: list[dict[str, Any]]) -> dict[str, Any]:
    def cell(line: Mapping[str, Any], key: str) -> Any:
        return {"value": line[key], "interval": line[f"{key}_interval"]}

    scored = ("precision", "recall", "f1")
    return {
        "title": "By class",
        "kind": "table",
        "columns": [{"key": key, "title": key} for key in ("class", *scored, "support", "predicted")],
        "rows": [
            {**{k: line[k] for k in ("class", "support", "predicted")}, **{k: cell(line, k) for k in scored}}
            for line in lines
        ],
        "note": "support: rows that have the class; predicted: rows that are given it.",
    }


def _mistakes(found: Answers, rows: Dataset, true: np.ndarray, labels: Labels) -> dict[str, Any]:
    """Rows that are wrong although the model was sure, the surest first."""
    assert found.probabilities is not None
    if labels.problem_type == SINGLE:
        wrong = found.chosen != true
        sure = found.probabilities[np.arange(len(true)), found.chosen]
    else:
        differs = found.chosen != (true > 0)
        wrong = differs.any(1)
        sure = np.where(differs, np.where(found.chosen, found.probabilities, 1 - found.probabilities), 0).max(
            1
        )
    order = [
        int(i) for i in np.argsort(-np.where(wrong, sure, -1), kind="stable")[: min(SHOWN, int(wrong.sum()))]
    ]
    lines = []
    for i in order:
        chosen = (
            found.chosen[i] if labels.problem_type == SINGLE else np.flatnonzero(found.chosen[i]).tolist()
        )
        lines.append(
            {
                "row": i,
                **_texts(rows, i),
                "label": _said(rows[i]["label"], labels),
                "prediction": _said(chosen, labels),
                "probability": round(float(sure[i]), 4),
            }
        )
    note = (
        f"{int(wrong.sum()):,} of {len(true):,} rows are wrong; these are the ones that the model was surest"
        " about."
    )
    return {"title": "Most confident mistakes", "kind": "examples", "rows": lines, "note": note}


def _errors(found: Answers, rows: Dataset, true: np.ndarray) -> dict[str, Any]:
    error = np.abs(found.chosen - true)
    order = np.argsort(-error, kind="stable")[:SHOWN]
    lines = [
        {
            "row": int(i),
            **_texts(rows, int(i)),
            "label": float(rows[int(i)]["label"]),
            "prediction": round(float(found.chosen[i]), 4),
        }
        for i in order
    ]
    return {"title": "Largest errors", "kind": "examples", "rows": lines}


def _texts(rows: Dataset, index: int) -> dict[str, str]:
    row = rows[index]
    return {role: row[role][:LONGEST] for role in ("text", "text_pair") if role in row}


def _said(value: Any, labels: Labels) -> str:
    said = said_of(value, labels)
    return said if isinstance(said, str) else ", ".join(said) or "none"
