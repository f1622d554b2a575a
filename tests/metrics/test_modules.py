from __future__ import annotations

import builtins
import socket

import pytest
from sklearn.metrics import f1_score

from hftk.config import InputError
from hftk.metrics.modules import METRICS, load_metric
from hftk.metrics.rouge import rouge_scores
from hftk.metrics.translation import translation_scores

evaluate = pytest.importorskip("evaluate")

PREDICTIONS = ["the cat sat on the mat", "a dog barks at night", ""]
REFERENCES = [["the cat sat on a mat", "the cat is on the mat"], ["dogs bark at night"], ["nothing to say here"]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def load(tmp_path):
    return lambda name, **options: load_metric(name, cache_dir=str(tmp_path), **options)


def expected_scores():
    found = translation_scores(PREDICTIONS, REFERENCES, "en", resamples=0, seed=0)
    found += rouge_scores(PREDICTIONS, REFERENCES, resamples=0, seed=0)
    return {score.name: score.value for score in found}


def test_a_combination_gives_the_scores_of_all_its_metrics(load):
    combined = evaluate.combine([load(name) for name in ("bleu", "chrf", "ter", "rouge")])
    found = combined.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == pytest.approx(expected_scores(), abs=1e-9)


def test_batches_and_single_rows_give_what_one_call_gives(load):
    whole = load("bleu").compute(predictions=PREDICTIONS, references=REFERENCES)
    batches, rows = load("bleu"), load("bleu")
    batches.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    batches.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        rows.add(prediction=prediction, reference=reference)
    assert batches.compute() == rows.compute() == whole
    # and a module can be used again
    assert batches.compute(predictions=PREDICTIONS, references=REFERENCES) == whole


def test_combined_batches_work(load):
    combined = evaluate.combine([load("chrf"), load("rouge")])
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        combined.add_batch(predictions=[prediction], references=[reference])
    expected = expected_scores()
    assert combined.compute() == pytest.approx({k: v for k, v in expected.items() if k not in ("bleu", "ter")})


def test_references_may_be_texts(load):
    listed = load("rouge").compute(predictions=PREDICTIONS, references=[row[:1] for row in REFERENCES])
    assert load("rouge").compute(predictions=PREDICTIONS, references=[row[0] for row in REFERENCES]) == listed


def test_options_are_given_when_loading_or_when_computing(load):
    texts = {"predictions": ["我们今天去北京"], "references": ["我们今天去北京"]}
    assert load("bleu", language="zh").compute(**texts)["bleu"] == pytest.approx(100)
    assert load("bleu").compute(**texts, language="zh")["bleu"] == pytest.approx(100)
    assert load("bleu").compute(**texts)["bleu"] == 0
    stemmed = load("rouge", stem=True).compute(predictions=["running"], references=["runs"])
    assert stemmed["rouge1"] == 100


def test_accuracy_and_f1_are_those_of_scikit_learn(load):
    true, predicted = [0, 1, 1, 0, 1], [0, 1, 0, 1, 1]
    found = evaluate.combine([load("accuracy"), load("f1")]).compute(predictions=predicted, references=true)
    assert found == {"accuracy": 0.6, "f1": f1_score(true, predicted)}
    names = {"predictions": ["a", "b", "2"], "references": ["a", "b", "a"]}
    assert load("f1", average="macro").compute(**names)["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert load("f1").compute(**names, average=None)["f1"] == pytest.approx([0, 2 / 3, 1])
    sets = {"predictions": [[1, 0], [1, 1]], "references": [[1, 0], [0, 1]]}
    assert load("accuracy").compute(**sets) == {"accuracy": 0.5}


def test_modules_say_what_they_are(load):
    for name in METRICS:
        module = load(name, keep_in_memory=True)
        assert module.name == name and module.module_type == "metric" and module.description


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match="bleu, chrf, ter, rouge, accuracy, f1"):
        load_metric("perplexity")


def test_without_evaluate_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "evaluate":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"hftk\[evaluate\]"):
        load_metric("bleu")


def test_no_rows_are_refused(load):
    for name in METRICS:
        with pytest.raises(InputError, match="at least one row"):
            load(name).compute(predictions=[], references=[])
