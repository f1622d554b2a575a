"""Learning rates that can be worked out by hand, and optimizers that go downhill."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from hftk import console
from hftk.config import AdapterConfig, InputError, ModelConfig, TrainConfig
from hftk.training.optimizers import (
    BITSANDBYTES,
    check_optimizer,
    decayed,
    make_optimizer,
    parameter_groups,
    peak_learning_rate,
    state_bytes,
)
from hftk.training.schedules import make_scheduler, schedule_factor, warmup_steps

KINDS = (
    "linear",
    "cosine",
    "constant",
    "polynomial",
    "exponential",
    "step",
    "inverse_sqrt",
    "warmup_stable_decay",
)
OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "adafactor", "lion", "adamw_8bit")


@pytest.fixture(autouse=True)
def _no_earlier_choices() -> Iterator[None]:
    console.clear_notes()
    yield
    console.clear_notes()


def one_parameter(config: TrainConfig, total: int, peak: float = 1.0) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    return optimizer, make_scheduler(optimizer, config, peak, total)


def rates(config: TrainConfig, total: int, peak: float = 1.0) -> list[float]:
    """The learning rate of every step of a run, as the optimizer has it."""
    optimizer, scheduler = one_parameter(config, total, peak)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# --- Schedules


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 10), (0.999, 100), (1, 1), (30, 30)])
def test_warm_up_is_a_share_below_one_and_else_a_number_of_steps(warmup: float, steps: int) -> None:
    assert warmup_steps(warmup, 100) == steps


BY_HAND: dict[str, dict[int, float]] = {  # 100 steps after a warm-up of 20: step -> share of the peak
    "linear": {0: 1 / 21, 9: 10 / 21, 19: 20 / 21, 20: 1, 70: 0.5, 100: 0.2, 120: 0},
    "cosine": {20: 1, 45: 0.5 + 0.5 * 2**-0.5, 70: 0.5, 120: 0},
    "constant": {0: 1 / 21, 20: 1, 70: 1, 120: 1},
    "polynomial": {20: 1, 70: 0.25, 100: 0.04, 120: 0},
    "exponential": {20: 1, 70: 0.1, 120: 0.01},
    "step": {20: 1, 53: 1, 54: 0.1, 86: 0.1, 87: 0.01, 120: 0.01},
    "inverse_sqrt": {20: 1, 80: 0.5},
    "warmup_stable_decay": {20: 1, 96: 1, 108: 0.5, 120: 0},
}


@pytest.mark.parametrize(
    ("kind", "step", "share"), [(k, s, v) for k, at in BY_HAND.items() for s, v in at.items()]
)
def test_schedules_at_points_that_can_be_worked_out_by_hand(kind: str, step: int, share: float) -> None:
    assert schedule_factor(kind, step, 120, 20) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 7, 29, 30, 50])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_no_step_is_without_effect_none_is_below_the_lowest_rate_and_the_peak_is_never_passed(
    kind: str, warmup: int, floor: float
) -> None:
    found = rates(TrainConfig(schedule=kind, warmup=warmup, min_learning_rate=floor), 30)  # type: ignore[arg-type]
    assert all(max(floor, 1e-9) <= rate <= 1 for rate in found), found
    assert all(a < b for a, b in pairwise(found[: warmup + 1]))
    after = found[warmup:]
    assert all(a >= b for a, b in pairwise(after))
    assert not after or after[0] == 1


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "warmup_stable_decay"])
def test_schedules_that_fall_to_the_end_arrive_at_the_lowest_rate(kind: str) -> None:
    assert schedule_factor(kind, 50, 50, 5, 0.1) == pytest.approx(0.1)
    assert 0.1 < schedule_factor(kind, 49, 50, 5, 0.1) < 0.2


def test_the_others_fall_no_further_than_the_lowest_rate() -> None:
    assert schedule_factor("exponential", 50, 50, 0, 0.1) == 0.1
    assert schedule_factor("step", 50, 50, 0, 0.03) == 0.03
    assert schedule_factor("inverse_sqrt", 10**6, 10**6, 100, 0.02) == 0.02


def test_a_decay_that_the_warm_up_reaches_into_starts_at_the_peak() -> None:
    found = rates(TrainConfig(schedule="warmup_stable_decay", warmup=90), 100)
    assert found[90] == 1 and found[95] == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_said() -> None:
    assert rates(TrainConfig(warmup=50), 3) == pytest.approx([1 / 51, 2 / 51, 3 / 51])
    assert console.noted() == ["train.warmup: 50 steps, and the run has 3: the learning rate only rises"]


def test_after_the_warm_up_schedules_equal_those_of_transformers() -> None:
    from transformers import optimization as theirs

    def of_transformers(make: Any, **arguments: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = make(optimizer, **arguments)
        found = []
        for _ in range(40):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    steps = {"num_warmup_steps": 8, "num_training_steps": 40}
    pairs = {
        "linear": of_transformers(theirs.get_linear_schedule_with_warmup, **steps),
        "cosine": of_transformers(theirs.get_cosine_schedule_with_warmup, **steps),
        "constant": of_transformers(theirs.get_constant_schedule_with_warmup, num_warmup_steps=8),
        "polynomial": of_transformers(
            theirs.get_polynomial_decay_schedule_with_warmup, lr_end=0.0, power=2, **steps
        ),
        "inverse_sqrt": of_transformers(theirs.get_inverse_sqrt_schedule, num_warmup_steps=8),
        "warmup_stable_decay": of_transformers(
            theirs.get_wsd_schedule,
            num_warmup_steps=8,
            num_stable_steps=24,
            num_decay_steps=8,
            decay_type="linear",
        ),
    }
    for kind, expected in pairs.items():
        found = rates(TrainConfig(schedule=kind, warmup=8), 40, peak=0.3)  # type: ignore[arg-type]
        assert found[8:] == pytest.approx(expected[8:], rel=1e-6), kind
    lowest = of_transformers(theirs.get_cosine_with_min_lr_schedule_with_warmup, min_lr=0.03, **steps)
    found = rates(TrainConfig(schedule="cosine", warmup=8, min_learning_rate=0.03), 40, peak=0.3)
    assert found[8:] == pytest.approx(lowest[8:])
    unwarmed = of_transformers(theirs.get_inverse_sqrt_schedule, num_warmup_steps=0)
    assert rates(TrainConfig(schedule="inverse_sqrt"), 40, peak=0.3) == pytest.approx(unwarmed)


def test_on_a_plateau_the_rate_is_halved_at_the_second_evaluation_without_a_better_loss() -> None:
    optimizer, scheduler = one_parameter(
        TrainConfig(schedule="reduce_on_plateau", min_learning_rate=0.2), 100
    )
    found = []
    for loss in (3.0, 2.0, 2.1, 2.0, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9):
        scheduler.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("kind", ["cosine", "reduce_on_plateau"])
def test_a_schedule_goes_on_from_its_saved_state(kind: Any) -> None:
    def run(steps: range, saved: dict[str, Any] | None = None) -> tuple[list[float], dict[str, Any]]:
        optimizer, scheduler = one_parameter(
            TrainConfig(schedule=kind, warmup=4 if kind == "cosine" else 0), 20
        )
        if saved:
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
        found = []
        for _ in steps:
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step(*([1.0] if kind == "reduce_on_plateau" else []))
        return found, {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}

    straight, _ = run(range(20))
    first, saved = run(range(7))
    second, _ = run(range(7, 20), saved)
    assert first + second == straight and len(set(straight)) > 2


# --- Which parameters are decayed


def tiny_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=11))


def test_matrices_are_decayed_biases_and_norms_are_not_and_tied_embeddings_count_once() -> None:
    model = tiny_gpt2()
    names = {id(p): n for n, p in model.named_parameters()}
    matrices, rest = parameter_groups(model, 0.1)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert sorted(names[id(p)].removeprefix("transformer.") for p in matrices["params"]) == [
        "h.0.attn.c_attn.weight",
        "h.0.attn.c_proj.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
        "wpe.weight",
        "wte.weight",
    ]
    assert all(
        names[id(p)].endswith(("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")) for p in rest["params"]
    )
    assert len(matrices["params"]) + len(rest["params"]) == len(list(model.parameters()))
    assert [id(p) for p in decayed(model.named_parameters())] == [id(p) for p in matrices["params"]]


def test_the_attention_bias_that_t5_keeps_as_an_embedding_is_a_bias() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=11)
    )
    names = {id(p): n for n, p in model.named_parameters()}
    _, rest = parameter_groups(model, 0.1)
    assert sum("relative_attention_bias" in names[id(p)] for p in rest["params"]) == 2


def test_frozen_parameters_are_in_no_group_and_empty_groups_are_left_out() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    assert [g["params"] for g in parameter_groups(model, 0.1)] == [[model.bias]]
    assert decayed(model.named_parameters()) == []


# --- Optimizers


class Quadratic(torch.nn.Module):
    """(weight - 1)^2 + (bias - 1)^2, summed, from weights of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
        self.bias = torch.nn.Parameter(torch.full((4,), 2.0))

    def forward(self) -> torch.Tensor:
        return ((self.weight - 1) ** 2).sum() + ((self.bias - 1) ** 2).sum()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name: Any) -> None:
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = Quadratic()
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.01), 0.01)
    losses = []
    for _ in range(5):
        loss = model()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0], losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_matrices_to_zero_and_leaves_biases(name: Any) -> None:
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = Quadratic()
    optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.5), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (model.weight < 2).all() and (model.bias == 2).all()
    if name in (
        "adamw",
        "adamw_8bit",
        "adafactor",
        "lion",
    ):  # decoupled: by learning rate x decay of the weight
        assert model.weight[0, 0].item() == pytest.approx(2 * (1 - 0.1 * 0.5))
    if name == "sgd":  # L2: the gradient of decay / 2 x weight^2
        assert model.weight[0, 0].item() == pytest.approx(2 - 0.1 * 0.5 * 2)


