"""Tokenizers of single characters, with and without a start token of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hftk import console
from hftk.models.tokenizers import train_characters

sys.path.insert(0, str(Path(__file__).parent))  # small_classifiers


@pytest.fixture(autouse=True)
def _no_earlier_choices() -> Iterator[None]:
    console.clear_notes()
    yield
    console.clear_notes()


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Any:
    return train_characters(["abcdefghijklmnopqrstuvwxyz", "床前明月光，疑是地上霜。"], 100)


@pytest.fixture(scope="module")
def llama_tokenizer(gpt2_tokenizer: Any) -> Any:
    """A tokenizer that puts its own start token before each text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(gpt2_tokenizer.backend_tokenizer).from_str(gpt2_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<|unknown|>"
    )


@pytest.fixture(params=["gpt2", "llama"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_tokenizer")
