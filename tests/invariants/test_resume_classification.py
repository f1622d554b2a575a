"""Invariant 4 for classification: stopped and continued is never stopped, also where the best weights go by a
score."""

import shutil

import pytest
import small_classifiers
import small_runs
import torch
from safetensors.torch import load_file

from hftk.config import InputError, override
from hftk.launch import StopRequested
from hftk.task import Splits
from hftk.tasks.labels import SINGLE
from hftk.training import checkpoints


def classifier_config(output, **changes):
    """Its accuracy is best long before its loss is, and several times."""
    train = {
        "max_steps": 8,
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "schedule": "constant",
        "eval_steps": 1,
        "log_steps": 3,
        "metric_for_best_model": "accuracy",
        "restore_best": True,
        "keep_checkpoints": 1,
        "max_grad_norm": 1.0,
    }
    return override(
        small_classifiers.make_config(
            output, dropout=0.1, train=train, class_weights="balanced", temperature_scaling=True
        ),
        changes,
    )


def train_classifier(config):
    rows = [small_classifiers.rows_of(SINGLE, count, seed=seed) for seed, count in ((0, 48), (1, 31))]
    return small_runs.fit(config, Splits(train=rows[0], validation=rows[1]))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return train_classifier(classifier_config(folder)), folder


def test_the_best_weights_are_those_of_the_first_best_accuracy(classifier):
    run, folder = classifier
    accuracies = {point["step"]: point["eval_accuracy"] for point in run.history if "eval_accuracy" in point}
    best = max(accuracies, key=accuracies.get)
    assert len(accuracies) == 8 and best < 8 and min(accuracies.values()) < accuracies[best]
    assert best != min(run.history, key=lambda point: point["eval_loss"])["step"], (
        "else the loss would do as well"
    )
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(folder)] == [best, 8]
    saved = load_file(folder / f"checkpoints/checkpoint-{best}/model.safetensors")
    changed = {name for name in saved if not torch.equal(saved[name], run.weights[name])}
    assert changed == {"classifier.weight", "classifier.bias"}, (
        "divided by the temperature; all others as in the checkpoint"
    )


def assert_as_straight(run, straight):
    assert small_runs.same_bits(straight.weights, run.weights)
    assert small_runs.timeless(run.history) == small_runs.timeless(straight.history)
    assert run.trained.analysis == straight.trained.analysis


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_classifier_that_was_stopped_is_as_never_stopped(classifier, step, tmp_path):
    config = classifier_config(tmp_path)
    with small_runs.stopping_at(step), pytest.raises(StopRequested):
        train_classifier(config)
    run = train_classifier(override(config, {"resume": "auto"}))
    assert_as_straight(run, classifier[0])
    assert_as_straight(train_classifier(override(config, {"resume": "auto"})), run)


def test_another_measure_of_what_is_best_is_refused(classifier, tmp_path):
    shutil.copytree(classifier[1], tmp_path / "copy")
    with pytest.raises(InputError, match=r"--train\.metric_for_best_model was accuracy, now loss"):
        train_classifier(
            classifier_config(tmp_path / "copy", resume="auto", train={"metric_for_best_model": "loss"})
        )


def test_other_class_weights_are_refused(classifier, tmp_path):
    shutil.copytree(classifier[1], tmp_path / "copy")
    with pytest.raises(InputError, match="the training data was"):
        train_classifier(classifier_config(tmp_path / "copy", resume="auto", class_weights="none"))
