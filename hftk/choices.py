"""What a run chose by itself: each automatic choice is said once, in one line with its reason, and kept for the record."""

from __future__ import annotations

import os

_noted: list[str] = []


def note(line: str) -> None:
    """Print an automatic choice (on the main process only) and keep it; a line already said is not repeated."""
    if line in _noted:
        return
    _noted.append(line)
    if os.environ.get("RANK", "0") == "0":
        print(f"  · {line}", flush=True)


def noted() -> list[str]:
    """All choices since the start of the process or the last :func:`forget`, in order."""
    return list(_noted)


def forget() -> None:
    """Start a new list; the launcher does so at the beginning of a run."""
    _noted.clear()
