from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from hftk.data.files import File
from hftk.data.formats import CHUNK, read_file, settle
from hftk.data.tables import Table, append


def read(path: Path, documents: str = "file", format: str = "") -> Table:
    file, _ = settle(File(path=path, format=format or path.suffixes[0][1:], setting="data.path"), "utf-8")
    table: Table = {}
    for chunk in read_file(file, documents=documents):  # type: ignore[arg-type]
        append(table, chunk) if table else table.update(chunk)
    return table


ROWS = {"text": ["one, two", 'said "hi"', "zwei\nZeilen", "中文"], "label": ["a", "b", "c", "d"]}


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    import pandas

    frame = pandas.DataFrame(ROWS)
    records = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    paths = [
        write(tmp_path / "a.jsonl", lines),
        write(tmp_path / "list.json", json.dumps(records, indent=1)),
        write(tmp_path / "data.json", json.dumps({"version": 1, "data": records})),
        write(tmp_path / "lines.json", lines),
        tmp_path / "a.csv",
        tmp_path / "a.tsv",
        tmp_path / "a.parquet",
        tmp_path / "a.parquet.gz",
        tmp_path / "semicolon.csv",
    ]
    frame.to_csv(paths[4], index=False)
    frame.to_csv(paths[5], index=False, sep="\t")
    frame.to_parquet(paths[6])
    paths[7].write_bytes(gzip.compress(paths[6].read_bytes()))
    frame.rename(columns=str).to_csv(paths[8], index=False, sep=";")
    for path in paths:
        assert read(path) == ROWS, path.name


def test_a_text_is_a_document_a_paragraph_or_a_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\n \r\nthree\r\nfour\n\n\n")
    assert read(path, "file") == {"text": ["one\ntwo\n\n \r\nthree\r\nfour\n\n\n"]}
    assert read(path, "paragraph") == {"text": ["one\ntwo", "three\r\nfour"]}
    assert read(path, "line") == {"text": ["one", "two", "", " ", "three", "four", "", ""]}


def test_lines_end_at_line_ends_only(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b"}\n{"text": "c\x85d"}\n\n')
    assert read(path) == {"text": ["a\u2028b", "c\x85d"]}
    assert read(write(tmp_path / "b.txt", "a\u2028b\nc\x0cd\n"), "line") == {"text": ["a\u2028b", "c\x0cd"]}


def test_a_key_that_a_row_lacks_is_none(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"b": 2}\n')
    assert read(path) == {"a": [1, None], "b": [None, 2]}


def test_chunks_join_without_a_seam(tmp_path):
    count = 2 * CHUNK + 5
    path = write(tmp_path / "a.jsonl", "".join(f'{{"text": "{i}"}}\n' for i in range(count)))
    assert read(path) == {"text": [str(i) for i in range(count)]}
    path = write(tmp_path / "a.csv", "text\n" + "".join(f"{i}\n" for i in range(count)))
    assert read(path) == {"text": [str(i) for i in range(count)]}


def test_broken_json_lines_are_named_and_counted(tmp_path, refusal):
    lines = [
        '{"text": "a"}',
        '{"text": "b"',
        "[1]",
        '{"text": "c"}',
        *['{"text": oops}'] * 6,
        '{"text": "d"}',
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    message = refusal(read, path)
    assert (
        f"{path}, line 2: broken JSON" in message
        and "line 3: expected an object" in message
        and "found a list" in message
    )
    assert "line 5" in message and "line 6" not in message
    assert "and 5 more broken lines (8 in the first 11 lines" in message


def test_broken_json_is_named_with_its_line(tmp_path, refusal):
    assert "line 3: broken JSON" in refusal(
        read, write(tmp_path / "a.json", '[\n{"text": "a"},\n{"text": }\n]')
    )
    assert "with the keys version" in refusal(read, write(tmp_path / "b.json", '{"version": 1}'))
    assert "a number as entry 2" in refusal(read, write(tmp_path / "c.json", '[{"text": "a"}, 3]'))


def test_ragged_csv_rows_are_named_and_counted(tmp_path, refusal):
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",x\na,b,c\n\nonly\nfine,y\n')
    message = refusal(read, path)
    assert f"{path}, line 4: expected 2 fields (text, label), found 3" in message
    assert "line 6: expected 2 fields" in message and "found 1" in message


def test_broken_quotes_and_repeated_headers_are_named(tmp_path, refusal):
    assert "line 2: broken quoting" in refusal(read, write(tmp_path / "a.csv", 'text,label\n"a" b,c\n'))
    assert "broken quoting" in refusal(read, write(tmp_path / "b.csv", 'text,label\n"never closed,c\nd,e\n'))
    assert "'text' twice" in refusal(read, write(tmp_path / "c.csv", "text,text\na,b\n"))


def test_quotes_in_a_tsv_are_text_unless_they_enclose_fields(tmp_path):
    raw = write(tmp_path / "raw.tsv", 'text\tlabel\n"Hello," he said.\t1\n5" disk\t2\n"Quoted."\t3\n')
    assert read(raw)["text"] == ['"Hello," he said.', '5" disk', '"Quoted."']
    doubled = write(tmp_path / "doubled.tsv", 'text\tlabel\n"He said ""hi"""\t1\n')
    assert read(doubled)["text"] == ['He said "hi"']
    uneven = write(tmp_path / "uneven.tsv", 'text\tlabel\n"two\nlines"\t1\n')
    assert read(uneven)["text"] == ["two\nlines"]


def test_fields_longer_than_the_csv_modules_limit_are_read_and_the_limit_stays(tmp_path):
    before = csv.field_size_limit(131_072)
    assert [
        len(text) for text in read(write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n"))["text"]
    ] == [200_000]
    assert csv.field_size_limit(before) == 131_072


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert read(write(tmp_path / name, "")) == {}


def test_a_file_that_is_not_parquet_is_refused(tmp_path, refusal):
    assert "not a whole Parquet file" in refusal(read, write(tmp_path / "a.parquet", "text"))
