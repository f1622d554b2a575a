"""Columns of features as a few large arrays, which can be mapped from disk, instead of as a million small
ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hftk.task import Features


class NotCompact(TypeError):
    """A column that is no sequence of numbers or of one-dimensional sequences of numbers."""


@dataclass(frozen=True)
class Ragged(Sequence[Any]):
    """Rows of different lengths: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: np.ndarray
    """(entries of all rows,)"""
    offsets: np.ndarray
    """(rows + 1,) int64"""
    as_lists: bool = False
    """Whether a row is handed out as a list of Python numbers, and not as an array."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            return replace(self, offsets=self.offsets[start : max(start, stop) + 1])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = index % len(self)
        row = self.values[self.offsets[index] : self.offsets[index + 1]]
        return row.tolist() if self.as_lists else row

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def compact(features: Features) -> Features:
    """The same features in large arrays: every entry has the type and the value that it had.

    Raises:
        NotCompact: a column of texts, of nested or of mixed entries.
    """
    columns = {name: _compact(column) for name, column in features.columns.items()}
    return replace(features, columns=columns)


def _compact(column: Sequence[Any]) -> Sequence[Any]:
    if isinstance(column, Ragged) or (isinstance(column, np.ndarray) and column.dtype.kind in "biuf"):
        return column
    kinds = {type(entry) for entry in column}
    if kinds == {np.ndarray}:
        types = {(entry.dtype, entry.ndim) for entry in column}
        if len(types) == 1 and (found := types.pop())[1] == 1 and found[0].kind in "biuf":
            return _ragged(column, found[0])
    elif kinds == {list}:
        if {type(number) for entry in column for number in entry} <= {int}:
            return replace(_ragged(column, np.dtype(np.int64)), as_lists=True)
    elif len(kinds) == 1 and issubclass(kind := kinds.pop(), np.generic) and np.dtype(kind).kind in "biuf":
        return np.array(column, kind)  # type: ignore[return-value]
    raise NotCompact


def _ragged(column: Sequence[Any], dtype: np.dtype[Any]) -> Ragged:
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum([len(entry) for entry in column], out=offsets[1:])
    values = np.concatenate(column).astype(dtype, copy=False) if offsets[-1] else np.empty(0, dtype)
    return Ragged(values, offsets)
