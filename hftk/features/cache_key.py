"""Fingerprint of the features of a split: it changes with the texts, the tokenizer, the settings, the
versions of libraries and this code, so that a cached file is never stale."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hftk.task import Rows

PACKAGES = (
    "transformers",
    "tokenizers",
    "numpy",
    "datasets",
    "regex",
    "sentencepiece",
    "sacremoses",
    "tiktoken",
    "protobuf",
)
"""Packages whose code has a part in encoding."""
_ROWS = 10_000
_IGNORED = frozenset({"name_or_path", "deprecation_warnings", "verbose", "_tokenizer", "init_kwargs"})
"""Attributes of a tokenizer that change no token, or are handled separately."""


def make_key(
    task: Task, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, max_length: int, training: bool
) -> str | None:
    """Return the fingerprint, or None where not everything that encoding depends on is known."""
    settings = getattr(task, "encoded_by", None)
    if settings is None or not type(task).__module__.startswith("hftk.") or not hasattr(rows, "with_format"):
        return None
    by_task = _json({"task": task.name, "class": type(task).__qualname__, **settings()})
    by_tokenizer = _tokenizer(tokenizer)
    if by_task is None or by_tokenizer is None:
        return None
    call = {
        "max_length": max_length,
        "training": training,
        "python": sys.version,
        "packages": _versions(),
        "code": _code(),
    }
    digest = hashlib.blake2b(digest_size=16)
    for part in (json.dumps(call, sort_keys=True), by_task, by_tokenizer, _rows(rows)):
        digest.update(hashlib.blake2b(part.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def size_of(rows: Rows) -> int:
    """Bytes of the rows in memory, about; 0 for a stream."""
    try:
        table = rows.data
        return int(table.nbytes * (len(rows) / max(1, table.num_rows)))
    except (AttributeError, TypeError):
        return 0


def _rows(rows: Any) -> str:
    """Digest of column names, types and contents in order."""
    import pyarrow as pa

    digest = hashlib.blake2b()
    digest.update(repr((rows.features, len(rows))).encode("utf-8", "surrogatepass"))
    schema = None
    for table in rows.with_format("arrow").iter(batch_size=_ROWS):
        schema = schema or table.schema.remove_metadata()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(table.combine_chunks().cast(schema))
        digest.update(memoryview(sink.getvalue()))
    return digest.hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Everything that decides how a tokenizer of transformers encodes a text, as JSON; None for other
    tokenizers."""
    if not type(tokenizer).__module__.startswith("transformers."):
        return None
    state = {name: value for name, value in vars(tokenizer).items() if name not in _IGNORED}
    parts: dict[str, Any] = {
        "class": type(tokenizer).__qualname__,
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
    }
    parts["state"] = {name: _json(value) for name, value in state.items() if _json(value) is not None}
    parts["settings"] = {
        n: _json(v) for n, v in tokenizer.init_kwargs.items() if n not in _IGNORED and not n.endswith("_file")
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rust = json.loads(backend.to_str())
        rust["truncation"] = rust["padding"] = None  # left from the last call, and set anew by the next
        parts["rust"] = rust
    else:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_vocabulary(folder)
            files = sorted(Path(folder).iterdir())
            parts["files"] = {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}
        parts["added"] = {
            str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()
        }
    return json.dumps(parts, sort_keys=True)


def _json(value: Any) -> str | None:
    """``value`` as JSON, None where JSON cannot hold it."""
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return None


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _code() -> str:
    """Digest of this package's own code."""
    digest = hashlib.blake2b()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
