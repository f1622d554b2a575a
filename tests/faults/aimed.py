"""Kills that are aimed at what a run does, drawn by a seed, and what became of each."""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import killing
import small_recipes
from disk import read_tree, replay
from interposer import Operation, place, read_trace
from killing import Run, Server
from left_behind import differences, left_behind
from phases import PHASES

from hftk.training import checkpoints

CHECKPOINT = "checkpoint"
"""Between the first byte of a checkpoint and the rename that makes it count."""


@dataclass(frozen=True)
class Aim:
    """When to kill: a share of the usual time (of a checkpoint: of its file operations) after something has
    begun for the n-th time."""

    recipe: str
    processes: int
    at: str
    occurrence: int
    share: float
    again: float | None = None
    """After which share of the usual time of a whole run the second start is killed too, whatever it does;
    None: not at all."""


@dataclass
class Reference:
    """A run that nobody kills: what it leaves, and how long it takes over what."""

    command: list[str]
    files: dict[str, Any] = field(repr=False)
    shared: dict[str, int]
    operations: list[Operation] = field(repr=False)
    """Of the main process on the output folder."""

    def output(self) -> Path:
        """Its output folder, which is not there."""
        folder = Path(self.command[-1])
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def occurrences(self, at: str) -> int:
        """How often it happens in a run, after the first step."""
        if at == "training":
            return self.shared["steps done"]
        return self.shared["saves" if at == CHECKPOINT else f"times {at}"]

    def operations_before(self, aim: Aim) -> float:
        """How many operations are done when a checkpoint is to be cut short; 0 where it is not what is aimed
        at."""
        if aim.at != CHECKPOINT:
            return 0.0
        first, last = self.window(aim.occurrence)
        return first + aim.share * (last - first - 1)

    def window(self, occurrence: int) -> tuple[int, int]:
        """Numbers of the operations, from 1, that write the first byte of the n-th checkpoint and rename it
        into place."""
        numbered = list(enumerate(self.operations, 1))
        renamed = [
            n
            for n, done in numbered
            if done.kind == "rename" and done.second.startswith("checkpoints/checkpoint-")
        ]
        before = renamed[occurrence - 2] if occurrence > 1 else 0
        written = (
            n for n, done in numbered if n > before and done.kind == "write" and place(done.path) == "staged"
        )
        return next(written), renamed[occurrence - 1]

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.shared[f"nanoseconds {phase}"] for phase in PHASES) / 1e9

    def seconds(self, at: str) -> float:
        """The usual length of one occurrence."""
        name = "saving a checkpoint" if at == CHECKPOINT else at
        return self.shared[f"nanoseconds {name}"] / max(1, self.occurrences(at)) / 1e9


@dataclass(frozen=True)
class Outcome:
    """What was hit, and what was wrong after the second start ([]: nothing)."""

    aim: Aim
    hit: str
    step: int
    operations: int
    """File operations of the main process until then."""
    resumed_from: int | None
    """Step of the checkpoint."""
    wrong: list[str]


