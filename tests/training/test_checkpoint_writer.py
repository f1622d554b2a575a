"""Checkpoints become whole beside the training; where the disk refuses one, the run ends, its state is safe
and nothing whole is lost."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))

import small_runs

from hftk.config import DiskError, override
from hftk.launch import StopRequested
from hftk.launch.exits import CHECKPOINT_THREAD
from hftk.training import checkpoints
from hftk.training.background import BackgroundTask
from hftk.training.trainer import ExactTrainer

pytestmark = pytest.mark.usefixtures("tiny_runs")

STEPS = 6
SPLITS = small_runs.splits_of(small_runs.many_to_a_block(200), small_runs.many_to_a_block(20, seed=1))
FULL = OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def rescue_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> small_runs.Run:
    return small_runs.fit(config_of(tmp_path_factory.mktemp("straight")), SPLITS)


def config_of(output: Path, **train: Any) -> Any:
    train = {
        "max_steps": STEPS,
        "save_steps": 2,
        "eval_steps": 3,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        **train,
    }
    return small_runs.make_config(output, dropout=0.1, train=train)


def saved(output: Path) -> list[int]:
    found = checkpoints.checkpoints(output)
    assert not any(checkpoints.damage(folder) for folder in found)
    return [checkpoints.step_of(folder) for folder in found]


def assert_same(run: small_runs.Run, other: small_runs.Run) -> None:
    assert small_runs.same_bits(run.weights, other.weights)
    assert small_runs.timeless(run.history) == small_runs.timeless(other.history)


def failing(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception = FULL) -> None:
    """The checkpoint of ``step`` cannot be sealed in an output folder."""
    seal = checkpoints.seal

    def refuse(staged: Path, final: Path, facts: dict[str, Any]) -> None:
        if facts["step"] == step and "output" not in facts:
            raise error
        seal(staged, final, facts)

    monkeypatch.setattr(checkpoints, "seal", refuse)


# --- Beside the training


def test_a_background_task_runs_one_at_a_time_and_raises_its_error_once() -> None:
    task, seen = BackgroundTask(), []

    def work(number: int) -> Callable[[], None]:
        def do() -> None:
            time.sleep(0.02)
            seen.append(number)

        return do

    for number in range(3):
        task.start(work(number))
    task.wait()
    assert seen == [0, 1, 2] and not task.failed

    def fail() -> None:
        raise FULL

    task.start(fail)
    with pytest.raises(OSError, match="No space left"):
        task.start(work(3))
    task.wait()
    assert seen == [0, 1, 2]


def test_the_training_goes_on_while_a_checkpoint_is_sealed_and_it_counts_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: small_runs.Run
) -> None:
    may_go_on, seal, seen = threading.Event(), checkpoints.seal, []

    def wait(staged: Path, final: Path, facts: dict[str, Any]) -> None:
        if facts["step"] == 2:
            assert may_go_on.wait(60)
        seal(staged, final, facts)

    class Watched(ExactTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 3:  # the fourth step, of which the end is the next save
                seen.extend(saved(tmp_path))
                may_go_on.set()
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "seal", wait)
    assert_same(small_runs.fit(config_of(tmp_path), SPLITS, Watched), straight)
    assert seen == [] and may_go_on.is_set()
    assert saved(tmp_path) == [4, 6], "rotation is done too when the run ends"
    assert not (tmp_path / checkpoints.FOLDER / checkpoints.STAGING).exists()


def test_a_callback_that_wants_to_see_a_checkpoint_finds_it_whole(tmp_path: Path) -> None:
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(saved(tmp_path)[-1])

    class Watched(ExactTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Look())

    small_runs.fit(config_of(tmp_path), SPLITS, Watched)
    assert seen == [2, 4, 6]


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt()])
def test_an_error_ends_the_run_but_not_the_checkpoint_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    seal = checkpoints.seal

    def slowly(*args: Any) -> None:
        time.sleep(0.3)
        seal(*args)

    class Broken(ExactTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise error
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "seal", slowly)
    with pytest.raises(type(error)):
        small_runs.fit(config_of(tmp_path), SPLITS, Broken)
    assert saved(tmp_path) == [2]
    assert not [thread for thread in threading.enumerate() if thread.name == CHECKPOINT_THREAD]


def test_a_checkpoint_says_what_it_was_written_with(tmp_path: Path) -> None:
    import json

    small_runs.fit(config_of(tmp_path), SPLITS)
    manifest = json.loads((checkpoints.checkpoints(tmp_path)[-1] / checkpoints.MANIFEST).read_text())
    assert manifest["step"] == STEPS and manifest["processes"] == 1
    assert {"hftk", "python", "torch", "transformers"} <= set(manifest["versions"])
    assert {"tokenizer.json", "tokenizer_config.json", "hftk.json", "optimizer.pt"} <= set(manifest["files"])
    assert "training_args.bin" not in manifest["files"]


# --- A disk that refuses


def rescued_from(error: DiskError) -> Path:
    return Path(str(error).split("--resume ")[-1])


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_checkpoint_that_cannot_be_sealed_ends_the_run_with_its_state_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: small_runs.Run, rescue_place: Path, step: int
) -> None:
    config = config_of(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="No space left on device") as caught:
        failing(patch, step)
        small_runs.fit(config, SPLITS)
    older = [s for s in (2, 4, 6) if s < step]
    assert saved(tmp_path / "out") == older
    assert (
        f"checkpoint-{older[-1]} and older ones are as they were"
        if older
        else "no checkpoint was written before"
    ) in str(caught.value)
    assert not (tmp_path / "out" / checkpoints.FOLDER / checkpoints.STAGING).exists(), "room is made"
    rescued = rescued_from(caught.value)
    assert rescued.is_relative_to(rescue_place) and not checkpoints.damage(rescued)
    assert step <= checkpoints.step_of(rescued) <= step + 2, "noticed at the next save at the latest"
    assert_same(small_runs.fit(override(config, {"resume": str(rescued)}), SPLITS), straight)
    assert checkpoints.step_of(rescued) == STEPS or saved(tmp_path / "out")[-1] == STEPS


@pytest.mark.parametrize(
    "file",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "config.json",
    ],
)
def test_a_file_that_cannot_be_written_ends_the_run_with_its_state_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: small_runs.Run, file: str
) -> None:
    """A folder in its place: whichever library writes the file fails, each in its own words."""

    class Refused(ExactTrainer):
        def write_files(self) -> None:
            if self.saver.staging.is_relative_to(tmp_path / "out") and self.state.global_step == 4:
                (self.saver.staging / "checkpoint-4" / file).mkdir(parents=True)
            super().write_files()

    config = config_of(tmp_path / "out")
    with pytest.raises(DiskError, match="a checkpoint could not be written") as caught:
        small_runs.fit(config, SPLITS, Refused)
    assert saved(tmp_path / "out") == [2] and "checkpoint-2 and older ones are as they were" in str(
        caught.value
    )
    rescued = rescued_from(caught.value)
    assert checkpoints.step_of(rescued) == 4
    assert_same(small_runs.fit(override(config, {"resume": str(rescued)}), SPLITS), straight)


def test_where_there_is_no_room_elsewhere_the_message_says_so_and_the_older_one_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: small_runs.Run
) -> None:
    config = config_of(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="no other place with room") as caught:
        patch.setattr("hftk.training.checkpoint_writer._place_with_room", lambda size: None)
        failing(patch, 4)
        small_runs.fit(config, SPLITS)
    assert saved(tmp_path / "out") == [2] and "MB needed" in str(caught.value)
    assert_same(small_runs.fit(override(config, {"resume": "auto"}), SPLITS), straight)


def test_where_the_other_place_refuses_too_nothing_is_left_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rescue_place: Path
) -> None:
    def refuse(*args: Any) -> None:
        raise FULL

    monkeypatch.setattr(checkpoints, "seal", refuse)
    with pytest.raises(DiskError, match=r"its state could not be saved in .* either"):
        small_runs.fit(config_of(tmp_path / "out"), SPLITS)
    assert not list(rescue_place.iterdir()) and saved(tmp_path / "out") == []


def test_what_is_no_matter_of_the_disk_is_no_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, TypeError("a defect"))
    with pytest.raises(TypeError, match="a defect"):
        small_runs.fit(config_of(tmp_path), SPLITS)


def test_stopping_on_request_waits_for_its_checkpoint_and_tells_if_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_runs.stopping_at(3), pytest.raises(StopRequested):
        small_runs.fit(config_of(tmp_path / "one"), SPLITS)
    assert saved(tmp_path / "one") == [2, 3]
    failing(monkeypatch, 3)
    with small_runs.stopping_at(3), pytest.raises(DiskError, match="the state after step 3 is in"):
        small_runs.fit(config_of(tmp_path / "two"), SPLITS)
