"""System calls that change or sync files, as the kernel numbers them, and what each of them does to which
file."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}
AT_FDCWD, AT_REMOVEDIR, RENAME_NOREPLACE = -100, 0x200, 1

_X86_64 = {
    "write": 1,
    "open": 2,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fallocate": 285,
    "pwritev": 296,
    "renameat2": 316,
    "copy_file_range": 326,
    "pwritev2": 328,
    "openat2": 437,
}
_AARCH64 = {
    "mkdirat": 34,
    "unlinkat": 35,
    "symlinkat": 36,
    "linkat": 37,
    "renameat": 38,
    "truncate": 45,
    "ftruncate": 46,
    "fallocate": 47,
    "openat": 56,
    "write": 64,
    "writev": 66,
    "pwrite64": 68,
    "pwritev": 70,
    "sendfile": 71,
    "fsync": 82,
    "fdatasync": 83,
    "renameat2": 276,
    "copy_file_range": 285,
    "pwritev2": 287,
    "openat2": 437,
}
_PATHS = {
    "open": (0,),
    "creat": (0,),
    "truncate": (0,),
    "rename": (0, 1),
    "mkdir": (0,),
    "rmdir": (0,),
    "link": (0, 1),
    "unlink": (0,),
    "symlink": (1,),
    "openat": (1,),
    "openat2": (1,),
    "mkdirat": (1,),
    "unlinkat": (1,),
    "renameat": (1, 3),
    "renameat2": (1, 3),
    "linkat": (1, 3),
    "symlinkat": (2,),
}
"""Which arguments are paths; with ``at`` in its name, a call has the folder before each."""
CALLS = {
    machine: {number: (name, _PATHS.get(name, ())) for name, number in table.items()}
    for machine, table in (("x86_64", _X86_64), ("aarch64", _AARCH64))
}
Found = tuple[str, str, str, int, bytes]
"""Kind, path, second path, offset and bytes, as in :class:`interposer.Operation`."""


class Caller:
    """A thread that waits in a system call."""

    def __init__(self, thread: int, call: int, arguments: list[int]) -> None:
        self.thread, self.arguments = thread, arguments
        self.name, self.paths = CALLS[platform.machine()][call]
        self.half: tuple[bytes, int] | None = None

    def operation(self, below: Callable[[str], str | None]) -> Found | None:
        """What the call will do to which file; None where it is elsewhere, does nothing or will fail."""
        if not self.paths:
            return self._on_open_file(below)
        full = [self._path(place) for place in self.paths]
        paths = [below(path) for path in full]
        if paths[-1] is None:
            if paths[0] is not None:
                raise NotImplementedError(
                    f"{self.name} of {full[0]} to {full[-1]}, out of the watched folder"
                )
            return None
        if paths[0] is None:
            raise NotImplementedError(f"{self.name} of {full[0]} to {full[-1]}, into the watched folder")
        return self._on_path(full, paths[0], paths[-1])

    def _on_path(self, full: list[str], path: str, second: str) -> Found | None:
        name, there = self.name, os.path.lexists(full[0])
        if name in ("open", "openat", "openat2", "creat"):
            flags = self._flags()
            if not there:
                return ("create", path, "", 0, b"") if flags & os.O_CREAT else None
            empties = flags & os.O_TRUNC and not flags & os.O_EXCL and os.path.getsize(full[0])
            return ("truncate", path, "", 0, b"") if empties else None
        if name in ("mkdir", "mkdirat"):
            return None if there else ("mkdir", path, "", 0, b"")
        if name in ("symlink", "symlinkat"):
            return None if there else ("symlink", path, self._text(self.arguments[0]), 0, b"")
        if not there:
            return None
        if name == "truncate":
            return ("truncate", path, "", self.arguments[1], b"")
        if name in ("unlink", "rmdir", "unlinkat"):
            folder = name == "rmdir" or (name == "unlinkat" and bool(self.arguments[2] & AT_REMOVEDIR))
            if folder != os.path.isdir(full[0]) or (folder and os.listdir(full[0])):
                return None
            return ("rmdir" if folder else "unlink", path, "", 0, b"")
        if name in ("link", "linkat"):
            return None if os.path.lexists(full[1]) else ("link", path, second, 0, b"")
        if name == "renameat2" and self.arguments[4] & ~RENAME_NOREPLACE:
            raise NotImplementedError(
                f"renameat2 of {full[0]} to {full[1]} with the flags {self.arguments[4]}"
            )
        keeps = name == "renameat2" and bool(self.arguments[4]) and os.path.lexists(full[1])
        if keeps or (os.path.isdir(full[1]) and os.listdir(full[1])):
            return None
        return ("rename", path, second, 0, b"")

    def _on_open_file(self, below: Callable[[str], str | None]) -> Found | None:
        output = self.arguments[2 if self.name == "copy_file_range" else 0]
        full = self._link(f"fd/{output}")
        path = below(full)
        if path is None or full.endswith(" (deleted)"):
            return None
        if self.name in ("fsync", "fdatasync"):
            return ("sync", path, "", 0, b"")
        if self.name == "ftruncate":
            return ("truncate", path, "", self.arguments[1], b"")
        if self.name == "fallocate":
            size = os.path.getsize(full)
            return ("truncate", path, "", max(size, self.arguments[2] + self.arguments[3]), b"")
        data = self._data()
        if not data:
            return None
        offset = self._offset(output, full)
        self.half = (data[: len(data) // 2], offset)
        return ("write", path, "", offset, data)

    def write_half(self) -> None:
        """Do the first half of a write for the caller."""
        assert self.half is not None
        output = self.arguments[2 if self.name == "copy_file_range" else 0]
        file = os.open(f"/proc/{self.thread}/fd/{output}", os.O_WRONLY)
        os.pwrite(file, *self.half)
        os.close(file)

    # --- What the caller's memory and open files say

    def _memory(self, address: int, size: int) -> bytes:
        with open(f"/proc/{self.thread}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def _text(self, address: int) -> str:
        text = b""
        while b"\0" not in text:
            text += self._memory(
                address + len(text), 4096 - (address + len(text)) % 4096
            )  # no page that may not be there
        return text.split(b"\0")[0].decode()

    def _link(self, name: str) -> str:
        return os.readlink(f"/proc/{self.thread}/{name}")

    def _path(self, place: int) -> str:
        path = self._text(self.arguments[place])
        folder = (
            struct.unpack("<i", struct.pack("<I", self.arguments[place - 1] & 0xFFFFFFFF))[0]
            if "at" in self.name and place
            else AT_FDCWD
        )
        if not path.startswith("/"):
            path = os.path.join(self._link("cwd" if folder == AT_FDCWD else f"fd/{folder}"), path)
        head, tail = os.path.split(path.rstrip("/"))
        return os.path.join(os.path.realpath(head), tail)

    def _flags(self) -> int:
        if self.name == "creat":
            return os.O_CREAT | os.O_TRUNC
        if self.name == "openat2":
            return int(struct.unpack("<Q", self._memory(self.arguments[2], 8))[0])
        return self.arguments[1 if self.name == "open" else 2]

    def _standing(self, file: int) -> dict[str, str]:
        with open(f"/proc/{self.thread}/fdinfo/{file}", encoding="ascii") as lines:
            return dict(line.rstrip().split(":\t", 1) for line in lines if ":\t" in line)

    def _offset(self, output: int, full: str) -> int:
        if self.name in ("pwrite64", "pwritev", "pwritev2"):
            return self.arguments[3]
        standing = self._standing(output)
        return os.path.getsize(full) if int(standing["flags"], 8) & os.O_APPEND else int(standing["pos"])

    def _data(self) -> bytes:
        if self.name in ("write", "pwrite64"):
            return self._memory(self.arguments[1], self.arguments[2])
        if "writev" in self.name:
            parts = struct.iter_unpack("<QQ", self._memory(self.arguments[1], 16 * self.arguments[2]))
            return b"".join(self._memory(*part) for part in parts if part[1])
        source, pointer, size = (1, 2, 3) if self.name == "sendfile" else (0, 1, 4)
        file, at = self.arguments[source], self.arguments[pointer]
        offset = struct.unpack("<Q", self._memory(at, 8))[0] if at else int(self._standing(file)["pos"])
        copy = os.open(f"/proc/{self.thread}/fd/{file}", os.O_RDONLY)
        try:
            return os.pread(copy, self.arguments[size], offset)
        finally:
            os.close(copy)
