"""An encoder-decoder whose two halves both start from one encoder such as BERT.

Rothe, Narayan & Severyn 2020, *Leveraging Pre-trained Checkpoints for Sequence Generation Tasks*
(arXiv:1907.12461), BERT2BERT: the encoder is the checkpoint as it is; the decoder is a copy of it that looks
at what came before alone, and at the encoder through cross-attention, whose weights are new. The halves are
not tied: an ``EncoderDecoderModel`` of transformers 5 forgets that they were when it is loaded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hftk.config import InputError, Problem
from hftk.console import note
from hftk.models.hub_names import from_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SUITED = "BERT, RoBERTa, XLM-RoBERTa, ELECTRA, CamemBERT or ERNIE"


def half_problems(made: PretrainedConfig) -> Iterator[Problem]:
    """Why no decoder can be made of an encoder: looked up by making one without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            names = [
                name
                for name, _ in from_config(AutoModelForCausalLM, _decoder_config(made)).named_parameters()
            ]
    except Exception:  # an architecture that transformers has no decoder of
        names = []
    if not any("crossattention" in name.lower().replace("_", "") for name in names):
        message = (
            f"{made.model_type} is an encoder that transformers has no decoder with cross-attention of, so it"
            " cannot write texts"
        )
        yield Problem(
            setting="model.name",
            message=message,
            fix=f"use an encoder-decoder (T5, BART, Marian), a decoder (GPT-2, Llama), or {SUITED}",
        )


def frame_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the tokens that an encoder's tokenizer puts before and after a text: [CLS] and [SEP] of BERT,
    <s> and </s> of RoBERTa. The first starts the decoder, the second ends its texts.

    Raises:
        InputError: it has none.
    """
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        message = "expected a tokenizer with tokens that start and end a text ([CLS] and [SEP]), found none"
        raise InputError(
            Problem(setting="model.name", message=message, fix="use a tokenizer of a BERT-like model")
        )
    return int(start), int(end)


def warm_start(
    made: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[Any, PretrainedConfig], tuple[Any, Any]],
) -> tuple[PreTrainedModel, set[str]]:
    """An ``EncoderDecoderModel`` with the weights of one encoder in both halves, and the names of its new
    weights.

    ``load(auto_class, config)`` gives a model of the checkpoint and transformers' loading info.
    """
    from transformers import AutoModel, AutoModelForCausalLM, EncoderDecoderModel

    start, end = frame_tokens(tokenizer)
    with _quiet():
        encoder, _ = load(AutoModel, deepcopy(made))
        decoder, loading = load(AutoModelForCausalLM, _decoder_config(made))
    for half in (encoder, decoder):
        if len(tokenizer) > half.get_input_embeddings().weight.shape[0]:
            half.resize_token_embeddings(len(tokenizer))
    config = joined_config(encoder.config, decoder.config)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = (
        start,
        end,
        tokenizer.pad_token_id,
    )
    config.vocab_size = decoder.config.vocab_size
    model: Any = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    settings = model.generation_config
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = (
        start,
        end,
        tokenizer.pad_token_id,
    )
    settings.bos_token_id = None
    new = {f"decoder.{name}" for name in loading["missing_keys"]}
    cross = sum(p.numel() for name, p in model.named_parameters() if "crossattention" in name.lower())
    head = sorted(name for name in new if "crossattention" not in name.lower())
    note(
        f"{made.model_type} is an encoder: it becomes both halves of an encoder-decoder (Rothe et al. 2020),"
        f" joined by cross-attention of {cross:,} new weights"
        + (
            f"; new too, as the checkpoint has no language model's head: {', '.join(head[:4])}"
            if head
            else ""
        )
    )
    _note_letters(tokenizer)
    freeze_unread(model)
    return model, new


def freeze_unread(model: Any) -> None:
    """The pooler of an encoder gets no gradient, as no decoder looks at it: not trained, or
    DistributedDataParallel would wait for it."""
    from transformers import EncoderDecoderModel

    pooler = getattr(model.encoder, "pooler", None) if isinstance(model, EncoderDecoderModel) else None
    if pooler is not None:
        pooler.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of weights that are new and of those left over, which asks whether the
    checkpoint is damaged: all of it is meant so, and :func:`warm_start` says it in a line."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def joined_config(made: PretrainedConfig, decoder: PretrainedConfig | None = None) -> Any:
    """The config of an encoder-decoder whose halves are ``made`` and ``decoder`` (default: ``made`` as a
    decoder)."""
    from transformers import EncoderDecoderConfig

    config: Any = EncoderDecoderConfig.from_encoder_decoder_configs(made, decoder or _decoder_config(made))
    config.vocab_size, config.pad_token_id = made.vocab_size, made.pad_token_id
    return config


def _decoder_config(made: PretrainedConfig) -> Any:
    config: Any = deepcopy(made)
    config.is_decoder, config.add_cross_attention = True, True
    return config


def _note_letters(tokenizer: PreTrainedTokenizerBase) -> None:
    """What the tokenizer cannot write, and which scores that costs."""
    if tokenizer.tokenize("ABC") == tokenizer.tokenize("abc"):
        note(
            "the tokenizer makes capitals small and sets punctuation apart, so outputs have no capitals:"
            " ROUGE does not see it, cased BLEU, chrF and TER count each as a mistake (a cased model has none"
            " of this)"
        )
