"""Encoder-decoders (T5, BART, Marian, two BERTs) for tasks that turn one text into another: how they read and learn pairs of texts.

| input             | shape                   | meaning                                                                |
|-------------------|-------------------------|------------------------------------------------------------------------|
| input_ids         | (batch, source tokens)  | the source with the model's special tokens                             |
| attention_mask    | (batch, source tokens)  | 1, and 0 for padding                                                   |
| decoder_input_ids | (batch, target tokens)  | the target, one place to the right, behind the decoder's start token   |
| labels            | (batch, target tokens)  | the target and its end token, -100 for padding                         |
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem
from hftk.models.architectures import TWO_MODELS, kind_of, positions
from hftk.models.encoder_decoder import frame_tokens
from hftk.task import IGNORED
from hftk.tasks.encoder_inputs import encode_texts, pad

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hftk.task import Batch


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """An encoder reads the source, and a decoder writes the target;
    :class:`hftk.tasks.prompts.PromptedDecoder` is the other way."""

    made: PretrainedConfig | None = None
    """The config that the model comes with; None for one made on the spot."""
    max_target_length: int | None = None

    auto_model = "AutoModelForSeq2SeqLM"
    two_sided = True

    def start(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int | None
    ) -> int | None:
        """Most tokens of an output, or None for no limit.

        Raises:
            InputError: targets may be longer than the decoder has positions.
        """
        places = positions(model.config.get_text_config(decoder=True))
        if places is None:
            return None
        if self.max_target_length is not None and self.max_target_length > places:
            message = (
                f"expected at most {places}, the positions of the model's decoder, found"
                f" {self.max_target_length}"
            )
            raise InputError(
                Problem(setting="max_target_length", message=message, fix=f"use --max_target_length {places}")
            )
        return places - 1

    def prompts(
        self, sources: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, new: int
    ) -> tuple[list[str], np.ndarray]:
        """The sources as they are: generation cuts those that are too long."""
        return sources, np.zeros(len(sources), np.int64)

    def encode(
        self,
        sources: list[str],
        targets: list[str] | None,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
        """(``input_ids`` cut to ``max_length``, and ``labels`` where there are targets; facts as of
        :func:`~hftk.tasks.encoder_inputs.encode_texts`)."""
        columns, facts = encode_texts(sources, None, tokenizer, max_length=max_length, truncation="head")
        made = {"input_ids": columns["input_ids"]}
        return made if targets is None else made | {"labels": self.answers(targets, tokenizer)}, facts

    def answers(self, targets: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
        """Ids of each target and its end. The tokenizers of BERT and RoBERTa put the token there first that
        starts the decoder of two models: it is given, and not learned."""
        ids = target_ids(targets, tokenizer)
        start = self._start(tokenizer)
        return ids if start is None else [row[1:] if row[0] == start else row for row in ids]

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        if self.made is None:
            return None
        if kind_of(self.made) == "encoder":
            return frame_tokens(tokenizer)[0]
        made: Any = self.made
        return made.decoder_start_token_id if made.model_type == TWO_MODELS else None

    def longest_target(self, max_length: int) -> int:
        """Most tokens of a target, its end included."""
        return self.max_target_length or max_length

    def collate(
        self, features: list[dict[str, Any]], model: PreTrainedModel, pad_id: int
    ) -> dict[str, torch.Tensor]:
        """One batch, both sides padded on the right."""
        batch = pad(features, pad_id)
        if "labels" in features[0]:
            batch["labels"] = _padded([f["labels"] for f in features], IGNORED)
            batch["decoder_input_ids"] = shift_right(model, batch["labels"], pad_id)
        return batch

    def aligned(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the model is called with, and (batch, target tokens) labels, each the target of the logits in
        its place."""
        return {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}, batch[
            "labels"
        ]


def target_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Ids of each target as the tokenizer frames targets (Marian and mBART frame them in their own way),
    whole, and with the end token where the tokenizer (GPT-2's) puts none: else no model would learn to
    end."""
    if not texts:
        return []
    made: Any = tokenizer(text_target=["a", *texts], add_special_tokens=True, truncation=False, verbose=False)
    probe, *every = made["input_ids"]
    end = tokenizer.eos_token_id
    added = [] if end is None or end in probe else [end]
    return [np.array([*ids, *added], np.int32) for ids in every]


def shift_right(model: Any, labels: torch.Tensor, pad_id: int) -> torch.Tensor:
    """(batch, target tokens) inputs of the decoder: by the model's own rule where it has one, else behind its
    start token."""
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        shifted: torch.Tensor = own(labels=labels)
        return shifted
    start = model.config.decoder_start_token_id
    shifted = labels.new_full(labels.shape, pad_id)
    shifted[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, pad_id)
    shifted[:, 0] = pad_id if start is None else start
    return shifted


def _padded(rows: list[np.ndarray], filler: int) -> torch.Tensor:
    import torch

    width = max(map(len, rows))
    made = np.full((len(rows), width), filler, np.int64)
    for i, ids in enumerate(rows):
        made[i, : len(ids)] = ids
    return torch.from_numpy(made)
