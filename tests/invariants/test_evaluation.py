"""Invariants 2 and 3: losses and perplexities are means over the tokens of the split, in data order, however
they are computed."""

import math
import time

import numpy as np
import pytest
import small_runs
import torch

import hftk
import hftk.training.fit
from hftk.config import override
from hftk.evaluation.evaluate import run_model

TRAIN, HELD_OUT = small_runs.many_to_a_block(50), small_runs.many_to_a_block(31, seed=1)
LONG = small_runs.texts([150, 64, 5, 300, 63, 65], seed=2)  # some documents are several windows


def judge(config, splits, batch_size, **changes):
    task, model, tokenizer = small_runs.load(config, splits)
    settings = override(config.eval, {"batch_size": batch_size, **changes})
    return hftk.evaluate(task, model, tokenizer, splits.held_out, settings, samples=False)


def values(evaluation):
    return {score.name: score.value for score in evaluation.scores}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_batch_size_changes_no_score(architecture):
    splits = small_runs.splits_of(TRAIN, HELD_OUT + LONG)
    config = small_runs.make_config("unused", architecture=architecture)
    one, three, eight = (judge(config, splits, size) for size in (1, 3, 8))
    assert values(three) == pytest.approx(values(one), rel=1e-6)
    assert values(eight) == pytest.approx(values(one), rel=1e-6)
    assert set(values(one)) >= {"perplexity", "bits_per_byte"}


def test_outputs_are_in_data_order():
    splits = small_runs.splits_of(TRAIN, HELD_OUT + LONG)
    config = small_runs.make_config("unused")
    task, model, tokenizer = small_runs.load(config, splits)
    features = task.encode(splits.validation, tokenizer, max_length=small_runs.CONTEXT, training=False)
    outputs = run_model(task, model, tokenizer, features, batch_size=8)
    assert outputs["tokens"].tolist() == [
        int((labels != -100).sum()) for labels in features.columns["labels"]
    ]
    assert outputs["tokens"].sum() == sum(len(text) for text in HELD_OUT + LONG)
    collate = task.collator(tokenizer, model, training=False)
    for i in range(len(features)):
        with torch.no_grad():
            alone = task.outputs(model.eval(), collate([features[i]]))
        assert outputs["nats"][i] == pytest.approx(float(alone["nats"][0]), rel=1e-6)


def test_training_mode_comes_back_and_gradients_are_left_alone():
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    config = small_runs.make_config("unused", dropout=0.5)
    task, model, tokenizer = small_runs.load(config, splits)
    for mode in (True, False):
        model.train(mode)
        first = hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval, samples=False)
        again = hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval, samples=False)
        assert values(first) == values(again), "dropout is off while judging"
        assert all(module.training == mode for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_training_mode_comes_back_after_an_error():
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    config = small_runs.make_config("unused")
    task, model, tokenizer = small_runs.load(config, splits)
    task.outputs = lambda model, batch: 1 / 0
    model.train()
    with pytest.raises(ZeroDivisionError):
        hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval, samples=False)
    assert model.training


def test_eval_loss_of_training_is_the_log_perplexity_of_evaluate(tmp_path):
    splits = small_runs.splits_of(TRAIN, HELD_OUT + LONG)
    config = small_runs.make_config(
        tmp_path, train={"eval_steps": 2, "label_smoothing": 0.1, "precision": "bf16"}
    )
    run = small_runs.fit(config, splits)
    judged = hftk.evaluate(
        hftk.CausalLM(config),
        run.trained.model,
        run.trained.tokenizer,
        splits.held_out,
        config.eval,
        samples=False,
    )
    assert [point["step"] for point in run.history if "eval_loss" in point] == [2, 4, 5]
    assert run.history[-1]["eval_loss"] == pytest.approx(math.log(values(judged)["perplexity"]), rel=1e-6)


def test_evaluation_on_the_way_does_not_change_training(tmp_path):
    plain = small_runs.fit(
        small_runs.make_config(tmp_path / "plain", dropout=0.1), small_runs.splits_of(TRAIN)
    )
    judged = small_runs.fit(
        small_runs.make_config(tmp_path / "judged", dropout=0.1, train={"eval_steps": 1}),
        small_runs.splits_of(TRAIN, HELD_OUT),
    )
    assert len(judged.column("eval_loss")) == 5
    assert small_runs.same_bits(plain.weights, judged.weights)


