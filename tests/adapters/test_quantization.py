"""What is quantized and what is not, in every task, and what the rest costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapted_runs import KINDS, TASKS, judge, load, make_config
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoConfig

import hftk
from hftk.config import InputError, ModelConfig, QuantizationConfig
from hftk.models.heads import head_layers
from hftk.models.quantization import bytes_of, compute_dtype, count, halve_embeddings
from hftk.models.weights import load_weights

HEADS = {
    "AutoModelForSequenceClassification": {
        "bert": {"bert.pooler.dense", "classifier"},
        "roberta": {"classifier.dense", "classifier.out_proj"},
        "distilbert": {"pre_classifier", "classifier"},
        "gpt2": {"score"},
        "llama": {"score"},
        "bart": {"classification_head.dense", "classification_head.out_proj"},
    },
    "AutoModelForTokenClassification": {"bert": {"classifier"}, "distilbert": {"classifier"}},
    "AutoModelForQuestionAnswering": {"bert": {"qa_outputs"}, "distilbert": {"qa_outputs"}},
    "AutoModelForCausalLM": {"gpt2": {"lm_head"}, "llama": {"lm_head"}},
    "AutoModelForSeq2SeqLM": {"t5": {"lm_head"}, "marian": {"lm_head"}, "bart": {"lm_head"}},
}


def quantized(bits: int | None, **more: Any) -> dict[str, Any]:
    return {"adapter": {"method": "lora"}, "quantization": {"bits": bits, **more}}


@pytest.mark.parametrize(
    ("auto_model", "architecture"), [(auto, kind) for auto, kinds in HEADS.items() for kind in kinds]
)
def test_heads_are_found_in_every_task(auto_model, architecture):
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, auto_model).from_config(AutoConfig.for_model(architecture))
    assert set(head_layers(model)) == HEADS[auto_model][architecture]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_embeddings_are_not_quantized(kind, bits, bases, tmp_path):
    config = make_config(kind, tmp_path, bases(kind), model=quantized(bits))
    base = load(kind, config)[1].get_base_model()
    low = [name for name, p in base.named_parameters() if p.dtype in (torch.int8, torch.uint8)]
    assert low and not any(
        "head" in n or "classifier" in n or "embed" in n or "pooler" in n or "shared" in n for n in low
    )
    assert base.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_logits_stay_near_those_in_float32(kind, bits, bases, tmp_path):
    full = judge(
        kind, *load(kind, make_config(kind, tmp_path, bases(kind), model={"adapter": {"method": "lora"}}))
    )
    low = judge(kind, *load(kind, make_config(kind, tmp_path, bases(kind), model=quantized(bits))))
    assert 0 < np.abs(full - low).mean() / np.abs(full).mean() < {8: 0.05, 4: 0.5}[bits]


def test_every_weight_counts_once_however_many_bits_it_has(bases, tmp_path):
    models = {
        bits: load("llama", make_config("llama", tmp_path, bases("llama"), model=quantized(bits)))[1]
        for bits in (None, 8, 4)
    }
    assert len({count(model) for model in models.values()}) == 1
    assert len({count(model, trained=True) for model in models.values()}) == 1
    assert bytes_of(models[4]) < bytes_of(models[8]) < bytes_of(models[None]) == 4 * count(models[None])


def test_a_shape_as_usual_takes_a_third_and_a_quarter():
    """SmolLM2-135M's shape with two of its thirty layers' share of embeddings: 28 of 135 million weights."""
    from transformers import AutoModelForCausalLM

    fields = {
        "hidden_size": 64,
        "intermediate_size": 171,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1800,
        "tie_word_embeddings": True,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields))
    share = model.get_input_embeddings().weight.numel() / count(model)
    assert 0.2 < share < 0.3
    whole = bytes_of(model)
    halve_embeddings(model)
    linear = (1 - share) * whole
    assert bytes_of(model) - 0.75 * linear < 0.35 * whole and bytes_of(model) - 0.87 * linear < 0.25 * whole


def test_halved_embeddings_compute_in_float32(bases):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    for kind, auto in (
        ("gpt2", AutoModelForCausalLM),
        ("t5", AutoModelForSeq2SeqLM),
        ("marian", AutoModelForSeq2SeqLM),
    ):
        rounded, halved = (auto.from_pretrained(bases(kind), dtype=torch.float32).eval() for _ in range(2))
        weight = rounded.get_input_embeddings().weight
        weight.data = weight.data.to(torch.bfloat16).float()  # tied: the output layer too
        halve_embeddings(halved)
        inputs = {"input_ids": torch.tensor([[3, 4, 5, 6]])} | (
            {} if kind == "gpt2" else {"decoder_input_ids": torch.tensor([[3, 4]])}
        )
        with torch.no_grad():
            one, other = rounded(**inputs).logits, halved(**inputs).logits
        assert other.dtype == torch.float32 and torch.allclose(
            one, other, atol=2e-2 if kind == "marian" else 1e-5
        )
        assert halved.get_output_embeddings().weight is halved.get_input_embeddings().weight


def test_layers_can_be_left_out_by_name(bases, tmp_path):
    config = make_config(
        "llama", tmp_path, bases("llama"), model=quantized(4, skip_modules=["layers.0.mlp.down_proj"])
    )
    base = load("llama", config)[1].get_base_model()
    assert base.model.layers[0].mlp.down_proj.weight.dtype == torch.float32
    assert base.model.layers[1].mlp.down_proj.weight.dtype == torch.uint8


def test_a_layer_that_is_not_there_is_named(bases, tmp_path):
    config = make_config("llama", tmp_path, bases("llama"), model=quantized(4, skip_modules=["down_prj"]))
    with pytest.raises(InputError, match="found down_prj; there are"):
        hftk.check(config, hftk.CausalLM(config))


def test_four_bits_are_nf4_with_quantized_scales(bases, tmp_path):
    for more, kind, nested in (
        ({}, "nf4", True),
        ({"quant_type": "fp4", "double_quant": False}, "fp4", False),
    ):
        base = load("llama", make_config("llama", tmp_path, bases("llama"), model=quantized(4, **more)))[
            1
        ].get_base_model()
        state = base.model.layers[0].mlp.up_proj.weight.quant_state
        assert (state.quant_type, state.nested) == (kind, nested)
    assert compute_dtype(QuantizationConfig(bits=4, compute_dtype="bfloat16")) == torch.bfloat16


def test_gguf_weights_are_quantized_by_way_of_plain_ones(bases, tmp_path):
    """A GGUF file is read in full precision first; here one is pretended, since writing one takes a
    converter."""
    import transformers

    made = AutoConfig.from_pretrained(bases("llama"))
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"")
    original = transformers.LlamaForCausalLM.from_pretrained.__func__
    asked: list[dict[str, Any]] = []

    def from_pretrained(cls: Any, name: str, *arguments: Any, **options: Any) -> Any:
        asked.append(
            {
                "name": name,
                "gguf": options.pop("gguf_file", None),
                "quantized": "quantization_config" in options,
            }
        )
        return original(cls, bases("llama") if asked[-1]["gguf"] else name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transformers.AutoModelForCausalLM,
            "from_pretrained",
            classmethod(lambda cls, *a, **o: from_pretrained(transformers.LlamaForCausalLM, *a, **o)),
        )
        config = ModelConfig(name=str(gguf), quantization=QuantizationConfig(bits=8))
        model, _ = load_weights(config, "AutoModelForCausalLM", made)
    assert [call["quantized"] for call in asked] == [False, True] and asked[0]["gguf"] == "model.gguf"
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8


def test_weights_that_were_saved_quantized_are_not_trained(bases, tmp_path):
    config = make_config("llama", tmp_path, bases("llama"), model=quantized(8))
    load("llama", config)[1].get_base_model().config.to_dict()
    import json
    import shutil

    folder = shutil.copytree(bases("llama"), tmp_path / "saved")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"load_in_8bit": True, "quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(settings))
    plain = make_config("llama", tmp_path, str(folder))
    with pytest.raises(InputError, match="are quantized, and cannot be trained"):
        hftk.check(plain, TASKS["llama"][0](plain))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5"])
def test_an_adapter_of_full_rank_starts_with_all_that_was_rounded_away(kind, bits, bases, tmp_path):
    """And one of less rank with the best that is possible: the error is the sum of the other singular values
    squared."""
    plain = judge_of(kind, bases, tmp_path, None)
    quantized = judge_of(kind, bases, tmp_path, bits)
    if bits == 4:  # 8 bits round the inputs of layers too
        error = abs(judge_of(kind, bases, tmp_path, bits, rank=64, initialization="loftq") - plain).max()
        assert (
            error < 0.1 * abs(quantized - plain).max()
        )  # embeddings are in bfloat16, on some processors products too
    model = load(kind, config_of(kind, bases, tmp_path, bits, rank=8, initialization="loftq"))[1]
    whole = load(kind, make_config(kind, tmp_path, bases(kind), model={"adapter": {"method": "none"}}))[1]
    checked = 0
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            source = whole.get_submodule(name).weight.detach()
            base = dequantize_module_weight(layer.get_base_layer()).float()
            error = (source.T if type(whole.get_submodule(name)).__name__ == "Conv1D" else source) - base
            made = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            best = torch.linalg.svdvals(error)[8:].norm()
            assert torch.linalg.norm(error - made) <= 1.02 * best + 1e-6
            checked += 1
    assert checked


def config_of(kind, bases, tmp_path, bits, **adapter):
    model = {"quantization": {"bits": bits}, "adapter": {"method": "lora", **adapter}}
    return make_config(kind, tmp_path, bases(kind), model=model)


def judge_of(kind, bases, tmp_path, bits, **adapter):
    return judge(kind, *load(kind, config_of(kind, bases, tmp_path, bits, **adapter)))
