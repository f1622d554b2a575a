"""The disks that a power cut may leave, made from a trace of file operations.

SIGKILL loses nothing that was written: the system still has it. A power cut may lose all that was not synced, and keep later
things while earlier ones are lost. What is taken for granted here is what POSIX and Linux's file systems promise (Pillai et al.
2014, "All File Systems Are Not Created Equal", OSDI): the bytes of a file are on the disk once the file was synced; a name is
there, gone or changed once its folder was synced; a rename happens as a whole or not at all. Before that each of them may or
may not have happened, in any order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from interposer import Operation

Tree = dict[str, "bytes | None"]
"""Path to content; None is a folder."""


@dataclass(eq=False)
class Node:
    """A file, or a folder."""

    folder: bool
    names: dict[str, Node] = field(default_factory=dict)
    """What a folder holds now, as the running system sees it."""


@dataclass(eq=False)
class Change:
    """What may or may not have reached the disk by itself."""

    node: Node
    """The file that was written, or the folder whose names changed."""
    data: Operation | None = None
    names: tuple[tuple[Node, str, Node | None], ...] = ()
    """(folder, name, what it stands for now), of one operation."""
    durable: bool = False


class Disk:
    """What a sequence of operations on one folder, empty at first, does to a disk."""

    def __init__(self) -> None:
        self.root = Node(folder=True)
        self.changes: list[Change] = []

    def apply(self, done: Operation) -> None:
        """The next operation. Files that were removed while open are not followed."""
        if done.kind == "sync":
            self._sync(self._find(done.path))
        elif done.kind in ("write", "truncate"):
            self.changes.append(Change(self._find(done.path), data=done))
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
        self.changes.append(Change(changed[-1][0], names=tuple(changed)))

    def _sync(self, node: Node) -> None:
        for change in self.changes:
            # A rename is one entry of the journal: with either folder it is on the disk.
            change.durable |= (change.data is not None and change.node is node) or any(f is node for f, _, _ in change.names)

    def open_ends(self) -> list[list[Change]]:
        """What is not durable: the writes to one file together, each change of names by itself."""
        of_file: dict[int, list[Change]] = {}
        for number, change in enumerate(self.changes):
            if not change.durable:
                of_file.setdefault(id(change.node) if change.data else -number - 1, []).append(change)
        return list(of_file.values())

    def tree(self, lost: Iterable[Change] = (), zeroed: Iterable[Change] = (), torn: Iterable[Change] = ()) -> Tree:
        """What is on the disk without ``lost``, where ``zeroed`` only made the file longer, and of ``torn`` half was written."""
        away, empty, half = ({id(change) for change in some} for some in (lost, zeroed, torn))
        contents: dict[int, bytearray] = {}
        names: dict[int, dict[str, Node]] = {}
        for change in self.changes:
            if id(change) in away:
                continue
            if change.data is not None:
                _write(contents.setdefault(id(change.node), bytearray()), change.data, id(change) in empty, id(change) in half)
            for folder, name, node in change.names:
                held = names.setdefault(id(folder), {})
                if node is None:
                    held.pop(name, None)
                else:
                    held[name] = node
        return dict(_walk("", self.root, names, contents))


def _write(content: bytearray, done: Operation, zeros: bool, half: bool) -> None:
    if done.kind == "truncate":
        content[:] = content[: done.offset].ljust(done.offset, b"\0")
        return
    data = bytes(len(done.data)) if zeros else done.data[: len(done.data) // 2] if half else done.data
    if len(content) < done.offset:
        content.extend(bytes(done.offset - len(content)))
    content[done.offset : done.offset + len(data)] = data


def _walk(path: str, node: Node, names: dict[int, dict[str, Node]], contents: dict[int, bytearray]) -> Iterator[tuple[str, bytes | None]]:
    for name, held in sorted(names.get(id(node), {}).items()):
        place = f"{path}/{name}" if path else name
        yield place, None if held.folder else bytes(contents.get(id(held), b""))
        if held.folder:
            yield from _walk(place, held, names, contents)


def disks_after(disk: Disk, rng: random.Random, draws: int = 3) -> Iterator[tuple[str, Tree]]:
    """What may be on the disk if the power is cut now, each with a word on what was lost."""
    ends = disk.open_ends()
    every = [change for end in ends for change in end]
    data = [change for change in every if change.data]
    yield "nothing", disk.tree()
    yield "all that was not synced", disk.tree(every)
    yield "all bytes that were not synced", disk.tree(data)
    yield "all bytes that were not synced, the sizes kept", disk.tree(zeroed=data)
    yield "all names that were not synced", disk.tree([change for change in every if not change.data])
    for number, end in enumerate(ends):
        rest = [change for other in ends if other is not end for change in other]
        yield f"change {number} of {len(ends)} alone", disk.tree(end)
        yield f"all but change {number} of {len(ends)}", disk.tree(rest)
        if end[0].data:
            yield f"half of the last write of change {number}", disk.tree(torn=end[-1:])
            yield f"all of the last write of change {number}", disk.tree(end[-1:])
    for _ in range(draws if len(every) > 1 else 0):
        lost = [change for change in every if rng.random() < 0.5]
        zeroed = [change for change in data if rng.random() < 0.3]
        yield "a random part", disk.tree(lost, zeroed)


def read_tree(folder: Path) -> Tree:
    """What is in ``folder``."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))
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
    return {path.removeprefix(f"{folder}/"): content for path, content in tree.items() if path.startswith(f"{folder}/")}


def replay(operations: Sequence[Operation]) -> Tree:
    """What the operations leave where no power is cut."""
    disk = Disk()
    for done in operations:
        disk.apply(done)
    return disk.tree()
