"""Kills before each file operation of a save, and half-way through each write."""

from __future__ import annotations

import aimed
import killing
from interposer import Operation
from left_behind import differences, left_behind


def points_of(operations: list[Operation]) -> list[tuple[int, bool]]:
    """Where to kill: (number from 1, torn) for the operations of the last save of a run, which nothing after
    it can make good, and of the removal of what it replaces, up to the first of saving the trained model."""
    begun = [
        n
        for n, done in enumerate(operations, 1)
        if done.kind == "mkdir" and done.path.startswith("checkpoints/.partial/")
    ]
    ended = next(n for n, done in enumerate(operations, 1) if done.path.startswith(".saving.tmp"))
    numbers = range(begun[-1], ended + 1)
    return [
        (n, torn) for n in numbers for torn in (False, True) if not torn or operations[n - 1].kind == "write"
    ]


def kill_at(firing_range: aimed.Range, recipe: str, number: int, torn: bool) -> list[str]:
    """Kill there, go on, and say what is wrong."""
    reference = firing_range.reference(recipe, 1)
    output = reference.output()
    run = killing.start(firing_range.server, reference.command, output, kill_at=number, torn=torn)
    run.wait()
    assert run.main.code == -9 and run.main.shared["operations"] == number, run.printed()[-4000:]
    whole, wrong = aimed.whole_checkpoints(output)
    again = killing.finish(firing_range.server, reference.command, output)
    return (
        wrong
        + differences(reference.files, left_behind(output))
        + aimed.resumed_elsewhere(again.printed(), whole)
    )


def killed_at(firing_range: aimed.Range, recipe: str, points: list[tuple[int, bool]]) -> dict[str, list[str]]:
    """Kill at each of the points, one run after the other; what is wrong after which."""
    return {str(point): found for point in points if (found := kill_at(firing_range, recipe, *point))}
