"""Encode a stream on several processes: each encodes every n-th chunk, and all of them receive all chunks.

Every process needs the lengths of all rows to plan the steps, and may train on any row, so encoded chunks are
exchanged. Reading is not divided: whether a row is a duplicate depends on the rows before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from hftk.features.ragged import NotCompact, compact
from hftk.launch import alone
from hftk.task import Features

T = TypeVar("T")


def encode_round_robin(chunks: Iterable[T], encode: Callable[[T], Features]) -> Iterator[Features]:
    """Yield ``encode(chunk)`` of every chunk, in order. All processes iterate over the same chunks together.

    Raises: RuntimeError: another process could not encode its chunk; on that process the original exception
        is raised.
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
                features = _compacted(encode(some[process]))
            except Exception as error:
                failure = error
        parts: list[Any] = [None] * processes
        torch.distributed.all_gather_object(
            parts, (features, failure and f"{type(failure).__name__}: {failure}")
        )
        if failure is not None:
            raise failure
        for number, (_, reason) in enumerate(parts):
            if reason:
                raise RuntimeError(f"process {number} could not encode its rows: {reason}")
        yield from (part for part, _ in parts[: len(some)])


def _compacted(features: Features) -> Features:
    """Compact the features where their columns allow it."""
    try:
        return compact(features)
    except NotCompact:
        return features
