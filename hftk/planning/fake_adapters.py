"""A model without memory for its weights, with the frozen, quantized and added weights that the run would
have."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hftk.config import InputError, ModelConfig, Problem, QuantizationConfig
from hftk.models import layers
from hftk.models.heads import head_layers, linear_layers
from hftk.models.quantization import halve_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
    "SequenceClassification": "SEQ_CLS",
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}
"""End of an auto class's name to PEFT's name for the task, by which it finds the head."""
SCALE_BYTES = {8: lambda rows, size: 4 * rows, 4: lambda rows, size: size // 64 + size // 4096}
"""Bits to the bytes of the scales beside a (rows, columns) weight of so many elements: a float32 for each row
of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339); 8 bits for each 64 weights and a float32 for each 256 of
these with QLoRA's double quantization (arXiv:2305.14314)."""


def adapt(model: PreTrainedModel, config: ModelConfig, auto_model: str) -> Any:
    """Quantize and freeze what ``config`` says and add its adapter; the model itself where it says nothing.

    Raises:
        InputError: PEFT is not installed; the adapter has no place in this model.
    """
    bits = getattr(getattr(config, "quantization", None), "bits", None)
    adapter = getattr(config, "adapter", None)
    method = getattr(adapter, "method", "none")
    if bits is not None:
        _quantize(model, config.quantization)
    if config.frozen:
        layers.freeze(config.frozen, model)
    if method == "none":
        return model
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            Problem(
                setting="model.adapter.method",
                message="adapters need PEFT, which is not installed",
                fix='pip install "hftk[peft]"',
            )
        )
    import peft

    task_type = next((name for end, name in TASK_TYPES.items() if auto_model.endswith(end)), None)
    with _where_they_are():
        return peft.get_peft_model(
            model, _peft_config(adapter, method, task_type, quantized=bits is not None)
        )


@contextmanager
def _where_they_are() -> Iterator[None]:
    """PEFT moves each new layer to the device and type of the one it belongs to, which weights without memory
    cannot do and need not: they are on one device, and PEFT keeps an adapter in float32 in the end."""
    found = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.to = found  # type: ignore[method-assign]


def _peft_config(adapter: Any, method: str, task_type: str | None, *, quantized: bool) -> Any:
    """PEFT's settings of the same size: where an adapter starts changes no byte."""
    import peft

    targets = getattr(adapter, "targets", None)
    if method == "ia3":
        return peft.IA3Config(task_type=task_type, target_modules=targets)
    if method == "prompt_tuning":
        tokens = getattr(adapter, "virtual_tokens", None) or 16
        return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=tokens)
    rank = getattr(adapter, "rank", None) or 8
    if isinstance(targets, list) and targets == ["all-linear"]:
        targets = None
    dora = (
        method == "dora" and not quantized
    )  # of quantized weights it takes the norms one layer at a time, and keeps nothing
    return peft.LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=getattr(adapter, "alpha", None) or 2 * rank,
        target_modules=targets or "all-linear",
        lora_dropout=getattr(adapter, "dropout", None) or 0.0,
        use_dora=dora,
    )


class QuantizedLinear(torch.nn.Linear):
    """Holds and computes in as many bytes as bitsandbytes' linear layer does on a CPU, with any numbers. On a
    GPU that of 8 bits needs a little less: it does not de-quantize the weight in the forward pass."""

    def __init__(self, inputs: int, outputs: int, bias: torch.Tensor | None, bits: int) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = inputs, outputs, bits
        size = inputs * outputs
        packed: Any = torch.nn.Parameter(
            torch.empty(size * bits // 8, dtype=torch.uint8), requires_grad=False
        )
        packed.weights_held = size
        self.weight = packed
        self.register_buffer("scales", torch.empty(SCALE_BYTES[bits](outputs, size), dtype=torch.uint8))
        self.register_parameter(
            "bias", None if bias is None else torch.nn.Parameter(bias.detach(), requires_grad=False)
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Product.apply(input, self.out_features, self.bits, self.bias)
        return out


class _Product(torch.autograd.Function):
    """The product with a weight that is de-quantized for it, forward and backward, and let go. With 8 bits
    the input is kept too."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, outputs: int, bits: int, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.outputs, ctx.inputs, ctx.held = outputs, input.shape[-1], input if bits == 8 else None
        weight = input.new_empty(outputs, input.shape[-1])
        if bits == 8:
            weight.mul_(input.new_empty(outputs, 1).mul(1 / 127))
        return torch.nn.functional.linear(input, weight, None if bias is None else bias.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,) = grads
        weight = grad.new_empty(ctx.outputs, ctx.inputs)
        return grad @ weight, None, None, None


def _quantize(model: PreTrainedModel, quantization: QuantizationConfig) -> None:
    """Replace linear layers (GPT-2's Conv1D too) but for those that transformers leaves as they are in a run,
    and freeze all weights."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    assert quantization.bits is not None
    kept = [
        *head_layers(model),
        *quantization.skip_modules,
        *(model._keep_in_fp32_modules or ()),
    ]  # of T5: wo
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    linear: dict[str, Any] = dict(linear_layers(model))
    for name, module in linear.items():
        if not should_convert_module(name, kept):
            continue
        inputs, outputs = (
            module.weight.shape if type(module).__name__ == "Conv1D" else module.weight.shape[::-1]
        )
        parent, _, last = name.rpartition(".")
        low = QuantizedLinear(int(inputs), int(outputs), module.bias, quantization.bits)
        setattr(model.get_submodule(parent), last, low)
    halve_embeddings(model)
