"""What the callback, the divergence guard and the checkpoint writer need of the trainer, so that none of them
imports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hftk.config import RunConfig


class RunningTrainer(Protocol):
    """A training under way: :class:`hftk.training.trainer.ExactTrainer`."""

    config: RunConfig
    args: Any
    """``transformers.TrainingArguments``."""
    state: Any
    """``transformers.TrainerState``."""
    accelerator: Any
    callback_handler: Any
    is_deepspeed_enabled: bool
    plain: Any
    """The model as it was before it was wrapped."""
    tokenizer: Any
    loader: Any
    """:class:`hftk.features.loader.StepLoader`."""
    validation: Any
    saver: Any
    metric: str
    learning_rate: float
    precision: str
    history: list[dict[str, Any]]
    stopped: bool
    stop_asked: bool
    saving_failed: bool
    on_checkpoint: Callable[[Path], None] | None

    def begin(self, step: int) -> None: ...
    def tick(self, stage: str) -> None: ...
    def leave_out_of_curve(self) -> None: ...
    def best_step(self) -> int | None: ...
    def gather_losses(self) -> None: ...
    def random_states(self) -> list[tuple[str, bytes]]: ...
    def run_state(self) -> dict[str, Any]: ...
    def state_bytes(self) -> int: ...
    def write_files(self) -> None: ...


class TrackedRun(Protocol):
    """What :func:`hftk.training.trackers.track` needs of :class:`hftk.training.trained.Trained`."""

    @property
    def trackers(self) -> Any: ...
    @property
    def tokens_per_second(self) -> float | None: ...
