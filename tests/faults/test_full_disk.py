"""A disk that is full, or read-only, at any stage of a run: a clear end, nothing whole lost, and the run goes
on afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))

import small_runs

import hftk
from hftk.evaluation import evaluate
from hftk.launch.output_folder import LOCK, PREDICTIONS, STATUS
from hftk.reports import record
from hftk.reports.record import RECORD
from hftk.training import checkpoints, fit
from hftk.training.trainer import ExactTrainer

pytestmark = [
    pytest.mark.usefixtures("tiny_runs"),
    pytest.mark.skipif(os.name == "nt", reason="no mount, no limit"),
]
SPLITS = small_runs.splits_of(small_runs.many_to_a_block(100), small_runs.many_to_a_block(20, seed=1))
FAR_MORE = 64 * 2**20


class Disk:
    """A small disk of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._mount("size=64m", "-t", "tmpfs", "tmpfs")

    def _mount(self, options: str, *what: str) -> None:
        subprocess.run(["mount", "-o", options, *what, str(self.folder)], check=True, capture_output=True)

    def remount(self, options: str) -> None:
        self._mount(f"remount,{options}")

    def fill(self, leave: int = 0) -> None:
        """Take up all but ``leave`` bytes of what is free."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - leave))

    def make_room(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    try:
        disk = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    yield disk
    disk.unmount()


def config_of(output: Path) -> Any:
    train = {"max_steps": 6, "save_steps": 2, "eval_steps": 3, "optimizer": "adamw", "learning_rate": 1e-3}
    return small_runs.make_config(output, dropout=0.1, train=train, generation={"max_new_tokens": 4})


def recipe(config: Any) -> None:
    task, model, tokenizer = small_runs.load(config, SPLITS)
    trained = hftk.fit(task, model, tokenizer, SPLITS, config)
    after = hftk.evaluate(task, trained.model, tokenizer, SPLITS.held_out, config.eval, output=config.output)
    hftk.write_report(hftk.record(config, SPLITS, trained, None, after), config.output)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    hftk.run(recipe, config_of(folder), [])
    return folder


def run(config: Any, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit code and status.json of a run of the recipe."""
    try:
        hftk.run(recipe, config, list(flags))
    except SystemExit as ending:
        return int(ending.code or 0), json.loads((Path(config.output) / STATUS).read_text())
    return 0, json.loads((Path(config.output) / STATUS).read_text())


def assert_finished_as(output: Path, straight: Path) -> None:
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (output, straight))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (output / PREDICTIONS).read_bytes() == (straight / PREDICTIONS).read_bytes()
    scores = [json.loads((folder / RECORD).read_text())["scores"] for folder in (output, straight)]
    assert scores[0] == scores[1]
    assert not any(checkpoints.damage(folder) for folder in checkpoints.checkpoints(output))


def whole_files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


def assert_ended_clearly(code: int, status: dict[str, Any], errors: str, reason: str) -> None:
    assert (code, status["exit_code"], status["state"]) == (1, 1, "failed")
    assert reason in status["message"] and "--resume" in status["message"]
    assert status["message"].splitlines()[0][:60] in errors


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_disk_that_gets_full_during_a_save_loses_nothing(
    disk: Disk, straight: Path, capsys: Any, share: float
) -> None:
    """The second checkpoint finds room for a share of itself: it fails among Trainer's files or among
    ours."""
    output = disk.folder / "run"
    one = checkpoints.checkpoints(straight)[-1]
    room = int(size_of(one) * share)

    class Filling(ExactTrainer):
        def write_files(self) -> None:
            if self.state.global_step == 4 and self.saver.staging.is_relative_to(output):
                disk.fill(leave=room)
            super().write_files()

    with mock.patch.object(fit, "ExactTrainer", Filling):
        code, status = run(config_of(output))
    assert_ended_clearly(code, status, capsys.readouterr().err, "a checkpoint could not be written")
    assert (
        "checkpoint-2 and older ones are as they were" in status["message"] and "MB free" in status["message"]
    )
    assert [c.name for c in checkpoints.checkpoints(output)] == ["checkpoint-2"]
    rescued = status["message"].split("--resume ")[-1]
    assert Path(rescued).is_dir() and not checkpoints.damage(Path(rescued))
    disk.make_room()
    shutil.copytree(output, other := disk.folder / "other")
    assert run(config_of(output), "--resume", rescued)[0] == 0
    assert_finished_as(output, straight)
    assert run(config_of(other), "--resume", "auto")[0] == 0
    assert_finished_as(other, straight)


STAGES = {
    "the trained model": (fit, "save_trained", 8192),
    "the predictions": (evaluate, "write_predictions", 0),
    "the record": (record, "record", 0),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_gets_full_after_the_training_loses_nothing(
    disk: Disk, straight: Path, capsys: Any, stage: str
) -> None:
    output = disk.folder / "run"
    module, name, leave = STAGES[stage]
    stage_itself = getattr(module, name)

    def filling(*args: Any, **kwargs: Any) -> Any:
        disk.fill(leave)
        return stage_itself(*args, **kwargs)

    place = hftk if name == "record" else module
    with mock.patch.object(place, name, filling):
        code, _ = run(config_of(output))
    said = capsys.readouterr().err
    assert code == 1 and "No space left on device" in said and "--resume auto" in said
    assert [checkpoints.step_of(c) for c in checkpoints.checkpoints(output)] == [4, 6]
    assert not any(checkpoints.damage(c) for c in checkpoints.checkpoints(output))
    disk.make_room()
    assert run(config_of(output), "--resume", "auto")[0] == 0
    assert_finished_as(output, straight)


def test_a_disk_that_becomes_read_only_loses_nothing(disk: Disk, straight: Path, capsys: Any) -> None:
    output = disk.folder / "run"

    class Locking(ExactTrainer):
        def write_files(self) -> None:
            if self.state.global_step == 4:
                disk.remount("ro")
            super().write_files()

    with mock.patch.object(fit, "ExactTrainer", Locking):
        code, status = run(config_of(output))
    said = capsys.readouterr().err
    assert code == 1 and status["state"] == "running", "it cannot be written"
    assert "Read-only file system" in said and "checkpoint-2 and older ones are as they were" in said
    before = whole_files(output / checkpoints.FOLDER)
    disk.remount("rw")
    (output / LOCK).unlink()  # its process would be gone
    assert whole_files(output / checkpoints.FOLDER) == before
    assert run(config_of(output), "--resume", "auto")[0] == 0
    assert_finished_as(output, straight)


def test_files_that_may_not_get_so_large_end_the_run_clearly(
    tmp_path: Path, straight: Path, capsys: Any, monkeypatch: Any
) -> None:
    """A limit such as ``ulimit -f`` (or a quota), which needs no root."""
    import resource

    monkeypatch.setattr("hftk.training.checkpoint_writer._place_with_room", lambda size: None)
    output = tmp_path / "run"
    most = (checkpoints.checkpoints(straight)[-1] / "optimizer.pt").stat().st_size - 1000
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limited(ExactTrainer):
        def write_files(self) -> None:
            if self.state.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, kept[1]))
            super().write_files()

    try:
        with mock.patch.object(fit, "ExactTrainer", Limited):
            code, status = run(config_of(output))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    said = capsys.readouterr().err
    assert (
        code == 1
        and "a checkpoint could not be written" in said
        and "no other place with room" in status["message"]
    )
    assert run(config_of(output), "--resume", "auto")[0] == 0
    assert_finished_as(output, straight)
