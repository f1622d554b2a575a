"""Checkpoints that are whole or do not exist: sealed under another name, then renamed; verified before they
are used.

A folder ``checkpoints/checkpoint-<step>`` comes into being by one rename, after all of its files and a
manifest of their sizes and SHA-256 are on the disk; and it ends by one rename too. A damaged one is never
deleted: it is named, and left to its owner.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.launch.files import hash_file
from hftk.launch.files import sync as sync

MANIFEST = "manifest.json"
FOLDER = "checkpoints"
STAGING = ".partial"
REMOVED = ".removed"
LOADED = frozenset({".safetensors", ".bin", ".pt", ".pth", ".json"})
"""Endings of files that a continued run, or whoever loads the model, may take for a part of the
checkpoint."""
_NAME = re.compile(r"checkpoint-(\d+)")


def seal(staged: Path, final: Path, facts: dict[str, Any]) -> None:
    """Make the staged files durable, write the manifest, and rename the folder into place.

    ``facts`` (step, processes, versions ...) go into the manifest. A whole ``final`` from before is replaced,
    a damaged one is kept beside it as ``damaged-<its name>``. Raises OSError where the disk refuses; older
    checkpoints are then untouched.
    """
    (staged / MANIFEST).unlink(missing_ok=True)  # of an attempt that was cut off here
    files = sorted(p for p in staged.rglob("*") if p.is_file())
    listed = {
        str(p.relative_to(staged).as_posix()): {"bytes": p.stat().st_size, "sha256": hash_file(p)}
        for p in files
    }
    for path in files:
        sync(path)
    manifest = staged / MANIFEST
    manifest.write_bytes(manifest_bytes({**facts, "files": listed}))
    sync(manifest)
    for folder in sorted((p for p in staged.rglob("*") if p.is_dir()), reverse=True):
        sync(folder)
    sync(staged)
    if final.exists() and damage(final):
        os.replace(final, _unused(final.with_name(f"damaged-{final.name}")))
    replaced = _set_aside(final) if final.exists() else None
    os.replace(staged, final)
    sync(final.parent)
    if replaced:
        _delete(replaced)


def damage(folder: Path, *, contents: bool = True) -> str:
    """What is wrong with a checkpoint, in words; "" if it holds what the manifest says: every file by its
    size and SHA-256, and no other that would be loaded.

    Without ``contents`` the files are not read: names and sizes alone are compared.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        files = {
            name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()
        }
        if raw != manifest_bytes({key: value for key, value in manifest.items() if key != "sha256"}):
            return "its manifest is not what was written (SHA-256 differs)"
    except FileNotFoundError:
        return "it has no manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is {'no file' if path.exists() else 'missing'}"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if contents and hash_file(path) != digest:
                return f"{name} is not what was written (SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    # Hidden ones are not loaded: .gitattributes and .cache/ come with a checkpoint that was downloaded from
    # the Hub.
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix in LOADED)
    shown = (path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
    added = next((name for name in shown if name not in files and name != MANIFEST), None)
    return f"{added} was added after it was written" if added else ""


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """The manifest as a file, with its own SHA-256 in it: not one byte of it can change unseen."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1).encode()


def checkpoints(output: str | Path) -> list[Path]:
    """Checkpoint folders of a run, oldest step first."""
    folders = (p for p in (Path(output) / FOLDER).glob("checkpoint-*") if p.is_dir())
    found = [(int(m[1]), p) for p in folders if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def newest_whole(output: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a line about each damaged one passed over on the way (they are
    left alone)."""
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
                    setting="resume",
                    message="no checkpoint is whole: " + "; ".join(passed),
                    fix="start anew with --overwrite, or name another checkpoint by --resume PATH",
                )
            )
        return chosen, passed
    path = Path(resume)
    problem = damage(path) if path.is_dir() else "there is no such folder"
    if problem:
        whole = [str(c) for c in checkpoints(output) if not damage(c)]
        raise InputError(
            Problem(
                setting="resume",
                message=f"cannot continue from {path}: {problem}",
                fix=f"use --resume {whole[-1]} or --resume auto"
                if whole
                else "start anew with --resume never --overwrite",
            )
        )
    return path, []


def rotate(output: str | Path, keep: int, best: int | None) -> None:
    """Delete old checkpoints: the ``keep`` newest and the one of step ``best`` stay.

    Damaged ones are not counted (by the sizes of their files: reading all of them at every save would cost
    too much), nor deleted (by their contents).
    """
    whole = [c for c in checkpoints(output) if not damage(c, contents=False)]
    for folder in whole[:-keep]:
        if step_of(folder) != best and not damage(folder):
            _delete(_set_aside(folder))


def clear(output: str | Path) -> Path:
    """The folder of checkpoints, made if absent, without what a run left that was killed while it saved or
    deleted one."""
    folder = Path(output) / FOLDER
    for left in [folder / STAGING, *folder.glob(f"{REMOVED}-*")]:
        _delete(left)
    folder.mkdir(parents=True, exist_ok=True)
    sync(
        folder.parent
    )  # whoever made the folder: checkpoints in it count only if its own name outlives a power cut
    return folder


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is about to be deleted, so that a half deleted one is never taken for a
    damaged one, nor after a power cut, which may bring the old name back if it was not synced."""
    gone = folder.with_name(f"{REMOVED}-{folder.name}")
    _delete(gone)
    folder.replace(gone)
    sync(folder.parent)
    return gone


def _delete(folder: Path) -> None:
    """A checkpoint that its owner has put elsewhere, with a link in its place, stays where it is: the link
    goes."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _unused(path: Path) -> Path:
    """``path``, or the first of ``path-2``, ``path-3`` ... that does not exist."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2)))
    return next(p for p in names if not p.exists())
