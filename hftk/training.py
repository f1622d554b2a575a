"""Train a model on a split, judge it on the way, and save it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from hftk import adapter_files, adapters, checkpoints, placement, shards
from hftk.batching import BatchSize, EpochPlan, StepLoader, StreamPlan
from hftk.choices import note, noted
from hftk.config import DiskError, InputError, Problem, RunConfig, to_dict
from hftk.evaluation import collect, first_rows
from hftk.features import encode
from hftk.features.streams import encode_round_robin
from hftk.launch import StopRequested, graceful, launcher, on_main, strategies
from hftk.launch.machines import bring
from hftk.model import default_length, is_pretrained
from hftk.planning import shortage
from hftk.planning.hindsight import held_against_plan, memory_level
from hftk.quantization import bytes_of, count
from hftk.saving import STATE, STREAM_KEYS, in_words
from hftk.task import Features, Splits, Task
from hftk.trackers import Trackers
from hftk.trainer import ExactTrainer, Judged, make_arguments
from hftk.weights import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STREAM_ROWS = 2000
"""Rows of a stream that are encoded, shuffled and grouped together."""
FIXED = (
    "seed", "group_by_length", "learning_rate", "min_learning_rate", "schedule", "warmup", "optimizer", "weight_decay", "adam_beta1",
    "adam_beta2", "layer_decay", "l1_penalty", "label_smoothing", "max_grad_norm", "metric_for_best_model", "extra.optim",
    "extra.lr_scheduler_type",
)  # fmt: skip
"""Settings of ``train`` that a continued run must share: the saved optimizer and schedule overrule them, or mix the two; and
what is best, as the checkpoint of another measure's best may be gone."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What :func:`fit` hands on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    history: list[dict[str, Any]]
    """One entry per logged or evaluated step: step, epoch, loss, eval_loss, learning_rate, grad_norm, tokens, seconds."""
    seconds: dict[str, float] = field(default_factory=dict)
    """``train``: optimizer steps alone; ``evaluate`` and ``save``: what happened between them."""
    tokens_per_second: float | None = None
    """Non-padding tokens trained on per second of ``train``."""
    peak_memory_bytes: int = 0
    model_facts: dict[str, Any] = field(default_factory=dict)
    choices: list[str] = field(default_factory=list)
    data_facts: dict[str, Any] = field(default_factory=dict)
    """Counts from encoding the training split."""
    analysis: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """What :meth:`hftk.task.Task.finish` found: sections for the report."""
    stopped_early: bool = False
    plan: dict[str, Any] = field(default_factory=dict)
    """Peak memory and seconds, planned and measured: :func:`hftk.planning.hindsight.held_against_plan`."""
    trackers: Trackers | None = field(default=None, repr=False)
    """Of ``train.extra.report_to``, open until :func:`hftk.trackers.track` has given them the scores."""


