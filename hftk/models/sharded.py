"""Weights that are spread over processes (FSDP2, DeepSpeed ZeRO-3): found, counted, gathered and changed.

A weight of FSDP2 is a ``DTensor`` between the passes, and a plain tensor while its layer is whole; one of
ZeRO-3 is empty, with its true shape beside it. Whoever reads or writes a weight outside of a forward pass has
to come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def is_sharded(model: Any) -> bool:
    """Whether weights are spread over processes, which then meet in every forward pass."""
    return _is_fsdp(model) or any(
        hasattr(p, "full_tensor") or hasattr(p, "ds_id") for p in model.parameters()
    )


def size(parameter: torch.Tensor) -> int:
    """Elements of the whole weight, over all processes."""
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def shape(parameter: torch.Tensor) -> torch.Size:
    """The shape of the whole weight."""
    whole: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return whole


def class_name(model: Any) -> str:
    """The name of the model's class; FSDP2 puts an ``FSDP`` before it."""
    return type(model).__name__.removeprefix("FSDP" if _is_fsdp(model) else "")


def compute_dtype(model: Any) -> torch.dtype:
    """The type in which a forward pass has the weights: that in which FSDP2 gathers them, else their own."""
    policy = getattr(model._get_fsdp_state(), "_mp_policy", None) if _is_fsdp(model) else None
    dtype: torch.dtype = getattr(policy, "param_dtype", None) or model.dtype
    return dtype


def gather(model: Any, *, trained: bool = False) -> dict[str, torch.Tensor] | None:
    """The whole weights by name, on the CPU of the main process alone: the others get {}. None where nothing
    is sharded.

    One weight at a time is whole on the other devices; tied weights stay one. All processes call this. With
    ``trained`` the frozen ones are left out, such as all below an adapter.
    """
    if not is_sharded(model):
        return None
    _reshard(model)
    is_main = torch.distributed.get_rank() == 0
    found: dict[str, torch.Tensor] = {}
    seen: dict[int, torch.Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if trained and isinstance(weight, torch.nn.Parameter) and not weight.requires_grad:
            continue
        if id(weight) not in seen:
            with _whole_zero3([weight]), torch.no_grad():
                whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
                seen[id(weight)] = whole.detach().to("cpu", copy=True) if is_main else torch.empty(0)
        if is_main:
            found[name] = seen[id(weight)]
    return found


@contextmanager
def gathered_for_update(module: torch.nn.Module, model: Any) -> Iterator[None]:
    """Inside, in-place operations on the weights of ``module``, a part of ``model``, reach every process's
    share of them.

    All processes come here and do the same, element by element.
    """
    _reshard(model)
    with _whole_zero3(list(module.parameters()), change=True):
        yield


@contextmanager
def whole_models() -> Iterator[None]:
    """Inside, new models are whole while ZeRO-3 runs too: transformers shards every one, and one process
    alone cannot."""
    from transformers.integrations import deepspeed

    running = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = running


@contextmanager
def _whole_zero3(weights: list[torch.Tensor], *, change: bool = False) -> Iterator[None]:
    """Inside, weights of ZeRO-3 are whole on every process; with ``change`` the main one's are kept."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(weights, modifier_rank=0 if change else None):
        yield


def _reshard(model: Any) -> None:
    """Give up what layers have gathered and kept: copies, in which a change would be lost."""
    for part in model.modules():
        if _is_fsdp(part):
            part.reshard()


def _is_fsdp(module: Any) -> bool:
    return callable(getattr(module, "reshard", None)) and callable(getattr(module, "unshard", None))
