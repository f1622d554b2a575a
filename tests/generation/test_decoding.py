"""Decoding gives the tokens that ``generate`` gives, for every architecture, padding, setting and end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_writers import ENCODER_DECODERS, END, KINDS, PAD, START, VOCABULARY, make
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.models.auto import CONFIG_MAPPING

from hftk.config import GenerationSettings
from hftk.generation import decoding, generate
from hftk.generation.decoding import PROVED, Steps, decode, is_proved
from hftk.generation.logits_processors import RowSampling
from hftk.models.tokenizers import train_byte_bpe

ENDS = [END, 9, 17, 23, 31, 38, 44, 52]
"""Many tokens that end a text: a random model hits one after some eight tokens, at a different step in each
row."""
BEAMS = {"num_beams": 4}
TIE = 1e-5
"""Two candidates whose scores differ by less than this, in nats, are tied: rounding may take either. Such
rows are warned about."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: make(kind) for kind in KINDS}


def settings(**values: Any) -> GenerationConfig:
    plain = dict(
        max_new_tokens=20,
        eos_token_id=ENDS,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        do_sample=False,
        use_cache=True,
    )
    return GenerationConfig(**{**plain, **values})


def padded(kind: str, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids, mask = torch.full((len(prompts), width), PAD), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if kind in ENCODER_DECODERS else slice(width - len(prompt), width)
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    return ids, mask


def random_prompts(rows: int = 12, seed: int = 1) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 14, (rows,), generator=numbers).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=numbers).tolist() for length in lengths]


def reference(model: Any, kind: str, prompts: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """What ``generate`` gives, cut behind the first end."""
    ids, mask = padded(kind, prompts)
    with decoding._ready(model):  # without the model's own defaults
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    rows = output[:, 1 if kind in ENCODER_DECODERS else ids.shape[1] :].tolist()
    ends = config.eos_token_id or []
    return [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]


def total(model: Any, prompt: list[int], new: list[int], config: GenerationConfig) -> float:
    """Log-probability of ``new`` over its length to the power of the penalty, recomputed without a cache."""
    if model.config.is_encoder_decoder:
        inputs = {
            "input_ids": torch.tensor([prompt]),
            "decoder_input_ids": torch.tensor([[START, *new[:-1]]]),
        }
    else:
        inputs = {"input_ids": torch.tensor([[*prompt, *new[:-1]]])}
    with torch.no_grad():
        chances = model(**inputs, use_cache=False).logits[0, -len(new) :].double().log_softmax(-1)
    return float(chances.gather(1, torch.tensor(new)[:, None]).sum()) / len(new) ** (
        config.length_penalty or 1.0
    )


def assert_equal_but_for_ties(
    model: Any,
    prompts: list[list[int]],
    found: list[list[int]],
    expected: list[list[int]],
    config: GenerationConfig,
) -> None:
    for row, (prompt, one, other) in enumerate(zip(prompts, found, expected, strict=True)):
        if one == other:
            continue
        if (config.num_beams or 1) == 1:  # greedy texts part at their first different token
            parted = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b) + 1
            one, other = one[:parted], other[:parted]
        gap = total(model, prompt, one, config) - total(model, prompt, other, config)
        assert abs(gap) < TIE, (row, one, other)
        warnings.warn(f"row {row}: a tie, {gap:.1e} nats apart", stacklevel=2)


