"""Dropout on a CPU with a quarter of the random numbers: torch draws 32 bits for each element, where 16
decide it well enough.

Drawing is most of the cost of ``torch.nn.functional.dropout`` on a CPU, and dropout up to a quarter of a
small model's step. Here one 64-bit number of torch's own generator decides about four elements. The
probability is exact to 1/65,536, and the scale is that of the probability which was used, so that the
expected output is the input, as Srivastava et al. 2014 have it. Elements are dropped independently; which
ones follows from the generator's state, as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

LEVELS = 2**16


def drop(values: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """As :func:`torch.nn.functional.dropout` on a CPU: ``values`` with a share ``p`` of its elements set to
    0, the rest scaled up."""
    dropped = min(round(p * LEVELS), LEVELS - 1)
    if not training or dropped == 0:
        return values
    count = values.numel()
    numbers = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = numbers.view(torch.int16)[:count].view(values.shape)
    kept = (drawn >= dropped - LEVELS // 2).to(values.dtype).mul_(LEVELS / (LEVELS - dropped))
    return values.mul_(kept) if inplace else values * kept


@contextmanager
def fast_dropout(device: torch.device) -> Iterator[None]:
    """Inside, ``torch.nn.functional.dropout`` (and with it ``torch.nn.Dropout``) is :func:`drop` for tensors
    on a CPU."""
    if device.type != "cpu":
        yield
        return
    own: Callable[..., torch.Tensor] = functional.dropout

    def dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if input.device.type != "cpu" or not input.is_floating_point() or not 0 <= p < 1:
            return own(input, p, training, inplace)
        return drop(input, p, training, inplace)

    replace: Any = functional
    replace.dropout = dropout
    try:
        yield
    finally:
        replace.dropout = own
