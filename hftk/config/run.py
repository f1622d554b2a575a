"""Every setting of a run in one frozen dataclass; tasks add their own.

Nothing here imports torch, so that ``--help`` and configuration errors appear at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass

from hftk.config.data import DataConfig
from hftk.config.dotted import setting
from hftk.config.evaluation import EvalConfig, GenerationSettings
from hftk.config.model import ModelConfig
from hftk.config.problems import Problem
from hftk.config.publish import PublishConfig
from hftk.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every recipe has; a task's own config adds its fields."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    publish: PublishConfig = field(default_factory=PublishConfig)
    output: str = "out"
    """Folder for weights, tokenizer, config.yaml, record.json and report.html."""
    resume: str = "never"
    """auto: continue from the newest checkpoint in --output if there is one; never: start anew; or the path
    of a checkpoint."""
    overwrite: bool = False
    """Replace what an earlier run left in --output."""

    def problems(self) -> Iterator[Problem]:
        """Every contradiction inside the settings that can be seen without touching a file."""
        for f in fields(self):
            value = getattr(self, f.name)
            if is_dataclass(value) and hasattr(value, "problems"):
                yield from value.problems()
        for group in ALTERNATIVES:
            given = [name for name in group if setting(self, name) is not None]
            if len(given) > 1:
                yield Problem(
                    setting=given[-1],
                    message=f"cannot be combined with --{given[0]}",
                    fix=f"leave out one of {' and '.join('--' + name for name in given)}",
                )
        if self.resume != "never" and self.overwrite:
            yield Problem(
                setting="overwrite",
                message=f"--overwrite throws away what --resume {self.resume} wants to continue",
                fix="leave out one of --overwrite and --resume",
            )
        if self.model.device_map != "none" and self.train.torch_compile:
            yield Problem(
                setting="train.torch_compile",
                message=(
                    "torch.compile does not see through what moves a batch from GPU to GPU"
                    f" (--model.device_map {self.model.device_map})"
                ),
                fix="leave out one of --train.torch_compile and --model.device_map",
            )
        if self.data.streaming and self.train.max_steps is None:
            yield Problem(
                setting="train.max_steps",
                message="a stream has no known length, so --data.streaming needs a number of steps",
                fix="replace --train.epochs by --train.max_steps N",
            )


ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    ("data.path", "data.train", "data.sample"),
    ("model.name", "model.size"),
    ("train.epochs", "train.max_steps"),
    ("train.global_batch_size", "train.global_batch_tokens"),
)
"""Settings of which at most one is set. One that is given on a higher level (flags over YAML over the recipe)
unsets the others."""
