"""A power cut loses what was not synced: a checkpoint that counted is still there, and none is there that is
not whole."""

import json
import random

import pytest
from disk import Disk, disks_after
from interposer import Operation
from power_cuts import cut_everywhere, drawn_disks, go_on_from


def second_save(operations):
    """The operations, as numbers, from the beginning of the second save to the beginning of the third."""
    begun = [
        n
        for n, done in enumerate(operations)
        if done.kind == "mkdir" and done.path.startswith("checkpoints/.partial/")
    ]
    return begun[1], begun[2] + 1


def without_sync(operations, paths):
    """The same run, if it did not sync what ``paths`` says."""
    return [done for done in operations if done.kind != "sync" or not paths(done.path)]


# --- The model of a disk


def trees(*operations):
    disk = Disk()
    for done in operations:
        disk.apply(done)
    return [tree for _, tree in disks_after(disk, random.Random(0), draws=20)]


def test_a_file_that_was_not_synced_may_be_empty_behind_its_new_name():
    begun = [Operation("create", "a.tmp"), Operation("write", "a.tmp", data=b"12")]
    renamed = [Operation("rename", "a.tmp", "a"), Operation("sync", "")]
    assert {"a": b""} in trees(*begun, *renamed) and {"a": b"\0\0"} in trees(*begun, *renamed)
    synced = [Operation("sync", "a.tmp")]
    assert all(tree == {"a": b"12"} for tree in trees(*begun, *synced, *renamed))
    assert {} in trees(*begun, *synced, renamed[0]) and {"a": b"12"} in trees(*begun, *synced, renamed[0])


def test_names_may_come_in_any_order_until_their_folder_is_synced():
    old = [Operation("create", "old"), Operation("sync", "old"), Operation("sync", "")]
    new = [
        Operation("create", "new"),
        Operation("write", "new", data=b"1"),
        Operation("sync", "new"),
        Operation("unlink", "old"),
    ]
    assert {} in trees(*old, *new), "the old one is gone and the new one is not there yet"
    safe = [*new[:3], Operation("sync", ""), new[3]]
    assert {frozenset(tree.items()) for tree in trees(*old, *safe)} == {
        frozenset({("old", b""), ("new", b"1")}),
        frozenset({("new", b"1")}),
    }


def test_what_is_in_a_folder_whose_own_name_was_not_synced_may_be_gone():
    made = [
        Operation("mkdir", "a"),
        Operation("create", "a/b"),
        Operation("sync", "a/b"),
        Operation("sync", "a"),
    ]
    assert {} in trees(*made)
    assert {} not in trees(*made, Operation("sync", ""))


# --- A run


@pytest.fixture(scope="module")
def operations(firing_range):
    return firing_range.reference("gpt2", 1).operations


def test_no_power_cut_during_a_save_loses_a_checkpoint_that_counted(operations, tmp_path):
    count, wrong = cut_everywhere(operations, tmp_path, *second_save(operations))
    assert not wrong, json.dumps(wrong, indent=1)
    assert count > 200


def test_no_power_cut_at_the_end_leaves_a_run_that_is_done_without_its_files(operations, tmp_path):
    _, wrong = cut_everywhere(operations, tmp_path, len(operations) - 12)
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize(
    "forgotten",
    {
        "the weights": lambda path: path.endswith("/model.safetensors"),
        "the manifest": lambda path: path.endswith("/manifest.json"),
        "the names of its files": lambda path: (
            path.startswith("checkpoints/.partial/") and path.count("/") == 2
        ),
        "its name": lambda path: path == "checkpoints",
        "the folder of checkpoints": lambda path: path == "",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_save_that_did_not_sync_something_would_be_found_out(operations, forgotten, tmp_path):
    shortened = without_sync(operations, forgotten[1])
    assert len(shortened) < len(operations)
    _, wrong = cut_everywhere(shortened, tmp_path, *second_save(shortened))
    assert wrong


@pytest.mark.slow
def test_no_power_cut_during_a_whole_run_loses_anything_that_counted(operations, tmp_path):
    count, wrong = cut_everywhere(operations, tmp_path)
    assert not wrong, json.dumps(wrong, indent=1)
    assert count > 1000


def test_after_a_power_cut_the_same_command_ends_in_the_same_files(firing_range, operations):
    wrong = {
        f"{n} {lost}": bad
        for n, lost, tree in drawn_disks(operations, 2)
        if (bad := go_on_from(firing_range, tree))
    }
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.slow
def test_after_many_power_cuts_the_same_command_ends_in_the_same_files(firing_range, operations):
    wrong = {
        f"{n} {lost}": bad
        for n, lost, tree in drawn_disks(operations, 40)
        if (bad := go_on_from(firing_range, tree))
    }
    assert not wrong, json.dumps(wrong, indent=1)
