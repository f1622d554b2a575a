"""Tokenizers trained on the spot lose no text, repeat themselves, and are the same after saving."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hftk.models.tokenizers import (
    BERT_TOKENS,
    END_OF_TEXT,
    SMALLEST_VOCABULARY,
    T5_TOKENS,
    UNKNOWN,
    character_table,
    look_up,
    train_byte_bpe,
    train_characters,
    train_tokenizer,
)
from hftk.tasks.tokenization import tokenize

TEXTS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps.\n",
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
    "naïve café, Straße, Ελληνικά, русский, العربية, हिन्दी",
    "emoji 👩‍👩‍👧‍👦 🇨🇳 👍🏽 and e\u0301 beside é",
    "  two  spaces,\ttabs\t\t, \r\n, \n\n\n and trailing   ",
    "\u3000全角　空白\u00a0no-break\u200bzero-width",
    "",
    "\n",
]
UNSEEN = "Zażółć gęślą jaźń 龍 🦖 \x00\x07 ﷽"


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def bpe() -> Any:
    return train_byte_bpe(TEXTS, 400)


@pytest.fixture(scope="module")
def characters() -> Any:
    return train_characters(TEXTS, 1000)


# --- Byte-level BPE


@pytest.mark.parametrize("text", [*TEXTS, UNSEEN])
def test_bpe_gives_every_text_back_seen_or_unseen(bpe: Any, text: str) -> None:
    assert bpe.decode(ids(bpe, text)) == text


def test_bpe_learns_pairs_and_keeps_to_the_size_asked_for(bpe: Any) -> None:
    assert len(bpe) == 400 and bpe.unk_token is None
    assert len(ids(bpe, "the dog")) < len("the dog")
    assert len(train_byte_bpe(["aaaa"], 300)) == 259  # 256 bytes, the end of text, aa, aaaa
    assert len(train_byte_bpe(TEXTS, 257)) == 257
    assert len(ids(train_byte_bpe(TEXTS, 257), "月")) == len("月".encode())


def test_the_end_of_text_is_also_start_and_padding_and_is_not_in_plain_text(
    bpe: Any, characters: Any
) -> None:
    for tokenizer in (bpe, characters):
        assert {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token} == {END_OF_TEXT}
        assert tokenizer.eos_token_id == 0
        assert tokenizer("dog")["input_ids"] == ids(tokenizer, "dog")  # nothing is added by itself
        assert 0 not in ids(tokenizer, "".join(TEXTS))


@pytest.mark.parametrize("train", [train_byte_bpe, train_characters])
def test_training_is_deterministic(train: Any) -> None:
    first, second = (train(TEXTS, 330).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


# --- Characters


@pytest.mark.parametrize("text", TEXTS)
def test_each_character_is_one_token_line_ends_included(characters: Any, text: str) -> None:
    found = ids(characters, text)
    assert len(found) == len(text) and characters.decode(found) == text


def test_the_most_frequent_characters_are_kept_and_ties_go_by_code_point() -> None:
    tokenizer = train_characters(["aabbbc", "d\n\n\n\n"], 5)
    assert tokenizer.convert_ids_to_tokens(range(5)) == [END_OF_TEXT, UNKNOWN, "\n", "b", "a"]
    assert len(tokenizer) == 5
    assert len(train_characters(["aabbbc"], 1000)) == 5
    assert train_characters(["cba"], 4).convert_ids_to_tokens([2, 3]) == ["a", "b"]
    assert len(train_characters(["abc"], 3)) == 3


def test_an_unknown_character_is_one_unknown_token_each(characters: Any) -> None:
    found = ids(characters, "do龍龍g")
    assert found.count(characters.unk_token_id) == 2 and len(found) == 5
    assert characters.decode(found, skip_special_tokens=True) == "dog"


# --- The table in place of the Rust tokenizer


def through_rust(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_the_table_gives_what_the_tokenizer_gives(characters: Any) -> None:
    table = character_table(characters.backend_tokenizer)
    assert table is not None
    points = [p for p in (*range(0xD800), *range(0xE000, 0x110000)) if p % 97 == 0 or p < 0x300]
    random.Random(0).shuffle(points)
    for text in (*TEXTS, UNSEEN, "".join(map(chr, points))):
        assert look_up(text, table).tolist() == through_rust(characters, text)
        assert tokenize([text], characters)[0].tolist() == through_rust(characters, text)


def test_special_tokens_written_out_in_a_text_are_what_the_tokenizer_makes_of_them(characters: Any) -> None:
    for text in (f"dog{END_OF_TEXT}dog", UNKNOWN, "<|endoftext|", f"a {END_OF_TEXT}"):
        assert tokenize(["dog", text], characters)[1].tolist() == through_rust(characters, text)


def test_only_tokenizers_of_single_characters_have_a_table(bpe: Any) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    def plain(
        pattern: Any = None, behaviour: str = "isolated", normalizer: Any = None, invert: bool = False
    ) -> Any:
        tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern or Regex(r"[\s\S]"), behaviour, invert=invert)
        if normalizer:
            tokenizer.normalizer = normalizer
        return tokenizer

    assert character_table(plain()) is not None
    others = [
        plain(Regex(r"\S")),
        plain("a"),
        plain(behaviour="removed"),
        plain(normalizer=normalizers.Lowercase()),
        plain(invert=True),
    ]
    no_split = plain()
    no_split.pre_tokenizer = pre_tokenizers.Whitespace()
    no_unknown = Tokenizer(models.WordLevel({"a": 0}, unk_token="?"))
    no_unknown.pre_tokenizer = plain().pre_tokenizer
    for other in (*others, no_split, no_unknown, bpe.backend_tokenizer):
        assert character_table(other) is None


# --- Saving


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama"])
@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_saved_and_loaded_by_transformers_it_is_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, model_type: str | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, UNSEEN):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(ids(loaded, text)) == tokenizer.decode(ids(tokenizer, text))
    assert [a.tolist() for a in tokenize(TEXTS, loaded)] == [a.tolist() for a in tokenize(TEXTS, tokenizer)]
    assert (len(loaded), loaded.eos_token_id, loaded.pad_token_id) == (len(tokenizer), 0, 0)
    assert (character_table(loaded.backend_tokenizer) is None) == (kind == "bpe")


# --- Encoders

KINDS = ("bpe", "wordpiece", "characters")
MANY_TIES = """
import hashlib, random, sys
from hftk.models.tokenizers import train_tokenizer
r = random.Random(0)
words = " ".join("".join(r.choice("abcdefghijklm") for _ in range(r.randrange(2, 9))) for _ in range(2000))
poems = ["".join(chr(0x4E00 + r.randrange(1000)) for _ in range(50)) for _ in range(60)]
for kind in ("bpe", "wordpiece", "characters"):
    for size in (400, 2000):
        made = train_tokenizer(kind, iter([words, *poems]), size, frame="bert")
        print(hashlib.sha256(made.backend_tokenizer.to_str().encode()).hexdigest())
