"""Shapes of published models, so that they can be planned for without a network: the fields of their
``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.config import InputError, ModelConfig, Problem
from hftk.models.tokenizers import SMALLEST_VOCABULARY

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from hftk.task import Task


def _llama(
    width: int, layers: int, heads: int, inner: int, kv: int, vocabulary: int, context: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        **more,
    }


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}


def _bert(width: int, layers: int, heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
        **more,
    }


def _t5(width: int, layers: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "d_model": width,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "d_ff": inner,
        "d_kv": 64,
        "vocab_size": 32128,
        **more,
    }


def _bart(
    width: int, layers: int, heads: int, vocabulary: int, context: int = 1024, **more: Any
) -> dict[str, Any]:
    return {
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        **more,
    }


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}

SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "openai-community/gpt2": ("gpt2", _gpt2(768, 12, 12)),
    "openai-community/gpt2-medium": ("gpt2", _gpt2(1024, 24, 16)),
    "openai-community/gpt2-large": ("gpt2", _gpt2(1280, 36, 20)),
    "openai-community/gpt2-xl": ("gpt2", _gpt2(1600, 48, 25)),
    "HuggingFaceTB/SmolLM2-135M": (
        "llama",
        _llama(576, 30, 9, 1536, 3, 49152, 8192, tie_word_embeddings=True),
    ),
    "HuggingFaceTB/SmolLM2-360M": (
        "llama",
        _llama(960, 32, 15, 2560, 5, 49152, 8192, tie_word_embeddings=True),
    ),
    "HuggingFaceTB/SmolLM2-1.7B": (
        "llama",
        _llama(2048, 24, 32, 8192, 32, 49152, 8192, tie_word_embeddings=True),
    ),
    "TinyLlama/TinyLlama-1.1B": ("llama", _llama(2048, 22, 32, 5632, 4, 32000, 2048)),
    "meta-llama/Llama-2-7b-hf": ("llama", _llama(4096, 32, 32, 11008, 32, 32000, 4096)),
    "meta-llama/Llama-2-13b-hf": ("llama", _llama(5120, 40, 40, 13824, 40, 32000, 4096)),
    "meta-llama/Llama-2-70b-hf": ("llama", _llama(8192, 80, 64, 28672, 8, 32000, 4096)),
    "meta-llama/Meta-Llama-3-8B": ("llama", _llama(4096, 32, 32, 14336, 8, 128256, 8192)),
    "meta-llama/Meta-Llama-3-70B": ("llama", _llama(8192, 80, 64, 28672, 8, 128256, 8192)),
    "meta-llama/Llama-3.2-1B": (
        "llama",
        _llama(2048, 16, 32, 8192, 8, 128256, 131072, tie_word_embeddings=True),
    ),
    "meta-llama/Llama-3.2-3B": (
        "llama",
        _llama(3072, 28, 24, 8192, 8, 128256, 131072, tie_word_embeddings=True, head_dim=128),
    ),
    "mistralai/Mistral-7B-v0.1": ("mistral", _llama(4096, 32, 32, 14336, 8, 32000, 32768)),
    "Qwen/Qwen2.5-0.5B": ("qwen2", _llama(896, 24, 14, 4864, 2, 151936, 32768, tie_word_embeddings=True)),
    "Qwen/Qwen2.5-1.5B": ("qwen2", _llama(1536, 28, 12, 8960, 2, 151936, 131072, tie_word_embeddings=True)),
    "Qwen/Qwen2.5-7B": ("qwen2", _llama(3584, 28, 28, 18944, 4, 152064, 131072)),
    "google-bert/bert-base-uncased": ("bert", _bert(768, 12, 12, 30522)),
    "google-bert/bert-base-cased": ("bert", _bert(768, 12, 12, 28996)),
    "google-bert/bert-base-chinese": ("bert", _bert(768, 12, 12, 21128)),
    "google-bert/bert-base-multilingual-cased": ("bert", _bert(768, 12, 12, 119547)),
    "google-bert/bert-large-uncased": ("bert", _bert(1024, 24, 16, 30522)),
    "sentence-transformers/all-MiniLM-L6-v2": ("bert", _bert(384, 6, 12, 30522)),
    "distilbert/distilbert-base-uncased": ("distilbert", {"vocab_size": 30522}),
    "FacebookAI/roberta-base": ("roberta", _bert(768, 12, 12, 50265, **_ROBERTA)),
    "FacebookAI/roberta-large": ("roberta", _bert(1024, 24, 16, 50265, **_ROBERTA)),
    "FacebookAI/xlm-roberta-base": ("xlm-roberta", _bert(768, 12, 12, 250002, **_ROBERTA)),
    "FacebookAI/xlm-roberta-large": ("xlm-roberta", _bert(1024, 24, 16, 250002, **_ROBERTA)),
    "google-t5/t5-small": ("t5", _t5(512, 6, 8, 2048)),
    "google-t5/t5-base": ("t5", _t5(768, 12, 12, 3072)),
    "google-t5/t5-large": ("t5", _t5(1024, 24, 16, 4096)),
    "google-t5/t5-3b": ("t5", _t5(1024, 24, 32, 16384, d_kv=128)),
    "facebook/bart-base": ("bart", _bart(768, 6, 12, 50265)),
    "facebook/bart-large": ("bart", _bart(1024, 12, 16, 50265)),
    "facebook/mbart-large-50": ("mbart", _bart(1024, 12, 16, 250054)),
    "Helsinki-NLP/opus-mt-en-de": (
        "marian",
        _bart(512, 6, 8, 58101, 512, pad_token_id=58100, decoder_start_token_id=58100),
    ),
    "facebook/nllb-200-distilled-600M": ("m2m_100", _bart(1024, 12, 16, 256206)),
}
"""Hub id to model type and config fields, as published in the model's ``config.json``."""


