"""Texts and pairs become what transformers makes of them, whatever the tokenizer, and what is cut off is
counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hftk.config import InputError
from hftk.models.tokenizers import train_characters, train_wordpiece
from hftk.tasks.encoder_inputs import encode_texts, pad, places_of, template_of
from hftk.tasks.tokenization import tokenize

ENGLISH = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. Naïve café!"
CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
TEXTS = [
    ENGLISH,
    CHINESE,
    "",
    "fox",
    "the dog the dog the dog",
    "a [SEP] b </s> c [CLS]",
    "  spaces\tand\nlines ",
    "🦊 unseen ß",
    "dog " * 40,
    "月" * 30,
    "fox jumps over dog",
]
PAIRS = [*TEXTS[3:], *TEXTS[:3]]


def make_byte_bpe(special: list[str], processor: Any, **tokens: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator([ENGLISH, CHINESE], trainer)
    backend.post_processor = processor(backend.token_to_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **tokens,
    )


def make_roberta() -> Any:
    """``<s> a </s>`` and ``<s> a </s></s> b </s>``, no token types."""
    from tokenizers.processors import RobertaProcessing

    return make_byte_bpe(
        ["<s>", "<pad>", "</s>", "<unk>"],
        lambda number: RobertaProcessing(("</s>", number("</s>")), ("<s>", number("<s>"))),
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def make_modernbert() -> Any:
    """``[CLS] a [SEP] b [SEP]``, no token types."""
    from tokenizers.processors import TemplateProcessing

    def processor(number: Any) -> Any:
        tokens = [(token, number(token)) for token in ("[CLS]", "[SEP]")]
        return TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=tokens
        )

    return make_byte_bpe(
        ["[CLS]", "[SEP]", "[PAD]"], processor, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def make_t5() -> Any:
    """``a </s>`` and ``a </s> b </s>``: nothing in front."""
    from tokenizers.processors import TemplateProcessing

    def processor(number: Any) -> Any:
        return TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", number("</s>"))]
        )

    return make_byte_bpe(["<pad>", "</s>"], processor, eos_token="</s>", pad_token="<pad>")


MAKERS: dict[str, Any] = {
    "bert": lambda: train_wordpiece([ENGLISH, CHINESE], 200),
    "roberta": make_roberta,
    "modernbert": make_modernbert,
    "t5": make_t5,
    "characters": lambda: train_characters([ENGLISH, CHINESE], 200, frame="bert"),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def bert() -> Any:
    return MAKERS["bert"]()


def encode(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int, truncation: Any = "head"
) -> Any:
    return encode_texts(texts, pairs, tokenizer, max_length=max_length, truncation=truncation)


def plain(rows: list[np.ndarray]) -> list[list[int]]:
    return [row.tolist() for row in rows]


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pair"])
@pytest.mark.parametrize("side, policy", [("right", "head"), ("left", "tail")])
def test_inputs_are_those_of_transformers_at_every_length(
    made: Any, pairs: Any, side: str, policy: str
) -> None:
    made.truncation_side = side
    least = template_of(made, pair=pairs is not None).added + (2 if pairs else 1)
    for max_length in (*range(least, 40), 64, 512):
        found, facts = encode(made, TEXTS, pairs, max_length, policy)
        expected = made(TEXTS, pairs, truncation=True, max_length=max_length)
        assert plain(found["input_ids"]) == expected["input_ids"], max_length
        assert ("token_type_ids" in found) == ("token_type_ids" in expected)
        if "token_type_ids" in found:
            assert plain(found["token_type_ids"]) == expected["token_type_ids"]
        whole = [len(ids) for ids in made(TEXTS, pairs)["input_ids"]]
        over = [n - max_length for n in whole if n > max_length]
        assert (facts["truncated_rows"], facts["tokens_lost"], facts["longest"]) == (
            len(over),
            sum(over),
            max(whole),
        )
        assert facts["tokens"] == sum(map(len, expected["input_ids"])) and facts["max_length"] == max_length
    made.truncation_side = "right"


def test_token_types_tell_the_texts_of_a_pair_apart(bert: Any) -> None:
    found, _ = encode(bert, ["fox"], ["dog"], 20)
    n = [len(ids) for ids in tokenize(["fox", "dog"], bert)]
    assert found["token_type_ids"][0].tolist() == [0] * (n[0] + 2) + [1] * (n[1] + 1)
    assert bert.convert_ids_to_tokens(found["input_ids"][0])[0] == "[CLS]"


def test_of_a_pair_the_longer_text_gives_way_first(bert: Any) -> None:
    a, b = (ids.tolist() for ids in tokenize(["dog " * 10, "fox " * 3], bert))
    long, short = len(a), len(b)
    for room in range(2, long + short + 1):
        ids = encode(bert, ["dog " * 10], ["fox " * 3], room + 3)[0]["input_ids"][0].tolist()
        kept_a, kept_b = ids.index(bert.sep_token_id) - 1, len(ids) - ids.index(bert.sep_token_id) - 2
        assert kept_a + kept_b == room and (kept_b == short or abs(kept_a - kept_b) <= 1)


def test_head_and_tail_keep_a_quarter_and_three_quarters() -> None:
    tokenizer = train_characters(["abcdefghijklmnopqrstuvwxyz"], 100, frame="bert")
    text = "abcdefghijklmnopqrstuvwxyz"

    def kept(max_length: int, policy: str) -> str:
        ids = encode(tokenizer, [text], None, max_length, policy)[0]["input_ids"][0]
        return "".join(tokenizer.convert_ids_to_tokens(ids[1:-1]))

    assert (
        kept(10, "head+tail") == "abuvwxyz"
        and kept(10, "head") == "abcdefgh"
        and kept(10, "tail") == "stuvwxyz"
    )
    assert kept(28, "head+tail") == kept(28, "head") == kept(28, "tail") == text
    assert kept(27, "head+tail") == text[:6] + text[7:]


def test_head_and_tail_of_510_tokens_are_those_of_sun_et_al() -> None:
    tokenizer = train_characters([chr(0x4E00 + i) for i in range(600)], 700, frame="bert")
    text = "".join(chr(0x4E00 + i) for i in range(600))
    ids = encode(tokenizer, [text], None, 512, "head+tail")[0]["input_ids"][0]
    assert "".join(tokenizer.convert_ids_to_tokens(ids[1:-1])) == text[:128] + text[-382:]


def test_head_and_tail_of_a_pair_cut_each_text_by_itself() -> None:
    tokenizer = train_characters(["abcdefghijklmnopqrstuvwxyz"], 100, frame="bert")
    ids = encode(tokenizer, ["abcdefghijkl"], ["mnopqrstuvwx"], 19, "head+tail")[0]["input_ids"][0]
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "[CLS]abghijkl[SEP]mnstuvwx[SEP]"


def test_too_long_rows_are_an_error_where_that_is_asked(bert: Any) -> None:
    with pytest.raises(
        InputError, match=r"at most 8 tokens, found 2 longer ones \(the longest \d+\): row 2, row 4\n"
    ) as caught:
        encode(bert, ["fox", ENGLISH, "dog", CHINESE], None, 8, "error")
    assert "--truncation head" in str(caught.value)
    found, facts = encode(bert, ["fox"], None, 8, "error")
    assert facts["truncated_rows"] == 0 and len(found["input_ids"]) == 1


def test_too_long_rows_are_named_by_file_and_row(bert: Any) -> None:
    tables = {"train": {"text": ["fox", ENGLISH, ENGLISH]}, "test": {"text": [CHINESE, "dog"]}}
    places = places_of(
        tables,
        {"train": [("a.csv", 1), ("a.csv", 5), ("b.csv", 2)], "test": [("t.jsonl", 7), ("t.jsonl", 8)]},
    )
    for texts, said in (
        (["fox", ENGLISH], "row 5 of a.csv"),
        ([CHINESE], "row 7 of t.jsonl"),
        ([TEXTS[8]], "row 1"),
    ):
        with pytest.raises(InputError, match=rf"found 1 longer one \(the longest \d+\): {said}\n"):
            encode_texts(texts, None, bert, max_length=8, truncation="error", places=places)
    tables = {"train": {"text": ["fox", "fox"], "text_pair": ["fox", ENGLISH]}}
    places = places_of(tables, {"train": [("a.csv", 1), ("a.csv", 2)]})
    with pytest.raises(InputError, match=r"row 2 of a\.csv\n"):
        encode_texts(["fox"], [ENGLISH], bert, max_length=8, truncation="error", places=places)


def test_many_too_long_rows_name_the_first_five(bert: Any) -> None:
    with pytest.raises(
        InputError,
        match=r"found 9 longer ones \(the longest \d+\): row 1, row 2, row 3, row 4, row 5, \.\.\.\n",
    ):
        encode(bert, [ENGLISH] * 9, None, 8, "error")


def test_a_limit_without_room_for_the_texts_is_refused(made: Any) -> None:
    for pairs in (None, PAIRS):
        least = template_of(made, pair=pairs is not None).added + (2 if pairs else 1)
        with pytest.raises(InputError, match=f"expected at least {least} tokens"):
            encode(made, TEXTS, pairs, least - 1)


def test_limits_of_an_earlier_call_or_of_the_saved_tokenizer_do_not_last(bert: Any) -> None:
    bert([ENGLISH], truncation=True, max_length=5, padding="max_length")
    found, facts = encode(bert, [ENGLISH], None, 100)
    assert plain(found["input_ids"]) == bert([ENGLISH])["input_ids"] and facts["truncated_rows"] == 0


def test_a_separator_written_in_a_text_does_not_move_the_second_text(bert: Any) -> None:
    found, _ = encode(bert, ["fox [SEP] dog"], ["dog"], 50)
    assert (
        found["input_ids"][0].tolist().count(bert.sep_token_id) == 3 and found["token_type_ids"][0].sum() == 2
    )


def test_no_rows_give_no_features(bert: Any) -> None:
    found, facts = encode(bert, [], None, 10)
    assert found["input_ids"] == [] and facts["tokens"] == facts["longest"] == 0


def test_a_tokenizer_that_knows_no_letters_is_refused() -> None:
    from tokenizers import Regex, normalizers

    tokenizer = make_modernbert()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-z]"), "")
    with pytest.raises(InputError, match="does not put two texts into one input"):
        template_of(tokenizer, pair=True)


def test_padding_is_masked_and_on_the_right() -> None:
    rows = [
        {"input_ids": np.array([5, 6, 7]), "token_type_ids": np.array([0, 1, 1])},
        {"input_ids": np.array([8]), "token_type_ids": np.array([0])},
    ]
    batch = pad(rows, 3)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]] and batch["attention_mask"].tolist() == [
        [1, 1, 1],
        [1, 0, 0],
    ]
    assert (
        batch["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
        and str(batch["input_ids"].dtype) == "torch.int64"
    )
    assert set(pad([{"input_ids": np.array([1])}], 0)) == {"input_ids", "attention_mask"}
