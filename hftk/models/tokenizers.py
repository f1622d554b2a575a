"""Tokenizers trained on the spot, for models that are made on the spot."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""Special tokens of encoders, as BERT calls them."""
T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Special tokens of encoder-decoders, as T5 calls them, and in its order."""
SPECIAL = {"bert": list(BERT_TOKENS.values()), "t5": list(T5_TOKENS.values())}
SMALLEST_VOCABULARY = {"bpe": 257, "wordpiece": 64, "characters": 3}
"""A special token and the bytes; an alphabet; two special tokens and one character. For an encoder, five
more."""
CODE_POINTS = 0x110000
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u3000-\u303f\uff00-\uffef"
_BESIDE_CHINESE = re.compile(f"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])")
_APOSTROPHE = re.compile(r"(?<=\w) ' (?=(?:s|t|m|re|ve|ll|d)\b)")
ANY_CHARACTER = r"[\s\S]"


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, *, frame: str = "document"
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one of the kinds in :data:`SMALLEST_VOCABULARY` on ``texts``.

    ``frame`` is what stands around a text: ``document``, nothing (an end-of-text token is known); ``bert``,
    ``[CLS] text [SEP]`` and ``[CLS] text [SEP] pair [SEP]``; ``t5``, ``text </s>``. wordpiece always has
    bert's.
    """
    if kind == "wordpiece":
        return train_wordpiece(texts, vocab_size)
    return (train_byte_bpe if kind == "bpe" else train_characters)(texts, vocab_size, frame=frame)


def train_byte_bpe(
    texts: Iterable[str], vocab_size: int, *, frame: str = "document"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's (Radford et al. 2019): loses no text in any language, needs no unknown token.

    ``vocab_size`` (at least 257) counts the end-of-text token and the 256 bytes; fewer entries come out where
    the data have fewer pairs.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL.get(frame, [END_OF_TEXT]),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _framed(tokenizer, frame)


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece as BERT's (Devlin et al. 2019): words are cut into the longest known pieces, a
    Chinese character is a word. A word with an unknown character becomes ``[UNK]``.

    The same texts give the same tokenizer in every process. The trainer of ``tokenizers`` alone does not: it
    keeps any of the characters that are equally frequent, and numbers the pieces inside words in the order of
    a hash table. So it is told both.
    """
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts, special = list(texts), list(BERT_TOKENS.values())
    normalizer = normalizers.BertNormalizer(lowercase=True)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(normalizer.normalize_str(text).split(" "))
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    # A character may stand at the beginning of words and, as another entry, inside them.
    most = (vocab_size - len(special)) // 2
    alphabet = sorted(counts, key=lambda c: (-counts[c], c))[:most]

    def assemble(model: Any) -> Tokenizer:
        made = Tokenizer(model)
        made.normalizer, made.decoder = normalizer, decoders.WordPiece()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return made

    def train(texts: Iterable[str], size: int, first: list[str]) -> dict[str, int]:
        """Entry to number, ``first`` numbered first."""
        tokenizer = assemble(models.WordPiece(unk_token=BERT_TOKENS["unk_token"]))
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            special_tokens=first,
            show_progress=False,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return dict(tokenizer.get_vocab(with_added_tokens=False))

    inside = sorted(piece for piece in train(words, 0, special) if piece.startswith("##"))
    vocabulary = train(texts, vocab_size, special + inside)
    tokenizer = assemble(models.WordPiece(vocabulary, unk_token=BERT_TOKENS["unk_token"]))
    tokenizer.add_special_tokens(special)
    return _frame(tokenizer)


def _unknown(frame: str) -> str:
    return (BERT_TOKENS if frame == "bert" else T5_TOKENS)["unk_token"]


def _framed(tokenizer: Any, frame: str, **tokens: str) -> PreTrainedTokenizerFast:
    """The tokenizer with the special tokens of its frame around a text."""
    if frame == "document":
        return _wrap(tokenizer, **tokens)
    return _frame(tokenizer) if frame == "bert" else _end(tokenizer)


def _end(tokenizer: Any) -> PreTrainedTokenizerFast:
    """``text </s>``."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    end = T5_TOKENS["eos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **T5_TOKENS
    )


def _frame(tokenizer: Any) -> PreTrainedTokenizerFast:
    """``[CLS] a [SEP]`` and ``[CLS] a [SEP] b [SEP]``, with the token types of BERT."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    cls, sep = BERT_TOKENS["cls_token"], BERT_TOKENS["sep_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **BERT_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def train_characters(
    texts: Iterable[str], vocab_size: int, *, frame: str = "document"
) -> PreTrainedTokenizerFast:
    """One token per character (code point) of the texts, the most frequent ones first, as nanoGPT's character
    level.

    ``vocab_size`` (at least 3) counts the end-of-text and the unknown token; a character that is not among
    them becomes the latter.
    """
    from collections import Counter

    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    special = SPECIAL.get(frame, [END_OF_TEXT, UNKNOWN])
    kept = sorted(counts, key=lambda c: (-counts[c], c))[: vocab_size - len(special)]
    vocabulary = {token: i for i, token in enumerate([*special, *kept])}
    tokenizer = Tokenizer(
        models.WordLevel(vocabulary, unk_token=UNKNOWN if frame == "document" else _unknown(frame))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _framed(tokenizer, frame, unk_token=UNKNOWN)


def join_wordpieces(text: str, tokenizer: Any) -> str:
    """What a WordPiece tokenizer decoded, with fewer of the spaces that it puts between all words and marks;
    of any other tokenizer the text as it is.

    A Chinese character is a word to BERT, and text around it is written without spaces; "don ' t" becomes
    "don't". What cannot be known stays: "3. 5" may have been "3.5".
    """
    from tokenizers import models

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.WordPiece):
        return text
    return _APOSTROPHE.sub("'", _BESIDE_CHINESE.sub("", text))


def character_table(backend: Any) -> np.ndarray | None:
    """(code points,) id of every character, for a Rust tokenizer made by :func:`train_characters`; None for
    any other.

    Looking 1M characters up takes 0.02 s in numpy, and 2.7 s in Rust, which runs a regular expression at
    each.
    """
    import json

    from tokenizers import models, pre_tokenizers

    simple = isinstance(backend.model, models.WordLevel) and isinstance(
        backend.pre_tokenizer, pre_tokenizers.Split
    )
    if not simple or backend.normalizer is not None:
        return None
    split = json.loads(backend.pre_tokenizer.__getstate__())
    vocabulary = backend.get_vocab(with_added_tokens=False)
    unknown = vocabulary.get(backend.model.unk_token)
    if (split["pattern"], split["behavior"], split["invert"]) != (
        {"Regex": ANY_CHARACTER},
        "Isolated",
        False,
    ) or unknown is None:
        return None
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
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        **tokens,
    )
