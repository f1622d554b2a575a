"""What of a run's output folder goes to the Hub: an allow-list of files, without anything that names a machine or a person.

Weights and tokenizer are sent as they are; configs, settings, record and report are sent without tokens and without the
folders of this machine. Checkpoints, ``status.json`` and predictions never leave it.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hftk.config import InputError, Problem
from hftk.launch.environment import redact
from hftk.models.adapter_files import ADAPTER, BASE, BASE_CONFIG
from hftk.reports import REPORT, render_html
from hftk.reports.record import RECORD, RunRecord, plain

CARD = "README.md"
SETTINGS = "config.yaml"
WEIGHTS = ("*.safetensors",)
SENT = (
    *WEIGHTS, "*.safetensors.index.json", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "*.spm",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
"""Files that are sent byte by byte."""
SCRUBBED = (
    "config.json", "generation_config.json", ADAPTER, BASE_CONFIG, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json",
)  # fmt: skip
"""JSON files that are sent without paths of this machine."""
MADE = (CARD, SETTINGS, RECORD, REPORT)
"""Files that are made anew from the record."""
PLACES = ("place", "other_place")
"""Columns of a section that say where a row stands."""
PATH_KEY = re.compile(r"(^|_)(path|file|dir|folder)$")
PATH_IN_TEXT = re.compile(r"(?<![\w.:/~\\<>])(?:~|[A-Za-z]:|file://)?[/\\](?:[^\s\"'`:,;()<>|=]*[/\\])?(?=[\w.~-])")
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

    Raises:
        InputError: no weights, a part of them missing, a JSON file that cannot be read, an adapter whose base is a folder
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
    present = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    problems = list(_missing(folder, present))
    files = [File(name=name, content=folder / name) for name in present if matches(name, SENT)]
    for name in present:
        if name in SCRUBBED:
            try:
                values = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                problems.append(_problem(f"expected JSON in {folder / name}: {error}"))
                continue
            if name == ADAPTER:
                problems += _set_base(values, folder, base_model)
            files.append(File(name=name, content=_json(without_folders(values))))
    if problems:
        raise InputError(*problems)
    return files


def left_out(folder: Path) -> list[str]:
    """What lies in the folder and is not sent; folders end in a slash."""
    entries = sorted(folder.iterdir())
    return [e.name + "/" * e.is_dir() for e in entries if e.is_dir() or not matches(e.name, (*SENT, *SCRUBBED, *MADE))]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file name fits one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def public(record: RunRecord, *, samples: bool) -> RunRecord:
    """The record without tokens and folders of this machine; without ``samples`` also without any row of the data."""
    told = {
        name: without_folders(redact(plain(getattr(record, name))), in_text=True)
        for name in ("command", "config", "choices", "model", "data", "extra")
    }
    record = replace(record, **told, analysis=[_without_places(section) for section in record.analysis])
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
        {k: without_folders(redact(v), in_text=True) if k in PLACES else v for k, v in row.items()} if isinstance(row, Mapping) else row
        for row in rows
    ]  # fmt: skip
    return {**section, "rows": told}


def _without_examples(value: Any) -> Any:
    """Facts without the entries that hold rows."""
    if isinstance(value, Mapping):
        return {k: _without_examples(v) for k, v in value.items() if k != "examples"}
    return [_without_examples(item) for item in value] if isinstance(value, list) else value


def without_folders(value: Any, *, in_text: bool = False, key: str = "") -> Any:
    """Plain ``value`` with the last part alone of every absolute path (or one below the home folder).

    Without ``in_text`` only entries are changed whose name says that they hold a path, such as ``name_or_path``: the files of a
    tokenizer are full of slashes that mean something else.
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


def _missing(folder: Path, present: list[str]) -> list[Problem]:
    """What a folder lacks to be a model: its config, its weights, or some of their parts."""
    fix = "name the --output folder of a run that has finished"
    if "config.json" not in present and ADAPTER not in present:
        return [_problem(f"expected config.json or {ADAPTER} in {folder}, found neither", fix)]
    weights = [name for name in present if matches(name, WEIGHTS)]
    if not weights:
        return [_problem(f"expected weights (*.safetensors) in {folder}, found none", fix)]
    parts: set[str] = set()
    for index in (name for name in present if name.endswith(".safetensors.index.json")):
        try:
            parts |= set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return [_problem(f"expected an index of weights in {folder / index}, found something else", fix)]
    lost = sorted(parts - set(weights))
    return [_problem(f"expected all parts of the weights in {folder}, missing: {', '.join(lost)}", fix)] if lost else []


def _set_base(values: dict[str, Any], folder: Path, base_model: str | None) -> list[Problem]:
    """Let an adapter name a base that others can load."""
    if base_model and base_model != values.get("base_model_name_or_path"):
        values |= {"base_model_name_or_path": base_model, "revision": None}
    base = str(values.get("base_model_name_or_path") or "")
    made_here = Path(base).name == BASE and (folder / BASE).is_dir()
    elsewhere = is_absolute(base) or base.startswith(".") or base.count("/") > 1
    if not base or made_here or elsewhere or Path(base).is_dir() or (folder / base).is_dir():
        message = f"the adapter's base is a folder of this machine, which nobody else can load: {base or 'none'}"
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
