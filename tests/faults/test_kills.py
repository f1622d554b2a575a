"""Invariant 4 under SIGKILL: whatever a run was doing, the same command goes on to the very files of a run
left alone."""

import itertools

import aimed
import pytest
from aimed import CHECKPOINT

SHORT = (
    ("gpt2", 1, CHECKPOINT),
    ("bert", 1, CHECKPOINT),
    ("marian", 1, CHECKPOINT),
    ("gpt2", 2, CHECKPOINT),
    ("gpt2", 1, "training"),
    ("bert", 1, "evaluation"),
    ("marian", 1, "generation"),
    ("marian", 1, "final generation"),
)


def test_a_run_killed_at_anything_ends_in_the_files_of_a_run_left_alone(firing_range):
    outcomes = list(aimed.shoot_all(firing_range, SHORT, seed=0))
    found = aimed.summary(outcomes)
    assert not found["wrong"], found["wrong"]
    assert found["kills"] == len(SHORT) and found["resumed_from_a_checkpoint"] >= 1
    assert sum(found["hits"].get(what, 0) for what in (CHECKPOINT, "saving")) >= 2, found["hits"]


@pytest.mark.slow
def test_a_hundred_kills(firing_range):
    outcomes = list(aimed.shoot_all(firing_range, itertools.islice(aimed.long_list(), 100), seed=0))
    found = aimed.summary(outcomes)
    assert not found["wrong"], found["wrong"]
    assert found["kills"] == 100 and found["hits"][CHECKPOINT] >= 30, found["hits"]
    assert {"training", "evaluation", "generation"} <= found["hits"].keys(), found["hits"]


@pytest.mark.slow
@pytest.mark.launch
def test_kills_of_a_whole_process_group_through_accelerate_launch(firing_range):
    import launched

    found = aimed.summary(list(launched.shoot_launched(firing_range, seed=0)))
    assert not found["wrong"], found["wrong"]
    assert found["kills"] == len(launched.WANTED) >= 5 and found["hits"][CHECKPOINT] >= 1
