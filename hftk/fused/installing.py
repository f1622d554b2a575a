"""Put fused layers into a model for as long as it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from hftk.choices import note
from hftk.config import InputError, Problem
from hftk.fused import building, layers

STEPS = 1000
"""Steps of a run from which on compiling is worth its time."""


class _State:
    ops: Any = None
    """The operators, while a model is trained with them."""


def active() -> Any:
    """The operators of ``kernels.cpp`` while fused layers are in place, else None."""
    return _State.ops


def chosen(asked: str, model: nn.Module, *, device: torch.device, precision: str, steps: int, other: str = "") -> AbstractContextManager[Any]:
    """:func:`fused_layers` for a training of ``steps`` steps, where ``train.fused_layers`` (``asked``) and the run allow it, else nothing.

    ``other`` is what else the run has that does not go together with them.

    Raises:
        InputError: they are asked for and not possible.
    """
    if asked == "never" or (asked == "auto" and steps < STEPS):
        return nullcontext()
    why = other
    if device.type != "cpu":
        why = f"they are for CPUs, and this run is on {device.type}"
    elif precision != "fp32":
        why = f"they compute in fp32, and this run in {precision}"
    elif not why and next(layers.replacements(model, None, active, layers.Biases()), None) is None:
        why = f"{type(model).__name__} has no layer that they could stand in for (T5, BART and their like have, unless adapted, quantized or hooked)"
    if not why:
        try:
            building.library()
        except building.Unavailable as error:
            why = str(error)
            if asked == "auto":
                note(f"train.fused_layers: none, {why}")
    if why and asked == "always":
        raise InputError(Problem(setting="train.fused_layers", message=f"fused layers are not possible here: {why}", fix="leave out --train.fused_layers always"))
    return nullcontext() if why else fused_layers(model)


@contextmanager
def fused_layers(model: nn.Module) -> Iterator[None]:
    """Inside, layers of ``model`` are fused ones: Marian, BART, mBART, M2M100 and NLLB, Pegasus, T5 and mT5, on a CPU in float32.

    Weights and gradients are those of the model's own layers, up to rounding; dropout drops other elements, with
    the same probability. What happens without gradients runs as ever.

    Raises:
        Unavailable: they could not be compiled.
    """
    ops, biases = building.library(), layers.Biases()
    put = []
    for layer, forward in list(layers.replacements(model, ops, active, biases)):
        put.append(layer)
        layer.forward = forward
    before, _State.ops = _State.ops, ops
    note(f"train.fused_layers: {len(put)} layers have compiled forward and backward passes")
    try:
        yield
    finally:
        _State.ops = before
        biases.forget()
        for layer in put:
            vars(layer).pop("forward", None)


@contextmanager
def paused() -> Iterator[None]:
    """Inside, every module runs by itself, for those who look at what it gives."""
    before, _State.ops = _State.ops, None
    try:
        yield
    finally:
        _State.ops = before
