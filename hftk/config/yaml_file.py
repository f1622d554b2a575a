"""YAML files of settings: read with the line of every entry, written so that reading gives the same values.

The dialect is YAML with the plain values of YAML 1.2: ``1e-3`` is a number, ``no`` and ``2024-01-01`` are
text, ``010`` is not an octal number. What is written reads the same under YAML 1.1.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hftk.config import InputError, Problem, to_dict
from hftk.config.familiar_names import did_you_mean
from hftk.config.training_arguments import SECRET
from hftk.redaction import redact

_PLAIN: Mapping[str, tuple[str, str]] = {
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^[-+]?(?:0|[1-9](?:_?[0-9])*)$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:[0-9](?:_?[0-9])*\.(?:[0-9](?:_?[0-9])*)?(?:[eE][-+]?[0-9]+)?|\.[0-9](?:_?[0-9])*(?:[eE][-+]?[0-9]+)?"
        r"|[0-9](?:_?[0-9])*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    "tag:yaml.org,2002:merge": (r"^<<$", "<"),
}
"""Tag to the pattern of its plain form and the characters with which it begins."""


FLOW_WIDTH = 110
"""Characters after which a line of the settings that a run shows is broken."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # the stubs call it an instance variable


class _Dumper(yaml.SafeDumper):
    """Quotes text that reads as something else in either version of YAML, or as none on a command line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_pattern, _first) in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), ["" if c == "\0" else c for c in _first])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?i:none)$"), ["n", "N"])


@dataclass(frozen=True, kw_only=True)
class Given:
    """One value as it was given, before it meets the type of its setting."""

    value: Any
    """What it is as YAML: 5, 1e-3, True, None, text, a list or a mapping."""
    text: str | None = None
    """The characters themselves where they were not quoted; None for quoted text, lists and mappings."""
    where: str = ""
    """Such as "run.yaml, line 3"; "" for flags."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One ``key: value`` of a file."""

    key: str
    given: Given
    entries: tuple[Entry, ...] | None = None
    """The entries of a value that is a mapping, else None."""


