"""Losses are those of torch, and the sums of parts of a batch are the sum of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from made_classifiers import CLASSES, KINDS, NUMBERS, PRESENT, SETS, TRUE, batch_of, made, rows_of, task_of
from torch.nn import functional

from hftk.tasks import class_predictions
from hftk.tasks.classification import Classification
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, Labels

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)) * 3


class Fixed:
    """A model that answers with logits made before, by the text's place in the batch."""

    def __init__(self, logits: torch.Tensor, problem_type: str) -> None:
        from types import SimpleNamespace

        self.logits, self.config = (
            logits,
            SimpleNamespace(problem_type=problem_type, num_labels=logits.shape[1], pad_token_id=0),
        )

    def __call__(self, **inputs: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.logits)

    forward = __call__


def mean_loss(task: Classification, kind: str, logits: torch.Tensor, values: Any = None) -> torch.Tensor:
    """Sum over items divided by items, as the trainer has it, of the training batch of all rows."""
    _, tokenizer = made("bert")
    model: Any = Fixed(logits, kind)
    batch = batch_of(task, model, tokenizer, rows_of(kind, values))
    ((total, items),) = task.loss(model, batch).values()
    assert task.items(batch)["decisions"] == items
    return total / items


def test_plain_losses_are_those_of_torch() -> None:
    task = task_of()
    torch.testing.assert_close(mean_loss(task, SINGLE, LOGITS), functional.cross_entropy(LOGITS, TRUE))
    torch.testing.assert_close(
        mean_loss(task, MULTI, LOGITS), functional.binary_cross_entropy_with_logits(LOGITS, PRESENT)
    )
    expected = functional.mse_loss(LOGITS[:, 0], torch.tensor(NUMBERS))
    torch.testing.assert_close(mean_loss(task, REGRESSION, LOGITS[:, :1]), expected)


def test_class_weights_are_those_of_scikit_learn_and_the_loss_that_of_torch() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    weight = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(3), y=CLASSES), dtype=torch.float32
    )
    assert weight.tolist() == pytest.approx([7 / 6, 7 / 12, 7 / 3])
    found = mean_loss(task_of(class_weights="balanced"), SINGLE, LOGITS)
    torch.testing.assert_close(found, functional.cross_entropy(LOGITS, TRUE, weight=weight))


def test_class_weights_of_several_labels_are_torchs_pos_weight() -> None:
    present = PRESENT.sum(0)
    found = mean_loss(task_of(class_weights="balanced"), MULTI, LOGITS)
    torch.testing.assert_close(
        found,
        functional.binary_cross_entropy_with_logits(LOGITS, PRESENT, pos_weight=(7 - present) / present),
    )


def test_a_class_without_rows_takes_no_part_in_the_weights() -> None:
    labels = Labels(problem_type=SINGLE, names=("a", "b", "c"))
    assert class_predictions.balanced_weights(np.array([0, 0, 0, 2]), labels).tolist() == pytest.approx(
        [2 / 3, 2 / 3, 2 / 3, 2.0]
    )
    several = Labels(problem_type=MULTI, names=("a", "b"))
    assert class_predictions.balanced_weights(np.array([[1.0, 0], [0, 0], [0, 0]]), several).tolist() == [
        [2, 1],
        [1, 1],
        [1, 1],
    ]


