"""A run that is over, held against its plan: what goes into the record."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from hftk.config import RunConfig
from hftk.console import note
from hftk.models import sharded
from hftk.planning import Sharding, foresee
from hftk.task import Task

LEAST_SECONDS = 20.0
"""Training time from which on a run is held against its plan: making one takes a second or a few, by the number of layers."""


def memory_level(model: Any) -> tuple[int, int]:
    """Resident bytes of this process now, and bytes of the model's weights in it; on a GPU, whose peak counts nothing but tensors, (0, 0)."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return 0, 0
    weights = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())
    }
    return int(psutil.Process().memory_info().rss), sum(weights.values())


def held_against_plan(
    config: RunConfig, task: Task, model: Any, *, precision: str, devices: int, level: tuple[int, int], peak: int,
    seconds: float, history: Sequence[Mapping[str, Any]], sharding: Sharding = "none",
) -> dict[str, Any]:  # fmt: skip
    """``peak_memory_bytes`` and ``seconds``, each planned and measured, and the operations; {} for a run of under :data:`LEAST_SECONDS`.

    Measured memory is the rise of ``peak`` over ``level`` (:func:`memory_level` before training), with the weights that were there already.
    Planned seconds come from the speed at the first point of the curve. A model that cannot be counted leaves the trained one unharmed: {}.
    """
    if seconds < LEAST_SECONDS:
        return {}
    made = copy.deepcopy(model.config)
    if hasattr(made, "quantization_config"):
        del made.quantization_config
    try:
        with sharded.whole_models():
            found, planned = foresee(config, task, made, devices=devices, precision=precision, sharding=sharding)
    except (
        Exception
    ) as error:  # whatever an unknown architecture raises: the weights of a finished run are worth more than a number
        note(
            f"no plan of memory for {type(model).__name__}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
        return {}
    points = [p for p in history if p.get("tokens") and p.get("seconds")]
    tokens = points[-1]["tokens"] if points else 0
    foreseen = points[0]["seconds"] / points[0]["tokens"] * tokens if points else None
    per_token = found.flops_training / found.tokens
    return {
        "peak_memory_bytes": {"planned": planned, "measured": peak - level[0] + level[1]},
        "seconds": {"planned": foreseen and round(foreseen, 3), "measured": round(seconds, 3)},
        "flops_per_token": per_token,
        "flops_per_second": per_token * tokens / seconds if tokens else None,
    }
