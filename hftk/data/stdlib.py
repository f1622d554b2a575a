"""Modules of the installed standard library, for the samples."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from hftk.config import InputError, Problem

# Optional packages of some distributions, tests, generated code, and modules that repeat the docstrings of
# others.
_LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "turtle",
        "lib2to3",
        "distutils",
        "ensurepip",
        "venv",
        "msilib",
        "encodings",
        "pydoc_data",
        "site-packages",
        "dist-packages",
    }
)


def stdlib_modules() -> list[tuple[str, Path]]:
    """(dotted name, source file) of the public modules of the standard library, sorted."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for top in sorted(sys.stdlib_module_names):
        if top.startswith("_") or top in _LEFT_OUT:
            continue
        for path in (root / f"{top}.py", *sorted((root / top).rglob("*.py"))):
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not _LEFT_OUT & set(parts):
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    if not found:
        raise InputError(
            Problem(
                setting="data.sample",
                message=f"expected the source of the standard library in {root}, found none",
                fix="use a Python with its .py files, or your own text: --data.path FILE",
            )
        )
    return found
