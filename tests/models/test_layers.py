"""How deep weights lie, freezing from below, and learning rates by depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from hftk.config import TrainConfig
from hftk.models.layers import depths, find_problems, freeze
from hftk.training.optimizers import layer_groups, make_optimizer

BERT = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
}


def bert() -> Any:
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **BERT))


def frozen_names(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_embeddings_lie_lowest_and_heads_highest():
    found, layers = depths(bert())
    assert layers == 3
    assert {found[n] for n in found if n.startswith("bert.embeddings.")} == {0}
    assert {found[n] for n in found if ".layer.1." in n} == {2}
    assert found["bert.pooler.dense.weight"] == found["classifier.bias"] == 4


def test_a_decoder_lies_above_its_encoder():
    config = AutoConfig.for_model(
        "t5", num_layers=2, num_decoder_layers=1, d_model=8, d_kv=4, num_heads=2, d_ff=8, vocab_size=20
    )
    found, layers = depths(AutoModelForSeq2SeqLM.from_config(config))
    assert layers == 3 and found["shared.weight"] == 0
    assert (
        {found[n] for n in found if n.startswith("encoder.block.1.")}
        == {2}
        == {found["encoder.final_layer_norm.weight"]}
    )
    assert {found[n] for n in found if n.startswith("decoder.block.0.")} == {3}
    assert found["decoder.final_layer_norm.weight"] == 4


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_weight_of_a_decoder_has_its_depth(architecture):
    fields = (
        {
            "num_hidden_layers": 2,
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 8,
        }
        if architecture == "llama"
        else {"n_layer": 2, "n_embd": 8, "n_head": 2}
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, vocab_size=20, **fields))
    found, layers = depths(model)
    assert layers == 2 and set(found.values()) == {0, 1, 2, 3}


def test_a_number_freezes_embeddings_and_that_many_layers():
    model = bert()
    freeze(["1"], model)
    assert {n.split(".layer.")[0] + n.partition(".layer.")[2][:1] for n in frozen_names(model)} == {
        "bert.encoder0",
        *(n for n in frozen_names(model) if "embeddings" in n),
    }


def test_a_name_means_whole_parts_of_names():
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("bert", **{**BERT, "num_hidden_layers": 11})
    )
    freeze(["encoder.layer.1", "embeddings"], model)
    assert not any(".layer.10." in name for name in frozen_names(model))
    assert any(
        ".layer.1." in name for name in frozen_names(model)
    ) and "bert.embeddings.LayerNorm.bias" in frozen_names(model)


def test_wrong_names_get_those_there_are():
    settings = [str(p) for p in find_problems(["4", "encoder.layers.0", "bert"], bert())]
    assert len(settings) == 2 and "expected at most 3" in settings[0] and "bert.encoder.layer" in settings[1]
    assert "nothing" in str(next(iter(find_problems(["3", "pooler", "classifier"], bert()))))


def test_learning_rates_fall_with_depth():
    model = bert()
    groups = layer_groups(model, 0.01, 1.0, 0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(rates) == len(named)
    assert rates[id(named["classifier.weight"])] == groups[0]["lr"] == 1.0
    assert rates[id(named["bert.encoder.layer.2.output.dense.bias"])] == 0.5
    assert rates[id(named["bert.embeddings.word_embeddings.weight"])] == 0.5**4
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert id(named["classifier.weight"]) in decayed and id(named["classifier.bias"]) not in decayed


def test_one_step_of_sgd_moves_a_layer_by_its_own_rate():
    model = bert()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(optimizer="sgd", layer_decay=0.5, adam_beta1=0.0), 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {n: float((before[n] - p).mean()) for n, p in model.named_parameters()}
    assert moved["classifier.weight"] == pytest.approx(1.0, rel=1e-4)
    assert moved["bert.encoder.layer.0.attention.self.query.weight"] == pytest.approx(0.125, rel=1e-4)
