"""Peak memory of this process."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    pass


def forget_peak() -> int:
    """What :func:`peak_memory` says, which counts from now on: reading and judging before a training are not
    the training's.

    Where the system does not allow that (other than Linux), it counts on.
    """
    peak = peak_memory()
    if torch.cuda.is_available():
        # Before the first use of a GPU there is no peak, and torch (2.13) fails on a device by its number.
        for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(
                "5", encoding="ascii"
            )  # man 5 proc: resets the peak resident set size
    return peak


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the GPU where there is one (on all that it uses), else
    resident memory."""
    if torch.cuda.is_available():
        return sum(
            int(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count())
        )
    with contextlib.suppress(
        OSError, StopIteration
    ):  # Linux; what getrusage says begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
