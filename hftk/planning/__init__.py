"""Memory, operations, time and cost of a run before any weight is loaded: ``hftk plan``.

:mod:`hftk.planning.simulation` counts one step and one judged batch byte by byte on tensors without memory;
here the count becomes a plan for the devices that there are. Every number is an upper bound in one respect:
each row is taken to be as long as ``train.max_length`` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from hftk.config import InputError, Problem, RunConfig, override
from hftk.planning import compute
from hftk.planning.devices import (
    DEVICES,
    MODEL_FLOPS_UTILIZATION,
    PROCESSOR_BYTES,
    USABLE,
    Sharding,
    buffers_per_device,
    on_processor,
    states_per_device,
)
from hftk.planning.shapes import planned_config
from hftk.planning.simulation import STATES, BatchShape, Footprint, simulate
from hftk.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

COUNTABLE_LOGITS = 2**27
"""Logits of a batch that are counted within a few seconds."""

DEFAULT_EPOCHS = 3.0
"""As :func:`hftk.training.fit.fit` takes them where neither epochs nor steps are set."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the run is planned for."""

    devices: int = 1
    """Devices, one process on each."""
    device: str | None = None
    """Name in :data:`hftk.planning.devices.DEVICES`. Default: what this machine has."""
    device_memory: float | None = None
    """Bytes of each device. Default: the device's."""
    sharding: Sharding = "none"
    """How weights, gradients and optimizer state are shared out; none on several devices means ddp."""
    tokens: float | None = None
    """Tokens of the training split."""
    tokens_per_second: float | None = None
    """Measured tokens over all devices that are trained on in a second."""
    utilization: float | None = None
    """Share of the peak of ``device`` that training reaches, where nothing was measured."""
    price_per_hour: float | None = None
    """Price of one device for an hour, in any currency."""

    def problems(self) -> Iterator[Problem]:
        for name in ("devices", "device_memory", "tokens", "tokens_per_second", "utilization"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield Problem(setting=name, message=f"expected more than 0, found {value}")
        if self.utilization is not None and self.utilization > 1:
            yield Problem(
                setting="utilization",
                message=f"expected a share of the peak, at most 1, found {self.utilization}",
            )
        if self.price_per_hour is not None and self.price_per_hour < 0:
            yield Problem(
                setting="price_per_hour", message=f"expected 0 or more, found {self.price_per_hour}"
            )
        if self.device is not None and self.device not in DEVICES:
            message = f"expected one of {', '.join(DEVICES)}, found {self.device}"
            yield Problem(
                setting="device",
                message=message,
                fix="for another one give --device_memory, such as 80GB, and --tokens_per_second",
            )
        if self.sharding not in get_args(Sharding):
            yield Problem(
                setting="sharding",
                message=f"expected one of {', '.join(get_args(Sharding))}, found {self.sharding}",
            )
        if self.devices == 1 and self.sharding in ("fsdp", "zero2", "zero3"):
            yield Problem(
                setting="sharding",
                message=f"{self.sharding} shares out among several devices, found one",
                fix="add --devices 8",
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What :func:`plan` found; bytes are per device."""

    model: Mapping[str, Any]
    """Architecture, parameters, parameters_trained, layers, context, vocabulary."""
    batch: Mapping[str, Any]
    """rows and tokens of a micro-batch and of a step, accumulation, precision, gradient_checkpointing."""
    memory: Mapping[str, int]
    """Kind to bytes at the peak of a training step: weights, gradients, optimizer, copies, activations,
    logits, temporary, buffers."""
    phases: Mapping[str, int]
    """training, judging and generation: most bytes held at once in each."""
    kept: int
    """Bytes that one micro-batch's forward pass keeps for its backward pass."""
    device_memory: int
    """Bytes of the device."""
    largest_batch: int | None
    """Largest train.per_device_batch_size that fits; 0: not even one row; None: rows cost nothing, or it was
    not looked for."""
    flops: Mapping[str, float | None]
    """per token: forward, training (both counted), formula; per step; whole run."""
    run: Mapping[str, float | None]
    """steps, tokens, tokens_per_second, seconds, device_hours, cost."""
    hints: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    setup: Setup = field(default_factory=Setup)

    @property
    def peak(self) -> int:
        """Most bytes held at once on a device."""
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        return self.peak <= USABLE * self.device_memory


def plan(
    config: RunConfig,
    task: Task,
    setup: Setup | None = None,
    *,
    precision: str | None = None,
    search: bool = True,
) -> Plan:
    """Plan the run of ``config`` on the devices of ``setup``. No weight and no row is read.

    ``precision`` is what a run has chosen; default: ``train.precision``, auto being bf16 on GPUs and on
    processors with bf16 instructions. Without ``search`` the largest batch is not looked for (None), which
    takes two thirds of the time.

    Raises:
        InputError: contradictory settings; a model that cannot be made or is not known.
    """
    setup = setup or Setup()
    problems = [*config.problems(), *setup.problems()]
    if problems:
        raise InputError(*problems)
    if setup.devices > 1 and setup.sharding == "none":
        setup = replace(setup, sharding="ddp")
    made = planned_config(config.model, task)
    task = type(task).from_model_config(config, made)
    precision = precision or _precision(config, setup)
    shape, rows, accumulation = batch_of(config, task, made, setup.devices)
    judged = _judged(config, made, shape, "loss" in task.judged_by)
    found = _footprint(config, task, made, shape, setup, precision, judged, accumulation)
    memory, training = _training(found, setup, precision)
    capacity = _capacity(setup)
    states = states_per_device(found, setup.sharding, setup.devices)
    at_rest = states["weights"] + states["optimizer"] + (memory["buffers"] if setup.sharding != "ddp" else 0)
    phases = {
        "training": training,
        "judging": int(at_rest + found.judging_peak),
        "generation": int(at_rest + compute.cache_bytes(made, config.generation.num_beams)),
    }
    if "generation" not in task.judged_by and "CausalLM" not in task.auto_model:
        del phases["generation"]

    def bytes_of(count: int) -> int:
        other = _footprint(
            config, task, made, replace(shape, rows=count), setup, precision, judged, accumulation
        )
        return _training(other, setup, precision)[1]

    # The loss is counted piece by piece, which takes long for more logits than this.
    countable = COUNTABLE_LOGITS // (
        max(shape.length, shape.target_length) * (getattr(made, "vocab_size", None) or 1)
    )
    largest = None
    if search:
        largest = _largest_batch(
            bytes_of, shape.rows, training, USABLE * capacity, max(8 * shape.rows, countable)
        )
    per_step = rows * (shape.length + shape.target_length)
    per_step = config.train.global_batch_tokens or per_step
    made_plan = Plan(
        model={
            "architecture": made.model_type,
            "parameters": found.parameters,
            "parameters_trained": found.trained,
            "vocabulary": getattr(made, "vocab_size", None),
            "max_length": shape.length,
        },
        batch={
            "per_device_rows": shape.rows,
            "tokens": found.tokens,
            "accumulation": accumulation,
            "rows_per_step": rows,
            "tokens_per_step": per_step,
            "precision": precision,
            "gradient_checkpointing": config.train.gradient_checkpointing,
        },
        memory=memory,
        phases=phases,
        kept=found.kept,
        device_memory=int(capacity),
        largest_batch=largest,
        flops=compute.flops(found, made, shape, per_step),
        run={},
        setup=setup,
    )
    run = compute.duration(made_plan, config)
    made_plan = replace(made_plan, run=run)
    return replace(
        made_plan,
        hints=tuple(compute.hints(made_plan, task)),
        assumptions=tuple(_assumptions(made_plan, config)),
    )


def _largest_batch(
    bytes_of: Callable[[int], int], rows: int, now: int, room: float, countable: int
) -> int | None:
    """Most rows of a micro-batch that fit into ``room`` bytes, where ``rows`` take ``now``; None where rows
    cost nothing. More than ``countable`` are not counted but estimated.

    Bytes are nearly linear in the rows: a straight line through two sizes, and a second one through what it
    leads to.
    """
    largest, other = rows, max(1, rows // 2) if rows > 1 else 2
    for _ in range(2):
        per_row = (bytes_of(other) - now) / (other - rows)
        if per_row <= 0:
            return None
        largest = max(0, int(rows + (room - now) // per_row))
        if largest in (0, rows, other):
            break
        other = min(largest, countable)
    return largest


def remedies(config: RunConfig, task: Task, setup: Setup) -> list[tuple[str, Plan]]:
    """Changes of settings, the mildest first, under which the run fits: what to type, and the plan with it;
    at most three."""
    changes: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    now = plan(config, task, setup)
    if now.largest_batch and now.largest_batch < now.batch["per_device_rows"]:
        rows = now.batch["rows_per_step"]
        size = {
            "per_device_batch_size": now.largest_batch,
            "global_batch_size": rows,
            "global_batch_tokens": None,
        }
        changes.append(
            (
                f"--train.per_device_batch_size {now.largest_batch} --train.global_batch_size {rows}",
                {"train": size},
                {},
            )
        )
    if not config.train.gradient_checkpointing:
        changes.append(("--train.gradient_checkpointing", {"train": {"gradient_checkpointing": True}}, {}))
    if setup.devices > 1 and setup.sharding in ("none", "ddp"):
        changes.append(("--sharding fsdp", {}, {"sharding": "fsdp"}))
    if getattr(getattr(config.model, "adapter", None), "method", "") == "none":
        adapter = {"train": {"gradient_checkpointing": True}, "model": {"adapter": {"method": "lora"}}}
        changes.append(("--model.adapter.method lora --train.gradient_checkpointing", adapter, {}))
        adapter = {**adapter, "model": {"adapter": {"method": "lora"}, "quantization": {"bits": 4}}}
        changes.append(
            (
                "--model.quantization.bits 4 --model.adapter.method lora --train.gradient_checkpointing",
                adapter,
                {},
            )
        )
    shorter = {"train": {"max_length": max(1, now.model["max_length"] // 2)}}
    changes.append((f"--train.max_length {shorter['train']['max_length']}", shorter, {}))
    found: list[tuple[str, Plan]] = []
    for typed, values, of_setup in changes:
        try:
            other = plan(override(config, values), task, replace(setup, **of_setup), search=False)
        except InputError:  # a change that this run cannot make
            continue
        if other.fits:
            found.append((typed, other))
        if len(found) == 3:
            break
    return found


def batch_of(
    config: RunConfig, task: Task, made: PretrainedConfig, devices: int
) -> tuple[BatchShape, int, int]:
    """The micro-batch of a device, the rows of a step over all devices, and the micro-batches of a device in
    a step."""
    from hftk.models.load import context_length, default_length

    train, context = config.train, context_length(made)
    if train.max_length is not None and train.max_length > context:
        message = f"expected at most {context}, the context of the model, found {train.max_length}"
        raise InputError(
            Problem(setting="train.max_length", message=message, fix=f"use --train.max_length {context}")
        )
    length = train.max_length or default_length(made)
    target = (getattr(config, "max_target_length", None) or length) if "Seq2SeqLM" in task.auto_model else 0
    each = length + target
    rows = train.global_batch_size or (
        max(1, round(train.global_batch_tokens / each))
        if train.global_batch_tokens
        else train.per_device_batch_size * devices
    )
    most = min(
        train.per_device_batch_size,
        max(1, (train.max_tokens_per_batch or each * train.per_device_batch_size) // each),
    )
    accumulation = -(-rows // (devices * most))
    return (
        BatchShape(rows=-(-rows // (devices * accumulation)), length=length, target_length=target),
        rows,
        accumulation,
    )


def _judged(config: RunConfig, made: PretrainedConfig, shape: BatchShape, logits: bool) -> BatchShape:
    """The largest batch that :func:`hftk.evaluation.evaluate.run_model` makes."""
    from hftk.evaluation.evaluate import LOGITS_BYTES, TOKENS
    from hftk.models.load import default_length

    length = default_length(made)
    budget = LOGITS_BYTES // (4 * int(getattr(made, "vocab_size", 1) or 1)) if logits else TOKENS
    rows = max(1, min(config.eval.batch_size, budget // length))
    return BatchShape(rows=rows, length=length, target_length=shape.target_length)


def _footprint(
    config: RunConfig,
    task: Task,
    made: PretrainedConfig,
    shape: BatchShape,
    setup: Setup,
    precision: str,
    judged: BatchShape,
    accumulation: int,
) -> Footprint:
    """The count of one device. Where weights are sharded, layers are gathered in 16 bits, so that all between
    them is in 16 bits too; the shards, gradients and optimizer state stay in float32."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    dtype = (
        half
        if setup.sharding in ("fsdp", "zero2", "zero3") and config.model.dtype in ("auto", "float32")
        else None
    )
    found = simulate(
        config,
        task,
        made,
        shape,
        precision=precision,
        judged=judged,
        accumulate=accumulation > 1,
        dtype=dtype,
    )
    if dtype is None:
        return found
    quantized = getattr(getattr(config.model, "quantization", None), "bits", None) is not None
    weights = found.weights + 2 * (found.trained if quantized else found.parameters)
    return replace(found, weights=weights, gradients=2 * found.gradients, optimizer=2 * found.optimizer)


def _training(found: Footprint, setup: Setup, precision: str) -> tuple[dict[str, int], int]:
    """Kind to bytes per device at the peak of a step, and their sum."""
    buffers = buffers_per_device(found, setup.sharding, setup.devices, precision)
    if setup.sharding in ("none", "ddp"):
        memory = {**{kind: float(size) for kind, size in found.peak.items()}, "buffers": buffers}
    else:
        states = states_per_device(found, setup.sharding, setup.devices)
        batch = {kind: float(size) for kind, size in found.peak.items() if kind not in (*STATES, "copies")}
        # The batch's own peak may come at another moment than that of a whole model.
        batch["activations"] += max(0.0, found.batch_peak - sum(batch.values()))
        memory = {**states, "copies": 0.0, **batch, "buffers": buffers}
    if on_processor(setup):
        memory["allocator"] = PROCESSOR_BYTES
    return {kind: int(size) for kind, size in memory.items()}, int(sum(memory.values()))


def _precision(config: RunConfig, setup: Setup) -> str:
    from pathlib import Path

    from hftk.models.precision import CPU_FLAGS

    if config.train.precision != "auto":
        return config.train.precision
    if setup.device is not None or setup.device_memory is not None:
        return "fp32" if setup.device in ("t4", "v100-16gb", "v100-32gb") else "bf16"
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    return "bf16" if set(text.split()) & set(CPU_FLAGS) else "fp32"


def _capacity(setup: Setup) -> float:
    """Bytes of a device: as given, by its name, or this machine's GPU or main memory."""
    if setup.device_memory is not None:
        return setup.device_memory
    if setup.device is not None:
        return DEVICES[setup.device].memory
    import psutil
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(psutil.virtual_memory().total) / setup.devices


def _assumptions(made: Plan, config: RunConfig) -> Iterator[str]:
    yield f"every row has {made.model['max_length']:,} tokens (train.max_length): shorter rows need less"
    if config.model.attention == "eager":
        yield "attention keeps its (tokens x tokens) scores, as model.attention eager does"
    else:
        yield "attention by torch's fused kernels, which keep no (tokens x tokens) scores"
    yield "not counted: imports and the driver's context, scratch space inside kernels, the data"
    yield f"a batch fits where the plan needs at most {USABLE:.0%} of the device's memory"
    if made.setup.sharding in ("fsdp", "zero3"):
        yield (
            "of a sharded model two layers, embeddings and head are whole at once, and the gradient of one"
            " layer"
        )
    if made.setup.tokens_per_second is None and made.run.get("tokens_per_second"):
        yield (
            f"speed: {made.setup.utilization or MODEL_FLOPS_UTILIZATION:.0%} of the device's peak (not"
            " measured; give --tokens_per_second)"
        )
    if config.train.precision == "auto":
        yield (
            f"train.precision auto taken as {made.batch['precision']}; a run on a CPU measures which is"
            " faster"
        )
