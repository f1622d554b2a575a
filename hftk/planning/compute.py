"""Operations, time and cost of a run, and the formulas that the counts are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hftk.config import RunConfig
from hftk.planning.devices import DEVICES, MODEL_FLOPS_UTILIZATION, tokens_per_second
from hftk.planning.simulation import BatchShape, Footprint
from hftk.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hftk.planning import Plan

TOKENS_PER_PARAMETER = 20
"""Tokens for each weight at which a compute budget is best spent on a model trained from nothing (Hoffmann et
al. 2022, arXiv:2203.15556, table 3)."""
SOURCES = (
    "memory: one step of the run itself on tensors without memory, every storage counted from birth to death",
    (
        "states of mixed-precision Adam, 16 bytes per parameter, and their shards: Rajbhandari et al. 2020"
        " (ZeRO), arXiv:1910.02054"
    ),
    (
        "check of operations, 6 N + 12 x layers x width x tokens: Kaplan et al. 2020, arXiv:2001.08361;"
        " Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B"
    ),
    "tokens per parameter: Hoffmann et al. 2022 (Chinchilla), arXiv:2203.15556",
)


def flops(
    found: Footprint, made: PretrainedConfig, shape: BatchShape, tokens_per_step: int
) -> dict[str, float | None]:
    """Operations for each token of training and, for the eye, the formula's; and those of an optimizer
    step."""
    training = found.flops_training / found.tokens
    return {
        "forward_per_token": found.flops_forward / found.tokens,
        "training_per_token": training,
        "formula_per_token": formula_flops(found.parameters, made, shape.length),
        "per_step": training * tokens_per_step,
    }


def formula_flops(parameters: int, made: PretrainedConfig, length: int) -> float | None:
    """6 N + 12 L H Q T for each token of full training (Chowdhery et al. 2022, appendix B), with attention
    over all ``length`` tokens; None for encoder-decoders, whose tokens see one half of the weights. Both
    sides of 2 N for a multiply-add: Kaplan et al. 2020."""
    if made.is_encoder_decoder:
        return None
    shape = _text_shape(made)
    return 6.0 * parameters + 12.0 * shape["layers"] * shape["heads"] * shape["head_width"] * length


def cache_bytes(made: PretrainedConfig, beams: int) -> int:
    """Bytes of keys and values of one batch of generation in float32, for as many tokens as such a batch has
    over all beams; encoder-decoders keep those of the source too."""
    from hftk.generation.generate import tokens_per_batch

    text = _text_shape(made)
    sides = 2 if made.is_encoder_decoder else 1
    return int(
        2
        * 4
        * sides
        * text["layers"]
        * text["kv_heads"]
        * text["head_width"]
        * max(tokens_per_batch(made), beams)
    )


def _text_shape(made: PretrainedConfig) -> dict[str, int]:
    """Layers, heads, key-value heads and width of a head of the text model (of an encoder-decoder: its
    decoder)."""
    text: Any = made.get_text_config(decoder=True)
    layers = (
        getattr(text, "decoder_layers", None)
        or getattr(text, "num_decoder_layers", None)
        or text.num_hidden_layers
    )
    heads = getattr(text, "decoder_attention_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // heads
    return {
        "layers": int(layers),
        "heads": int(heads),
        "kv_heads": int(getattr(text, "num_key_value_heads", None) or heads),
        "head_width": int(width),
    }


def duration(made: Plan, config: RunConfig) -> dict[str, float | None]:
    """Steps, tokens, seconds and cost of the run, as far as they follow from what is given."""
    setup, train = made.setup, config.train
    per_step = made.batch["tokens_per_step"]
    steps: float | None = train.max_steps
    if steps is None and setup.tokens is not None:
        steps = max(1, math.ceil(setup.tokens * (train.epochs or 3.0) / per_step))
    tokens = None if steps is None else float(steps * per_step)
    speed = setup.tokens_per_second
    if speed is None and setup.device is not None:
        each = made.flops["training_per_token"] or 1.0
        speed = tokens_per_second(
            each, DEVICES[setup.device], setup.devices, setup.utilization or MODEL_FLOPS_UTILIZATION
        )
    seconds = None if tokens is None or speed is None else tokens / speed
    hours = None if seconds is None else setup.devices * seconds / 3600
    cost = None if hours is None or setup.price_per_hour is None else hours * setup.price_per_hour
    return {
        "steps": steps,
        "tokens": tokens,
        "tokens_per_second": speed,
        "seconds": seconds,
        "device_hours": hours,
        "cost": cost,
        "flops": None if steps is None else steps * (made.flops["per_step"] or 0.0),
    }


def hints(made: Plan, task: Task) -> Iterator[str]:
    """What the numbers say about size and amount of data, for models that are trained from nothing."""
    if "CausalLM" not in task.auto_model:
        return
    weights, tokens = made.model["parameters"], made.run["tokens"]
    best = TOKENS_PER_PARAMETER * weights
    yield (
        f"trained from nothing, a model of {weights:,} parameters is compute-optimal at about {best:.3g}"
        f" tokens ({TOKENS_PER_PARAMETER} per parameter)"
    )
    if tokens:
        size = math.sqrt((made.run["flops"] or 0.0) / (6 * TOKENS_PER_PARAMETER))
        yield (
            f"this run has {tokens / weights:.3g} tokens per parameter; its operations would be best spent on"
            f" {size:.3g} parameters and {TOKENS_PER_PARAMETER * size:.3g} tokens"
        )
