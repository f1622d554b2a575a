"""The file operations of a process, counted, recorded and cut short: each waits until its watcher has seen
it.

The kernel (Linux 5.5 or newer) holds every system call that can change or sync a file until another process,
which forked the watched one, lets it go on (seccomp's user notification). Nothing is missed, whatever library
makes the call: safetensors, for one, renames without the C library. Only writes through memory maps are not
seen, nor chmod, utime and the like. Whether a call was missed shows in the trace: replayed as a whole
(disk.py), it must give the folder as it is.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import mmap
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interposed_calls import AUDIT, CALLS, SECCOMP, Caller

FIELDS = (
    "pid",
    "operations",
    "kill_at",
    "torn",
    "saving",
    "saves",
    "sealed",
    "nanoseconds saving a checkpoint",
    "began",
)
"""What the watcher shares, eight bytes each: the watched process; operations so far; the one, from 1, before
which the process is killed (0: none), or, if torn, after half of its bytes; whether a checkpoint is between
its first byte and its rename; checkpoints begun and renamed into place; the time spent on them, and when the
one in the making was begun."""
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND of <linux/seccomp.h>
_NOTICE, _REPLY = struct.Struct("<QIIiIQ6Q"), struct.Struct("<QqiI")
_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # <linux/bpf_common.h>
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_HEAD = struct.Struct("<10sIIQQ")


@functools.cache
def reason_not_to() -> str:
    """Why processes cannot be watched here; "" if they can."""
    if not sys.platform.startswith("linux") or platform.machine() not in CALLS:
        return f"no table of the system calls of {sys.platform} on {platform.machine()}"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if scope.exists() and int(scope.read_text()) > 1 and os.geteuid():
        return "a process may not read its child's memory here (ptrace_scope)"
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if _listen() >= 0 else 1)
        except BaseException:
            os._exit(1)
    return "the kernel lets no process watch another's system calls" if os.waitpid(pid, 0)[1] else ""


class Shared:
    """Memory that several processes see: eight-byte numbers under names."""

    def __init__(self, path: Path, names: tuple[str, ...] = ()) -> None:
        self.place = {name: 8 * number for number, name in enumerate((*FIELDS, *names))}
        if not path.exists():
            path.write_bytes(bytes(8 * len(self.place)))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)

    def __getitem__(self, name: str) -> int:
        return int(struct.unpack_from("<Q", self.memory, self.place[name])[0])

    def __setitem__(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self.memory, self.place[name], value)

    def all(self) -> dict[str, int]:
        return {name: self[name] for name in self.place}


@dataclass(frozen=True)
class Operation:
    """One on one file; paths are relative to the watched folder, ``""`` is the folder itself."""

    kind: str
    """create, write, truncate, sync, rename, unlink, mkdir, rmdir, symlink, link, or mark: a word of the
    watched process."""
    path: str
    second: str = ""
    """What a rename or link makes, what a symbolic link points to, or the word."""
    offset: int = 0
    """Of a write, in bytes; of a truncation, the new size."""
    data: bytes = b""


def read_trace(path: Path) -> Iterator[Operation]:
    """The operations in their order."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        kind, first, second, offset, size = _HEAD.unpack_from(content, place)
        texts = place + _HEAD.size
        data = texts + first + second
        place = data + size
        names = content[texts : texts + first].decode(), content[texts + first : data].decode()
        yield Operation(kind.rstrip(b"\0").decode(), *names, offset, content[data:place])


