"""Generation: batches never change an output, whatever the padding, the settings and the interruptions."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hftk.config import GenerationSettings, InputError
from hftk.generation import decoding
from hftk.generation import generate as generation
from hftk.generation.generate import Generated, RowSampling, generate, generate_to_file, stream

LETTERS = list("abcdefghijklmnop")
PROMPTS = ["a", "b c d e f g h i", "c a", "", "d d d d", "e f", "p o n m l k j i h g", "a b"]
SAMPLING = GenerationSettings(max_new_tokens=8, do_sample=True, temperature=1.3, top_k=9, top_p=0.9, seed=5)
KINDS = {
    "greedy": GenerationSettings(max_new_tokens=8),
    "sampling": SAMPLING,
    "beam search": GenerationSettings(max_new_tokens=8, num_beams=3),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and wait long for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def letters(*, spaces: bool = False, frame: str | None = None, **tokens: str) -> PreTrainedTokenizerFast:
    """A token per letter; id 0 is the end of text. ``spaces``: sentencepiece-like, the space belongs to the
    next letter."""
    known = [
        "</s>",
        "<s>",
        "<pad>",
        *(f"▁{x}" for x in LETTERS if spaces),
        *(x for x in LETTERS if not spaces),
    ]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(known)}))
    raw.pre_tokenizer = pre_tokenizers.Metaspace() if spaces else pre_tokenizers.WhitespaceSplit()
    if spaces:
        raw.decoder = decoders.Metaspace()
    if frame:
        raw.post_processor = processors.TemplateProcessing(
            single=frame, special_tokens=[("<s>", 1), ("</s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{"eos_token": "</s>", **tokens})


def successor(vocabulary: int = 19, context: int = 32) -> GPT2LMHeadModel:
    """A GPT-2 that follows every letter by the next one, and the last one by the end of text: no attention,
    no positions."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=vocabulary,
        n_layer=1,
        n_head=1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln" not in name:
                weight.zero_()
        model.transformer.wte.weight.copy_(torch.eye(vocabulary))
        for token in range(vocabulary):
            model.lm_head.weight[(token + 1) % vocabulary, token] = 1.0
        model.lm_head.weight[3, 0] = 2.0  # after the end of text: a
        model.lm_head.weight[1, 0] = 0.0
    return model


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=19, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6, eos_token_id=0
    )
    return GPT2LMHeadModel(config).to(dtype)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=19,
        max_position_embeddings=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.6,
        eos_token_id=2,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=19,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        eos_token_id=0,
        pad_token_id=2,
        decoder_start_token_id=2,
        tie_word_embeddings=False,
        initializer_factor=6.0,
    )
    return T5ForConditionalGeneration(config).eval()


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(3)
    config = BartConfig(
        vocab_size=19,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        max_position_embeddings=32,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=0.6,
        eos_token_id=0,
        pad_token_id=2,
        decoder_start_token_id=0,
        bos_token_id=1,
        forced_eos_token_id=0,
    )
    return BartForConditionalGeneration(config).eval()


