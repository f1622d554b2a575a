"""Which column fills which role of the task, and whether its values have the right type."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hftk.config import InputError, Problem
from hftk.data.tables import Table, did_you_mean
from hftk.task import Column

_SHOWN = 3


def map_columns(
    sample: Table,
    columns: Mapping[str, Column],
    given: Mapping[str, str],
    source: str,
    roles: Collection[str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Role to column name, for the roles that the data fill, and what was chosen without being told.

    A role goes to the column that ``given`` names, else to the first of its usual names, else, where it is
    the only required text role, to the only column of texts (ids aside, and not where other columns are
    nested).

    Args:
        sample: the first rows, columns named as in the data.
        given: ``--data.columns``, role to column name.
        source: name of the data in messages.
        roles: roles that are wanted; default: all of the task's.

    Raises: InputError: unknown roles, absent columns, unfilled required roles and two roles on one column,
        all together.
    """
    problems = [
        Problem(
            setting=f"data.columns.{role}",
            message=f"expected a role of this task, found {role}{did_you_mean(role, columns)}",
            fix=f"the roles are {', '.join(columns)}",
        )
        for role in given
        if role not in columns
    ]
    wanted = {role: column for role, column in columns.items() if roles is None or role in roles}
    mapping: dict[str, str] = {}
    for role in wanted:
        if role in given:
            mapping[role] = given[role]
            if given[role] not in sample:
                problems.append(_absent(role, given[role], sample, source))
    taken = set(mapping.values())
    for role, column in wanted.items():
        if role not in mapping:
            name = next((n for n in _usual(column, sample) if n not in taken), None)
            if name is not None:
                mapping[role] = name
                taken.add(name)
    remarks = []
    unfilled = [role for role, column in wanted.items() if column.required and role not in mapping]
    texts = [
        name
        for name, values in sample.items()
        if name not in taken and _is_text(values) and not _is_number_of_row(name)
    ]
    nested = any(
        isinstance(value, (list, dict)) for values in sample.values() for value in values
    )  # the text may be in there
    if len(unfilled) == 1 and wanted[unfilled[0]].kind == "text" and len(texts) == 1 and not nested:
        mapping[unfilled[0]] = texts[0]
        remarks.append(
            f"column {texts[0]} is taken as {unfilled[0]}: it is the only column of texts in {source}"
        )
        unfilled = []
    problems += [_unfilled(role, wanted[role], sample, source) for role in unfilled]
    users: dict[str, list[str]] = {}
    for role, name in mapping.items():
        users.setdefault(name, []).append(role)
    for name, several in users.items():
        if len(several) > 1:
            message = f"column {name} is asked for twice, as {' and as '.join(several)}"
            problems.append(
                Problem(
                    setting=f"data.columns.{several[-1]}",
                    message=message,
                    fix="name another column for one of them",
                )
            )
    if problems:
        raise InputError(*problems)
    return {role: mapping[role] for role in wanted if role in mapping}, remarks


def rename(table: Table, mapping: Mapping[str, str], rows: int) -> Table:
    """Only the role columns, under the names of the roles; a column that this chunk lacks is None."""
    return {role: table.get(name) or [None] * rows for role, name in mapping.items()}


class WrongTypes:
    """Values that are not text in text columns: counted over chunks, reported once."""

    def __init__(self, mapping: Mapping[str, str], columns: Mapping[str, Column], setting: str) -> None:
        self.mapping, self.setting = mapping, setting
        self.roles = [role for role in mapping if columns[role].kind == "text"]
        self.found: dict[str, list[tuple[str, int, str]]] = {}
        self.counts: dict[str, int] = {}

    def look(self, table: Table, place: str, start: int) -> None:
        """Look through a chunk whose first row is row ``start`` of ``place``."""
        for role in self.roles:
            values = table[role]
            if set(map(type, values)) <= {str, type(None)}:
                continue
            wrong = [
                (place, start + i, type(value).__name__)
                for i, value in enumerate(values)
                if not _is_text_or_missing(value)
            ]
            self.counts[role] = self.counts.get(role, 0) + len(wrong)
            first = self.found.setdefault(role, [])
            first.extend(wrong[: _SHOWN - len(first)])

    def __bool__(self) -> bool:
        return any(self.counts.values())

    def error(self) -> InputError:
        problems = []
        for role, rows in self.found.items():
            if not rows:
                continue
            where = ", ".join(f"row {row} of {place}" for place, row, _ in rows)
            kinds = " and ".join(dict.fromkeys(kind for _, _, kind in rows))
            problems.append(
                Problem(
                    setting=f"data.columns.{role}",
                    message=(
                        f"expected text in column {self.mapping[role]}, found {kinds} in"
                        f" {self.counts[role]:,} rows (first: {where})"
                    ),
                    fix=f"name the column of texts: --data.columns.{role} NAME",
                )
            )
        return InputError(*problems)


