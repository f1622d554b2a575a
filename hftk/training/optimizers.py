"""Optimizers, parameter groups and learning-rate schedules: pure functions of the settings."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch

from hftk.config import InputError, ModelConfig, Problem, TrainConfig
from hftk.launch.launcher import strategy_in_environment
from hftk.models.layers import depths

BITSANDBYTES = ("lion", "adamw_8bit", "paged_adamw_8bit")
"""Optimizers of bitsandbytes."""
EIGHT_BIT_FROM = 4096
"""Elements from which on bitsandbytes keeps the state of a tensor in 8 bits."""


LEARNING_RATES = {"ia3": 3e-3, "prompt_tuning": 3e-2}
"""Default peaks: that of Liu et al. 2022 for IA3, and of PEFT's examples for prompt tuning."""
LORA_LEARNING_RATE = 5e-4
"""Ten times that of full fine-tuning, as Schulman et al. 2025 ("LoRA without regret") found to be best over
many models."""


def peak_learning_rate(config: TrainConfig, model: ModelConfig) -> float:
    """``train.learning_rate``, or the default for an adapter, for pre-trained weights or for a model made on
    the spot."""
    if config.learning_rate or model.adapter.method == "none":
        return config.learning_rate or (5e-5 if model.name is not None else 1e-3)
    return LEARNING_RATES.get(model.adapter.method, LORA_LEARNING_RATE)


def weights_in_words(model: ModelConfig) -> str:
    """What the default learning rate goes by."""
    if model.adapter.method != "none":
        return f"an adapter ({model.adapter.method})"
    return "pre-trained weights" if model.name is not None else "a model made on the spot"


def check_optimizer(config: TrainConfig, model: ModelConfig) -> None:
    """Find what is wrong with optimizer and schedule before anything slow.

    Raises: InputError: an optimizer of bitsandbytes without it, a paged one without a GPU; a lowest learning
        rate above the default peak.
    """
    problems = []
    if config.optimizer in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        problems.append(_missing(config.optimizer))
    if config.optimizer == "paged_adamw_8bit" and not torch.cuda.is_available():
        message = "paged_adamw_8bit moves its state between a GPU and main memory, and there is no GPU"
        problems.append(
            Problem(setting="train.optimizer", message=message, fix="use --train.optimizer adamw_8bit")
        )
    peak = peak_learning_rate(config, model)
    if config.learning_rate is None and config.min_learning_rate > peak:
        kind = weights_in_words(model)
        problems.append(
            Problem(
                setting="train.min_learning_rate",
                message=(
                    f"expected at most the peak, which for {kind} is {peak:g}, found"
                    f" {config.min_learning_rate:g}"
                ),
                fix="lower it, or set --train.learning_rate too",
            )
        )
    if problems:
        raise InputError(*problems)


def _missing(optimizer: str) -> Problem:
    return Problem(
        setting="train.optimizer",
        message=f"{optimizer} comes from bitsandbytes, which is not installed",
        fix='pip install "hftk[quantize]", or use --train.optimizer adamw',
    )


def decayed(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> list[torch.nn.Parameter]:
    """Trained parameters that weight decay and the L1 penalty act on: matrices, not biases and norms."""
    return [p for n, p in parameters if p.requires_grad and _is_matrix(n, p)]


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    # T5 keeps its attention bias as an embedding: (buckets, heads).
    return parameter.dim() >= 2 and "bias" not in name


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for the optimizer: decayed matrices, and biases and norms without decay. Empty groups are
    left out."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return _decay_groups(trained, weight_decay)


def layer_groups(
    model: torch.nn.Module, weight_decay: float, learning_rate: float, layer_decay: float
) -> list[dict[str, Any]]:
    """The groups of each depth (:func:`hftk.models.layers.depths`) with a learning rate of their own, the top
    ones first.

    Each depth has ``layer_decay`` times the rate of the one above (Howard & Ruder 2018; Clark et al. 2020).
    """
    depth, layers = depths(model)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = []
    for at in sorted({depth[name] for name, _ in trained}, reverse=True):
        own = _decay_groups([(n, p) for n, p in trained if depth[n] == at], weight_decay)
        groups += [{**group, "lr": learning_rate * layer_decay ** (layers + 1 - at)} for group in own]
    return groups


def _decay_groups(trained: list[tuple[str, torch.nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    rest = [p for n, p in trained if not _is_matrix(n, p)]
    groups = [
        {"params": decayed(trained), "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def make_optimizer(
    model: torch.nn.Module, config: TrainConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer of ``train.optimizer`` over the trained parameters of ``model``.

    Raises:
        InputError: an optimizer of bitsandbytes without it.
    """
    if config.layer_decay < 1:
        groups = layer_groups(model, config.weight_decay, learning_rate, config.layer_decay)
    else:
        groups = parameter_groups(model, config.weight_decay)
    betas = (config.adam_beta1, config.adam_beta2)
    fused = {"fused": True} if _can_fuse(groups) else {}
    # torch (2.13) has fused kernels for the shards of FSDP2 with Adam alone.
    fused_sgd = {} if strategy_in_environment() == "fsdp" else fused
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, **fused)
        case "adam":
            return torch.optim.Adam(groups, lr=learning_rate, betas=betas, **fused)
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=config.adam_beta1, **fused_sgd)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=learning_rate, momentum=config.adam_beta1)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=learning_rate)
        case "lion" | "adamw_8bit" | "paged_adamw_8bit":
            return _of_bitsandbytes(config.optimizer, model, groups, learning_rate, betas)
    raise InputError(Problem(setting="train.optimizer", message=f"unknown optimizer {config.optimizer}"))


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    """torch's fused kernels exist for plain floating-point tensors on these devices."""
    return all(
        p.device.type in ("cpu", "cuda", "mps") and torch.is_floating_point(p)
        for g in groups
        for p in g["params"]
    )


def _of_bitsandbytes(
    name: str,
    model: torch.nn.Module,
    groups: list[dict[str, Any]],
    learning_rate: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    try:
        optim: Any = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise InputError(_missing(name)) from error
    made = {"lion": optim.Lion, "adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[name]
    if name != "lion":
        # Rare words have few and large gradients, which 8 bits lose (Dettmers et al. 2022, 8-bit Optimizers,
        # section 2.3).
        manager = optim.GlobalOptimManager.get_instance()
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                manager.register_module_override(module, "weight", {"optim_bits": 32})
    optimizer: torch.optim.Optimizer = made(groups, lr=learning_rate, betas=betas)
    return optimizer


def state_bytes(name: str, model: torch.nn.Module) -> int:
    """Bytes that an optimizer of :data:`BITSANDBYTES` keeps for the trained weights of ``model``: one float32
    moment (lion), or two moments of a byte each with a float32 scale for each 256 of them; embeddings and
    small tensors two in float32."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "lion":
        return 4 * sum(p.numel() for p in trained)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    whole = [p for p in trained if id(p) in tables or p.numel() < EIGHT_BIT_FROM]
    rest = sum(p.numel() for p in trained) - sum(p.numel() for p in whole)
    return 8 * sum(p.numel() for p in whole) + 2 * rest + 2 * 4 * (rest // 256)
