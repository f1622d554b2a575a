"""Activations in main memory: what moves, what stays, and that it changes no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hftk
from hftk import offload
from hftk.config import DataConfig, InputError, ModelConfig, TrainConfig


def gradients(asked: bool, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.GELU(), torch.nn.Linear(512, 64), torch.nn.Dropout(0.1))
    rows = torch.randn(2048, 64)
    with offload.offloading(asked):
        made = torch.utils.checkpoint.checkpoint(layers, rows, use_reentrant=False) if checkpointing else layers(rows)
        loss = made.square().mean()
    loss.backward()
    return {name: p.grad for name, p in layers.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_has_the_same_bits(checkpointing: bool) -> None:
    plain, moved = gradients(False, checkpointing), gradients(True, checkpointing)
    assert len(plain) == 4 and all(torch.equal(plain[name], moved[name]) for name in plain)


def test_activations_move_and_weights_and_small_tensors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []
    unpack = offload._Offload._unpack

    def spy(self: Any, packed: Any) -> torch.Tensor:
        if not isinstance(packed, torch.Tensor):
            moved.append(tuple(packed[1].shape))
        return unpack(self, packed)

    monkeypatch.setattr(offload._Offload, "_unpack", spy)
    gradients(True)
    assert moved and all(shape[0] == 2048 for shape in moved) and (512, 64) not in moved


def test_without_a_gpu_it_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = hftk.CausalLMConfig(
        data=DataConfig(sample="python_docs", max_rows=100), model=ModelConfig(size="tiny", vocab_size=300),
        train=TrainConfig(activation_offload=True), output=str(tmp_path / "out"),
    )  # fmt: skip
    task = hftk.CausalLM(config)
    splits = hftk.load_splits(config.data, task)
    model, tokenizer = hftk.load_model(config.model, task, splits)
    with pytest.raises(InputError, match="activation_offload: expected a GPU"):
        hftk.fit(task, model, tokenizer, splits, config)
