"""Train a model on a split, judge it on the way, and save it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem, RunConfig
from hftk.console import note, noted
from hftk.evaluation.evaluate import first_rows, run_model
from hftk.features import encode
from hftk.features.batches import BatchSize, EpochPlan, StreamPlan
from hftk.features.loader import StepLoader
from hftk.features.streams import encode_round_robin
from hftk.generation.defaults import replace_defaults
from hftk.launch import StopRequested, exits, graceful, on_main
from hftk.models import adapters, device_map, sharded
from hftk.models.load import default_length
from hftk.models.quantization import count
from hftk.task import Features, Splits, Task
from hftk.training import checkpoints, defaults, optimizers
from hftk.training.checkpoint_writer import STATE, STREAM_KEYS
from hftk.training.memory import forget_peak, peak_memory
from hftk.training.out_of_memory import explain_oom
from hftk.training.resume import check_same_run, clear_checkpoints, fingerprint
from hftk.training.trained import Trained, model_facts, save_trained
from hftk.training.trainer import ExactTrainer, ValidationSet, make_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STREAM_ROWS = 2000
"""Rows of a stream that are encoded, shuffled and grouped together."""


def fit(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    config: RunConfig,
    *,
    on_checkpoint: Callable[[Path], None] | None = None,
) -> Trained:
    """Train ``model`` (in place) on ``splits.train`` and save it with its tokenizer in ``config.output``.

    The validation split, where there is one, is judged between steps. With ``config.resume`` the run
    continues from a checkpoint of the same run, on the CPU bit for bit as if it had never stopped. All
    processes call this. ``on_checkpoint`` is called on the main process with the folder of each checkpoint
    that is whole; it must not raise nor take long.

    Raises:
        InputError: settings that do not fit the data or the checkpoint.
        StopRequested: SIGTERM or SIGINT; a checkpoint was saved first.
        DiskError: a checkpoint or the trained model could not be written; the message says what is kept, and
            where.
        TrainingDiverged: a loss or gradient is no finite number; the message holds a diagnosis, the last
            checkpoint is kept.
        OutOfMemory: the message names settings that need less.
    """
    task = task.with_config(config)
    _check_validation(splits, config)
    peak_before = forget_peak()
    checkpoint, state = _choose_checkpoint(config)
    if model.can_generate():
        replace_defaults(model, tokenizer, task.generation(model))
    trainer, facts = _make_trainer(task, model, tokenizer, splits, config, checkpoint, state)
    trainer.on_checkpoint = on_checkpoint
    total_steps = trainer.loader.plan.total_steps
    trainer.choose_precision(config, state.get("precision"))
    if checkpoint:
        done = checkpoints.step_of(checkpoint)
        note(f"continuing from {checkpoint} ({done} of {total_steps} steps done)")
    with graceful(), explain_oom(config):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.stopped:
        raise StopRequested(f"after step {trainer.state.global_step} of {total_steps}")
    _restore_best(trainer)
    unwrapped = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    device_map.mend(unwrapped)
    trainer.accelerator.wait_for_everyone()
    analysis = _finish(task, unwrapped, tokenizer, splits, config)
    weights = sharded.gather(unwrapped, trained=adapters.is_adapter(unwrapped))
    on_main(save_trained, unwrapped, tokenizer, Path(config.output), weights)
    del weights
    peak = peak_memory()
    return Trained(
        model=unwrapped,
        tokenizer=tokenizer,
        history=trainer.history,
        seconds={k: round(v, 3) for k, v in trainer.seconds.items()},
        tokens_per_second=trainer.tokens / trainer.seconds["train"] if trainer.seconds["train"] else None,
        peak_memory_bytes=max(peak_before, peak),
        model_facts=model_facts(unwrapped, tokenizer, config),
        choices=noted(),
        data_facts=facts | ({"skipped_steps": trainer.guard.skipped} if trainer.guard.skipped else {}),
        analysis=analysis,
        stopped_early=trainer.state.global_step < total_steps,
        trackers=trainer.trackers,
    )


def _choose_checkpoint(config: RunConfig) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to continue from, if any, and the state of the run that it holds."""
    if config.resume == "never":
        on_main(clear_checkpoints, config)
    checkpoint, messages = on_main(checkpoints.choose, config.resume, config.output)
    for line in messages:
        note(line)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8")) if checkpoint else {}
    return checkpoint, state


