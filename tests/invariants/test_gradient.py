"""Invariant 1: one global batch gives one gradient, however it is split into micro-batches, accumulation and
processes."""

import functools

import numpy as np
import pytest
import small_runs
import torch

from hftk.features.batches import split_step
from hftk.training.trainer import ExactTrainer

CLOSE = 1e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run whose global batches of 16 are one forward pass each."""
    return functools.cache(lambda case: small_runs.run_case(case, 16, tmp_path_factory.mktemp("whole")))


def assert_same(whole, run, case):
    assert small_runs.difference(whole.gradient, run.gradient) < CLOSE
    assert run.column("loss") == pytest.approx(whole.column("loss"), rel=CLOSE)
    assert run.column("grad_norm") == pytest.approx(whole.column("grad_norm"), rel=CLOSE)
    assert len(run.column("loss")) == 5
    if case != "clipping and AdamW":  # see small_runs.make_config
        assert small_runs.difference(whole.weights, run.weights) < CLOSE


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("case", small_runs.CASES)
def test_accumulation_does_not_change_gradient_weights_and_losses(whole, case, size, tmp_path):
    assert_same(whole(case), small_runs.run_case(case, size, tmp_path), case)


@pytest.mark.launch
@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("case", small_runs.CASES)
def test_two_processes_do_not_change_gradient_weights_and_losses(whole, case, size, two_processes):
    run = two_processes["runs"][case, size]
    assert_same(whole(case), run, case)
    assert two_processes["apart"][case, size] == 0.0, "the processes hold different weights"


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_global_batch(whole):
    case = "gpt2, packed"
    architecture, documents, _ = small_runs.CASES[case]
    config = small_runs.make_config("unused", architecture=architecture)
    task, model, tokenizer = small_runs.load(config, small_runs.splits_of(documents))
    features = task.encode({"text": documents}, tokenizer, max_length=small_runs.CONTEXT, training=True)
    plan = small_runs.training.EpochPlan(
        features, small_runs.training.BatchSize(rows=16), seed=0, epochs=None, max_steps=5
    )
    nats, tokens = 0.0, 0
    for row in next(
        plan.steps()
    ).indices:  # each piece by itself, so that nothing is padded and nothing is packed
        feature, at = features[int(row)], 0
        for length in feature["pieces"]:
            ids = torch.tensor(feature["input_ids"][at : at + length]).long()[None]
            labels = torch.tensor(feature["labels"][at : at + length]).long()
            with torch.no_grad():
                logs = model(ids).logits[0].log_softmax(-1)
            nats -= float(logs[torch.arange(length), labels].double().sum())
            tokens, at = tokens + length, at + length
    assert whole(case).column("loss")[0] == pytest.approx(nats / tokens, rel=CLOSE)


def test_the_mean_of_means_gives_another_gradient(whole, tmp_path):
    """The formula of the stock trainer on the same batches: were the exact one not used, the tests above
    would fail."""

    class MeanOfMeans(ExactTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            self.micro_batches = len(inputs)
            return super().training_step(model, inputs, num_items_in_batch)

        def _loss(self, model, batch, totals):
            (total, items), *_ = self.task.loss(model, batch).values()
            return total / items / self.micro_batches

    for case in ("gpt2, padded", "gpt2, packed"):
        run = small_runs.run_case(case, 1, tmp_path / case, trainer=MeanOfMeans)
        assert small_runs.difference(whole(case).gradient, run.gradient) > 1e-3


def test_the_batches_differ_as_the_cases_say():
    """The data do what the cases are named for, else nothing would be tested."""
    features = {}
    for case, (architecture, documents, _) in small_runs.CASES.items():
        config = small_runs.make_config("unused", architecture=architecture)
        task, _, tokenizer = small_runs.load(config, small_runs.splits_of(documents))
        features[case] = task.encode(
            {"text": documents}, tokenizer, max_length=small_runs.CONTEXT, training=True
        )
    padded, packed = features["gpt2, padded"], features["gpt2, packed"]
    assert len(set(padded.lengths)) > 20 and all(len(p) == 1 for p in padded.columns["pieces"])
    assert {1, 2, 3} <= {len(p) for p in packed.columns["pieces"]} and len(packed) > 64
    assert len(features["last batch of one row"]) == 65
    lone = split_step(np.array([3]), padded.lengths, processes=2, max_rows=8)
    assert [len(pieces[0]) for pieces in lone] == [1, 0], "the second process has nothing but a filler"
    budget = split_step(np.arange(16), padded.lengths, processes=1, max_rows=16, max_tokens=150)[0]
    assert max(len(piece) for piece in budget) < 5