def planned_config(config: ModelConfig, task: Task) -> PretrainedConfig:
    """The config of the model that the settings name: from the table above by Hub id (with or without its
    owner, in ``model.name`` or ``model.size``), else as the run itself would read it.

    Raises:
        InputError: neither in the table nor to be found; the message names what the table has.
    """
    from hftk.models.load import lay_over, model_config, set_dropout

    name = _published(config)
    if name is None:
        try:
            made = model_config(config, task)
            if config.name is None and (config.tokenizer or task.tokenizer_kind) in SMALLEST_VOCABULARY:
                _resize(made, max(config.vocab_size, config.config.get("vocab_size", 0)))
            return made
        except InputError as error:
            named = {p.setting for p in error.problems} & {"model.name", "model.size"}
            asked = config.name or config.size or ""
            near = get_close_matches(_short(asked), BY_SHORT_NAME, n=3, cutoff=0.5)
            if not named or not near or (config.name and Path(config.name).exists()):
                raise
            hint = f"shapes that are known without a network: {', '.join(BY_SHORT_NAME[n] for n in near)} ..."
            problem = error.problems[0]
            raise InputError(
                Problem(setting=problem.setting, message=problem.message, fix=f"{problem.fix}; {hint}")
            ) from error
    from transformers import AutoConfig

    kind, fields = SHAPES[name]
    made = AutoConfig.for_model(kind, **fields)
    lay_over(made, config.config)
    if config.dropout is not None:
        set_dropout(made, config.dropout)
    return made


def _resize(made: PretrainedConfig, entries: int) -> None:
    """As many entries as a tokenizer trained on the spot may have, its special ones among them."""
    made.vocab_size = entries
    if hasattr(made, "decoder_vocab_size"):
        made.decoder_vocab_size = entries
    for name in (
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "forced_eos_token_id",
    ):
        if isinstance(getattr(made, name, None), int) and getattr(made, name) >= entries:
            setattr(made, name, 0)


def _short(name: str) -> str:
    """llama-2-7b for meta-llama/Llama-2-7b-hf."""
    return name.rpartition("/")[2].lower().removesuffix("-hf").removeprefix("meta-")


BY_SHORT_NAME: Mapping[str, str] = {_short(name): name for name in SHAPES}


def _published(config: ModelConfig) -> str | None:
    asked = config.name if config.name is not None else config.size
    if asked is None or Path(asked).exists():
        return None
    by_case = {name.lower(): name for name in SHAPES}
    return by_case.get(asked.lower()) or (BY_SHORT_NAME.get(_short(asked)) if "/" not in asked else None)
