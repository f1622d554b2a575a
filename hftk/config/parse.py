"""Command line and YAML to a config: the recipe's CONFIG < every ``--config FILE.yaml`` in turn < the flags.

All mistakes are collected and raised together as one :class:`~hftk.config.InputError`. The reading of flags
and files and the merging are hftk's own: jsonargparse, which converts the single values, stops at the first
error, takes abbreviations, lets a ``--config`` that stands last win over flags, and replaces a dictionary
given in YAML where it merges one given by flags.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from hftk.config import ALTERNATIVES, InputError, Problem
from hftk.config.familiar_names import advise, correct, did_you_mean, extra_problems, targets
from hftk.config.settings import Setting, WrongValue, convert, expected, format_help, read_settings
from hftk.config.training_arguments import SECRET
from hftk.config.yaml_file import (
    Entry,
    Given,
    dump_changed,
    dump_config,
    print_changed,
    print_config,
    read_entries,
    read_value,
    save_config,
)
from hftk.console import note
from hftk.redaction import REDACTED, redact_text

__all__ = [
    "dump_changed",
    "dump_config",
    "format_help",
    "load_config",
    "parse",
    "print_changed",
    "print_config",
    "save_config",
]

Config = TypeVar("Config")

REMOVED = frozenset({"train.fused_layers"})
"""Settings of earlier versions, which a file may still name: ignored with a note."""

_NUMBER = re.compile(r"-\.?\d")
_DASHES = "-\N{EN DASH}\N{EM DASH}"

_EITHER_OR: tuple[tuple[str, ...], ...] = (
    *ALTERNATIVES,
    ("data.validation", "data.validation_fraction"),
    ("data.test", "data.test_fraction"),
)
"""Settings of which one, given on a higher level, unsets the others of lower levels."""

_COMPANIONS: Mapping[str, tuple[str, ...]] = {
    "data.train": ("data.validation", "data.test"),
    "data.path": ("data.subset",),
    "model.name": ("model.revision",),
    "model.size": ("model.architecture", "model.tokenizer", "model.initialization", "model.config"),
}
"""Settings that mean something only beside the first one, and go back to their defaults when it is unset."""

_FITTED: Mapping[str, tuple[str, ...]] = {
    "data.sample": ("data.validation_fraction", "data.test_fraction"),
    # A learning rate for a model made on the spot would ruin a pre-trained one, which needs fewer epochs and
    # has a longer context.
    "model.size": ("train.learning_rate", "train.epochs", "train.max_length"),
}
"""Settings that were chosen for the first one, and go back with it too; but what was given on a higher level
than it stays."""


def parse(
    config: Config, argv: Sequence[str] | None = None, *, description: str = "", prog: str | None = None
) -> Config:
    """``config`` with the YAML files and flags of ``argv`` (default: the process's) laid over it.

    ``config`` is the recipe's CONFIG: a frozen dataclass of dataclasses. A flag is ``--section.name VALUE``
    or ``--section.name=VALUE``; one that is true or false needs no value, and ``--no-section.name`` makes it
    false. Dictionaries are merged key by key, everything else is replaced; of settings that exclude each
    other (:data:`hftk.config.ALTERNATIVES`) the one on the highest level stays.

    Raises InputError with every mistake at once, and SystemExit(0) after printing the help for ``--help`` or
    ``-h``.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not {"-h", "--help"}.isdisjoint(argv):
        sys.stdout.write(format_help(config, description, prog))
        raise SystemExit(0)
    reading = _Reading(read_settings(config))
    flags, files = reading.read_flags(argv)
    levels = [reading.read_file(file) for file in files]
    for name, value in {name: value for level in levels for name, value in level.items()}.items():
        if REDACTED in str(value) and name not in flags:
            message = "the file was saved without the secret in this setting"
            reading.complain(
                name, message, f"type the value again: --{name} VALUE", reading.places.get(name, "")
            )
    return reading.merge(config, [*levels, flags])


def load_config(config: Config, path: str | Path) -> Config:
    """``config`` with the YAML file at ``path`` laid over it, as by ``--config``. Raises InputError with
    every mistake."""
    reading = _Reading(read_settings(config))
    return reading.merge(config, [reading.read_file(path)])


@dataclass
class _Reading:
    """The settings that there are, and what was found wrong so far."""

    settings: Mapping[str, Setting]
    problems: list[Problem] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    """Names that could not be read, and those that were probably meant: no second complaint about these."""
    places: dict[str, str] = field(default_factory=dict)
    """Name to the file and line that set it last; "" for flags."""

    def complain(self, name: str, message: str, fix: str = "", where: str = "") -> None:
        message = f"{message} ({where})" if where else message
        self.problems.append(Problem(setting=name, message=redact_text(message), fix=redact_text(fix)))
        self.failed.update(filter(None, [name, *targets(fix)]))

    def find(self, name: str) -> tuple[Setting | None, list[str]]:
        """The setting that a dotted name stands for, and the keys inside it if it is a dictionary."""
        if name in self.settings:
            return self.settings[name], []
        for item in self.settings.values():
            if item.mapping is not None and name.startswith(f"{item.name}.") and not name.endswith("."):
                return item, name[len(item.name) + 1 :].split(".")
        return None, []

    def sections(self) -> list[str]:
        names = (name.split(".")[:-1] for name in self.settings)
        return list(dict.fromkeys(".".join(parts[: n + 1]) for parts in names for n in range(len(parts))))

    def complain_unknown(self, name: str, where: str = "", message: str = "there is no such setting") -> None:
        if name in self.sections():
            inside = next(known for known in self.settings if known.startswith(f"{name}."))
            fix = advise(name, self.settings) or f"for example --{inside}; --help lists them all"
            self.complain(name, "expected one of its settings, not the whole section", fix, where)
            return
        known = [*self.settings, *self.sections(), *([] if where else ["config"])]
        for item in self.settings.values():
            start, rest = _cut(name, item.name.count(".") + 1)
            if item.mapping is not None and rest and get_close_matches(start, [item.name], cutoff=0.8):
                known.append(f"{item.name}.{rest}")  # the dictionary's name is misspelt: --data.column.text
        self.complain(name, message, correct(name, known) or "--help lists all settings", where)

    def put(self, level: dict[str, Any], item: Setting, keys: Sequence[str], given: Given) -> None:
        """Convert what was given and store it in ``level``, or complain."""
        name = ".".join([item.name, *keys])
        try:
            if item.mapping is not None and not keys:
                self.put_mapping(level, item, given)
                return
            inner = given
            for key in reversed(keys[1:]):
                inner = Given(value={key: inner.value}, where=given.where)
            value = convert(item.mapping if keys else item.hint, inner)
        except WrongValue as error:
            self.complain(name, error.message, error.fix, given.where)
            return
        self.places[name] = given.where
        if keys:
            level[item.name] = _merged(level.get(item.name) or {}, {keys[0]: value})
        else:
            level[item.name] = value

    def put_mapping(self, level: dict[str, Any], item: Setting, given: Given) -> None:
        if isinstance(given.value, Mapping):
            level.setdefault(item.name, {})
            for key, value in given.value.items():
                self.put(level, item, [str(key)], Given(value=value, where=given.where))
        elif given.value is not None or not given.where:  # a key of a file with nothing below it
            raise WrongValue(
                f"expected a mapping, found {given.text or given.value!r}", f"use --{item.name}.NAME VALUE"
            )

    # --- files

    def read_file(self, path: str | Path) -> dict[str, Any]:
        """The level of one YAML file: name of a setting to its value."""
        level: dict[str, Any] = {}
        try:
            self.read_entries(level, read_entries(path), "")
        except InputError as error:
            self.problems.extend(error.problems)
        return level

    def read_entries(self, level: dict[str, Any], entries: Iterable[Entry], prefix: str) -> None:
        for entry in entries:
            name = f"{prefix}{entry.key}"
            item, keys = self.find(name)
            if name in self.sections():
                if entry.entries is not None:
                    self.read_entries(level, entry.entries, f"{name}.")
                elif entry.given.value is not None:
                    self.complain(name, "expected settings as `name: value`", where=entry.given.where)
            elif name in REMOVED:
                note(f"{name}: ignored, this version has no such setting ({entry.given.where})")
            elif item is None:
                self.complain_unknown(name, entry.given.where)
            elif item.mapping is not None and not keys and entry.entries is not None:
                level.setdefault(item.name, {})
                for inner in entry.entries:
                    self.put(level, item, [inner.key], inner.given)
            else:
                self.put(level, item, keys, entry.given)

    # --- flags

    def read_flags(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The level of the flags, and the files named by ``--config``."""
        level: dict[str, Any] = {}
        files: list[str] = []
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            name, equals, text = word.lstrip(_DASHES).partition("=")
            if not _is_flag(word) or not name:
                self.complain_leftover(word)
                continue
            item, keys = self.find(name)
            if name == "config" or item is not None or not word.startswith("--"):
                most = len(rest) if item is not None and item.is_list and not keys else 1
            else:
                most = len(rest)  # an unknown setting takes its values along
            values = [text] if equals else _take(rest, most)
            if not word.startswith("--"):
                self.complain_unknown(
                    name, message=f"a setting begins with two hyphens, found {word.partition('=')[0]!r}"
                )
            elif name == "config" and item is None:
                files += values
                if not values:
                    self.complain("config", "expected a YAML file, found nothing", "--config FILE.yaml")
            elif item is None:
                self.read_negation(level, name, values)
            elif values:
                self.put(level, item, keys, _given(values))
            elif item.is_bool and not keys:
                level[item.name] = True
            else:
                fix = f"--{name} VALUE (--{name}=VALUE for one that begins with a hyphen)"
                self.complain(
                    name, f"expected {expected(item.mapping if keys else item.hint)}, found no value", fix
                )
        return level, files

    def read_negation(self, level: dict[str, Any], name: str, values: Sequence[str]) -> None:
        """``--no-overwrite``, or else a name that nobody knows."""
        item = self.settings.get(name.removeprefix("no-")) if name.startswith("no-") else None
        if item is None or not item.is_bool:
            self.complain_unknown(name)
        elif values:
            self.complain(
                name, f"takes no value, found {values[0]!r}", f"use --{name} alone, or --{item.name} true"
            )
        else:
            level[item.name] = False

    def complain_leftover(self, word: str) -> None:
        name, equals, _ = word.partition("=")
        message = f"expected --NAME VALUE, found {name if SECRET.search(name) else word!r:.60} on its own"
        if word.endswith((".yaml", ".yml")):
            self.complain("", message, f"for a file of settings: --config {word}")
        elif equals and name in self.settings:
            self.complain("", message, did_you_mean([name]))
        else:
            self.complain("", message, "quote a value that has spaces" if word.strip() else "")

    # --- levels

    def merge(self, config: Config, levels: Iterable[Mapping[str, Any]]) -> Config:
        """``config`` with the levels laid over it, the lowest first. Raises InputError if anything at all is
        wrong."""
        values = {name: item.value for name, item in self.settings.items()}
        heights: dict[str, int] = {}
        for height, level in enumerate(levels, 1):
            self.unset_alternatives(values, level, heights)
            for name, value in level.items():
                values[name] = _merged(values[name], value)
                heights[name] = height
        merged: Config = _rebuild(config, values)
        known = [*self.settings, "config"]
        found = [*extra_problems(values.get("train.extra") or {}, known)]
        found += merged.problems() if hasattr(merged, "problems") else ()
        for problem in found:
            if self.failed.isdisjoint([problem.setting, *targets(problem.message)]):
                where = self.places.get(problem.setting, "")
                self.problems.append(
                    replace(problem, message=f"{problem.message} ({where})") if where else problem
                )
        if self.problems:
            raise InputError(*self.problems)
        return merged

    def unset_alternatives(
        self, values: dict[str, Any], level: Mapping[str, Any], heights: Mapping[str, int]
    ) -> None:
        """Unset in ``values``, the lower levels, what excludes a setting of ``level``; ``heights``: the level
        that set each last, 0 for the recipe."""
        for group in _EITHER_OR:
            for name in group:
                if level.get(name) is None or (name.endswith("_fraction") and not level[name]):
                    continue
                for rival in group:
                    if rival != name and values.get(rival) is not None:
                        values[rival] = None
                        fitted = [
                            n for n in _FITTED.get(rival, ()) if heights.get(n, 0) <= heights.get(rival, 0)
                        ]
                        for companion in (*_COMPANIONS.get(rival, ()), *fitted):
                            if companion in values:
                                values[companion] = self.settings[companion].default


def _is_flag(word: str) -> bool:
    return word[:1] in tuple(_DASHES) and len(word) > 1 and not _NUMBER.match(word)


def _take(rest: list[str], most: int) -> list[str]:
    """Remove up to ``most`` values from the front of ``rest``: what stands before the next flag."""
    taken: list[str] = []
    while rest and len(taken) < most and not _is_flag(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _given(values: Sequence[str]) -> Given:
    return read_value(values[0]) if len(values) == 1 else Given(value=list(values))


def _cut(name: str, parts: int) -> tuple[str, str]:
    """A dotted name in two: its first ``parts`` parts, and the rest."""
    found = name.split(".")
    return ".".join(found[:parts]), ".".join(found[parts:])


def _merged(old: Any, new: Any) -> Any:
    """``new`` over ``old``: mappings key by key at every depth, anything else replaced."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


def _rebuild(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of ``config`` with the values at their dotted names."""
    inner = {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}
    changed = {name: value for name, value in inner.items() if "." not in name}
    for section in dict.fromkeys(name.partition(".")[0] for name in inner if "." in name):
        changed[section] = _rebuild(getattr(config, section), values, f"{prefix}{section}.")
    return replace(config, **changed)
