"""Encoded splits on disk: one safetensors file each, renamed into place when it is whole, mapped into memory
when read.

A file that is cut or altered is recognized and encoded again. Of runs that write the same file at the same
time the last one wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hftk.features.ragged import Ragged
from hftk.task import Features

KEPT_SECONDS = 30 * 86400.0
"""Files that no run has read for this long are removed when another is written."""


def folder_of(setting: str) -> Path | None:
    """The folder that ``data.cache`` names; None for none."""
    if setting == "none":
        return None
    if setting == "auto":
        from huggingface_hub.constants import HF_HOME

        return Path(HF_HOME) / "hftk" / "features"
    return Path(setting).expanduser()


def write(path: Path, features: Features, lines: list[str]) -> bool:
    """Write compact ``features``, and the ``lines`` that were noted while they were encoded, to the file
    ``path``.

    False where JSON cannot hold their facts. Raises OSError where the disk refuses; nothing is left of them
    then.
    """
    from safetensors.numpy import save_file

    try:
        facts = json.dumps(features.facts)
    except (TypeError, ValueError):
        return False
    if json.loads(facts) != features.facts:
        return False
    arrays = {"rows": features.rows, "lengths": features.lengths}
    if features.sides is not None:
        arrays["sides"] = features.sides
    kinds: dict[str, str] = {}
    for name, column in features.columns.items():
        if isinstance(column, Ragged):
            first, last = column.offsets[0], column.offsets[-1]
            arrays[f"column {name}"] = column.values[first:last]
            arrays[f"offsets {name}"] = column.offsets - first
            kinds[name] = "lists" if column.as_lists else "ragged"
        else:
            arrays[f"column {name}"] = np.asarray(column)
            kinds[name] = "array"
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    head = json.dumps({"columns": kinds, "facts": features.facts, "lines": lines})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=".partial-", ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder) / path.name
        save_file(arrays, partial, metadata={"head": head, "digest": _digest(head, arrays)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    _remove_unused(path.parent)
    return True


def read(path: Path, *, verify: bool = True) -> tuple[Features, list[str]] | None:
    """What :func:`write` kept, mapped into memory; None where there is no whole file.

    Without ``verify`` the contents are not compared with their digest: another process has just done it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # of torch: numpy's arrays would be copies
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if verify and metadata["digest"] != _digest(metadata["head"], arrays):
            return None
        head = json.loads(metadata["head"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    columns: dict[str, Any] = {}
    for name, kind in head["columns"].items():
        values = arrays[f"column {name}"]
        columns[name] = (
            values if kind == "array" else Ragged(values, arrays[f"offsets {name}"], kind == "lists")
        )
    features = Features(
        columns=columns,
        rows=arrays["rows"],
        lengths=arrays["lengths"],
        sides=arrays.get("sides"),
        facts=head["facts"],
    )
    return features, head["lines"]


def _digest(head: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(head.encode(), digest_size=16)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _remove_unused(cache: Path) -> None:
    """Remove files that no run has read for :data:`KEPT_SECONDS`, and what killed runs left half written."""
    import shutil

    for path in cache.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
