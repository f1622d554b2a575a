"""The count on tensors without memory against the same count on real ones, and against numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hftk.config import AdapterConfig, ModelConfig, QuantizationConfig, TrainConfig, override
from hftk.models import chunked_cross_entropy
from hftk.planning import simulation
from hftk.planning.fake_adapters import QuantizedLinear
from hftk.planning.shapes import planned_config
from hftk.planning.simulation import BatchShape, Footprint, LiveBytes, simulate
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.summarization import Summarization, SummarizationConfig

KINDS: dict[str, Any] = {
    "gpt2": (CausalLM, CausalLMConfig, {"packing": "concatenate"}),
    "llama": (CausalLM, CausalLMConfig, {"packing": "concatenate"}),
    "bert": (Classification, ClassificationConfig, {}),
    "t5": (Summarization, SummarizationConfig, {}),
    "marian": (Summarization, SummarizationConfig, {}),
}
SHAPE = BatchShape(rows=3, length=24)


def task_of(architecture: str, **train: Any) -> Any:
    task, config, more = KINDS[architecture]
    return task(
        config(
            model=ModelConfig(size="tiny", architecture=architecture, vocab_size=300),
            train=TrainConfig(**train),
            **more,
        )
    )


def counted(task: Any, precision: str = "fp32", **changes: Any) -> Footprint:
    shape = replace(SHAPE, target_length=10 if "Seq2Seq" in task.auto_model else 0)
    made = planned_config(task.config.model, task)
    return simulate(task.config, task, made, shape, judged=shape, precision=precision, **changes)


@pytest.mark.parametrize("architecture", KINDS)
@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", False), ("bf16", False), ("fp32", True)])
def test_real_tensors_take_what_the_count_says(
    architecture: str, precision: str, checkpointing: bool
) -> None:
    task = task_of(architecture, gradient_checkpointing=checkpointing)
    found = counted(task, precision)
    made = planned_config(task.config.model, task)
    shape = replace(SHAPE, target_length=10 if "Seq2Seq" in task.auto_model else 0)
    live = LiveBytes()
    with live:
        model = simulation._make(task.config, task, made, None)
        chunked_cross_entropy._in_pieces[model] = (
            True  # a real model would be tried first, a fake one cannot be
        )
        real = simulation._count_step(task.config, task, model, shape, shape, precision, False, live)
    assert (real.weights, real.gradients, real.optimizer) == (found.weights, found.gradients, found.optimizer)
    assert real.flops_training == found.flops_training
    # Where rows are padded the two differ by a mask: a real batch of full rows has none.
    assert sum(found.peak.values()) == pytest.approx(sum(real.peak.values()), rel=0.02)
    assert found.kept == pytest.approx(real.kept, rel=0.02)


def test_states_of_adam_are_sixteen_bytes_for_each_weight() -> None:
    found = counted(task_of("gpt2"))
    assert found.weights == 4 * found.parameters and found.gradients == 4 * found.parameters
    assert found.optimizer == pytest.approx(8 * found.parameters, rel=1e-3)


@pytest.mark.parametrize(("optimizer", "each"), [("sgd", 4), ("rmsprop", 8), ("lion", 4), ("adam", 8)])
def test_other_optimizers_hold_what_they_hold(optimizer: str, each: int) -> None:
    found = counted(task_of("gpt2", optimizer=optimizer))
    assert found.optimizer == pytest.approx(each * found.parameters, rel=1e-3)


def test_forward_operations_are_two_for_each_weight_and_token_beside_attention() -> None:
    """GPT-2 tiny by hand: 4 layers of width 128 with 12 x 128^2 weights in matrices, 24 tokens of context,
    and a head of 300 x 128 whose two gradients are computed with the loss."""
    found = counted(task_of("gpt2"))
    per_token = 2 * (4 * 12 * 128**2 + 3 * 300 * 128) + 4 * 4 * 128 * 24
    assert found.flops_forward == per_token * found.tokens


def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain, less = counted(task_of("llama")), counted(task_of("llama", gradient_checkpointing=True))
    assert less.kept < 0.6 * plain.kept
    assert plain.flops_training < less.flops_training < 1.4 * plain.flops_training


def test_gradients_of_earlier_micro_batches_stay_through_the_step() -> None:
    once, several = counted(task_of("t5")), counted(task_of("t5"), accumulate=True)
    assert sum(several.peak.values()) > sum(once.peak.values())
    assert several.gradients == once.gradients


def test_a_batch_costs_in_proportion_to_its_rows() -> None:
    task = task_of("bert")
    made = planned_config(task.config.model, task)
    two, four, eight = (
        simulate(task.config, task, made, replace(SHAPE, rows=n), judged=SHAPE, precision="fp32").kept
        for n in (2, 4, 8)
    )
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)


def test_nothing_of_the_count_is_left_behind() -> None:
    before = torch.get_rng_state()
    counted(task_of("gpt2"))
    assert torch.equal(before, torch.get_rng_state())
    assert type(torch.empty(1)) is torch.Tensor


def test_logits_are_told_from_activations() -> None:
    task = task_of("gpt2")
    made = planned_config(task.config.model, task)
    found = simulate(task.config, task, made, replace(SHAPE, rows=64), judged=SHAPE, precision="fp32")
    assert found.peak["logits"] == 4 * 64 * 24 * 300  # in float32; softmax and gradient take their place
    with_many = override(task.config, {"model": {"vocab_size": 30_000}})
    made = planned_config(with_many.model, CausalLM(with_many))
    shape = replace(SHAPE, rows=64)
    found = simulate(with_many, CausalLM(with_many), made, shape, judged=SHAPE, precision="fp32")
    assert 0 < found.peak["logits"] < 4 * 64 * 24 * 30_000 / 2, "the loss is computed in pieces"


def test_storages_are_counted_once_and_until_they_die() -> None:
    with LiveBytes() as live:
        a = torch.empty(100)
        view = a[10:]
        assert live.total == 400
        b = a + 1
        assert live.total == 800
        del b
        assert live.total == 400 and sum(live.peak.values()) == 800
        del a
        assert live.total == 400
        del view
        assert live.total == 0


@pytest.mark.parametrize(("bits", "size"), [(8, 64 * 32 + 4 * 32), (4, 64 * 32 // 2 + 64 * 32 // 64 + 0)])
def test_quantized_weights_are_as_large_as_bitsandbytes_has_them(bits: int, size: int) -> None:
    layer = QuantizedLinear(64, 32, None, bits)
    assert sum(t.nbytes for t in (*layer.parameters(), *layer.buffers())) == size
    assert layer.weight.weights_held == 64 * 32
    x = torch.zeros(2, 3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert layer(x).shape == (2, 3, 32) and x.grad is not None


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_adapters_train_little_and_quantization_shrinks_the_rest(method: str) -> None:
    pytest.importorskip("peft")
    from hftk.planning.fake_adapters import adapt

    task = task_of("t5")
    made = planned_config(task.config.model, task)
    whole = counted(task)
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = {}
    for bits in (None, 8, 4):
        low: Any = QuantizationConfig(bits=bits)  # type: ignore[arg-type]
        config = ModelConfig(
            size="tiny",
            adapter=AdapterConfig(method=method, rank=None if method == "ia3" else 4),
            quantization=low,
        )  # type: ignore[arg-type]
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = adapt(simulation._build(task.config, task, made), config, task.auto_model)
        parameters = list(model.parameters())
        sizes[bits] = sum(p.nbytes for p in parameters)
        assert 0 < sum(p.numel() for p in parameters if p.requires_grad) < 0.1 * whole.parameters
    assert sizes[4] < sizes[8] < sizes[None]


def test_offloaded_activations_take_no_byte_between_forward_and_backward() -> None:
    shape = BatchShape(rows=32, length=128)
    found = {}
    for offload in (False, True):
        task = task_of("gpt2", activation_offload=offload)
        made = planned_config(task.config.model, task)
        found[offload] = simulate(task.config, task, made, shape, judged=shape, precision="fp32")
    assert found[True].kept < 0.1 * found[False].kept
    assert sum(found[True].peak.values()) < sum(found[False].peak.values())


def test_layers_that_a_run_keeps_whole_are_planned_whole() -> None:
    """T5 keeps the second layer of its feed-forward blocks in float32, and so do the settings with what they
    skip."""
    for architecture, more, kept in (
        ("t5", {}, {"wo"}),
        ("llama", {"skip_modules": ["model.layers.0"]}, {"q_proj", "down_proj"}),
    ):
        task = task_of(architecture)
        changes = {"model": {"quantization": {"bits": 8, **more}, "adapter": {"method": "lora"}}}
        task = type(task)(override(task.config, changes))
        model = simulation._make(task.config, task, planned_config(task.config.model, task), None)
        low = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        whole = {
            name
            for name, module in model.named_modules()
            if type(module) is torch.nn.Linear and "lora_" not in name
        }
        of_layer_0 = [name for name in low if ".layers.0." in name]
        assert low and kept <= {name.removesuffix(".base_layer").rpartition(".")[2] for name in whole}
        assert architecture == "t5" or not of_layer_0
        assert counted(task).trained > 0
