"""Adapters: what they sit on, what is trained, saving and loading, resuming, and the same outputs
everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted_runs import CONTEXT, KINDS, fit, judge, load, make_config, splits_of, trained_weights

import hftk
from hftk import console
from hftk.config import InputError
from hftk.models import adapter_files, adapters
from hftk.models.load import load_trained

METHODS = ("lora", "rslora", "dora", "pissa", "ia3")


def lora(**more: Any) -> dict[str, Any]:
    return {"adapter": {"method": "lora", **more}}


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_loaded_again_it_predicts_what_it_predicted(kind, bits, bases, tmp_path, tiny_runs):
    config = make_config(
        kind, tmp_path / "out", bases(kind), model={**lora(), "quantization": {"bits": bits}}
    )
    hftk.check(config, (task := load(kind, config)[0]))
    untrained = judge(kind, task, *load(kind, config)[1:])
    task, trained = fit(kind, config)
    after = judge(kind, task, trained.model, trained.tokenizer)
    assert np.abs(after - untrained).max() > 1e-3
    again, tokenizer = load_trained(config.output, auto_model=task.auto_model)
    assert np.array_equal(judge(kind, task, again, tokenizer), after)
    made = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert made["base_model_name_or_path"] == bases(kind)
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_unmerged(kind, bases, tmp_path, tiny_runs):
    config = make_config(kind, tmp_path / "out", bases(kind), model=lora(rank=4))
    task, trained = fit(kind, config)
    before = judge(kind, task, trained.model, trained.tokenizer)
    merged = judge(kind, task, trained.model.merge_and_unload(), trained.tokenizer)
    assert np.abs(before - merged).max() < 1e-4 * max(1.0, np.abs(before).max())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_where_the_model_is_and_comes_back_from_disk(method, bases, tmp_path, tiny_runs):
    plain = make_config("gpt2", tmp_path / "plain", bases("gpt2"))
    task, model, tokenizer = load("gpt2", plain)
    start = judge("gpt2", task, model, tokenizer)
    config = make_config("gpt2", tmp_path / "out", bases("gpt2"), model={"adapter": {"method": method}})
    assert np.allclose(judge("gpt2", *load("gpt2", config)), start, atol=1e-3)
    task, trained = fit("gpt2", config)
    after = judge("gpt2", task, trained.model, trained.tokenizer)
    assert np.abs(after - start).max() > 1e-3
    again, tokenizer = load_trained(config.output)
    assert np.allclose(judge("gpt2", task, again, tokenizer), after, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_prompt_tuning_trains_vectors_before_the_input(kind, bases, tmp_path, tiny_runs):
    changes: dict[str, Any] = {"model": {"adapter": {"method": "prompt_tuning", "virtual_tokens": 4}}}
    changes |= {"packing": "concatenate"} if kind == "gpt2" else {}
    config = make_config(kind, tmp_path / "out", bases(kind), **changes)
    task = load(kind, config)[0]
    assert hftk.check(config, task) == CONTEXT - 4
    task, trained = fit(kind, config)
    names = trained_weights(trained.model)
    assert any(tuple(p.shape) == (4, 32) for p in names.values())
    again, tokenizer = load_trained(config.output, auto_model=task.auto_model)
    assert np.allclose(
        judge(kind, task, again, tokenizer), judge(kind, task, trained.model, trained.tokenizer), atol=1e-5
    )


def test_an_adapter_trains_itself_and_the_new_head_alone(bases, tmp_path):
    config = make_config("bert", tmp_path, bases("bert"), model=lora())
    names = trained_weights(load("bert", config)[1])
    assert all(".lora_" in name or "classifier.modules_to_save" in name for name in names)
    assert sum("classifier" in name for name in names) == 2
    assert not any("pooler" in name for name in names)


def test_language_models_keep_their_output_layer(bases, tmp_path):
    config = make_config("llama", tmp_path, bases("llama"), model=lora())
    assert all(".lora_" in name for name in trained_weights(load("llama", config)[1]))


def test_targets_are_matched_by_the_end_of_their_names(bases, tmp_path):
    config = make_config(
        "llama", tmp_path, bases("llama"), model=lora(targets=["q_proj", "layers.1.mlp.up_proj"])
    )
    names = trained_weights(load("llama", config)[1])
    ends = {name.split(".lora_")[0].split("model.layers.")[1] for name in names}
    assert ends == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"}


def test_ia3_scales_keys_values_and_the_second_feed_forward_layers(bases, tmp_path):
    for kind, ends in (
        ("bert", {"key", "value", "dense"}),
        ("marian", {"k_proj", "v_proj", "fc2"}),
        ("t5", {"k", "v", "wo"}),
    ):
        config = make_config(kind, tmp_path, bases(kind), model={"adapter": {"method": "ia3"}})
        names = [name for name in trained_weights(load(kind, config)[1]) if "ia3_l" in name]
        assert {name.split(".ia3_l")[0].rpartition(".")[2] for name in names} == ends


def test_all_of_the_model_is_in_one_mode(bases, tmp_path):
    model = load("bert", make_config("bert", tmp_path, bases("bert"), model=lora()))[1]
    assert not any(module.training for module in model.modules())


def test_a_target_that_matches_nothing_gets_the_names_there_are(bases, tmp_path):
    config = make_config("llama", tmp_path, bases("llama"), model=lora(targets=["q_prj"]))
    with pytest.raises(InputError, match=r"called q_prj; there are q_proj, k_proj, v_proj"):
        hftk.check(config, hftk.CausalLM(config))


def test_a_missing_package_is_named_with_its_command(bases, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = make_config("llama", tmp_path, bases("llama"), model={**lora(), "quantization": {"bits": 8}})
    with pytest.raises(InputError) as error:
        hftk.check(config, hftk.CausalLM(config))
    assert 'pip install "hftk[peft]"' in str(error.value) and 'pip install "hftk[quantize]"' in str(
        error.value
    )


def test_prompt_tuning_of_an_encoder_decoder_is_refused(bases, tmp_path):
    config = make_config("t5", tmp_path, bases("t5"), model={"adapter": {"method": "prompt_tuning"}})
    with pytest.raises(InputError, match="decoders and classifiers"):
        hftk.check(config, hftk.Summarization(config))


def test_an_adapter_is_no_model_to_start_from(bases, tmp_path, tiny_runs):
    config = make_config("gpt2", tmp_path / "out", bases("gpt2"), model=lora())
    fit("gpt2", config)
    second = make_config("gpt2", tmp_path / "second", config.output)
    with pytest.raises(InputError, match="hftk export"):
        hftk.check(second, hftk.CausalLM(second))


@pytest.mark.parametrize("bits", [None, 8])
def test_stopped_and_continued_gives_the_same_bits(bits, bases, tmp_path, tiny_runs):
    def run(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        model = {**lora(dropout=0.1), "quantization": {"bits": bits}}
        changes["train"] = {"max_steps": 4, "save_steps": 2, **changes.pop("train", {})}
        config = make_config("bert", tmp_path / name, bases("bert"), model=model, **changes)
        return trained_weights(fit("bert", config)[1].model)

    straight = run("straight")
    at_two = tmp_path / "straight" / "checkpoints" / "checkpoint-2"
    assert (at_two / "adapter_model.safetensors").is_file() and not (at_two / "model.safetensors").exists()
    continued = run("straight", resume=str(at_two))
    assert straight.keys() == continued.keys()
    assert all(torch.equal(straight[name], continued[name]) for name in straight)


def test_another_rank_is_another_run(bases, tmp_path, tiny_runs):
    config = make_config("gpt2", tmp_path / "out", bases("gpt2"), model=lora(rank=4))
    fit("gpt2", config)
    other = make_config("gpt2", tmp_path / "out", bases("gpt2"), model=lora(rank=2), resume="auto")
    with pytest.raises(InputError, match="another run"):
        fit("gpt2", other)


def test_the_best_weights_are_restored(bases, tmp_path, tiny_runs):
    # At this rate every step makes it worse: the first evaluation is the best.
    train = {
        "max_steps": 4,
        "eval_steps": 1,
        "restore_best": True,
        "learning_rate": 3.0,
        "schedule": "constant",
    }
    config = make_config("bert", tmp_path / "out", bases("bert"), model=lora(), train=train)
    task, trained = fit("bert", config)
    losses = [point["eval_loss"] for point in trained.history if "eval_loss" in point]
    best = int(np.argmin(losses))
    assert best < 3
    features = task.encode(
        splits_of("bert").validation, trained.tokenizer, max_length=CONTEXT, training=False
    )
    outputs = hftk.evaluation.evaluate.run_model(
        task, trained.model, trained.tokenizer, features, batch_size=8
    )
    assert task.eval_loss(outputs) == pytest.approx(losses[best], rel=1e-5)


def test_micro_batches_give_the_same_gradient(bases, tmp_path, tiny_runs):
    def run(rows: int) -> dict[str, torch.Tensor]:
        train = {
            "max_steps": 2,
            "per_device_batch_size": rows,
            "optimizer": "sgd",
            "learning_rate": 0.5,
            "max_grad_norm": 0.0,
        }
        config = make_config("bert", tmp_path / str(rows), bases("bert"), model=lora(), train=train)
        return trained_weights(fit("bert", config)[1].model)

    whole, parts = run(8), run(3)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


@pytest.mark.parametrize("bits", [None, 4])
def test_recomputed_activations_give_the_same_weights(bits, bases, tmp_path, tiny_runs):
    def run(again: bool) -> dict[str, torch.Tensor]:
        model = {**lora(), "quantization": {"bits": bits}}
        train = {"gradient_checkpointing": again, "optimizer": "sgd", "learning_rate": 0.5}
        config = make_config("llama", tmp_path / str(again), bases("llama"), model=model, train=train)
        return trained_weights(fit("llama", config)[1].model)

    kept, recomputed = run(False), run(True)
    assert all(torch.allclose(kept[name], recomputed[name], atol=1e-5) for name in kept)
    assert any(p.abs().sum() > 0 for name, p in kept.items() if "lora_B" in name)


def test_an_untrained_base_is_kept_in_the_output_and_moves_with_it(tmp_path, tiny_runs):
    config = make_config("gpt2", tmp_path / "out", None, model={**lora(), "quantization": {"bits": 8}})
    task, trained = fit("gpt2", config)
    after = judge("gpt2", task, trained.model, trained.tokenizer)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    again, tokenizer = load_trained(str(moved))
    assert np.array_equal(judge("gpt2", task, again, tokenizer), after)
    assert adapter_files.base_name(moved / "checkpoints" / "checkpoint-3")[0].endswith("moved/base")


def test_a_base_that_is_gone_is_named(bases, tmp_path, tiny_runs):
    import shutil

    base = shutil.copytree(bases("gpt2"), tmp_path / "base_model")
    config = make_config("gpt2", tmp_path / "out", str(base), model=lora())
    fit("gpt2", config)
    shutil.rmtree(base)
    with pytest.raises(InputError, match="base_model, and there is nothing"):
        load_trained(config.output)


def test_plain_peft_loads_it(bases, tmp_path, tiny_runs):
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    for kind, auto, more in (
        ("gpt2", AutoPeftModelForCausalLM, {}),
        ("bert", AutoPeftModelForSequenceClassification, {"num_labels": 3}),
    ):
        config = make_config(kind, tmp_path / kind, bases(kind), model=lora())
        task, trained = fit(kind, config)
        model = auto.from_pretrained(config.output, dtype=torch.float32, **more).eval()
        ours, theirs = (
            judge(kind, task, trained.model, trained.tokenizer),
            judge(kind, task, model, trained.tokenizer),
        )
        assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_new_tokens_are_trained_and_saved(kind, bases, tmp_path, tiny_runs):
    import shutil

    from transformers import AutoTokenizer

    base = shutil.copytree(bases(kind), tmp_path / "grown")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(base)
    config = make_config(kind, tmp_path / "out", str(base), model=lora())
    task, trained = fit(kind, config)
    rows = adapters.base_of(trained.model).get_input_embeddings().weight.shape[0]
    assert rows == len(tokenizer)
    assert any("trainable_tokens" in name for name in trained_weights(trained.model))
    again, loaded = load_trained(config.output, auto_model=task.auto_model)
    assert np.allclose(
        judge(kind, task, again, loaded), judge(kind, task, trained.model, trained.tokenizer), atol=1e-5
    )


def test_a_base_in_bf16_takes_an_adapter_in_float32(bases, tmp_path, tiny_runs):
    config = make_config("bert", tmp_path / "out", bases("bert"), model={**lora(), "dtype": "bfloat16"})
    task, trained = fit("bert", config)
    assert {p.dtype for p in trained_weights(trained.model).values()} == {torch.float32}
    assert np.isfinite(judge("bert", task, trained.model, trained.tokenizer)).all()


def test_what_is_trained_is_said(bases, tmp_path, tiny_runs):
    config = make_config("bert", tmp_path / "out", bases("bert"), model=lora(rank=2))
    _, trained = fit("bert", config)
    line = next(line for line in console.noted() if line.startswith("adapter lora"))
    assert "rank 2 on 12 linear layers, with classifier" in line
    facts = trained.model_facts
    assert facts["architecture"] == "BertForSequenceClassification" and facts["adapter"] == "lora"
    assert facts["parameters_trained"] == sum(p.numel() for p in trained_weights(trained.model).values())
    assert (Path(config.output) / "base_config.json").is_file()
