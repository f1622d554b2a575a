"""Weights in 8 or 4 bits by bitsandbytes: what is quantized, and how the rest is held.

Linear layers inside the base model are quantized. Heads (whatever makes the logits, poolers, new layers) stay
in float32. The table of word embeddings, often the largest single weight of a small model, and an output
layer of the same size are kept in bfloat16 and used in float32: without that a model of 135M parameters in 8
bits would take 0.41 instead of 0.30 of its size.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from hftk.config.model import QuantizationConfig
from hftk.config.problems import Problem
from hftk.models import sharded
from hftk.models.heads import head_layers, linear_layers
from hftk.models.precision import cpu_has_bf16

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def find_problems(config: QuantizationConfig, model: PreTrainedModel) -> Iterator[Problem]:
    """What is wrong with the settings for this model, which may be on the meta device."""
    if config.bits is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        message = f"{config.bits} bits come from bitsandbytes, which is not installed"
        yield Problem(
            setting="model.quantization.bits",
            message=message,
            fix='pip install "hftk[quantize]", or leave it out',
        )
    layers = linear_layers(model)
    for wanted in config.skip_modules:
        if not any(
            name == wanted or name.endswith(f".{wanted}") or name.startswith(f"{wanted}.") for name in layers
        ):
            message = (
                f"expected the name of a layer, found {wanted}; there are {', '.join(list(layers)[:12])} ..."
            )
            yield Problem(
                setting="model.quantization.skip_modules",
                message=message,
                fix="name one of these, or its end or beginning",
            )
    if not set(layers) - set(head_layers(model)):
        message = f"{type(model).__name__} has no linear layer that could be quantized"
        yield Problem(setting="model.quantization.bits", message=message, fix="leave it out")


def bitsandbytes_config(config: QuantizationConfig, model: PreTrainedModel) -> BitsAndBytesConfig:
    """The settings for ``from_pretrained``; ``model`` is the same one on the meta device."""
    from transformers import BitsAndBytesConfig

    # bitsandbytes (0.50) warns in every forward pass of every layer that 8-bit products take float16 in.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # Given any names, transformers leaves out its own guess of what has to stay; ours includes it.
    skipped = [*head_layers(model), *config.skip_modules]
    if config.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant_type or "nf4",
        bnb_4bit_use_double_quant=config.double_quant is not False,
        bnb_4bit_compute_dtype=compute_dtype(config),
        llm_int8_skip_modules=skipped,
    )


def compute_dtype(config: QuantizationConfig) -> torch.dtype:
    """Type of the products with 4-bit weights; from the hardware's features alone, so that a continued run
    computes the same."""
    if config.compute_dtype != "auto":
        named: torch.dtype = getattr(torch, config.compute_dtype)
        return named
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


class WideningLinear(torch.nn.Linear):
    """A linear layer that is held in bfloat16 and computes in the type of its input."""

    is_projection = (
        True  # nothing but a product with its weight, for a loss that does without the whole logits
    )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return torch.nn.functional.linear(input, self.weight.to(input.dtype), bias)


def dequantized(layer: Any, like: torch.nn.Module) -> torch.Tensor:
    """The weight of a quantized layer in float32, as ``like``, the layer before it was quantized, lays it
    out."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight = dequantize_module_weight(layer).float()
    return weight.T if isinstance(like, Conv1D) else weight


@torch.no_grad()
def round_like(quantized: PreTrainedModel, model: PreTrainedModel) -> None:
    """Give ``model`` the weights that ``quantized``, the same one in 8 or 4 bits, has rounded."""
    for name, layer in quantized.named_modules():
        if is_quantized(getattr(layer, "weight", None)):
            whole: Any = model.get_submodule(name)
            whole.weight.copy_(dequantized(layer, whole))


def halve_embeddings(model: PreTrainedModel) -> None:
    """Hold the word embeddings and the output layer over the vocabulary in bfloat16, in place; what comes out
    stays float32.

    Both are frozen below an adapter. Positions and other small tables stay as they are.
    """
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Any = getattr(layer, "weight", None)
        if weight is None or weight.dtype != torch.float32:
            continue
        users = [module for module in model.modules() if getattr(module, "weight", None) is weight]
        if not all(isinstance(user, torch.nn.Embedding) or type(user) is torch.nn.Linear for user in users):
            continue
        weight.data = weight.data.to(torch.bfloat16)
        for user in users:
            if isinstance(user, torch.nn.Embedding):
                user.register_forward_hook(_widen)
            else:
                user.__class__ = WideningLinear
                if "_old_forward" in vars(
                    user
                ):  # accelerate's hooks (model.device_map) have kept the method of the class before
                    user._old_forward = WideningLinear.forward.__get__(user)


def _widen(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def keep_layout(model: PreTrainedModel) -> None:
    """Keep 4-bit weights as they were loaded, in place.

    On processors with AVX512_BF16, bitsandbytes (0.50) repacks them in the first evaluation: the product with
    repacked weights has no gradient, so that training after an evaluation fails or leaves out the layers
    below, and dequantizing reads the wrong shape.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def detach_from_mmap(model: PreTrainedModel) -> None:
    """Copy the weights that are not quantized, in place: as views of the mapped file they would keep all of
    it in memory."""
    for parameter in model.parameters():
        if not is_quantized(parameter) and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def is_quantized(weight: Any) -> bool:
    """Whether bitsandbytes holds this weight in 8 or 4 bits."""
    return type(weight).__name__ in (
        "Int8Params",
        "Params4bit",
    )  # of 8 bits the scales move to the layer in its first forward pass


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of all weights, tied ones once, and of the scales of quantized ones."""
    total = 0
    for parameter in model.parameters():
        total += sharded.size(parameter) * parameter.element_size()
        state = getattr(parameter, "quant_state", None)  # 4 bits
        scales = [getattr(parameter, "SCB", None), getattr(state, "absmax", None)]  # 8 bits; 4 bits
        scales += [getattr(getattr(state, "state2", None), "absmax", None)]
        total += sum(
            scale.numel() * scale.element_size() for scale in scales if isinstance(scale, torch.Tensor)
        )
    return total


def count(model: torch.nn.Module, *, trained: bool = False) -> int:
    """Number of weights (of the trained ones alone); one of 4 bits is held in half a byte and counts as
    one."""

    def size(parameter: torch.nn.Parameter) -> int:
        state = getattr(parameter, "quant_state", None)
        return int(state.shape.numel()) if state is not None else sharded.size(parameter)

    return sum(size(p) for p in model.parameters() if p.requires_grad or not trained)
