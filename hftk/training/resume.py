"""Whether a checkpoint belongs to this run."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from hftk.config import InputError, Problem, RunConfig, to_dict
from hftk.features.batches import EpochPlan, StreamPlan
from hftk.launch import strategies
from hftk.task import Task
from hftk.training import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FIXED = (
    "seed",
    "group_by_length",
    "learning_rate",
    "min_learning_rate",
    "schedule",
    "warmup",
    "optimizer",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "layer_decay",
    "l1_penalty",
    "label_smoothing",
    "max_grad_norm",
    "metric_for_best_model",
    "extra.optim",
    "extra.lr_scheduler_type",
)
"""Settings of ``train`` that a continued run must share: the saved optimizer and schedule overrule them, or
mix the two; and what is best, as the checkpoint of another measure's best may be gone."""


def fingerprint(
    task: Task, plan: EpochPlan | StreamPlan, config: RunConfig, model: PreTrainedModel
) -> dict[str, Any]:
    """What must be the same for a run to continue, by the name that a person knows it under; plain values,
    fit for JSON.

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
            f"--train.{name}": getattr(
                config.train, name, config.train.extra.get(name.removeprefix("extra."))
            )
            for name in FIXED
        },
        **{f"--{name}": getattr(config, name) for name in task.resume_settings},
        **{f"--model.{name}": to_dict(getattr(config.model, name)) for name in ("adapter", "quantization")},
        "--model.frozen": config.model.frozen,
        "the strategy": strategies.in_words(),
    }


def check_same_run(state: dict[str, Any], run: dict[str, Any]) -> None:
    problems = [
        Problem(
            setting="resume",
            message=f"the checkpoint is of another run: {name} was {old}, now {run[name]}",
            fix=(
                "use the settings and data of that run (its config.yaml is in --output), or start anew with"
                " --overwrite; to go on from its weights only: --model.name CHECKPOINT and another --output"
            ),
        )
        for name, old in state.get("run", {}).items()
        if name in run and run[name] != old
    ]
    if problems:
        raise InputError(*problems)


def clear_checkpoints(config: RunConfig) -> None:
    """Checkpoints of an earlier run would be mixed up with ours. :func:`hftk.run` has seen to it; a notebook
    has not."""
    found = checkpoints.checkpoints(config.output)
    if found and not config.overwrite:
        raise InputError(
            Problem(
                setting="output",
                message=f"expected no checkpoints, found {len(found)} of an earlier run in {found[0].parent}",
                fix="add --resume auto to continue it, --overwrite to replace it, or choose another --output",
            )
        )
    for folder in found:
        shutil.rmtree(folder)
