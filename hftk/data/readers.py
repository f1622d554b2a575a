"""One split's rows under the names of the task's roles: mapped, type-checked, cleaned and keyed, chunk by
chunk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from hftk.config import DataConfig, InputError, Problem
from hftk.data.clean import Counts, clean
from hftk.data.columns import Incomplete, WrongTypes, map_columns, rename
from hftk.data.dedup import keys_of
from hftk.data.sources import Source
from hftk.data.tables import Part, Table, height
from hftk.task import Column

_PLACE = (
    "\0place"  # a column beside those of the roles while a chunk is cleaned, so that rows keep their numbers
)
_PATIENCE = (
    100  # chunks looked through after the first wrong value, so that an endless source still gets its message
)


class Cleaned(NamedTuple):
    """A chunk after cleaning."""

    part: Part
    read: int
    """Rows before."""
    counts: Counts
    begin: Any
    """What :meth:`Reader.chunks` takes to begin with this chunk."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads one source as a task wants it."""

    source: Source
    mapping: Mapping[str, str]
    """Role to column."""
    columns: Mapping[str, Column]
    unicode: Literal["none", "NFC", "NFKC"]
    unused: tuple[str, ...] = ()
    """Columns of the data that fill no role."""

    def chunks(
        self, *, patient: bool = True, incomplete: Incomplete | None = None, begin: Any = None
    ) -> Iterator[Cleaned]:
        """Chunks in order, from ``begin`` on; ``incomplete`` is shown each before rows are dropped.

        InputError where text columns hold something else: at once, or when ``patient`` after all were
        counted.
        """
        columns = {**self.columns, _PLACE: Column(usual_names=(), required=False, kind="any", identity=False)}
        wrong = WrongTypes(self.mapping, self.columns, self.source.setting)
        since = 0
        for place, start, raw, here in self.source.read(set(self.mapping.values()), begin):
            rows = height(raw)
            table = self._named(rename(raw, self.mapping, rows))
            wrong.look(table, place, start)
            if wrong:
                since += 1
                if not patient or since > _PATIENCE:
                    break
                continue
            if incomplete is not None:
                incomplete.look(table, place, start)
            table, counts = clean(
                {**table, _PLACE: [(place, start + i) for i in range(rows)]}, columns, self.unicode
            )
            places = table.pop(_PLACE)
            yield Cleaned(Part(table, keys_of(table, self.columns), places), rows, counts, here)
        if wrong:
            raise wrong.error()

    def _named(self, table: Table) -> Table:
        """Class numbers become the names that the data set declares; numbers without a name (-1: unknown)
        become None."""
        return {
            role: [_class_name(value, names) for value in values]
            if (names := self.source.labels.get(self.mapping[role])) and self.columns[role].kind == "label"
            else values
            for role, values in table.items()
        }


def _class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_class_name(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def open_readers(
    sources: Mapping[str, Source],
    columns: Mapping[str, Column],
    config: DataConfig,
    roles: Collection[str] | None = None,
) -> tuple[dict[str, Reader], list[str]]:
    """Split to reader, and remarks. Columns are found in the training rows first; the other splits follow
    where they can.

    InputError: every split without rows or without a required column, all together.
    """
    readers: dict[str, Reader] = {}
    remarks: list[str] = []
    problems: list[Problem] = []
    for split, source in sources.items():
        try:
            sample = source.peek()
            if not sample:
                raise InputError(
                    Problem(
                        setting=source.setting,
                        message=f"expected rows in {source.name}, found none: it is empty",
                    )
                )
            mapping, said = map_columns(sample, columns, config.columns, source.name, roles)
        except InputError as error:
            said_before = {
                problem.setting for problem in problems if problem.setting.startswith("data.columns")
            }
            problems += [problem for problem in error.problems if problem.setting not in said_before]
            continue
        first = next(iter(readers.values()), None)
        if first is not None:
            kept = {role: name for role, name in first.mapping.items() if name in sample}
            mapping = {role: kept.get(role, name) for role, name in mapping.items() if role in first.mapping}
            said += [
                f"{role} is column {name} in {split}, {first.mapping[role]} in train"
                for role, name in mapping.items()
                if name != first.mapping[role]
            ]
        remarks += said
        used = {role: columns[role] for role in mapping}
        unused = tuple(name for name in sample if name not in mapping.values())
        readers[split] = Reader(
            source=source, mapping=mapping, columns=used, unicode=config.unicode, unused=unused
        )
    if problems:
        raise InputError(*problems)
    return readers, remarks


def to_dataset(table: Table, mapping: Mapping[str, str], features: Mapping[str, Any] | None = None) -> Any:
    """The columns as an in-memory Arrow Dataset, with the types in ``features`` (texts beside them).

    InputError naming a column whose values are of several types.
    """
    import pyarrow as pa
    from datasets import Dataset, Features, Value

    try:
        if features:
            types = Features({role: features.get(role, Value("string")) for role in table})
            return Dataset.from_dict(table, features=types)
        return Dataset.from_dict(table)
    except (pa.ArrowException, UnicodeEncodeError, TypeError, ValueError, OverflowError) as error:
        problems = []
        for role, values in table.items():
            kinds = sorted({type(value).__name__ for value in values if value is not None})
            if len(kinds) > 1:
                message = (
                    f"expected values of one type in column {mapping[role]}, found {' and '.join(kinds)}"
                )
                problems.append(
                    Problem(
                        setting=f"data.columns.{role}",
                        message=message,
                        fix="write them all as text, or all as numbers",
                    )
                )
        if not problems:
            problems = [
                Problem(
                    setting="data.columns",
                    message=f"the rows do not fit into a table: {str(error).splitlines()[0]}",
                )
            ]
        raise InputError(*problems) from error