class Incomplete:
    """Rows without a text or a label in columns that need one: counted over chunks, reported once."""

    def __init__(self, mapping: Mapping[str, str], columns: Mapping[str, Column], policy: str) -> None:
        self.mapping = mapping
        self.texts = {role: columns[role].kind == "text" for role in mapping if not columns[role].nullable}
        self.stops = {
            role: policy == "error" or (policy == "auto" and columns[role].incomplete == "error")
            for role in self.texts
        }
        self.found: dict[str, list[tuple[str, int]]] = {}
        self.counts: dict[str, int] = {}

    def look(self, table: Table, place: str, start: int) -> None:
        """Look through a chunk whose first row is row ``start`` of ``place``."""
        for role in self.texts:
            rows = [start + i for i, value in enumerate(table[role]) if is_missing(value)]
            self.counts[role] = self.counts.get(role, 0) + len(rows)
            first = self.found.setdefault(role, [])
            first.extend((place, row) for row in rows[: _SHOWN - len(first)])

    def problems(self) -> list[Problem]:
        """One for each column."""
        return [
            Problem(
                setting=f"data.columns.{role}",
                message=(
                    f"expected {'text' if self.texts[role] else 'a label'} in every row, found"
                    f" {self.counts[role]:,} {'empty' if self.texts[role] else 'missing'} in column"
                    f" {self.mapping[role]} (first:"
                    f" {', '.join(f'row {row} of {place}' for place, row in first)})"
                ),
                fix="correct them, or leave such rows out: --data.incomplete drop",
            )
            for role, first in self.found.items()
            if first and self.stops[role]
        ]


def is_missing(value: Any) -> bool:
    """None, NaN, and a text that is empty or of white space alone."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def _usual(column: Column, sample: Table) -> Sequence[str]:
    """Columns of the data that have one of the usual names; other capitals count after the same ones."""
    folded = {name.casefold(): name for name in sample}
    exact = [name for name in column.usual_names if name in sample]
    return exact or [folded[name.casefold()] for name in column.usual_names if name.casefold() in folded]


def _absent(role: str, name: str, sample: Table, source: str) -> Problem:
    return Problem(
        setting=f"data.columns.{role}",
        message=f"expected a column of {source}, found no {name}{did_you_mean(name, sample)}",
        fix=f"the columns are {_listed(sample)}",
    )


def _unfilled(role: str, column: Column, sample: Table, source: str) -> Problem:
    near = next((hint for name in column.usual_names if (hint := did_you_mean(name, sample))), "")
    return Problem(
        setting=f"data.columns.{role}",
        message=(
            f"{source} has no column for {role} (expected {', '.join(column.usual_names[:6])}), found"
            f" {_listed(sample)}{near}"
        ),
        fix=f"name it: --data.columns.{role} NAME",
    )


def _listed(names: Collection[str], most: int = 12) -> str:
    shown = [str(name)[:40] for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _is_number_of_row(name: str) -> bool:
    """id, idx, uuid, doc_id and the like."""
    return name.lower().split("_")[-1] in ("id", "idx", "index", "uuid", "guid", "key")


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(value, str) for value in values) and all(map(_is_text_or_missing, values))


def _is_text_or_missing(value: Any) -> bool:
    return isinstance(value, str) or value is None or (isinstance(value, float) and value != value)
