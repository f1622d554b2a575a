"""One model on several GPUs of one process (``model.device_map``), by the hooks of accelerate.

Each GPU holds some of the layers, and a batch goes through them in turn: one GPU computes while the others
wait. So this is for a model that does not fit one GPU; one that does is trained faster by a process for each
GPU.

The weights are read into main memory as always, so that new ones are the same numbers with and without a map,
and go to the GPUs then. Only quantized ones are placed by ``from_pretrained``, since bitsandbytes quantizes
them on the GPU that keeps them.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from hftk.config.problems import InputError, Problem
from hftk.console import note
from hftk.launch import strategies, use_all_gpus
from hftk.launch.exits import processes

SETTING = "model.device_map"
USABLE = 0.9
"""Share of a GPU's free memory that weights may take: the rest is for activations."""
ENOUGH = 2**62
"""Bytes; what is placed stands in main memory already, so that there is room for it."""
OFFLOADED = ("cpu", "disk")


def gpus() -> int:
    """GPUs that this process may use."""
    cpu_asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return 0 if cpu_asked or not torch.cuda.is_available() else torch.cuda.device_count()


def free_memory() -> int:
    """Bytes that are free on all GPUs together."""
    return sum(int(torch.cuda.mem_get_info(number)[0]) for number in range(gpus()))


def room() -> dict[int, int]:
    """GPU to the bytes that weights may take there."""
    return {number: int(USABLE * torch.cuda.mem_get_info(number)[0]) for number in range(gpus())}


def is_needed(how: str, *, training: bool) -> bool:
    """Whether ``model.device_map`` has something to do here: several GPUs, or one from which a judged model
    may overflow.

    Raises:
        InputError: the weights are for several processes.
    """
    if how == "none":
        return False
    problem = strategies.device_map_problem(how, processes())
    if problem is not None:
        raise InputError(problem)
    use_all_gpus()
    found = gpus()
    if found > 1 or (found == 1 and not training):
        return True
    note(
        f"{SETTING} {how}: there is {'one GPU' if found else 'no GPU'}, so that all weights are"
        f" {'on it' if found else 'on the CPU'}"
    )
    return False


def arguments(how: str, *, training: bool) -> dict[str, Any]:
    """What ``from_pretrained`` is told of the places of quantized weights."""
    return {"device_map": how} if is_needed(how, training=training) else {}


@contextmanager
def told(places: Mapping[str, Any]) -> Iterator[None]:
    """Around ``from_pretrained`` with :func:`arguments`: weights that overflow are said in the words of
    :func:`too_large`."""
    try:
        yield
    except (
        ValueError
    ) as error:  # transformers (5.23) names its own settings, none of which are to be had here
        if not places or "dispatched on the CPU" not in str(error):
            raise
        raise too_large("more", room(), "no quantized weights can be") from error


def spread(model: Any, how: str, *, training: bool) -> None:
    """Place a transformers model, which stands in main memory, on the GPUs; nothing without them.

    What is judged alone may stay in main memory as far as the GPUs cannot hold it: it is copied there and
    back in each forward pass.

    Raises:
        InputError: weights for training do not fit the GPUs; several processes.
    """
    if not is_needed(how, training=training):
        return
    dispatch(model, device_map(model, how, room(), training=training))
    tell(model)