def fit(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig,
    *, on_checkpoint: Callable[[Path], None] | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` (in place) on ``splits.train`` and save it with its tokenizer in ``config.output``.

    The validation split, where there is one, is judged between steps. With ``config.resume`` the run continues from a
    checkpoint of the same run, on the CPU bit for bit as if it had never stopped. All processes call this.
    ``on_checkpoint`` is called on the main process with the folder of each checkpoint that is whole; it must not raise nor take long.

    Raises:
        InputError: settings that do not fit the data or the checkpoint.
        StopRequested: SIGTERM or SIGINT; a checkpoint was saved first.
        DiskError: a checkpoint or the trained model could not be written; the message says what is kept, and where.
        TrainingDiverged: a loss or gradient is no finite number; the message holds a diagnosis, the last checkpoint is kept.
        OutOfMemory: the message holds the plan's numbers and settings that would fit.
    """
    _check_validation(splits, config)
    launcher.give_back_memory()
    peak_before = forget_peak()
    level = memory_level(model)
    if config.resume == "never":
        on_main(_clear_checkpoints, config)
    checkpoint, told = on_main(checkpoints.choose, config.resume, config.output)
    checkpoint = bring(checkpoint)
    for line in told:
        note(line)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8")) if checkpoint else {}
    max_length = config.train.max_length or default_length(model.config)
    keys = (checkpoint / STREAM_KEYS).read_bytes() if checkpoint and (checkpoint / STREAM_KEYS).exists() else b""
    plan, facts = _plan(task, tokenizer, splits, config, max_length, keys)
    run = fingerprint(task, plan, config, model)
    _check_same_run(state, run)
    if isinstance(plan, StreamPlan):
        plan.go_on = state.get("stream")
    arguments = make_arguments(config, plan)
    loader = StepLoader(
        plan, task.collator(tokenizer, model, training=True), process=arguments.process_index, processes=arguments.world_size,
        max_rows=config.train.per_device_batch_size, max_tokens=config.train.max_tokens_per_batch,
    )  # fmt: skip
    trainer = ExactTrainer(
        task, model, tokenizer, arguments, config, loader, _judged(task, model, tokenizer, splits, config), run, state
    )
    trainer.on_checkpoint, trainer.stream = on_checkpoint, splits.stream
    trainer.choose_precision(config, state.get("precision"))
    if checkpoint:
        note(f"continuing from {checkpoint} ({checkpoints.step_of(checkpoint)} of {plan.total_steps} steps done)")
    on_main(shortage.foretell, config, task, model, trainer.precision)
    with graceful(), shortage.explained(config, task, model, trainer.precision):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        raise StopRequested(f"after step {trainer.state.global_step} of {plan.total_steps}")
    best = trainer.best_step()
    if trainer.restore_best and best is not None and best != trainer.state.global_step:
        trainer.load_weights(best)
        note(f"weights of step {best} restored: its {trainer.metric} on the validation split was the best")
    unwrapped = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    placement.mend(unwrapped)
    trainer.accelerator.wait_for_everyone()
    analysis = _finish(task, unwrapped, tokenizer, splits, config)
    weights = shards.gather(unwrapped, trained=adapters.is_adapter(unwrapped))
    on_main(save_trained, unwrapped, tokenizer, Path(config.output), weights)
    del weights
    peak = peak_memory()
    plan_held = on_main(
        held_against_plan, config, task, unwrapped, precision=trainer.precision, devices=arguments.world_size, level=level,
        peak=peak, seconds=trainer.seconds["train"], history=trainer.history, sharding=strategies.sharding(arguments.world_size),
    )  # fmt: skip
    return Trained(
        model=unwrapped,
        tokenizer=tokenizer,
        history=trainer.history,
        seconds={k: round(v, 3) for k, v in trainer.seconds.items()},
        tokens_per_second=trainer.tokens / trainer.seconds["train"] if trainer.seconds["train"] else None,
        peak_memory_bytes=max(peak_before, peak),
        model_facts=_model_facts(unwrapped, tokenizer, config),
        choices=noted(),
        data_facts=facts | ({"skipped_steps": trainer.guard.skipped} if trainer.guard.skipped else {}),
        analysis=analysis,
        stopped_early=trainer.state.global_step < plan.total_steps,
        plan=plan_held,
        trackers=trainer.trackers,
    )


def _judged(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig
) -> Judged | None:
    """The validation split, encoded once."""
    if splits.validation is None:
        return None
    rows = first_rows(splits.validation, config.eval.max_rows)
    max_length = default_length(model.config)
    features = encode(task, rows, tokenizer, max_length=max_length, training=False)
    return Judged(rows=rows, features=features, max_length=max_length)


def _finish(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig
) -> list[dict[str, Any]]:
    """Let the task make its choices after training; ``look`` runs the trained model on a split, when it is asked to."""

    def look(split: str, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, np.ndarray]]:
        rows = getattr(splits, split)
        rows = rows if indices is None else rows.select(indices)
        features = encode(task, rows, tokenizer, max_length=default_length(model.config), training=False)
        outputs = collect(task, model, tokenizer, features, batch_size=config.eval.batch_size, title=f"looking at {split} rows")  # fmt: skip
        return rows, outputs

    return task.finish(model, splits, look)


def save_trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Weights (safetensors; of an adapter it alone), config and tokenizer into ``output``: each file whole under another name
    first, then renamed. ``weights`` are those of a sharded model, :func:`hftk.shards.gather`.

    Raises:
        DiskError: the disk does not take them; the checkpoint of the last step holds them too.
    """
    staging = output / ".saving.tmp"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed here
        with no_progress_bars():
            model.save_pretrained(staging, state_dict=weights)
        if adapters.is_adapter(model):
            adapter_files.save_config(model, staging)
        tokenizer.save_pretrained(staging)
        for path in staging.rglob("*"):
            checkpoints.sync(path)
        for path in sorted(staging.iterdir()):
            if path.is_dir():
                shutil.rmtree(output / path.name, ignore_errors=True)
            os.replace(path, output / path.name)
        checkpoints.sync(output)
        staging.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        saved = checkpoints.checkpoints(output)
        kept = f"{saved[-1]} is whole: make room, and the same command with --resume auto goes on" if saved else "make room"
        raise DiskError(f"the trained model could not be written to {output}: {in_words(error)}; {kept}") from error


def _plan(
    task: Task, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig, max_length: int, keys: bytes
) -> tuple[EpochPlan | StreamPlan, dict[str, Any]]:
    """Encode the training split and lay out the optimizer steps. ``keys`` is what a checkpoint kept of the rows of a stream."""
    train, processes = config.train, int(os.environ.get("WORLD_SIZE", "1"))
    if train.max_tokens_per_batch is not None and train.max_tokens_per_batch < max_length:
        raise InputError(
            Problem(
                setting="train.max_tokens_per_batch",
                message=f"expected at least one row of --train.max_length {max_length} tokens, found {train.max_tokens_per_batch}",
            )
        )
    size = BatchSize(rows=train.global_batch_size, tokens=train.global_batch_tokens)
    if size == BatchSize():
        size = BatchSize(rows=train.per_device_batch_size * processes)
    epochs = train.epochs if train.max_steps is None and train.epochs is not None else None
    max_steps = train.max_steps
    if epochs is None and max_steps is None:
        epochs = 3.0
        note("train.epochs: 3, since neither epochs nor max_steps is set")
    if config.data.streaming:
        assert max_steps is not None

        def chunks(epoch: int, begin: Mapping[str, Any] | None = None) -> Iterator[Features]:
            batches: Iterator[tuple[Any, Any]]
            if splits.stream is None:
                batches = ((None, rows) for rows in splits.train.batch(STREAM_ROWS))
            else:
                batches = splits.stream.batches(STREAM_ROWS, begin, keys if begin else b"")
            first = begin["counts"]["rows"] + begin["rows_before"] if begin else 0
            yield from encode_round_robin(_numbered(batches, first), encoded)

        def encoded(chunk: tuple[int, Any, Any]) -> Features:
            before, here, rows = chunk
            features = task.encode(rows, tokenizer, max_length=max_length, training=True)
            return replace(features, rows=features.rows + before, begin=here)

        return StreamPlan(chunks, size, seed=train.seed, max_steps=max_steps, group_by_length=train.group_by_length), {"streaming": True}
    features = encode(task, splits.train, tokenizer, max_length=max_length, training=True)
    if not len(features):
        raise InputError(Problem(setting="data.train", message="no training row is left after encoding"))
    return EpochPlan(features, size, seed=train.seed, epochs=epochs, max_steps=max_steps, group_by_length=train.group_by_length), features.facts


def _numbered(batches: Iterable[tuple[Any, Any]], first: int) -> Iterator[tuple[int, Any, Any]]:
    """Rows of the stream before each batch, the first of them being number ``first``; where it begins; the batch."""
    for here, rows in batches:
        yield first, here, rows
        first += len(next(iter(rows.values())))


def fingerprint(
    task: Task, plan: EpochPlan | StreamPlan, config: RunConfig, model: PreTrainedModel
) -> dict[str, Any]:
    """What must be the same for a run to continue, by the name that a person knows it under; plain values, fit for JSON.

    Raises:
        InputError: a stream without a single row to train on.
    """
    first = next(plan.steps(), None)  # of a stream it holds the first chunk, else all rows
    if first is None:
        raise InputError(Problem(setting="data.train", message="no training row is left after encoding"))
    digest = hashlib.sha256()
    for name in sorted(first.features.columns):
        for entry in first.features.columns[name]:
            digest.update(np.asarray(entry).tobytes())
    by_text = "generation" in task.judged_by and config.train.metric_for_best_model != "loss"
    return {
        **({"--eval.generate_rows": config.eval.generate_rows} if by_text else {}),
        "the model": f"{type(model).__name__} of {sum(p.numel() for p in model.parameters())} parameters",
        "the training data": f"{len(first.features)} rows with SHA-256 {digest.hexdigest()[:12]}",
        "the global batch": f"{plan.size.rows} rows" if plan.size.rows else f"{plan.size.tokens} tokens",
        "the length of the run": f"{plan.total_steps} steps",
        **{
            f"--train.{name}": getattr(config.train, name, config.train.extra.get(name.removeprefix("extra.")))
            for name in FIXED
        },
        **{f"--{name}": getattr(config, name) for name in task.fixed},
        **{f"--model.{name}": to_dict(getattr(config.model, name)) for name in ("adapter", "quantization")},
        "--model.frozen": config.model.frozen,
        "the strategy": strategies.in_words(),
    }


def _check_same_run(state: dict[str, Any], run: dict[str, Any]) -> None:
    problems = [
        Problem(
            setting="resume",
            message=f"the checkpoint is of another run: {name} was {old}, now {run[name]}",
            fix="use the settings and data of that run (its config.yaml is in --output), or start anew with --overwrite; "
            "to go on from its weights only: --model.name CHECKPOINT and another --output",
        )
        for name, old in state.get("run", {}).items()
        if name in run and run[name] != old
    ]
    if problems:
        raise InputError(*problems)


def _clear_checkpoints(config: RunConfig) -> None:
    """Checkpoints of an earlier run would be mixed up with ours. :func:`hftk.run` has seen to it; a notebook has not."""
    found = checkpoints.checkpoints(config.output)
    if found and not config.overwrite:
        raise InputError(
            Problem(
                setting="output", message=f"expected no checkpoints, found {len(found)} of an earlier run in {found[0].parent}",
                fix="add --resume auto to continue it, --overwrite to replace it, or choose another --output",
            )
        )  # fmt: skip
    for folder in found:
        shutil.rmtree(folder)


def _check_validation(splits: Splits, config: RunConfig) -> None:
    """Some settings act on evaluations during training, which need a validation split."""
    train = config.train
    if train.restore_best and splits.validation is None:
        note("train.restore_best does nothing: there is no validation split (add --data.validation_fraction 0.05)")
    acting = {"early_stopping": train.early_stopping > 0, "schedule": train.schedule == "reduce_on_plateau"}
    problems = [
        Problem(
            setting=f"train.{name}",
            message=f"{getattr(train, name)} goes by the loss on a validation split, and the data have none",
            fix="add --data.validation FILE, or --data.validation_fraction 0.05",
        )
        for name, acts in acting.items()
        if acts
    ]
    if problems and splits.validation is None:
        raise InputError(*problems)


def forget_peak() -> int:
    """What :func:`peak_memory` says, which counts from now on: reading and judging before a training are not the training's.

    Where the system does not allow that (other than Linux), it counts on.
    """
    peak = peak_memory()
    if torch.cuda.is_available():
        # Before the first use of a GPU there is no peak, and torch (2.13) fails on a device by its number.
        for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets the peak resident set size
    return peak


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the GPU where there is one (on all that it uses), else resident memory."""
    if torch.cuda.is_available():
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in range(torch.cuda.device_count()))
    with contextlib.suppress(OSError, StopIteration):  # Linux; what getrusage says begins with the peak of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(peak if sys.platform == "darwin" else peak * 1024)
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def _model_facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> dict[str, Any]:
    base = adapters.base_of(model)
    quantized = config.model.quantization.bits
    facts = {
        "architecture": shards.class_name(base),
        "origin": config.model.name or f"made on the spot ({config.model.size})",
        "from_hub": config.model.name is not None and not Path(config.model.name).expanduser().exists(),
        "pretrained": is_pretrained(config.model),
        "parameters": count(model),
        "parameters_trained": count(model, trained=True),
        "bytes": bytes_of(model),
        "context": default_length(model.config),
        "vocabulary": len(tokenizer),
        "tokenizer": type(tokenizer).__name__,
        "dtype": f"{quantized} bits" if quantized else str(next(base.parameters()).dtype).removeprefix("torch."),
    }
    return facts | ({"adapter": config.model.adapter.method} if adapters.is_adapter(model) else {})
