"""Started by ``accelerate launch`` with two processes: does what the tests look at, and leaves it in
``FOLDER/found.pt``."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import small_classifiers
import small_runs

import hftk
from hftk.config import DiskError, override
from hftk.launch import StopRequested, launched
from hftk.training import checkpoints
from hftk.training.trainer import ExactTrainer, TrainingDiverged


def gathered(value: Any) -> list[Any]:
    """What both processes have."""
    values: list[Any] = [None, None]
    torch.distributed.all_gather_object(values, value)
    return values


def main(folder: Path) -> dict[str, Any]:
    gc.freeze()  # see tests/conftest.py
    found: dict[str, Any] = {"processes": launched().processes, "runs": {}, "apart": {}}
    for case in small_runs.CASES:
        for size in (8, 2):
            run = small_runs.run_case(case, size, folder / f"{case} {size}")
            run.trained = None
            found["runs"][case, size] = run
            found["apart"][case, size] = small_runs.difference(*gathered(run.weights))
    found["evaluation"] = gathered(evaluate())
    found["stopped"] = stop_one(folder / "stopped")
    found["classifiers"] = classifiers(folder)
    found["diverged"] = gathered(diverge_on_one(folder / "diverged"))
    found["skipped"] = skip_on_one(folder / "skipped")
    found["full disk"] = {
        stage: full_disk(folder / f"full disk, {stage}", stage) for stage in ("sealing", "writing")
    }
    return found


def evaluate() -> dict[str, Any]:
    config = small_runs.make_config("unused")
    splits = small_runs.splits_of(small_runs.many_to_a_block(50), small_runs.many_to_a_block(31, seed=1))
    task, model, tokenizer = small_runs.load(config, splits)
    seen = hftk.evaluate(task, model, tokenizer, splits.held_out, override(config.eval, {"batch_size": 3}))
    assert seen is not None
    return {"scores": {s.name: s.value for s in seen.scores}, "outputs": seen.outputs}


def classifiers(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": {}, "apart": {}, "judged": {}}
    for case in small_classifiers.CASES:
        run = small_classifiers.run_case(case, 4, folder / f"classifier, {case}")
        run.trained = None
        found["runs"][case] = run
        found["apart"][case] = small_runs.difference(*gathered(run.weights))
    for kind in small_classifiers.KINDS:
        for count, size in (
            (31, 3),
            (31, 8),
            (1, 8),
        ):  # of one row, the second process has nothing but a copy
            rows = small_classifiers.rows_of(kind, count, seed=1)
            judged = small_classifiers.judge("bert", kind, rows, size)
            found["judged"][kind, count, size] = gathered(small_classifiers.seen(judged))
    found["whole"] = gathered(
        small_classifiers.whole_run(folder / "whole classifier", per_device_batch_size=4)
    )
    return found


def stop_one(folder: Path) -> dict[str, Any]:
    """SIGTERM for one process alone in the middle of step 2; then the run goes on to its end."""
    splits = small_runs.splits_of(small_runs.CASES["gpt2, padded"][1])
    config = small_runs.make_config(folder, train={"per_device_batch_size": 8, "log_steps": 2})
    last: list[Any] = []

    def terminate(trainer: ExactTrainer) -> None:
        last.append(trainer)
        if trainer.args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    message = ""
    with small_runs.stopping_at(2, terminate):
        try:
            small_runs.fit(config, splits)
        except StopRequested as request:
            message = str(request)
    found = {"steps": gathered(last[0].state.global_step), "messages": gathered(message)}
    run = small_runs.fit(override(config, {"resume": "auto"}), splits)
    straight = small_runs.fit(override(config, {"output": f"{folder} straight"}), splits)
    found["difference"] = small_runs.difference(straight.weights, run.weights)
    found["histories"] = [small_runs.timeless(r.history) for r in (straight, run)]
    return found


def diverge_on_one(folder: Path) -> str:
    """The loss of one process alone is no number in step 4."""

    class Diverging(ExactTrainer):
        def _loss(self, model: Any, batch: Any, totals: Any) -> torch.Tensor:
            loss = super()._loss(model, batch, totals)
            return loss * (
                float("nan") if self.state.global_step == 3 and self.args.process_index == 1 else 1.0
            )

    config = small_runs.make_config(folder, train={"log_steps": 5})
    try:
        small_runs.fit(config, small_runs.splits_of(small_runs.CASES["gpt2, padded"][1]), Diverging)
    except TrainingDiverged as error:
        return str(error)
    return "it did not"


def skip_on_one(folder: Path) -> dict[str, Any]:
    """The loss of one process alone is no number in step 4, which is skipped."""

    class Poisoned(ExactTrainer):
        def _loss(self, model: Any, batch: Any, totals: Any) -> torch.Tensor:
            loss = super()._loss(model, batch, totals)
            return loss * (
                float("nan") if self.state.global_step == 3 and self.args.process_index == 1 else 1.0
            )

    config = small_runs.make_config(folder, train={"on_non_finite": "skip"})
    run = small_runs.fit(config, small_runs.splits_of(small_runs.CASES["gpt2, padded"][1]), Poisoned)
    return {
        "skipped": gathered(run.trained.data_facts["skipped_steps"]),
        "apart": small_runs.difference(*gathered(run.weights)),
        "logged": [point["step"] for point in run.history],
    }


def full_disk(folder: Path, stage: str) -> dict[str, Any]:
    """The main process cannot write the checkpoint of step 2; the run goes on from where it was saved
    instead."""

    class Refused(ExactTrainer):
        def write_files(self) -> None:
            if (
                stage == "writing"
                and self.args.process_index == 0
                and self.saver.staging.is_relative_to(folder)
            ):
                raise OSError(28, "No space left on device")
            super().write_files()

    def refuse(staged: Path, final: Path, facts: dict[str, Any]) -> None:
        if stage == "sealing" and final.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        seal(staged, final, facts)

    splits = small_runs.splits_of(small_runs.CASES["gpt2, padded"][1])
    config = small_runs.make_config(folder, train={"per_device_batch_size": 8, "save_steps": 2}, dropout=0.1)
    message, seal = "", checkpoints.seal
    checkpoints.seal = refuse
    try:
        small_runs.fit(config, splits, Refused)
    except DiskError as error:
        message = str(error)
    finally:
        checkpoints.seal = seal
    rescued = Path(message.split("--resume ")[-1])
    run = small_runs.fit(override(config, {"resume": str(rescued)}), splits)
    straight = small_runs.fit(override(config, {"output": f"{folder} straight"}), splits)
    found = {
        "messages": gathered(message),
        "left": [c.name for c in checkpoints.checkpoints(folder)],
        "step": checkpoints.step_of(rescued),
        "files": sorted(path.name for path in rescued.iterdir()),
        "same": small_runs.same_bits(run.weights, straight.weights),
    }
    torch.distributed.barrier()
    if launched().is_main:
        shutil.rmtree(rescued.parent)
    return found


if __name__ == "__main__":
    found = main(Path(sys.argv[1]))
    if launched().is_main:
        torch.save(found, Path(sys.argv[1]) / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