def test_the_first_step_of_adamw_is_one_learning_rate_in_the_direction_of_the_sign() -> None:
    model = Quadratic()
    optimizer = make_optimizer(model, TrainConfig(), 0.25)
    model().backward()
    optimizer.step()
    assert torch.allclose(model.weight, torch.full((4, 4), 1.75), atol=1e-5)


def test_settings_reach_the_optimizer() -> None:
    found = make_optimizer(Quadratic(), TrainConfig(adam_beta1=0.8, adam_beta2=0.95), 0.3)
    assert found.defaults["betas"] == (0.8, 0.95) and found.param_groups[0]["lr"] == 0.3
    assert (
        make_optimizer(Quadratic(), TrainConfig(optimizer="sgd", adam_beta1=0.5), 0.3).defaults["momentum"]
        == 0.5
    )


def test_lion_without_bitsandbytes_is_a_clear_error_before_anything_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        InputError, match=r'lion comes from bitsandbytes, which is not installed\n.*pip install "hftk'
    ):
        make_optimizer(Quadratic(), TrainConfig(optimizer="lion"), 0.1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="lion comes from bitsandbytes"):
        check_optimizer(TrainConfig(optimizer="lion"))


def test_a_lowest_rate_above_the_default_peak_is_an_error() -> None:
    config = TrainConfig(min_learning_rate=1e-4)
    assert peak_learning_rate(config, ModelConfig(size="tiny"), 10**6) == 1e-3
    with pytest.raises(InputError, match=r"of 110 million parameters is 5e-05, found 0\.0001"):
        peak_learning_rate(config, ModelConfig(name="m"), 110 * 10**6)


