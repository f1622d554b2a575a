"""Packing of sequences into blocks of a fixed length."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack pieces into blocks of ``capacity`` tokens by best fit, longest first; no piece is cut or dropped.

    ``lengths`` is (pieces,), each at most ``capacity`` (ValueError where one is longer). Returns blocks as
    lists of piece numbers. Best-fit decreasing as in Ding et al. 2024, *Fewer Truncations Improve Language
    Modeling* (arXiv:2404.10830).
    """
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"expected pieces of at most {capacity} tokens, found one of {lengths.max()}")
    blocks: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # free tokens -> blocks
    rooms: list[int] = []  # the keys of with_room, ascending
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            block, room = len(blocks), capacity
            blocks.append([])
        else:
            room = rooms[at]
            block = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(at)
        blocks[block].append(piece)
        left = room - length
        if left > 0:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(block)
    return blocks
