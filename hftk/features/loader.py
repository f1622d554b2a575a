"""The data loader: one item is one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hftk.features.batches import EpochPlan, Step, StreamPlan, split_step


class StepLoader:
    """Feeds a trainer: one item per optimizer step, a list of this process's collated micro-batches.

    ``start`` is read when iteration begins, so that a resumed run continues at its step. A micro-batch
    without rows of its own repeats one row and carries ``filler=True``: it keeps processes in step and counts
    for nothing.
    """

    def __init__(
        self,
        plan: EpochPlan | StreamPlan,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        *,
        process: int,
        processes: int,
        max_rows: int,
        max_tokens: int | None,
    ) -> None:
        self.plan, self._collate = plan, collate
        self._process, self._processes = process, processes
        self._max_rows, self._max_tokens = max_rows, max_tokens
        self.start = 0
        self.epoch = 0.0
        self.tokens = 0
        self.pieces: list[np.ndarray] = []
        """Row numbers of this process's micro-batches of the last step that was given out."""
        self._last: tuple[int, Step] | None = None

    def __len__(self) -> int:
        return self.plan.total_steps

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number, step in enumerate(self.plan.steps(self.start), self.start + 1):
            pieces = split_step(
                step.indices,
                step.features.padded,
                processes=self._processes,
                max_rows=self._max_rows,
                max_tokens=self._max_tokens,
            )[self._process]
            self._last = number, step
            self.pieces = [step.features.rows[piece] for piece in pieces]
            self.epoch = step.epoch
            self.tokens += int(step.features.lengths[step.indices].sum())
            yield [self._batch(step, piece) for piece in pieces]

    def rows_of(self, number: int) -> np.ndarray:
        """Numbers of the rows that step ``number``, counted from 1, trains on, over all processes; of a
        stream's earlier steps they are not known any more: none."""
        if self._last is not None and self._last[0] == number:
            step = self._last[1]
        elif isinstance(self.plan, StreamPlan):
            return np.zeros(0, dtype=int)
        else:
            step = next(self.plan.steps(number - 1))
        return np.unique(step.features.rows[step.indices])

    def _batch(self, step: Step, piece: np.ndarray) -> dict[str, Any]:
        if len(piece):
            return self._collate([step.features[int(i)] for i in piece])
        return {**self._collate([step.features[int(step.indices[0])]]), "filler": True}
