"""Texts to token ids, fast and whole: nothing is cut, nothing added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hftk.models.tokenizers import character_table, look_up

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Token ids of each text, whole and without special tokens, as int32 arrays.

    Uses the Rust tokenizer directly where there is one, and a table where every character is a token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not texts:
        return []
    if backend is None:
        return [np.array(ids, np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # It may have been saved with limits, or keep those of an earlier call.
    backend.no_truncation()
    backend.no_padding()
    ids: list[np.ndarray] = []
    table = character_table(backend)
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    for at in range(0, len(texts), 1000):  # the Rust objects are large: convert them chunk by chunk
        chunk = texts[at : at + 1000]
        if table is not None and not any(token in text for text in chunk for token in added):
            ids.extend(look_up(text, table) for text in chunk)
        else:
            encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
            ids.extend(np.array(e.ids, np.int32) for e in encodings)
    return ids


def describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """A tokenizer's name and size for signatures."""
    return f"{type(tokenizer).__name__}[{len(tokenizer)}]"
