"""The settings of a config by dotted name: type, meaning, value; their conversion and their ``--help``, by
jsonargparse."""

from __future__ import annotations

import argparse
import difflib
import functools
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from hftk.config.yaml_file import Given

_NONE = ("none", "null", "~")
_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    type(None): "none",
}
_METAVARS: Mapping[Any, str] = {
    int: "N",
    float: "NUMBER",
    bool: "true|false",
    str: "TEXT",
    dict: "VALUE",
    list: "ITEM ...",
    tuple: "ITEM ...",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a config, however deep."""

    name: str
    """Dotted, as it is typed: ``train.learning_rate``."""
    hint: Any
    """Its type."""
    meaning: str
    """The line under the field."""
    value: Any
    """Its value in the recipe's config."""
    default: Any
    """Its value where the class alone decides."""

    @property
    def members(self) -> tuple[Any, ...]:
        """The types of which the value may be one, None last."""
        return members(self.hint)

    @property
    def mapping(self) -> Any:
        """The type of the values if the setting is a dictionary, else None."""
        found = [kind for kind in self.members if (get_origin(kind) or kind) in (dict, Mapping)]
        return (get_args(found[0]) or (str, Any))[1] if found else None

    @property
    def is_bool(self) -> bool:
        return bool in self.members

    @property
    def is_list(self) -> bool:
        return any((get_origin(kind) or kind) in (list, tuple, Sequence) for kind in self.members)


class WrongValue(Exception):
    """A value that is not of its setting's type: what was expected and found, and what to type next."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None last; a type that is no union is its own only member."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(sorted(kinds, key=lambda kind: kind is type(None)))


def read_settings(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Every field of a dataclass that is not a dataclass itself, by dotted name, in order.

    Raises TypeError for an optional dataclass: its fields would have no values to show.
    """
    cls: Any = type(config)
    hints, meanings = get_type_hints(cls), _meanings(cls)
    found: dict[str, Setting] = {}
    for f in fields(config):
        name, value, hint = f"{prefix}{f.name}", getattr(config, f.name), hints[f.name]
        if is_dataclass(value):
            found.update(read_settings(value, f"{name}."))
        elif any(is_dataclass(kind) for kind in members(hint)):
            raise TypeError(
                f"{name} is an optional dataclass: make it a plain one with a field that switches it off"
            )
        else:
            found[name] = Setting(
                name=name, hint=hint, meaning=meanings.get(f.name, ""), value=value, default=_default(f)
            )
    return found


def _default(f: Field[Any]) -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return None if f.default is MISSING else f.default


@functools.cache
def _meanings(cls: Any) -> Mapping[str, str]:
    """Name of a field to the line under it, inherited fields included; what has no source file (a shell) has
    none."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        if is_dataclass(parent):
            try:
                lines = parse_from_object(parent).params
            except (OSError, TypeError):
                continue
            found.update({line.arg_name: " ".join((line.description or "").split()) for line in lines})
    return found


def expected(hint: Any) -> str:
    """A type in words, such as "a number or none"."""
    words = []
    for kind in members(hint):
        origin = get_origin(kind) or kind
        words.append(
            f"one of {', '.join(map(str, get_args(kind)))}"
            if origin is Literal
            else _WORDS.get(origin, str(kind))
        )
    return " or ".join(words)


def show(value: Any) -> str:
    """A value for a message: text in quotes, the rest as it is typed, 60 characters at most."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def convert(hint: Any, given: Given) -> Any:
    """The value of type ``hint`` that was given. Raises WrongValue."""
    kinds = members(hint)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if type(None) in kinds and _is_none(given) and given.text not in choices:
        return None
    if hint is Any:
        return given.value
    for value in _readings(kinds, given):
        if set(kinds) <= {str, type(None)} and isinstance(value, str):
            return value  # jsonargparse would take the quoted text "null" for None
        try:
            return _checker(hint).parse_object({"value": value}, defaults=False, env=False).value
        except argparse.ArgumentError:
            continue
    found = (
        "nothing"
        if given.value is None and not given.text
        else show(given.value if given.text is None else given.text)
    )
    message = f"expected {expected(hint)}, found {found}"
    close = difflib.get_close_matches(
        str(given.value).lower(), {str(c).lower(): c for c in choices}, n=1, cutoff=0.5
    )
    raise WrongValue(message, next((f"did you mean {c}?" for c in choices if [str(c).lower()] == close), ""))


def _is_none(given: Given) -> bool:
    return given.value is None or (given.text or "").lower() in _NONE


def _readings(kinds: Sequence[Any], given: Given) -> Iterator[Any]:
    """What was given may mean, by the types that are asked for: the text as it stands, a YAML value, a list
    of one."""
    value, is_number = given.value, {int, float}.issuperset(set(kinds) - {type(None)})
    if given.text is not None and not is_number and set(kinds) - {type(None)} != {bool}:
        yield given.text
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        yield int(value)
    if value is not None and not (is_number and isinstance(value, str)):  # jsonargparse reads 1:30 as 90
        yield value
    if given.text is not None and any(
        (get_origin(kind) or kind) in (list, tuple, Sequence) for kind in kinds
    ):
        yield [given.text]


@functools.cache
def _checker(hint: Any) -> Any:
    import jsonargparse  # 0.1 s that --help can do without

    parser = jsonargparse.ArgumentParser(exit_on_error=False, print_config=None, add_help=False)
    parser.add_argument("--value", type=hint)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of the description, and words with hyphens whole so that settings can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}".rstrip() for line in text.strip().splitlines())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def format_help(config: Any, description: str = "", prog: str | None = None) -> str:
    """The help of a recipe: every setting with type, meaning and the value that it has in ``config``."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE.yaml] [--SETTING VALUE ...]",
        description=description,
        formatter_class=functools.partial(_Formatter, max_help_position=10),
        epilog=(
            "Flags win over --config files, later files over earlier ones, and these over the defaults shown"
            " here."
        ),
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Settings, some or all, from a YAML file; may be repeated."
    )
    groups: dict[str, Any] = {}
    for item in read_settings(config).values():
        section = item.name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section or "run", _first_line(config, section))
        name = f"--{item.name}.NAME" if item.mapping is not None else f"--{item.name}"
        text = f"{item.meaning} {_shown_default(item)}".strip()
        groups[section].add_argument(name, metavar=metavar(item), help=text.replace("%", "%%"))
    return parser.format_help()


def metavar(item: Setting) -> str:
    """What stands for the value in the help, such as NUMBER or true|false."""
    choices = [
        str(choice) for kind in item.members if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    choices = ["true", "false", *choices] if choices and item.is_bool else choices
    kind = item.members[0]
    return "|".join(choices) or _METAVARS.get(get_origin(kind) or kind, "VALUE")


def _first_line(config: Any, section: str) -> str:
    for part in section.split(".") if section else ():
        config = getattr(config, part)
    lines = (type(config).__doc__ or "").strip().splitlines() if section else []
    return lines[0].replace("``", "") if lines else ""


def _shown_default(item: Setting) -> str:
    if item.value is None and "Default:" in item.meaning:
        return ""
    return f"(default: {item.value if isinstance(item.value, str) else show(item.value)})"
