"""Encoding a split once: by the main process for all others, and for later runs on the same rows.

Large sets are kept on disk (``data.cache``) under a name that follows from everything the features depend on, and are mapped into
memory, so that the processes of a machine share one copy. Small ones, and those of tasks that cannot tell what they depend on, go
from the main process to the others.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.console import heard, note
from hftk.features import cache as store
from hftk.features.cache_key import make_key, size_of
from hftk.features.ragged import NotCompact, compact
from hftk.launch import alone, launched, on_main, wait_for_all
from hftk.task import Features, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hftk.task import Rows

LEAST_BYTES = 2**23
"""Rows below this size are encoded in a few seconds, and not kept on disk."""


def encode(task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool) -> Features:
    """As ``task.encode``, but each split is encoded by one process of the run, and a large one not at all where a run before has
    done it. All processes call this with the same rows.

    ``facts["cache"]`` says, where the disk is used, whether the features were written to it or read from it.
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
    return _marked(_read_everywhere(path, task, rows, tokenizer, asked), how)


def _encode_for_all(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any]
) -> tuple[Path | None, Features | None, str, list[str]]:
    """What the main process hands on: the folder of the features, or themselves, or neither; how it came by them; and what it
    noted."""
    with heard() as lines:
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
    """The features, and their folder where they are on disk."""
    cache = store.folder_of(task.config.data.cache)
    key = make_key(task, rows, tokenizer, **asked) if cache is not None and size_of(rows) >= LEAST_BYTES else None
    if cache is None or key is None:
        return None, task.encode(rows, tokenizer, **asked)
    path = cache / key
    found = store.read(path)
    if found is not None:
        features, lines = found
        for line in lines:
            note(line)
        note(f"tokens: {_kind(asked)} rows were encoded before; they are read from the cache (--data.cache)")
        return path, _marked(features, "read")
    with heard() as lines:
        features = task.encode(rows, tokenizer, **asked)
    try:
        kept = store.write(path, compact(features), lines)
    except NotCompact:
        return None, features
    except OSError as error:
        note(f"tokens: the encoded {_kind(asked)} rows cannot be kept: {error.strerror or error} (--data.cache)")
        return None, features
    found = store.read(path) if kept else None
    return (path, _marked(found[0], "written")) if found is not None else (None, features)


def _read_everywhere(
    path: Path, task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any]
) -> Features:
    """Every process reads what the main one has on disk; a machine that does not see it encodes the rows once for itself."""
    from accelerate.utils import gather_object

    first, machine = launched().local_rank == 0, os.environ.get("GROUP_RANK", "0")
    found = store.read(path, verify=first)
    seen = gather_object([(machine, found is not None)])
    blind = {name for name, sees in seen if not sees}
    if not blind:
        assert found is not None
        return found[0]
    note(f"tokens: the cache is not seen on {len(blind)} other machines, and each encodes the rows for itself (--data.cache DIR for one that all see)")  # fmt: skip
    here = first and machine in blind
    own, features = _encode_or_read(task, rows, tokenizer, asked) if here else (None, None)
    wait_for_all()
    paths = dict(gather_object([(machine, own)] if own is not None else []))
    found = found or (store.read(paths[machine], verify=False) if machine in paths else None)
    return features or (found[0] if found else task.encode(rows, tokenizer, **asked))


def _marked(features: Features, how: str) -> Features:
    return replace(features, facts={**features.facts, "cache": how})


def _kind(asked: dict[str, Any]) -> str:
    return "training" if asked["training"] else "judged"