def device_map(model: Any, how: str, memory: Mapping[int, int], *, training: bool) -> dict[str, str]:
    """Name of a part of the model to its device: cuda:0, cuda:1 ..., or cpu for what only a judged model may
    leave there.

    ``memory`` is GPU to bytes that weights may take there. auto and balanced fill the GPUs evenly, sequential
    one after the other.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = _never_cut(model)
    most: dict[Any, Any] = dict(memory) if training else {**memory, "cpu": ENOUGH}
    if how != "sequential":
        most = get_balanced_memory(model, most, no_split_module_classes=whole)
    found = infer_auto_device_map(model, max_memory=most, no_split_module_classes=whole)
    if "disk" in found.values() or (training and "cpu" in found.values()):
        raise too_large(f"{sum(p.nbytes for p in model.parameters()) / 1e9:.2f} GB", memory)
    return {name: f"cuda:{place}" if isinstance(place, int) else str(place) for name, place in found.items()}


def _never_cut(model: Any) -> list[str]:
    """Classes of modules that one device holds whole: layers, which not every model names (Marian does not),
    and what PEFT has put around one."""
    layers = {
        type(layer).__name__ for m in model.modules() if isinstance(m, torch.nn.ModuleList) for layer in m
    }
    wrappers = {
        type(m).__name__ for m in model.modules() if hasattr(m, "base_layer") or hasattr(m, "modules_to_save")
    }
    return sorted({*(getattr(model, "_no_split_modules", None) or ()), *layers, *wrappers})


def too_large(size: str, memory: Mapping[int, int], why: str = "it cannot be trained") -> InputError:
    """The error for weights that have to be on GPUs, and of which some would be in main memory or on the
    disk."""
    message = (
        f"expected weights that fit the GPUs, found {size} for the {sum(memory.values()) / 1e9:.2f} GB that"
        f" weights may take on {len(memory)} GPU{'s' if len(memory) > 1 else ''}; the rest would be in main"
        f" memory, where {why}"
    )
    fix = (
        "see what a run needs: hftk plan RECIPE; smaller weights: --model.quantization.bits 4"
        " --model.adapter.method lora, or --model.dtype bfloat16 --model.adapter.method lora; or share them"
        " out by accelerate launch --config_file recipes/accelerate/fsdp2.yaml"
    )
    return InputError(Problem(setting=SETTING, message=message, fix=fix))


def dispatch(model: Any, places: Mapping[str, str], main: Any = None) -> None:
    """Move each part of ``model`` to its place, and have inputs follow. ``main`` gets what comes in; default:
    the first GPU."""
    from accelerate import dispatch_model

    if main is None:
        main = next((place for place in places.values() if place not in OFFLOADED), "cpu")
    skipped: Any = getattr(model, "_skip_keys_device_placement", None)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The following device_map keys"
        )  # a buffer of its own, such as final_logits_bias
        dispatch_model(model, dict(places), main_device=main, skip_keys=skipped)


def mend(model: Any) -> None:
    """Give a spread model its forward pass back: accelerate (1.15), which takes off its own wrapper of fp16
    after training, takes the hook below it for a function of the class and hands it the model twice."""
    forward = vars(model).get("forward")
    if isinstance(forward, MethodType) and isinstance(forward.__func__, functools.partial):
        model.forward = forward.__func__


def placed(model: Any) -> None:
    """Note where :func:`arguments` have had weights put. transformers (5.23) leaves no map where one device
    took them all, and without one they would be placed once more."""
    if not places(model):
        model.hf_device_map = {"": str(model.device)}
    tell(model)


def tell(model: Any) -> None:
    """Note which device holds how much."""
    held: dict[str, int] = {}
    for weight in model.parameters():
        place = "in main memory" if weight.is_meta else f"on {weight.device}"
        held[place] = held.get(place, 0) + weight.nbytes
    note(f"{SETTING}: {', '.join(f'{size / 1e9:.2f} GB {place}' for place, size in held.items())}")


def places(model: Any) -> set[Any]:
    """The devices that a map names; empty for a model without one, which is on a single device."""
    return set((getattr(model, "hf_device_map", None) or {}).values())


def is_spread(model: Any) -> bool:
    """Whether the layers are on several devices."""
    return len(places(model)) > 1


def is_offloaded(model: Any) -> bool:
    """Whether some weights are in main memory, and on a GPU only while their layer computes."""
    found = places(model)
    return bool(found & set(OFFLOADED)) and not found <= set(OFFLOADED)


def device_of(model: Any) -> torch.device:
    """Where inputs go, and where logits come out."""
    hook = getattr(model, "_hf_hook", None)
    main = getattr(hook, "execution_device", None) if is_spread(model) else None
    if main is None:
        found: torch.device = model.device
        return found
    return torch.device("cuda", main) if isinstance(main, int) else torch.device(main)
