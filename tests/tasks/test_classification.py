"""Padding changes nothing, names and labels survive saving, and answers come in data order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from datasets import Features as Types
from made_classifiers import (
    CLASSES,
    FIELDS,
    KINDS,
    NAMES,
    NUMBERS,
    PRESENT,
    SETS,
    TEXTS,
    TRUE,
    batch_of,
    logits_of,
    made,
    rows_of,
    task_of,
)

from hftk import console
from hftk.config import InputError, ModelConfig
from hftk.data.load import load_splits
from hftk.evaluation.evaluate import run_model
from hftk.models.load import load_model, load_trained
from hftk.models.sizes import model_sizes
from hftk.task import Outputs, Splits
from hftk.tasks import class_predictions
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, Labels, labels_of

# --- Encoding


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_batched_as_the_loss_wants_them(kind: str) -> None:
    model, tokenizer = made("bert", kind)
    labels = batch_of(task_of(), model, tokenizer, rows_of(kind))["labels"]
    wanted = {SINGLE: TRUE, MULTI: PRESENT, REGRESSION: torch.tensor(NUMBERS)}[kind]
    assert torch.equal(labels, wanted) and labels.dtype == wanted.dtype


def test_truncation_is_counted_and_said_and_max_length_holds_in_judging_too() -> None:
    _, tokenizer = made("bert")
    task, rows = task_of({"max_length": 5}), rows_of(SINGLE)
    whole = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    for training in (True, False):
        features = task.encode(rows, tokenizer, max_length=64, training=training)
        assert features.lengths.tolist() == [min(5, n) for n in whole]
        assert features.facts["truncated_rows"] == sum(n > 5 for n in whole)
        assert features.facts["tokens_lost"] == sum(max(0, n - 5) for n in whole)
    (said,) = console.noted()
    assert f"{sum(n > 5 for n in whole)} of 7 rows are longer than 5 tokens" in said


def test_rows_without_labels_are_encoded_for_prediction() -> None:
    model, tokenizer = made("bert")
    task = task_of()
    rows = Dataset.from_dict({"text": TEXTS[:2]})
    batch = batch_of(task, model, tokenizer, rows, training=False)
    assert "labels" not in batch
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in task.outputs(model, batch).items()}
    features = task.encode(rows, tokenizer, max_length=64, training=False)
    task = Classification(ClassificationConfig(), Labels(problem_type=SINGLE, names=tuple(NAMES)))
    said = task.predictions(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer, model_config=model.config)
    )
    assert (
        [line["index"] for line in said] == [0, 1]
        and "reference" not in said[0]
        and set(said[0]["probabilities"]) == set(NAMES)
    )


def test_a_tokenizer_made_on_the_spot_is_trained_on_both_texts_of_a_pair() -> None:
    rows = rows_of(SINGLE, pairs=[f"second {i}" for i in range(7)])
    assert list(task_of().tokenizer_texts(Splits(train=rows))) == [*TEXTS, *(f"second {i}" for i in range(7))]


# --- Models


@pytest.mark.parametrize("architecture", list(FIELDS))
@pytest.mark.parametrize("paired", [False, True], ids=["single", "pair"])
def test_padding_does_not_change_the_logits(architecture: str, paired: bool) -> None:
    model, tokenizer = made(architecture)
    task, rows = task_of(), rows_of(SINGLE, pairs=[*TEXTS[2:], "good " * 20, "bad"] if paired else None)
    together = logits_of(model, batch_of(task, model, tokenizer, rows))
    alone = torch.cat([logits_of(model, batch_of(task, model, tokenizer, rows, [i])) for i in range(7)])
    assert (together - alone).abs().max() < 1e-5
    assert together.std(0).min() > 1e-3  # texts do make a difference
    if paired:
        single = logits_of(model, batch_of(task, model, tokenizer, rows_of(SINGLE)))
        assert (together - single).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", list(FIELDS))
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_kind_survive_saving_and_plain_transformers_reads_them(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = made(architecture, kind)
    rows = rows_of(kind)
    batch = batch_of(task_of(), model, tokenizer, rows)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    names = ["LABEL_0"] if kind == REGRESSION else NAMES
    assert loaded.config.id2label == dict(enumerate(names)) and loaded.config.label2id == {
        n: i for i, n in enumerate(names)
    }
    assert (loaded.config.num_labels, loaded.config.problem_type) == (len(names), kind)
    labels = labels_of(loaded.config)
    assert labels is not None and (labels.problem_type, labels.names) == (
        kind,
        () if kind == REGRESSION else tuple(NAMES),
    )
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(model, batch), rtol=1e-5, atol=1e-6)
    again, again_tokenizer = load_trained(str(tmp_path), auto_model="AutoModelForSequenceClassification")
    torch.testing.assert_close(
        logits_of(model, batch),
        logits_of(again, batch_of(task_of(), again, again_tokenizer, rows)),
        rtol=1e-5,
        atol=1e-6,
    )
    assert Classification.from_model_config(ClassificationConfig(), again.config).labels == labels


def test_labels_of_loaded_weights_replace_those_of_the_checkpoint(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    model.base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = Dataset.from_dict(
        {"text": ["a"], "label": [3]},
        features=Types({"text": Value("string"), "label": ClassLabel(num_classes=5)}),
    )
    loaded, _ = load_model(ModelConfig(name=str(tmp_path)), task_of(), Splits(train=rows))
    assert loaded.config.num_labels == 5 and loaded.classifier.out_features == 5
    assert loaded.config.id2label == {i: str(i) for i in range(5)}


def test_an_unknown_architecture_names_those_that_can_be_made() -> None:
    with pytest.raises(
        InputError,
        match=r"bert, distilbert, roberta, modernbert, not for robertta \(did you mean roberta\?\)",
    ):
        model_sizes("robertta", Classification.auto_model)


@pytest.mark.parametrize("architecture", [name for name in FIELDS if name != "gpt2"])
def test_every_size_makes_a_model_with_room_for_512_tokens(architecture: str) -> None:
    from hftk.models.load import context_length, model_config

    for size, (layers, heads, width) in {"tiny": (2, 2, 128), "base": (12, 12, 768)}.items():
        config = model_config(ModelConfig(size=size, architecture=architecture), task_of())
        assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (
            layers,
            heads,
            width,
        )
        assert context_length(config) >= 510


@pytest.mark.parametrize("architecture", [name for name in FIELDS if name != "gpt2"])
def test_a_text_of_the_whole_context_fits(architecture: str) -> None:
    from hftk.models.load import context_length

    model, tokenizer = made(architecture)
    rows = rows_of(SINGLE, [0], ["good " * 1000])
    features = task_of().encode(rows, tokenizer, max_length=context_length(model.config), training=False)
    assert features.lengths.tolist() == [context_length(model.config)]
    batch = task_of().collator(tokenizer, model, training=False)([features[0]])
    assert logits_of(model, batch).isfinite().all()


# --- Judging


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_in_data_order_one_per_row(kind: str) -> None:
    model, tokenizer = made("bert", kind)
    task, rows = task_of(), rows_of(kind)
    features = task.encode(rows, tokenizer, max_length=64, training=False)
    outputs = run_model(task, model, tokenizer, features, batch_size=2)
    alone = torch.cat(
        [logits_of(model, batch_of(task, model, tokenizer, rows, [i])) for i in range(7)]
    ).double()
    said = task.predictions(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer, model_config=model.config)
    )
    assert [line["index"] for line in said] == list(range(7))
    if kind == SINGLE:
        assert [line["prediction"] for line in said] == [NAMES[i] for i in alone.argmax(1)]
        assert [line["reference"] for line in said] == [NAMES[i] for i in CLASSES]
        found = torch.tensor([[line["probabilities"][name] for name in NAMES] for line in said])
        assert (found - alone.softmax(1)).abs().max() < 1e-5
        assert all(line["probability"] == max(line["probabilities"].values()) for line in said)
    elif kind == MULTI:
        assert [line["prediction"] for line in said] == [
            [n for n, x in zip(NAMES, row, strict=True) if x >= 0] for row in alone
        ]
        assert [line["reference"] for line in said] == [[NAMES[i] for i in row] for row in SETS]
        found = torch.tensor([[line["probabilities"][name] for name in NAMES] for line in said])
        assert (found - alone.sigmoid()).abs().max() < 1e-5
    else:
        assert [line["prediction"] for line in said] == pytest.approx(alone[:, 0].tolist(), abs=1e-5)
        assert [line["reference"] for line in said] == NUMBERS and "probabilities" not in said[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_split_is_the_mean_over_its_decisions_for_every_batch_size(kind: str) -> None:
    model, tokenizer = made("bert", kind)
    task, rows = task_of(), rows_of(kind)
    features = task.encode(rows, tokenizer, max_length=64, training=False)
    with torch.no_grad():
        total, items = task.loss(model, batch_of(task, model, tokenizer, rows))["decisions"]
    for size in (1, 3, 100):
        outputs = run_model(task, model, tokenizer, features, batch_size=size)
        assert task.eval_loss(outputs) == pytest.approx(float(total / items), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_have_the_names_by_which_the_best_weights_may_be_chosen(kind: str) -> None:
    model, tokenizer = made("bert", kind)
    task, rows = task_of(), rows_of(kind)
    features = task.encode(rows, tokenizer, max_length=64, training=False)
    outputs = run_model(task, model, tokenizer, features, batch_size=4)
    scores = {
        score.name: score.value
        for score in task.scores(
            Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer, resamples=0, seed=0)
        )
    }
    assert set(class_predictions.SCORES[kind]) <= set(scores) and set(class_predictions.SCORES[kind]) <= set(
        task.score_names
    )
    if kind == SINGLE:
        assert scores["accuracy"] == pytest.approx(np.mean(outputs["logits"].argmax(1) == CLASSES))
    elif kind == REGRESSION:
        assert scores["mse"] == pytest.approx(task.eval_loss(outputs), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_sections_and_samples_are_plain_data(kind: str) -> None:
    import json

    model, tokenizer = made("bert", kind)
    task, rows = task_of(), rows_of(kind)
    features = task.encode(rows, tokenizer, max_length=64, training=False)
    outputs = run_model(task, model, tokenizer, features, batch_size=4)
    sections = task.analysis(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=None, resamples=20, seed=0)
    )
    shown = task.samples(Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer))
    assert json.loads(json.dumps([sections, shown])) == [sections, shown]
    assert [line["text"] for line in shown] == TEXTS[:5]
    said = task.predictions(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer, model_config=model.config)
    )
    wrong = sum(line["prediction"] != line["reference"] for line in said)
    last = sections[-1]
    if kind == REGRESSION:
        errors = [abs(line["prediction"] - line["label"]) for line in last["rows"]]
        assert errors == sorted(errors, reverse=True) and len(errors) == 7
    else:
        assert last["title"] == "Most confident mistakes" and len(last["rows"]) == wrong > 0
        sure = [line["probability"] for line in last["rows"]]
        assert sure == sorted(sure, reverse=True) and all(
            line["text"] == TEXTS[line["row"]] for line in last["rows"]
        )
    if kind == SINGLE:
        matrix = np.array(sections[0]["values"])
        assert matrix.sum() == 7 and matrix.trace() == 7 - wrong and sections[0]["rows"] == NAMES


def test_one_label_that_may_be_absent_is_judged_as_several() -> None:
    types = Types({"text": Value("string"), "label": List(ClassLabel(names=["spam"]))})
    rows = Dataset.from_dict({"text": TEXTS, "label": [[0], [], [], [0], [], [0], []]}, features=types)
    config = ModelConfig(size="tiny", config=FIELDS["bert"], vocab_size=200)
    task = task_of(suspicious_labels=0)
    model, tokenizer = load_model(config, task, Splits(train=rows))
    features = task.encode(rows, tokenizer, max_length=64, training=True)
    outputs = run_model(task, model.eval(), tokenizer, features, batch_size=4)
    assert outputs["logits"].shape == outputs["chosen"].shape == (7, 1)
    assert task.scores(
        Outputs(arrays=outputs, features=features, rows=rows, tokenizer=tokenizer, resamples=0, seed=0)
    )
    assert {
        s.when
        for s in task.baselines(
            Splits(train=rows),
            Outputs(features=features, rows=rows, tokenizer=tokenizer, resamples=0, seed=0),
        )
    } == {"baseline:majority", "baseline:tfidf"}
    labels = labels_of(
        type(
            "",
            (),
            {
                **model.config.to_dict(),
                "num_labels": 1,
                "architectures": ["BertForSequenceClassification"],
                "id2label": {0: "spam"},
            },
        )
    )
    assert labels is not None and labels.problem_type == MULTI


def test_a_new_head_for_regression_starts_at_the_mean_of_the_labels_and_a_trained_one_is_kept(
    tmp_path: Path,
) -> None:
    rows = [{"text": f"a house of {i} rooms", "label": 2000.0 + i + 0.5} for i in range(40)]
    config = ClassificationConfig(model=ModelConfig(size="tiny", vocab_size=100))
    task = Classification(config)
    splits = load_splits(config.data, task, {"train": rows})
    model, tokenizer = load_model(config.model, task, splits)
    features = task.encode(splits.train, tokenizer, max_length=16, training=False)
    logits = run_model(task, model, tokenizer, features, batch_size=8)["logits"]
    assert abs(logits.mean() - 2020) < 30 and logits.std() > 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_model(ModelConfig(name=str(tmp_path)), task, splits)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
