"""Streams on several processes: each encodes its share of the chunks, and all of them get all.

Every process needs the lengths of all rows, by which steps are made up, and any row may become its own: what is exchanged is
encoded, a few bytes for each token. Reading is not shared out, since whether a row is kept depends on the rows before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from hftk.features.ragged import NotCompact, compact
from hftk.launch import alone
from hftk.task import Features

T = TypeVar("T")


def encode_in_turn(chunks: Iterable[T], encode: Callable[[T], Features]) -> Iterator[Features]:
    """``encode(chunk)`` of every chunk, in their order. All processes iterate over the same chunks, in step.

    Raises:
        RuntimeError: another process could not encode its chunk; where it is this one's, what was raised there.
    """
    if alone():
        yield from map(encode, chunks)
        return
    import torch

    process, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    waiting = iter(chunks)
    while some := list(islice(waiting, processes)):
        features, failure = None, None
        if process < len(some):
            try:
                features = _small(encode(some[process]))
            except Exception as error:
                failure = error
        parts: list[Any] = [None] * processes
        torch.distributed.all_gather_object(parts, (features, failure and f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for number, (_, reason) in enumerate(parts):
            if reason:
                raise RuntimeError(f"process {number} could not encode its rows: {reason}")
        yield from (part for part, _ in parts[: len(some)])


def _small(features: Features) -> Features:
    """The features as few bytes, where they are of whole numbers."""
    try:
        return compact(features)
    except NotCompact:
        return features
