"""Plans against published figures, and the arithmetic of devices by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hftk.config import InputError, ModelConfig, TrainConfig
from hftk.planning import Setup, batch_of, plan, remedies
from hftk.planning.compute import formula_flops
from hftk.planning.devices import buffers_per_device, states_per_device
from hftk.planning.shapes import BY_SHORT_NAME, SHAPES, planned_config
from hftk.planning.simulation import Footprint
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.summarization import Summarization, SummarizationConfig


def causal(**settings: Any) -> CausalLM:
    return CausalLM(CausalLMConfig(packing="concatenate", **settings))


def of_size(parameters: float) -> Footprint:
    """A model of float32 weights under Adam, without a batch."""
    n = int(parameters)
    return Footprint(
        parameters=n,
        trained=n,
        largest_layer=n // 32,
        outside_layers=0,
        weights=4 * n,
        gradients=4 * n,
        optimizer=8 * n,
        peak={},
        batch_peak=0,
        kept=0,
        judging_peak=0,
        tokens=1,
        flops_forward=2 * n,
        flops_training=6 * n,
    )


# --- Published figures


@pytest.mark.parametrize(("sharding", "gigabytes"), [("none", 120), ("fsdp", 1.9)])
def test_states_are_those_of_figure_1_of_the_zero_paper(sharding: Any, gigabytes: float) -> None:
    """Rajbhandari et al. 2020: 7.5 billion weights, mixed-precision Adam, 64 devices; fsdp is what they call
    stage 3."""
    states = states_per_device(of_size(7.5e9), sharding, 64)
    assert sum(states.values()) / 1e9 == pytest.approx(gigabytes, abs=0.1)


@pytest.mark.parametrize(("sharding", "bytes_per_weight"), [("zero2", 4 + 16 / 64), ("zero3", 20 / 64)])
def test_deepspeed_keeps_a_copy_of_its_own_of_float32_weights(sharding: Any, bytes_per_weight: float) -> None:
    states = states_per_device(of_size(6400), sharding, 64)
    assert sum(states.values()) == pytest.approx(6400 * bytes_per_weight)


@pytest.fixture(scope="module")
def llama() -> Any:
    """Llama 2 7B pre-trained on 2 T tokens as its paper says (Touvron et al. 2023, arXiv:2307.09288): 8 A100
    of 80 GB, 4,096 tokens."""
    task = causal(
        model=ModelConfig(name="meta-llama/Llama-2-7b-hf"),
        train=TrainConfig(max_length=4096, per_device_batch_size=1, epochs=1),
    )
    return task, Setup(devices=8, device="a100-80gb", sharding="fsdp", tokens=2e12)


@pytest.fixture(scope="module")
def llama_plan(llama: Any) -> Any:
    task, setup = llama
    return plan(task.config, task, setup)


@pytest.mark.slow
def test_llama_2_7b_takes_the_gpu_hours_that_meta_published(llama_plan: Any) -> None:
    assert llama_plan.model["parameters"] == 6_738_415_616
    assert llama_plan.run["device_hours"] == pytest.approx(184_320, rel=0.15)


@pytest.mark.slow
def test_llama_2_7b_has_the_states_of_the_zero_paper_and_fits_on_8_devices_only_when_sharded(
    llama_plan: Any,
) -> None:
    states = sum(llama_plan.memory[kind] for kind in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(16 * 6_738_415_616 / 8, rel=1e-3)
    assert llama_plan.fits
    assert llama_plan.device_memory < 16 * 6_738_415_616


@pytest.mark.slow
def test_counted_operations_agree_with_the_formula_of_the_palm_paper(llama_plan: Any) -> None:
    assert llama_plan.flops["training_per_token"] == pytest.approx(
        llama_plan.flops["formula_per_token"], rel=0.02
    )
    # By hand: 6 N + 12 x 32 layers x 4,096 wide x 4,096 tokens.
    assert llama_plan.flops["formula_per_token"] == 6 * 6_738_415_616 + 12 * 32 * 4096 * 4096


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("SmolLM2-135M", 134_515_008),
        ("Llama-2-7b", 6_738_415_616),
        ("Llama-2-70b", 68_976_648_192),
        ("Llama-3-8B", 8_030_261_248),
        ("Mistral-7B-v0.1", 7_241_732_096),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Llama-3.2-1B", 1_235_814_400),
        ("TinyLlama-1.1B", 1_100_048_384),
    ],
)
def test_published_decoders_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    assert _parameters(name, "AutoModelForCausalLM") == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("bart-base", 139_420_416),
        ("bart-large", 406_291_456),
        ("opus-mt-en-de", 74_410_496),
        ("nllb-200-distilled-600m", 615_073_792),
    ],
)
def test_published_encoder_decoders_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    found = _parameters(name, "AutoModelForSeq2SeqLM")
    # Sinusoidal positions are constants that some counts take in.
    assert found == pytest.approx(parameters, rel=0.012)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bert-base-uncased", 109_482_240),
        ("bert-large-uncased", 335_141_888),
        ("distilbert-base-uncased", 66_362_880),
        ("roberta-base", 124_645_632),
        ("xlm-roberta-base", 278_043_648),
        ("all-minilm-l6-v2", 22_713_216),
    ],
)
def test_published_encoders_have_as_many_parameters_as_published(name: str, parameters: int) -> None:
    assert _parameters(name, "AutoModel") == pytest.approx(parameters, rel=0.001)


def _parameters(name: str, auto: str) -> int:
    import torch
    import transformers

    made = planned_config(ModelConfig(name=name), causal())
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(made)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def test_every_published_shape_has_a_short_name_of_its_own() -> None:
    assert len(BY_SHORT_NAME) == len(SHAPES)


# --- Devices


def test_ddp_holds_gradients_twice_and_one_device_does_not() -> None:
    assert buffers_per_device(of_size(100), "ddp", 2, "fp32") == 400
    assert buffers_per_device(of_size(100), "ddp", 1, "fp32") == 0


def test_a_device_never_gathers_more_than_the_whole_model() -> None:
    small = replace(of_size(100), largest_layer=90, outside_layers=10)
    assert buffers_per_device(small, "fsdp", 4, "bf16") == (2 + 4) * 100


def test_lora_states_are_those_of_the_adapter_alone() -> None:
    adapter = replace(of_size(1000), trained=10, weights=4000, gradients=40, optimizer=80)
    assert states_per_device(adapter, "none", 1) == {"weights": 4000, "gradients": 40, "optimizer": 80}
    zero = states_per_device(adapter, "zero3", 2)
    assert zero["optimizer"] == (80 + 40) / 2


# --- Batches


@pytest.mark.parametrize(
    ("train", "devices", "expected"),
    [
        (TrainConfig(per_device_batch_size=8), 1, (8, 8, 1)),
        (TrainConfig(per_device_batch_size=8), 4, (8, 32, 1)),
        (TrainConfig(per_device_batch_size=8, global_batch_size=64), 4, (8, 64, 2)),
        (TrainConfig(per_device_batch_size=8, global_batch_size=10), 1, (5, 10, 2)),
        (TrainConfig(per_device_batch_size=8, max_tokens_per_batch=256), 1, (2, 8, 4)),
        (TrainConfig(per_device_batch_size=8, global_batch_tokens=1024), 1, (8, 8, 1)),
        (TrainConfig(per_device_batch_size=8, global_batch_size=1), 4, (1, 1, 1)),
    ],
)
def test_micro_batches_are_cut_as_training_cuts_them(
    train: TrainConfig, devices: int, expected: tuple[int, int, int]
) -> None:
    task = causal(model=ModelConfig(size="tiny"), train=train)
    shape, rows, accumulation = batch_of(task.config, task, planned_config(task.config.model, task), devices)
    assert (shape.rows, rows, accumulation) == expected


def test_the_largest_batch_fits_and_one_row_more_does_not() -> None:
    task = causal(
        model=ModelConfig(size="tiny", vocab_size=512),
        train=TrainConfig(per_device_batch_size=4, max_length=64),
    )
    setup = Setup(device_memory=300e6)
    found = plan(task.config, task, setup)
    assert found.largest_batch is not None and found.largest_batch > 4
    for rows, fits in ((found.largest_batch, True), (found.largest_batch + 2, False)):
        other = causal(model=task.config.model, train=replace(task.config.train, per_device_batch_size=rows))
        assert plan(other.config, other, setup).fits is fits


def test_what_does_not_fit_gets_three_changes_that_do() -> None:
    train = TrainConfig(per_device_batch_size=64, max_length=128, precision="fp32")
    task = causal(model=ModelConfig(size="tiny", vocab_size=512), train=train)
    found = plan(task.config, task, Setup(device_memory=1e12))
    setup = Setup(device_memory=found.peak * 0.9)
    ways = remedies(task.config, task, setup)
    assert not plan(task.config, task, setup).fits
    assert 2 <= len(ways) <= 3 and all(other.fits for _, other in ways)
    assert ways[0][0].startswith("--train.per_device_batch_size ")


def test_time_and_cost_follow_from_a_measured_speed() -> None:
    task = causal(
        model=ModelConfig(size="tiny"), train=TrainConfig(per_device_batch_size=2, max_length=50, epochs=2)
    )
    run = plan(
        task.config, task, Setup(devices=2, tokens=10_000, tokens_per_second=100, price_per_hour=3.6)
    ).run
    assert run["steps"] == 100 and run["tokens"] == 20_000 and run["seconds"] == 200
    assert run["cost"] == pytest.approx(0.4)


# --- Wrong wishes


def test_all_wrong_wishes_are_told_at_once() -> None:
    task = causal(model=ModelConfig(size="tiny"), train=TrainConfig(epochs=-1))
    with pytest.raises(InputError) as error:
        plan(task.config, task, Setup(devices=0, device="a900", tokens=-1, utilization=2))
    named = {p.setting for p in error.value.problems}
    assert named == {"train.epochs", "devices", "device", "tokens", "utilization"}


def test_sharding_over_one_device_is_refused() -> None:
    task = causal(model=ModelConfig(size="tiny"))
    with pytest.raises(InputError, match="shares out among several devices"):
        plan(task.config, task, Setup(sharding="zero3"))


def test_a_block_longer_than_the_context_is_refused() -> None:
    task = causal(model=ModelConfig(name="openai-community/gpt2"), train=TrainConfig(max_length=2048))
    with pytest.raises(InputError, match="at most 1024"):
        plan(task.config, task)


def test_an_unknown_name_is_told_the_shapes_that_are_known_offline() -> None:
    task = causal(model=ModelConfig(name="meta-llama/Llama-2-7b-chat-new"))
    with pytest.raises(InputError, match="meta-llama/Llama-2-7b-hf"):
        planned_config(task.config.model, task)


def test_a_shape_can_be_named_as_a_size_too() -> None:
    task = causal(model=ModelConfig(size="mistral-7b-v0.1", config={"num_hidden_layers": 2}))
    made = planned_config(task.config.model, task)
    assert (made.model_type, made.num_hidden_layers, made.intermediate_size) == ("mistral", 2, 14336)
    assert formula_flops(10, made, 8) == 60 + 12 * 2 * 4096 * 8


def test_every_task_can_be_planned() -> None:
    train = TrainConfig(max_length=16, per_device_batch_size=2)
    for task in (
        Classification(ClassificationConfig(model=ModelConfig(size="tiny"), train=train)),
        Summarization(SummarizationConfig(model=ModelConfig(size="tiny", architecture="t5"), train=train)),
        causal(model=ModelConfig(size="tiny", architecture="llama"), train=train),
    ):
        found = plan(task.config, task)
        assert found.fits and found.memory["activations"] > 0
