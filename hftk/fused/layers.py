"""Which layers of transformers are made of which blocks of ``kernels.cpp``, and when a block may stand in for them."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

MOST_SCORES = 128 * 128
"""Queries times keys beyond which torch's own attention, which keeps no scores, is the better one."""
BART_LIKE = {"Bart": False, "Marian": False, "MBart": True, "M2M100": True, "Pegasus": True}
"""Prefix of the classes of an encoder-decoder to whether its norms come before."""
T5_LIKE = ("T5", "MT5")
RMS_NORMS = ("T5LayerNorm", "MT5LayerNorm")
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
"""In the order of ``enum Activation``."""
ACTIVATION_OF = {
    "ReLU": "relu", "GELUActivation": "gelu", "NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "SiLU": "silu", "SiLUActivation": "silu",
}  # fmt: skip
"""Class of an activation of transformers to one of :data:`ACTIVATIONS`."""

Forward = Callable[..., Any]


class Biases:
    """What is added to the scores of attention: the position bias, and the lowest number where a mask is False.

    The layers of a model hand on the same mask, so that the last few are kept.
    """

    def __init__(self) -> None:
        self._last: list[tuple[Any, Any, torch.Tensor]] = []

    def of(self, mask: torch.Tensor | None, position_bias: torch.Tensor | None, shape: tuple[int, int, int, int]) -> torch.Tensor | None:
        """``shape`` is (batch, heads, queries, keys), to which the bias is expanded."""
        if mask is None:
            return None if position_bias is None else position_bias.contiguous().expand(shape)
        for known_mask, known_bias, made in self._last:
            if known_mask is mask and known_bias is position_bias and made.shape == shape:
                return made
        lowest = torch.finfo(torch.float32).min
        if mask.dtype == torch.bool:
            bias = torch.where(mask, 0.0 if position_bias is None else position_bias, lowest)
        else:
            bias = mask if position_bias is None else mask + position_bias
        bias = bias.contiguous().expand(shape)  # the kernel goes along the keys number by number
        self._last = [*self._last[-2:], (mask, position_bias, bias)]
        return bias

    def forget(self) -> None:
        """Hold no graph of a step that is over."""
        self._last = []


def replacements(model: nn.Module, ops: Any, active: Callable[[], Any], biases: Biases) -> Iterator[tuple[nn.Module, Forward]]:
    """Each layer of ``model`` that a block may stand in for, with the forward that it gets; it runs its own where ``active`` is false."""
    for layer in model.modules():
        name = type(layer).__name__
        for make, names in _MAKERS if _of_transformers(layer) else ():
            if name in names and (fused := make(layer, ops, biases, names[name])) is not None:
                yield layer, _either(layer, fused, active)


def _either(layer: nn.Module, fused: Forward, active: Callable[[], Any]) -> Forward:
    """The fused forward, or the layer's own where the fused one gives NotImplemented. It is a method, so that a copy of the layer
    has one of its own, which runs what its class says."""

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        if self is layer and active() is not None and torch.is_grad_enabled():
            made = fused(*arguments, **named)
            if made is not NotImplemented:
                return made
        return type(self).forward(self, *arguments, **named)

    return types.MethodType(forward, layer)


# When a block may stand in ----------------------------------------------------------------------------------------------


def _plain(*modules: nn.Module) -> bool:
    """Whether these are what their classes say: float32 on a CPU, not adapted, not quantized, and nothing hooked to them.

    What holds weights of its own or is asked for them has to be of a known class: an adapter hands on the weight of what it adapts.
    """
    for module in modules:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hooks) or "forward" in vars(module) or not _of_transformers(module):
            return False
        if hasattr(module, "weight") and type(module) not in (nn.Linear, nn.LayerNorm) and type(module).__name__ not in RMS_NORMS:
            return False
        for weight in module.parameters(recurse=False):
            if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or weight.device.type != "cpu":
                return False
    return True


def _of_transformers(module: nn.Module) -> bool:
    """Whether its class is torch's or transformers' own, and not one of the same name."""
    return type(module).__module__.startswith(("torch.nn.modules.", "transformers.models."))


