"""Started by ``accelerate launch``, or in one process: trains GPT-2, BERT and T5 under the strategies that are named, and leaves
what they showed in ``FOLDER/<strategy>.pt``.

FSDP2 on a CPU is for tests alone: accelerate would run plain DDP there without a word, and hftk refuses it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
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
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": state_dict,
    }  # fmt: skip
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


def main(folder: Path, strategies: list[str]) -> None:
    gc.freeze()  # see tests/conftest.py
    for strategy in strategies:
        sharded = strategy == "fsdp2"
        found = strategy_runs.run_all(
            fsdp2 if sharded else nullcontext, folder / strategy, CONFIGURED if sharded else {}
        )
        if launched().is_main:
            torch.save(found, folder / f"{strategy}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