def fork_watched(folder: Path, shared: Shared, trace: Path | None) -> bool:
    """Fork: True in the new process, whose operations below ``folder`` are watched; the caller becomes its
    watcher, and ends as it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    here, there = socket.socketpair()
    watcher = os.getpid()
    pid = os.fork()
    if not pid:
        here.close()
        ctypes.CDLL(None).prctl(
            1, int(signal.SIGKILL), 0, 0, 0
        )  # PR_SET_PDEATHSIG: never without its watcher
        if os.getppid() != watcher:
            os._exit(1)
        listener = _listen()
        socket.send_fds(there, [b"."], [listener])
        there.recv(1)
        os.close(listener)
        there.close()
        return True
    there.close()
    listener = socket.recv_fds(here, 1, 1)[1][0]
    here.send(b".")
    shared["pid"] = pid
    with open(trace or os.devnull, "ab", buffering=0) as record:
        _watch(pid, listener, Watcher(folder.resolve(), shared, record if trace else None))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def _listen() -> int:
    """Have every call that may change a file wait for its watcher; the file descriptor by which it is
    told."""
    library, machine = ctypes.CDLL(None, use_errno=True), platform.machine()
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, AUDIT[machine]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, 0),
    ]
    for number, (name, _) in CALLS[machine].items():
        if name in ("open", "openat"):  # only those that make or empty a file
            flags = 16 + 8 * (name == "openat") + 8
            steps += [
                (_EQUAL, 0, 5, number),
                (_LOAD, 0, 0, flags),
                (_ANY_BIT, 0, 1, os.O_CREAT | os.O_TRUNC),
                (_RETURN, 0, 0, _NOTIFY),
            ]
            steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ALLOW)]
        elif name in ("write", "writev"):  # not those to the terminal
            steps += [
                (_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, 16),
                (_ABOVE, 0, 1, 2),
                (_RETURN, 0, 0, _NOTIFY),
                (_RETURN, 0, 0, _ALLOW),
            ]
        else:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _NOTIFY)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    head = struct.pack("@HP", len(steps), ctypes.addressof(program))
    library.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    # SECCOMP_SET_MODE_FILTER with NEW_LISTENER and, from Linux 5.19 on, WAIT_KILLABLE_RECV: else a signal,
    # such as that of a child's end, makes a call wait, and be seen, twice.
    asked = (
        library.syscall(SECCOMP[machine], 1, flags, ctypes.create_string_buffer(head))
        for flags in (0b101000, 0b001000)
    )
    listener = next((found for found in asked if found >= 0), -1)
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(listener)


class Watcher:
    """Counts, records and ends."""

    def __init__(self, folder: Path, shared: Shared, trace: object) -> None:
        self.folder, self.shared, self.trace = str(folder), shared, trace

    def below(self, path: str) -> str | None:
        """The path from the folder on; None where it is elsewhere."""
        if path == self.folder:
            return ""
        return path[len(self.folder) + 1 :] if path.startswith(self.folder + "/") else None

    def due(self, done: Operation) -> bool:
        """Count an operation that is about to be done; whether the process is to be killed instead."""
        shared = self.shared
        shared["operations"] += 1
        if done.kind == "write" and place(done.path) == "staged" and not shared["saving"]:
            shared["began"], shared["saves"] = time.monotonic_ns(), shared["saves"] + 1
            shared["saving"] = 1
        if shared["operations"] == shared["kill_at"]:
            return True
        if (
            done.kind == "rename"
            and shared["saving"]
            and place(done.second) == "checkpoint"
            and done.second.count("/") == 1
        ):
            shared["nanoseconds saving a checkpoint"] += time.monotonic_ns() - shared["began"]
            shared["saving"], shared["sealed"] = 0, shared["sealed"] + 1
        if self.trace is not None:
            first, second = done.path.encode(), done.second.encode()
            head = _HEAD.pack(done.kind.encode(), len(first), len(second), done.offset, len(done.data))
            self.trace.write(head + first + second + done.data)  # type: ignore[attr-defined]
        return False


def place(path: str) -> str:
    """checkpoint: of one that counts; staged: of one in the making; or ""."""
    parts = path.split("/")
    if parts[0] != "checkpoints" or len(parts) < 2:
        return ""
    if parts[1].startswith("checkpoint-"):
        return "checkpoint"
    return (
        "staged" if parts[1].startswith(".") and len(parts) > 3 and parts[2].startswith("checkpoint-") else ""
    )


def _watch(pid: int, listener: int, watcher: Watcher) -> None:
    """Let the calls of ``pid`` and what it started go on, one after the other, until it has ended."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if ready.get(listener, 0) & select.POLLIN:
            notice = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(listener, _RECEIVE, notice)
            except OSError:  # the caller was killed meanwhile
                continue
            number, thread, _, call, _, _, *arguments = _NOTICE.unpack(notice)
            caller = Caller(thread, call, arguments)
            try:
                found = caller.operation(watcher.below)
            except (OSError, ProcessLookupError):  # gone
                found = None
            if found is not None and watcher.due(Operation(*found)):
                if watcher.shared["torn"] and found[0] == "write":
                    caller.write_half()
                os.kill(pid, signal.SIGKILL)
            try:
                fcntl.ioctl(listener, _SEND, _REPLY.pack(number, 0, 0, 1))  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
            except OSError:
                continue
        elif ended in ready:
            return
