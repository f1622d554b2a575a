"""GPT-2, BERT and T5 of some thousand weights, 20 steps each, that are the same run under every strategy."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import small_classifiers
import small_runs
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import hftk
from hftk import console
from hftk.config import EvalConfig, GenerationSettings, ModelConfig, TrainConfig, override
from hftk.features.streams import encode_round_robin
from hftk.launch import StopRequested, on_main
from hftk.task import Features, Splits
from hftk.training import fit

STEPS = 20
T5 = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64}
TRAIN: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_batch_size": 4,
    "global_batch_size": 16,
    "learning_rate": 0.05,
    "optimizer": "sgd",
    "max_grad_norm": 1.0,
    "precision": "fp32",
    "log_steps": 1,
    "save_steps": 0,
    "eval_steps": 10,
}
"""Two processes have two micro-batches each, one process four: accumulation, clipping and evaluation are in
it."""


def pairs(count: int, seed: int = 0) -> Dataset:
    """Sources of 2 to 40 letters; the target are its letters but a, sorted."""
    rng = random.Random(seed)
    sources = ["".join(rng.choice("aaabcd") for _ in range(rng.randint(1, 39))) + "." for _ in range(count)]
    return Dataset.from_dict(
        {"source": sources, "target": ["".join(sorted(text.replace("a", ""))) for text in sources]}
    )


def gpt2(output: Any) -> tuple[Any, Splits]:
    config = small_runs.make_config(output, dropout=0.0, generation={"max_new_tokens": 4})
    return config, small_runs.splits_of(
        small_runs.many_to_a_block(200), small_runs.many_to_a_block(30, seed=1)
    )


def bert(output: Any) -> tuple[Any, Splits]:
    rows = [
        small_classifiers.rows_of("single_label_classification", count, seed=count) for count in (100, 21)
    ]
    return small_classifiers.make_config(output), Splits(train=rows[0], validation=rows[1])


def t5(output: Any) -> tuple[Any, Splits]:
    config = hftk.SummarizationConfig(
        model=ModelConfig(size="tiny", architecture="t5", tokenizer="characters", config=T5, dropout=0.0),
        train=TrainConfig(),
        eval=EvalConfig(resamples=0),
        generation=GenerationSettings(max_new_tokens=6),
        output=str(output),
    )
    return config, Splits(train=pairs(100), validation=pairs(9, seed=1))


def stream(output: Any) -> tuple[Any, Splits]:
    """Texts that come one after the other; chunks of 20 of them are encoded together."""
    config, splits = gpt2(output)
    texts = splits.train["text"][:]
    rows = IterableDataset.from_generator(lambda: ({"text": text} for text in texts))
    return override(config, {"data": {"streaming": True}}), replace(splits, train=rows)


CASES = {"gpt2": gpt2, "bert": bert, "t5": t5, "stream": stream}
MODELS = ("gpt2", "bert", "t5")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "layers at rates of their own": (
        "bert",
        {
            "train": {
                "max_steps": 5,
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "layer_decay": 0.8,
                "weight_decay": 0.1,
            }
        },
    ),
    "penalized, half of it frozen": (
        "gpt2",
        {
            "train": {"max_steps": 5, "optimizer": "rmsprop", "learning_rate": 1e-3, "l1_penalty": 1e-3},
            "model": {"frozen": ["1"]},
        },
    ),
    "the best of three, its temperature fitted": (
        "bert",
        {
            "train": {"max_steps": 6, "eval_steps": 2, "learning_rate": 1.5, "restore_best": True},
            "temperature_scaling": True,
        },
    ),
    "an adapter": (
        "t5",
        {
            "train": {"max_steps": 5, "learning_rate": 0.5},
            "model": {"adapter": {"method": "lora", "rank": 2}},
        },
    ),
    "a token budget, activations computed twice": (
        "gpt2",
        {
            "train": {
                "max_steps": 5,
                "optimizer": "adam",
                "learning_rate": 1e-3,
                "max_tokens_per_batch": 150,
                "gradient_checkpointing": True,
            }
        },
    ),
    "arithmetic in 16 bits": ("gpt2", {"train": {"max_steps": 5, "precision": "bf16"}}),
}
"""Name to case and what differs: what touches weights outside of a forward pass."""
TOLERANCES = {"arithmetic in 16 bits": 2e-2}


def run(name: str, output: Path, extra: dict[str, Any]) -> dict[str, Any]:
    """What a case or a variant shows, from new weights; ``weights`` are those that were saved. All processes
    get the same."""
    case, changes = VARIANTS.get(name, (name, {}))
    return run_config(*_prepared(case, output, extra, changes))


def _prepared(case: str, output: Path, *changes: dict[str, Any]) -> tuple[Any, Splits]:
    config, splits = CASES[case](str(output))
    for values in ({"train": TRAIN}, *changes):
        config = override(config, values)
    return config, splits


def run_config(config: Any, splits: Splits) -> dict[str, Any]:
    kinds = {hftk.CausalLMConfig: hftk.CausalLM, hftk.ClassificationConfig: hftk.Classification}
    task = kinds.get(type(config), hftk.Summarization)(config)
    console.clear_notes()
    unset_hf_deepspeed_config()  # of the run before: it would shard what is loaded
    model, tokenizer = hftk.load_model(config.model, task, splits, seed=config.train.seed)
    with mock.patch.object(fit, "STREAM_ROWS", 20):
        trained = hftk.fit(task, model, tokenizer, splits, config)
    seen = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval)
    assert seen is not None
    return {
        "history": small_runs.timeless(trained.history),
        "facts": trained.model_facts,
        "choices": [line for line in trained.choices if str(config.output) not in line],
        "scores": {score.name: score.value for score in seen.scores},
        "samples": seen.samples,
        "written": [line.get("prediction") for line in seen.predictions],
        "weights": on_main(saved_weights, Path(config.output)),
    }


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files right in a folder."""
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


