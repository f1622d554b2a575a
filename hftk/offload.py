"""What the backward pass needs, kept in main memory in place of a GPU's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hftk.config import InputError, Problem

SMALLEST = 2**16
"""Elements below which a copy costs more than it spares."""


def check_device(asked: bool, device: torch.device) -> None:
    """Raises InputError for ``train.activation_offload`` without a GPU, whose memory alone it spares."""
    if asked and device.type == "cpu":
        message = "expected a GPU, from whose memory activations could be moved, found a CPU"
        fix = "leave it out; --train.gradient_checkpointing true saves memory on a CPU too"
        raise InputError(Problem(setting="train.activation_offload", message=message, fix=fix))


def offloading(asked: bool) -> AbstractContextManager[Any]:
    """Around a forward pass: tensors that are saved for the backward pass go to pinned main memory, and come back for it.

    Frozen and trained weights stay: torch's own ``save_on_cpu`` would move those that a product saves, in each layer of each step.
    """
    return _Offload() if asked else nullcontext()


def moves(tensor: torch.Tensor) -> bool:
    """Whether a tensor that is saved for the backward pass is kept elsewhere."""
    weight = tensor if tensor._base is None else tensor._base
    return not isinstance(weight, torch.nn.Parameter) and tensor.numel() >= SMALLEST


class _Offload(torch.autograd.graph.saved_tensors_hooks):
    """As ``torch.autograd.graph.save_on_cpu(pin_memory=True)``, but for weights and small tensors."""

    def __init__(self) -> None:
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        if not moves(tensor):
            return tensor
        pinned = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
        pinned.copy_(tensor)
        return tensor.device, pinned

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, pinned = packed
        found: torch.Tensor = pinned.to(device, non_blocking=pinned.is_pinned())
        return found
