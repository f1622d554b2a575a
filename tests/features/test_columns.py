import pickle

import numpy as np
import pytest

from hftk.features.ragged import NotCompact, Ragged, compact
from hftk.task import Features


def features_of(**columns):
    count = len(next(iter(columns.values())))
    return Features(columns=columns, rows=np.arange(count), lengths=np.ones(count, np.int64))


def same(one, other):
    return (
        type(one) is type(other)
        and np.array_equal(one, other)
        and getattr(one, "dtype", 0) == getattr(other, "dtype", 0)
    )


@pytest.mark.parametrize(
    "column",
    [
        [np.array([1, 2, 3], np.int32), np.array([], np.int32), np.array([4], np.int32)],
        [np.array([0.5, 1.5], np.float32), np.array([2.5, 0.0], np.float32)],
        [np.array([True, False]), np.array([True, True])],
        [[1, 2], [], [3]],
        [[], []],
        list(np.array([3, 1, 2], np.int64)),
        list(np.array([3, 1, 2], np.float32)),
        np.arange(6).reshape(3, 2),
    ],
)
def test_every_entry_keeps_its_value_and_type(column):
    made = compact(features_of(x=column)).columns["x"]
    assert len(made) == len(column)
    assert all(same(made[i], column[i]) for i in range(-len(column), len(column)))
    assert all(same(one, other) for one, other in zip(made, column, strict=True))
    assert all(same(one, other) for one, other in zip(made[1:], column[1:], strict=True))
    assert all(
        same(one, other) for one, other in zip(pickle.loads(pickle.dumps(made))[:1], column[:1], strict=True)
    )


@pytest.mark.parametrize(
    "column",
    [
        ["a", "b"],
        [[1], [2.5]],
        [[True], [False]],
        [[1], np.array([1])],
        [np.array([1], np.int32), np.array([1])],
        [np.eye(2)],
        [None],
        [1, 2],
    ],
)
def test_what_would_come_back_as_something_else_is_refused(column):
    with pytest.raises(NotCompact):
        compact(features_of(x=column))


def test_slices_are_those_of_a_list():
    rows = [[1, 2], [], [3], [4, 5, 6]]
    made = compact(features_of(x=rows)).columns["x"]
    assert isinstance(made[1:3], Ragged)
    for cut in (slice(None), slice(1, 3), slice(3, 1), slice(None, None, 2), slice(-1, None), slice(2, 99)):
        assert list(made[cut]) == rows[cut]
    assert list(made[1:][1:]) == rows[2:]
    with pytest.raises(IndexError):
        made[4]
