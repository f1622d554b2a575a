"""Invariants 4 and 5: stop anywhere, start again, get the same weights; a checkpoint that exists is whole."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import small_runs

import hftk
from hftk.config import InputError, override
from hftk.launch import StopRequested
from hftk.training import checkpoints
from hftk.training.trainer import ExactTrainer, TrainingDiverged

TRAIN, HELD_OUT = small_runs.many_to_a_block(200), small_runs.many_to_a_block(20, seed=1)
STEPS = 6
KINDS = {
    "adamw": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup": 2.0,
        "max_grad_norm": 1.0,
    },
    "sgd": {
        "schedule": "reduce_on_plateau",
        "learning_rate": 3e-5,
        "eval_steps": 1,
    },  # so slow that it stalls
}


def config_of(kind, output, **train):
    train = {"max_steps": STEPS, "log_steps": 4, "eval_steps": 3, "save_steps": 0, **KINDS[kind], **train}
    return small_runs.make_config(output, dropout=0.1, train=train)


def go(config, validation=HELD_OUT):
    return small_runs.fit(config, small_runs.splits_of(TRAIN, validation))


def resumed(config, **changes):
    return override(config, {"resume": "auto", **changes})


def saved_steps(output):
    return [checkpoints.step_of(folder) for folder in checkpoints.checkpoints(output)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that nothing stops."""
    return functools.cache(lambda kind: go(config_of(kind, tmp_path_factory.mktemp("straight"))))


def assert_as_straight(run, straight):
    assert small_runs.same_bits(straight.weights, run.weights)
    assert small_runs.timeless(run.history) == small_runs.timeless(straight.history)


# --- Stopped on request


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step_and_continued_is_as_never_stopped(straight, kind, step, tmp_path):
    config = config_of(kind, tmp_path)
    with small_runs.stopping_at(step), pytest.raises(StopRequested, match=f"after step {step} of {STEPS}"):
        go(config)
    assert saved_steps(tmp_path)[-1] == step
    assert not (tmp_path / "model.safetensors").exists()
    assert_as_straight(go(resumed(config)), straight(kind))


def test_the_runs_that_are_compared_have_something_to_remember(straight):
    """Dropout, warm-up, a learning rate that falls on a plateau, and points of the curve over several
    steps."""
    adamw, sgd = straight("adamw"), straight("sgd")
    assert [point["step"] for point in adamw.history] == [1, 3, 4, 6]
    assert len(set(adamw.column("learning_rate"))) == len(adamw.column("learning_rate")) == 3
    assert len(set(sgd.column("learning_rate"))) == 2 and len(sgd.column("eval_loss")) == STEPS
    assert "'resid_pdrop': 0.1" in str(adamw.trained.model.config.to_dict())


def test_stopped_twice_is_as_never_stopped(straight, tmp_path):
    config = config_of("adamw", tmp_path)
    for settings, step in ((config, 2), (resumed(config), 5)):
        with small_runs.stopping_at(step), pytest.raises(StopRequested):
            go(settings)
    assert_as_straight(go(resumed(config)), straight("adamw"))


def test_continuing_a_finished_run_changes_nothing(straight, tmp_path):
    config = config_of("adamw", tmp_path)
    first, again = go(config), go(resumed(config))
    assert_as_straight(first, straight("adamw"))
    assert_as_straight(again, straight("adamw"))
    assert again.trained.seconds["train"] - first.trained.seconds["train"] < 0.5


def test_resume_auto_starts_anew_where_there_is_nothing(straight, tmp_path):
    assert_as_straight(go(resumed(config_of("adamw", tmp_path))), straight("adamw"))


def test_stopped_within_an_epoch_and_continued_evaluates_at_the_same_steps(tmp_path):
    splits = small_runs.splits_of(TRAIN, HELD_OUT)
    config = config_of(
        "adamw", tmp_path / "straight", max_steps=None, epochs=2.5, eval_steps=None, save_steps=None
    )
    whole = small_runs.fit(config, splits)
    config = override(config, {"output": str(tmp_path / "stopped")})
    with small_runs.stopping_at(10), pytest.raises(StopRequested):
        small_runs.fit(config, splits)
    assert_as_straight(small_runs.fit(resumed(config), splits), whole)
    per_epoch = next(point["step"] for point in whole.history if point["epoch"] == 1.0)
    assert per_epoch < 10 < 2 * per_epoch
    assert [p["step"] for p in whole.history if "eval_loss" in p] == [
        per_epoch,
        2 * per_epoch,
        whole.history[-1]["step"],
    ]


