"""A pass over a stream goes on where another one stood: the same rows, the same counts, and what stands
before is not read again."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hftk.config import DataConfig
from hftk.data import formats, sources
from hftk.data.load import load_splits

ROWS = 230
TEXTS = [f"Text {i % 200} of a stream, números ñ." for i in range(ROWS)]
"""The last thirty repeat the first thirty."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (formats, sources):
        monkeypatch.setattr(module, "CHUNK", 25)


def json_lines(path: Path, texts: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in texts),
        encoding="utf-8-sig",
    )


def in_jsonl(folder: Path) -> Any:
    json_lines(folder / "a.jsonl", TEXTS)
    return folder / "a.jsonl"


def in_several_files(folder: Path) -> Any:
    for number in range(3):
        json_lines(folder / f"part-{number}.jsonl", TEXTS[number * 90 : number * 90 + 90])
    return folder


def in_gzip(folder: Path) -> Any:
    with gzip.open(folder / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
    return folder / "a.jsonl.gz"


def in_zstd(folder: Path) -> Any:
    """Such a file cannot be gone to a place of."""
    import pyarrow as pa

    with pa.output_stream(str(folder / "a.jsonl.zst"), compression="zstd") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    return folder / "a.jsonl.zst"


def in_txt(folder: Path) -> Any:
    (folder / "a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return folder / "a.txt"


def in_csv(folder: Path) -> Any:
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["text", "n"], *([text + "\nsecond line", i] for i, text in enumerate(TEXTS))]
        )
    return folder / "a.csv"


def in_parquet(folder: Path) -> Any:
    from datasets import Dataset

    Dataset.from_dict({"text": TEXTS}).to_parquet(folder / "a.parquet", batch_size=60)
    return folder / "a.parquet"


def in_json(folder: Path) -> Any:
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    return folder / "a.json"


PLACES: dict[str, Callable[[Path], Any]] = {
    "jsonl": in_jsonl,
    "several files": in_several_files,
    "gzip": in_gzip,
    "zstd": in_zstd,
    "lines": in_txt,
    "paragraphs": in_txt,
    "csv": in_csv,
    "parquet": in_parquet,
    "json": in_json,
}


def splits_of(kind: str, folder: Path, lm: Any, **settings: Any) -> Any:
    documents = {"lines": "line", "paragraphs": "paragraph"}.get(kind, "auto")
    path = PLACES[kind](folder)
    if kind == "paragraphs":
        path.write_text("\n \n\n".join(TEXTS) + "\n", encoding="utf-8")
    return load_splits(DataConfig(path=str(path), streaming=True, documents=documents, **settings), lm)  # type: ignore[arg-type]


def texts(batches: Any) -> list[str]:
    return [text for _, table in batches for text in table["text"]]


@pytest.mark.parametrize("kind", PLACES)
def test_a_pass_that_goes_on_anywhere_gives_the_rest_and_the_counts_of_a_whole_one(
    kind: str, tmp_path: Path, lm: Any
) -> None:
    splits = splits_of(kind, tmp_path, lm, validation_fraction=0.1, test_fraction=0.1)
    whole, keys = [], []
    for batch in splits.stream.batches(30):
        whole.append(batch)
        keys.append(splits.stream.keys(batch[0]))
    counted = json.dumps({**splits.facts, "stream": 0, "sources": 0})
    assert texts(whole) == [row["text"] for row in splits.train] and 140 < len(texts(whole)) <= 200
    assert [len(table["text"]) for _, table in whole[:-1]] == [30] * (len(whole) - 1)
    for number in (0, 3, len(whole) - 1):
        begin = json.loads(json.dumps(whole[number][0]))
        again = splits_of(kind, tmp_path, lm, validation_fraction=0.1, test_fraction=0.1)
        rest = list(again.stream.batches(30, begin, keys[number]))
        assert [table for _, table in rest] == [table for _, table in whole[number:]]
        assert [here for here, _ in rest] == [here for here, _ in whole[number:]], "and so may the rest of it"
        assert json.dumps({**again.facts, "stream": 0, "sources": 0}) == counted


def test_a_bound_on_the_rows_holds_for_all_of_the_pass(tmp_path: Path, lm: Any) -> None:
    splits = splits_of("jsonl", tmp_path, lm, max_rows=120, validation_fraction=0.1)
    whole = list(splits.stream.batches(30))
    assert len(texts(whole)) == 120
    begin = whole[2][0]
    again = splits_of("jsonl", tmp_path, lm, max_rows=120, validation_fraction=0.1)
    assert texts(again.stream.batches(30, begin, splits.stream.keys(begin))) == texts(whole[2:])


@pytest.mark.parametrize("kind", ["jsonl", "lines", "paragraphs", "csv"])
def test_what_stands_before_is_not_read_again(
    kind: str, tmp_path: Path, lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = splits_of(kind, tmp_path, lm)
    begins = [begin for begin, _ in splits.stream.batches(30)]
    read = [0]

    class Counted:
        def __init__(self, text: Any) -> None:
            self.text = text

        def __getattr__(self, name: str) -> Any:
            return getattr(self.text, name)

        def readline(self) -> str:
            read[0] += 1
            return str(self.text.readline())

    opened = formats.open_text

    @contextmanager
    def open_text(*args: Any) -> Iterator[Any]:
        with opened(*args) as text:
            yield Counted(text)

    monkeypatch.setattr(formats, "open_text", open_text)
    texts(splits.stream.batches(30))
    whole, read[0] = read[0], 0
    texts(splits.stream.batches(30, begins[-1], splits.stream.keys(begins[-1])))
    assert read[0] < 0.4 * whole, "the last thirty repeat others, and the chunk before them may be begun anew"


def test_files_before_are_not_even_opened(tmp_path: Path, lm: Any) -> None:
    splits = splits_of("several files", tmp_path, lm)
    whole = list(splits.stream.batches(30))
    begin = whole[-1][0]
    keys = splits.stream.keys(begin)
    before = begin["begin"][0]
    assert before > 0
    for number in range(before):
        (tmp_path / f"part-{number}.jsonl").unlink()
    assert texts(splits.stream.batches(30, begin, keys)) == texts(whole[-1:])


def test_rows_of_a_hub_stream_are_gone_on_with(lm: Any) -> None:
    from datasets import Dataset

    def splits() -> Any:
        stream = Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=4)
        return load_splits(DataConfig(streaming=True), lm, source=stream)

    first = splits()
    whole = list(first.stream.batches(30))
    for number in (0, 3, len(whole) - 1):
        begin = whole[number][0]
        rest = splits().stream.batches(30, json.loads(json.dumps(begin)), first.stream.keys(begin))
        assert texts(rest) == texts(whole[number:])


def test_a_broken_line_after_the_place_is_told_by_its_number_in_the_file(tmp_path: Path, lm: Any) -> None:
    from hftk.config import InputError

    splits = splits_of("jsonl", tmp_path, lm)
    begins = [begin for begin, _ in splits.stream.batches(30)]
    path = tmp_path / "a.jsonl"
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    lines[440] = '{"text": '
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    with pytest.raises(InputError, match="line 441: broken JSON"):
        texts(splits.stream.batches(30, begins[3], splits.stream.keys(begins[3])))
