"""Several machines: all of them have to see the output folder."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.launch import launcher
from hftk.launch.output_folder import read_status

SEE_SECONDS = 10.0
"""How long a machine looks for what another one has just written: network disks show it late."""


def check_output_is_seen(folder: Path, status: dict[str, Any]) -> None:
    """All processes call this.

    Raises:
        InputError: a machine does not see the output folder, from which it would have to resume.
    """
    from accelerate.utils import gather_object

    sees = launcher.number_from_environment(launcher.LOCAL_RANK, 0) != 0 or _soon(
        lambda: _is_of(folder, status)
    )
    blind = sorted({host for host, seen in gather_object([(socket.gethostname(), sees)]) if not seen})
    if blind:
        message = (
            f"expected a folder that all machines see, found {folder}, which {', '.join(blind)} does not see"
        )
        fix = "choose an --output on a disk that all machines share"
        raise InputError(Problem(setting="output", message=message, fix=fix))


def _is_of(folder: Path, status: dict[str, Any]) -> bool:
    found = read_status(folder) or {}
    return all(found.get(name) == status[name] for name in ("pid", "started", "processes"))


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within :data:`SEE_SECONDS`."""
    deadline = time.monotonic() + SEE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