"""


@pytest.fixture(scope="module", params=KINDS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return train_tokenizer(request.param, iter(TEXTS), 400, frame="bert")


def test_every_process_trains_the_same_tokenizer() -> None:
    """Hash tables are seeded anew in each process, so that a second training in this one would prove
    nothing."""
    found = [
        subprocess.run([sys.executable, "-c", MANY_TIES], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] and len(set(found[0].split())) == 6


def test_encoders_frame_texts_and_pairs_as_bert_does(encoder: Any) -> None:
    cls, sep = encoder.cls_token_id, encoder.sep_token_id
    a, b = ids(encoder, "the dog"), ids(encoder, "fox")
    assert encoder("the dog")["input_ids"] == [cls, *a, sep]
    pair = encoder("the dog", "fox")
    assert pair["input_ids"] == [cls, *a, sep, *b, sep]
    assert pair["token_type_ids"] == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_the_special_tokens_of_encoders_come_first_in_one_order(encoder: Any) -> None:
    assert encoder.convert_ids_to_tokens(range(5)) == list(BERT_TOKENS.values())
    assert (
        encoder.pad_token_id,
        encoder.unk_token_id,
        encoder.cls_token_id,
        encoder.sep_token_id,
        encoder.mask_token_id,
    ) == (0, 1, 2, 3, 4)
    assert (
        not set(range(5)) & set(ids(encoder, "the quick dog, 床前明月光"))
        and ids(encoder, "a [SEP]")[-1] == 3
    )
    assert sorted(encoder.get_vocab().values()) == list(range(len(encoder)))


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_keep_to_the_size_asked_for(kind: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyzαβγδεζηθικλμνξοπρστυφχψω"
    text = " ".join(
        letters[i:] + letters[:i] for i in range(len(letters))
    )  # each letter begins a word, each goes on with one
    for size in (SMALLEST_VOCABULARY[kind] + 5, 300):
        assert len(train_tokenizer(kind, [text], size, frame="bert")) <= size
    assert len(train_tokenizer("wordpiece", [text], 64)) <= 64


def test_wordpiece_cuts_words_into_pieces_and_takes_chinese_characters_as_words() -> None:
    tokenizer = train_tokenizer("wordpiece", ["sleeping sleeper asleep sleep sleeps, 床前明月光"] * 3, 400)
    assert tokenizer.tokenize("Sleep, SLEEPS 明月") == ["sleep", ",", "sleeps", "明", "月"]
    pieces = tokenizer.tokenize("sleepleep")
    assert pieces[0] == "sleep" and all(piece.startswith("##") for piece in pieces[1:]) and len(pieces) > 1
    assert "".join(pieces).replace("##", "") == "sleepleep"
    assert tokenizer.tokenize("sleeq 龍月") == [
        "[UNK]",
        "[UNK]",
        "月",
    ]  # a word with a character never seen; a character never seen
    assert tokenizer.decode(ids(tokenizer, "sleeping sleeps")) == "sleeping sleeps"


def test_encoders_may_be_trained_without_a_text() -> None:
    for kind in KINDS:
        assert train_tokenizer(kind, [], 300, frame="bert")("")["input_ids"] == [2, 3]


def test_encoders_saved_and_loaded_are_the_same(tmp_path: Path, encoder: Any) -> None:
    from transformers import AutoTokenizer

    encoder.save_pretrained(tmp_path)
    for model_type in ("bert", "distilbert", "roberta", "modernbert"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for text in (*TEXTS, UNSEEN, "a [SEP] b"):
            assert dict(loaded(text, "fox")) == dict(encoder(text, "fox"))
        assert loaded.model_input_names == encoder.model_input_names and loaded.pad_token_id == 0


# --- Encoder-decoders


@pytest.fixture(scope="module", params=("bpe", "characters"))
def text_to_text(request: pytest.FixtureRequest) -> Any:
    return train_tokenizer(request.param, iter(TEXTS), 400, frame="t5")


def test_encoder_decoders_end_each_text_and_have_the_special_tokens_of_t5(text_to_text: Any) -> None:
    assert text_to_text.convert_ids_to_tokens(range(3)) == list(T5_TOKENS.values())
    assert (text_to_text.pad_token_id, text_to_text.eos_token_id, text_to_text.unk_token_id) == (0, 1, 2)
    a, b = ids(text_to_text, "the dog"), ids(text_to_text, "fox")
    assert text_to_text("the dog")["input_ids"] == text_to_text(text_target="the dog")["input_ids"] == [*a, 1]
    assert text_to_text("the dog", "fox")["input_ids"] == [*a, 1, *b, 1]
    assert text_to_text("")["input_ids"] == [1]
    assert text_to_text.decode([*a, 1, 0, 0], skip_special_tokens=True) == "the dog"


@pytest.mark.parametrize("text", TEXTS)
def test_encoder_decoders_give_every_text_back(text_to_text: Any, text: str) -> None:
    assert text_to_text.decode(text_to_text(text)["input_ids"], skip_special_tokens=True) == text


def test_encoder_decoders_keep_to_the_size_asked_for() -> None:
    assert len(train_tokenizer("bpe", TEXTS, 300, frame="t5")) == 300
    assert len(train_tokenizer("characters", TEXTS, 30, frame="t5")) == 30


def test_an_unknown_character_is_the_unknown_token_in_every_frame() -> None:
    for frame, unknown in (("document", UNKNOWN), ("bert", "[UNK]"), ("t5", "<unk>")):
        tokenizer = train_tokenizer("characters", ["abc"], 20, frame=frame)
        assert tokenizer.tokenize("a龍") == ["a", unknown] and tokenizer.unk_token == unknown


def test_encoder_decoders_saved_and_loaded_are_the_same(tmp_path: Path, text_to_text: Any) -> None:
    from transformers import AutoTokenizer

    text_to_text.save_pretrained(tmp_path)
    for model_type in ("t5", "marian", "bart"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for text in (*TEXTS, UNSEEN, "a </s> b"):
            assert loaded(text)["input_ids"] == text_to_text(text)["input_ids"]
            assert loaded(text_target=text)["input_ids"] == text_to_text(text)["input_ids"]
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
