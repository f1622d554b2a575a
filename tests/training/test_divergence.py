"""A loss or gradient that is not finite: found in its step, looked into, and the run ends or goes on without
that step."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))

import small_runs

import hftk
from hftk.config import override
from hftk.launch import StopRequested
from hftk.training import checkpoints
from hftk.training.divergence import layer_of
from hftk.training.trainer import ExactTrainer, TrainingDiverged

pytestmark = pytest.mark.usefixtures("tiny_runs")

STEPS = 8
POISONED = 37
"""The row of which the loss is no number: the only one with this letter."""
TEXTS = small_runs.one_to_a_block(64)
TEXTS[POISONED] = TEXTS[POISONED][:-5] + "z" + TEXTS[POISONED][-4:]
SPLITS = small_runs.splits_of(TEXTS, small_runs.one_to_a_block(8, seed=1))


def config_of(output: Path, **train: Any) -> Any:
    train = {
        "max_steps": STEPS,
        "per_device_batch_size": 4,
        "global_batch_size": 8,
        "save_steps": 1,
        "keep_checkpoints": 9,
        "eval_steps": 8,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        **train,
    }
    return small_runs.make_config(output, dropout=0.1, train=train)


class Poisoned(ExactTrainer):
    """The activation in the second layer gives inf for micro-batches with the letter."""

    def _loss(self, model: Any, batch: Any, totals: Any) -> torch.Tensor:
        letter = self.tokenizer.convert_tokens_to_ids("z")

        def poison(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * float("inf")

        poisons = bool((batch["input_ids"] == letter).any()) and self.plain.training
        handle = (
            self.plain.transformer.h[1].mlp.act.register_forward_hook(poison, prepend=True)
            if poisons
            else None
        )
        try:
            return super()._loss(model, batch, totals)
        finally:
            if handle is not None:
                handle.remove()


def diagnosis_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "divergence.json").read_text())
    return found


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and message of a run that the row ends."""
    output = tmp_path_factory.mktemp("diverged")
    with pytest.raises(TrainingDiverged) as caught:
        small_runs.fit(config_of(output), SPLITS, Poisoned)
    return output, str(caught.value)


# --- The diagnosis


def test_the_run_ends_in_the_very_step_with_the_checkpoint_before_it(diverged: tuple[Path, str]) -> None:
    output, message = diverged
    step = diagnosis_of(output)["step"]
    assert f"the loss of step {step} is nan" in message and step > 1
    saved = checkpoints.checkpoints(output)
    assert [checkpoints.step_of(folder) for folder in saved] == list(range(1, step)), (
        "it was saved after every step"
    )
    assert f"{saved[-1]} is kept" in message and "--train.on_non_finite skip" in message
    assert not any(checkpoints.damage(folder) for folder in saved)


def test_the_rows_of_the_step_and_of_the_micro_batch_are_named(diverged: tuple[Path, str]) -> None:
    found = diagnosis_of(diverged[0])
    assert (
        len(found["rows"]) == 8 and POISONED in found["rows"] and found["rows"] == sorted(set(found["rows"]))
    )
    assert (
        len(found["suspects"]) == 4
        and POISONED in found["suspects"]
        and set(found["suspects"]) < set(found["rows"])
    )
    assert str(POISONED) in diverged[1]


def test_the_first_module_that_gave_no_number_and_all_layers_are_named(diverged: tuple[Path, str]) -> None:
    found = diagnosis_of(diverged[0])
    assert found["first_non_finite"] == "transformer.h.1.mlp.act" and "transformer.h.1.mlp.act" in diverged[1]
    layers = {"transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1", "transformer.ln_f"}
    assert set(found["gradient_norms"]) == layers and set(found["gradient_norms"].values()) == {"NaN"}
    assert set(found["activations"]) >= layers and all(
        0 < value < 100 for value in found["activations"].values()
    )
    assert found["weights_not_finite"] == [] and "all weights are finite" in diverged[1]


