"""SIGKILL before each file operation of a save, and half-way through each write."""

import json
import random
import shutil
from pathlib import Path

import aimed
import interposer
import killing
import pytest
from left_behind import differences, left_behind
from power_cut import read_tree, replay


def traced(firing_range, recipe, folder):
    """The operations of a run that nobody kills, and the numbers, from 1, of those of its second save, the next thing included."""
    reference = firing_range.reference(recipe, 1)
    output = Path(reference.command[-1])
    shutil.rmtree(output, ignore_errors=True)
    killing.finish(firing_range.server, reference.command, output, trace=folder / "trace")
    operations = list(interposer.read_trace(folder / "trace"))
    assert read_tree(output) == replay(operations), "an operation was missed"
    begun = [number for number, done in enumerate(operations, 1) if done.kind == "mkdir" and done.path.startswith("checkpoints/.partial/")]
    return operations, range(begun[1], begun[2] + 1)


def kill_at(firing_range, recipe, number, torn):
    """Kill there, go on, and say what is wrong."""
    reference = firing_range.reference(recipe, 1)
    output = Path(reference.command[-1])
    shutil.rmtree(output, ignore_errors=True)
    run = killing.start(firing_range.server, reference.command, output, kill_at=number, torn=torn)
    run.wait()
    assert run.main.code == -9, run.printed()[-4000:]
    assert run.main.shared["operations"] == number
    whole, wrong = aimed.whole_checkpoints(output)
    again = killing.finish(firing_range.server, reference.command, output)
    return wrong + differences(reference.files, left_behind(output)) + aimed.resumed_elsewhere(again.printed(), whole)


def points_of(operations, numbers):
    """Where to kill: (number, torn)."""
    torn = [number for number in numbers if operations[number - 1].kind == "write"]
    return [*((number, False) for number in numbers), *((number, True) for number in torn)]


def test_a_save_killed_at_some_operations_is_made_good(firing_range, tmp_path):
    operations, numbers = traced(firing_range, "gpt2", tmp_path)
    points = points_of(operations, numbers)
    assert len(points) > 60
    drawn = random.Random(0).sample(points, 3)
    wrong = {str(point): found for point in drawn if (found := kill_at(firing_range, "gpt2", *point))}
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_a_save_killed_at_every_operation_is_made_good(firing_range, tmp_path):
    operations, numbers = traced(firing_range, "gpt2", tmp_path)
    points = points_of(operations, numbers)
    wrong = {str(point): found for point in points if (found := kill_at(firing_range, "gpt2", *point))}
    assert not wrong, json.dumps(wrong, indent=1)
