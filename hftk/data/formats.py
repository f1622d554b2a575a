"""File formats to tables: txt, jsonl, json, csv, tsv, parquet, in chunks, so that a stream holds one chunk in
memory.

Broken input becomes an InputError with file and line, after the rest of the file was looked through, so that
its first few mistakes and their number are reported together.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from typing import Any, Literal, TextIO

from hftk.config import InputError, Problem
from hftk.data.encoding import open_bytes, open_text, unreadable
from hftk.data.files import File
from hftk.data.tables import Table, from_records

CHUNK = 10_000
"""Rows that are read, cleaned and hashed at a time."""

Documents = Literal["file", "paragraph", "line"]
_SHOWN = 3
_LOOKED_THROUGH = (
    1_000_000  # lines after the first broken one, so that a huge file does not delay the message
)


@dataclass
class Cursor:
    """Where the reading of a file stands. :func:`read_file` begins there and moves it on with every chunk
    that it gives."""

    chunks: int = 0
    """Chunks before."""
    line: int = 0
    """Lines before, where lines are counted."""
    place: int | None = None
    """Of the file object, where it can be gone to; else what stands before is read once more."""

    def move(self, text: TextIO, line: int = 0) -> None:
        """To where ``text`` stands, after one more chunk."""
        self.chunks, self.line = self.chunks + 1, line
        self.place = text.tell() if text.seekable() else None


class _Mistakes:
    """Broken lines of one file: the first few in full, the number of all."""

    def __init__(self, file: File) -> None:
        self.file, self.problems, self.count, self.first = file, list[Problem](), 0, 0

    def add(self, line: int, message: str, fix: str = "") -> None:
        self.first = self.first or line
        self.count += 1
        if len(self.problems) < _SHOWN:
            where = f"{self.file.path}, line {line}: "
            self.problems.append(Problem(setting=self.file.setting, message=where + message, fix=fix))

    def enough(self, line: int) -> bool:
        return bool(self.count) and line > self.first + _LOOKED_THROUGH

    def error(self, line: int) -> InputError:
        rest = self.count - len(self.problems)
        more = (
            [f"and {rest} more broken lines ({self.count} in the first {line:,} lines of {self.file.path})"]
            if rest
            else []
        )
        return InputError(*self.problems, *more)


def settle(file: File, encoding: str) -> tuple[File, str]:
    """Decide what a file's ending leaves open, from its first lines; also what was decided and why, or "".

    ``.json`` with one object a line is JSON Lines. A ``.csv`` whose header has no comma may be separated by
    ``;`` or tabs. Double quotes in a ``.tsv`` are part of the text, as most NLP sets write it, unless its
    first lines make sense only when quotes enclose fields.
    """
    if file.format == "json":
        return _settle_json(file, encoding)
    if file.format not in ("csv", "tsv"):
        return file, ""
    with open_text(file, encoding) as text:
        lines = list(islice(text, 1000))
    header = lines[0] if lines else ""
    if file.format == "csv":
        for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
            if delimiter in header and "," not in header:
                return (
                    replace(file, delimiter=delimiter),
                    f"{file.path} is separated by {name}: its header has no comma",
                )
        return file, ""
    raw = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    enclosed = [field for row in raw for field in row if len(field) > 1 and field[0] == field[-1] == '"']
    uneven = any(len(row) != len(raw[0]) for row in raw)
    opening = any(field.startswith('"') for row in raw for field in row)
    if opening and (uneven or any('""' in field[1:-1] for field in enclosed)):
        return (
            replace(file, delimiter="\t"),
            f"double quotes in {file.path} enclose fields: its first lines are uneven or doubled without",
        )
    reason = f"double quotes in {file.path} are part of the text, as .tsv files have them" if opening else ""
    return replace(file, delimiter="\t", quoted=False), reason


def read_file(
    file: File,
    *,
    encoding: str = "utf-8",
    documents: Documents = "file",
    columns: Collection[str] | None = None,
    cursor: Cursor | None = None,
) -> Iterator[Table]:
    """The rows of a file in chunks of at most 10,000, columns as the file names them (``text`` for txt).

    Args:
        documents: what a row of a txt file is. Blank lines come along as empty rows where a row is a line.
        columns: columns that are wanted; others may come along where leaving them out saves nothing.
        cursor: where to begin, as an earlier reading left it.
    """
    cursor = cursor or Cursor()
    if file.format == "txt" and documents != "file":
        return _beginning(_texts(file, encoding, documents, cursor), cursor)
    if file.format == "jsonl":
        return _beginning(_json_lines(file, encoding, cursor), cursor)
    if file.format in ("csv", "tsv"):
        return _beginning(_separated(file, encoding, cursor), cursor)
    if file.format == "parquet":
        return _counted(_parquet(file, columns, skip=cursor.chunks), cursor)
    chunks = _document(file, encoding) if file.format == "txt" else _json(file, encoding)
    return _counted(islice(chunks, cursor.chunks, None), cursor)


def _beginning(chunks: Iterator[Table], cursor: Cursor) -> Iterator[Table]:
    """The chunks from the cursor on, of a reader that goes to the cursor's place by itself where there is
    one."""
    before = 0
    if cursor.place is None:
        before, cursor.chunks, cursor.line = cursor.chunks, 0, 0
    yield from islice(chunks, before, None)


def _counted(chunks: Iterator[Table], cursor: Cursor) -> Iterator[Table]:
    for chunk in chunks:
        cursor.chunks += 1
        yield chunk


def _lines(text: TextIO, cursor: Cursor) -> Iterator[str]:
    """The lines from the cursor's place on. Not ``iter(text)``, in the middle of which Python does not tell
    where it stands."""
    if cursor.place is not None:
        text.seek(cursor.place)
    return iter(text.readline, "")


def _document(file: File, encoding: str) -> Iterator[Table]:
    with open_text(file, encoding) as text:
        yield {"text": [content]} if (content := text.read()) else {}


def _texts(file: File, encoding: str, documents: Documents, cursor: Cursor) -> Iterator[Table]:
    with open_text(file, encoding) as text:
        lines = _lines(text, cursor)
        rows = (line.rstrip("\r\n") for line in lines) if documents == "line" else _paragraphs(lines)
        while chunk := list(islice(rows, CHUNK)):
            cursor.move(text)
            yield {"text": chunk}


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines that are not blank, line ends inside kept as they are."""
    paragraph: list[str] = []
    for line in lines:
        if line.isspace():
            if paragraph:
                yield "".join(paragraph).rstrip("\r\n")
                paragraph = []
        else:
            paragraph.append(line)
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _json_lines(file: File, encoding: str, cursor: Cursor) -> Iterator[Table]:
    mistakes = _Mistakes(file)
    records: list[dict[str, Any]] = []
    number = 0
    with open_text(file, encoding) as text:
        for number, line in enumerate(_lines(text, cursor), cursor.line + 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                if not line.isspace():
                    mistakes.add(number, f"broken JSON: {_reason(error)}; found {line.strip()[:60]!r}")
                if mistakes.enough(number):
                    break
                continue
            if type(record) is not dict:
                mistakes.add(number, f'expected an object such as {{"text": "..."}}, found {_kind(record)}')
            records.append(record)
            if len(records) == CHUNK:
                if not mistakes.count:
                    cursor.move(text, number)
                    yield from_records(records)
                records = []
    if mistakes.count:
        raise mistakes.error(number)
    if records:
        yield from_records(records)


def _json(file: File, encoding: str) -> Iterator[Table]:
    with open_text(file, encoding) as text:
        content = text.read()
    if not content.strip():
        return
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        message = f"{file.path}, line {error.lineno}: broken JSON: {_reason(error)}"
        raise InputError(Problem(setting=file.setting, message=message)) from None
    records = data.get("data") if isinstance(data, dict) else data
    if not isinstance(records, list):
        found = (
            f"an object with the keys {', '.join(list(data)[:8])}" if isinstance(data, dict) else _kind(data)
        )
        raise InputError(
            Problem(
                setting=file.setting,
                message=f'{file.path}: expected a list of objects, or {{"data": [...]}}, found {found}',
                fix="for one object per line add --data.format jsonl",
            )
        )
    wrong = [i for i, record in enumerate(records) if not isinstance(record, dict)]
    if wrong:
        message = (
            f"{file.path}: expected a list of objects, found {_kind(records[wrong[0]])} as entry"
            f" {wrong[0] + 1} ({len(wrong)} such entries)"
        )
        raise InputError(Problem(setting=file.setting, message=message))
    for start in range(0, len(records), CHUNK):
        yield from_records(records[start : start + CHUNK])


def _settle_json(file: File, encoding: str) -> tuple[File, str]:
    with open_text(file, encoding) as text:
        lines = list(islice((line for line in text if line.strip()), 2))
    if len(lines) == 2:
        try:
            if isinstance(json.loads(lines[0]), dict):
                return (
                    replace(file, format="jsonl"),
                    f"{file.path} is read as JSON Lines: its first line is a whole object",
                )
        except ValueError:
            pass
    return file, ""


def _separated(file: File, encoding: str, cursor: Cursor) -> Iterator[Table]:
    """csv and tsv, every field a string."""
    mistakes = _Mistakes(file)
    rows: list[list[str]] = []
    number = before = 0
    with open_text(file, encoding) as text:
        reader = csv.reader(
            iter(text.readline, ""),
            delimiter=file.delimiter,
            quoting=csv.QUOTE_MINIMAL if file.quoted else csv.QUOTE_NONE,
            strict=file.quoted,
        )
        try:
            lines = _wide_fields(reader)
            header = next(lines, [])
            _check_header(file, header)
            before = cursor.line and cursor.line - reader.line_num
            if cursor.place is not None:
                text.seek(cursor.place)
            for row in lines:
                if len(row) != len(header):
                    if row:
                        found = f"expected {len(header)} fields ({', '.join(header)[:80]}), found {len(row)}"
                        mistakes.add(
                            before + reader.line_num,
                            found,
                            "put fields that hold the separator in double quotes",
                        )
                    if mistakes.enough(before + reader.line_num):
                        break
                    continue
                rows.append(row)
                if len(rows) == CHUNK:
                    if not mistakes.count:
                        cursor.move(text, before + reader.line_num)
                        yield _transposed(header, rows)
                    rows = []
        except csv.Error as error:
            mistakes.add(
                before + reader.line_num,
                f"broken quoting: {error}",
                'write a double quote inside a quoted field twice: ""',
            )
        number = before + reader.line_num
    if mistakes.count:
        raise mistakes.error(number)
    if rows:
        yield _transposed(header, rows)


def _wide_fields(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows, with fields of any length; the csv module's limit is global, so it is put back between
    chunks."""
    while True:
        before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        try:
            row = next(reader, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row


def _check_header(file: File, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        message = (
            f"{file.path}, line 1: expected a header with one name per column, found"
            f" {', '.join(map(repr, twice))} twice"
        )
        raise InputError(Problem(setting=file.setting, message=message, fix="add or repair the header line"))


def _transposed(header: list[str], rows: list[list[str]]) -> Table:
    return {name: list(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}


def _parquet(file: File, columns: Collection[str] | None, skip: int) -> Iterator[Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        whole = file.path.suffix.lower() != ".parquet"
        with open_bytes(file.path) as binary:
            table = pq.ParquetFile(BytesIO(binary.read()) if whole else binary)
            wanted = (
                None if columns is None else [name for name in table.schema_arrow.names if name in columns]
            )
            for batch in islice(table.iter_batches(batch_size=CHUNK, columns=wanted), skip, None):
                yield batch.to_pydict()
    except pa.ArrowInvalid as error:
        message = f"{file.path} is not a whole Parquet file: {str(error).splitlines()[0]}"
        raise InputError(
            Problem(setting=file.setting, message=message, fix="write or download the file again")
        ) from None
    except (OSError, EOFError) as error:
        raise InputError(unreadable(file, error)) from error


def _reason(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
