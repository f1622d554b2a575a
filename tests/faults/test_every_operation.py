"""SIGKILL before each file operation of a save, and half-way through each write."""

import json
import random

import aimed
import killing
import pytest
from left_behind import differences, left_behind


def points_of(operations):
    """Where to kill: (number from 1, torn) for the operations of the second save up to the first of the third, old ones removed included."""
    begun = [n for n, done in enumerate(operations, 1) if done.kind == "mkdir" and done.path.startswith("checkpoints/.partial/")]
    numbers = range(begun[1], begun[2] + 1)
    return [(n, torn) for n in numbers for torn in (False, True) if not torn or operations[n - 1].kind == "write"]


def kill_at(firing_range, recipe, number, torn):
    """Kill there, go on, and say what is wrong."""
    reference = firing_range.reference(recipe, 1)
    output = reference.output()
    run = killing.start(firing_range.server, reference.command, output, kill_at=number, torn=torn)
    run.wait()
    assert run.main.code == -9 and run.main.shared["operations"] == number, run.printed()[-4000:]
    whole, wrong = aimed.whole_checkpoints(output)
    again = killing.finish(firing_range.server, reference.command, output)
    return wrong + differences(reference.files, left_behind(output)) + aimed.resumed_elsewhere(again.printed(), whole)


def killed_at(firing_range, recipe, points):
    return {str(point): found for point in points if (found := kill_at(firing_range, recipe, *point))}


def test_a_save_killed_at_some_operations_is_made_good(firing_range):
    points = points_of(firing_range.reference("gpt2", 1).operations)
    assert len(points) > 60
    wrong = killed_at(firing_range, "gpt2", random.Random(0).sample(points, 2))
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_a_save_killed_at_every_operation_is_made_good(firing_range):
    wrong = killed_at(firing_range, "gpt2", points_of(firing_range.reference("gpt2", 1).operations))
    assert not wrong, json.dumps(wrong, indent=1)