def test_a_rate_that_is_given_is_taken() -> None:
    for model in (ModelConfig(name="m"), ModelConfig(name="m", adapter=AdapterConfig(method="dora"))):
        assert peak_learning_rate(TrainConfig(learning_rate=0.2), model, 10**6) == 0.2


def test_eight_bits_step_nearly_as_32_and_count_as_they_are_held() -> None:
    pytest.importorskip("bitsandbytes")

    def trained(name: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Embedding(64, 128), torch.nn.Linear(128, 128), torch.nn.Linear(128, 2)
        )
        optimizer = make_optimizer(model, TrainConfig(optimizer=name), 1e-2)
        for _ in range(3):
            model(torch.arange(64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    (full, _), (low, optimizer) = trained("adamw"), trained("adamw_8bit")
    for one, other in zip(full.parameters(), low.parameters(), strict=True):
        assert torch.allclose(one, other, atol=5e-3)
    states = [
        t
        for state in optimizer.state.values()
        for name, t in state.items()
        if name.startswith(("state", "absmax"))
    ]
    assert sum(t.nbytes for t in states) == state_bytes("adamw_8bit", low)
    kept = optimizer.state_dict()
    assert [t.dtype for t in states].count(torch.uint8) == 2, (
        "the middle matrix alone: no embeddings, no small tensors"
    )
    again = make_optimizer(low, TrainConfig(optimizer="adamw_8bit"), 1e-2)
    again.load_state_dict(kept)
    assert torch.equal(
        next(iter(again.state.values()))["state1"], next(iter(optimizer.state.values()))["state1"]
    )


def test_a_paged_optimizer_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"use --train\.optimizer adamw_8bit"):
        check_optimizer(TrainConfig(optimizer="paged_adamw_8bit"))
