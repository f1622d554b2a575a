"""Optimization, batches, precision and checkpoints: ``train.*``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from hftk.config.problems import Problem

Schedule = Literal[
    "linear",
    "cosine",
    "constant",
    "polynomial",
    "exponential",
    "step",
    "inverse_sqrt",
    "warmup_stable_decay",
    "reduce_on_plateau",
]


Optimizer = Literal["adamw", "adam", "sgd", "rmsprop", "adafactor", "lion", "adamw_8bit", "paged_adamw_8bit"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The knobs of training that people turn; ``extra`` reaches every other field of
    ``TrainingArguments``."""

    epochs: float | None = None
    """Passes over the training split (fractions allowed)."""
    max_steps: int | None = None
    """Optimizer steps; instead of --train.epochs."""
    per_device_batch_size: int = 32
    """Most rows per device in one forward pass (micro-batch)."""
    max_tokens_per_batch: int | None = None
    """Most tokens, padding included, per device in one forward pass; micro-batches shrink to fit."""
    global_batch_size: int | None = None
    """Rows per optimizer step over all devices and accumulation, which follows from it. Default:
    per_device_batch_size x processes."""
    global_batch_tokens: int | None = None
    """Tokens per optimizer step over all devices and accumulation; instead of --train.global_batch_size."""
    group_by_length: bool = True
    """Rows of similar length share an optimizer step, which leaves little padding. false: rows are drawn at
    random, which can learn a little more from them, and costs padding."""
    max_length: int | None = None
    """Most tokens per training row (the block size in language modelling). Default: the model's context, at
    most 1024."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 5e-5 for pre-trained weights, 1e-3 for a model made on the spot; adapters:
    5e-4 (LoRA), 3e-3 (ia3), 3e-2 (prompt_tuning)."""
    min_learning_rate: float = 0.0
    """Where the schedule ends, as a learning rate; it never goes below."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up. step: divided by 10 at 1/3 and 2/3 of the steps;
    exponential: to 1 % at the end; warmup_stable_decay: constant, then linear over the last 20 %;
    reduce_on_plateau: halved when eval_loss stalls for 2 evaluations."""
    warmup: float = 0.0
    """Linear warm-up: a share of all steps if below 1, else a number of steps."""
    optimizer: Optimizer = "adamw"
    """Optimizer, in the implementation of torch (lion and those of 8 bits: bitsandbytes). State for each
    trained weight, in bytes: adamw and adam 8, lion and sgd 4, adamw_8bit 2, adafactor nearly none; that of
    paged_adamw_8bit moves to main memory when a GPU is full."""
    layer_decay: float = 1.0
    """The learning rate of each layer is this times that of the layer above it, down to the embeddings; 1:
    the same for all, 0.9 is usual."""
    weight_decay: float = 0.0
    """Weight decay of the matrices; biases and norms are never decayed. adamw (8 bits too), adafactor and
    lion: decoupled; the others: an L2 penalty."""
    adam_beta1: float = 0.9
    """Decay of the first moment of adamw, adam and lion; momentum of sgd and rmsprop."""
    adam_beta2: float = 0.999
    """Decay of the second moment of adamw and adam (and of lion's momentum)."""
    l1_penalty: float = 0.0
    """Factor of the sum of absolute weights (of the decayed matrices) added to the loss of every optimizer
    step."""
    label_smoothing: float = 0.0
    """Share of the target probability spread evenly over all classes, 0 <= value < 1; evaluation never
    smooths."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm; 0: no clipping."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of training. auto: bf16 autocast where the hardware is faster with it (measured on a CPU),
    else fp32."""
    eval_steps: float | None = None
    """Optimizer steps between evaluations on the validation split; a share of all steps if below 1. Default:
    once per epoch."""
    save_steps: float | None = None
    """Optimizer steps between checkpoints; a share of all steps if below 1. Default: as eval_steps; 0: only
    at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep (the best one is kept besides)."""
    log_steps: int | None = None
    """Optimizer steps between points of the loss curve. Default: about 200 points per run."""
    early_stopping: int = 0
    """Stop after this many evaluations without a better one (by metric_for_best_model); the best weights are
    restored. 0: off."""
    restore_best: bool = False
    """At the end take the weights of the best evaluation, by metric_for_best_model (always so with
    early_stopping)."""
    metric_for_best_model: str = "loss"
    """What the best evaluation on the validation split goes by: loss, or a score of the task such as
    accuracy, f1_macro, bleu or rougeL."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offload: bool = False
    """On a GPU: keep what the backward pass needs in main memory, for which it costs time; best with
    gradient_checkpointing, which leaves little to move."""
    torch_compile: bool = False
    """Compile the model with torch.compile (slow first steps)."""
    seed: int = 0
    """Seed of initialization, data order and dropout."""
    deterministic: bool = False
    """Allow only deterministic algorithms, also on GPUs (slower)."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What a step is to do whose loss or gradient is nan or infinite. stop: end the run with a diagnosis and
    the last checkpoint; skip: leave the weights as they are and go on, which the record counts (ten such
    steps in a row end the run)."""
    peer_timeout: float = 30.0
    """Several processes: seconds after which one that answers no more, as its machine or the network is down,
    is given up and the others end."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other field of transformers.TrainingArguments by its name, such as
    --train.extra.neftune_noise_alpha 5."""

    def problems(self) -> Iterator[Problem]:
        positive = (
            "epochs",
            "max_steps",
            "per_device_batch_size",
            "max_tokens_per_batch",
            "global_batch_size",
            "global_batch_tokens",
            "max_length",
            "learning_rate",
            "log_steps",
            "keep_checkpoints",
            "eval_steps",
            "peer_timeout",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield Problem(setting=f"train.{name}", message=f"expected more than 0, found {value}")
        for name in (
            "min_learning_rate",
            "warmup",
            "weight_decay",
            "l1_penalty",
            "max_grad_norm",
            "early_stopping",
            "save_steps",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                yield Problem(setting=f"train.{name}", message=f"expected 0 or more, found {value}")
        for name in ("label_smoothing", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield Problem(
                    setting=f"train.{name}", message=f"expected 0 <= value < 1, found {getattr(self, name)}"
                )
        if not 0 < self.layer_decay <= 1:
            yield Problem(
                setting="train.layer_decay",
                message=f"expected 0 < layer_decay <= 1, found {self.layer_decay}",
            )
        if not 0 <= self.seed < 2**32:
            yield Problem(setting="train.seed", message=f"expected 0 <= seed < 2^32, found {self.seed}")
        if self.learning_rate is not None and self.min_learning_rate > self.learning_rate:
            yield Problem(
                setting="train.min_learning_rate",
                message=(
                    f"{self.min_learning_rate} is above the peak --train.learning_rate {self.learning_rate}"
                ),
            )
        if self.schedule == "reduce_on_plateau" and self.warmup:
            yield Problem(
                setting="train.warmup", message="reduce_on_plateau has no warm-up", fix="use --train.warmup 0"
            )
