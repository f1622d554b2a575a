"""Devices, what of a model each of them holds when it is sharded, and how fast they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hftk.planning.simulation import STATES, Footprint

Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
GATHERED_LAYERS = 2
"""Layers of a sharded model that are whole at once: the one that computes and the next one, which is fetched
meanwhile."""
USABLE = 0.92
"""Share of a GPU's memory that tensors can fill: the rest is the driver's context, communication buffers and
fragmentation."""
PROCESSOR_BYTES = 100 * 10**6
"""On a processor: scratch space of the libraries behind matrix products and attention (measured: 93 MB at the
first forward pass)."""
MODEL_FLOPS_UTILIZATION = 0.4
"""Share of a GPU's peak that training reaches where nothing was measured: 0.46 for PaLM (Chowdhery et al.
2022), 0.38 to 0.43 for Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783), 0.45 for Llama 2 7B by its
published GPU hours."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A kind of GPU."""

    memory: int
    """Bytes."""
    flops: float
    """Peak of dense 16-bit matrix products, in operations per second."""


DEVICES: Mapping[str, Device] = {
    "t4": Device(memory=16 * 10**9, flops=65e12),
    "v100-16gb": Device(memory=16 * 10**9, flops=125e12),
    "v100-32gb": Device(memory=32 * 10**9, flops=125e12),
    "a10g": Device(memory=24 * 10**9, flops=70e12),
    "l4": Device(memory=24 * 10**9, flops=121e12),
    "l40s": Device(memory=48 * 10**9, flops=362e12),
    "rtx3090": Device(memory=24 * 10**9, flops=71e12),
    "rtx4090": Device(memory=24 * 10**9, flops=165e12),
    "a100-40gb": Device(memory=40 * 10**9, flops=312e12),
    "a100-80gb": Device(memory=80 * 10**9, flops=312e12),
    "h100-80gb": Device(memory=80 * 10**9, flops=989e12),
    "h200": Device(memory=141 * 10**9, flops=989e12),
    "mi300x": Device(memory=192 * 10**9, flops=1307e12),
}
"""Name to what the manufacturer's data sheet says (memory in decimal GB; matrix products without
sparsity)."""


def states_per_device(footprint: Footprint, sharding: Sharding, devices: int) -> dict[str, float]:
    """Kind of :data:`hftk.planning.simulation.STATES` to bytes per device.

    none and ddp hold everything everywhere. fsdp holds a share of each. zero2 and zero3 are DeepSpeed's
    (Rajbhandari et al. 2020, arXiv:1910.02054): zero2 shares out gradients and optimizer state, zero3 the
    weights too. Weights stay in float32 under autocast, so that Adam takes 16 bytes for each (4 + 4 + 8), as
    many as the 2 + 2 + 12 of that paper; DeepSpeed (0.19) keeps one more copy of those that are trained,
    which its optimizers work on (``single_partition_of_fp32_groups``, ``fp32_partitioned_groups_flat``).
    """
    whole = {
        "weights": float(footprint.weights),
        "gradients": float(footprint.gradients),
        "optimizer": float(footprint.optimizer),
    }
    if sharding.startswith("zero"):
        whole["optimizer"] += 4.0 * footprint.trained
    shared = {"none": (), "ddp": (), "zero2": ("gradients", "optimizer"), "zero3": STATES, "fsdp": STATES}[
        sharding
    ]
    return {kind: size / devices if kind in shared else size for kind, size in whole.items()}


def buffers_per_device(footprint: Footprint, sharding: Sharding, devices: int, precision: str) -> float:
    """Bytes per device that sharding and communication need besides.

    ddp: its buckets are a second copy of the gradients. fsdp and zero3: the layers that are whole at once, in
    the type of the arithmetic, and the gradient of one of them in float32 on its way to its shares; or, at
    the loss, what is outside of the layers with its gradient. benchmarks/fsdp_memory.py holds this against
    torch's own count.
    """
    if sharding == "ddp" and devices > 1:
        return float(footprint.gradients)
    if sharding in ("fsdp", "zero3") and devices > 1:
        width = 4 if precision == "fp32" else 2
        layers = (GATHERED_LAYERS * width + 4) * footprint.largest_layer
        outside = (width + 4) * footprint.outside_layers
        return float(min(max(layers, outside), (width + 4) * footprint.parameters))
    return 0.0


def tokens_per_second(flops_per_token: float, device: Device, devices: int, utilization: float) -> float:
    """Tokens over all devices that are trained on in a second, at a share of the peak (model FLOPs
    utilization: Chowdhery et al. 2022, appendix B)."""
    return devices * device.flops * utilization / flops_per_token


def on_processor(setup: Any) -> bool:
    """Whether the :class:`hftk.planning.Setup` means this machine, and this machine has no GPU."""
    import torch

    return setup.device is None and setup.device_memory is None and not torch.cuda.is_available()
