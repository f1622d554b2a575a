"""The disks that a power cut may leave, made from a trace of file operations.

SIGKILL loses nothing that was written: the system still has it. A power cut may lose all that was not synced,
and keep later things while earlier ones are lost. What is taken for granted here is what POSIX and Linux's
file systems promise (Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI): the bytes of a file
are on the disk once the file was synced; a name is there, gone or changed once its folder was synced; a
rename happens as a whole or not at all. Before that each of them may or may not have happened, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from interposer import Operation

Tree = dict[str, "bytes | None"]
"""Path to content; None is a folder."""


@dataclass(eq=False)
class Node:
    """A file, or a folder."""

    folder: bool
    names: dict[str, Node] = field(default_factory=dict)
    """What a folder holds now, as the running system sees it."""
    writes: list[Change] = field(default_factory=list)
    """What was done to the bytes of a file."""
    known: dict[Any, bytes] = field(default_factory=dict)
    """Its bytes, by what became of the writes."""


@dataclass(eq=False)
class Change:
    """What may or may not have reached the disk by itself: bytes of a file, or names."""

    data: Operation | None = None
    names: tuple[tuple[Node, str, Node | None], ...] = ()
    """(folder, name, what it stands for now), of one operation."""


Fates = dict[Change, str]
"""What became of changes: lost; zeros, where only the size of a file changed; half, where half of the bytes
were written."""


class Disk:
    """What a sequence of operations on one folder, empty at first, does to a disk."""

    def __init__(self) -> None:
        self.root = Node(folder=True)
        self.names: list[Change] = []
        self.open: dict[Change, Node | None] = {}
        """What is not durable, and the file whose bytes it is."""

    def apply(self, done: Operation) -> None:
        """The next operation. Files that were removed while open are not followed."""
        if done.kind == "sync":
            self._sync(self._find(done.path))
        elif done.kind in ("write", "truncate"):
            node = self._find(done.path)
            node.writes.append(Change(data=done))
            self.open[node.writes[-1]] = node
        elif done.kind in ("create", "mkdir"):
            self._name((done.path, Node(folder=done.kind == "mkdir")))
        elif done.kind in ("unlink", "rmdir"):
            self._name((done.path, None))
        elif done.kind in ("rename", "link"):
            found = self._find(done.path)
            self._name(*([(done.path, None)] if done.kind == "rename" else []), (done.second, found))
        else:
            raise NotImplementedError(done.kind)

    def _find(self, path: str) -> Node:
        node = self.root
        for name in PurePosixPath(path).parts:
            node = node.names[name]
        return node

    def _name(self, *names: tuple[str, Node | None]) -> None:
        changed = []
        for path, node in names:
            folder, name = self._find(str(PurePosixPath(path).parent)), PurePosixPath(path).name
            changed.append((folder, name, node))
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node
        self.names.append(Change(names=tuple(changed)))
        self.open[self.names[-1]] = None

    def _sync(self, node: Node) -> None:
        # A rename is one entry of the journal: with either folder it is on the disk.
        done = [
            change
            for change, file in self.open.items()
            if file is node or any(folder is node for folder, _, _ in change.names)
        ]
        for change in done:
            del self.open[change]

    def open_ends(self) -> list[list[Change]]:
        """What is not durable: the writes to one file together, each change of names by itself."""
        of_file: dict[Any, list[Change]] = {}
        for change, file in self.open.items():
            of_file.setdefault(change if file is None else file, []).append(change)
        return list(of_file.values())

    def tree(self, fates: Fates | None = None) -> Tree:
        """What is on the disk, given what became of some changes."""
        fates = fates or {}
        names: dict[Node, dict[str, Node]] = {}
        for change in self.names:
            if change in fates:
                continue
            for folder, name, node in change.names:
                held = names.setdefault(folder, {})
                if node is None:
                    held.pop(name, None)
                else:
                    held[name] = node
        return dict(_walk("", self.root, names, fates))


def _walk(
    path: str, node: Node, names: dict[Node, dict[str, Node]], fates: Fates
) -> Iterator[tuple[str, bytes | None]]:
    for name, held in sorted(names.get(node, {}).items()):
        place = f"{path}/{name}" if path else name
        yield place, None if held.folder else _bytes(held, fates)
        if held.folder:
            yield from _walk(place, held, names, fates)


def _bytes(file: Node, fates: Fates) -> bytes:
    key = tuple(fates.get(change) for change in file.writes)
    if key not in file.known:
        content = bytearray()
        for change, fate in zip(file.writes, key, strict=True):
            assert change.data
            if fate != "lost":
                _write(content, change.data, fate)
        file.known[key] = bytes(content)
    return file.known[key]


def _write(content: bytearray, done: Operation, fate: str | None) -> None:
    if done.kind == "truncate":
        content[:] = content[: done.offset].ljust(done.offset, b"\0")
        return
    data = {None: done.data, "zeros": bytes(len(done.data)), "half": done.data[: len(done.data) // 2]}[fate]
    if len(content) < done.offset:
        content.extend(bytes(done.offset - len(content)))
    content[done.offset : done.offset + len(data)] = data


def disks_after(disk: Disk, rng: random.Random, draws: int = 3) -> Iterator[tuple[str, Tree]]:
    """What may be on the disk if the power is cut now, each with a word on what was lost."""
    ends = disk.open_ends()
    every = [change for end in ends for change in end]
    data = [change for change in every if change.data]

    def without(changes: Iterable[Change], fate: str = "lost") -> Tree:
        return disk.tree(dict.fromkeys(changes, fate))

    yield "nothing", without([])
    yield "all that was not synced", without(every)
    yield "all bytes that were not synced", without(data)
    yield "all bytes that were not synced, the sizes kept", without(data, "zeros")
    yield "all names that were not synced", without(change for change in every if not change.data)
    for number, end in enumerate(ends):
        what = (
            end[0].data.path if end[0].data else " and ".join(name for _, name, _ in end[0].names)
        ) or "the folder"
        yield f"{what} (change {number})", without(end)
        yield (
            f"all but {what} (change {number})",
            without(change for other in ends if other is not end for change in other),
        )
        if end[0].data:
            yield f"half of the last write of {what}", without(end[-1:], "half")
            yield f"the last write of {what}", without(end[-1:])
    for _ in range(draws if len(every) > 1 else 0):
        fates = {
            change: rng.choice(("lost", "zeros", "half")[: 3 if change.data else 1])
            for change in every
            if rng.random() < 0.6
        }
        yield "a random part", disk.tree(fates)


def read_tree(folder: Path) -> Tree:
    """What is in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def write_tree(tree: Tree, folder: Path) -> None:
    """Make ``folder``, which must not exist, hold ``tree``."""
    folder.mkdir(parents=True)
    for path, content in tree.items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def below(tree: Tree, folder: str) -> Tree:
    """The part of ``tree`` in ``folder``, by paths from there."""
    return {
        path.removeprefix(f"{folder}/"): content
        for path, content in tree.items()
        if path.startswith(f"{folder}/")
    }


def replay(operations: Sequence[Operation]) -> Tree:
    """What the operations leave where no power is cut."""
    disk = Disk()
    for done in operations:
        disk.apply(done)
    return disk.tree()
