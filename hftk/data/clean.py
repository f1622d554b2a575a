"""Cleaning: pure steps over text columns, each counting the rows that it changed or dropped.

A step takes and returns texts (or a table) and never edits what it was handed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from hftk.data.tables import Table, height, take
from hftk.task import Column

Counts = dict[str, dict[str, int]]
"""Step to {"changed" or "dropped": rows}."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def unify_newlines(text: str) -> str:
    r"""``\r\n`` and ``\r`` become ``\n``."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def remove_controls(text: str) -> str:
    r"""Control characters (category Cc, NUL among them) go, except ``\t`` and ``\n``; a lone surrogate,
    which no encoding can hold and JSON's ``\ud83d`` may bring in, becomes U+FFFD."""
    return _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))


def clean(
    table: Table, columns: Mapping[str, Column], unicode: Literal["none", "NFC", "NFKC"] = "NFC"
) -> tuple[Table, Counts]:
    """Every step, in order: missing values, newlines, control characters, Unicode normalization, empty texts.

    Only columns of kind ``text`` are touched. A row that lacks a required value, or whose required text is
    empty or blank, is dropped; an optional text that is missing becomes "".
    """
    table, counts = drop_missing(table, columns)
    texts = [role for role in table if columns[role].kind == "text"]
    steps: list[tuple[str, Callable[[str], str]]] = [
        ("newlines", unify_newlines),
        ("controls", remove_controls),
    ]
    if unicode != "none":
        steps.append(("unicode", lambda text: unicodedata.normalize(unicode, text)))
    for name, function in steps:
        table, counts[name] = _change(table, texts, function)
    table, counts["empty"] = drop_empty(table, [role for role in texts if columns[role].required])
    return table, counts


def drop_missing(table: Table, columns: Mapping[str, Column]) -> tuple[Table, Counts]:
    """Rows without a required value go (None, NaN, and blank texts where a label is wanted); optional texts
    become ""."""
    filled: Table = {}
    lacking: set[int] = set()
    changed: set[int] = set()
    for role, values in table.items():
        label = columns[role].kind == "label"
        if columns[role].nullable:
            filled[role] = [None if value != value else value for value in values]
            continue
        missing = [
            i
            for i, value in enumerate(values)
            if value is None or value != value or (label and isinstance(value, str) and not value.strip())
        ]
        if columns[role].required:
            lacking.update(missing)
        elif columns[role].kind == "text" and missing:
            changed.update(missing)
            gaps = set(missing)
            values = ["" if i in gaps else value for i, value in enumerate(values)]
        filled[role] = values
    if lacking:
        filled = take(filled, [i for i in range(height(table)) if i not in lacking])
    return filled, {"missing": {"dropped": len(lacking), "changed": len(changed - lacking)}}


def drop_empty(table: Table, roles: Iterable[str]) -> tuple[Table, dict[str, int]]:
    """Rows of which one of ``roles`` is empty or blank go."""
    rows = height(table)
    lacking = {i for role in roles for i, text in enumerate(table[role]) if not text or text.isspace()}
    if lacking:
        table = take(table, [i for i in range(rows) if i not in lacking])
    return table, {"dropped": len(lacking)}


def add_counts(total: Counts, more: Counts) -> None:
    """Add ``more`` to ``total``."""
    for step, counts in more.items():
        into = total.setdefault(step, dict.fromkeys(counts, 0))
        for what, rows in counts.items():
            into[what] = into.get(what, 0) + rows


def _change(
    table: Table, roles: Iterable[str], function: Callable[[str], str]
) -> tuple[Table, dict[str, int]]:
    """Apply a function of one text; a row counts once, however many of its columns changed."""
    changed: set[int] = set()
    new: dict[str, list[Any]] = dict(table)
    for role in roles:
        new[role] = [function(text) for text in table[role]]
        changed.update(
            i for i, (old, text) in enumerate(zip(table[role], new[role], strict=True)) if old != text
        )
    return new, {"changed": len(changed)}
