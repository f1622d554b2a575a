"""The layers of a model from below: which weights lie how deep, and freezing the lower ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hftk.config.problems import Problem
from hftk.console import note
from hftk.models.quantization import count

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMBEDDINGS = "embeddings"


def _stacks(model: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """Name to each stack of layers: a ``ModuleList`` that is in no other one, from below."""
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(
            name.startswith(f"{other}.") for other in found
        ):
            found[name] = module
    return found


def layer_classes(model: Any) -> list[str]:
    """Names of the classes of which the model's layers are: the parts that FSDP gathers one after the other.

    What transformers names for it, without embeddings: accelerate (1.15) makes a part of those itself, and
    fails where they are inside of another one, as in BERT.
    """
    embeddings = model.get_input_embeddings()
    named = set(getattr(model, "_no_split_modules", None) or ())
    parts = [module for module in model.modules() if type(module).__name__ in named]
    around = {type(part).__name__ for part in parts if any(inner is embeddings for inner in part.modules())}
    found = {type(part).__name__ for part in parts} - around
    return sorted(found or {type(layer).__name__ for stack in _stacks(model).values() for layer in stack})


def depths(model: torch.nn.Module) -> tuple[dict[str, int], int]:
    """Name of each parameter to its depth, and the number of layers.

    0: embeddings; 1 to N: the layers, those of an encoder below those of its decoder; N + 1: what comes after
    them, such as heads and the last norm. What stands between the layers of an encoder and a decoder counts
    to the layer before it.
    """
    stacks: dict[str, int] = {}  # prefix of a layer's parameters to its depth
    for name, stack in _stacks(model).items():
        stacks.update({f"{name}.{index}.": len(stacks) + index + 1 for index in range(len(stack))})
    tables = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    found: dict[str, int] = {}
    passed = 0
    for name, _ in model.named_parameters():
        depth = next((depth for prefix, depth in stacks.items() if name.startswith(prefix)), None)
        if depth is not None:
            passed = max(passed, depth)
        elif name.rpartition(".")[0] in tables:
            depth = 0
        else:
            depth = passed if passed < len(stacks) else len(stacks) + 1
        found[name] = depth
    return found, len(stacks)


def _chosen(model: torch.nn.Module, wanted: str) -> set[str]:
    """Names of the parameters that one entry of ``model.frozen`` means."""
    if wanted == EMBEDDINGS or wanted.isdecimal():
        found, _ = depths(model)
        return {
            name for name, depth in found.items() if depth <= (0 if wanted == EMBEDDINGS else int(wanted))
        }
    return {name for name, _ in model.named_parameters() if f".{wanted}." in f".{name}."}


def find_problems(frozen: Sequence[str], model: PreTrainedModel) -> Iterator[Problem]:
    """What is wrong with ``model.frozen`` for this model, which may be on the meta device."""
    _, layers = depths(model) if frozen else ({}, 0)
    chosen: set[str] = set()
    for wanted in frozen:
        if wanted.isdecimal() and int(wanted) > layers:
            yield Problem(
                setting="model.frozen",
                message=f"expected at most {layers}, the layers of {type(model).__name__}, found {wanted}",
            )
            continue
        found = _chosen(model, wanted)
        chosen |= found
        if not found:
            parts = dict.fromkeys(".".join(name.split(".")[:3]) for name, _ in model.named_parameters())
            message = (
                f"no weight of {type(model).__name__} is called {wanted}; there are"
                f" {', '.join(list(parts)[:12])}"
            )
            yield Problem(
                setting="model.frozen",
                message=message,
                fix="use embeddings, a number of lower layers, or a part of such a name",
            )
    if chosen and chosen == {name for name, _ in model.named_parameters()}:
        yield Problem(
            setting="model.frozen",
            message=f"nothing of {type(model).__name__} is left to train",
            fix="freeze less",
        )


def freeze(frozen: Sequence[str], model: torch.nn.Module) -> None:
    """Let the weights that ``model.frozen`` names stay as they are."""
    if not frozen:
        return
    names = set().union(*(_chosen(model, wanted) for wanted in frozen))
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
    share = 100 * count(model, trained=True) / count(model)
    note(f"frozen: {', '.join(frozen)}; {share:.3g} % of the parameters are trained")
