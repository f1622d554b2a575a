"""Files that are on the disk when a call returns, whole, whenever the process is killed or the power is
cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from pathlib import Path

from hftk.config.problems import Problem

MOST_NAME_BYTES = 255
"""Longest name of a file or folder that the usual file systems take."""


def sync(path: Path) -> None:
    """fsync a file or a folder; Windows cannot open folders, and needs no sync of them."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (
            path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)
        ):  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it where they are missing; their names are durable when this
    returns."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        with contextlib.suppress(PermissionError):  # a folder may be open to new names and closed to readers
            sync(made.parent)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small text file so that readers, crashes and power cuts meet the old content or the new, never
    a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def set_default_mode(path: Path) -> None:
    """Give a file the mode of a newly created one, as the umask has it: some libraries write 0600."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """Remove what :func:`write_atomically` left in ``folder`` of files of this name when its process was
    killed. Only for who alone writes them; the files by which other processes ask a folder for its time are
    left to them."""
    for path in folder.glob(f".{name}.*.tmp"):
        if re.fullmatch(r"\.(?!clock\.).+\.\d+\.tmp", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def find_name_problem(setting: str, name: str) -> Problem | None:
    """What is wrong with a path as it is typed: an unknown user's home folder, a name that no file system
    takes."""
    longest = max((len(os.fsencode(part)) for part in re.split(r"[/\\]", name)), default=0)
    if "\0" in name:
        return Problem(
            setting=setting, message="expected a path, found a zero byte in it", fix="type the path again"
        )
    if longest > MOST_NAME_BYTES:
        message = f"expected a path whose names have at most {MOST_NAME_BYTES} bytes, found one of {longest}"
        return Problem(setting=setting, message=message, fix="check the spelling")
    if name.startswith("~") and os.path.expanduser(name) == name:
        user = re.split(r"[/\\]", name)[0]
        return Problem(
            setting=setting,
            message=f"expected the home folder of a user, found no user {user}",
            fix=f"type the whole path, or ./{name}",
        )
    return None


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run or a model."""
    with contextlib.suppress(OSError):
        if any(
            (folder / name).is_file()
            for name in ("record.json", "status.json", "config.json", "adapter_config.json")
        ):
            return True
        settings = folder / "config.yaml"
        if settings.is_file():
            text = settings.read_text(encoding="utf-8", errors="replace")
            return all(re.search(rf"^{name}:", text, re.MULTILINE) for name in ("model", "train", "output"))
    return False
