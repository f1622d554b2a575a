"""What is chosen on the validation split divides the logits exactly, and is saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from made_classifiers import FIELDS, NAMES, PRESENT, batch_of, logits_of, made, make, rows_of, task_of

from hftk import console
from hftk.config import ModelConfig
from hftk.evaluation.evaluate import run_model
from hftk.models import heads
from hftk.models.load import load_model, load_trained
from hftk.task import Features, Splits
from hftk.tasks import class_predictions
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.labels import MULTI, SINGLE


def look_of(task: Classification, model: Any, tokenizer: Any, splits: Splits) -> Any:
    def look(split: str, most: int | None = None) -> tuple[Dataset, dict[str, np.ndarray]]:
        rows = getattr(splits, split)
        rows = rows.select(range(min(most or len(rows), len(rows))))
        features: Features = task.encode(rows, tokenizer, max_length=64, training=False)
        return rows, run_model(task, model, tokenizer, features, batch_size=3)

    return look


@pytest.mark.parametrize("architecture", list(FIELDS))
@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_a_temperature_in_the_last_layer_divides_the_logits_before_and_after_saving(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = make(architecture, kind)
    with torch.no_grad():
        for parameter in heads.last_layer(model).parameters():
            parameter.add_(0.5)  # a bias of zero would hide that it is left out
    batch = batch_of(task_of(), model, tokenizer, rows_of(kind))
    before = logits_of(model, batch)
    heads.divide_logits(model, 2.5)
    torch.testing.assert_close(logits_of(model, batch), before / 2.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(loaded, batch), before / 2.5)


@pytest.mark.parametrize("architecture", list(FIELDS))
def test_the_last_layer_is_found_although_others_are_as_wide(architecture: str) -> None:
    from transformers import AutoModelForSequenceClassification

    model, _ = make(architecture)
    model.config.num_labels = 16  # the width of every other layer
    wide = AutoModelForSequenceClassification.from_config(model.config)
    assert wide.config.num_labels == 16
    logits = None

    def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
        nonlocal logits
        logits = output

    heads.last_layer(wide).register_forward_hook(keep)
    wide.config.pad_token_id = 0
    found = wide.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert logits is not None and torch.equal(found, logits.reshape(-1, 16)[-1:])


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_the_temperature_fitted_lowers_the_loss_on_the_validation_split(kind: str) -> None:
    model, tokenizer = make("bert", kind)
    with torch.no_grad():
        for parameter in heads.last_layer(model).parameters():
            parameter.mul_(20)  # far too sure
    task, rows = task_of(temperature_scaling=True, tune_thresholds=False, suspicious_labels=0), rows_of(kind)
    splits = Splits(train=rows, validation=rows)
    look = look_of(task, model, tokenizer, splits)
    before = look("validation")[1]
    (section,) = task.after_training(model, splits, look)
    after = look("validation")[1]
    temperature = section["facts"]["temperature"]
    assert temperature > 1.5 and section["facts"]["rows"] == 7
    np.testing.assert_allclose(after["logits"], before["logits"] / temperature, rtol=1e-3, atol=1e-5)
    assert task.eval_loss(after) < task.eval_loss(before)
    assert any("worked into the last layer" in line for line in console.noted())


def test_thresholds_are_chosen_on_validation_and_kept_in_the_saved_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hftk.tasks.calibration.ENOUGH_ROWS", 1)  # the validation split has seven rows
    model, tokenizer = make("bert", MULTI)
    task, rows = task_of(suspicious_labels=0), rows_of(MULTI)
    splits = Splits(train=rows_of(MULTI, [[0]] * 7), validation=rows)
    look = look_of(task, model, tokenizer, splits)
    plain = look("validation")[1]
    (section,) = task.after_training(model, splits, look)
    tuned = look("validation")[1]
    probabilities = 1 / (1 + np.exp(-plain["logits"].astype(np.float64)))
    thresholds = [section["facts"]["thresholds"][name] for name in NAMES]
    assert thresholds == pytest.approx(model.config.thresholds, abs=1e-4) and thresholds != [0.5] * 3
    assert np.array_equal(tuned["chosen"], probabilities >= np.array(model.config.thresholds))
    f1 = lambda chosen: 2 * (chosen * PRESENT.numpy()).sum(0) / (chosen.sum(0) + PRESENT.numpy().sum(0))  # noqa: E731
    assert (f1(tuned["chosen"]) >= f1(plain["chosen"])).all() and (
        f1(tuned["chosen"]) > f1(plain["chosen"])
    ).any()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_trained(str(tmp_path), auto_model="AutoModelForSequenceClassification")
    assert loaded.config.thresholds == model.config.thresholds
    again = look_of(
        Classification.from_model_config(ClassificationConfig(), loaded.config),
        loaded,
        loaded_tokenizer,
        splits,
    )("validation")[1]
    assert np.array_equal(again["chosen"], tuned["chosen"])


def test_thresholds_of_an_earlier_run_are_not_taken_over(tmp_path: Path) -> None:
    model, tokenizer = make("bert", MULTI)
    model.config.thresholds = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(ModelConfig(name=str(tmp_path)), task_of(), Splits(train=rows_of(MULTI)))
    assert class_predictions.thresholds(loaded.config, torch.zeros(1, 3)).tolist() == [0.5] * 3


def test_temperature_comes_before_thresholds() -> None:
    model, tokenizer = make("bert", MULTI)
    task, rows = task_of(suspicious_labels=0, temperature_scaling=True), rows_of(MULTI)
    splits = Splits(train=rows, validation=rows)
    look = look_of(task, model, tokenizer, splits)
    task.after_training(model, splits, look)
    tuned = look("validation")[1]
    probabilities = 1 / (1 + np.exp(-tuned["logits"].astype(np.float64)))
    assert np.array_equal(tuned["chosen"], probabilities >= np.array(model.config.thresholds))


def test_nothing_is_tuned_without_a_validation_split() -> None:
    model, tokenizer = made("bert", MULTI)
    before = [parameter.clone() for parameter in model.parameters()]
    task = task_of(suspicious_labels=0, temperature_scaling=True)
    splits = Splits(train=rows_of(MULTI))
    assert task.after_training(model, splits, look_of(task, model, tokenizer, splits)) == []
    assert not getattr(model.config, "thresholds", None)
    assert all(map(torch.equal, before, model.parameters()))
