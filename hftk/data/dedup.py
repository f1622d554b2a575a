"""What makes two rows the same, and what follows: repeats, conflicts.

The key of a row is a 64-bit BLAKE2b hash over its identity columns after NFKC, case folding and collapsing of
white space. Two different rows among a million share a key with a probability of 3e-8.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from hftk.data.tables import Part, Table, take_part
from hftk.task import Column

_BETWEEN = "\x1f"  # removed from texts by cleaning, so ("a", "bc") and ("ab", "c") stay apart


def normalized(text: str) -> str:
    """NFKC, case folded, runs of white space one space, none at the ends: what is left of a text for
    comparing it."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def keys_of(table: Table, columns: Mapping[str, Column]) -> list[int]:
    """(rows,) keys over the columns with ``identity``; values that are not text count by their JSON form."""
    parts = [
        [_comparable(value) for value in values] for role, values in table.items() if columns[role].identity
    ]
    if not parts:
        raise ValueError(f"none of the columns {', '.join(table)} has identity=True")
    texts = parts[0] if len(parts) == 1 else [_BETWEEN.join(texts) for texts in zip(*parts, strict=True)]
    return [
        int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        for text in texts
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


def conflicts(parts: Mapping[str, Part], columns: Mapping[str, Column], examples: int = 10) -> dict[str, Any]:
    """Rows with the key of an earlier row of the split, or of another split, but another target (any column
    without ``identity``).

    For each split, and for each two splits that have such rows ("train and test"): {"rows": their number,
    "examples": [{"first": row, "other": row, "places": [[split, file, row in it], ...]}]}, texts cut to 200
    characters.
    """
    found: dict[str, Any] = {}
    first: dict[str, dict[int, int]] = {}
    for split, part in parts.items():
        first[split] = {}
        later = [(first[split].setdefault(key, i), i) for i, key in enumerate(part.keys)]
        found[split] = _differing(
            (split, part), (split, part), [(j, i) for j, i in later if i != j], columns, examples
        )
        for other in [name for name in first if name != split]:
            shared = [(first[other][key], i) for i, key in enumerate(part.keys) if key in first[other]]
            across = _differing((other, parts[other]), (split, part), shared, columns, examples)
            if across["rows"]:
                found[f"{other} and {split}"] = across
    return found


def _differing(
    one: tuple[str, Part],
    two: tuple[str, Part],
    pairs: Sequence[tuple[int, int]],
    columns: Mapping[str, Column],
    examples: int,
) -> dict[str, Any]:
    """Those of ``pairs`` (a row of ``one``, a row of ``two``) that have different targets."""
    (split, part), (other_split, other) = one, two
    targets = [role for role in part.table if not columns[role].identity and role in other.table]
    differing = [
        (j, i)
        for j, i in pairs
        if not all(_same(part.table[role][j], other.table[role][i]) for role in targets)
    ]
    shown = [
        {
            "first": _row(part.table, j),
            "other": _row(other.table, i),
            "places": [[split, *part.places[j]], [other_split, *other.places[i]]],
        }
        for j, i in differing[:examples]
    ]
    return {"rows": len(differing), "examples": shown}


def _same(target: Any, other: Any) -> bool:
    """Equal; of lists (several labels) the order does not count."""
    if isinstance(target, list | tuple) and isinstance(other, list | tuple):
        return sorted(map(str, target)) == sorted(map(str, other))
    return bool(target == other)


def _comparable(value: Any) -> str:
    if isinstance(value, str):
        return normalized(value)
    return normalized(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str))


def _row(table: Table, index: int) -> dict[str, Any]:
    return {role: _short(values[index]) for role, values in table.items()}


def _short(value: Any) -> Any:
    return value if isinstance(value, (int, float, bool)) or value is None else str(value)[:200]
