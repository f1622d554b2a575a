"""What decoder-only tasks share: no token is lost on the way in, and no model sees what it must not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hftk.config import InputError
from hftk.models.tokenizers import train_byte_bpe, train_characters
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.decoder_inputs import IGNORED, check_attention, collate, join, opening
from hftk.tasks.tokenization import tokenize

TEXTS = ["", "a", "abcabcabc", "thequickbrownfoxjumpsoverthelazydog"]

# --- Tokens


def test_a_start_token_of_its_own_is_context_in_the_stream_and_no_target() -> None:
    documents = [np.array([5, 6]), np.array([], int), np.array([7])]
    tokens, targets = join(documents, start=1, end=2)
    assert tokens.tolist() == [1, 5, 6, 2, 1, 2, 1, 7, 2]
    assert targets.tolist() == [IGNORED, 5, 6, 2, IGNORED, 2, IGNORED, 7, 2]
    tokens, targets = join(documents, start=2, end=2)
    assert tokens.tolist() == targets.tolist() == [2, 5, 6, 2, 2, 7, 2]
    assert [a.tolist() for a in join([], 1, 2)] == [[], []]


def test_limits_that_a_tokenizer_was_saved_with_or_left_with_cut_nothing(llama_tokenizer: Any) -> None:
    expected = [len(t) for t in TEXTS]
    for made in (train_byte_bpe(["x"], 257), train_characters(TEXTS, 100), llama_tokenizer):
        made.backend_tokenizer.enable_truncation(4)
        made.backend_tokenizer.enable_padding(length=6)
        assert [len(ids) for ids in tokenize(TEXTS, made)] == expected
        made(TEXTS[:2], truncation=True, max_length=2, padding="max_length")
        assert [len(ids) for ids in tokenize(TEXTS, made)] == expected


def test_tokenizers_without_a_rust_backend_give_the_same(gpt2_tokenizer: Any) -> None:
    class Slow:
        def __call__(self, texts: list[str], add_special_tokens: bool) -> Any:
            return gpt2_tokenizer(texts, add_special_tokens=add_special_tokens)

    expected = tokenize(TEXTS, gpt2_tokenizer)
    found = tokenize(TEXTS, Slow())  # type: ignore[arg-type]
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
    assert {ids.dtype for ids in (*found, *expected)} == {np.dtype(np.int32)}
    assert tokenize([], Slow()) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("one two three four five six seven eight nine ten", "one two three four five six seven eight"),
        ("  The  second line\nis not in it", "The  second line"),
        ("internationalization and localization are long words", "internationalization and localization"),
        ("床前明月光，疑是地上霜。", "床前明月光，疑是地上霜。"),
        ("长" * 60, "长" * 40),
        ("x" * 50 + " y", "x" * 40),
        (" \n ", ""),
    ],
)
def test_a_prompt_is_the_opening_of_the_text_as_it_stands(text: str, prompt: str) -> None:
    assert opening(text) == prompt and text.lstrip().startswith(prompt)


# --- Models that do not do what a causal model must


def from_config(architecture: str, **fields: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, vocab_size=64, num_hidden_layers=2, **fields)
    )


def collator(model: Any, *, training: bool, packing: Any = "documents") -> Any:
    return CausalLM(CausalLMConfig(packing=packing)).collator(None, model, training=training)  # type: ignore[arg-type]


SMALL = {"hidden_size": 32, "num_attention_heads": 2}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_models_that_keep_documents_apart_are_accepted_as_they_were(architecture: str) -> None:
    model = from_config(architecture, **SMALL)
    for training in (True, False):
        model.train(training)
        before = torch.get_rng_state()
        check_attention(model, packed=True)
        assert model.training == training and torch.equal(torch.get_rng_state(), before)
        assert collator(model, training=training) is collate


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        (
            "opt",
            {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
        ),  # takes position_ids, and does not go by them
        ("falcon", SMALL),
        ("bloom", {"hidden_size": 32, "n_head": 2}),  # takes none
    ],
)
def test_models_whose_attention_crosses_packed_documents_are_refused_for_packing_only(
    architecture: str, fields: dict[str, Any]
) -> None:
    model = from_config(architecture, **fields)
    with pytest.raises(
        InputError,
        match=rf"--packing: {architecture} cannot keep packed documents apart.*\n.*--packing concatenate",
    ):
        collator(model, training=True)
    collator(model, packing="concatenate", training=True)
    collator(model, training=False)


def test_an_encoder_is_refused() -> None:
    model = from_config("bert", **SMALL, intermediate_size=48)
    for training in (True, False):
        with pytest.raises(
            InputError, match="bert is no causal language model: its tokens see those that come after them"
        ):
            collator(model, training=training)
