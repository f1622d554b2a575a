"""The heap, by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hftk.planning.heap import Heap

MIB = 2**20


def test_blocks_stand_one_behind_the_other_and_the_highest_end_is_kept() -> None:
    heap = Heap()
    blocks = [heap.take(MIB) for _ in range(3)]
    assert all((block + 16) % 64 == 0 for block in blocks), "what torch gets is aligned"
    assert blocks == sorted(blocks) and all(b - a >= MIB for a, b in pairwise(blocks))
    assert 3 * MIB <= heap.highest <= 3 * MIB + 1024
    for block in blocks:
        heap.give(block)
    assert heap.highest >= 3 * MIB
    heap.take(3 * MIB)
    assert heap.highest <= 3 * MIB + 1024, "free neighbours are one hole again"


def test_the_smallest_hole_that_is_large_enough_is_taken() -> None:
    heap = Heap()
    large, _, small, _ = (heap.take(size) for size in (8 * MIB, 64, 2 * MIB, 64))
    heap.give(large)
    heap.give(small)
    assert abs(heap.take(MIB) - small) <= 128
    assert abs(heap.take(6 * MIB) - large) <= 128


@pytest.mark.parametrize(("recording", "blocks"), [(False, 3), (True, 4)])
def test_while_operations_are_recorded_a_hole_does_not_fit_its_own_size(recording: bool, blocks: int) -> None:
    heap = Heap()
    heap.recording = recording
    _, middle, _ = (heap.take(MIB) for _ in range(3))
    heap.give(middle)
    heap.take(MIB)
    assert heap.highest == pytest.approx(blocks * MIB, rel=0.01)
    heap.release()
    heap.take(MIB)
    assert heap.highest == pytest.approx(4 * MIB, rel=0.01), "after the forward pass it does"


def test_nothing_is_lost_when_everything_is_given_back() -> None:
    heap = Heap()
    heap.recording = True
    blocks = [heap.take(1000 * (i % 7 + 1)) for i in range(200)]
    for block in blocks[::3] + blocks[1::3] + blocks[2::3]:
        heap.give(block)
    heap.release()
    assert (heap._end, heap._holes, heap._blocks, heap._by_size) == (0, {}, {}, [])
