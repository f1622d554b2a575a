"""A stage goes by the settings that it is given, and not by those that its task was made with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import hftk
from hftk.task import Splits

TEXT = "the cat sat on the mat and the dog sat on the cat " * 8


@pytest.fixture(scope="module")
def small() -> Any:
    from datasets import Dataset

    rows = Dataset.from_dict({"text": [TEXT, TEXT[5:150]]})
    config = hftk.CausalLMConfig(model=hftk.ModelConfig(size="tiny", tokenizer="characters"))
    task = hftk.CausalLM(config)
    model, tokenizer = hftk.load_model(config.model, task, Splits(train=rows))
    return task, model, tokenizer, ("test", rows)


def test_evaluation_goes_by_the_stride_that_it_is_given(small: Any) -> None:
    task, model, tokenizer, held_out = small
    strided = hftk.EvalConfig(stride=16)
    asked = hftk.CausalLM(replace(task.config, eval=strided))
    given = hftk.evaluate(task, model, tokenizer, held_out, strided, max_length=64, samples=False)
    made = hftk.evaluate(asked, model, tokenizer, held_out, strided, max_length=64, samples=False)
    plain = hftk.evaluate(asked, model, tokenizer, held_out, hftk.EvalConfig(), max_length=64, samples=False)
    assert given.scores == made.scores != plain.scores
    assert given.facts["stride"] == 16 and plain.facts["stride"] == 64


def test_baselines_go_by_the_stride_that_they_are_given(small: Any) -> None:
    task, _, tokenizer, (_, rows) = small
    splits = Splits(train=rows, test=rows)
    found = [
        hftk.evaluate_baselines(task, tokenizer, splits, hftk.EvalConfig(resamples=n, seed=1), max_length=64)
        for n in (0, 20)
    ]
    assert [s.interval is None for s in found[0]] != [s.interval is None for s in found[1]]


def test_another_config_makes_another_task_and_the_same_config_the_same() -> None:
    task = hftk.Translation(hftk.TranslationConfig())
    assert task.with_config(task.config) is task
    longer = task.with_config(replace(task.config, max_target_length=7))
    assert (task.way.max_target_length, longer.way.max_target_length) == (None, 7)