CASES: dict[str, tuple[Any, PreTrainedTokenizerFast]] = {
    "gpt2, pad = eos": (gpt2().eval(), letters(bos_token="</s>", pad_token="</s>")),
    "gpt2, no pad": (gpt2().eval(), letters()),
    "llama": (llama(), letters(bos_token="<s>", pad_token="<pad>", frame="<s> $A")),
    "t5": (t5(), letters(pad_token="<pad>", frame="$A </s>")),
    "bart": (bart(), letters(bos_token="<s>", pad_token="<pad>", frame="<s> $A </s>")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_eight_equals_eight_of_one_in_data_order(case: str, kind: str) -> None:
    model, tokenizer = CASES[case]
    together = generate(model, tokenizer, PROMPTS, KINDS[kind], batch_size=8)
    assert together == generate(model, tokenizer, PROMPTS, KINDS[kind], batch_size=1)
    assert together == generate(model, tokenizer, PROMPTS, KINDS[kind], max_tokens_per_batch=40)
    assert [result.index for result in together] == list(range(8))
    texts = [result.text for result in together]
    assert len(set(texts)) >= 4 and len({letter for text in texts for letter in text.split()}) >= 5, texts


@pytest.mark.parametrize("prompt", PROMPTS[:3])
@pytest.mark.parametrize("case", CASES)
def test_greedy_decoding_takes_the_likeliest_token_of_a_plain_forward_pass(case: str, prompt: str) -> None:
    model, tokenizer = CASES[case]
    [result] = generate(model, tokenizer, [prompt], GenerationSettings(max_new_tokens=20))
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = torch.tensor([[model.config.decoder_start_token_id]]) if model.config.is_encoder_decoder else ids
    output = start
    with torch.no_grad():
        for _ in range(result.tokens):
            logits = (
                model(ids, decoder_input_ids=output) if model.config.is_encoder_decoder else model(output)
            ).logits
            output = torch.cat([output, logits[:, -1:].argmax(-1)], dim=1)
    assert (
        result.text.split() == tokenizer.decode(output[0, start.shape[1] :], skip_special_tokens=True).split()
    )


def test_the_end_of_text_ends_a_row_and_is_not_part_of_it() -> None:
    results = generate(
        successor(),
        letters(bos_token="</s>", pad_token="</s>"),
        ["m", "a b c", "p"],
        GenerationSettings(max_new_tokens=5),
    )
    assert [(r.text.split(), r.tokens, r.finished) for r in results] == [
        (["n", "o", "p"], 3, True),
        (["d", "e", "f", "g", "h"], 5, False),
        ([], 0, True),
    ]


def test_padding_that_is_the_end_of_text_does_not_stop_a_row() -> None:
    tokenizer = letters(bos_token="</s>", pad_token="</s>")
    together = generate(successor(), tokenizer, ["a", "a b c d e f"], GenerationSettings(max_new_tokens=3))
    assert [r.text.split() for r in together] == [["b", "c", "d"], ["g", "h", "i"]]


@pytest.mark.parametrize("tokens", [{}, {"pad_token": "<pad>"}, {"pad_token": "<beyond the embeddings>"}])
def test_any_padding_token_or_none_gives_the_same_text(tokens: dict[str, str]) -> None:
    results = generate(
        successor(), letters(**tokens), ["a", "a b c d e f"], GenerationSettings(max_new_tokens=3)
    )
    assert [r.text.split() for r in results] == [["b", "c", "d"], ["g", "h", "i"]]


@pytest.mark.parametrize(
    ("tokenizer", "first"),
    [
        (letters(), "a"),  # no beginning: the end-of-text token stands before a text, as in training
        (letters(bos_token="<s>"), "a"),  # one that the tokenizer does not put itself was not trained there
        (letters(bos_token="<s>", frame="<s> $A"), "<pad>"),
        (letters(bos_token="<s>", frame="<s> $A </s>"), "<pad>"),
    ],
)
def test_an_empty_prompt_starts_where_a_text_starts(tokenizer: PreTrainedTokenizerFast, first: str) -> None:
    for prompts in ([""], ["", "a b"]):
        result = generate(successor(), tokenizer, prompts, GenerationSettings(max_new_tokens=1))[0]
        assert result.text == ("" if first == "<pad>" and "<pad>" in tokenizer.all_special_tokens else first)
        assert (result.tokens, result.truncated) == (1, False)


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt() -> None:
    [result] = generate(
        successor(),
        letters(bos_token="<s>", frame="<s> $A </s>"),
        ["c"],
        GenerationSettings(max_new_tokens=2),
    )
    assert result.text.split() == ["d", "e"]


def test_a_long_prompt_loses_its_start_and_says_so() -> None:
    model, tokenizer = CASES["llama"]
    settings = GenerationSettings(max_new_tokens=6)
    long = " ".join(random.Random(0).choices(LETTERS, k=50))
    room = 32 - 6 - 1  # context, new tokens, <s>
    results = generate(model, tokenizer, [long, " ".join(long.split()[-room:]), "a"], settings)
    assert results[0].text == results[1].text
    assert [r.truncated for r in results] == [True, False, False]


def test_a_long_source_of_an_encoder_decoder_loses_its_end_and_says_so() -> None:
    model, tokenizer = CASES["bart"]
    settings = GenerationSettings(max_new_tokens=6)
    long = " ".join(random.Random(0).choices(LETTERS, k=50))
    results = generate(model, tokenizer, [long, " ".join(long.split()[:30])], settings)
    assert results[0].text == results[1].text
    assert [r.truncated for r in results] == [True, False]


def test_a_forced_last_token_does_not_count_as_finished() -> None:
    model, tokenizer = CASES["bart"]
    results = generate(model, tokenizer, PROMPTS, GenerationSettings(max_new_tokens=3))
    assert {(r.tokens, r.finished) for r in results if r.tokens == 2} == {(2, False)}


def test_the_space_before_the_first_new_word_is_kept() -> None:
    [result] = generate(successor(), letters(spaces=True), ["a b"], GenerationSettings(max_new_tokens=2))
    assert result.text == " c d"


def test_sampling_follows_the_probabilities() -> None:
    rows, probabilities = 6000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = RowSampling(GenerationSettings(do_sample=True), range(rows))
    drawn = sampling(torch.zeros(rows, 1), probabilities.log().repeat(rows, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / rows
    assert torch.all(
        (shares - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / rows).sqrt()
    ), shares


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (GenerationSettings(do_sample=True, top_k=2), {0, 1}),
        (GenerationSettings(do_sample=True, top_p=0.6), {0, 1}),
        (GenerationSettings(do_sample=True, temperature=0.01), {0}),
        (GenerationSettings(do_sample=True, temperature=100.0), {0, 1, 2, 3}),
    ],
)
def test_temperature_top_k_and_top_p_narrow_or_widen_the_choice(
    settings: GenerationSettings, expected: set[int]
) -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(300, 1)
    drawn = RowSampling(settings, range(300))(torch.zeros(300, 1), scores).argmax(-1)
    assert set(drawn.tolist()) == expected


def test_the_seed_decides_and_rows_with_the_same_prompt_differ() -> None:
    model, tokenizer = CASES["gpt2, pad = eos"]
    settings = [GenerationSettings(max_new_tokens=8, do_sample=True, seed=seed) for seed in (1, 1, 2, -3)]
    first, again, other, negative = (
        [r.text for r in generate(model, tokenizer, ["a"] * 5, s)] for s in settings
    )
    assert first == again
    assert len(set(first)) >= 4 and len({*first, *other, *negative}) >= 12


def test_a_part_of_the_rows_draws_as_it_would_among_all_of_them() -> None:
    every = [result.text for result in generate(gpt2(), letters(), PROMPTS, SAMPLING)]
    for process in range(3):
        mine = list(range(process, len(PROMPTS), 3))
        found = generate(gpt2(), letters(), [PROMPTS[i] for i in mine], SAMPLING, numbers=mine)
        assert [result.text for result in found] == [every[i] for i in mine]
        assert [result.index for result in found] == list(range(len(mine)))


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    model, tokenizer = CASES["gpt2, pad = eos"]
    torch.manual_seed(1)
    texts = generate(model, tokenizer, PROMPTS, SAMPLING)
    torch.manual_seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert generate(model, tokenizer, PROMPTS, SAMPLING) == texts
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_the_checkpoint_are_not_inherited_and_are_left_as_they_were(kind: str) -> None:
    tokenizer = CASES["gpt2, pad = eos"][1]
    plain, odd = gpt2().eval(), gpt2().eval()
    odd.generation_config.update(
        do_sample=True,
        temperature=9.0,
        min_length=30,
        repetition_penalty=3.0,
        num_beams=2,
        length_penalty=4.0,
        suppress_tokens=[4, 5],
        no_repeat_ngram_size=1,
        max_length=12,
    )
    before, same = odd.generation_config.to_dict(), odd.generation_config
    assert generate(odd, tokenizer, PROMPTS, KINDS[kind]) == generate(plain, tokenizer, PROMPTS, KINDS[kind])
    assert odd.generation_config is same and same.to_dict() == before


def test_an_encoder_decoder_keeps_its_forced_first_token() -> None:
    model, tokenizer = bart(), CASES["bart"][1]
    model.generation_config.forced_bos_token_id = 7
    assert {
        r.text.split()[0] for r in generate(model, tokenizer, PROMPTS, GenerationSettings(max_new_tokens=4))
    } == {"e"}


def test_a_default_end_of_the_model_class_that_is_a_letter_here_is_ignored() -> None:
    model = successor()
    model.generation_config.eos_token_id = [5, 1]  # c, and <s>
    run = GenerationSettings(max_new_tokens=4)
    assert generate(model, letters(), ["a"], run)[0].text.split() == ["b", "c", "d", "e"]
    model.lm_head.weight.data[1, 4] = 5.0  # after b: <s>
    assert [r.finished for r in generate(model, letters(bos_token="<s>"), ["a"], run)] == [True]


def test_dropout_is_off_and_every_module_keeps_its_mode() -> None:
    model, tokenizer = gpt2().train(), CASES["gpt2, pad = eos"][1]
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, tokenizer, PROMPTS, KINDS["greedy"]) == generate(
        gpt2().eval(), tokenizer, PROMPTS, KINDS["greedy"]
    )
    assert [module.training for module in model.modules()] == modes


def test_modes_and_defaults_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = gpt2().train(), CASES["gpt2, pad = eos"][1]
    before = model.generation_config.to_dict()
    monkeypatch.setattr(GPT2LMHeadModel, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(Exception):  # noqa: B017  whatever generate makes of it
        generate(model, tokenizer, ["a"], KINDS["greedy"])
    assert all(module.training for module in model.modules()) and model.generation_config.to_dict() == before


def test_bfloat16_weights_generate_in_their_own_type() -> None:
    model = gpt2(torch.bfloat16).eval()
    results = generate(model, CASES["gpt2, pad = eos"][1], PROMPTS, KINDS["greedy"])
    assert len(results) == 8 and {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_nothing_is_printed_or_warned_about(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for model, tokenizer in CASES.values():
        for settings in KINDS.values():
            generate(model, tokenizer, [*PROMPTS, "a " * 60], settings)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    generate(*CASES["t5"], PROMPTS, SAMPLING, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "8/8" in err


@pytest.mark.parametrize(
    ("beams", "budget", "rows"), [(1, 60, None), (3, 100, None), (1, 10_000, 3), (1, 1, None)]
)
def test_batches_go_from_long_to_short_within_the_budget(
    beams: int, budget: int, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = CASES["gpt2, pad = eos"]
    shapes: list[tuple[int, int]] = []
    inner = GPT2LMHeadModel.generate

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "generate", spy)
    monkeypatch.setattr(decoding, "PROVED", frozenset())  # so that `generate` is called
    settings = GenerationSettings(max_new_tokens=4, num_beams=beams)
    order = [
        r.index
        for r in stream(model, tokenizer, PROMPTS, settings, max_tokens_per_batch=budget, batch_size=rows)
    ]
    lengths = [max(1, len(prompt.split())) for prompt in PROMPTS]
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(n == 1 or n * beams * (width + 4) <= budget for n, width in shapes)
    assert max(n for n, _ in shapes) <= (rows or 8) and sum(n for n, _ in shapes) == 8
    assert len(shapes) == (8 if budget == 1 else 3 if rows else len(shapes)) > 1


def test_no_prompts_give_no_outputs() -> None:
    assert generate(*CASES["gpt2, pad = eos"], [], KINDS["greedy"]) == []


@pytest.mark.parametrize(
    ("settings", "prompts", "expected"),
    [
        (GenerationSettings(max_new_tokens=32), ["a"], "--generation.max_new_tokens 16"),
        (GenerationSettings(do_sample=True, num_beams=2, max_new_tokens=2), ["a"], "leave out one of"),
        (GenerationSettings(temperature=0.5, max_new_tokens=2), ["a"], "act only when sampling"),
        (GenerationSettings(max_new_tokens=0), ["a"], "expected at least 1, found 0"),
        (KINDS["greedy"], ["a", None], "found NoneType in row 1"),
    ],
)
@pytest.mark.parametrize("call", [generate, stream])
def test_wrong_input_is_refused_at_once(
    call: Any, settings: GenerationSettings, prompts: list[Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        call(*CASES["gpt2, pad = eos"], prompts, settings)


# --- Files


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> Counter[str]:
    """Let generation fail after this many batches; the returned counter counts batches under "batches"."""
    count: Counter[str] = Counter()
    inner = generation._run

    def run(job: Any, batch: list[int]) -> list[Generated]:
        if count["batches"] == after:
            raise KeyboardInterrupt
        count["batches"] += 1
        return inner(job, batch)

    monkeypatch.setattr(generation, "_run", run)
    return count


@pytest.fixture
def straight(tmp_path: Path) -> Iterator[bytes]:
    generate_to_file(tmp_path / "straight.jsonl", *CASES["gpt2, pad = eos"], PROMPTS, SAMPLING, batch_size=2)
    yield (tmp_path / "straight.jsonl").read_bytes()


def test_a_file_holds_one_line_per_prompt_in_data_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    references = [f"Größe {i}" for i in range(8)]
    results = generate_to_file(
        path,
        *CASES["gpt2, pad = eos"],
        PROMPTS,
        SAMPLING,
        columns={"prompt": PROMPTS, "reference": references},
    )
    assert results == generate(*CASES["gpt2, pad = eos"], PROMPTS, SAMPLING)
    assert [list(line) for line in lines(path)] == [
        ["index", "prompt", "reference", "prediction", "finished", "tokens", "truncated"]
    ] * 8
    assert [line["prediction"] for line in lines(path)] == [r.text for r in results]
    assert [line["index"] for line in lines(path)] == list(range(8))
    assert "Größe 3" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("lost", [0, 10, 90])
def test_an_interrupted_file_is_continued_and_equals_the_uninterrupted_one(
    lost: int, tmp_path: Path, straight: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    case = CASES["gpt2, pad = eos"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, after=2)
        generate_to_file(path, *case, PROMPTS, SAMPLING, batch_size=2)
    assert not path.exists() and len(lines(partial)) == 1 + 4
    content = partial.read_bytes()
    partial.write_bytes(content[: len(content) - lost])
    count = interrupted(monkeypatch, after=99)
    generate_to_file(path, *case, PROMPTS, SAMPLING, batch_size=2)
    assert path.read_bytes() == straight
    assert count["batches"] == (2 if not lost else 3)
    assert not partial.exists()


def test_a_line_cut_by_an_interruption_does_not_spoil_the_next_ones(
    tmp_path: Path, straight: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    for _ in range(3):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupted(patch, after=1)
            generate_to_file(path, *CASES["gpt2, pad = eos"], PROMPTS, SAMPLING, batch_size=2)
        with partial.open("ab") as file:
            file.write(b'{"index": 3, "text')
    count = interrupted(monkeypatch, after=99)
    generate_to_file(path, *CASES["gpt2, pad = eos"], PROMPTS, SAMPLING, batch_size=2)
    assert (path.read_bytes(), count["batches"]) == (straight, 1)


def test_an_earlier_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("earlier")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, after=1)
        generate_to_file(path, *CASES["gpt2, pad = eos"], PROMPTS, SAMPLING, batch_size=2)
    assert path.read_text() == "earlier"


@pytest.mark.parametrize("change", ["weights", "prompts", "settings", "damage"])
def test_partial_outputs_of_another_job_are_not_mixed_in(
    change: str,
    tmp_path: Path,
    straight: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    model, tokenizer = gpt2().eval(), CASES["gpt2, pad = eos"][1]
    if change == "weights":
        model.transformer.wte.weight.data[5, 3] += 1
    prompts = [*PROMPTS[:-1], "b a"] if change == "prompts" else PROMPTS
    settings = GenerationSettings(max_new_tokens=7) if change == "settings" else SAMPLING
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, after=2)
        generate_to_file(path, model, tokenizer, prompts, settings, batch_size=2)
    if change == "damage":
        partial.write_bytes(partial.read_bytes().replace(b'"tokens"', b'"t\x00k"'))
    with caplog.at_level(logging.WARNING):
        generate_to_file(path, *CASES["gpt2, pad = eos"], PROMPTS, SAMPLING, batch_size=2)
    assert path.read_bytes() == straight
    assert "starting anew" in caplog.text