@pytest.mark.parametrize("more", [{}, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_generate(kind: str, more: dict[str, Any], models: dict[str, Any]) -> None:
    model, prompts, config = models[kind], random_prompts(), settings(**more)
    assert is_proved(model, config)
    found = decode(model, *padded(kind, prompts), config)
    assert_equal_but_for_ties(model, prompts, found, reference(model, kind, prompts, config), config)
    assert len({len(row) for row in found}) >= 2, "the rows should end at different steps"


@pytest.mark.parametrize(
    "more",
    [
        {**BEAMS, "early_stopping": True},
        {**BEAMS, "early_stopping": "never", "length_penalty": 2.0},
        {**BEAMS, "early_stopping": "never", "length_penalty": 0.0},
        {**BEAMS, "length_penalty": -1.0},
        {**BEAMS, "length_penalty": 3.0, "eos_token_id": [END]},
        {"num_beams": 2, "max_new_tokens": 1},
        {"num_beams": 7, "forced_eos_token_id": END},
        {**BEAMS, "forced_bos_token_id": 7},
        {"suppress_tokens": [11, 12], "begin_suppress_tokens": [4, 5, 9]},
        {"forced_bos_token_id": 7, "forced_eos_token_id": END},
        {**BEAMS, "bad_words_ids": [[11], [12, 13], [END]]},
        {"repetition_penalty": 1.7},
        {**BEAMS, "repetition_penalty": 0.8, "eos_token_id": [END]},
        {"eos_token_id": None},
        {**BEAMS, "eos_token_id": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["marian", "t5", "llama", "gpt2"])
def test_every_setting_acts_as_in_generate(kind: str, more: dict[str, Any], models: dict[str, Any]) -> None:
    model, prompts, config = models[kind], random_prompts(seed=2), settings(**more)
    assert decode(model, *padded(kind, prompts), config) == reference(model, kind, prompts, config)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("more", [{}, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", ["marian", "gpt2", "qwen2"])
def test_repeated_ngrams_are_those_of_the_row_and_not_of_its_padding(
    kind: str, more: dict[str, Any], size: int, models: dict[str, Any]
) -> None:
    # `generate` counts the padding before a prompt as text, so it is asked for one row at a time.
    model, prompts, config = models[kind], random_prompts(8), settings(no_repeat_ngram_size=size, **more)
    expected = [reference(model, kind, [prompt], config)[0] for prompt in prompts]
    assert decode(model, *padded(kind, prompts), config) == expected


@pytest.mark.parametrize("kind", ["bart", "llama", "mistral"])
def test_one_row_without_padding_and_many_rows_that_end_at_once(kind: str, models: dict[str, Any]) -> None:
    for prompts in ([[5, 6, 7]], [[5, 6, 7]] * 9, [[5]]):
        for more in ({}, BEAMS):
            config = settings(**more)
            found = decode(models[kind], *padded(kind, prompts), config)
            assert found == reference(models[kind], kind, prompts, config)


@pytest.mark.parametrize("kind", ["m2m_100", "gpt2"])
def test_rows_that_have_ended_leave_the_batch(
    kind: str, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, present = Steps.next, []

    def spy(self: Steps, tokens: torch.Tensor) -> torch.Tensor:
        present.append(len(tokens))
        return inner(self, tokens)

    monkeypatch.setattr(Steps, "next", spy)
    for more in ({}, BEAMS):
        present.clear()
        found = decode(models[kind], *padded(kind, random_prompts()), settings(**more))
        assert present == sorted(present, reverse=True) and present[-1] < present[0]
        if not more:
            allowed = [
                sum(len(row) > step for row in found) / (1 - decoding.LEAVE)
                for step in range(1, len(present) + 1)
            ]
            assert all(rows <= most for rows, most in zip(present, allowed, strict=True))


def test_sampled_rows_are_the_same_alone_and_together(models: dict[str, Any]) -> None:
    how, prompts = GenerationSettings(do_sample=True, seed=3, top_k=20), random_prompts()
    for kind in ("marian", "llama"):
        together = decode(models[kind], *padded(kind, prompts), settings(), RowSampling(how, range(12)))
        alone = [
            decode(models[kind], *padded(kind, [prompt]), settings(), RowSampling(how, [row]))[0]
            for row, prompt in enumerate(prompts)
        ]
        assert together == alone and len({len(row) for row in alone}) > 2


MOE = dict(
    num_experts=2,
    num_layers=2,
    num_decoder_layers=2,
    num_sparse_encoder_layers=1,
    num_sparse_decoder_layers=1,
)
UNPROVED: dict[str, dict[str, Any]] = {
    "switch_transformers": dict(
        MOE,
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        eos_token_id=END,
        pad_token_id=PAD,
        decoder_start_token_id=START,
    ),
    "nllb-moe": dict(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_experts=2,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        eos_token_id=END,
        pad_token_id=PAD,
        decoder_start_token_id=START,
        max_position_embeddings=48,
    ),
    "mamba": dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        eos_token_id=END,
        pad_token_id=PAD,
    ),
}


@pytest.mark.parametrize("more", [{}, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("kind", UNPROVED)
def test_a_model_that_is_not_proved_is_decoded_by_generate(kind: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM if kind == "mamba" else AutoModelForSeq2SeqLM
    model, prompts = auto.from_config(CONFIG_MAPPING[kind](**UNPROVED[kind])).eval(), random_prompts(5)
    config = settings(**more, max_new_tokens=6)
    assert not is_proved(model, config)
    side = "gpt2" if kind == "mamba" else "t5"
    assert decode(model, *padded(side, prompts), config) == reference(model, side, prompts, config)


def test_settings_that_are_not_known_are_left_to_generate(models: dict[str, Any]) -> None:
    model = models["gpt2"]
    for more in (
        {"diversity_penalty": 0.5},
        {"do_sample": True},
        {"use_cache": False},
        {"min_new_tokens": 3},
    ):
        assert not is_proved(model, settings(**more)), more
    assert len(PROVED) == len(KINDS)


@pytest.mark.parametrize("more", [{}, BEAMS], ids=["greedy", "beams"])
def test_an_adapter_is_part_of_the_model(more: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    for kind, modules in (("marian", ["q_proj", "v_proj"]), ("llama", ["q_proj", "v_proj"])):
        model, prompts, config = make(kind), random_prompts(), settings(**more)
        before = decode(model, *padded(kind, prompts), config)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
        ).eval()
        found = decode(adapted, *padded(kind, prompts), config)
        assert is_proved(adapted, config) and found != before
        assert found == reference(adapted, kind, prompts, config)


TEXTS = [
    "A man rides a bike.",
    "Ein Hund läuft über die grüne Wiese.",
    "一个男人骑着自行车。",
    "犬が走る",
    "كلب يركض على العشب",
    "Собака бежит.",
    "कुत्ता दौड़ता है",
    "สุนัขวิ่ง",
    "🐕‍🦺",
]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["bart", "marian", "llama"])
def test_texts_of_any_language_come_out_as_from_generate(kind: str, beams: int) -> None:
    tokenizer = train_byte_bpe(TEXTS * 3, 300)
    model = make(kind, vocabulary=len(tokenizer), end=tokenizer.eos_token_id)
    config = settings(num_beams=beams, eos_token_id=[tokenizer.eos_token_id], max_new_tokens=12)
    prompts = [tokenizer(text)["input_ids"][:24] for text in TEXTS]
    expected = reference(model, kind, prompts, config)
    model.generation_config.decoder_start_token_id = START
    how = GenerationSettings(num_beams=beams, max_new_tokens=12)
    cut = [tokenizer.decode(prompt) for prompt in prompts]
    if kind in ENCODER_DECODERS and [tokenizer(text)["input_ids"] for text in cut] == prompts:
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in expected]
        assert [g.text for g in generate.generate(model, tokenizer, cut, how)] == texts
    assert decode(model, *padded(kind, prompts), config) == expected