def _make_trainer(
    task: Task,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    config: RunConfig,
    checkpoint: Path | None,
    state: dict[str, Any],
) -> tuple[ExactTrainer, dict[str, Any]]:
    """The trainer of this run, and the facts about its training data."""
    max_length = config.train.max_length or default_length(model.config)
    keys = (
        (checkpoint / STREAM_KEYS).read_bytes() if checkpoint and (checkpoint / STREAM_KEYS).exists() else b""
    )
    plan, facts = _plan(task, tokenizer, splits, config, max_length, keys)
    run = fingerprint(task, plan, config, model)
    check_same_run(state, run)
    if isinstance(plan, StreamPlan):
        plan.go_on = state.get("stream")
    learning_rate = optimizers.peak_learning_rate(config.train, config.model, count(model))
    arguments = make_arguments(config, plan, learning_rate)
    loader = StepLoader(
        plan,
        task.collator(tokenizer, model, training=True),
        process=arguments.process_index,
        processes=arguments.world_size,
        max_rows=config.train.per_device_batch_size,
        max_tokens=config.train.max_tokens_per_batch,
    )
    validation = _encode_validation(task, model, tokenizer, splits, config)
    trainer = ExactTrainer(task, model, tokenizer, arguments, config, loader, validation, run, state)
    trainer.stream = splits.stream
    return trainer, facts


def _restore_best(trainer: ExactTrainer) -> None:
    """Load the weights of the best evaluation, where that is asked for and was not the last step."""
    best = trainer.best_step()
    if trainer.restore_best and best is not None and best != trainer.state.global_step:
        trainer.load_weights(best)
        note(f"weights of step {best} restored: its {trainer.metric} on the validation split was the best")


def _encode_validation(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig
) -> ValidationSet | None:
    """The validation split, encoded once."""
    if splits.validation is None:
        return None
    rows = first_rows(splits.validation, config.eval.max_rows)
    max_length = default_length(model.config)
    features = encode(task, rows, tokenizer, max_length=max_length, training=False)
    return ValidationSet(rows=rows, features=features, max_length=max_length)


def _finish(
    task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Splits, config: RunConfig
) -> list[dict[str, Any]]:
    """Let the task make its choices after training; ``predict_rows`` runs the trained model on a split, when
    it is asked to."""

    def predict_rows(split: str, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, np.ndarray]]:
        rows = getattr(splits, split)
        rows = rows if indices is None else rows.select(indices)
        features = encode(task, rows, tokenizer, max_length=default_length(model.config), training=False)
        outputs = run_model(
            task,
            model,
            tokenizer,
            features,
            batch_size=config.eval.batch_size,
            title=f"looking at {split} rows",
        )
        return rows, outputs

    return task.after_training(model, splits, predict_rows)


def _plan(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    config: RunConfig,
    max_length: int,
    keys: bytes,
) -> tuple[EpochPlan | StreamPlan, dict[str, Any]]:
    """Encode the training split and lay out the optimizer steps. ``keys`` is what a checkpoint kept of the
    rows of a stream."""
    train, processes = config.train, exits.processes()
    if train.max_tokens_per_batch is not None and train.max_tokens_per_batch < max_length:
        raise InputError(
            Problem(
                setting="train.max_tokens_per_batch",
                message=(
                    f"expected at least one row of --train.max_length {max_length} tokens, found"
                    f" {train.max_tokens_per_batch}"
                ),
            )
        )
    size = BatchSize(rows=train.global_batch_size, tokens=train.global_batch_tokens)
    if size == BatchSize():
        size = BatchSize(rows=train.per_device_batch_size * processes)
    epochs = train.epochs if train.max_steps is None and train.epochs is not None else None
    max_steps = train.max_steps
    if epochs is None and max_steps is None:
        epochs = float(defaults.FEWEST_EPOCHS)
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

        return StreamPlan(
            chunks, size, seed=train.seed, max_steps=max_steps, group_by_length=train.group_by_length
        ), {"streaming": True}
    features = encode(task, splits.train, tokenizer, max_length=max_length, training=True)
    if not len(features):
        raise InputError(Problem(setting="data.train", message="no training row is left after encoding"))
    settings: dict[str, Any] = {"seed": train.seed, "group_by_length": train.group_by_length}
    plan = EpochPlan(features, size, epochs=epochs, max_steps=max_steps, **settings)
    if train.epochs is None and train.max_steps is None:
        epochs, reason = defaults.epochs(plan.steps_per_epoch)
        note(f"train.epochs: {epochs:g}, {reason}")
        plan = EpochPlan(features, size, epochs=epochs, max_steps=None, **settings)
    return plan, features.facts


def _numbered(batches: Iterable[tuple[Any, Any]], first: int) -> Iterator[tuple[int, Any, Any]]:
    """Rows of the stream before each batch, the first of them being number ``first``; where it begins; the
    batch."""
    for here, rows in batches:
        yield first, here, rows
        first += len(next(iter(rows.values())))


def _check_validation(splits: Splits, config: RunConfig) -> None:
    """Some settings act on evaluations during training, which need a validation split."""
    train = config.train
    if train.restore_best and splits.validation is None:
        note(
            "train.restore_best does nothing: there is no validation split (add --data.validation_fraction"
            " 0.05)"
        )
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
