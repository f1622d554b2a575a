"""Memory that runs out is foretold and explained, with settings that would fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hftk import console
from hftk.config import ModelConfig, TrainConfig
from hftk.launch.exits import meaning
from hftk.planning import Setup, out_of_memory, plan
from hftk.planning.shapes import planned_config
from hftk.problems import OutOfMemory, is_out_of_memory
from hftk.tasks.causal_lm import CausalLM, CausalLMConfig

MANY_ROWS = 64


@pytest.fixture
def task() -> CausalLM:
    train = TrainConfig(per_device_batch_size=MANY_ROWS, max_length=128, precision="fp32")
    return CausalLM(CausalLMConfig(model=ModelConfig(size="tiny", vocab_size=512, config={"n_layer": 1}), train=train))


def on_meta(task: CausalLM) -> Any:
    import transformers

    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(planned_config(task.config.model, task))


def too_little(task: CausalLM) -> int:
    """Four fifths of what the plan counts."""
    made = plan(task.config, task, Setup(device_memory=1e12, processor=True), search=False)
    return int(0.8 * made.peak)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True), (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."), True), (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False), (OutOfMemory("said"), True),
    ],
)  # fmt: skip
def test_errors_that_mean_memory_are_told_from_others(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_a_real_allocation_that_fails_is_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    state, code, message = meaning(caught.value)
    assert (state, code) == ("failed", 1) and message.startswith("out of memory: ") and "hftk plan" in message


def test_it_ends_in_the_plans_numbers_and_settings_that_fit(task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "free_memory", lambda: too_little(task))
    with (
        pytest.raises(OutOfMemory) as caught,
        out_of_memory.explained(task.config, task, on_meta(task), "fp32"),
    ):
        raise MemoryError
    text = str(caught.value)
    assert "the plan counts" in text and "activations" in text and "GB were there" in text
    named = [line.strip().split()[0] for line in text.splitlines() if line.startswith("    --")]
    assert named[0] == "--train.per_device_batch_size" and 2 <= len(named) <= 3
    assert meaning(caught.value) == ("failed", 1, text)


def test_other_errors_pass(task: CausalLM) -> None:
    with pytest.raises(RuntimeError, match="another"), out_of_memory.explained(task.config, task, on_meta(task), "fp32"):
        raise RuntimeError("another")


def test_it_is_foretold_where_the_plan_sees_it_coming(task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    console.forget()
    monkeypatch.setattr(out_of_memory, "free_memory", lambda: too_little(task))
    said = out_of_memory.foretell(task.config, task, on_meta(task), "fp32")
    assert said is not None and "these would fit:" in said and console.noted() == [said]
    monkeypatch.setattr(out_of_memory, "plan", lambda *a, **k: pytest.fail("planned, which takes seconds"))
    monkeypatch.setattr(out_of_memory, "free_memory", lambda: 10**12)
    assert out_of_memory.foretell(task.config, task, on_meta(task), "fp32") is None
    console.forget()


def test_the_limit_of_a_container_counts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "_CGROUP", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert out_of_memory.free_memory() == 1000
    (tmp_path / "memory.max").write_text("700\n")
    (tmp_path / "memory.current").write_text("200\n")
    assert out_of_memory.free_memory() == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert out_of_memory.free_memory() == 1000
