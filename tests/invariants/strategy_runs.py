"""GPT-2, BERT and T5 of some thousand weights, 20 steps each, that are the same run under every strategy."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import small_classifiers
import small_runs
from datasets import Dataset
from safetensors.torch import load_file

import hftk
from hftk.config import EvalConfig, GenerationSettings, ModelConfig, TrainConfig, override
from hftk.launch import on_main
from hftk.task import Splits

STEPS = 20
T5 = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64}
TRAIN: dict[str, Any] = {
    "max_steps": STEPS, "per_device_batch_size": 4, "global_batch_size": 16, "learning_rate": 0.05, "optimizer": "sgd",
    "max_grad_norm": 1.0, "precision": "fp32", "log_steps": 1, "save_steps": 0, "eval_steps": 10,
}  # fmt: skip
"""Two processes have two micro-batches each, one process four: accumulation, clipping and evaluation are in it."""


def pairs(count: int, seed: int = 0) -> Dataset:
    """Sources of 2 to 40 letters; the target are its letters but a, sorted."""
    rng = random.Random(seed)
    sources = ["".join(rng.choice("aaabcd") for _ in range(rng.randint(1, 39))) + "." for _ in range(count)]
    return Dataset.from_dict(
        {"source": sources, "target": ["".join(sorted(text.replace("a", ""))) for text in sources]}
    )


def gpt2(output: Any) -> tuple[Any, Splits]:
    config = small_runs.make_config(output, dropout=0.0)
    return config, small_runs.splits_of(small_runs.many_to_a_block(200), small_runs.many_to_a_block(30, seed=1))


def bert(output: Any) -> tuple[Any, Splits]:
    rows = [small_classifiers.rows_of("single_label_classification", count, seed=count) for count in (100, 21)]
    return small_classifiers.make_config(output), Splits(train=rows[0], validation=rows[1])


def t5(output: Any) -> tuple[Any, Splits]:
    config = hftk.SummarizationConfig(
        model=ModelConfig(size="tiny", architecture="t5", tokenizer="characters", config=T5, dropout=0.0),
        train=TrainConfig(), eval=EvalConfig(resamples=0), generation=GenerationSettings(max_new_tokens=0), output=str(output),
    )  # fmt: skip
    return config, Splits(train=pairs(100), validation=pairs(21, seed=1))


CASES = {"gpt2": gpt2, "bert": bert, "t5": t5}


def run_case(name: str, output: Path, **changes: Any) -> dict[str, Any]:
    """History and final weights, as they are in ``output``, of a run from new weights."""
    config, splits = CASES[name](output)
    config = override(config, {"train": TRAIN})
    config = override(config, changes)
    kinds = {hftk.CausalLMConfig: hftk.CausalLM, hftk.ClassificationConfig: hftk.Classification}
    task = kinds.get(type(config), hftk.Summarization)(config)
    model, tokenizer = hftk.load_model(config.model, task, splits, seed=config.train.seed)
    trained = hftk.fit(task, model, tokenizer, splits, config)
    seen = hftk.evaluate(task, trained.model, tokenizer, splits.held_out, config.eval)
    assert seen is not None
    return {
        "history": small_runs.timeless(trained.history), "facts": trained.model_facts,
        "scores": {score.name: score.value for score in seen.scores}, "predictions": seen.predictions,
        "samples": seen.samples,
    }  # fmt: skip


def run_all(under: Callable[[], AbstractContextManager[Any]], folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What each case shows, run inside ``under()``."""
    found = {}
    for name in CASES:
        with under():
            found[name] = run_case(name, folder / name, **changes)
            found[name]["weights"] = on_main(load_file, folder / name / "model.safetensors")
    return found
