"""Facts about rows that were read: characters, a fingerprint, and whether any are left."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

from hftk.config import InputError, Problem
from hftk.data.clean import Counts
from hftk.data.readers import Reader
from hftk.data.tables import Part

if TYPE_CHECKING:
    pass


def characters(part: Part, reader: Reader) -> int:
    """Characters in the text columns."""
    texts = [values for role, values in part.table.items() if reader.columns[role].kind == "text"]
    return sum(sum(map(len, values)) for values in texts)


def fingerprint(part: Part) -> str:
    """Hash over the keys in order: equal for equal inputs in the same order, from whatever file they came."""
    digest = blake2b(digest_size=16)
    for key in part.keys:
        digest.update(key.to_bytes(8, "big"))
    return digest.hexdigest()


def nothing_left(reader: Reader, read: int, counts: Counts) -> Problem:
    """What to say about a source of which every row was dropped."""
    dropped = ", ".join(
        f"{step} {count['dropped']}" for step, count in counts.items() if count.get("dropped")
    )
    name = reader.source.name
    if not read:
        return Problem(
            setting=reader.source.setting, message=f"expected rows in {name}, found none: it is empty"
        )
    columns = ", ".join(f"{role} = {column}" for role, column in reader.mapping.items())
    message = (
        f"expected rows with text in {name}, found none: all {read:,} were dropped ({dropped}; columns:"
        f" {columns})"
    )
    return Problem(
        setting=reader.source.setting, message=message, fix="name the columns: --data.columns.ROLE NAME"
    )


def require_left(parts: Mapping[str, Part], overlap: Mapping[str, int]) -> None:
    """InputError where dropping overlaps left a split empty."""
    problems = []
    for split, part in parts.items():
        if not part.keys:
            counts = " and ".join(
                f"{rows:,} in {name.split('_in_')[1]}"
                for name, rows in overlap.items()
                if name.startswith(f"{split}_in_")
            )
            message = f"every row of {split} also stands in another split ({counts}), so none is left"
            problems.append(
                Problem(
                    setting=f"data.{split}",
                    message=message,
                    fix=f"give other rows as --data.{split}, or leave it out",
                )
            )
    if problems:
        raise InputError(*problems)
