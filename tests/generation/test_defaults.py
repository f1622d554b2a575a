"""What a base model's generation config carries is replaced by the settings that the run was evaluated
with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_writers import make
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hftk.config import GenerationSettings
from hftk.console import capture_notes
from hftk.generation.defaults import replace_defaults
from hftk.generation.generate import generate
from hftk.models.tokenizers import train_byte_bpe

TEXTS = ["A man rides a bike.", "Ein Hund läuft über die grüne Wiese.", "一个男人骑着自行车。"]
CARRIED = {
    "min_length": 12,
    "num_beams": 4,
    "no_repeat_ngram_size": 1,
    "length_penalty": 2.0,
    "max_length": 14,
}


@pytest.mark.parametrize(
    "settings",
    [
        GenerationSettings(max_new_tokens=12),
        GenerationSettings(max_new_tokens=9, num_beams=3, no_repeat_ngram_size=2, length_penalty=0.5),
    ],
    ids=["greedy", "beams"],
)
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2"])
def test_the_saved_folder_writes_what_was_evaluated(
    kind: str, settings: GenerationSettings, tmp_path: Path
) -> None:
    tokenizer: Any = train_byte_bpe(TEXTS * 3, 300)
    model: Any = make(kind, vocabulary=len(tokenizer), end=tokenizer.eos_token_id)
    model.generation_config.update(**CARRIED)
    with capture_notes() as lines:
        replace_defaults(model, tokenizer, settings)
    assert len(lines) == 1 and "min_length 12" in lines[0] and "max_length" not in lines[0]
    assert "--generation.no_repeat_ngram_size 1" in lines[0] and "--generation.min_length" not in lines[0]
    model.save_pretrained(tmp_path)
    auto: Any = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSeq2SeqLM
    plain = auto.from_pretrained(tmp_path).eval()
    for text, evaluated in zip(TEXTS, generate(model, tokenizer, TEXTS, settings), strict=True):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            new = plain.generate(**inputs)[0, 1 if kind != "gpt2" else inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == evaluated.text.strip()


def test_sampling_is_saved_too_and_nothing_is_noted_where_nothing_is_carried(tmp_path: Path) -> None:
    tokenizer: Any = train_byte_bpe(TEXTS * 3, 300)
    model: Any = make("gpt2", vocabulary=len(tokenizer), end=tokenizer.eos_token_id)
    with capture_notes() as lines:
        replace_defaults(
            model, tokenizer, GenerationSettings(do_sample=True, temperature=0.7, max_new_tokens=5)
        )
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (saved.do_sample, saved.temperature, saved.top_k, saved.max_new_tokens) == (True, 0.7, 0, 5)
    assert lines == []
