"""Encoders and decoders whose layers are blocks of ``kernels``, from which the padding of a batch is left out.

What the rows of a batch hold stands side by side, (tokens, width), from the embeddings to the last layer; only attention knows
where a row begins. So padding costs nothing, whatever the rows of a batch, and no masks are made. (The idea is that of Zeng et
al. 2022, *Boosting Distributed Training Performance of the Unpadded BERT Model*.)
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from hftk.fused.layers import Block, Packed, bart_layer, is_hooked, of_transformers, t5_layer

MOST_SCORES = 128 * 128
"""Queries times keys of a row beyond which torch's own attention, which keeps no scores, is the better one."""
BART_LIKE = {"Bart": False, "Marian": False, "MBart": True, "M2M100": True, "Pegasus": True}
"""Prefix of the classes of an encoder and a decoder to whether the norms of their layers come before."""
T5_LIKE = ("T5", "MT5")


class Stack(Protocol):
    """An encoder or decoder, from the embeddings to the last norm."""

    def __call__(self, rows: Rows, ids: torch.Tensor, memory: Packed | None) -> torch.Tensor:
        """(tokens, width) states from the rows of a batch, its (rows, positions) ids and what the encoder gave."""
        ...


class Rows(NamedTuple):
    """Where the tokens of a padded batch are."""

    places: torch.Tensor
    """(tokens,) places of the tokens in the batch as one row."""
    columns: torch.Tensor
    """(tokens,) position of each in its row."""
    starts: torch.Tensor
    """(rows + 1,) how many tokens are in front of each row."""
    shortest: int
    longest: int
    """Tokens of a row."""
    shape: torch.Size
    """(rows, positions)"""

    @classmethod
    def of(cls, ops: Any, shape: torch.Size, mask: torch.Tensor | None, labels: torch.Tensor | None = None) -> Rows | None:
        """Of a batch of (rows, positions), where the mask says what is no padding: None if some padding is not on the right. What stands
        behind the last label of a row that counts is left out."""
        if len(shape) != 2 or (mask is not None and mask.shape != shape):
            return None
        if mask is not None and mask.dtype != torch.int64:
            mask = (mask != 0).long()
        places, columns, starts, shortest, longest = ops.places(*shape, None if mask is None else mask.contiguous(), None if labels is None else labels.long().contiguous())
        return cls(places, columns, starts, shortest, longest, shape) if shortest >= 0 else None

    def packed(self, padded: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) out of (rows, positions, ...)."""
        return padded.flatten(0, 1).index_select(0, self.places)


class Step:
    """What the loss, the encoder and the decoder of a model tell one another, for as long as :func:`~hftk.fused.looked_at` lasts."""

    def __init__(self) -> None:
        self.labels: torch.Tensor | None = None
        """(rows, positions) of the decoder's outputs."""
        self.projection: torch.Tensor | None = None
        """The weight of the projection behind the decoder."""
        self.tied: tuple[torch.Tensor, torch.Tensor] | None = None
        """That weight as embeddings that are tied to it see it as well, and where its gradient is to be put, to which they add theirs."""
        self.encoded: tuple[torch.Tensor, torch.Tensor | None, Packed] | None = None
        """What the encoder gave, padded, by which mask, and packed."""
        self.decoded: tuple[torch.Tensor, Rows, torch.Tensor] | None = None
        """What the decoder gave, padded, the places of its tokens, and packed."""

    def forget(self) -> None:
        """Hold no graph of a step that is over."""
        self.labels = self.projection = self.tied = self.encoded = self.decoded = None


