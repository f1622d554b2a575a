"""Encoders get the inputs that their forward pass names: without token types, without a mask, below an
adapter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_classifiers import NAMES, TEXTS, batch_of, logits_of, rows_of, task_of

from hftk import console
from hftk.config import InputError
from hftk.evaluation.evaluate import run_model
from hftk.models.tokenizers import train_wordpiece
from hftk.tasks.encoder_inputs import fixed_width, takes

SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
WITHOUT_TYPES: dict[str, dict[str, Any]] = {
    "mpnet": SMALL,
    "distilbert": {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 24},
    "esm": {**SMALL, "position_embedding_type": "absolute"},
    "bart": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "d_model": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
    },
}
WITH_TYPES: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "electra": {**SMALL, "embedding_size": 16},
    "albert": {**SMALL, "embedding_size": 16},
    "deberta-v2": SMALL,
    "xlnet": {"n_layer": 2, "d_model": 16, "n_head": 2, "d_inner": 24},
    "fnet": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "max_position_embeddings": 48,
    },
}


def build(architecture: str) -> tuple[Any, Any]:
    """A small model of any architecture, with a tokenizer like BERT's, which gives token types."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = train_wordpiece(TEXTS, 200)
    fields = {**WITHOUT_TYPES, **WITH_TYPES}[architecture]
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture,
        **fields,
        **special,
        vocab_size=len(tokenizer),
        num_labels=3,
        id2label=dict(enumerate(NAMES)),
    )
    config.problem_type = "single_label_classification"
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval(), tokenizer


@pytest.mark.parametrize("architecture", [*WITHOUT_TYPES, *WITH_TYPES])
def test_a_model_gets_what_it_takes_and_company_changes_no_logits(architecture: str) -> None:
    model, tokenizer = build(architecture)
    task, rows = task_of(), rows_of("single_label_classification")
    batch = batch_of(task, model, tokenizer, rows)
    assert ("token_type_ids" in batch) == (architecture in WITH_TYPES)
    assert ("attention_mask" in batch) == (architecture != "fnet")
    together = logits_of(model, batch)
    alone = torch.cat(
        [logits_of(model, batch_of(task, model, tokenizer, rows, [i])) for i in range(len(rows))]
    )
    assert (together - alone).abs().max() < 1e-5 and together.std(0).min() > 1e-4


@pytest.mark.parametrize("asked", [None, 12, 500])
def test_without_a_mask_every_row_has_the_length_that_was_asked_for_or_the_models(asked: int | None) -> None:
    model, tokenizer = build("fnet")
    task = task_of({"max_length": asked} if asked else None)
    batch = batch_of(task, model, tokenizer, rows_of("single_label_classification"), [0])
    assert batch["input_ids"].shape == (1, min(asked or 48, 48))
    assert [line for line in console.noted() if "takes no attention mask" in line]


def test_without_a_mask_no_score_depends_on_the_batch_size() -> None:
    model, tokenizer = build("fnet")
    task, rows = task_of(), rows_of("single_label_classification")
    features = task.encode(rows, tokenizer, max_length=48, training=False)
    one, many = (run_model(task, model, tokenizer, features, batch_size=n)["logits"] for n in (1, 64))
    assert abs(one - many).max() < 1e-5


def test_a_model_without_a_mask_or_a_known_length_is_refused() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace())
    assert fixed_width(model, 16) == 16
    with pytest.raises(InputError, match="takes no attention mask"):
        fixed_width(model, None)


def test_an_adapter_hides_no_inputs() -> None:
    from peft import LoraConfig, get_peft_model

    for architecture, target in (("distilbert", "q_lin"), ("bert", "query"), ("fnet", "dense")):
        model, tokenizer = build(architecture)
        adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=[target]))
        assert takes(adapted, "token_type_ids") == (architecture != "distilbert")
        assert takes(adapted, "attention_mask") == (architecture != "fnet")
        logits_of(adapted, batch_of(task_of(), adapted, tokenizer, rows_of("single_label_classification")))
