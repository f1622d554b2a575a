"""Activations in main memory: what moves, what stays, and that it changes no bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import hftk
from hftk.config import DataConfig, InputError, ModelConfig, TrainConfig
from hftk.training import activation_offload


def gradients(asked: bool, checkpointing: bool = False, half: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(64, 512), torch.nn.GELU(), torch.nn.Linear(512, 64), torch.nn.Dropout(0.1)
    )
    rows = torch.randn(2048, 64)
    with activation_offload.offloading(asked, layers), torch.autocast("cpu", torch.bfloat16, enabled=half):
        made = (
            torch.utils.checkpoint.checkpoint(layers, rows, use_reentrant=False)
            if checkpointing
            else layers(rows)
        )
        loss = made.square().mean()
    loss.backward()
    return {name: p.grad for name, p in layers.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_has_the_same_bits(checkpointing: bool) -> None:
    plain, moved = gradients(False, checkpointing), gradients(True, checkpointing)
    assert len(plain) == 4 and all(torch.equal(plain[name], moved[name]) for name in plain)


@pytest.mark.parametrize("half", [False, True])
def test_activations_move_and_weights_and_small_tensors_stay(
    half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do the copies of weights that autocast makes."""
    moved: list[tuple[int, ...]] = []
    unpack = activation_offload._Offload._unpack

    def spy(self: Any, packed: Any) -> torch.Tensor:
        if not isinstance(packed, torch.Tensor):
            moved.append(tuple(packed[1].shape))
        return unpack(self, packed)

    monkeypatch.setattr(activation_offload._Offload, "_unpack", spy)
    gradients(True, half=half)
    assert moved and all(shape[0] == 2048 for shape in moved) and (512, 64) not in moved


def test_an_expanded_mask_stays_and_so_do_weights_turned_over() -> None:
    weight = torch.nn.Parameter(torch.zeros(300, 400))
    shapes = activation_offload.weight_shapes(torch.nn.Linear(400, 300))
    assert not activation_offload.moves(torch.zeros(8, 1, 300, 300).expand(8, 12, 300, 300), shapes)
    assert not activation_offload.moves(weight, shapes) and not activation_offload.moves(weight.T, shapes)
    assert not activation_offload.moves(weight.T.bfloat16(), shapes)
    assert activation_offload.moves(torch.zeros(8, 12, 300, 300), shapes) and not activation_offload.moves(
        torch.zeros(10), shapes
    )


def test_what_no_loss_reads_is_let_go_of() -> None:
    """An operation that saves its own output would be in a cycle with it that no collector sees."""
    layer = torch.nn.Linear(8, 8)
    with activation_offload.offloading(True, layer):
        unread = torch.tanh(layer(torch.zeros(2, 8)))
    storage = weakref.ref(unread.untyped_storage())
    del unread
    gc.collect()
    assert storage() is None


def test_without_a_gpu_it_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    config = hftk.CausalLMConfig(
        data=DataConfig(sample="python_docs", max_rows=100),
        model=ModelConfig(size="tiny", vocab_size=300),
        train=TrainConfig(activation_offload=True),
        output=str(tmp_path / "out"),
    )
    task = hftk.CausalLM(config)
    splits = hftk.load_splits(config.data, task)
    model, tokenizer = hftk.load_model(config.model, task, splits)
    with pytest.raises(InputError, match="activation_offload: expected a GPU"):
        hftk.fit(task, model, tokenizer, splits, config)
