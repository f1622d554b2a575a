"""Tokenizers trained on the spot, for models that are made on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
SMALLEST_VOCABULARY = {"bpe": 257, "characters": 3}
"""The special tokens, and the bytes or one character."""
CODE_POINTS = 0x110000
ANY_CHARACTER = r"[\s\S]"


def train_byte_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's (Radford et al. 2019): loses no text in any language, needs no unknown token.

    ``vocab_size`` (at least 257) counts the end-of-text token and the 256 bytes; fewer entries come out where the data have
    fewer pairs.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def train_characters(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """One token per character (code point) of the texts, the most frequent ones first, as nanoGPT's character level.

    ``vocab_size`` (at least 3) counts the end-of-text and the unknown token; a character that is not among them becomes the
    latter.
    """
    from collections import Counter

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: vocab_size - 2]
    vocabulary = {token: i for i, token in enumerate([END_OF_TEXT, UNKNOWN, *kept])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, unk_token=UNKNOWN)


def character_table(backend: Any) -> np.ndarray | None:
    """(code points,) id of every character, for a Rust tokenizer made by :func:`train_characters`; None for any other.

    Looking 1M characters up takes 0.02 s in numpy, and 2.7 s in Rust, which runs a regular expression at each.
    """
    import json

    from tokenizers import models, pre_tokenizers

    simple = isinstance(backend.model, models.WordLevel) and isinstance(backend.pre_tokenizer, pre_tokenizers.Split)
    if not simple or backend.normalizer is not None:
        return None
    split = json.loads(backend.pre_tokenizer.__getstate__())
    vocabulary = backend.get_vocab(with_added_tokens=False)
    unknown = vocabulary.get(backend.model.unk_token)
    if (split["pattern"], split["behavior"], split["invert"]) != ({"Regex": ANY_CHARACTER}, "Isolated", False) or unknown is None:
        return None  # fmt: skip
    table = np.full(CODE_POINTS, unknown, np.int32)
    known = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
    table[list(known)] = list(known.values())
    return table


def look_up(text: str, table: np.ndarray) -> np.ndarray:
    """(characters,) ids of a text by :func:`character_table`."""
    return table[np.frombuffer(text.encode("utf-32-le"), np.uint32)]


def _wrap(tokenizer: object, **tokens: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False, **tokens,
    )  # fmt: skip
