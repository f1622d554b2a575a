"""The folder of a saved adapter: what is in it, and the way back to the model below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.config.problems import InputError, Problem

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ADAPTER = "adapter_config.json"
BASE_CONFIG = "base_config.json"
"""The config of the model below, as it was trained: labels, thresholds, vocabulary, quantization. Not called
config.json: a folder with that name in it is taken by transformers for a model of its own weights."""
BASE = "base"
"""Folder inside the output for a model that was made on the spot and lies below an adapter."""
QUANTIZATION = "base_quantization"
"""Field of that config: the settings of ``model.quantization``."""
ROUNDED = "base_rounded"
"""Field of that config where the adapter makes up for the rounding of the quantized weights, and so belongs
to these alone: ``unquantized``, the names of the layers that were left out."""


def has_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and not the weights of a model."""
    path = Path(folder).expanduser()
    return (path / ADAPTER).is_file() and not (path / "config.json").is_file()


def save_config(model: Any, folder: Path) -> None:
    """Beside a saved adapter: the config and generation settings of the model below, without which its
    outputs mean nothing."""
    from hftk.models import sharded  # which loads torch; the command line reads folders without

    base = model.get_base_model()
    kept = base.config.to_dict() | {"architectures": [sharded.class_name(base)]}
    kept.pop("quantization_config", None)
    (folder / BASE_CONFIG).write_text(
        json.dumps(kept, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8"
    )
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form with nothing filled in


def read_base_config(folder: str | Path) -> dict[str, Any]:
    """What :func:`save_config` wrote; {} for an adapter of other origin."""
    path = Path(folder).expanduser() / BASE_CONFIG
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def saved_config(folder: str | Path) -> PretrainedConfig | None:
    """The config of the model below an adapter as it was trained; None for an adapter of other origin."""
    from transformers import AutoConfig

    made = read_base_config(folder)
    if not made:
        return None
    return type(AutoConfig.for_model(made["model_type"])).from_dict(made)


def base_name(folder: str | Path) -> tuple[str, str | None]:
    """What the model below a saved adapter was loaded from, and its revision.

    A relative path counts from the working directory. A base that was made on the spot is kept inside of the
    run's folder, and moves with it.

    Raises:
        InputError: the adapter does not name it, or it is a folder that is gone.
    """
    path = Path(folder).expanduser()
    made = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
    name, revision = made.get("base_model_name_or_path"), made.get("revision")
    if not name:
        raise InputError(
            Problem(
                setting="model.name",
                message=f"{path / ADAPTER} does not say which model it belongs to",
                fix="write the name into its base_model_name_or_path",
            )
        )
    inside = (
        [parent / BASE for parent in (path, *path.resolve().parents[:2])] if Path(name).name == BASE else []
    )
    own = [place for place in inside if place.parent.name == Path(name).parent.name]
    for place in (*own, Path(name).expanduser(), *inside):
        if place.exists():
            return str(place), revision
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        message = f"{path} is an adapter for the model in {name}, and there is nothing"
        raise InputError(
            Problem(
                setting="model.name",
                message=message,
                fix=(
                    "bring it back, or write where it is now into base_model_name_or_path of"
                    f" {path / ADAPTER}"
                ),
            )
        )
    return str(name), revision
