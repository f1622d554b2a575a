"""The random states of this process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leave the random states of Python, NumPy and torch (the CPU and a CUDA device) as they were, whatever
    is drawn inside.

    Also a decorator. Not only sampling draws: some libraries do when they are imported (``rich``, which
    scikit-learn brings). A first start may import them in the middle of its training, and a continued run
    before it restores its random states.
    """
    python, numpy = random.getstate(), np.random.get_state()
    device = (
        [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    )  # else it would be, on each process's device 0
    try:
        with torch.random.fork_rng(devices=device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
