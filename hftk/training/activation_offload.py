"""What the backward pass needs, kept in main memory in place of a GPU's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hftk.config import InputError, Problem

SMALLEST = 2**16
"""Elements below which a copy costs more than it spares."""


def check_device(asked: bool, device: torch.device) -> None:
    """Raises InputError for ``train.activation_offload`` without a GPU that has memory of its own."""
    if asked and device.type not in ("cuda", "xpu"):
        message = f"expected a GPU, from whose memory activations could be moved, found {device.type}"
        fix = "leave it out; --train.gradient_checkpointing true saves memory everywhere"
        raise InputError(Problem(setting="train.activation_offload", message=message, fix=fix))


def offloading(asked: bool, model: torch.nn.Module) -> AbstractContextManager[Any]:
    """Around a forward pass of ``model``: what is saved for the backward pass goes to pinned main memory, and
    comes back for it.

    Weights stay, and so do the copies in 16 bits that autocast makes of them: torch's own ``save_on_cpu``
    would move both in every layer of every step. Inputs that bitsandbytes' layers of 8 bits keep by
    themselves stay too.
    """
    return _Offload(weight_shapes(model)) if asked else nullcontext()


def weight_shapes(model: torch.nn.Module) -> set[tuple[int, ...]]:
    """Shapes of the matrices of a model, and of these turned over."""
    shapes = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    return shapes | {shape[::-1] for shape in shapes}


def moves(tensor: torch.Tensor, weights: set[tuple[int, ...]]) -> bool:
    """Whether a tensor that is saved for the backward pass is kept elsewhere; ``weights`` are
    :func:`weight_shapes`."""
    if tensor.numel() < SMALLEST or _is_weight(tensor) or tuple(tensor.shape) in weights:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.nbytes  # an expanded mask would grow on the way


def stays(tensor: torch.Tensor) -> torch.Tensor:
    """What to save of a tensor that does not move. Of one that an operation has made, not the tensor itself:
    an operation that saves its own output, such as tanh, would be in a cycle that no collector sees."""
    return tensor if _is_weight(tensor) else tensor.detach()


def _is_weight(tensor: torch.Tensor) -> bool:
    return isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter)


class _Offload(torch.autograd.graph.saved_tensors_hooks):
    """As ``torch.autograd.graph.save_on_cpu(pin_memory=True)``, but for what does not move."""

    def __init__(self, weights: set[tuple[int, ...]]) -> None:
        super().__init__(self._pack, self._unpack)
        self._weights = weights

    def _pack(self, tensor: torch.Tensor) -> Any:
        if not moves(tensor, self._weights):
            return stays(tensor)
        pinned = torch.empty(
            tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda
        )
        pinned.copy_(tensor)
        return tensor.device, pinned

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, pinned = packed
        found: torch.Tensor = pinned.to(device, non_blocking=pinned.is_pinned())
        return found
