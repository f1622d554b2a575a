"""Learning rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch

from hftk.config import TrainConfig
from hftk.console import note

PLATEAU_EVALUATIONS = 2


PLATEAU_FACTOR = 0.5


INVERSE_SQRT_TIMESCALE = 10_000


def warmup_steps(warmup: float, total_steps: int) -> int:
    """A share of the run (below 1) or a number of steps, as steps."""
    return round(warmup * total_steps) if warmup < 1 else int(warmup)


def schedule_factor(kind: str, step: int, total_steps: int, warmup: int, floor: float = 0.0) -> float:
    """Learning rate of optimizer step ``step`` (0, 1 ...) as a share of its peak.

    ``warmup`` steps rise linearly from the floor and never start at 0, so that no step is without effect.
    ``floor`` is the smallest share: linear, cosine, polynomial (power 2) and warmup_stable_decay arrive there
    with the end of the run, the others never go below it. ``inverse_sqrt`` is that of Vaswani et al. 2017
    with its peak at the end of the warm-up (or a time scale of 10,000 steps without one);
    ``warmup_stable_decay`` that of Hu et al. 2024 (MiniCPM), falling linearly over the last fifth of the run.
    """
    if step < warmup:
        return floor + (1 - floor) * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if kind in ("linear", "cosine", "polynomial"):
        share = {
            "linear": 1 - progress,
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "polynomial": (1 - progress) ** 2,
        }[kind]
        return floor + (1 - floor) * share
    if kind == "warmup_stable_decay":
        start = max(0.8 * total_steps, warmup)
        share = 1.0 if step <= start else max(0.0, (total_steps - step) / (total_steps - start))
        return floor + (1 - floor) * share
    if kind == "inverse_sqrt":
        timescale = warmup or INVERSE_SQRT_TIMESCALE
        return max(floor, math.sqrt(timescale / (step - warmup + timescale)))
    shares = {"constant": 1.0, "exponential": 0.01**progress, "step": 0.1 ** min(2, int(3 * progress))}
    return max(floor, shares[kind])


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, peak: float, total_steps: int
) -> Any:
    """The scheduler of ``train.schedule``; ``peak`` is the learning rate, ``total_steps`` the length of the
    run."""
    if config.schedule == "reduce_on_plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            # torch counts the evaluations that are forgiven, and lowers at the next one
            optimizer,
            factor=PLATEAU_FACTOR,
            patience=PLATEAU_EVALUATIONS - 1,
            min_lr=config.min_learning_rate,
        )
    warmup, floor = warmup_steps(config.warmup, total_steps), config.min_learning_rate / peak
    if warmup >= total_steps:
        note(f"train.warmup: {warmup} steps, and the run has {total_steps}: the learning rate only rises")
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(config.schedule, step, total_steps, warmup, floor)
    )
