"""What tasks on decoder-only models share: documents as targets, blocks of packed pieces, and a look at the
model's attention."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem
from hftk.task import IGNORED

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from hftk.task import Batch

LEAK = 0.01
"""Change of a logit, in standard deviations of the logits, from which on a token is taken to see what it must
not see: an attention that is closed gives exactly 0, an open one 0.02 to 2 in untrained models."""


# --- Tokens


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a document.

    Raises:
        InputError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            Problem(
                setting="model.name",
                message="the tokenizer has no end-of-text (eos) token, so documents cannot be ended",
                fix=(
                    'save it with one: tokenizer.add_special_tokens({"eos_token": "</s>"}), and resize the'
                    " model"
                ),
            )
        )
    return int(tokenizer.eos_token_id)


def start_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token in whose context the first token of a document is predicted.

    The tokenizer's bos token where it puts one itself (Llama); else the end-of-text token, which in packed
    pre-training stands before every document (GPT-2).
    """
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        return int(bos)
    return end_of_text(tokenizer)


def join(documents: list[np.ndarray], start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """All documents end to end, each after ``start`` and before ``end``: (tokens,) ids and (tokens,) the same
    as targets.

    One token is both the end of a document and the start of the next where they are the same; a start token
    of its own is context only, and no target.
    """
    head = [] if start == end else [start]
    parts = [np.concatenate([head, document, [end]]) for document in documents]
    tokens = np.concatenate([[] if head else [start], *parts]).astype(np.int32)
    targets = tokens.copy()
    if head:
        lengths = np.array([len(part) for part in parts], np.int64)
        targets[np.cumsum(lengths) - lengths] = IGNORED
    return tokens, targets


def opening(text: str, words: int = 8, characters: int = 40) -> str:
    """The first words of a text, as they stand in its first line: a prompt. A word that is too long is
    cut."""
    begun = re.match(rf"\s*\S+(?:[^\S\n]+\S+){{0,{words - 1}}}", text)
    head = begun[0].lstrip() if begun else ""
    if len(head) <= characters:
        return head
    return head[:characters].rsplit(None, 1)[0] if re.search(r"\s", head[:characters]) else head[:characters]


# --- Batches and logits


def next_token_logits(model: Any, batch: Batch) -> torch.Tensor:
    """(batch, tokens, vocabulary)."""
    logits: torch.Tensor = model(**decoder_inputs(batch), use_cache=False).logits
    return logits[:, -batch["input_ids"].shape[1] :]  # those of virtual tokens (prompt tuning) stand before


def decoder_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """What a decoder reads of a batch. Packed pieces are told apart by ``position_ids`` alone: with an
    attention mask or a cache, transformers lets attention leak between documents (see
    masking_utils.find_packed_sequence_indices)."""
    return {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Features to a batch; padding is a piece of its own, so that packed attention keeps it apart."""
    import torch

    width = max(len(f["input_ids"]) for f in features)
    input_ids = np.zeros((len(features), width), np.int64)
    labels = np.full((len(features), width), IGNORED, np.int64)
    for i, feature in enumerate(features):
        n = len(feature["input_ids"])
        input_ids[i, :n], labels[i, :n] = feature["input_ids"], feature["labels"]
    batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    if any(len(f.get("pieces", ())) > 1 for f in features):
        batch["position_ids"] = torch.from_numpy(np.stack([_positions(f["pieces"], width) for f in features]))
    return batch


def _positions(pieces: list[int], width: int) -> np.ndarray:
    """(width,) 0, 1, 2 ... from the start of every piece; the padding counts as one more piece."""
    starts = [0, *accumulate(pieces)]
    lengths = [*pieces, width - starts[-1]]
    return np.arange(width) - np.repeat(starts, lengths)


def check_attention(model: Any, *, packed: bool) -> None:
    """See by one forward pass of three short rows that no token sees what comes later, nor (``packed``) other
    documents.

    Not every model type that takes ``position_ids`` goes by them: OPT and Falcon (transformers 5.23) look at
    the document before, and encoders such as BERT look ahead, without a word.

    Raises:
        InputError: the model looks where it must not.
    """
    import torch

    from hftk.models import device_map

    rows = (
        torch.tensor([[1, 3, 4], [5, 3, 4], [1, 3, 6]]) % model.config.vocab_size
    )  # another past, another future
    batch = {"input_ids": rows.to(device_map.device_of(model))}
    if packed:
        batch["position_ids"] = torch.tensor([[0, 0, 1]] * 3, device=batch["input_ids"].device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = next_token_logits(model, batch)[:, 1].float()  # (rows, vocabulary)
        past, future = (float((logits[0] - logits[i]).abs().max() / logits.std()) > LEAK for i in (1, 2))
    except TypeError:  # its forward takes no position_ids
        past, future = packed, False
    finally:
        model.train(training)
    kind = model.config.model_type
    if future:
        message = f"{kind} is no causal language model: its tokens see those that come after them"
        raise InputError(
            Problem(setting="model.name", message=message, fix="choose a decoder such as GPT-2 or Llama")
        )
    if packed and past:
        message = f"{kind} cannot keep packed documents apart: its attention crosses from one to the next"
        raise InputError(Problem(setting="packing", message=message, fix="use --packing concatenate"))
