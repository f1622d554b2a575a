"""Which files a path means: a file, a folder or a glob; which split each belongs to; what is wrong where
there is none."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.data.tables import did_you_mean
from hftk.launch.files import hash_file

FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
"""File ending to format."""
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""File ending to compression."""
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Word in a file's name to split."""

_NOT_DATA = ("readme", "license", "licence")
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_LISTED = 50


@dataclass(frozen=True, kw_only=True)
class File:
    """One file and how to read it."""

    path: Path
    format: str
    """A value of :data:`FORMATS`."""
    setting: str
    """The setting that named it, for messages."""
    delimiter: str = ","
    """Between the fields of csv and tsv."""
    quoted: bool = True
    """Whether fields of csv and tsv may stand in double quotes."""


def split_of(name: str) -> str | None:
    """The split that a name speaks of by a word of its own (``test_2016.jsonl``, ``dialogsum.dev``), or None.

    ValueError if it speaks of two.
    """
    found = {SPLIT_WORDS[word] for word in re.split(r"[\W\d_]+", name.lower()) if word in SPLIT_WORDS}
    if len(found) > 1:
        raise ValueError(f"{name} speaks of {' and '.join(sorted(found))}")
    return found.pop() if found else None


def format_of(path: Path) -> str | None:
    """The format by the file's ending, looking below a compression's ending; None where it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def find_files(pattern: str, setting: str, format: str) -> tuple[list[File], Path, list[str]] | None:
    """The data files that a file name, folder or glob stands for, sorted by path; None if nothing of that
    name exists.

    Hidden files, READMEs and licences are left out, and so are files of other formats where some are of a
    known one.

    Returns:
        The files; the folder below which their names tell splits (for one file: the file itself); remarks.
    """
    path = Path(pattern).expanduser()
    found: list[Path]
    if path.is_file():
        chosen = format if format != "auto" else format_of(path)
        if chosen is None:
            raise InputError(_unknown_format([path], path, setting))
        return [File(path=path, format=chosen, setting=setting)], path, []
    if path.is_dir():
        root, found = path, sorted(path.rglob("*"))
    elif glob.has_magic(pattern):
        root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    else:
        return None
    found = [file for file in found if file.is_file() and _is_data(file.relative_to(root))]
    files, remarks = _of_one_format(found, path, setting, format)
    return files, root, remarks


def by_split(files: Sequence[File], root: Path) -> dict[str, list[File]] | None:
    """Split to files by the words in their names, or in the names of the folders below ``root``; None if no
    name has one.

    InputError if some names have one and some do not.
    """
    splits: dict[str, list[File]] = {}
    without: list[File] = []
    for file in files:
        try:
            split = _split_of_path(file.path, root)
        except ValueError as error:
            raise InputError(_ask_for_splits(file.setting, f"cannot tell its split: {error}")) from None
        if split is None:
            without.append(file)
        else:
            splits.setdefault(split, []).append(file)
    if splits and without:
        named = [file.path for group in splits.values() for file in group]
        message = (
            f"some file names in {root} say train, validation or test ({_names(named, root)}) "
            f"and some do not ({_names([file.path for file in without], root)})"
        )
        raise InputError(_ask_for_splits(files[0].setting, message))
    return splits or None


def missing(pattern: str, setting: str) -> Problem:
    """What to say about a path that does not exist: how far it does, and the nearest name beside it."""
    path = Path(pattern).expanduser()
    if glob.has_magic(pattern):
        return Problem(
            setting=setting,
            message=f"expected files, found none that match {pattern}",
            fix="check the folder and the ending",
        )
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        message = (
            f"expected a file, folder or glob, found nothing at {pattern} (the folder {path.parent} does not"
            " exist)"
        )
        return Problem(
            setting=setting, message=message, fix=f"{parent.resolve()} does exist; check the rest of the path"
        )
    names = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    hint = did_you_mean(path.name, names)
    fix = (
        f"{parent.resolve()} holds {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}" if names else ""
    )
    return Problem(
        setting=setting, message=f"expected a file, folder or glob, found nothing at {pattern}{hint}", fix=fix
    )


def file_facts(files: Sequence[File], *, hashed: bool = True) -> list[dict[str, Any]]:
    """Path, bytes and SHA-256 of every file; of more than 50 files one entry for all (the hash is over names
    and hashes)."""
    facts: list[dict[str, Any]] = []
    for file in files:
        digest = hash_file(file.path) if hashed else None
        facts.append(
            {
                "path": str(file.path),
                "bytes": file.path.stat().st_size,
                "sha256": digest,
                "format": file.format,
            }
        )
    if len(facts) <= _LISTED:
        return facts
    together = hashlib.sha256(
        "".join(f"{Path(fact['path']).name}\0{fact['sha256']}\n" for fact in facts).encode()
    )
    return [
        {
            "path": str(Path(facts[0]["path"]).parent),
            "files": len(facts),
            "bytes": sum(fact["bytes"] for fact in facts),
            "sha256": together.hexdigest() if hashed else None,
            "format": facts[0]["format"],
        }
    ]


def _of_one_format(found: list[Path], path: Path, setting: str, format: str) -> tuple[list[File], list[str]]:
    known = [file for file in found if format_of(file)]
    if format != "auto":
        found = [file for file in known if format_of(file) == format] or ([] if known else found)
        if not found:
            raise InputError(
                Problem(
                    setting="data.format",
                    message=f"expected {format} files in {path}, found {_names(known, path)}",
                )
            )
        return [File(path=file, format=format, setting=setting) for file in found], []
    formats = sorted({format_of(file) or "" for file in known})
    if not formats:
        raise InputError(_unknown_format(found, path, setting))
    if len(formats) > 1:
        raise InputError(
            Problem(
                setting=setting,
                message=(
                    f"{path} holds files of several formats: {', '.join(formats)} ({_names(known, path)})"
                ),
                fix=f"add --data.format {formats[0]} (or one of the others) to read those and leave the rest",
            )
        )
    others = [file for file in found if file not in set(known)]
    remarks = [f"left out of {path}: {_names(others, path)} (not a known data format)"] if others else []
    return [File(path=file, format=formats[0], setting=setting) for file in known], remarks


def _unknown_format(found: Sequence[Path], path: Path, setting: str) -> Problem:
    endings = ", ".join(FORMATS)
    if not found:
        return Problem(
            setting=setting,
            message=f"expected data files in {path}, found none",
            fix=f"known endings: {endings}",
        )
    return Problem(
        setting=setting,
        message=(
            f"expected a file ending in {endings} (also below .gz, .bz2, .xz, .zst), found"
            f" {_names(found, path)}"
        ),
        fix="add --data.format txt (or jsonl, json, csv, tsv, parquet)",
    )


def _ask_for_splits(setting: str, message: str) -> Problem:
    return Problem(
        setting=setting,
        message=message,
        fix="name each split: --data.train FILE --data.validation FILE --data.test FILE",
    )


def _split_of_path(path: Path, root: Path) -> str | None:
    """By the file's own name, else by the nearest folder below ``root`` that tells."""
    relative = path.relative_to(root)
    return next((split for part in reversed(relative.parts) if (split := split_of(part))), None)


def _is_data(relative: Path) -> bool:
    if any(part.startswith(".") for part in relative.parts) or relative.name in _METADATA:
        return False
    return relative.name.lower().split(".")[0] not in _NOT_DATA


def _names(paths: Sequence[Path], root: Path, most: int = 5) -> str:
    names = [
        path.relative_to(root).as_posix() if path != root and path.is_relative_to(root) else str(path)
        for path in paths
    ]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
