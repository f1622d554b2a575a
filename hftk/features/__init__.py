"""Encode each split once: the main process encodes for all others, and later runs on the same rows read the
result.

Large splits are cached on disk (``data.cache``) under a fingerprint of everything the features depend on, and
are mapped into memory, so that the processes of a machine share one copy. Small splits, and those of tasks
without a fingerprint, are sent from the main process to the others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.console import capture_notes, note
from hftk.features import cache as store
from hftk.features.cache_key import make_key, size_of
from hftk.features.ragged import NotCompact, compact
from hftk.launch import alone, on_main
from hftk.task import Features, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hftk.task import Rows

LEAST_BYTES = 2**23
"""Rows below this size are encoded in a few seconds, and not kept on disk."""


def encode(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
) -> Features:
    """Call ``task.encode`` on one process of the run, or read what an earlier run encoded. All processes call
    this with the same rows.

    ``facts["cache"]`` is "written" or "read" where the disk cache is used.
    """
    asked: dict[str, Any] = {"max_length": max_length, "training": training}
    if alone():
        return _encode_or_read(task, rows, tokenizer, asked)[1]
    path, features, how, lines = on_main(_encode_for_all, task, rows, tokenizer, asked)
    for line in lines:
        note(line)
    if features is not None:
        return features
    if path is None:
        return task.encode(rows, tokenizer, **asked)
    found = store.read(path, verify=False)
    if found is not None:
        return _with_cache_fact(found[0], how)
    # Another machine, which does not see the folder: the cache of its own is filled by whoever is first.
    return _encode_or_read(task, rows, tokenizer, asked)[1]


def _encode_for_all(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any]
) -> tuple[Path | None, Features | None, str, list[str]]:
    """Encode on the main process. Returns the file of the features, or the features, or neither; "written" or
    "read"; and the lines that were noted."""
    with capture_notes() as lines:
        path, features = _encode_or_read(task, rows, tokenizer, asked)
    if path is not None:
        return path, None, features.facts["cache"], lines
    try:
        return None, compact(features), "", lines
    except NotCompact:
        return None, None, "", lines


def _encode_or_read(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any]
) -> tuple[Path | None, Features]:
    """Return the features, and their file where they are on disk."""
    cache = store.folder_of(task.config.data.cache)
    key = (
        make_key(task, rows, tokenizer, **asked)
        if cache is not None and size_of(rows) >= LEAST_BYTES
        else None
    )
    if cache is None or key is None:
        return None, task.encode(rows, tokenizer, **asked)
    path = cache / f"{key}.safetensors"
    found = store.read(path)
    if found is not None:
        features, lines = found
        for line in lines:
            note(line)
        note(f"tokens: {_kind(asked)} rows: read from the cache (--data.cache)")
        return path, _with_cache_fact(features, "read")
    with capture_notes() as lines:
        features = task.encode(rows, tokenizer, **asked)
    try:
        kept = store.write(path, compact(features), lines)
    except NotCompact:
        return None, features
    except OSError as error:
        note(
            f"tokens: {_kind(asked)} rows: the cache cannot be written: {error.strerror or error}"
            " (--data.cache)"
        )
        return None, features
    found = store.read(path) if kept else None
    return (path, _with_cache_fact(found[0], "written")) if found is not None else (None, features)


def _with_cache_fact(features: Features, how: str) -> Features:
    return replace(features, facts={**features.facts, "cache": how})


def _kind(asked: dict[str, Any]) -> str:
    return "training" if asked["training"] else "evaluation"
