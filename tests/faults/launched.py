"""The same kills where a run is started as people start it: ``accelerate launch``, in a process group of its
own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from aimed import CHECKPOINT, Aim, Outcome, Range, Reference, resumed_elsewhere, whole_checkpoints
from killing import ENVIRONMENT, ROOT
from left_behind import differences, left_behind

LONGEST = 600.0
"""Seconds; most of them go into imports."""
WANTED = (
    ("gpt2", 1, CHECKPOINT),
    ("gpt2", 2, CHECKPOINT),
    ("bert", 1, "training"),
    ("bert", 2, CHECKPOINT),
    ("marian", 1, "final generation"),
    ("t5", 2, "training"),
)


def shoot_launched(range_: Range, seed: int) -> Iterator[Outcome]:
    """One kill for each that is wanted, as :func:`aimed.shoot_all`; what is being done is read off the output
    folder."""
    for number, (recipe, processes, at) in enumerate(WANTED):
        rng = random.Random(f"{seed} launched {number}")
        aim = Aim(recipe, processes, at, rng.randint(1, 2), rng.random())
        shots = (_shoot(range_.reference(recipe, processes), aim) for _ in range(5))
        yield next(outcome for outcome in shots if outcome is not None)


def _shoot(reference: Reference, aim: Aim) -> Outcome | None:
    output = reference.output()
    run = _start(reference.command, aim.processes)
    begun = _begun(output, aim)
    deadline = time.monotonic() + LONGEST
    while not begun() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(aim.share * max(0.01, reference.seconds(aim.at)))
    if run.poll() is not None:
        assert run.returncode == 0, _printed(run)
        return None
    _kill(run)
    hit = CHECKPOINT if _staged(output) else aim.at
    whole, wrong = whole_checkpoints(output)
    again = _start(reference.command, aim.processes)
    assert again.wait(LONGEST) == 0, _printed(again)
    wrong += differences(reference.files, left_behind(output)) + resumed_elsewhere(_printed(again), whole)
    return Outcome(aim, hit, whole or 0, 0, whole, wrong)


def _start(command: list[str], processes: int) -> subprocess.Popen[bytes]:
    settings = (
        ROOT / "recipes" / "accelerate" / f"{'two_processes' if processes == 2 else 'one_process_cpu'}.yaml"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(settings), *command]
    folder = Path(command[-1]).parent
    elsewhere = (
        folder / "elsewhere"
    )  # a record says where the data are, seen from here, and what git knows of it
    elsewhere.mkdir(exist_ok=True)
    with open(folder / "launched.log", "wb") as log:
        return subprocess.Popen(
            launch,
            env={**os.environ, **ENVIRONMENT},
            cwd=elsewhere,
            start_new_session=True,
            stdout=log,
            stderr=log,
        )


def _printed(run: subprocess.Popen[bytes]) -> str:
    return (Path(str(run.args[-1])).parent / "launched.log").read_text(encoding="utf-8", errors="replace")  # type: ignore[index]


def _kill(run: subprocess.Popen[bytes]) -> None:
    """The launcher's group, and the groups that torch's launcher makes of its children."""
    children = psutil.Process(run.pid).children(recursive=True)
    for pid in [*(child.pid for child in children), run.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(pid), signal.SIGKILL)
    psutil.wait_procs(children, 30)
    run.wait()


def _staged(output: Path) -> list[Path]:
    return [
        path
        for path in output.glob("checkpoints/.*/checkpoint-*/*")
        if path.is_file() and path.stat().st_size
    ]


def _begun(output: Path, aim: Aim) -> Callable[[], bool]:
    """Whether what is aimed at has begun: the n-th checkpoint has its first byte, or the n-th is there and
    training goes on."""
    if aim.at == CHECKPOINT:
        folder = f"checkpoint-{2 * aim.occurrence}"
        return lambda: (
            any(path.parent.name == folder for path in _staged(output))
            or (output / "checkpoints" / folder).exists()
        )
    if aim.at == "training":
        return lambda: (output / "checkpoints" / f"checkpoint-{2 * aim.occurrence}").exists()
    return lambda: (output / ".generated.jsonl0").exists()
