"""What a run chose by itself: each automatic choice is said once, in one line with its reason, and kept for
the record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hftk.redaction import redact_text

_noted: list[str] = []
_listening: list[list[str]] = []


def note(line: str) -> None:
    """Print an automatic choice (on the main process only) and keep it; a line already said is not
    repeated."""
    for heard_lines in _listening:
        heard_lines.append(line)
    if line in _noted:
        return
    _noted.append(line)
    if os.environ.get("RANK", "0") == "0":
        print(f"  · {redact_text(line)}", flush=True)


@contextmanager
def heard() -> Iterator[list[str]]:
    """The lines noted inside the ``with`` block, those too that were said before."""
    lines: list[str] = []
    _listening.append(lines)
    try:
        yield lines
    finally:
        _listening.remove(lines)


def noted() -> list[str]:
    """All choices since the start of the process or the last :func:`forget`, in order."""
    return list(_noted)


def forget() -> None:
    """Start a new list; the launcher does so at the beginning of a run."""
    _noted.clear()
