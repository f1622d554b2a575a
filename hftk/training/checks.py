"""Find mistakes that need no data and no weights, all at once, before anything slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem, PublishConfig, RunConfig
from hftk.console import note
from hftk.launch import use_all_gpus
from hftk.models.load import check_model, decoder_positions, default_length
from hftk.models.precision import choose_precision
from hftk.task import Task
from hftk.training import activation_offload
from hftk.training.optimizers import check_optimizer
from hftk.training.trackers import tracker_problems


def check(config: RunConfig, task: Task) -> int:
    """Hold the settings against the model's own config; return the context in which rows are judged, in
    tokens.

    Raises: InputError: every problem found: contradictory settings, no such model, a block longer than the
        model's context, an
            optimizer or a precision that is not to be had here.
    """
    task = task.with_config(config)
    if config.model.device_map != "none":
        use_all_gpus()
    problems, context = (
        [
            *config.problems(),
            *_metric_problems(config, task),
            *push_problems(config.publish),
            *_base_problems(config),
            *tracker_problems(config.train),
        ],
        0,
    )
    try:
        made = check_model(config.model, task, config.train.max_length)
        context = default_length(made)
    except InputError as error:
        problems += error.problems
    else:
        problems += [*_length_problems(config, context), *_target_problems(config, task, made)]
    for find in (_check_device, _check_optimizer):
        try:
            find(config)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    if config.data.sample and config.model.name is None:
        kind = config.model.architecture or task.architecture
        note(
            f"a trial: an untrained {kind} ({config.model.size}) on the sample {config.data.sample}; for your"
            " own data and a real model type --data.path FILE_OR_FOLDER --model.name HUB_ID_OR_FOLDER"
        )
    return context


def push_problems(settings: PublishConfig) -> Iterator[Problem]:
    """What would stop a push to the Hub and can be seen without it: no network allowed, no token. Nothing for
    a dry run."""
    if settings.repo is None or settings.dry_run:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield Problem(
            setting="publish.repo",
            message="HF_HUB_OFFLINE=1 forbids the network",
            fix="unset it, or leave --publish.repo out and push later: hftk push",
        )
    if get_token() is None:
        yield Problem(
            setting="publish.repo",
            message="expected a token of the Hub, found none",
            fix="log in with `hf auth login`, or set HF_TOKEN",
        )


def _base_problems(config: RunConfig) -> Iterator[Problem]:
    """An adapter that is published needs a base that others can load."""
    publish, name = config.publish, config.model.name
    if publish.repo is None or config.model.adapter.method == "none" or publish.base_model is not None:
        return
    if name is None or Path(name).expanduser().exists():
        message = (
            f"an adapter is published, and others cannot load its base, {name or 'a model made on the spot'}"
        )
        yield Problem(
            setting="publish.base_model",
            message=message,
            fix="name the base on the Hub: --publish.base_model HUB_ID",
        )


def _metric_problems(config: RunConfig, task: Task) -> Iterator[Problem]:
    metric = config.train.metric_for_best_model
    if metric not in ("loss", *task.score_names):
        message = f"expected loss or a score of {task.name}, found {metric}"
        yield Problem(
            setting="train.metric_for_best_model",
            message=message,
            fix=f"choose among {', '.join(('loss', *task.score_names))}",
        )
    elif metric != "loss" and config.eval.generate_rows == 0 and "logits" not in task.judged_by:
        message = f"{metric} needs generated text, and --eval.generate_rows 0 generates none during training"
        yield Problem(
            setting="train.metric_for_best_model", message=message, fix="use --eval.generate_rows 100"
        )


def _target_problems(config: RunConfig, task: Task, made: Any) -> Iterator[Problem]:
    """Targets longer than the positions that the decoder has; T5's relative ones have no end."""
    most = getattr(config, "max_target_length", None)
    positions = decoder_positions(made)
    new = config.generation.max_new_tokens
    if "generation" in task.judged_by and positions is not None and new >= positions:
        message = f"expected less than {positions}, the positions of the model's decoder, found {new}"
        yield Problem(
            setting="generation.max_new_tokens",
            message=message,
            fix="use --generation.max_new_tokens 0: as many as the training targets need",
        )
    if most is not None and positions is not None and most > positions:
        message = f"expected at most {positions}, the positions of the model's decoder, found {most}"
        fix = f"use --max_target_length {positions}"
        if config.model.name is None:
            fix += f", or more positions: --model.config.max_position_embeddings {most}"
        yield Problem(setting="max_target_length", message=message, fix=fix)


def _length_problems(config: RunConfig, context: int) -> Iterator[Problem]:
    stride, most = config.eval.stride, config.train.max_tokens_per_batch
    if stride is not None and stride > context:
        message = (
            f"expected at most the context of {context} tokens, else tokens between windows are not judged;"
            f" found {stride}"
        )
        yield Problem(setting="eval.stride", message=message)
    length = config.train.max_length or context
    if most is not None and most < length:
        message = f"expected at least one row of {length} tokens, found {most}"
        fix = f"use --train.max_tokens_per_batch {length}, or a shorter --train.max_length"
        yield Problem(setting="train.max_tokens_per_batch", message=message, fix=fix)


def _check_optimizer(config: RunConfig) -> None:
    check_optimizer(config.train, config.model)


def _check_device(config: RunConfig) -> None:
    """Settings that need a GPU."""
    if config.train.precision != "fp16" and not config.train.activation_offload:
        return
    import torch

    from hftk.launch import launched

    device = torch.device(launched().device)
    activation_offload.check_device(config.train.activation_offload, device)
    if config.train.precision == "fp16":
        choose_precision("fp16", device)