ADAM = {"train": {"max_steps": 6, "optimizer": "adamw", "learning_rate": 1e-3}}


def interrupted(output: Path, extra: dict[str, Any]) -> dict[str, Any]:
    """A run with AdamW and dropout from start to end; the same run, stopped in step 3 and continued."""
    changes = (extra, ADAM, {"model": {"dropout": 0.1}})
    straight = run_config(*_prepared("gpt2", output / "straight", *changes))
    begin("gpt2", output / "stopped", *changes)
    return {"straight": straight, "continued": go_on("gpt2", output / "stopped", *changes)}


def begin(case: str, output: Path, *changes: dict[str, Any]) -> None:
    """The first three steps of a run, with a checkpoint behind them."""
    config, splits = _prepared(case, output, *changes)
    try:
        with small_runs.stopping_at(3):
            run_config(config, splits)
    except StopRequested:
        return
    raise AssertionError("it was not stopped")


def go_on(case: str, output: Path, *changes: dict[str, Any]) -> dict[str, Any]:
    config, splits = _prepared(case, output, *changes)
    return run_config(override(config, {"resume": "auto"}), splits)


def shared_out() -> dict[str, Any]:
    """What this process encodes of seven chunks, what it gets, and what it is told if another one fails."""
    mine: list[int] = []

    def encode(chunk: int) -> Features:
        mine.append(chunk)
        if chunk == 8:
            raise ValueError("not a row")
        return Features(columns={"n": [np.array([chunk])]}, rows=np.zeros(1, int), lengths=np.ones(1, int))

    got = [int(features.columns["n"][0][0]) for features in encode_round_robin(range(7), encode)]
    encoded, told = list(mine), ""
    try:
        list(encode_round_robin(range(7, 10), encode))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    return {"encoded": encoded, "got": got, "told": told}
