"""What an error of memory says."""

import pytest

from hftk.config import ModelConfig, RunConfig, TrainConfig
from hftk.config.problems import OutOfMemory
from hftk.training.out_of_memory import explain_oom, suggest_settings


def test_an_error_of_memory_says_what_to_type_and_others_pass_through() -> None:
    config = RunConfig(train=TrainConfig(per_device_batch_size=8, global_batch_size=32))
    with pytest.raises(OutOfMemory, match="per_device_batch_size 4") as told, explain_oom(config):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to"
            " allocate 8 bytes"
        )
    assert "hftk plan RECIPE" in str(told.value)
    with pytest.raises(RuntimeError, match=r"^shape$"), explain_oom(config):
        raise RuntimeError("shape")


def test_only_settings_that_would_change_something_are_suggested() -> None:
    small = RunConfig(
        model=ModelConfig(size="tiny"),
        train=TrainConfig(per_device_batch_size=1, gradient_checkpointing=True),
    )
    assert suggest_settings(small) == [
        "--train.max_length N",
        "hftk plan RECIPE, with the same settings, counts what each of them needs",
    ]
