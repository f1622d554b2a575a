"""What is done with what the Hub answers; the Hub itself is played by stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import pytest

from hftk.config import DataConfig
from hftk.data import hub
from hftk.data.load import load_splits


@pytest.fixture
def answers(monkeypatch, tmp_path) -> Callable[[Any], list[dict[str, Any]]]:
    """Let the Hub answer with a value or an exception; the calls are collected."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_commit", lambda path: ("abc123", ""))
    calls: list[dict[str, Any]] = []

    def use(answer: Any) -> list[dict[str, Any]]:
        def load_dataset(path: str, **settings: Any) -> Any:
            calls.append({"path": path, **settings})
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return use


def rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts), "n": list(range(len(texts)))})


def test_splits_of_a_hub_set_are_kept_and_others_left_out_with_a_line(answers, lm):
    calls = answers(
        datasets.DatasetDict({"train": rows("a", "b"), "test": rows("c"), "unsupervised": rows("d")})
    )
    splits = load_splits(DataConfig(path="org/name", subset="small"), lm)
    assert calls == [{"path": "org/name", "name": "small", "streaming": False}]
    assert (
        list(splits.train["text"]) == ["a", "b"]
        and list(splits.test["text"]) == ["c"]
        and splits.validation is None
    )
    assert any("unsupervised is left out" in line for line in splits.facts["choices"])
    assert splits.facts["sources"][0] == {
        "split": "train",
        "hub": "org/name",
        "subset": "small",
        "commit": "abc123",
        "rows": 2,
        "part": "train",
    }


def test_several_validation_splits_become_one(answers, lm):
    answers(
        datasets.DatasetDict(
            {"train": rows("a"), "validation_matched": rows("b"), "validation_mismatched": rows("c")}
        )
    )
    splits = load_splits(DataConfig(path="mnli"), lm)
    assert list(splits.validation["text"]) == ["b", "c"]


def test_a_hub_set_with_one_split_is_split_by_fractions(answers, lm):
    answers(datasets.DatasetDict({"all": rows(*(f"text {i}" for i in range(300)))}))
    splits = load_splits(DataConfig(path="org/name"), lm)
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 300
    assert any("taken as the training source" in line for line in splits.facts["choices"])


def test_a_streamed_hub_set_is_read_as_a_stream(answers, lm):
    whole = rows(*(f"text {i}" for i in range(300)))
    calls = answers(
        datasets.IterableDatasetDict(
            {"train": whole.to_iterable_dataset(), "test": rows("text 3").to_iterable_dataset()}
        )
    )
    splits = load_splits(DataConfig(path="org/name", streaming=True), lm)
    assert calls[0]["streaming"] is True
    assert [row["text"] for row in splits.train] == [f"text {i}" for i in range(300) if i != 3]


def test_a_missing_subset_lists_those_there_are(answers, lm, refusal):
    answers(ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"))
    message = refusal(load_splits, DataConfig(path="org/name"), lm)
    assert (
        message.startswith("--data.subset: org/name: expected one of its subsets") and "['a', 'b']" in message
    )


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach 'org/name' on the Hub"), FileNotFoundError("no such data set")]
)
def test_a_set_that_cannot_be_had_names_both_possibilities(answers, lm, refusal, error):
    answers(error)
    message = refusal(load_splits, DataConfig(path="org/name"), lm)
    assert (
        "found nothing at org/name" in message
        and "cannot be had from the Hub" in message
        and str(error) in message
    )


def test_an_unreachable_hub_is_not_asked_again(answers, lm, refusal, monkeypatch):
    calls = answers(datasets.DatasetDict({"train": rows("a")}))
    monkeypatch.setattr(hub, "_commit", lambda path: (None, "no connection"))
    assert "no connection" in refusal(load_splits, DataConfig(path="org/name-that-no-cache-has"), lm)
    assert calls == []


def test_whatever_else_fails_is_an_input_error(answers, lm, refusal):
    answers(RuntimeError("Dataset scripts are no longer supported, but found x.py"))
    assert "no longer supported" in refusal(load_splits, DataConfig(path="org/name"), lm)
