"""Which layers of transformers are made of which blocks of ``kernels``, and when the blocks may stand in for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

T5_NORMS = ("T5LayerNorm", "MT5LayerNorm")
"""They have a scale and neither mean nor bias."""
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
"""In the order of ``enum Activation``."""
ACTIVATION_OF = {
    "ReLU": "relu", "GELUActivation": "gelu", "NewGELUActivation": "gelu_tanh", "GELUTanh": "gelu_tanh", "SiLU": "silu", "SiLUActivation": "silu",
}  # fmt: skip
"""Class of an activation of transformers to one of :data:`ACTIVATIONS`."""


class Packed(NamedTuple):
    """What stands in the rows of a batch, side by side and without padding."""

    states: torch.Tensor
    """(tokens, width)"""
    starts: torch.Tensor
    """(rows + 1,) where each row begins, and the number of tokens."""


class Block(Protocol):
    """A whole layer."""

    def __call__(self, x: torch.Tensor, starts: torch.Tensor, memory: Packed | None, bias: torch.Tensor | None) -> torch.Tensor:
        """Its output from (tokens, width) states, the starts of their rows, what the encoder gave, and the bias of the scores of
        attention to the own row, (heads, queries, keys)."""
        ...


def bart_layer(layer: Any, ops: Any, before: bool) -> Block | None:
    """A layer of an encoder or decoder of BART's kind; None if it has more to do than the blocks. ``before`` is where its norms are."""
    activation, across = _activation(layer.activation_fn), getattr(layer, "encoder_attn", None)
    inner = (layer.fc1, layer.fc2, layer.final_layer_norm)
    attentions = [(layer.self_attn, layer.self_attn_layer_norm)] + ([] if across is None else [(across, layer.encoder_attn_layer_norm)])
    parts = [part for a, norm in attentions for part in (a, a.q_proj, a.k_proj, a.v_proj, a.out_proj, norm)]
    if activation is None or not _plain(layer, *parts, *inner):
        return None
    attend, *attend_across = (_bart_attention(layer, a, norm, ops, before) for a, norm in attentions)
    one, two, norm = inner
    weights = (one.weight, None, two.weight, one.bias, two.bias, norm.weight, norm.bias)

    def block(x: torch.Tensor, starts: torch.Tensor, memory: Packed | None, bias: torch.Tensor | None) -> torch.Tensor:
        x = attend(x, starts, None, attend_across != [])
        if attend_across:
            x = attend_across[0](x, starts, memory, False)
        inside, outside = (layer.activation_dropout, layer.dropout) if layer.training else (0.0, 0.0)
        made: torch.Tensor = ops.feed_forward(x, *weights, activation, inside, before, False, norm.eps, outside)
        return made

    return block


def _bart_attention(layer: Any, attention: Any, norm: nn.LayerNorm, ops: Any, before: bool) -> Callable[..., torch.Tensor]:
    parts = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    weights = (*(p.weight for p in parts), *(p.bias for p in parts), norm.weight, norm.bias)

    def block(x: torch.Tensor, starts: torch.Tensor, memory: Packed | None, causal: bool) -> torch.Tensor:
        inside, outside = (attention.dropout, layer.dropout) if layer.training else (0.0, 0.0)
        made: torch.Tensor = ops.attention(
            x, starts, *(memory or (None, None)), None, *weights, attention.num_heads, attention.scaling, causal, inside, before, False, norm.eps, outside
        )  # fmt: skip
        return made

    return block


def t5_layer(layer: Any, ops: Any) -> Block | None:
    """A block of T5; None if it has more to do than the blocks."""
    own, *between, last = layer.layer
    attend, feed_forward = _t5_attention(own, own.SelfAttention, ops), _t5_feed_forward(last, ops)
    across = [_t5_attention(part, part.EncDecAttention, ops) for part in between]
    if attend is None or feed_forward is None or None in across or not _plain(layer):
        return None

    def block(x: torch.Tensor, starts: torch.Tensor, memory: Packed | None, bias: torch.Tensor | None) -> torch.Tensor:
        x = attend(x, starts, None, bias, across != [])
        for part in across:
            x = part(x, starts, memory, None, False)  # type: ignore[misc]
        return feed_forward(x)

    return block


def _t5_attention(layer: Any, attention: Any, ops: Any) -> Callable[..., torch.Tensor] | None:
    norm, parts = layer.layer_norm, (attention.q, attention.k, attention.v, attention.o)
    if not _plain(layer, attention, *parts, norm, layer.dropout):
        return None
    weights = (*(p.weight for p in parts), None, None, None, None, norm.weight, None)

    def block(x: torch.Tensor, starts: torch.Tensor, memory: Packed | None, bias: torch.Tensor | None, causal: bool) -> torch.Tensor:
        inside, outside = (attention.dropout, layer.dropout.p) if layer.training else (0.0, 0.0)
        eps = norm.variance_epsilon
        made: torch.Tensor = ops.attention(
            x, starts, *(memory or (None, None)), bias, *weights, attention.n_heads, attention.scaling, causal, inside, True, True, eps, outside
        )  # fmt: skip
        return made

    return block


def _t5_feed_forward(layer: Any, ops: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    inside, norm = layer.DenseReluDense, layer.layer_norm
    gate = getattr(inside, "wi_1", None)
    first = inside.wi if gate is None else inside.wi_0
    activation = _activation(inside.act)
    if activation is None or not _plain(layer, inside, first, *([] if gate is None else [gate]), inside.wo, norm, layer.dropout, inside.dropout):
        return None
    weights = (first.weight, None if gate is None else gate.weight, inside.wo.weight, None, None, norm.weight, None)

    def block(x: torch.Tensor) -> torch.Tensor:
        inner, outer = (inside.dropout.p, layer.dropout.p) if layer.training else (0.0, 0.0)
        made: torch.Tensor = ops.feed_forward(x, *weights, activation, inner, True, True, norm.variance_epsilon, outer)
        return made

    return block


def _plain(*modules: nn.Module) -> bool:
    """Whether these are what their classes say: float32 on a CPU, not adapted, not quantized, and nothing hooked to them.

    What holds weights of its own or is asked for them has to be of a known class: an adapter hands on the weight of what it adapts.
    """
    for module in modules:
        if is_hooked(module) or not of_transformers(module):
            return False
        if hasattr(module, "weight") and type(module) not in (nn.Linear, nn.LayerNorm) and type(module).__name__ not in T5_NORMS:
            return False
        for weight in module.parameters(recurse=False):
            if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or weight.device.type != "cpu":
                return False
    return True


def is_hooked(module: nn.Module) -> bool:
    """Whether more happens in a call than what its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def of_transformers(module: nn.Module) -> bool:
    """Whether its class is torch's or transformers' own, and not one of the same name."""
    return type(module).__module__.startswith(("torch.nn.modules.", "transformers.models."))


def _activation(module: Any) -> int | None:
    name = ACTIVATION_OF.get(type(module).__name__)
    if name is None or (name == "gelu" and getattr(module, "act", None) is not nn.functional.gelu):
        return None
    return ACTIVATIONS.index(name)
