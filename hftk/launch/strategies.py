"""What a launch config may say of FSDP2 and DeepSpeed, and what hftk's own settings decide; from the
environment alone, no torch.

accelerate hands its config on to the processes as environment variables. What is said there and would not be
done, or would be done in another way than the settings say, stops the run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from hftk.config import Problem, RunConfig
from hftk.launch.launcher import WORLD_SIZE, number_from_environment, strategy_in_environment

PARALLEL = {"TP_SIZE": "tensor", "CP_SIZE": "context", "SP_SIZE": "sequence"}
"""Kinds of parallelism in which several processes work on the same rows."""


def in_words() -> str:
    """How weights are held, as far as a checkpoint depends on it."""
    strategy = strategy_in_environment()
    if strategy == "deepspeed":
        return f"DeepSpeed ZeRO-{zero_stage()} on {number_from_environment(WORLD_SIZE, 1)} processes"
    return "shards of FSDP2" if strategy == "fsdp" else "whole weights on every process"


def sharding(processes: int) -> Literal["none", "ddp", "fsdp", "zero2", "zero3"]:
    """How states are shared out, as ``hftk plan --sharding`` calls it: none, ddp, fsdp, zero2 or zero3."""
    if processes == 1:
        return "none"
    if strategy_in_environment() == "fsdp":
        return "fsdp"
    return "zero3" if zero_stage() == 3 else "zero2" if zero_stage() == 2 else "ddp"


def zero_stage() -> int:
    """The ZeRO stage that DeepSpeed runs with; 0 without it."""
    if strategy_in_environment() != "deepspeed":
        return 0
    stage = _deepspeed_file().get("zero_optimization", {}).get("stage", "auto")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") if stage == "auto" else stage
    return int(stage)


def find_problems(config: RunConfig) -> list[Problem]:
    """What the launch config says and ``config`` does not, or what cannot be had together."""
    strategy = strategy_in_environment()
    own = {"fsdp": _fsdp_problems, "deepspeed": _deepspeed_problems}.get(strategy)
    return [*_general_problems(config), *(own(config) if own else ())]


def device_map_problem(how: str, processes: int) -> Problem | None:
    """Why one model is not spread over the GPUs by ``model.device_map``: they belong to several processes, or
    to FSDP2 or DeepSpeed."""
    strategy = strategy_in_environment()
    if how == "none" or (processes == 1 and not strategy):
        return None
    found = f"{processes} processes" + (
        f" with {'DeepSpeed' if strategy == 'deepspeed' else 'FSDP2'}" if strategy else ""
    )
    return Problem(
        setting="model.device_map",
        message=f"expected one process, which has all GPUs (found: {found}; device_map {how})",
        fix=(
            "for one process type: accelerate launch --num_processes 1; or leave out --model.device_map:"
            " recipes/accelerate/fsdp2.yaml and zero3.yaml share out the weights of a large model over"
            " processes"
        ),
    )


def _general_problems(config: RunConfig) -> Iterator[Problem]:
    problem = device_map_problem(config.model.device_map, number_from_environment(WORLD_SIZE, 1))
    if problem is not None:
        yield problem
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", config.train.precision):
        yield Problem(
            setting="train.precision",
            message=f"is {config.train.precision}, and the launch config says mixed_precision: {precision}",
            fix=f"add --train.precision {precision}, or write mixed_precision: 'no' there",
        )
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", "auto"):
        yield _unheeded(f"gradient_accumulation_steps: {accumulation}", "--train.global_batch_size")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no" and not config.train.torch_compile:
        yield _unheeded(
            f"dynamo_backend: {os.environ['ACCELERATE_DYNAMO_BACKEND'].lower()}", "--train.torch_compile"
        )
    if _is_set("ACCELERATE_USE_MEGATRON_LM"):
        yield Problem(
            setting="",
            message="hftk does not train with Megatron-LM",
            fix="use recipes/accelerate/fsdp2.yaml",
        )
    if _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        for name, kind in PARALLEL.items():
            size = os.environ.get(f"PARALLELISM_CONFIG_{name}", "1")
            if size != "1":
                message = (
                    f"every process trains on rows of its own, and the launch config asks for {kind}"
                    f" parallelism of {size}"
                )
                yield Problem(
                    setting="",
                    message=message,
                    fix="leave it out; recipes/accelerate/fsdp2.yaml shards the weights",
                )


def _fsdp_problems(config: RunConfig) -> Iterator[Problem]:
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        yield Problem(
            setting="",
            message=f"expected fsdp_version: 2 in the launch config, found {version}",
            fix="add --fsdp_version 2 to accelerate launch, or use recipes/accelerate/fsdp2.yaml",
        )
    if _is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        message = (
            "expected fsdp_cpu_ram_efficient_loading: false in the launch config, found true: the model is"
            " judged before training, and all processes but one would judge it without its weights"
        )
        yield Problem(
            setting="",
            message=message,
            fix=(
                "add --fsdp_cpu_ram_efficient_loading false to accelerate launch, or use"
                " recipes/accelerate/fsdp2.yaml"
            ),
        )
    if config.train.optimizer in (
        "lion",
        "adafactor",
    ):  # lion is of bitsandbytes; adafactor fails in torch 2.13
        message = f"{config.train.optimizer} does not know the shards of FSDP2"
        yield Problem(setting="train.optimizer", message=message, fix="use --train.optimizer adamw")


def _deepspeed_problems(config: RunConfig) -> Iterator[Problem]:
    said = _deepspeed_file()
    for section, setting in (("optimizer", "--train.optimizer"), ("scheduler", "--train.schedule")):
        if section in said:
            yield _unheeded(f"a section {section} of DeepSpeed", setting)
    for section in ("fp16", "bf16"):
        if said.get(section, {}).get("enabled", False) is True:
            yield _unheeded(f"{section} of DeepSpeed", "--train.precision")
    if said.get("gradient_accumulation_steps", "auto") not in (1, "auto"):
        yield _unheeded(
            f"gradient_accumulation_steps: {said['gradient_accumulation_steps']}", "--train.global_batch_size"
        )
    clipping = said.get("gradient_clipping", os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "none"))
    if str(clipping) not in ("none", "auto") and float(clipping) != config.train.max_grad_norm:
        yield Problem(
            setting="train.max_grad_norm",
            message=(
                f"is {config.train.max_grad_norm}, and the launch config says gradient_clipping: {clipping}"
            ),
            fix=f"add --train.max_grad_norm {clipping}, or leave it out there",
        )
    if config.train.optimizer == "adafactor":
        message = "adafactor needs matrices as they are, and DeepSpeed cuts them into flat pieces"
        yield Problem(
            setting="train.optimizer",
            message=message,
            fix="use --train.optimizer adamw, or recipes/accelerate/fsdp2.yaml",
        )
    if config.train.on_non_finite == "skip":
        message = (
            "DeepSpeed changes the weights in the backward pass, before the gradient of a step can be"
            " looked at"
        )
        yield Problem(
            setting="train.on_non_finite",
            message=message,
            fix="leave it out, or use recipes/accelerate/fsdp2.yaml",
        )
    if config.train.l1_penalty and zero_stage() == 3:
        message = "the L1 penalty needs weights outside of the forward pass, where ZeRO-3 has none"
        yield Problem(
            setting="train.l1_penalty",
            message=message,
            fix="use recipes/accelerate/fsdp2.yaml or zero2.yaml, or leave it out",
        )


def _unheeded(what: str, setting: str) -> Problem:
    return Problem(
        setting=setting.lstrip("-"),
        message=f"decides, and the launch config says {what}",
        fix=f"leave it out there, and set {setting}",
    )


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _deepspeed_file() -> Mapping[str, Any]:
    """DeepSpeed's own config file, where the launch config names one; {} where it cannot be read: DeepSpeed
    will say why."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if name == "none":
        return {}
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}