def test_samples_fit_into_a_short_context():
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    config = small_runs.make_config("unused")
    assert config.generation.max_new_tokens >= small_runs.CONTEXT
    task, model, tokenizer = small_runs.load(config, splits)
    judged = hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval)
    assert len(judged.samples) == 3 and all("prediction" in sample for sample in judged.samples)


@pytest.mark.launch
def test_two_processes_judge_as_one_does(two_processes):
    config = small_runs.make_config("unused")
    alone = judge(config, small_runs.splits_of(TRAIN, HELD_OUT), 3)
    for seen in two_processes["evaluation"]:  # each process has all of it
        assert seen["scores"] == pytest.approx(values(alone), rel=1e-6)
        assert seen["outputs"]["tokens"].tolist() == alone.outputs["tokens"].tolist()
        np.testing.assert_allclose(seen["outputs"]["nats"], alone.outputs["nats"], rtol=1e-6)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode(tmp_path):
    """As ``from_pretrained`` gives it; and evaluations on the way do not leave it there."""
    config = small_runs.make_config(tmp_path, dropout=0.5, train={"eval_steps": 1})
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    task, model, tokenizer = small_runs.load(config, splits)
    seen, loss, outputs = [], task.loss, task.outputs
    task.loss = lambda model, batch: seen.append({m.training for m in model.modules()}) or loss(model, batch)
    task.outputs = lambda model, batch: (
        seen.append({m.training for m in model.modules()}) or outputs(model, batch)
    )
    hftk.training.fit.fit(task, model.eval(), tokenizer, splits, config)
    assert seen == [{True}, {False}] * 5


def test_time_of_evaluations_is_not_booked_as_training(tmp_path):
    config = small_runs.make_config(tmp_path, train={"eval_steps": 1, "log_steps": 5, "save_steps": 0})
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    task, model, tokenizer = small_runs.load(config, splits)
    outputs = task.outputs
    task.outputs = lambda model, batch: time.sleep(0.3) or outputs(model, batch)
    trained = hftk.training.fit.fit(task, model, tokenizer, splits, config)
    assert trained.seconds["evaluate"] >= 1.5 > trained.seconds["train"]
    assert [point["step"] for point in trained.history if "loss" not in point] == [2, 3, 4]


def test_the_same_weights_are_not_run_over_the_same_rows_twice_but_others_are():
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    task, model, tokenizer = small_runs.load(small_runs.make_config("unused"), splits)
    features = task.encode(splits.validation, tokenizer, max_length=small_runs.CONTEXT, training=False)
    calls, outputs_of = [], task.outputs
    task.outputs = lambda *given: calls.append(1) or outputs_of(*given)

    def passes(size):
        before = len(calls)
        found = run_model(task, model, tokenizer, features, batch_size=size)
        return len(calls) - before, found

    (first, one), (second, other) = passes(8), passes(8)
    assert first > 0 and second == 0 and all((one[name] == other[name]).all() for name in one)
    assert passes(4)[0] > 0
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[0] += 1e-3  # one weight of all
    assert passes(4)[0] > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_judging_is_in_the_precision_of_the_weights_whatever_training_runs_in_and_says_so(
    precision, tmp_path
):
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    config = override(
        small_runs.make_config(tmp_path),
        {"train": {"precision": precision, "max_steps": 2, "epochs": None, "eval_steps": 2}},
    )
    task, model, tokenizer = small_runs.load(config, splits)
    trained = hftk.fit(task, model, tokenizer, splits, config)
    judged = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval, samples=False)
    assert judged.facts["precision"] == "fp32"
    mean = task.eval_loss(judged.outputs)
    assert trained.history[-1]["eval_loss"] == pytest.approx(mean, rel=1e-6)
    halved = hftk.evaluate(
        task, trained.model.bfloat16(), tokenizer, splits.held_out, config.eval, samples=False
    )
    assert halved.facts["precision"] == "bf16"
