"""Sizes of models that are trained from scratch: architecture and size name to config fields."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from hftk.config import InputError, Problem

_GPT2 = {
    "tiny": (4, 4, 128, 128),
    "mini": (4, 4, 256, 256),
    "small": (12, 12, 768, 1024),
    "medium": (24, 16, 1024, 1024),
    "large": (36, 20, 1280, 1024),
    "xl": (48, 25, 1600, 1024),
}
"""Layers, heads, width, context: as published; tiny and mini are ours."""
_LLAMA = {
    "tiny": (4, 4, 128, 256),
    "mini": (4, 4, 256, 256),
    "small": (12, 12, 768, 1024),
    "medium": (24, 16, 1024, 2048),
    "large": (24, 16, 2048, 2048),
    "xl": (32, 32, 4096, 4096),
}
_ENCODERS = {
    "tiny": (2, 2, 128),
    "mini": (4, 4, 256),
    "small": (4, 8, 512),
    "medium": (8, 8, 512),
    "base": (12, 12, 768),
    "large": (24, 16, 1024),
}
"""Layers, heads, width: the sizes of Turc et al. 2019 (arXiv:1908.08962), and BERT's own."""
_MARIAN = {
    "tiny": (4, 4, 128, 256),
    "mini": (4, 4, 256, 1024),
    "small": (6, 8, 512, 2048),
    "base": (6, 16, 1024, 4096),
}
"""Layers on each side, heads, width, inner width."""
_T5 = {
    "tiny": (2, 4, 128, 256),
    "mini": (4, 4, 256, 1024),
    "small": (6, 8, 512, 2048),
    "base": (12, 12, 768, 3072),
}
_CONTEXT = 512
_FAMILIES = {"AutoModelForCausalLM": ("gpt2", "llama"), "AutoModelForSeq2SeqLM": ("marian", "t5")}
_ENCODER_FAMILY = ("bert", "distilbert", "roberta", "modernbert")


def model_sizes(architecture: str, auto_model: str) -> Mapping[str, Mapping[str, Any]]:
    """Size name to config fields of a new model of ``architecture`` for the auto class ``auto_model``.

    Raises:
        InputError: there is no size table for this architecture.
    """
    known = _FAMILIES.get(auto_model, _ENCODER_FAMILY)
    if architecture not in known:
        near = get_close_matches(architecture, known, n=1)
        message = f"there is a size table for {', '.join(known)}, not for {architecture}"
        message += f" (did you mean {near[0]}?)" if near else ""
        fix = (
            f"use one of these (--model.architecture {known[0]}), or --model.name with a checkpoint of that"
            " architecture"
        )
        raise InputError(Problem(setting="model.architecture", message=message, fix=fix))
    if architecture in _ENCODER_FAMILY:
        return {name: _encoder(architecture, *widths) for name, widths in _ENCODERS.items()}
    tables: dict[str, Any] = {
        "gpt2": (_GPT2, _gpt2),
        "llama": (_LLAMA, _llama),
        "marian": (_MARIAN, _marian),
        "t5": (_T5, _t5),
    }
    table, fields = tables[architecture]
    return {name: fields(*widths) for name, widths in table.items()}


def _gpt2(layers: int, heads: int, width: int, context: int) -> dict[str, Any]:
    # The published GPT-2 has the tanh form of GELU; the exact one is faster on a CPU.
    return {
        "activation_function": "gelu",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "n_positions": context,
    }


def _llama(layers: int, heads: int, width: int, context: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": -(-width * 8 // 3 // 64) * 64,
        "max_position_embeddings": context,
        "tie_word_embeddings": width < 2048,
    }


def _encoder(architecture: str, layers: int, heads: int, width: int) -> dict[str, Any]:
    if architecture == "distilbert":
        inner = {"dim": width, "hidden_dim": 4 * width}
        return {"n_layers": layers, "n_heads": heads, **inner, "max_position_embeddings": _CONTEXT}
    common = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width}
    if architecture == "modernbert":
        return {**common, "intermediate_size": 3 * width // 2, "max_position_embeddings": _CONTEXT}
    # RoBERTa numbers positions from the padding's id + 1 on, and needs as many embeddings more.
    positions = _CONTEXT + (2 if architecture == "roberta" else 0)
    return {**common, "intermediate_size": 4 * width, "max_position_embeddings": positions}


def _marian(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    return {
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "d_model": width,
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_position_embeddings": _CONTEXT,
        "activation_function": "relu",
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "num_beams": 1,
    }


def _t5(layers: int, heads: int, width: int, inner: int) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_model": width,
        "d_kv": width // heads,
        "d_ff": inner,
        "feed_forward_proj": "gated-gelu",
    }
