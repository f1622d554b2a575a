from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hftk.data.files import by_split, file_facts, find_files, format_of, missing, split_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")


def names_by_split(folder: Path, pattern: str = "") -> dict[str, list[str]] | None:
    found = find_files(str(folder / pattern), "data.path", "auto")
    assert found is not None
    splits = by_split(found[0], found[1])
    return splits and {
        split: [file.path.relative_to(folder).as_posix() for file in files] for split, files in splits.items()
    }


@pytest.mark.parametrize(
    "name, split",
    [
        ("train.txt", "train"),
        ("training-00001.jsonl", "train"),
        ("test_2016_flickr.jsonl", "test"),
        ("dialogsum.dev.jsonl.gz", "validation"),
        ("val1.csv", "validation"),
        ("valid", "validation"),
        ("validation.json", "validation"),
        ("Test.TSV", "test"),
        ("latest.txt", None),
        ("trainer.txt", None),
        ("evaluation.txt", None),
        ("all.jsonl", None),
        ("developer.txt", None),
    ],
)
def test_a_split_is_a_word_of_its_own_in_the_name(name, split):
    assert split_of(name) == split


def test_a_name_with_two_splits_is_ambiguous():
    with pytest.raises(ValueError, match="test and train"):
        split_of("train_test.txt")


def test_the_format_is_read_below_a_compression():
    endings = {
        "a.txt": "txt",
        "a.JSONL.gz": "jsonl",
        "a.ndjson": "jsonl",
        "a.parquet": "parquet",
        "a.b.csv.zst": "csv",
        "a.gz": None,
        "a": None,
    }
    assert {name: format_of(Path(name)) for name in endings} == endings


def test_a_folder_is_split_by_its_file_names(tmp_path):
    touch(tmp_path, "train.jsonl", "dev.jsonl", "test_a.jsonl", "test_b.jsonl")
    assert names_by_split(tmp_path) == {
        "validation": ["dev.jsonl"],
        "test": ["test_a.jsonl", "test_b.jsonl"],
        "train": ["train.jsonl"],
    }


def test_a_glob_and_folders_below_are_split_too(tmp_path):
    touch(tmp_path, "train/a.txt", "train/b.txt", "test/a.txt")
    assert names_by_split(tmp_path) == {"test": ["test/a.txt"], "train": ["train/a.txt", "train/b.txt"]}
    assert names_by_split(tmp_path, "*/a.txt") == {"test": ["test/a.txt"], "train": ["train/a.txt"]}


def test_the_name_of_the_given_folder_itself_tells_nothing(tmp_path):
    touch(tmp_path, "test/a.txt", "test/b.txt")
    assert names_by_split(tmp_path / "test") is None


def test_hidden_files_readmes_and_licences_are_ignored(tmp_path):
    touch(
        tmp_path,
        "a.txt",
        ".DS_Store",
        ".hidden.txt",
        ".git/x.txt",
        "README.txt",
        "readme.zh-CN.txt",
        "LICENSE",
        "LICENCE.txt",
        "dataset_info.json",
    )
    found = find_files(str(tmp_path), "data.path", "auto")
    assert found is not None and [file.path.name for file in found[0]] == ["a.txt"] and found[2] == []


def test_files_of_no_known_format_are_left_out_with_a_remark(tmp_path):
    touch(tmp_path, "a.txt", "script.py")
    found = find_files(str(tmp_path), "data.path", "auto")
    assert found is not None and len(found[0]) == 1
    assert "script.py" in found[2][0]


def test_split_names_beside_other_names_are_refused_with_the_files(tmp_path, refusal):
    touch(tmp_path, "train.txt", "notes.txt")
    message = refusal(names_by_split, tmp_path)
    assert "train.txt" in message and "notes.txt" in message and "--data.train FILE" in message


def test_mixed_formats_ask_for_one(tmp_path, refusal):
    touch(tmp_path, "a.txt", "b.csv")
    message = refusal(find_files, str(tmp_path), "data.path", "auto")
    assert "csv, txt" in message and "--data.format" in message
    found = find_files(str(tmp_path), "data.path", "csv")
    assert found is not None and [file.path.name for file in found[0]] == ["b.csv"]


def test_an_unknown_ending_asks_for_the_format_and_takes_it(tmp_path, refusal):
    touch(tmp_path, "a.raw")
    assert "--data.format" in refusal(find_files, str(tmp_path / "a.raw"), "data.path", "auto")
    found = find_files(str(tmp_path / "a.raw"), "data.path", "txt")
    assert found is not None and found[0][0].format == "txt"
    assert "found none" in refusal(find_files, str(tmp_path / "*.txt"), "data.path", "auto")


def test_a_missing_file_names_the_nearest_one_beside_it(tmp_path):
    touch(tmp_path, "corpus.txt", "other.txt")
    assert find_files(str(tmp_path / "corpsu.txt"), "data.path", "auto") is None
    message = str(missing(str(tmp_path / "corpsu.txt"), "data.path"))
    assert "--data.path" in message and "did you mean corpus.txt?" in message
    assert f"{tmp_path} does exist" in str(missing(str(tmp_path / "nowhere" / "a.txt"), "data.path"))


def test_facts_hold_the_sha256_and_one_entry_stands_for_many_files(tmp_path):
    touch(tmp_path, "a.txt")
    found = find_files(str(tmp_path), "data.path", "auto")
    assert found is not None
    assert file_facts(found[0]) == [
        {
            "path": str(tmp_path / "a.txt"),
            "bytes": 2,
            "sha256": hashlib.sha256(b"x\n").hexdigest(),
            "format": "txt",
        }
    ]
    touch(tmp_path, *(f"{i}.txt" for i in range(60)))
    found = find_files(str(tmp_path), "data.path", "auto")
    assert found is not None
    (fact,) = file_facts(found[0])
    assert fact["files"] == 61 and fact["bytes"] == 122
