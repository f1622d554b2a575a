"""What a training returns, and the folder that it is saved to."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from hftk.config import DiskError, RunConfig
from hftk.launch.files import set_default_mode
from hftk.models import adapter_files, adapters, sharded
from hftk.models.load import default_length, is_pretrained
from hftk.models.quantization import bytes_of, count
from hftk.models.weights import no_progress_bars
from hftk.training import checkpoints
from hftk.training.checkpoint_writer import in_words
from hftk.training.trackers import Trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What :func:`fit` hands on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    history: list[dict[str, Any]]
    """One entry per logged or evaluated step: step, epoch, loss, eval_loss, learning_rate, grad_norm, tokens,
    seconds."""
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
    """What :meth:`hftk.task.Task.after_training` found: sections for the report."""
    stopped_early: bool = False
    trackers: Trackers | None = field(default=None, repr=False)
    """Of ``train.extra.report_to``, open until :func:`hftk.training.trackers.track` has given them the
    scores."""


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Weights (safetensors; of an adapter it alone), config and tokenizer into ``output``: each file whole
    under another name first, then renamed. ``weights`` are those of a sharded model,
    :func:`hftk.models.sharded.gather`.

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
            if path.is_file():
                set_default_mode(path)
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
        kept = (
            f"{saved[-1]} is whole: make room, and the same command with --resume auto goes on"
            if saved
            else "make room"
        )
        raise DiskError(
            f"the trained model could not be written to {output}: {in_words(error)}; {kept}"
        ) from error


def model_facts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: RunConfig
) -> dict[str, Any]:
    base = adapters.base_of(model)
    quantized = config.model.quantization.bits
    facts = {
        "architecture": sharded.class_name(base),
        "origin": config.model.name or f"made on the spot ({config.model.size})",
        "from_hub": config.model.name is not None and not Path(config.model.name).expanduser().exists(),
        "pretrained": is_pretrained(config.model),
        "parameters": count(model),
        "parameters_trained": count(model, trained=True),
        "bytes": bytes_of(model),
        "context": default_length(model.config),
        "vocabulary": len(tokenizer),
        "tokenizer": type(tokenizer).__name__,
        "dtype": f"{quantized} bits"
        if quantized
        else str(next(base.parameters()).dtype).removeprefix("torch."),
    }
    return facts | ({"adapter": config.model.adapter.method} if adapters.is_adapter(model) else {})