def stacks(model: nn.Module, ops: Any, active: Callable[[], Any], step: Step) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Each encoder and decoder in ``model`` whose layers are all made of blocks, with the forward that it gets; it runs its own where
    ``active`` is false."""
    for module in model.modules():
        name = type(module).__name__
        if name not in _MAKERS or not of_transformers(module) or "forward" in vars(module) or not all(_is_usual(weight) for weight in module.parameters()):
            continue
        if (stack := _MAKERS[name](module, ops, step)) is not None:
            make = _decoder if name.endswith("Decoder") or getattr(module, "is_decoder", False) else _encoder
            yield module, _either(module, make(module, stack, ops, step), active)


def _either(module: nn.Module, fused: Callable[..., Any], active: Callable[[], Any]) -> Callable[..., Any]:
    """The fused forward, or the module's own where the fused one gives NotImplemented. It is a method, so that a copy of the module
    has one of its own, which runs what its class says."""

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        if self is module and not arguments and active() is not None and torch.is_grad_enabled():
            made = fused(**named)
            if made is not NotImplemented:
                return made
        return type(self).forward(self, *arguments, **named)

    return types.MethodType(forward, module)


def _encoder(module: Any, stack: Stack, ops: Any, step: Step) -> Callable[..., Any]:
    def forward(input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **others: Any) -> Any:
        if input_ids is None or not _asks_for_states(module, others):
            return NotImplemented
        rows = Rows.of(ops, input_ids.shape, attention_mask)
        if rows is None or not rows.shortest or input_ids.shape[1] ** 2 > MOST_SCORES:
            return NotImplemented
        states = stack(rows, input_ids.long(), None)
        padded = _padded(ops, states, rows)
        if step.projection is not None:
            step.encoded = padded, attention_mask, Packed(states, rows.starts)
        return BaseModelOutput(last_hidden_state=padded)

    return forward


def _decoder(module: Any, stack: Stack, ops: Any, step: Step) -> Callable[..., Any]:
    def forward(
        input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        if input_ids is None or encoder_hidden_states is None or not _asks_for_states(module, others):
            return NotImplemented
        labels = step.labels if step.labels is not None and step.labels.shape == input_ids.shape else None
        rows = Rows.of(ops, input_ids.shape, None, labels)
        memory = _memory(ops, encoder_hidden_states, encoder_attention_mask, step)
        queries, hides = input_ids.shape[1], attention_mask is not None and not attention_mask.all()  # it hides keys, and no outputs
        if rows is None or memory is None or hides or not rows.longest or queries * max(queries, encoder_hidden_states.shape[1]) > MOST_SCORES:
            return NotImplemented
        states = stack(rows, input_ids.long(), memory)
        padded = _padded(ops, states, rows)
        if step.projection is not None:
            step.decoded = padded, rows, states
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=padded)

    return forward


def _padded(ops: Any, packed: torch.Tensor, rows: Rows) -> torch.Tensor:
    """(rows, positions, width) of (tokens, width), 0 in padding."""
    made: torch.Tensor = ops.spread(packed, rows.places, rows.shape.numel())
    return made.view(*rows.shape, -1)


def _memory(ops: Any, states: torch.Tensor, mask: torch.Tensor | None, step: Step) -> Packed | None:
    """(rows, positions, width) states as they are seen by ``mask``; None where that is not padding on the right."""
    known = step.encoded
    if known is not None and known[0] is states and known[1] is mask:
        return known[2]
    rows = Rows.of(ops, states.shape[:2], mask)
    return None if rows is None or not rows.shortest else Packed(rows.packed(states), rows.starts)


# When they may stand in -------------------------------------------------------------------------------------------------


def _is_usual(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _asks_for_states(module: Any, others: dict[str, Any]) -> bool:
    """Whether the call is one of training in float32, of which nothing but the last states is wanted."""
    if module.gradient_checkpointing or module.config.output_attentions or module.config.output_hidden_states or torch.is_autocast_enabled("cpu"):
        return False
    return all(value is None or (value is False and name != "return_dict") for name, value in others.items())


# What the architectures have between embeddings and the last norm -----------------------------------------------------------


def _bart_stack(module: Any, ops: Any, step: Step, before: bool) -> Stack | None:
    layers, embed = _whole(bart_layer(layer, ops, before) for layer in module.layers), _embeddings(module, ops, step)
    if embed is None or layers is None:
        return None

    def stack(rows: Rows, ids: torch.Tensor, memory: Packed | None) -> torch.Tensor:
        norm, dropout = getattr(module, "layernorm_embedding", None), module.dropout if module.training else 0.0
        positions = _positions(module.embed_positions, rows, ids)
        if norm is None:
            x = embed(rows.packed(ids), positions, dropout)
        else:
            x = nn.functional.dropout(norm(embed(rows.packed(ids), positions, 0.0)), dropout)
        for layer in layers:
            if not (module.training and module.layerdrop > 0 and torch.rand([]) < module.layerdrop):
                x = layer(x, rows.starts, memory, None)
        norm = getattr(module, "layer_norm", None)
        return x if norm is None else norm(x)

    return stack


def _whole(made: Iterable[Block | None]) -> list[Block] | None:
    """The blocks, if every layer has one."""
    every = list(made)
    some = [block for block in every if block is not None]
    return some if len(some) == len(every) else None


def _embeddings(module: Any, ops: Any, step: Step) -> Callable[[torch.Tensor, torch.Tensor | None, float], torch.Tensor] | None:
    """(tokens,) ids, positions to be added, and the dropout behind them, to (tokens, width); None if there is more to it."""
    words = module.embed_tokens
    scaled = of_transformers(words) and type(words).__name__.endswith("ScaledWordEmbedding")
    if not (scaled or type(words) is nn.Embedding) or is_hooked(words) or words.max_norm is not None or words.scale_grad_by_freq or words.sparse:
        return None
    factor = float(words.embed_scale if scaled else getattr(module, "embed_scale", 1.0))
    padding = -1 if words.padding_idx is None else words.padding_idx

    def embed(ids: torch.Tensor, positions: torch.Tensor | None, dropout: float) -> torch.Tensor:
        weight: torch.Tensor = words.weight
        into = None
        if weight is step.projection and weight.requires_grad:
            weight, into = step.tied = step.tied or (ops.tied(weight), torch.empty_like(weight))
        made: torch.Tensor = ops.embedding(ids, weight, positions, factor, padding, into, dropout)
        return made

    return embed


def _positions(embeddings: Any, rows: Rows, ids: torch.Tensor) -> torch.Tensor:
    if type(embeddings).__name__.startswith("M2M100"):  # which counts what is no padding itself
        return rows.packed(embeddings(ids))
    made: torch.Tensor = embeddings(ids.shape, position_ids=rows.columns)
    return made.view(len(rows.columns), -1)


def _t5_stack(module: Any, ops: Any, step: Step) -> Stack | None:
    layers, embed = _whole(t5_layer(layer, ops) for layer in module.block), _embeddings(module, ops, step)
    if embed is None or layers is None:
        return None

    def stack(rows: Rows, ids: torch.Tensor, memory: Packed | None) -> torch.Tensor:
        x = embed(rows.packed(ids), None, module.dropout.p if module.training else 0.0)
        bias = module.block[0].layer[0].SelfAttention.compute_bias(rows.longest, rows.longest)[0].contiguous()
        for layer in layers:
            x = layer(x, rows.starts, memory, bias)
        last: torch.Tensor = module.dropout(module.final_layer_norm(x))
        return last

    return stack


_MAKERS: dict[str, Callable[[Any, Any, Step], Stack | None]] = {
    **{f"{prefix}{side}": partial(_bart_stack, before=before) for prefix, before in BART_LIKE.items() for side in ("Encoder", "Decoder")},
    **{f"{prefix}Stack": _t5_stack for prefix in T5_LIKE},
}
"""Class of an encoder or decoder to what makes its stack."""
