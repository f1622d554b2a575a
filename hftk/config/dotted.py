"""Settings by their dotted names, such as ``train.learning_rate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any


def setting(config: Any, name: str) -> Any:
    """The value at a dotted name, such as ``train.learning_rate``; KeyError or AttributeError where there is
    none."""
    for part in name.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """A copy of ``config`` with the nested ``values`` laid over it; dictionaries are merged key by key."""
    changed = {}
    for name, value in values.items():
        old = getattr(config, name)
        if is_dataclass(old) and isinstance(value, Mapping):
            value = override(old, value)
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            value = {**old, **value}
        changed[name] = value
    return replace(config, **changed)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain dictionaries, for YAML and JSON."""
    return asdict(config)
