"""Progress bars: lively on a terminal and in a notebook, seldom redrawn in a log file."""

from __future__ import annotations

import sys
from typing import Any


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
