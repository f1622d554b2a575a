"""Checkpoints that are whole or do not exist: sealed under another name, then renamed; verified before they are used.

A folder ``checkpoints/checkpoint-<step>`` comes into being by one rename, after all of its files and a manifest of their sizes
and SHA-256 are on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
STAGING = ".partial"
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(staged: Path, final: Path, facts: dict[str, Any]) -> None:
    """Make the staged files durable, write the manifest, and rename the folder into place.

    ``facts`` (step, processes, versions ...) go into the manifest. Raises OSError where the disk refuses; ``final`` then does
    not exist and older checkpoints are untouched.
    """
    files = sorted(p for p in staged.rglob("*") if p.is_file())
    listed = {str(p.relative_to(staged).as_posix()): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    for path in files:
        _sync(path)
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({**facts, "files": listed}, indent=1), encoding="utf-8")
    _sync(manifest)
    _sync(staged)
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    _sync(final.parent)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; "" if every file has the size and SHA-256 of the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        if _sha256(path) != facts["sha256"]:
            return f"{name} is not what was written (SHA-256 differs)"
    return ""


def checkpoints(output: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest step first."""
    found = [(int(m[1]), p) for p in (Path(output) / FOLDER).glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def newest_whole(output: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a line about each damaged one passed over on the way (they are left alone)."""
    passed: list[str] = []
    for folder in reversed(checkpoints(output)):
        problem = damage(folder)
        if not problem:
            return folder, passed
        passed.append(f"{folder} is damaged: {problem}; it is left as it is, the one before is tried")
    return None, passed


def choose(resume: str, output: str | Path) -> tuple[Path | None, list[str]]:
    """The checkpoint that ``--resume auto|never|PATH`` means, and lines to tell the user.

    Raises:
        InputError: a PATH that is no checkpoint or a damaged one; ``auto`` where every checkpoint is damaged.
    """
    if resume == "never":
        return None, []
    if resume == "auto":
        chosen, passed = newest_whole(output)
        if chosen is None and passed:
            raise InputError(
                Problem(
                    setting="resume", message="no checkpoint is whole: " + "; ".join(passed),
                    fix="start anew with --overwrite, or name another checkpoint by --resume PATH",
                )
            )  # fmt: skip
        return chosen, passed
    path = Path(resume)
    problem = damage(path) if path.is_dir() else "there is no such folder"
    if problem:
        whole = [str(c) for c in checkpoints(output) if not damage(c)]
        raise InputError(
            Problem(
                setting="resume", message=f"cannot continue from {path}: {problem}",
                fix=f"use --resume {whole[-1]} or --resume auto" if whole else "start anew with --resume never --overwrite",
            )
        )  # fmt: skip
    return path, []


def rotate(output: str | Path, keep: int, best: int | None) -> None:
    """Delete old checkpoints: the ``keep`` newest and the one of step ``best`` stay. Damaged ones are not counted, nor deleted."""
    whole = [c for c in checkpoints(output) if (c / MANIFEST).exists()]
    for folder in whole[:-keep]:
        if step_of(folder) != best:
            shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """fsync a file or a folder; Windows cannot open folders, and needs no sync of them."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
