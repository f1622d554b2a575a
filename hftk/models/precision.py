"""Which arithmetic a run uses: the one that is faster here, found out and not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from hftk.config import InputError, Problem

CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16")
"""Processor features (x86, then Arm) that compute bf16 products in hardware."""


def choose_precision(
    asked: str, device: torch.device, forward_backward: Callable[[], Any] | None = None
) -> tuple[str, str]:
    """``(fp32 | bf16 | fp16, reason)`` for ``train.precision``.

    ``forward_backward`` runs one micro-batch of the real model; on a processor with bf16 instructions it is
    timed in both precisions, since on small models autocast can cost more than it saves.

    Raises:
        InputError: fp16 without a GPU.
    """
    if asked == "fp16" and device.type == "cpu":
        raise InputError(
            Problem(
                setting="train.precision",
                message="fp16 needs a GPU",
                fix="use --train.precision auto, bf16 or fp32",
            )
        )
    if asked != "auto":
        return asked, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes bf16 in hardware"
        return "fp32", "this GPU has no bf16 (for fp16 type --train.precision fp16)"
    if device.type != "cpu":
        return "fp32", f"bf16 autocast is not established on {device.type}"
    if cpu_has_bf16() is False:
        return "fp32", "this processor has no bf16 instructions"
    if forward_backward is None:
        return "fp32", "nothing to measure with"
    seconds = {name: _time(forward_backward, name, device) for name in ("fp32", "bf16")}
    best = min(seconds, key=seconds.__getitem__)
    measured = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
    return best, f"measured on one micro-batch: {measured}"


def cpu_has_bf16() -> bool | None:
    """Whether the processor computes bf16 in hardware; None where the system does not tell."""
    flags = cpu_flags()
    return None if flags is None else bool(flags.intersection(CPU_FLAGS))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _time(run: Callable[[], Any], precision: str, device: torch.device) -> float:
    """Seconds of the fastest of three runs after a warm-up."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        with autocast(precision, device):
            run()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def cpu_flags() -> set[str] | None:
    """Feature flags of the processor, or None where the system does not tell (then it is measured)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return None