def test_label_smoothing_is_torchs_and_pulls_several_labels_to_one_half() -> None:
    task = task_of({"label_smoothing": 0.2})
    torch.testing.assert_close(
        mean_loss(task, SINGLE, LOGITS), functional.cross_entropy(LOGITS, TRUE, label_smoothing=0.2)
    )
    soft = PRESENT * 0.8 + 0.1
    torch.testing.assert_close(
        mean_loss(task, MULTI, LOGITS), functional.binary_cross_entropy_with_logits(LOGITS, soft)
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_is_the_one_worked_out_by_hand(gamma: float) -> None:
    task = task_of(focal_gamma=gamma)
    by_hand = 0.0
    for row, right in zip(LOGITS.tolist(), CLASSES, strict=True):
        p = math.exp(row[right]) / sum(map(math.exp, row))
        by_hand -= (1 - p) ** gamma * math.log(p)
    assert mean_loss(task, SINGLE, LOGITS).item() == pytest.approx(by_hand / 7, rel=1e-5)
    by_hand = 0.0
    for row, labels in zip(LOGITS.tolist(), SETS, strict=True):
        for i, logit in enumerate(row):
            p = 1 / (1 + math.exp(-logit))
            p = p if i in labels else 1 - p
            by_hand -= (1 - p) ** gamma * math.log(p)
    assert mean_loss(task, MULTI, LOGITS).item() == pytest.approx(by_hand / 21, rel=1e-5)


@pytest.mark.parametrize("kind", [SINGLE, MULTI])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_focal_loss_has_a_gradient_where_the_model_is_wholly_sure(gamma: float, kind: str) -> None:
    sure = (PRESENT * 2 - 1 if kind == MULTI else functional.one_hot(TRUE, 3).float() * 2 - 1) * 200
    sure[0] *= -1  # sure and wrong
    sure.requires_grad_()
    loss = mean_loss(task_of(focal_gamma=gamma), kind, sure)
    loss.backward()
    assert sure.grad is not None and sure.grad.isfinite().all() and sure.grad[0].abs().sum() > 0.1
    assert torch.equal(sure.grad[1:], torch.zeros_like(sure.grad[1:])) and loss.isfinite()


def test_a_part_of_the_rows_weighs_what_its_own_weights_add_up_to() -> None:
    """Over the whole training split balanced weights add up to the number of rows, which would hide a wrong
    divisor."""
    which = [0, 2, 5]  # all of the most frequent class, of weight 7 / (3 x 4)
    _, tokenizer = made("bert")
    task, model = task_of(class_weights="balanced"), Fixed(LOGITS[which], SINGLE)
    total, items = task.loss(model, batch_of(task, model, tokenizer, rows_of(SINGLE), which))["decisions"]
    assert items.item() == pytest.approx(3 * 7 / 12)
    torch.testing.assert_close(total / items, functional.cross_entropy(LOGITS[which], TRUE[which]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_losses_and_items_add_up_over_micro_batches(kind: str, weights: Any) -> None:
    if (kind, weights) == (REGRESSION, "balanced"):
        return  # refused; see the labels' tests
    model, tokenizer = made("bert", kind)
    task, rows = task_of(class_weights=weights), rows_of(kind)

    def parts(which: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return task.loss(model, batch_of(task, model, tokenizer, rows, which))["decisions"]

    with torch.no_grad():
        whole = parts(range(7))
        pieces = [parts(which) for which in ([0, 4], [2], [1, 3, 5, 6])]
    torch.testing.assert_close(sum(p[0] for p in pieces), whole[0])
    torch.testing.assert_close(sum(p[1] for p in pieces), whole[1])
    if weights == "none":
        assert whole[1] == (21 if kind == MULTI else 7)


def test_only_training_is_weighted_and_smoothed() -> None:
    model, tokenizer = made("bert")
    task = task_of({"label_smoothing": 0.3}, class_weights="balanced")
    batch = batch_of(task, model, tokenizer, rows_of(SINGLE), training=False)
    assert "weights" not in batch
    with torch.no_grad():
        outputs = task.outputs(model, batch)
    torch.testing.assert_close(
        outputs["loss"], functional.cross_entropy(outputs["logits"], TRUE, reduction="none")
    )


def test_a_new_head_for_several_labels_starts_at_their_frequencies() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from hftk.models.heads import start_at_frequencies

    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        vocab_size=9,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    start_at_frequencies(model, [0.5, 0.02, 0.0])
    start = torch.sigmoid(model.classifier.bias)
    assert torch.allclose(start, torch.tensor([0.5, 0.02, 1e-4]), atol=1e-6), (
        "no label starts without any odds"
    )