# --- Signals


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_saves_ends_with_3_and_the_run_goes_on(straight, tmp_path, capsys, monkeypatch):
    def main(config):
        go(config)

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    config = config_of("adamw", tmp_path / "out")
    terminating = small_runs.stopping_at(2, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
    with terminating, pytest.raises(SystemExit) as ending:
        hftk.run(main, config, [])
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (ending.value.code, status["exit_code"], status["state"]) == (3, 3, "stopped")
    assert "--resume auto" in capsys.readouterr().err
    assert saved_steps(tmp_path / "out") == [3], (
        "the step that was being done, and the one that agreed to stop"
    )
    weights = []
    hftk.run(lambda config: weights.append(go(config)), config, ["--resume", "auto"])
    assert_as_straight(weights[0], straight("adamw"))
    assert json.loads((tmp_path / "out" / "status.json").read_text())["state"] == "done"


# --- Damage


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(straight, tmp_path, capsys):
    config = config_of("adamw", tmp_path, save_steps=2)
    with small_runs.stopping_at(5), pytest.raises(StopRequested):
        go(config)
    assert saved_steps(tmp_path) == [4, 5]
    optimizer = tmp_path / "checkpoints/checkpoint-5/optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    run = go(resumed(config))
    told = capsys.readouterr().out
    assert (
        "checkpoint-5 is damaged: optimizer.pt has" in told
        and "continuing from" in told
        and "checkpoint-4" in told
    )
    assert_as_straight(run, straight("adamw"))


def test_weights_that_the_model_does_not_know_are_an_error(tmp_path):
    config = config_of("adamw", tmp_path)
    with small_runs.stopping_at(2), pytest.raises(StopRequested):
        go(config)
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "checkpoints/checkpoint-2"
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.renamed"] = weights.pop("transformer.ln_f.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(folder, tmp_path / "sealed anew")
    (tmp_path / "sealed anew" / checkpoints.MANIFEST).unlink()
    checkpoints.seal(tmp_path / "sealed anew", folder, {"step": 2})
    with pytest.raises(RuntimeError, match=r"ln_f\.weight, transformer\.ln_f\.renamed"):
        go(resumed(config))


# --- Another run

CHANGES = {
    "the global batch was 16 rows, now 8 rows": {"train": {"global_batch_size": 8}},
    "the length of the run was 6 steps, now 9": {"train": {"max_steps": 9}},
    "--train.seed was 0, now 1": {"train": {"seed": 1}},
    "--train.learning_rate was 0.001, now 0.002": {"train": {"learning_rate": 0.002}},
    "--train.schedule was cosine, now linear": {"train": {"schedule": "linear"}},
    "the training data was": {"packing": "concatenate"},
    "the model was GPT2LMHeadModel of": {"model": {"config": {"n_layer": 3}}},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with small_runs.stopping_at(2), pytest.raises(StopRequested):
        go(config_of("adamw", folder))
    return folder


@pytest.mark.parametrize("named", CHANGES)
def test_another_run_is_refused_and_what_differs_is_named(stopped, named):
    with pytest.raises(InputError) as error:
        go(resumed(config_of("adamw", stopped), **CHANGES[named]))
    assert any(named in problem.message for problem in error.value.problems), str(error.value)
    assert all("--overwrite" in problem.fix for problem in error.value.problems)
    assert saved_steps(stopped) == [2]


def test_another_text_of_the_same_length_is_refused(stopped):
    edited = [TRAIN[0][::-1], *TRAIN[1:]]
    with pytest.raises(InputError, match="the training data was"):
        small_runs.fit(resumed(config_of("adamw", stopped)), small_runs.splits_of(edited, HELD_OUT))


def test_the_micro_batch_may_change(straight, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "copy")
    config = config_of("adamw", tmp_path / "copy", per_device_batch_size=4, gradient_checkpointing=True)
    run = go(resumed(config))
    assert len(run.history) == len(straight("adamw").history)
    assert [p["tokens"] for p in run.history] == [p["tokens"] for p in straight("adamw").history]


def test_without_resume_the_checkpoints_of_an_earlier_run_are_not_mixed_up(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "copy")
    config = config_of("adamw", tmp_path / "copy", max_steps=1)
    with pytest.raises(InputError, match=r"found 1 of an earlier run.*\n.*--resume auto.*--overwrite"):
        go(config)
    assert saved_steps(tmp_path / "copy") == [2]
    go(override(config, {"overwrite": True}))
    assert saved_steps(tmp_path / "copy") == [1]


# --- Best weights

RISING = {
    "learning_rate": 1.0,
    "max_grad_norm": 1.0,
    "max_steps": 12,
    "eval_steps": 2,
    "schedule": "constant",
    "log_steps": 5,
}
"""Too high a learning rate: the best evaluation is an early one."""


def best_weights(output, step):
    from safetensors.torch import load_file

    return load_file(Path(output) / f"checkpoints/checkpoint-{step}/model.safetensors")


def assert_best(run, output):
    judged = {point["step"]: point["eval_loss"] for point in run.history if "eval_loss" in point}
    best = min(judged, key=judged.get)
    assert best < max(judged), "else nothing had to be restored"
    saved = best_weights(output, best)
    assert small_runs.same_bits(saved, {name: run.weights[name] for name in saved})
    loaded = hftk.load_trained(str(output))[0]
    assert small_runs.same_bits(dict(loaded.named_parameters()), run.weights)
    return best, judged


def test_early_stopping_stops_after_its_patience_with_the_best_weights(tmp_path):
    config = small_runs.make_config(tmp_path, train={**RISING, "early_stopping": 2})
    run = go(config)
    best, judged = assert_best(run, tmp_path)
    assert max(judged) == best + 2 * 2 < 12 and run.trained.stopped_early
    again = go(resumed(config))
    assert_as_straight(again, run)
    assert again.trained.stopped_early


def test_stopped_on_request_the_patience_is_remembered(tmp_path):
    config = small_runs.make_config(tmp_path / "straight", train={**RISING, "early_stopping": 2})
    run = go(config)
    last = run.history[-1]["step"]
    config = override(config, {"output": str(tmp_path / "stopped")})
    for settings, step in ((config, last - 1), (resumed(config), last)):
        with small_runs.stopping_at(step), pytest.raises(StopRequested):
            go(settings)
    assert_as_straight(go(resumed(config)), run)


def test_restore_best_goes_on_to_the_end_and_takes_the_best_weights(tmp_path):
    run = go(small_runs.make_config(tmp_path, train={**RISING, "restore_best": True, "keep_checkpoints": 1}))
    best, judged = assert_best(run, tmp_path)
    assert max(judged) == 12 and saved_steps(tmp_path) == [best, 12]
    assert not run.trained.stopped_early


def test_without_restore_best_the_last_weights_are_taken(tmp_path):
    run = go(small_runs.make_config(tmp_path, train=RISING))
    saved = best_weights(tmp_path, 12)
    assert small_runs.same_bits(saved, {name: run.weights[name] for name in saved})


@pytest.mark.parametrize("train", [{"early_stopping": 2}, {"schedule": "reduce_on_plateau"}])
def test_what_goes_by_evaluations_needs_a_validation_split(train, tmp_path):
    with pytest.raises(InputError, match="validation"):
        go(small_runs.make_config(tmp_path, train=train), validation=None)


# --- No number


class Diverging(ExactTrainer):
    """The loss of step 5 is no number."""

    def _loss(self, model, batch, totals):
        return super()._loss(model, batch, totals) * (float("nan") if self.state.global_step == 4 else 1.0)


@pytest.mark.parametrize("changes", [{"log_steps": 1}, {"log_steps": 6}, {"log_steps": 6, "save_steps": 1}])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(changes, tmp_path):
    config = config_of("adamw", tmp_path, **{"save_steps": 2, **changes})
    with pytest.raises(
        TrainingDiverged, match=r"the loss of step 5 is nan.*lower --train\.learning_rate"
    ) as error:
        small_runs.fit(config, small_runs.splits_of(TRAIN, HELD_OUT), Diverging)
    assert "checkpoint-4 is kept" in str(error.value) and saved_steps(tmp_path)[-1] == 4
    assert not checkpoints.damage(tmp_path / "checkpoints/checkpoint-4")
    history = json.loads((tmp_path / "checkpoints/checkpoint-4/hftk.json").read_text())["history"]
    assert all(point["loss"] == point["loss"] for point in history if "loss" in point)


def test_weights_that_became_infinite_are_not_saved(tmp_path):
    class Exploding(ExactTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.state.global_step == 3:
                next(model.parameters()).grad[0] = float("inf")
            return loss

    config = config_of("adamw", tmp_path, save_steps=2)
    with pytest.raises(TrainingDiverged, match="the gradient of step 4 has the norm"):
        small_runs.fit(config, small_runs.splits_of(TRAIN, HELD_OUT), Exploding)
    assert saved_steps(tmp_path) == [2]


@pytest.mark.launch
def test_a_loss_that_is_no_number_on_one_process_ends_both(two_processes):
    assert all("the loss of step 4 is nan" in message for message in two_processes["diverged"])


@pytest.mark.launch
def test_sigterm_for_one_process_ends_both_after_the_same_step(two_processes):
    found = two_processes["stopped"]
    assert found["steps"] == [3, 3] and all(found["messages"])
    assert found["difference"] == 0.0 and found["histories"][0] == found["histories"][1]


@pytest.mark.launch
def test_a_step_that_is_no_number_on_one_process_is_skipped_by_both(two_processes):
    found = two_processes["skipped"]
    assert found["skipped"][0] == found["skipped"][1] and [
        entry["step"] for entry in found["skipped"][0]
    ] == [4]
    assert found["apart"] == 0.0 and found["logged"] == [1, 2, 3, 5]


@pytest.mark.launch
@pytest.mark.parametrize("stage", ["writing", "sealing"])
def test_a_full_disk_of_the_main_process_ends_both_and_both_states_are_saved_elsewhere(two_processes, stage):
    found = two_processes["full disk"][stage]
    assert found["messages"][0] == found["messages"][1] and "No space left on device" in found["messages"][0]
    assert found["step"] == 2 or (stage == "sealing" and found["step"] in (3, 4))
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(found["files"])
    assert found["same"] and [name for name in found["left"] if name != "checkpoint-5"] in (
        [],
        ["checkpoint-4"],
    )
