"""Tiny random models that write text, of every architecture that decoding is proved on; no end is forced on
their texts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    PreTrainedModel,
)
from transformers.models.auto import CONFIG_MAPPING

VOCABULARY, CONTEXT = 60, 48
END, PAD, START = 2, 1, 0
_DECODER = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, eos_token_id=END, bos_token_id=START)
_BART = dict(
    _DECODER,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    init_std=0.4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    pad_token_id=PAD,
    decoder_start_token_id=START,
    forced_eos_token_id=None,
)
_T5 = dict(
    vocab_size=VOCABULARY,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=2,
    num_heads=4,
    eos_token_id=END,
    pad_token_id=PAD,
    decoder_start_token_id=START,
    tie_word_embeddings=False,
    initializer_factor=3.0,
)
_LLAMA = dict(
    _DECODER,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.4,
    tie_word_embeddings=False,
)
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "bart": _BART,
    "mbart": _BART,
    "pegasus": _BART,
    "marian": _BART,
    "m2m_100": _BART,
    "bert2bert": {},
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.4,
        eos_token_id=END,
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 6},
    "gpt_neox": {**_LLAMA, "num_key_value_heads": None},
    "opt": dict(
        _DECODER,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        init_std=0.4,
    ),
    "bloom": dict(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4, eos_token_id=END
    ),
}
KINDS = [*ENCODER_DECODERS, *DECODERS]


def make(kind: str, seed: int = 0, *, vocabulary: int = VOCABULARY, end: int = END) -> PreTrainedModel:
    """A random model in eval mode whose texts differ from row to row."""
    torch.manual_seed(seed)
    own = {"vocab_size": vocabulary, "eos_token_id": end}
    model: Any
    if kind == "bert2bert":
        size = dict(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=CONTEXT,
            initializer_range=0.4,
            pad_token_id=PAD,
        )
        decoder = BertLMHeadModel(BertConfig(**size, is_decoder=True, add_cross_attention=True))
        model = EncoderDecoderModel(encoder=BertModel(BertConfig(**size)), decoder=decoder)
        model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id = START, END
    elif kind in ENCODER_DECODERS:
        model = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[kind](**{**ENCODER_DECODERS[kind], **own}))
    else:
        settings = {name: value for name, value in DECODERS[kind].items() if value is not None}
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**settings, **own}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Random cross attention is nearly the same for every source: so every row would get the same
            # text.
            if any(part in name for part in ("encoder_attn.", "EncDecAttention", "crossattention")):
                weight *= 3
    return model.eval()
