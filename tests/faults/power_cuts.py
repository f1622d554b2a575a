"""The disks that a power cut during a run may leave, and what a run that goes on from each would lose."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import killing
from aimed import Range
from disk import Disk, Tree, below, disks_after, write_tree
from interposer import Operation
from left_behind import differences, left_behind

from hftk.training import checkpoints

FINAL = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "predictions.jsonl",
    "record.json",
    "report.html",
    "config.yaml",
)


Save = tuple[int, int, Tree]
"""Number of operations done at the rename of a checkpoint, its step, and its files."""


def saves_of(operations: list[Operation]) -> Iterator[Save]:
    """The checkpoints of a run."""
    disk = Disk()
    for number, done in enumerate(operations, 1):
        disk.apply(done)
        if done.kind == "rename" and done.second.startswith("checkpoints/checkpoint-"):
            yield number, int(done.second.rpartition("-")[2]), below(disk.tree(), done.second)


def promised(operations: list[Operation], saves: list[Save]) -> Iterator[int | None]:
    """For each number of operations done, the step of the checkpoint that must not be lost any more: when the
    next save begins, or the last one, of the trained model, the one before is over."""
    step = None
    for number, done in enumerate([None, *operations]):
        if (
            done is not None
            and done.kind in ("mkdir", "create")
            and done.path.startswith((".saving.tmp", "checkpoints/.partial"))
        ):
            step = max((s for n, s, _ in saves if n <= number), default=None)
        yield step


def what_is_wrong(tree: Tree, promise: int | None, saves: list[Save], final: Tree, folder: Path) -> list[str]:
    """What the run that goes on from this disk would lose or take for whole, in words."""
    shutil.rmtree(folder, ignore_errors=True)
    write_tree({path: held for path, held in tree.items() if f"{path}/".startswith("checkpoints/")}, folder)
    wrong = [
        f"{found.name}: {problem}"
        for found in checkpoints.checkpoints(folder)
        if (problem := checkpoints.damage(found))
    ]
    chosen, _ = checkpoints.newest_whole(folder)
    step = checkpoints.step_of(chosen) if chosen else None
    if (step or 0) < (promise or 0):
        wrong.append(f"goes on from {step} though {promise} counted")
    if step is not None and below(tree, f"checkpoints/checkpoint-{step}") != next(
        files for _, s, files in saves if s == step
    ):
        wrong.append(f"checkpoint-{step} is taken for whole")
    if b'"state": "done"' in (tree.get("status.json") or b""):
        wrong += [
            f"done, but {name} is not there as it was written"
            for name in FINAL
            if tree.get(name) != final[name]
        ]
    return wrong


def disks(
    operations: list[Operation], first: int, last: int | None, rng: random.Random
) -> Iterator[tuple[int, str, Tree]]:
    """(operations done, what was lost, tree) of each disk that a power cut between two operations may
    leave."""
    disk = Disk()
    for number, done in enumerate([None, *operations[:last]]):
        if done is not None:
            disk.apply(done)
        if number >= first:
            yield from ((number, lost, tree) for lost, tree in disks_after(disk, rng))


def that_counts(tree: Tree) -> int:
    """The part of a disk on which :func:`what_is_wrong` depends."""
    names = ("checkpoints/checkpoint-", "status.json", *FINAL)
    return hash(tuple((path, held) for path, held in tree.items() if path.startswith(names)))


def cut_everywhere(
    operations: list[Operation], folder: Path, first: int = 0, last: int | None = None
) -> tuple[int, dict[str, list[str]]]:
    """Number of disks, and what is wrong with which of them."""
    saves = list(saves_of(operations))
    promises = list(promised(operations, saves))
    whole = Disk()
    for done in operations:
        whole.apply(done)
    final, wrong, count, seen = whole.tree(), {}, 0, {}
    for number, lost, tree in disks(operations, first, last, random.Random(0)):
        count += 1
        key = promises[number], that_counts(tree)
        if key not in seen:
            seen[key] = what_is_wrong(tree, promises[number], saves, final, folder / "disk")
        if found := seen[key]:
            wrong[
                f"after {number} operations ({operations[number - 1].kind} {operations[number - 1].path}),"
                f" without {lost}"
            ] = found
    return count, wrong


def go_on_from(firing_range: Range, tree: Tree) -> list[str]:
    """Start the run anew on this disk; what is different in the end."""
    reference = firing_range.reference("gpt2", 1)
    output = reference.output()
    write_tree(tree, output)
    if (
        output / "run.lock"
    ).exists():  # a machine takes longer to start again than a lock takes to be written
        os.utime(output / "run.lock", (0, 0))
    killing.finish(firing_range.server, reference.command, output)
    return differences(reference.files, left_behind(output))


def drawn_disks(operations: list[Operation], count: int) -> list[tuple[int, str, Tree]]:
    """Disks of power cuts after the first step."""
    after = next(
        n
        for n, done in enumerate(operations)
        if done.kind == "mkdir" and done.path.startswith("checkpoints/.partial/")
    )
    found = list(disks(operations, after, None, random.Random(0)))
    return random.Random(1).sample(found, min(count, len(found)))