def _usual(x: torch.Tensor, memory: torch.Tensor | None, mask: Any, others: dict[str, Any]) -> bool:
    """Whether the call is one of training in float32 on short sequences, of which nothing but the output is wanted."""
    keys = x.shape[1] if memory is None else memory.shape[1]
    if mask is not None and not (isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[-1] == keys):
        return False
    if not x.numel() or not keys or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or x.shape[1] * keys > MOST_SCORES:
        return False
    return not any(value is not None and value is not False for name, value in others.items() if name != "use_cache")


def _activation(module: Any) -> int | None:
    name = ACTIVATION_OF.get(type(module).__name__)
    if name is None or (name == "gelu" and getattr(module, "act", None) is not nn.functional.gelu):
        return None
    return ACTIVATIONS.index(name)


# BART and its like ------------------------------------------------------------------------------------------------------


def _bart_attention(layer: Any, attention: Any, norm: nn.LayerNorm, ops: Any, biases: Biases, before: bool) -> Forward:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    weights = (*(p.weight for p in parts), *(p.bias for p in parts), norm.weight, norm.bias)

    def block(x: torch.Tensor, memory: torch.Tensor | None, mask: torch.Tensor | None) -> Any:
        shape = (len(x), attention.num_heads, x.shape[1], x.shape[1] if memory is None else memory.shape[1])
        causal = mask is None and memory is None and attention.is_causal
        inside, outside = (attention.dropout, layer.dropout) if layer.training else (0.0, 0.0)
        bias = biases.of(mask, None, shape)
        return ops.attention(x, memory, bias, *weights, attention.num_heads, attention.scaling, causal, inside, before, False, norm.eps, outside)

    return block


def _bart_feed_forward(layer: Any, ops: Any, activation: int, before: bool) -> Forward:
    one, two, norm = layer.fc1, layer.fc2, layer.final_layer_norm
    weights = (one.weight, None, two.weight, one.bias, two.bias, norm.weight, norm.bias)

    def block(x: torch.Tensor) -> Any:
        inside, outside = (layer.activation_dropout, layer.dropout) if layer.training else (0.0, 0.0)
        return ops.feed_forward(x, *weights, activation, inside, before, False, norm.eps, outside)

    return block


def _bart_parts(attention: Any) -> tuple[nn.Module, ...]:
    return (attention, attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)


def _bart_encoder(layer: Any, ops: Any, biases: Biases, before: bool) -> Forward | None:
    activation = _activation(layer.activation_fn)
    parts = (layer, *_bart_parts(layer.self_attn), layer.self_attn_layer_norm, layer.fc1, layer.fc2, layer.final_layer_norm)
    if activation is None or not _plain(*parts):
        return None
    attend = _bart_attention(layer, layer.self_attn, layer.self_attn_layer_norm, ops, biases, before)
    feed_forward = _bart_feed_forward(layer, ops, activation, before)

    def forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        if not _usual(hidden_states, None, attention_mask, others):
            return NotImplemented
        return feed_forward(attend(hidden_states, None, attention_mask))

    return forward


def _bart_decoder(layer: Any, ops: Any, biases: Biases, before: bool) -> Forward | None:
    activation = _activation(layer.activation_fn)
    parts = (
        layer, *_bart_parts(layer.self_attn), layer.self_attn_layer_norm, *_bart_parts(layer.encoder_attn),
        layer.encoder_attn_layer_norm, layer.fc1, layer.fc2, layer.final_layer_norm,
    )  # fmt: skip
    if activation is None or not _plain(*parts):
        return None
    attend = _bart_attention(layer, layer.self_attn, layer.self_attn_layer_norm, ops, biases, before)
    attend_across = _bart_attention(layer, layer.encoder_attn, layer.encoder_attn_layer_norm, ops, biases, before)
    feed_forward = _bart_feed_forward(layer, ops, activation, before)

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None, past_key_values: Any = None, **others: Any,
    ) -> Any:  # fmt: skip
        memory = encoder_hidden_states
        usual = _usual(hidden_states, None, attention_mask, others) and _usual(hidden_states, memory, encoder_attention_mask, others)
        if memory is None or past_key_values is not None or not usual:
            return NotImplemented
        return feed_forward(attend_across(attend(hidden_states, None, attention_mask), memory, encoder_attention_mask))

    return forward


