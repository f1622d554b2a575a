"""Where glibc's malloc would put the blocks of a step on a processor: how high its heap grows, holes included.

hftk keeps glibc from giving memory back between steps (:func:`hftk.launch.launcher.keep_memory`), so what a run takes is the highest
end of the heap and not the sum of what is alive. glibc takes the smallest hole that is large enough and merges neighbours that are free
(Lea, *A Memory Allocator*, 2000). torch asks for blocks that are aligned to 64 bytes, and for such a one malloc (``_int_memalign`` in
glibc's malloc.c) looks for a hole that is 96 bytes larger, and hands the pieces before and behind it to small blocks. While a forward
pass records operations, their small objects sit in these pieces: a hole between two of them is a little too small for another block
of its own size. That is most of what is lost.
"""

from __future__ import annotations

from bisect import bisect_left, insort

HEADER = 16
"""Bytes before each block."""
SMALLEST = 32
ALIGNED = 64
"""Bytes to which torch's tensors are aligned."""


class Heap:
    """Blocks by their address, and holes by size and address; no memory behind either."""

    def __init__(self) -> None:
        self.highest = 0
        """Bytes of the heap when it was largest."""
        self.recording = False
        """Whether small objects live long, as in a forward pass: they hold the pieces beside new blocks until :meth:`release`."""
        self._end = 0
        self._blocks: dict[int, int] = {}
        self._held: list[int] = []
        self._holes: dict[int, int] = {}
        self._hole_before: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []

    def take(self, size: int) -> int:
        """Address of a new block for a tensor of ``size`` bytes."""
        wanted = max(SMALLEST, _rounded(size + HEADER // 2))
        start, length = self._find(wanted + ALIGNED + SMALLEST)
        block = _aligned(start)
        end, last = start + length, block + wanted
        if end - last < SMALLEST:
            last = end
        self._blocks[block] = last - block
        if last < end:
            self._piece(last, end - last, alone=end != self._end and end not in self._holes)
        if block > start:
            self._piece(start, block - start, alone=True)
        return block

    def give(self, address: int) -> None:
        """The block at ``address`` is free again."""
        length = self._blocks.pop(address)
        if address + length in self._holes:
            length += self._remove(address + length)
        if address in self._hole_before:
            before = self._hole_before[address]
            length += self._remove(before)
            address = before
        if address + length == self._end:
            self._end = address
        else:
            self._add(address, length)

    def release(self) -> None:
        """The small objects of a forward pass are gone."""
        self.recording = False
        for address in self._held:
            self.give(address)
        self._held.clear()

    def _piece(self, address: int, length: int, *, alone: bool) -> None:
        """What is left beside a block: free, or taken by a small object where it has no free neighbour."""
        self._blocks[address] = length
        if alone and self.recording:
            self._held.append(address)
        else:
            self.give(address)

    def _find(self, length: int) -> tuple[int, int]:
        """Start and length of the smallest hole of at least ``length`` bytes, cut to it; else of new memory at the end."""
        at = bisect_left(self._by_size, (length, -1))
        if at == len(self._by_size):
            start, self._end = self._end, self._end + length
            self.highest = max(self.highest, self._end)
            return start, length
        found, start = self._by_size[at]
        self._remove(start)
        if found - length < SMALLEST:
            return start, found
        self._add(start + length, found - length)
        return start, length

    def _add(self, address: int, length: int) -> None:
        self._holes[address] = length
        self._hole_before[address + length] = address
        insort(self._by_size, (length, address))

    def _remove(self, address: int) -> int:
        length = self._holes.pop(address)
        del self._hole_before[address + length]
        self._by_size.pop(bisect_left(self._by_size, (length, address)))
        return length


def _rounded(size: int) -> int:
    return -(-size // HEADER) * HEADER


def _aligned(start: int) -> int:
    """First address from ``start`` on whose tensor, behind the header, is aligned; a piece that is left before it can be a block."""
    block = -(-(start + HEADER) // ALIGNED) * ALIGNED - HEADER
    return block + ALIGNED if 0 < block - start < SMALLEST else block
