"""SIGKILL before each file operation of a save, and half-way through each write."""

import json
import random

import pytest
from save_points import killed_at, points_of


def test_a_save_killed_at_some_operations_is_made_good(firing_range):
    """One before its checkpoint has its name, one while the checkpoint before it is removed."""
    operations = firing_range.reference("gpt2", 1).operations
    points = points_of(operations)
    renamed = max(
        n for n, done in enumerate(operations, 1) if done.second.startswith("checkpoints/checkpoint-")
    )
    rng = random.Random(0)
    drawn = [
        rng.choice([p for p in points if p[0] <= renamed]),
        rng.choice([p for p in points if p[0] > renamed + 3]),
    ]
    assert len(points) > 60
    wrong = killed_at(firing_range, "gpt2", drawn)
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_a_save_killed_at_every_operation_is_made_good(firing_range):
    wrong = killed_at(firing_range, "gpt2", points_of(firing_range.reference("gpt2", 1).operations))
    assert not wrong, json.dumps(wrong, indent=1)