# T5 ---------------------------------------------------------------------------------------------------------------------


def _t5_attention(layer: Any, ops: Any, biases: Biases, attention: Any) -> Forward | None:
    """Of a layer of attention, over its own input or over that of the encoder."""
    norm = layer.layer_norm
    parts = (attention.q, attention.k, attention.v, attention.o)
    if not _plain(layer, attention, *parts, norm, layer.dropout):
        return None
    weights = (*(p.weight for p in parts), None, None, None, None, norm.weight, None)

    def block(x: torch.Tensor, memory: torch.Tensor | None, mask: torch.Tensor | None, position_bias: torch.Tensor | None) -> Any:
        shape = (len(x), attention.n_heads, x.shape[1], x.shape[1] if memory is None else memory.shape[1])
        causal = mask is None and memory is None and attention.is_causal
        inside, outside = (attention.dropout, layer.dropout.p) if layer.training else (0.0, 0.0)
        bias = biases.of(mask, position_bias, shape)
        eps = norm.variance_epsilon
        return ops.attention(x, memory, bias, *weights, attention.n_heads, attention.scaling, causal, inside, True, True, eps, outside)

    def forward(
        hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, position_bias: torch.Tensor | None = None,
        past_key_values: Any = None, key_value_states: torch.Tensor | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        if past_key_values is not None or not _usual(hidden_states, key_value_states, attention_mask, others):
            return NotImplemented
        if position_bias is None and attention.has_relative_attention_bias:
            length = hidden_states.shape[1]
            position_bias = attention.compute_bias(length, length, device=hidden_states.device)
        return block(hidden_states, key_value_states, attention_mask, position_bias), position_bias, None

    return forward


def _t5_self_attention(layer: Any, ops: Any, biases: Biases, _: Any) -> Forward | None:
    return _t5_attention(layer, ops, biases, layer.SelfAttention)


def _t5_cross_attention(layer: Any, ops: Any, biases: Biases, _: Any) -> Forward | None:
    return _t5_attention(layer, ops, biases, layer.EncDecAttention)


def _t5_feed_forward(layer: Any, ops: Any, biases: Biases, _: Any) -> Forward | None:
    inside, norm = layer.DenseReluDense, layer.layer_norm
    gate = getattr(inside, "wi_1", None)
    first = inside.wi if gate is None else inside.wi_0
    activation = _activation(inside.act)
    if activation is None or not _plain(layer, inside, first, *([] if gate is None else [gate]), inside.wo, norm, layer.dropout, inside.dropout):
        return None
    weights = (first.weight, None if gate is None else gate.weight, inside.wo.weight, None, None, norm.weight, None)

    def forward(hidden_states: torch.Tensor) -> Any:
        if not _usual(hidden_states[:, :1], None, None, {}):
            return NotImplemented
        inner, outer = (inside.dropout.p, layer.dropout.p) if layer.training else (0.0, 0.0)
        return ops.feed_forward(hidden_states, *weights, activation, inner, True, True, norm.variance_epsilon, outer)

    return forward


_MAKERS: tuple[tuple[Callable[[Any, Any, Biases, Any], Forward | None], dict[str, Any]], ...] = (
    (_bart_encoder, {f"{prefix}EncoderLayer": before for prefix, before in BART_LIKE.items()}),
    (_bart_decoder, {f"{prefix}DecoderLayer": before for prefix, before in BART_LIKE.items()}),
    (_t5_self_attention, {f"{prefix}LayerSelfAttention": None for prefix in T5_LIKE}),
    (_t5_cross_attention, {f"{prefix}LayerCrossAttention": None for prefix in T5_LIKE}),
    (_t5_feed_forward, {f"{prefix}LayerFF": None for prefix in T5_LIKE}),
)
"""What makes the forward of a layer, with the names of the classes and what it has to know of each."""
