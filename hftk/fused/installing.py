"""Put fused layers into a model for as long as it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from hftk.config import InputError, Problem
from hftk.console import note
from hftk.fused import building, stacks

STEPS = 1000
"""Steps of a run from which on compiling is worth its time."""


class _State:
    ops: Any = None
    """The operators, while a model is trained with them."""
    step = stacks.Step()


def active() -> Any:
    """The operators of ``kernels`` while fused layers are in place, else None."""
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
    elif not why and next(stacks.stacks(model, None, active, stacks.Step()), None) is None:
        why = f"{type(model).__name__} has no encoder or decoder that they could stand in for (T5, BART and their like have, unless a layer is adapted, quantized or hooked)"
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
    """Inside, encoders and decoders of ``model`` run fused layers: Marian, BART, mBART, M2M100 and NLLB, Pegasus, T5 and mT5, on a CPU in float32.

    Outputs and gradients are those of the model's own layers, up to rounding; dropout drops other elements, with
    the same probability, and what is given for padding is 0. What happens without gradients runs as ever. Parameters have to
    stay the same objects, and what is hooked to a layer from now on is not called.

    Raises:
        Unavailable: they could not be compiled.
    """
    ops, step = building.library(), stacks.Step()
    before = _State.ops, _State.step
    put = []
    for module, forward in list(stacks.stacks(model, ops, active, step)):
        put.append(module)
        module.forward = forward
    _State.ops, _State.step = ops, step
    names = " and ".join(dict.fromkeys(type(module).__name__ for module in put))
    note(f"train.fused_layers: compiled forward and backward passes, without padding, in {names}")
    try:
        yield
    finally:
        _State.ops, _State.step = before
        for module in put:
            vars(module).pop("forward", None)


class Looked(NamedTuple):
    """What the loss over the vocabulary is made of."""

    states: torch.Tensor
    """(tokens, width) in front of the projection."""
    labels: torch.Tensor
    """(tokens,) the targets of its logits; -100 does not count."""
    weight: torch.Tensor
    """(vocabulary, width) of the projection."""
    gradient: torch.Tensor | None
    """Where its gradient is to be put: tied embeddings add theirs to it in the backward pass."""


def looked_at(labels: torch.Tensor, projection: torch.Tensor, states: Callable[[], torch.Tensor]) -> Looked:
    """What the loss over the vocabulary needs of ``states()``, (rows, positions, width) in front of the ``projection`` with this weight.

    A decoder may leave out what stands behind the last of the (rows, positions) ``labels`` of a row that is not -100."""
    step = _State.step
    step.labels, step.projection = labels, projection
    try:
        found = states()
        weight, gradient = step.tied or (projection, None)
        if step.decoded is None or step.decoded[0] is not found:
            return Looked(found.flatten(0, 1), labels.flatten(), weight, gradient)
        return Looked(step.decoded[2], step.decoded[1].packed(labels), weight, gradient)
    finally:
        step.forget()


@contextmanager
def paused() -> Iterator[None]:
    """Inside, every module runs by itself, for those who look at what it gives."""
    before, _State.ops = _State.ops, None
    try:
        yield
    finally:
        _State.ops = before