class Exploding(ExactTrainer):
    """From the fourth step on the gradient of one weight is infinite, before it is clipped."""

    def _forward_backward(self, *args: Any) -> list[torch.Tensor]:
        losses = super()._forward_backward(*args)
        self.norms = {n: float(p.grad.norm()) for n, p in self.plain.named_parameters()}
        if self.state.global_step == 3:
            self.plain.transformer.h[1].attn.c_attn.weight.grad[0, 0] = float("inf")
        Exploding.last = self
        return losses

    last: Any = None


class Looking(Exploding):
    """As on a GPU, where the losses are looked at now and then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.guard.every_step = False


@pytest.mark.parametrize("trainer", [Exploding, Looking])
@pytest.mark.parametrize("clipping", [0.0, 1.0])
def test_the_gradient_norms_of_the_layers_are_those_before_clipping(
    tmp_path: Path, trainer: Any, clipping: float
) -> None:
    config = config_of(tmp_path, max_grad_norm=clipping)
    with pytest.raises(TrainingDiverged, match="the gradient of step 4 has the norm inf"):
        small_runs.fit(config, SPLITS, trainer)
    found, norms = diagnosis_of(tmp_path), Exploding.last.norms
    assert found["step"] == 4 and found["gradient_norms"]["transformer.h.1"] == "Infinity"
    for layer in ("transformer.wte", "transformer.h.0", "transformer.ln_f"):
        by_hand = math.sqrt(sum(norm**2 for name, norm in norms.items() if name.startswith(f"{layer}.")))
        assert found["gradient_norms"][layer] == pytest.approx(by_hand, rel=1e-5)
    assert checkpoints.step_of(checkpoints.checkpoints(tmp_path)[-1]) == 3


def test_looking_now_and_then_names_the_first_step_that_went_wrong(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, save_steps=3, log_steps=STEPS
    )  # step 1 and 3 are saved, the next look is after step 6
    with pytest.raises(
        TrainingDiverged, match=r"the loss of step 5 is nan|the gradient of step 6 has the norm nan"
    ) as caught:
        small_runs.fit(config, SPLITS, Looking)
    found = diagnosis_of(tmp_path)
    assert found["step"] in (4, 5) and found["gradient_norms"] and len(found["rows"]) == 8
    assert "transformer.wte.weight" in found["weights_not_finite"] and "not finite" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("transformer.h.3.mlp.c_fc.weight", "transformer.h.3"),
        ("bert.encoder.layer.11.output.dense", "bert.encoder.layer.11"),
        ("decoder.block.0.layer.2.wo.weight", "decoder.block.0"),
        ("lm_head.weight", "lm_head"),
        ("classifier.bias", "classifier"),
        ("shared", "shared"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("block.7", "block.7"),
    ],
)
def test_the_layer_of_a_name(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_a_loss_out_of_all_proportion_ends_the_run(tmp_path: Path) -> None:
    class Rising(ExactTrainer):
        def _loss(self, model: Any, batch: Any, totals: Any) -> torch.Tensor:
            return super()._loss(model, batch, totals) * (1e6 if self.state.global_step == 5 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"the loss has exploded, from 2\.\d+ to .*e\+06 at step 6"):
        small_runs.fit(config_of(tmp_path), SPLITS, Rising)
    assert checkpoints.step_of(checkpoints.checkpoints(tmp_path)[-1]) == 5


def test_a_recipe_ends_with_1_and_no_traceback(tmp_path: Path, capsys: Any) -> None:
    def main(config: Any) -> None:
        small_runs.fit(config, SPLITS, Poisoned)

    with pytest.raises(SystemExit) as ending:
        hftk.run(main, config_of(tmp_path / "run"), [])
    said, status = capsys.readouterr().err, json.loads((tmp_path / "run/status.json").read_text())
    assert ending.value.code == status["exit_code"] == 1 and status["state"] == "failed"
    assert (
        "Traceback" not in said
        and "rows of the step" in said
        and "transformer.h.1.mlp.act" in status["message"]
    )


# --- Skipping


@contextlib.contextmanager
def weights_by_step(seen: list[dict[str, torch.Tensor]]) -> Iterator[type[ExactTrainer]]:
    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    class Watched(Poisoned):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Watch())

    yield Watched


@pytest.fixture(scope="module")
def skipping(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[small_runs.Run, list[dict[str, torch.Tensor]]]:
    seen: list[dict[str, torch.Tensor]] = []
    config = config_of(tmp_path_factory.mktemp("skipping"), on_non_finite="skip", log_steps=2)
    with weights_by_step(seen) as trainer:
        return small_runs.fit(config, SPLITS, trainer), seen


def test_a_step_that_is_skipped_changes_no_weight_and_is_counted(skipping: Any) -> None:
    run, seen = skipping
    (skipped,) = run.trained.data_facts["skipped_steps"]
    step = skipped["step"]
    assert POISONED in skipped["rows"] and len(skipped["rows"]) == 8 and "is nan" in skipped["why"]
    assert small_runs.same_bits(seen[step - 1], seen[step - 2])
    assert all(not small_runs.same_bits(seen[i], seen[i - 1]) for i in range(1, STEPS) if i != step - 1)
    assert all(math.isfinite(value) for point in run.history for value in point.values())
    assert [point["step"] for point in run.history] == [1, 2, 4, 6, 8]


def test_the_curve_is_the_mean_over_the_steps_that_were_not_skipped(skipping: Any, tmp_path: Path) -> None:
    run, _ = skipping
    step = run.trained.data_facts["skipped_steps"][0]["step"]
    single = small_runs.fit(
        config_of(tmp_path, on_non_finite="skip", log_steps=1, save_steps=0), SPLITS, Poisoned
    )
    losses = {point["step"]: point["loss"] for point in single.history if "loss" in point}
    assert set(losses) == set(range(1, STEPS + 1)) - {step}
    assert small_runs.same_bits(single.weights, run.weights)
    last = 0
    for point in run.history:
        of = [losses[s] for s in range(last + 1, point["step"] + 1) if s in losses]
        assert point["loss"] == pytest.approx(sum(of) / len(of), rel=1e-6)
        last = point["step"]


def test_a_run_that_was_stopped_remembers_what_it_skipped(skipping: Any, tmp_path: Path) -> None:
    run, _ = skipping
    step = run.trained.data_facts["skipped_steps"][0]["step"]
    config = config_of(tmp_path, on_non_finite="skip", log_steps=2)
    with small_runs.stopping_at(min(step + 1, STEPS - 1)), pytest.raises(StopRequested):
        small_runs.fit(config, SPLITS, Poisoned)
    again = small_runs.fit(override(config, {"resume": "auto"}), SPLITS, Poisoned)
    assert small_runs.same_bits(again.weights, run.weights)
    assert again.trained.data_facts["skipped_steps"] == run.trained.data_facts["skipped_steps"]
    assert small_runs.timeless(again.history) == small_runs.timeless(run.history)


def test_a_run_that_diverged_goes_on_when_told_to_skip(skipping: Any, tmp_path: Path) -> None:
    config = config_of(tmp_path, log_steps=2)
    with pytest.raises(TrainingDiverged):
        small_runs.fit(config, SPLITS, Poisoned)
    again = small_runs.fit(
        override(config, {"resume": "auto", "train": {"on_non_finite": "skip"}}), SPLITS, Poisoned
    )
    assert small_runs.same_bits(again.weights, skipping[0].weights)


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path) -> None:
    run = small_runs.fit(config_of(tmp_path, on_non_finite="skip"), SPLITS, Exploding)
    (skipped,) = run.trained.data_facts["skipped_steps"]
    assert skipped["step"] == 4 and re.search("the gradient of step 4 has the norm inf", skipped["why"])
    assert 4 in [point["step"] for point in run.history if "loss" in point], "its loss was a number"


def test_too_many_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    class Lost(ExactTrainer):
        def _loss(self, model: Any, batch: Any, totals: Any) -> torch.Tensor:
            return super()._loss(model, batch, totals) * (
                float("nan") if self.state.global_step >= 3 else 1.0
            )

    config = config_of(tmp_path, on_non_finite="skip", max_steps=20, save_steps=5)
    with pytest.raises(
        TrainingDiverged, match="the loss of step 14 is nan, and the 10 steps before it were skipped"
    ):
        small_runs.fit(config, SPLITS, Lost)