class Range:
    """Where runs are killed: a server, and the reference runs it has made."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.reference = functools.cache(self._reference)

    def _reference(self, recipe: str, processes: int) -> Reference:
        place = self.folder / f"{recipe}_{processes}"
        place.mkdir()
        command, modules, trace = (
            small_recipes.ALL[recipe].prepare(place),
            place / "modules.json",
            place / "trace",
        )
        command += ["--output", str(place / "out")]
        run = killing.finish(
            self.server, command, place / "out", processes=processes, modules=modules, trace=trace
        )
        self.server.ask(imports=json.loads(modules.read_text()))  # so that the next child need not
        operations = list(read_trace(trace))
        if processes == 1:
            assert read_tree(place / "out") == replay(operations), (
                "an operation on the output folder was missed"
            )
        files = left_behind(place / "out")
        shutil.rmtree(place / "out")
        return Reference(command, files, run.main.shared.all(), operations)

    def shoot(self, aim: Aim) -> Outcome | None:
        """Kill once as aimed, start again, compare; None where the run was over before."""
        reference = self.reference(aim.recipe, aim.processes)
        output = reference.output()
        run = killing.start(self.server, reference.command, output, processes=aim.processes)
        if not run.wait(functools.partial(_begun, run, aim, reference.operations_before(aim))):
            assert run.main.code == 0, run.printed()[-6000:]
            return None
        if aim.at != CHECKPOINT:
            time.sleep(aim.share * reference.seconds(aim.at))
        run.kill()
        if run.main.code == 0:
            return None
        whole, wrong = whole_checkpoints(output)
        if aim.again is not None:
            second = killing.start(self.server, reference.command, output, processes=aim.processes)
            time.sleep(aim.again * reference.total)
            second.kill()
            whole, more = whole_checkpoints(output)
            wrong += more
        again = killing.finish(self.server, reference.command, output, processes=aim.processes)
        wrong += differences(reference.files, left_behind(output))
        wrong += resumed_elsewhere(again.printed(), whole)
        shared = run.main.shared
        hit = CHECKPOINT if shared["saving"] else run.main.phase
        return Outcome(aim, hit, shared["step"], shared["operations"], whole, wrong)


def _begun(run: Run, aim: Aim, operations: float) -> bool:
    """Whether what is aimed at has begun, after the first step; where it is a checkpoint, whether so many
    operations are done."""
    shared = run.main.shared
    if not shared["steps done"]:
        return False
    if aim.at == CHECKPOINT:
        return shared["operations"] > operations
    return shared["steps done" if aim.at == "training" else f"times {aim.at}"] >= aim.occurrence


def whole_checkpoints(output: Path) -> tuple[int | None, list[str]]:
    """Step of the newest checkpoint that a killed run left; each that is not whole is wrong."""
    found = checkpoints.checkpoints(output)
    wrong = [f"{folder.name}: {problem}" for folder in found if (problem := checkpoints.damage(folder))]
    return (checkpoints.step_of(found[-1]) if found else None), wrong


def resumed_elsewhere(printed: str, step: int | None) -> list[str]:
    """Whether a run went on from the checkpoint of ``step``, as it says; what is wrong if not."""
    went_on = [line for line in printed.splitlines() if "continuing from" in line]
    if step is None:
        return [f"nothing was whole, but: {line}" for line in went_on]
    return (
        []
        if any(f"checkpoint-{step} " in line for line in went_on)
        else [f"checkpoint-{step} was whole and not used"]
    )


def draw(rng: random.Random, reference: Reference, recipe: str, processes: int, at: str) -> Aim:
    """An aim at one of the occurrences; every fourth time the second start is killed as well."""
    again = rng.random() if rng.random() < 0.25 else None
    return Aim(recipe, processes, at, rng.randint(1, reference.occurrences(at)), rng.random(), again)


def shoot_all(range_: Range, wanted: Iterable[tuple[str, int, str]], seed: int) -> Iterator[Outcome]:
    """One kill for each (recipe, processes, aim) that is wanted; where the run was over before, another is
    drawn."""
    for number, (recipe, processes, at) in enumerate(wanted):
        rng = random.Random(f"{seed} {number}")
        reference = range_.reference(recipe, processes)
        shots = (range_.shoot(draw(rng, reference, recipe, processes, at)) for _ in range(10))
        yield next(outcome for outcome in shots if outcome is not None)


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """How many kills hit what, in words of the recipes too."""
    hits: dict[str, int] = {}
    for outcome in outcomes:
        hits[outcome.hit] = hits.get(outcome.hit, 0) + 1
    runs: dict[str, int] = {}
    for outcome in outcomes:
        name = f"{outcome.aim.recipe} on {outcome.aim.processes}"
        runs[name] = runs.get(name, 0) + 1
    return {
        "kills": len(outcomes),
        "wrong": [asdict(outcome) for outcome in outcomes if outcome.wrong],
        "hits": hits,
        "runs": runs,
        "killed_twice": sum(outcome.aim.again is not None for outcome in outcomes),
        "resumed_from_a_checkpoint": sum(outcome.resumed_from is not None for outcome in outcomes),
    }


OTHERS = {
    "gpt2": ("training", "evaluation", "final generation", "training", "final save", "report"),
    "bert": ("training", "evaluation", "final evaluation", "training", "evaluation", "report"),
    "marian": ("generation", "final generation", "training", "generation", "evaluation", "final generation"),
    "t5": ("final generation", "generation", "training", "generation", "evaluation", "final save"),
}
"""What each recipe does besides checkpoints, in the order in which it is aimed at."""


def long_list() -> Iterator[tuple[str, int, str]]:
    """Ever more kills to want: two of five at a checkpoint, every fourth on two processes, the recipes in
    turn."""
    for turn in itertools.count():
        for recipe, others in OTHERS.items():
            at = (
                CHECKPOINT
                if turn % 5 in (0, 2)
                else others[(turn // 5 * 3 + (1, 3, 4).index(turn % 5)) % len(others)]
            )
            yield recipe, 2 if turn % 4 == 3 else 1, at
