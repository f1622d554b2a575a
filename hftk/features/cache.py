"""Encoded splits on disk: one folder each, written under another name and renamed, mapped into memory when read.

A folder that exists is whole, or it is recognized as cut or altered and made anew. Runs that write the same one at the same time
do not disturb each other: the first to finish wins. What nobody has used for longest goes when the cache has become too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from hftk.features.ragged import Ragged
from hftk.task import Features

FACTS = "features.json"
MOST_BYTES = 50 * 2**30
"""Size beyond which a cache loses what was not used for longest."""
IN_USE_SECONDS = 2 * 86400.0
"""What was used in the last two days is never removed: a run on another machine may read it."""
TOUCH_SECONDS = 3600.0
"""How often a run says that it still uses what it has read."""
_PARTIAL = ".partial-"
_used: set[Path] = set()


def folder_of(setting: str) -> Path | None:
    """The folder that ``data.cache`` names; None for none."""
    if setting == "none":
        return None
    if setting == "auto":
        from huggingface_hub.constants import HF_HOME

        return Path(HF_HOME) / "hftk" / "features"
    return Path(setting).expanduser()


def write(path: Path, features: Features, lines: list[str]) -> bool:
    """Keeps compact ``features``, and the ``lines`` that were noted while they were made, in the folder ``path``.

    False where their facts cannot be kept. Raises OSError where the disk refuses; nothing is left of them then.
    """
    try:
        facts = json.dumps(features.facts)
    except (TypeError, ValueError):
        return False
    if json.loads(facts) != features.facts:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{_PARTIAL}{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        partial.mkdir()
        kinds: dict[str, str] = {}
        arrays = {"rows": features.rows, "lengths": features.lengths}
        if features.sides is not None:
            arrays["sides"] = features.sides
        for number, (name, column) in enumerate(features.columns.items()):
            ragged = column if isinstance(column, Ragged) else None
            kinds[name] = "array" if ragged is None else "lists" if ragged.as_lists else "ragged"
            arrays[f"{number}"] = (
                np.asarray(column) if ragged is None else ragged.values[ragged.offsets[0] : ragged.offsets[-1]]
            )
            if ragged is not None:
                arrays[f"{number}-offsets"] = ragged.offsets - ragged.offsets[0]
        files = {name: _save(partial / f"{name}.npy", array) for name, array in arrays.items()}
        content = {"columns": kinds, "facts": features.facts, "lines": lines, "files": files}
        with (partial / FACTS).open("w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        _put(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _tidy(path.parent)
    return True


def read(path: Path, *, verify: bool = True) -> tuple[Features, list[str]] | None:
    """What :func:`write` kept, mapped into memory, or None where there is nothing whole.

    Without ``verify`` the sizes of the files are compared alone, not their contents: where another process of this machine has
    just done it.
    """
    try:
        content = json.loads((path / FACTS).read_text(encoding="utf-8"))
        arrays = {}
        for name, (size, digest) in content["files"].items():
            file = path / f"{name}.npy"
            if file.stat().st_size != size or (verify and _digest(file) != digest):
                return None
            # Copy on write: torch takes no read-only arrays, and nothing reaches the file.
            arrays[name] = np.asarray(np.load(file, mmap_mode="c" if size > 256 else None))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    _use(path)
    columns: dict[str, Any] = {}
    for number, (name, kind) in enumerate(content["columns"].items()):
        values = arrays[f"{number}"]
        columns[name] = values if kind == "array" else Ragged(values, arrays[f"{number}-offsets"], kind == "lists")
    sides = arrays.get("sides")
    features = Features(
        columns=columns, rows=arrays["rows"], lengths=arrays["lengths"], sides=sides, facts=content["facts"]
    )
    return features, content["lines"]


def _save(path: Path, array: np.ndarray) -> tuple[int, str]:
    """Size and digest of the file that holds the array."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size, _digest(path)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _put(partial: Path, path: Path) -> None:
    """Renames into place, unless another run was first; what is there and not whole makes room."""
    for _ in range(3):
        try:
            os.rename(partial, path)
            return
        except OSError:
            if not path.exists():
                raise
            if read(path) is not None:
                return
            broken = path.with_name(f"{_PARTIAL}broken-{path.name}-{os.getpid()}")
            with contextlib.suppress(OSError):
                os.rename(path, broken)
            shutil.rmtree(broken, ignore_errors=True)


def _tidy(cache: Path) -> None:
    """Removes what killed runs left half written, and the least recently used beyond :data:`MOST_BYTES`."""
    now = time.time()
    found = []
    for folder in cache.iterdir():
        with contextlib.suppress(OSError):
            if folder.name.startswith(_PARTIAL):
                if now - folder.stat().st_mtime > IN_USE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
            elif (folder / FACTS).exists():
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append(((folder / FACTS).stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in found)
    for used, size, folder in sorted(found, key=lambda entry: entry[0]):
        if total <= MOST_BYTES or now - used < IN_USE_SECONDS:
            break
        gone = folder.with_name(f"{_PARTIAL}removed-{folder.name}-{os.getpid()}")
        with contextlib.suppress(OSError):
            os.rename(folder, gone)  # at once, so that no reader meets half of it
            shutil.rmtree(gone, ignore_errors=True)
            total -= size


def _use(path: Path) -> None:
    """Marks what is read as used, now and for as long as this process runs."""
    if not _used:
        threading.Thread(target=_touch_often, daemon=True, name="features-in-use").start()
    _used.add(path)
    with contextlib.suppress(OSError):
        os.utime(path / FACTS)


def _touch_often() -> None:
    while True:
        time.sleep(TOUCH_SECONDS)
        for path in list(_used):
            with contextlib.suppress(OSError):
                os.utime(path / FACTS)
