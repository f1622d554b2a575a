"""What of a run's output folder goes to the Hub: an allow-list of files, without anything that names a
machine or a person.

Weights and tokenizer are sent as they are; configs, settings, record and report are sent without tokens and
without the folders of this machine. Checkpoints, ``status.json`` and predictions never leave it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hftk.config import InputError, Problem
from hftk.launch.environment import redact
from hftk.models.adapter_files import ADAPTER, BASE, BASE_CONFIG
from hftk.redaction import redact as redact_secrets
from hftk.reports import REPORT, render_html
from hftk.reports.record import RECORD, RunRecord, plain

CARD = "README.md"
SETTINGS = "config.yaml"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
"""Names the files of weights that are in several parts."""
SENT = (
    *WEIGHTS,
    INDEX,
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "source.spm",
    "target.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files that are sent byte by byte."""
SCRUBBED = (
    "config.json",
    "generation_config.json",
    ADAPTER,
    BASE_CONFIG,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""JSON files that are sent without secrets and without paths of this machine."""
SECRET_KEYS = (
    "token",
    "use_auth_token",
    "auth_token",
    "hub_token",
    "hf_token",
    "access_token",
    "api_key",
    "password",
    "secret",
)
"""Entries of these files that are not sent."""
MADE = (CARD, SETTINGS, RECORD, REPORT)
"""Files that are made anew from the record."""
FINISHED = "name the --output folder of a run that has finished"
PLACES = ("place", "other_place")
"""Columns of a section that say where a row stands."""
PATH_KEY = re.compile(r"(^|_)(path|file|dir|folder)$")
PATH_IN_TEXT = re.compile(
    r"(?<![\w.:/~\\<>])(?:~|[A-Za-z]:|file://)?[/\\](?:[^\s\"'`:,;()<>|=]*[/\\])?(?=[\w.~-])"
)
"""The folders of an absolute path, "/home/me/" in "/home/me/texts.csv"; no part of a URL, and no "1/3"."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the repository: where its bytes come from."""

    name: str
    content: Path | bytes

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


def collect(folder: Path, record: RunRecord, card: str, base_model: str | None = None) -> list[File]:
    """The files to send, in the order of their names; ``record`` is one that :func:`public` has been through.

    Args:
        base_model: Hub id that replaces the base of an adapter.

    Raises: InputError: no weights, a part of them missing, a JSON file that cannot be read, an adapter whose
        base is a folder
            of this machine.
    """
    files = model_files(folder, base_model)
    files += [
        File(name=CARD, content=card.encode()),
        File(name=RECORD, content=_json(plain(record.to_dict()))),
        File(name=REPORT, content=render_html(record).encode()),
    ]
    if record.config:
        files.append(File(name=SETTINGS, content=_yaml(record.config)))
    return sorted(files, key=lambda file: file.name)


def model_files(folder: Path, base_model: str | None = None) -> list[File]:
    """Weights, tokenizer and configs: what loading takes. Raises as :func:`collect`."""
    present = sorted(entry.name for entry in folder.iterdir() if is_own_file(entry))
    parts, problems = _parts(folder, present)
    problems = problems or _missing(folder, present, parts)
    files = [File(name=name, content=folder / name) for name in present if name in (*SENT, *parts)]
    for name in present:
        if name in SCRUBBED:
            try:
                values = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                problems.append(_problem(f"expected JSON in {folder / name}: {error}"))
                continue
            if name == ADAPTER:
                problems += _set_base(values, folder, base_model)
            files.append(
                File(
                    name=name,
                    content=_json(without_folders(redact_secrets(_without_secrets(values), by_name=False))),
                )
            )
    if problems:
        raise InputError(*problems)
    return files


def left_out(folder: Path) -> list[str]:
    """What lies in the folder and is not sent; folders end in a slash."""
    entries = sorted(folder.iterdir())
    sent = (
        *SENT,
        *SCRUBBED,
        *MADE,
        *_parts(folder, [entry.name for entry in entries if is_own_file(entry)])[0],
    )
    return [e.name + "/" * e.is_dir() for e in entries if e.name not in sent or not is_own_file(e)]


def is_own_file(path: Path) -> bool:
    """Whether a path is a regular file and no link: a link may lead to any file of this machine."""
    return path.is_file() and not path.is_symlink()


def public(record: RunRecord, *, samples: bool) -> RunRecord:
    """The record without tokens and folders of this machine; without ``samples`` also without any row of the
    data."""
    told = {
        name: without_folders(redact(plain(getattr(record, name))), in_text=True)
        for name in ("command", "config", "choices", "model", "data", "extra")
    }
    record = replace(
        record,
        **told,
        analysis=[redact_secrets(_without_places(section), by_name=False) for section in record.analysis],
    )
    if samples:
        return record
    shown = [section for section in record.analysis if section.get("kind") in ("matrix", "reliability")]
    return replace(record, samples=[], analysis=_without_examples(shown), data=_without_examples(record.data))


def _without_places(section: dict[str, Any]) -> dict[str, Any]:
    """A section whose rows say which file they stand in, without its folder."""
    rows = section.get("rows")
    if not isinstance(rows, list):
        return section
    told = [
        {k: without_folders(redact(v), in_text=True) if k in PLACES else v for k, v in row.items()}
        if isinstance(row, Mapping)
        else row
        for row in rows
    ]
    return {**section, "rows": told}


def _without_examples(value: Any) -> Any:
    """Facts without the entries that hold rows."""
    if isinstance(value, Mapping):
        return {k: _without_examples(v) for k, v in value.items() if k != "examples"}
    return [_without_examples(item) for item in value] if isinstance(value, list) else value


def without_folders(value: Any, *, in_text: bool = False, key: str = "") -> Any:
    """Plain ``value`` with the last part alone of every absolute path (or one below the home folder).

    Without ``in_text`` only entries are changed whose name says that they hold a path, such as
    ``name_or_path``: the files of a tokenizer are full of slashes that mean something else.
    """
    if isinstance(value, Mapping):
        return {k: without_folders(v, in_text=in_text, key=str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [without_folders(item, in_text=in_text, key=key) for item in value]
    if not isinstance(value, str):
        return value
    if is_absolute(value) and (in_text or PATH_KEY.search(key)):
        return (PureWindowsPath(value) if "\\" in value else PurePosixPath(value)).name
    return PATH_IN_TEXT.sub("", value) if in_text else value


def is_absolute(text: str) -> bool:
    """Whether a text as a whole is an absolute path, or one below the home folder, on POSIX or on Windows."""
    if "\n" in text or "://" in text or not re.match(r"~?/[\w.~]|~?\\|[A-Za-z]:[\\/]", text):
        return False
    return " -" not in text  # a command line


def _parts(folder: Path, present: list[str]) -> tuple[list[str], list[Problem]]:
    """The files of weights that the index names, and what is wrong with it; none without an index."""
    if INDEX not in present:
        return [], []
    try:
        parts = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        foreign = [part for part in parts if not re.fullmatch(r"model-\d+-of-\d+\.safetensors", part)]
    except (ValueError, KeyError, AttributeError, TypeError):
        return [], [
            _problem(f"expected an index of weights in {folder / INDEX}, found something else", FINISHED)
        ]
    if foreign:
        message = (
            f"expected parts such as model-00001-of-00002.safetensors in {folder / INDEX}, found {foreign[0]}"
        )
        return [], [_problem(message, FINISHED)]
    return parts, []


def _missing(folder: Path, present: list[str], parts: list[str]) -> list[Problem]:
    """What a folder lacks to be a model: its config, its weights, or some of their parts."""
    if "config.json" not in present and ADAPTER not in present:
        return [_problem(f"expected config.json or {ADAPTER} in {folder}, found neither", FINISHED)]
    if not parts and not any(name in present for name in WEIGHTS):
        return [
            _problem(f"expected weights ({' or '.join(WEIGHTS)}, no links) in {folder}, found none", FINISHED)
        ]
    lost = [part for part in parts if part not in present]
    message = f"expected all parts of the weights in {folder}, missing: {', '.join(lost)}"
    return [_problem(message, FINISHED)] if lost else []


def _without_secrets(value: Any) -> Any:
    """The values of a JSON file without tokens. Names such as ``eos_token`` mean tokens of a text and are
    kept."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if not (k in SECRET_KEYS and isinstance(v, str | bool))}
        return {k: _without_secrets(v) for k, v in kept.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def _set_base(values: dict[str, Any], folder: Path, base_model: str | None) -> list[Problem]:
    """Let an adapter name a base that others can load."""
    if base_model and base_model != values.get("base_model_name_or_path"):
        values |= {"base_model_name_or_path": base_model, "revision": None}
    base = str(values.get("base_model_name_or_path") or "")
    made_here = Path(base).name == BASE and (folder / BASE).is_dir()
    elsewhere = is_absolute(base) or base.startswith(".") or base.count("/") > 1
    if not base or made_here or elsewhere or Path(base).is_dir() or (folder / base).is_dir():
        message = (
            f"the adapter's base is a folder of this machine, which nobody else can load: {base or 'none'}"
        )
        return [
            Problem(
                setting="publish.base_model",
                message=message,
                fix="name the base on the Hub: --publish.base_model HUB_ID",
            )
        ]
    return []


def _json(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def _yaml(values: Any) -> bytes:
    import yaml

    return yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True, width=120).encode()


def _problem(message: str, fix: str = "") -> Problem:
    return Problem(setting="", message=message, fix=fix)
