"""Invariants 1, 2, 3 and 8 for classification: BERT, DistilBERT, RoBERTa, ModernBERT and GPT-2, with labels
of every kind."""

import functools
import json

import numpy as np
import pytest
import small_classifiers
import small_runs
import torch

import hftk
from hftk.config import InputError
from hftk.task import Splits
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE
from hftk.training.trainer import ExactTrainer

CLOSE = 1e-5
ARCHITECTURES, KINDS, CASES = (
    small_classifiers.ARCHITECTURES,
    small_classifiers.KINDS,
    small_classifiers.CASES,
)


# --- One global batch, one gradient


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run whose global batches of 16 rows are one forward pass each."""
    return functools.cache(
        lambda case: small_classifiers.run_case(case, 16, tmp_path_factory.mktemp("whole"))
    )


def assert_same(whole, run):
    assert small_runs.difference(whole.gradient, run.gradient) < CLOSE
    assert run.column("loss") == pytest.approx(whole.column("loss"), rel=CLOSE)
    assert run.column("grad_norm") == pytest.approx(whole.column("grad_norm"), rel=CLOSE)
    assert small_runs.difference(whole.weights, run.weights) < CLOSE
    assert len(run.column("loss")) == 3 and all(norm > 1e-3 for norm in run.column("grad_norm"))


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("case", CASES)
def test_accumulation_does_not_change_gradient_weights_and_losses(whole, case, size, tmp_path):
    assert_same(whole(case), small_classifiers.run_case(case, size, tmp_path))


@pytest.mark.launch
@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_not_change_gradient_weights_and_losses(whole, case, two_processes):
    found = two_processes["classifiers"]
    assert_same(whole(case), found["runs"][case])
    assert found["apart"][case] == 0.0, "the processes hold different weights"


@pytest.mark.parametrize("case", ["balanced", "focal labels, balanced"])
def test_the_mean_of_means_gives_another_gradient(whole, case, tmp_path):
    """With weights, a mean over micro-batches is not a mean over the global batch: were it taken, the tests
    above would fail."""

    class MeanOfMeans(ExactTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            self.micro_batches = len(inputs)
            return super().training_step(model, inputs, num_items_in_batch)

        def _loss(self, model, batch, totals):
            labels = batch["labels"]
            (total, _), *_ = self.task.loss(model, batch).values()
            return (
                total
                / (batch["weights"].sum() if labels.ndim == 1 else labels.sum().clamp(min=1))
                / self.micro_batches
            )

    run = small_classifiers.run_case(case, 1, tmp_path, trainer=MeanOfMeans)
    assert small_runs.difference(whole(case).gradient, run.gradient) > 1e-3


def first_batch(case):
    """Rows of the first global batch, their class weights, and the model before training."""
    from hftk.features.batches import BatchSize, EpochPlan

    architecture, kind, changes = CASES[case]
    config = small_classifiers.make_config("unused", architecture=architecture, **changes)
    rows = small_classifiers.rows_of(kind, 48)
    task, model, tokenizer = small_runs.load(config, Splits(train=rows))
    features = task.encode(rows, tokenizer, max_length=small_runs.CONTEXT, training=True)
    chosen = next(EpochPlan(features, BatchSize(rows=16), seed=0, epochs=None, max_steps=3).steps()).indices
    model.config.pad_token_id = tokenizer.pad_token_id
    inputs = tokenizer([rows[int(i)]["text"] for i in chosen], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits, [rows[int(i)]["label"] for i in chosen], rows["label"]


def test_the_first_loss_is_that_of_torch_with_the_class_weights_of_scikit_learn(whole):
    from sklearn.utils.class_weight import compute_class_weight

    logits, labels, every = first_batch("balanced")
    assert len(set(every)) == 4 and max(map(every.count, set(every))) > 2 * min(map(every.count, set(every)))
    weights = torch.tensor(
        compute_class_weight("balanced", classes=np.arange(4), y=list(every)), dtype=torch.float32
    )
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), weight=weights)
    assert whole("balanced").column("loss")[0] == pytest.approx(float(expected), rel=CLOSE)


def test_the_first_loss_of_several_labels_is_that_of_torch_with_positive_weights(whole):
    logits, labels, every = first_batch("balanced labels")
    true = torch.tensor([[float(i in row) for i in range(3)] for row in labels])
    present = np.array([[i in row for i in range(3)] for row in every]).sum(0)
    positive = torch.tensor((len(every) - present) / present, dtype=torch.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, true, pos_weight=positive)
    assert whole("balanced labels").column("loss")[0] == pytest.approx(float(expected), rel=CLOSE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_loss_is_that_of_torch_on_the_whole_batch(whole, architecture):
    logits, labels, _ = first_batch(f"{architecture}, {SINGLE}")
    expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels)))
    assert whole(f"{architecture}, {SINGLE}").column("loss")[0] == pytest.approx(expected, rel=CLOSE)
    logits, labels, _ = first_batch(f"{architecture}, {REGRESSION}")
    expected = float(torch.nn.functional.mse_loss(logits.squeeze(-1), torch.tensor(labels)))
    assert whole(f"{architecture}, {REGRESSION}").column("loss")[0] == pytest.approx(expected, rel=CLOSE)


# --- Judging


def assert_seen_alike(one, other):
    assert other["scores"] == pytest.approx(one["scores"], rel=1e-5, abs=1e-5, nan_ok=True)
    np.testing.assert_allclose(other["logits"], one["logits"], rtol=1e-4, atol=1e-5)
    for mine, line in zip(one["predictions"], other["predictions"], strict=True):
        assert (line["index"], line["reference"]) == (mine["index"], mine["reference"])
        number = isinstance(mine["prediction"], float)
        assert line["prediction"] == (
            pytest.approx(mine["prediction"], rel=1e-4, abs=1e-5) if number else mine["prediction"]
        )
    assert other["facts"] == one["facts"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_batch_size_changes_no_score_and_no_order(architecture, kind):
    rows = small_classifiers.rows_of(kind, 31, seed=1)
    one, three, eight = (small_classifiers.judge(architecture, kind, rows, size) for size in (1, 3, 8))
    assert_seen_alike(*map(small_classifiers.seen, (one, three)))
    assert_seen_alike(*map(small_classifiers.seen, (one, eight)))
    assert [line["index"] for line in one.predictions] == list(range(31))
    said = {SINGLE: lambda v: "abcd"[v], MULTI: lambda v: ["abc"[i] for i in v], REGRESSION: lambda v: v}[
        kind
    ]
    assert [line["reference"] for line in one.predictions] == [said(value) for value in rows["label"]]
    assert one.outputs["logits"].std(0).min() > 0.005, "else the order shows nowhere"


@pytest.mark.launch
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_judge_as_one_does(kind, two_processes):
    for (judged_kind, count, size), seen in two_processes["classifiers"]["judged"].items():
        if judged_kind == kind:
            alone = small_classifiers.seen(
                small_classifiers.judge("bert", kind, small_classifiers.rows_of(kind, count, seed=1), size)
            )
            for process in seen:  # each has all of it
                assert len(process["predictions"]) == count
                assert_seen_alike(alone, process)


@pytest.mark.launch
def test_a_whole_run_on_two_processes_is_that_on_one(two_processes, tmp_path):
    one = small_classifiers.whole_run(tmp_path, per_device_batch_size=8)
    first, second = two_processes["classifiers"]["whole"]
    for two in (first, second):
        assert small_runs.difference(one["weights"], two["weights"]) < CLOSE
        assert two["thresholds"] == pytest.approx(one["thresholds"], rel=1e-4)
        assert two["scores"] == pytest.approx(one["scores"], rel=1e-4, abs=1e-6)
        assert [line["prediction"] for line in two["predictions"]] == [
            line["prediction"] for line in one["predictions"]
        ]
        assert [section["title"] for section in two["analysis"]] == [
            section["title"] for section in one["analysis"]
        ]
        for mine, other in zip(one["history"], two["history"], strict=True):
            assert other["eval_f1_micro"] == pytest.approx(mine["eval_f1_micro"], rel=1e-5)
    assert first["thresholds"] == second["thresholds"] and small_runs.same_bits(
        first["weights"], second["weights"]
    )
    written = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert written == one["predictions"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_on_the_way_is_the_loss_of_the_rows(kind, tmp_path):
    """It is plain: no weights, no focus, no smoothing, and a mean over rows whatever the batches are."""
    smooth = {} if kind == REGRESSION else {"class_weights": "balanced", "focal_gamma": 2.0}
    config = small_classifiers.make_config(
        tmp_path, train={"eval_steps": 1}, eval={"batch_size": 7}, **smooth
    )
    splits = Splits(
        train=small_classifiers.rows_of(kind, 48), validation=small_classifiers.rows_of(kind, 31, seed=1)
    )
    run = small_runs.fit(config, splits)
    model, tokenizer = run.trained.model.eval(), run.trained.tokenizer
    losses = []
    for row in splits.validation:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        if kind == SINGLE:
            losses.append(-logits.log_softmax(-1)[row["label"]])
        elif kind == MULTI:
            signs = torch.tensor([1.0 if i in row["label"] else -1.0 for i in range(3)])
            losses.append(-torch.nn.functional.logsigmoid(signs * logits).mean())
        else:
            losses.append((logits[0] - row["label"]) ** 2)
    assert run.history[-1]["eval_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


# --- Counts


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
def test_rows_that_are_cut_are_counted_and_the_counts_are_in_the_record(truncation, tmp_path):
    config = small_classifiers.make_config(tmp_path, truncation=truncation, train={"max_length": 20})
    train, test = small_classifiers.rows_of(SINGLE, 48), small_classifiers.rows_of(SINGLE, 31, seed=1)
    splits = Splits(train=train, test=test, facts={"cleaned": {"train": {"empty": {"dropped": 2}}}})
    task, model, tokenizer = small_runs.load(config, splits)
    trained = hftk.fit(task, model, tokenizer, splits, config)
    after = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval)
    data = hftk.record(config, splits, trained, None, after).to_dict()["data"]
    for stage, rows in (("training", train), ("judged", test)):
        lost = [max(0, len(text) - 18) for text in rows["text"]]  # 18 characters between [CLS] and [SEP]
        assert data[stage]["truncated_rows"] == sum(n > 0 for n in lost) > 0
        assert data[stage]["tokens_lost"] == sum(lost)
        assert data[stage]["tokens"] == sum(len(text) + 2 for text in rows["text"]) - sum(lost)
    assert data["cleaned"]["train"]["empty"] == {"dropped": 2}
    assert trained.history[-1]["tokens"] <= data["training"]["tokens"]


def test_rows_that_would_be_cut_stop_the_run_where_that_is_asked_for(tmp_path):
    config = small_classifiers.make_config(tmp_path, truncation="error", train={"max_length": 20})
    rows = small_classifiers.rows_of(SINGLE, 48)
    with pytest.raises(InputError, match=r"texts of at most 20 tokens, found \d+ longer"):
        small_runs.fit(config, Splits(train=rows))


def test_rows_that_are_dropped_are_counted(tmp_path):
    rows = [{"text": f"text {'ab'[i % 2]} number {i}", "label": "ab"[i % 2]} for i in range(40)]
    rows[3] = {"text": " ", "label": "a"}
    rows[4] = {"text": "a text without a label", "label": None}
    rows[6] = rows[8]
    config = small_classifiers.make_config(
        tmp_path, data={"incomplete": "drop", "validation_fraction": 0.2, "test_fraction": 0.2}
    )
    splits = hftk.load_splits(config.data, hftk.Classification(config), rows)
    facts = splits.facts
    cleaned = facts["cleaned"]["train"]
    assert (cleaned["empty"]["dropped"], cleaned["missing"]["dropped"]) == (1, 1)
    dropped = sum(count["dropped"] for count in facts["duplicates"].values())
    assert dropped == 1 and sum(facts["rows"].values()) == 40 - 3
    assert sum(map(sum, (counts.values() for counts in facts["labels"]["rows"].values()))) == 37
