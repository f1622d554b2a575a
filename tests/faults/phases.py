"""What a run is doing, written where the process that watches it can read it, also after the run was
killed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interposer import Shared

PHASES = (
    "start",
    "training",
    "evaluation",
    "generation",
    "saving",
    "end",
    "final save",
    "final evaluation",
    "final generation",
    "report",
)
NAMES = (
    "phase",
    "step",
    "steps done",
    *(f"{what} {phase}" for phase in PHASES for what in ("times", "nanoseconds")),
)
"""What follows the C file's numbers: the phase's number, the optimizer steps done, in this process and in
all; then, for each phase, how often it was begun and the time spent in it (without the phases inside of
it)."""


class Clock:
    """Books the time on the phase that is innermost."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.stack = ["start"]
        self.since = time.monotonic_ns()

    def _turn(self, phase: str) -> None:
        now = time.monotonic_ns()
        self.shared[f"nanoseconds {self.stack[-1]}"] += now - self.since
        self.since = now
        self.shared["phase"] = PHASES.index(phase)

    def enter(self, phase: str) -> None:
        self._turn(phase)
        self.stack.append(phase)
        self.shared[f"times {phase}"] += 1

    def leave(self) -> None:
        self._turn(self.stack[-2])
        self.stack.pop()


def show_phases(path: Path) -> None:
    """From here on this process says what it is doing, in the shared memory at ``path``."""
    from hftk import reports
    from hftk.evaluation import evaluate
    from hftk.generation import generate
    from hftk.reports import record
    from hftk.training import fit, trainer

    shared = Shared(path, NAMES)
    clock = Clock(shared)

    def around(owner: Any, name: str, phase: str | Callable[[], str]) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            clock.enter(phase if isinstance(phase, str) else phase())
            try:
                return inner(*args, **kwargs)
            finally:
                clock.leave()

        setattr(owner, name, outer)

    def of_generation() -> str:
        return "generation" if "training" in clock.stack else _after("final generation")

    def _after(phase: str) -> str:
        return phase if shared["times training"] else "start"

    trained = trainer.ExactTrainer
    around(trained, "train", "training")
    around(trained, "evaluate", "evaluation")
    around(trained, "_save_checkpoint", "saving")
    around(generate, "decode", of_generation)
    around(fit, "save_trained", "final save")
    around(reports, "write_report", "report")
    around(record, "record", "report")
    around(evaluate, "evaluate", lambda: _after("final evaluation"))
    _count_steps(trainer.ScheduleCallback, shared)


def _count_steps(conductor: Any, shared: Shared) -> None:
    inner = conductor.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        shared["step"] = state.global_step
        shared["steps done"] += 1
        inner(self, args, state, control, **kwargs)

    conductor.on_step_end = on_step_end
