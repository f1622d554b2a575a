"""Checkpoints of sharded runs. Of FSDP2, each process writes its share of weights and optimizer, and any
number of processes reads them.

The format is torch's (``torch.distributed.checkpoint``). torch unpickles the index of such a checkpoint and
the plain values in it, which could execute anything; here only what such files are made of is accepted.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

FOLDER = "shards"
INDEX = ".metadata"
_DCP = "torch.distributed.checkpoint"
ACCEPTED = {
    f"{_DCP}.metadata": (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "StorageMeta",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{_DCP}.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),
}
"""What an index is made of, beside plain values and the types of tensors."""


OF_DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
"""What DeepSpeed's own files hold beside tensors and plain values."""


def check_deepspeed(folder: Path) -> None:
    """Look through what DeepSpeed wrote in a checkpoint, and will unpickle: RuntimeError where more is in it
    than it writes."""
    for path in sorted(folder.glob("global_step*/*.pt")):
        strange = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - OF_DEEPSPEED)
        if strange:
            raise RuntimeError(f"{path} asks for {strange[0]}, which no such file needs")


def save(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write this process's shards below ``folder``, and on the main one their index. All processes call this.

    Weights that are frozen below an adapter are left out.

    Raises:
        OSError: on all processes, where the disk of one of them does not take its share.
    """
    options = _options(model)
    state = {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    try:
        checkpoint.save(state, checkpoint_id=folder / FOLDER)
    except CheckpointException as error:
        raise OSError(_first(error)) from error


def load_model(model: Any, folder: Path) -> None:
    """Take the weights that :func:`save` left in ``folder``, whatever the number of processes was."""
    options = _options(model)
    state = {"model": get_model_state_dict(model, options=options)}
    _load(state, folder)
    set_model_state_dict(model, state["model"], options=options)


def load_optimizer(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Take the state of the optimizer likewise."""
    options = _options(model)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    _load(state, folder)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def _options(model: Any) -> StateDictOptions:
    adapted = hasattr(model, "peft_config")
    return StateDictOptions(ignore_frozen_params=adapted, strict=not adapted)


def _load(state: dict[str, Any], folder: Path) -> None:
    try:
        checkpoint.load(state, storage_reader=_Reader(folder / FOLDER), planner=_Planner())
    except CheckpointException as error:
        raise RuntimeError(f"the shards in {folder} cannot be read: {_first(error)}") from error


def _first(error: CheckpointException) -> str:
    """The first reason of what torch raises on all processes, which is no Exception."""
    rank, (reason, _) = next(iter(error.failures.items()))
    return f"process {rank}: {reason}"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in ACCEPTED.get(module, ()):
            raise pickle.UnpicklingError(
                f"the index of a checkpoint asks for {module}.{name}, which no such file needs"
            )
        return super().find_class(module, name)


class _Reader(checkpoint.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        _Unpickler(io.BytesIO((Path(self.path) / INDEX).read_bytes())).load()
        return super().read_metadata(*args, **kwargs)


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # raises UnpicklingError where it is more than a plain value
        value.seek(0)
        super().load_bytes(read_item, value)
