"""What makes two rows the same, and what follows: repeats, conflicts.

The key of a row is a 64-bit BLAKE2b hash over its identity columns after NFKC, case folding and collapsing of white space.
Two different rows among a million share a key with a probability of 3e-8.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from hftk.data.tables import Part, Table, height, take_part
from hftk.task import Column

_BETWEEN = "\x1f"  # removed from texts by cleaning, so ("a", "bc") and ("ab", "c") stay apart


def normalized(text: str) -> str:
    """NFKC, case folded, runs of white space one space, none at the ends: what is left of a text for comparing it."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def keys_of(table: Table, columns: Mapping[str, Column]) -> list[int]:
    """(rows,) keys over the columns with ``identity``; values that are not text count by their JSON form."""
    parts = [[_comparable(value) for value in values] for role, values in table.items() if columns[role].identity]
    if not parts:
        raise ValueError(f"none of the columns {', '.join(table)} has identity=True")
    texts = parts[0] if len(parts) == 1 else [_BETWEEN.join(texts) for texts in zip(*parts, strict=True)]
    return [
        int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") for text in texts
    ]


def drop_repeats(part: Part) -> tuple[Part, int]:
    """Keep the first of the rows with one key; also the number of rows dropped."""
    seen: set[int] = set()
    first = [i for i, key in enumerate(part.keys) if not (key in seen or seen.add(key))]  # type: ignore[func-returns-value]
    dropped = len(part.keys) - len(first)
    return (take_part(part, first) if dropped else part), dropped


def count_repeats(keys: Sequence[int]) -> int:
    """Rows whose key stands earlier."""
    return len(keys) - len(set(keys))


def conflicts(part: Part, columns: Mapping[str, Column], examples: int = 10) -> dict[str, Any]:
    """Rows with the same key as an earlier row but another target (any column without ``identity``).

    {"rows": their number, "examples": [{"first": row, "other": row}]}, texts cut to 200 characters.
    """
    targets = [role for role in part.table if not columns[role].identity]
    found: dict[str, Any] = {"rows": 0, "examples": []}
    if not targets or not height(part.table):
        return found
    first: dict[int, int] = {}
    for i, key in enumerate(part.keys):
        j = first.setdefault(key, i)
        if i != j and any(part.table[role][i] != part.table[role][j] for role in targets):
            found["rows"] += 1
            if len(found["examples"]) < examples:
                found["examples"].append({"first": _row(part.table, j), "other": _row(part.table, i)})
    return found


def _comparable(value: Any) -> str:
    if isinstance(value, str):
        return normalized(value)
    return normalized(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def _row(table: Table, index: int) -> dict[str, Any]:
    return {role: _short(values[index]) for role, values in table.items()}


def _short(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) or value is None else str(value)[:200]
