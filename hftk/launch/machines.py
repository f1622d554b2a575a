"""Several machines and their disks: who sees the output folder, and how a checkpoint comes to those who do not."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.console import note
from hftk.launch import launcher
from hftk.launch.output_folder import read_status

SEE_SECONDS = 10.0
"""How long a machine looks for what another one has just written: network disks show it late."""
PIECE = 2**26
"""Bytes of a file that are sent at a time."""
_brought: list[tempfile.TemporaryDirectory[str]] = []


def check_output_is_seen(folder: Path, status: dict[str, Any], strategy: str) -> None:
    """Says where the output folder is not shared by all machines; all processes call this.

    Raises InputError under FSDP and DeepSpeed, where every process writes a part of each checkpoint.
    """
    from accelerate.utils import gather_object

    sees = launcher.number_from_environment(launcher.LOCAL_RANK, 0) != 0 or _soon(lambda: _is_of(folder, status))
    blind = sorted({host for host, seen in gather_object([(socket.gethostname(), sees)]) if not seen})
    if not blind:
        return
    where = f"{folder} is not seen on {', '.join(blind)}"
    if strategy in ("fsdp", "deepspeed"):
        message = f"expected a folder that all machines see, since under {strategy} each process writes a part of a checkpoint; {where}"
        raise InputError(
            Problem(setting="output", message=message, fix="choose an --output on a disk that all machines share")
        )
    note(f"output: {where}: all is written on the machine of the main process, and checkpoints are sent from there when they are needed")  # fmt: skip


def _is_of(folder: Path, status: dict[str, Any]) -> bool:
    found = read_status(folder) or {}
    return all(found.get(name) == status[name] for name in ("pid", "started", "processes"))


def bring(folder: Path | None) -> Path | None:
    """A folder that every process sees with the files of the main process's ``folder``: that one itself where it does, else a copy in
    the system's temporary folder, which goes at the end of the process. All processes call this with the same argument."""
    if folder is None or launcher.number_from_environment(launcher.WORLD_SIZE, 1) == 1:
        return folder
    import torch
    from accelerate.utils import broadcast_object_list, gather_object

    main = torch.distributed.get_rank() == 0
    first = launcher.number_from_environment(launcher.LOCAL_RANK, 0) == 0
    parcel: list[Any] = [_files(folder) if main else None]
    broadcast_object_list(parcel, from_process=0)
    files: dict[str, tuple[int, str]] = parcel[0]
    machines = gather_object([(_machine(), _soon(lambda: _files(folder) == files))])
    blind = {machine for machine, sees in machines if not sees}
    if not blind:
        return folder
    target: Path | None = None
    if _machine() in blind and first:
        _brought.append(tempfile.TemporaryDirectory(prefix="hftk-"))
        target = Path(_brought[-1].name) / folder.name
        target.mkdir()
    for name, (size, _) in files.items():
        _send(folder / name, size, target / name if target else None, main)
    places = dict(gather_object([(_machine(), str(target))] if target else []))
    return Path(places[_machine()]) if _machine() in blind else folder


def _files(folder: Path) -> dict[str, tuple[int, str]]:
    """Name of every file below ``folder`` to its size, and of the manifest to its SHA-256 too."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest() if name == "manifest.json" else "")
        for name, path in found.items()
    }


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within :data:`SEE_SECONDS`."""
    deadline = time.monotonic() + SEE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _send(source: Path, size: int, target: Path | None, main: bool) -> None:
    """One file from the main process to those that have a ``target`` for it; all processes call this."""
    from accelerate.utils import broadcast_object_list

    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    reading = source.open("rb") if main else None
    writing = target.open("wb") if target is not None else None
    try:
        for _ in range(0, size, PIECE):
            piece: list[Any] = [reading.read(PIECE) if reading else None]
            broadcast_object_list(piece, from_process=0)
            if writing is not None:
                writing.write(piece[0])
    finally:
        for file in (reading, writing):
            if file is not None:
                file.close()


def _machine() -> str:
    """A name for this machine that no other of the run has; two may call themselves localhost."""
    return f"{socket.gethostname()} {os.environ.get('GROUP_RANK', '')}"
