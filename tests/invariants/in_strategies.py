"""``in_strategies.py FOLDER ddp NAME;NAME fsdp2 NAME``, started by ``accelerate launch``: does the named runs
of ``strategy_runs`` under each strategy, and leaves what they showed in ``FOLDER/<strategy>.pt``.

FSDP2 on a CPU is for tests alone: accelerate would run plain DDP there without a word, and hftk refuses it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))

import strategy_runs

from hftk.launch import launched, launcher


@contextmanager
def fsdp2(state_dict: str = "SHARDED_STATE_DICT") -> Iterator[None]:
    """Inside, accelerate shards models on a CPU as it does on GPUs."""
    from accelerate import DistributedType, PartialState
    from accelerate.state import AcceleratorState

    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": state_dict,
    }
    with mock.patch.dict(os.environ, wanted), mock.patch.object(launcher, "downgrades", lambda **found: []):
        launched.cache_clear()
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        try:
            yield
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            launched.cache_clear()


CONFIGURED = {"train": {"extra": {"accelerator_config": {"use_configured_state": True}}}}
"""Trainer is to take the state that :func:`fsdp2` made."""


def main(folder: Path, strategy: str, names: list[str]) -> None:
    gc.freeze()  # see tests/conftest.py
    found: dict[str, Any] = {}
    for name in names:
        under, extra = (fsdp2(), CONFIGURED) if strategy == "fsdp2" else (nullcontext(), {})
        with under:
            found[name] = act(name, folder / strategy, extra)
            is_main = launched().is_main
        if is_main:
            torch.save(found, folder / f"{strategy}.pt")


def act(name: str, folder: Path, extra: dict[str, Any]) -> Any:
    """``begin CASE`` and ``go on CASE`` share a folder, for what is begun by another number of processes."""
    word, _, case = name.rpartition(" ")
    if word == "begin":
        return strategy_runs.begin(case, folder / case, extra, strategy_runs.ADAM)
    if word == "go on":
        return strategy_runs.go_on(case, folder / case, extra, strategy_runs.ADAM)
    if name == "interrupted":
        return strategy_runs.interrupted(folder / name, extra)
    if name == "shared out":
        parts: list[Any] = [None, None]
        launched()
        torch.distributed.all_gather_object(parts, strategy_runs.shared_out())
        return parts
    return strategy_runs.run(name, folder / name, extra)


if __name__ == "__main__":
    for strategy, names in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        main(Path(sys.argv[1]), strategy, names.split(";"))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
