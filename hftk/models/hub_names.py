"""Where a model comes from: a Hub id, a folder, a folder with nothing but a GGUF file, or such a file; and
why it cannot be read."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from hftk.config import InputError, ModelConfig, Problem
from hftk.models.adapter_files import has_adapter

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNLOADABLE = (
    OSError,
    ValueError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    EOFError,
    ArithmeticError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises for files that are missing, damaged, of another model or of none."""


def from_pretrained(auto: Any, name: str | Path, **arguments: Any) -> Any:
    """Call ``auto.from_pretrained`` for a config, a tokenizer or a model, without ever running code from its
    folder.

    Every load goes through here: with ``trust_remote_code`` left out, transformers would ask on the standard
    input.
    """
    return auto.from_pretrained(name, trust_remote_code=False, **arguments)


def from_config(auto: Any, made: PretrainedConfig, **arguments: Any) -> Any:
    """Call ``auto.from_config``: a new model, without ever running code that its config names."""
    return auto.from_config(made, trust_remote_code=False, **arguments)


def read_generation_config(folder: str | Path) -> Any:
    """The generation settings in a folder, which name no code."""
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(folder)


def read_config(config: ModelConfig) -> PretrainedConfig:
    """The transformers config of a model that exists, as it was saved.

    Raises:
        InputError: no such model, or one whose config cannot be read.
    """
    from transformers import AutoConfig

    def load(name: str, **arguments: Any) -> PretrainedConfig:
        file = arguments.get("gguf_file")
        if file is not None:
            return deepcopy(_read_gguf(name, file, (Path(name) / file).stat().st_mtime_ns))
        return from_pretrained(AutoConfig, name, **arguments)

    made: PretrainedConfig = load_named(config, load)
    return made


@lru_cache(maxsize=4)
def _read_gguf(folder: str, file: str, changed: int) -> PretrainedConfig:
    """The config in a GGUF file, which takes transformers 5.23 many seconds to find: it goes through the
    whole vocabulary."""
    from transformers import AutoConfig

    made: PretrainedConfig = from_pretrained(AutoConfig, folder, gguf_file=file)
    return made


def load_named(config: ModelConfig, load: Any) -> Any:
    """Call ``load(name, **arguments)`` with what transformers has to be told of ``config.name``.

    Raises:
        InputError: ``load`` found no such model, or files that cannot be read.
    """
    assert config.name is not None
    path = Path(config.name)
    arguments: dict[str, Any] = {}
    name = config.name
    if path.suffix == ".gguf" and path.is_file():
        name, arguments["gguf_file"] = str(path.parent), path.name
    elif path.is_dir():
        gguf = sorted(path.glob("*.gguf"))
        if gguf and not (path / "config.json").exists():
            arguments["gguf_file"] = gguf[0].name
        elif not (path / "config.json").exists() and not has_adapter(path):
            inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise InputError(
                Problem(
                    setting="model.name",
                    message=f"expected a folder with config.json, weights and tokenizer; {name} has {inside}",
                    fix="name the folder that a run or save_pretrained wrote",
                )
            )
    else:
        arguments["revision"] = config.revision or "main"
    try:
        return load(name, **arguments)
    except UNLOADABLE as error:
        raise InputError(Problem(setting="model.name", **explain(config.name, error))) from error


def explain(name: str, error: Exception) -> dict[str, str]:
    """``message`` and ``fix`` of a model or tokenizer that cannot be loaded."""
    text = reason(error)
    if "trust_remote_code" in str(error):
        return {
            "message": f"{name} needs Python code of its own (auto_map), which hftk does not run",
            "fix": "use a model whose architecture is part of transformers",
        }
    if isinstance(error, UnpicklingError):
        text = (
            "its pytorch_model.bin is damaged, or holds objects other than tensors, which hftk does not load"
        )
    elif not isinstance(error, (OSError, ValueError, ImportError)):
        text = f"its files do not fit together ({text})"
    if Path(name).exists():
        fix = (
            'pip install "hftk[gguf]"'
            if isinstance(error, ImportError) and "gguf" in str(error)
            else "check the folder's files"
        )
        return {"message": f"{name} cannot be loaded: {text}", "fix": fix}
    return {
        "message": f"there is no folder {name}, and as a Hub id it cannot be loaded: {text}",
        "fix": (
            "check the spelling and the network (HF_HUB_OFFLINE, HF_ENDPOINT); for a private model: hf auth"
            " login. Without a network: --model.name FOLDER of a downloaded model, or --model.size tiny for"
            " one made on the spot"
        ),
    }


def reason(error: Exception) -> str:
    """What an exception says, in one line: the last one where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if lines[0].endswith(":") else lines[0]
