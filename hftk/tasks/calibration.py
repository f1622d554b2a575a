"""Choices made on the validation split after training and written into the model: thresholds and temperature.

A saved folder carries both: ``thresholds`` in its config, the temperature inside the weights of its last
layer, so that plain transformers gives the same probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.console import note
from hftk.metrics import calibration
from hftk.models.heads import divide_logits
from hftk.task import Splits
from hftk.tasks.class_predictions import labels_in, sigmoid, truth
from hftk.tasks.labels import MULTI, REGRESSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hftk.task import PredictRows


ENOUGH_ROWS = 10
"""Rows of the validation split that a label needs for a threshold of its own."""


def tune(
    model: PreTrainedModel,
    splits: Splits,
    predict_rows: PredictRows,
    *,
    temperature_scaling: bool,
    tune_thresholds: bool,
) -> list[dict[str, Any]]:
    """Fit the temperature and the thresholds on the validation split; sections for the report."""
    kind = labels_in(splits.train).problem_type
    several = kind == MULTI and tune_thresholds
    if kind == REGRESSION or not (several or temperature_scaling):
        return []
    rows, outputs = predict_rows("validation")
    labels, logits = labels_in(rows), outputs["logits"].astype(np.float64)
    true = truth(rows, labels)
    facts: dict[str, Any] = {"rows": len(rows)}
    if temperature_scaling:
        fit = calibration.fit_binary_temperature if kind == MULTI else calibration.fit_temperature
        temperature = fit(logits, true.astype(bool) if kind == MULTI else true)
        divide_logits(model, temperature)
        logits = logits / temperature
        facts["temperature"] = round(temperature, 4)
        note(f"temperature {temperature:.3f}, fitted on the validation split, is worked into the last layer")
    if several:
        found = [
            float(t)
            for t in calibration.tune_thresholds(true.astype(bool), sigmoid(logits), enough=ENOUGH_ROWS)
        ]
        model.config.thresholds = found
        facts["thresholds"] = {name: round(t, 4) for name, t in zip(labels.names, found, strict=True)}
        note(
            f"thresholds between {min(found):.2f} and {max(found):.2f}, chosen by F1 on the validation split"
        )
    return [{"title": "Chosen on the validation split", "kind": "facts", "facts": facts}]
