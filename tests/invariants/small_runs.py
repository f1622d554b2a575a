"""Small runs that the tests of this folder compare: texts, models of some thousand weights, and a ``fit``
that is watched."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from transformers import TrainerCallback

import hftk
from hftk.config import EvalConfig, ModelConfig, TrainConfig, override
from hftk.task import Splits
from hftk.training import fit as training
from hftk.training.trainer import ExactTrainer

ROOT = Path(__file__).parents[2]
CONTEXT = 64
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": CONTEXT},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
    },
}


def texts(lengths: list[int], seed: int = 0) -> list[str]:
    """A text of each length in characters, which are the tokens here; no two are alike."""
    rng = random.Random(seed)
    return ["".join(rng.choice("abcdefgh ") for _ in range(n - 1)) + "." for n in lengths]


def one_to_a_block(count: int, seed: int = 0) -> list[str]:
    """Texts that are alone in their block: what differs in length is padded."""
    rng = random.Random(seed)
    return texts([rng.randint(33, CONTEXT - 1) for _ in range(count)], seed)


def many_to_a_block(count: int, seed: int = 0) -> list[str]:
    """Texts of which a block holds one to a handful, seldom quite full: there are too few short ones for
    that."""
    rng = random.Random(seed)
    return texts(
        [rng.choice([rng.randint(3, 8), *(rng.randint(30, 50) for _ in range(2))]) for _ in range(count)],
        seed,
    )


def splits_of(train: list[str], validation: list[str] | None = None) -> Splits:
    rows = [Dataset.from_dict({"text": split}) if split else None for split in (train, validation)]
    return Splits(train=rows[0], validation=rows[1])


def make_config(
    output: Any, *, architecture: str = "gpt2", dropout: float | None = None, **changes: Any
) -> Any:
    """fp32, character tokens, five steps of plain SGD; ``changes`` are ``train={...}``, ``eval={...}`` and
    the like."""
    config = hftk.CausalLMConfig(
        model=ModelConfig(
            size="tiny",
            architecture=architecture,
            tokenizer="characters",
            config=SHAPES[architecture],
            dropout=dropout,
        ),
        # SGD: Adam makes whole steps out of gradients that are zero but for rounding, such as those of
        # GPT-2's key biases.
        train=TrainConfig(
            max_steps=5,
            per_device_batch_size=16,
            global_batch_size=16,
            learning_rate=0.1,
            optimizer="sgd",
            max_grad_norm=0.0,
            precision="fp32",
            log_steps=1,
            save_steps=0,
        ),
        eval=EvalConfig(resamples=0),
        output=str(output),
    )
    return override(config, changes)


@dataclass
class Run:
    """What a watched run showed."""

    gradient: dict[str, torch.Tensor] = field(default_factory=dict)
    """Name to gradient, before the first optimizer step."""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    trained: Any = None

    def column(self, name: str) -> list[Any]:
        return [point[name] for point in self.history if name in point]


def load(config: Any, splits: Splits) -> tuple[Any, Any, Any]:
    task = (hftk.CausalLM if isinstance(config, hftk.CausalLMConfig) else hftk.Classification)(config)
    return (task, *hftk.load_model(config.model, task, splits, seed=config.train.seed))


def fit(config: Any, splits: Splits, trainer: type[ExactTrainer] = ExactTrainer) -> Run:
    """``hftk.fit`` from new weights (or the checkpoint that ``config.resume`` means), with its first
    gradient."""
    run = Run()

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                run.gradient = {n: p.grad.clone() for n, p in model.named_parameters()}

    class Watched(trainer):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Watch())

    task, model, tokenizer = load(config, splits)
    with mock.patch.object(training, "ExactTrainer", Watched):
        run.trained = training.fit(task, model, tokenizer, splits, config)
    run.weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    run.history = run.trained.history
    return run


@contextmanager
def stopping_at(step: int, act: Any = None) -> Iterator[None]:
    """Inside, every run is asked to stop while it does ``step``: by a flag, or by what ``act`` does."""
    asked = [False]
    original = ExactTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        if self.state.global_step + 1 == step and act is not None:
            act(self)
        return loss

    def count(self: Any, samples: Any, device: Any) -> Any:
        asked[0] = act is None and self.state.global_step + 1 == step
        return counted(self, samples, device)

    counted = ExactTrainer._get_num_items_in_batch
    patches = [
        mock.patch.object(ExactTrainer, "training_step", training_step),
        mock.patch.object(ExactTrainer, "_get_num_items_in_batch", count),
    ]
    if act is None:
        patches.append(mock.patch("hftk.training.trainer.stop_requested", lambda: asked[0]))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    assert one.keys() == other.keys() and one
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return (apart / sum(float(t.double().square().sum()) for t in one.values())) ** 0.5


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in history]


TWO_PROCESSES = ROOT / "recipes/accelerate/two_processes.yaml"


def launch_two(
    script: str, *arguments: str, cwd: Path, settings: Path = TWO_PROCESSES, processes: int = 2
) -> str:
    """Start a script of this folder in two processes, or so many, by a launch config; what it printed."""
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(settings),
        "--num_processes",
        str(processes),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*launch, str(Path(__file__).with_name(script)), *arguments],
        cwd=cwd,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = started.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # the launcher alone would leave its children running
        printed, errors = started.communicate()
    assert started.returncode == 0, printed[-2000:] + errors[-8000:]
    return printed


# --- One global batch in several ways

CASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "gpt2, padded": ("gpt2", one_to_a_block(80), {}),
    "llama, padded": ("llama", one_to_a_block(80), {}),
    "gpt2, packed": ("gpt2", many_to_a_block(200), {}),
    "llama, packed": ("llama", many_to_a_block(200), {}),
    "token budget": ("gpt2", one_to_a_block(80), {"max_tokens_per_batch": 150}),
    "last batch of one row": ("gpt2", one_to_a_block(65), {}),
    "penalty and smoothing": ("gpt2", many_to_a_block(200), {"l1_penalty": 1e-3, "label_smoothing": 0.1}),
    "clipping and AdamW": (
        "gpt2",
        one_to_a_block(80),
        {"max_grad_norm": 0.5, "optimizer": "adamw", "learning_rate": 1e-3},
    ),
}
"""Name to architecture, training texts and what differs in ``train``."""


def run_case(
    name: str, per_device_batch_size: int, output: Any, trainer: type[ExactTrainer] = ExactTrainer
) -> Run:
    architecture, documents, train = CASES[name]
    train = {**train, "per_device_batch_size": per_device_batch_size}
    config = make_config(output, architecture=architecture, train=train)
    return fit(config, splits_of(documents), trainer)
