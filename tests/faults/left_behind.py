"""What a run leaves in its output folder, without what differs between two runs that are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMES = {
    "seconds",
    "started",
    "finished",
    "updated",
    "pid",
    "tokens_per_second",
    "peak_memory_bytes",
    "plan",
    "command",
    "since",
}
"""Keys under which stands how long something took, when, or by which process."""
PAGES = ("report.html", "report.md")
"""Made of the record, and full of its times."""


def left_behind(folder: Path) -> dict[str, Any]:
    """Path to what the file holds: tensors, JSON without its times, or bytes; of the pages only that they are
    there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return {path.relative_to(folder).as_posix(): _content(path, folder) for path in files}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The files that are not the same; [] if all are."""
    missing = [f"{name} is only in one" for name in sorted(one.keys() ^ other.keys())]
    return missing + [
        f"{name}{at}"
        for name in sorted(one.keys() & other.keys())
        if (at := _apart(one[name], other[name])) is not None
    ]


def _content(path: Path, folder: Path) -> Any:
    if path.is_dir() or path.name in PAGES:
        return ""
    if path.suffix in (".pt", ".pth"):
        import torch

        return torch.load(path, weights_only=False)
    if path.name == "manifest.json":
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            **found,
            "files": sorted(found["files"]),
            "sha256": None,
        }  # which are of files with times in them
    if path.suffix == ".json" and path.name != "tokenizer.json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")), str(folder))
    return path.read_bytes().replace(str(folder).encode(), b"OUTPUT")


def _timeless(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item, folder) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_timeless(item, folder) for item in value if not _told_of_resuming(item)]
    return value.replace(folder, "OUTPUT") if isinstance(value, str) else value


def _told_of_resuming(line: Any) -> bool:
    """A choice that is worded otherwise, or made at all, only where a run goes on."""
    return isinstance(line, str) and line.startswith(("continuing from ", "train.precision: "))


def _apart(one: Any, other: Any) -> str | None:
    """Where the two are not equal to the last bit, tensors and arrays too; None if they are."""
    if type(one) is not type(other):
        return f": {type(one).__name__} or {type(other).__name__}"
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f": the keys {sorted(map(str, one.keys() ^ other.keys()))}"
        return next((f".{key}{at}" for key in one if (at := _apart(one[key], other[key])) is not None), None)
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return f": {len(one)} or {len(other)} entries"
        return next(
            (
                f"[{i}]{at}"
                for i, pair in enumerate(zip(one, other, strict=True))
                if (at := _apart(*pair)) is not None
            ),
            None,
        )
    if hasattr(one, "tobytes"):
        return (
            None
            if one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
            else ": an array"
        )
    if hasattr(one, "untyped_storage"):
        return (
            None
            if one.dtype == other.dtype and one.shape == other.shape and _bytes(one) == _bytes(other)
            else ": a tensor"
        )
    return None if one == other else f": {one!r:.60} or {other!r:.60}"


def _bytes(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