def read_value(text: str) -> Given:
    """A value as typed on a command line, read as YAML; text that is not valid YAML stands for itself."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if value is None and text.strip() not in ("~", "null", "Null", "NULL"):
        value = text  # empty, or a comment to YAML
    return Given(value=value, text=text)


def read_entries(path: str | Path) -> tuple[Entry, ...]:
    """The entries of a YAML file; none for an empty one.

    Raises InputError, with the line, for a file that cannot be read, is not UTF-8 or not YAML, holds anything
    but ``name: value`` at its top, or gives a key twice.
    """
    loader = None
    try:
        loader = _Loader(_read_text(Path(path)))
        node = loader.get_single_node()
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            return ()
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else f"the single value {node.value!r:.60}"
            raise _error(
                path, node.start_mark.line, f"expected lines of the form `name: value`, found {kind}"
            )
        if twice := list(_duplicates(node, path, set())):
            raise InputError(*twice)
        return tuple(_entries(loader, node, path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        says = ", ".join(filter(None, (error.context, error.problem)))
        fix = "indent with spaces, not with tabs" if "'\\t'" in says else ""
        raise _error(path, mark.line if mark else 0, f"is not valid YAML: {says}", fix) from None
    except (yaml.YAMLError, ValueError) as error:
        raise _error(path, None, f"is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise _error(path, None, "is not valid YAML: it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()


def _error(path: str | Path, line: int | None, message: str, fix: str = "") -> InputError:
    where = str(path) if line is None else f"{path}, line {line + 1}"
    return InputError(Problem(setting="config", message=f"{where}: {message}", fix=fix))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start)
        raise _error(path, line, "expected UTF-8 text", "save the file as UTF-8") from None
    except FileNotFoundError:
        others: dict[str, str] = {}
        with contextlib.suppress(OSError):
            others = {p.name: str(p) for p in path.parent.glob("*.y*ml")}
        near = [others[name] for name in difflib.get_close_matches(path.name, others, n=1, cutoff=0.7)]
        raise _error(path, None, "there is no such file", did_you_mean(near, "")) from None
    except IsADirectoryError:
        raise _error(
            path, None, "expected a YAML file, found a folder", f"try --config {path / 'config.yaml'}"
        ) from None
    except (OSError, ValueError) as error:
        raise _error(path, None, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _duplicates(node: yaml.Node, path: str | Path, seen: set[int]) -> Iterator[Problem]:
    """A problem for every key that a mapping, at any depth, gives twice. YAML readers keep the last one in
    silence."""
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                message = (
                    f"{path}, line {line}: {key.value!r} is given twice, first in line {lines[key.value]}"
                )
                yield Problem(setting="config", message=message, fix="leave out one of the two")
            lines[key.value] = line
        yield from _duplicates(value, path, seen)


def _entries(loader: _Loader, node: yaml.MappingNode, path: str | Path) -> Iterator[Entry]:
    loader.flatten_mapping(node)
    for key, value in node.value:
        where = f"{path}, line {key.start_mark.line + 1}"
        plain = isinstance(value, yaml.ScalarNode) and value.style is None
        given = Given(
            value=loader.construct_object(value, deep=True), text=value.value if plain else None, where=where
        )
        if not isinstance(key, yaml.ScalarNode):
            raise _error(
                path, key.start_mark.line, "expected the name of a setting, found a list or a mapping"
            )
        inner = tuple(_entries(loader, value, path)) if isinstance(value, yaml.MappingNode) else None
        yield Entry(key=key.value, given=given, entries=inner)


def dump_config(config: Any) -> str:
    """The config as YAML, in the order of its fields, non-ASCII text as it is; entries that look like secrets
    are left out."""
    values = redact(_plain(to_dict(config)))
    extra = values.get("train", {}).get("extra") if isinstance(values.get("train"), dict) else None
    if extra:
        values["train"]["extra"] = _without_secrets(extra)
    return _dump(values, allow_unicode=True)


def dump_changed(config: Any, recipe: Any) -> str:
    """What differs from the defaults of the config's class, or was changed from ``recipe``, as YAML with a
    line or two per section; what ``config`` merely leaves out of the recipe is not told, nor are secrets. ""
    where nothing differs."""
    found = redact(_plain(_changed(config, type(config)(), recipe)))
    if "extra" in found.get("train", {}):
        found["train"]["extra"] = _without_secrets(found["train"]["extra"])
    return _dump(found, allow_unicode=True, default_flow_style=None, width=FLOW_WIDTH) if found else ""


def _changed(config: Any, *others: Any) -> dict[str, Any]:
    """Nested values of ``config`` that differ from those of one of ``others``."""
    found: dict[str, Any] = {}
    for item in fields(config):
        value, rest = getattr(config, item.name), [getattr(other, item.name) for other in others]
        if is_dataclass(value):
            found[item.name] = _changed(value, *rest)
        elif any(value != other for other in rest) and value not in (None, {}):
            found[item.name] = value
    return {name: value for name, value in found.items() if value != {}}


def _dump(
    values: Any, *, allow_unicode: bool, default_flow_style: bool | None = False, width: float = math.inf
) -> str:
    style: dict[str, Any] = {"default_flow_style": default_flow_style, "width": width}
    return str(
        yaml.dump(_plain(values), Dumper=_Dumper, allow_unicode=allow_unicode, sort_keys=False, **style)
    )


def _plain(value: Any) -> Any:
    """Tuples as lists, paths and the like as text: what YAML has a form for."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _without_secrets(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: _without_secrets(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not SECRET.search(str(key))
    }


def print_config(config: Any) -> None:
    """Print :func:`dump_config` to standard output, escaped where the terminal's encoding has no such
    characters."""
    _print(dump_config(config))


def print_changed(config: Any, recipe: Any) -> None:
    """Print :func:`dump_changed` as :func:`print_config` does."""
    _print(dump_changed(config, recipe), default_flow_style=None, width=FLOW_WIDTH)


def _print(text: str, **style: Any) -> None:
    try:
        print(text, end="")
    except UnicodeEncodeError:
        print(_dump(yaml.load(text, Loader=_Loader), allow_unicode=False, **style), end="")


def save_config(config: Any, path: str | Path) -> None:
    """Write :func:`dump_config` to ``path`` as UTF-8; given back with ``--config`` it makes an equal
    config."""
    Path(path).write_text(dump_config(config), encoding="utf-8", newline="\n")
