from __future__ import annotations

import json
from itertools import islice

import pytest

from hftk.config import DataConfig, InputError
from hftk.data import streams
from hftk.data.load import load_splits

TEXTS = [f"Text number {i} of a stream." for i in range(1000)]


@pytest.fixture
def path(tmp_path):
    lines = [*TEXTS, "", *TEXTS[:100]]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(lines)))
    return str(file)


def test_a_stream_has_the_rows_that_loading_has(path, lm):
    whole, stream = (
        load_splits(DataConfig(path=path, streaming=streaming), lm) for streaming in (False, True)
    )
    assert [row["text"] for row in stream.train] == list(whole.train["text"])
    assert list(stream.validation["text"]) == list(whole.validation["text"]) and list(
        stream.test["text"]
    ) == list(whole.test["text"])
    assert stream.facts["rows"] == whole.facts["rows"]
    assert stream.facts["cleaned"]["train"] == whole.facts["cleaned"]["train"]
    assert stream.facts["characters"] == whole.facts["characters"]
    assert stream.facts["proof"]["overlap"] == 0
    json.dumps(stream.facts)


def test_every_pass_gives_the_same_rows_and_its_own_counts(path, lm):
    splits = load_splits(DataConfig(path=path, streaming=True), lm)
    first, second = list(splits.train), list(splits.train)
    assert first == second and list(first[0]) == ["text"]
    assert (
        splits.facts["rows"]["train"] == len(first)
        and splits.facts["stream"]["passes"] == 2
        and splits.facts["stream"]["complete"]
    )


def test_counts_grow_while_the_stream_is_read(path, lm):
    splits = load_splits(DataConfig(path=path, streaming=True), lm)
    assert "train" not in splits.facts["rows"]
    assert len(list(islice(splits.train, 10))) == 10
    assert splits.facts["rows"]["train"] in (10, 11) and not splits.facts["stream"]["complete"]


def test_counts_are_there_while_a_pass_is_open_and_reading_stops_at_max_rows(tmp_path, lm):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(25_000)))
    splits = load_splits(DataConfig(train=str(file), streaming=True), lm)
    rows = iter(splits.train)
    next(rows)
    assert splits.facts["read"]["train"] == 10_000 and not splits.facts["stream"]["complete"]
    splits = load_splits(DataConfig(train=str(file), streaming=True, max_rows=5), lm)
    assert len(list(splits.train)) == 5 and splits.facts["read"]["train"] == 10_000


def test_held_out_rows_are_bounded_and_never_trained_on(path, lm, monkeypatch):
    monkeypatch.setattr(streams, "HELD_OUT_ROWS", 7)
    splits = load_splits(DataConfig(path=path, streaming=True, test_fraction=0.2), lm)
    assert len(splits.test) == 7
    whole = load_splits(DataConfig(path=path, test_fraction=0.2), lm)
    assert list(splits.test["text"]) == list(whole.test["text"])[:7]
    assert [row["text"] for row in splits.train] == list(
        whole.train["text"]
    )  # also without the test rows beyond the bound


def test_given_test_rows_are_dropped_from_the_stream(path, tmp_path, lm):
    test = tmp_path / "b.jsonl"
    test.write_text(json.dumps({"text": TEXTS[3].upper()}) + "\n")
    splits = load_splits(DataConfig(train=path, test=str(test), streaming=True), lm)
    texts = [row["text"] for row in splits.train]
    assert texts == [text for text in TEXTS if text != TEXTS[3]]
    assert splits.facts["overlap"]["train_in_validation_or_test"] == 2
    assert splits.facts["duplicates"]["train"] == {"found": 99, "dropped": 99}


def test_repeats_stay_in_the_stream_when_asked(path, lm):
    splits = load_splits(DataConfig(train=path, streaming=True, deduplicate=False), lm)
    assert sum(1 for _ in splits.train) == 1100


def test_max_rows_bounds_every_split_of_a_stream(path, lm):
    splits = load_splits(DataConfig(path=path, streaming=True, max_rows=5), lm)
    assert (sum(1 for _ in splits.train), len(splits.validation), len(splits.test)) == (5, 5, 5)


def test_an_iterable_dataset_streams(lm):
    from datasets import IterableDataset

    source = IterableDataset.from_generator(lambda: ({"text": text, "n": 0} for text in TEXTS))
    splits = load_splits(DataConfig(streaming=True), lm, source)
    assert sum(1 for _ in splits.train) + len(splits.validation) + len(splits.test) == 1000


def test_a_broken_line_in_the_stream_is_an_input_error_while_reading(path, lm):
    with open(path, "a") as file:
        file.write("".join(json.dumps({"text": f"more {i}"}) + "\n" for i in range(20_000)) + "{broken\n")
    splits = load_splits(DataConfig(train=path, streaming=True), lm)
    with pytest.raises(InputError, match="line 21102: broken JSON"):
        list(splits.train)


def test_a_wrong_type_ends_a_stream_at_once(tmp_path, lm):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' * 10_000 + '{"text": 5}\n' * 30_000)
    splits = load_splits(DataConfig(train=str(file), streaming=True, deduplicate=False), lm)
    with pytest.raises(InputError, match="found int in 10,000 rows"):
        list(splits.train)


def test_a_share_that_stays_empty_is_refused(tmp_path, lm, refusal):
    file = tmp_path / "a.txt"
    file.write_text("one\n")
    assert "has 1 document" in refusal(load_splits, DataConfig(path=str(file), streaming=True), lm)
