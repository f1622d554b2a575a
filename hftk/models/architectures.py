"""What the config of a model says about it before any weights are read: its kind, its halves, how many
positions it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Kind = Literal["encoder-decoder", "encoder", "decoder"]
LONGEST_DEFAULT = 1024
"""Default limit of ``train.max_length`` and of evaluation windows, for models whose context is longer."""
TWO_MODELS = "encoder-decoder"
"""Model type of ``EncoderDecoderModel``: two models of their own, joined by new cross-attention."""
POSITIONS_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "longformer",
    "data2vec-text",
    "mpnet",
    "xmod",
)
"""Model types that number positions from the padding's id + 1 on: so many of their position embeddings stand
for no token."""


def kind_of(config: PretrainedConfig) -> Kind:
    """``encoder-decoder`` (T5, BART), ``decoder`` (GPT-2, Llama: a causal language model) or ``encoder``
    (BERT).

    BERT and its like can be made causal language models too, and transformers lists them as both: they count
    as such where their config says ``is_decoder``.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.is_encoder_decoder:
        return "encoder-decoder"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "encoder"
    both = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if both and not getattr(config, "is_decoder", False) else "decoder"


def halves(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configs of both models of an ``EncoderDecoderModel``; of any other model its own alone."""
    return [config.encoder, config.decoder] if config.model_type == TWO_MODELS else [config]


def positions(config: PretrainedConfig) -> int | None:
    """Most tokens that the model has positions for; None where its config does not say it under the usual
    name (T5 counts distances, and has no end). Of an ``EncoderDecoderModel`` the smaller number of both
    halves."""
    found = [_own_positions(half) for half in halves(config)]
    return min((number for number in found if number is not None), default=None)


def _own_positions(config: PretrainedConfig) -> int | None:
    found = getattr(config, "max_position_embeddings", None)
    if not isinstance(found, int) or found < 1:
        return None
    return found - (config.pad_token_id or 0) - 1 if config.model_type in POSITIONS_AFTER_PADDING else found
