"""What a run prints: notes of automatic choices, each in one line with its reason and kept for the record,
and progress bars, lively on a terminal and in a notebook, seldom redrawn in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
def capture_notes() -> Iterator[list[str]]:
    """The lines noted inside the ``with`` block, those too that were said before."""
    lines: list[str] = []
    _listening.append(lines)
    try:
        yield lines
    finally:
        _listening.remove(lines)


def noted() -> list[str]:
    """All choices since the start of the process or the last :func:`clear_notes`, in order."""
    return list(_noted)


def clear_notes() -> None:
    """Start a new list; the launcher does so at the beginning of a run."""
    _noted.clear()


def print_what_can_be_printed() -> None:
    """Print a replacement for each character that the terminal or log cannot encode (ascii, cp932), where
    Python would end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, Colab, Kaggle, VS Code). Imports nothing."""
    ipython: Any = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def progress_bar(*args: Any, **settings: Any) -> Any:
    """tqdm's bar with these settings, as widget or text; in a log it is redrawn every 10 s at most."""
    from tqdm.auto import tqdm

    lively = in_notebook() or sys.stderr.isatty()
    return tqdm(
        *args, **{"mininterval": 0.2 if lively else 10, "dynamic_ncols": not in_notebook(), **settings}
    )


def write_beside(bar: Any, line: str) -> None:
    """Print a line while a bar is drawn: on stderr, but in a notebook on stdout, since there stderr looks
    like a fault."""
    bar.write(line, file=sys.stdout if in_notebook() else sys.stderr)
