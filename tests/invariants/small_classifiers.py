"""Small classifiers that the tests of this folder compare: texts with labels of every kind, models of some
thousand weights."""

from __future__ import annotations

import atexit
import functools
import random
import shutil
import tempfile
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from small_runs import CONTEXT, Run, fit

import hftk
from hftk.config import EvalConfig, ModelConfig, TrainConfig, override
from hftk.launch import on_main
from hftk.task import Splits
from hftk.tasks.class_predictions import feature_of
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE, Labels, ProblemType
from hftk.training.trainer import ExactTrainer

_BERT = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "max_position_embeddings": CONTEXT},
    "distilbert": {
        "n_layers": 2,
        "n_heads": 2,
        "dim": 32,
        "hidden_dim": 64,
        "max_position_embeddings": CONTEXT,
    },
    "roberta": {**_BERT, "max_position_embeddings": CONTEXT + 2},
    # One layer looks at everything, the other at 8 tokens on either side.
    "modernbert": {
        **_BERT,
        "max_position_embeddings": CONTEXT,
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 16,
    },
}
ARCHITECTURES = (*SHAPES, "gpt2")
KINDS: tuple[ProblemType, ...] = (SINGLE, MULTI, REGRESSION)
LABELS = {
    SINGLE: Labels(problem_type=SINGLE, names=("a", "b", "c", "d")),
    MULTI: Labels(problem_type=MULTI, names=("a", "b", "c")),
    REGRESSION: Labels(problem_type=REGRESSION),
}


def rows_of(
    kind: ProblemType, count: int, *, pairs: bool = False, seed: int = 0, longest: int = CONTEXT - 4
) -> Dataset:
    """Texts of 2 to ``longest`` characters, which are the tokens here, with labels that follow from the
    letters; some classes are rare. With ``pairs``, texts are half as long."""
    rng = random.Random(seed)

    def text() -> str:
        length = rng.randint(2, longest // (2 if pairs else 1))
        return "".join(rng.choice("aaaabbbccd ") for _ in range(length - 1)) + "."

    columns: dict[str, list[Any]] = {"text": [text() for _ in range(count)]}
    if pairs:
        columns["text_pair"] = [text() for _ in range(count)]
    # From the second letter: about 4 : 3 : 2 : 1.
    first = [max(0, "abcd".find(text[1 if len(text) > 2 else 0])) for text in columns["text"]]
    columns["label"] = {
        SINGLE: first,
        MULTI: [
            [i for i, letter in enumerate("bcd") if text.count(letter) > 3 + i] for text in columns["text"]
        ],
        REGRESSION: [text.count("a") / len(text) for text in columns["text"]],
    }[kind]
    types = {name: Value("string") for name in columns} | {"label": feature_of(LABELS[kind])}
    return Dataset.from_dict(columns, features=Features(types))


@functools.cache
def gpt2_folder() -> str:
    """A language model that was trained elsewhere: a classification head is put on it."""
    return on_main(_save_gpt2)


def _save_gpt2() -> str:
    from transformers import GPT2Config, GPT2LMHeadModel

    from hftk.models.tokenizers import train_characters

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = train_characters(["abcd ."], 16)
    end = tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=32,
            n_positions=CONTEXT,
            vocab_size=len(tokenizer),
            bos_token_id=end,
            eos_token_id=end,
        )
        GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(output: Any, *, architecture: str = "bert", dropout: float = 0.0, **changes: Any) -> Any:
    """fp32, character tokens, three steps of plain SGD; ``changes`` are ``train={...}``,
    ``class_weights=...`` and the like."""
    if architecture == "gpt2":
        model = ModelConfig(name=gpt2_folder(), dropout=dropout)
    else:
        model = ModelConfig(
            size="tiny",
            architecture=architecture,
            tokenizer="characters",
            config=SHAPES[architecture],
            dropout=dropout,
        )
    config = hftk.ClassificationConfig(
        model=model,
        train=TrainConfig(
            max_steps=3,
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
        suspicious_labels=0,
        output=str(output),
    )
    return override(config, changes)


# --- One global batch in several ways

CASES: dict[str, tuple[str, ProblemType, dict[str, Any]]] = {
    **{
        f"{architecture}, {kind}": (architecture, kind, {})
        for architecture in ARCHITECTURES
        for kind in KINDS
    },
    "pairs": ("bert", SINGLE, {}),
    "balanced": ("bert", SINGLE, {"class_weights": "balanced"}),
    "balanced labels": ("bert", MULTI, {"class_weights": "balanced"}),
    "focal": ("bert", SINGLE, {"focal_gamma": 2.0}),
    "focal labels, balanced": ("bert", MULTI, {"focal_gamma": 2.0, "class_weights": "balanced"}),
    "smoothing": ("bert", SINGLE, {"train": {"label_smoothing": 0.1}}),
    "token budget": ("bert", SINGLE, {"train": {"max_tokens_per_batch": 130}}),
    "last batch of one row": ("bert", SINGLE, {}),
}
"""Name to architecture, kind of labels and what differs in the settings."""


def run_case(
    name: str, per_device_batch_size: int, output: Any, trainer: type[ExactTrainer] = ExactTrainer
) -> Run:
    architecture, kind, changes = CASES[name]
    train = {**changes.get("train", {}), "per_device_batch_size": per_device_batch_size}
    config = make_config(output, architecture=architecture, **{**changes, "train": train})
    rows = rows_of(kind, 33 if name == "last batch of one row" else 48, pairs=name == "pairs")
    return fit(config, Splits(train=rows), trainer)


# --- A whole run with everything that looks at the validation split


def whole_run(output: Any, *, per_device_batch_size: int) -> dict[str, Any]:
    """Several labels per row: judged on the way, best weights by a score, thresholds and temperature fitted,
    then judged."""
    config = make_config(
        output,
        temperature_scaling=True,
        suspicious_labels=3,
        train={
            "metric_for_best_model": "f1_micro",
            "restore_best": True,
            "eval_steps": 1,
            "per_device_batch_size": per_device_batch_size,
        },
    )
    splits = Splits(
        train=rows_of(MULTI, 48), validation=rows_of(MULTI, 31, seed=1), test=rows_of(MULTI, 13, seed=2)
    )
    run = fit(config, splits)
    model, tokenizer = run.trained.model, run.trained.tokenizer
    after = hftk.evaluate(
        hftk.Classification(config), model, tokenizer, splits.held_out, config.eval, output=output
    )
    assert after is not None
    return {
        "history": run.history,
        "weights": run.weights,
        "thresholds": model.config.thresholds,
        "analysis": run.trained.analysis,
        "scores": {s.name: s.value for s in after.scores},
        "predictions": after.predictions,
    }


# --- Judging


def judge(architecture: str, kind: ProblemType, rows: Dataset, batch_size: int) -> Any:
    """Evaluation of an untrained model."""
    config = make_config("unused", architecture=architecture, eval={"batch_size": batch_size})
    splits = Splits(train=rows_of(kind, 48), test=rows)
    task = hftk.Classification(config)
    model, tokenizer = hftk.load_model(config.model, task, splits)
    scatter(model)
    judged = hftk.evaluate(task, model, tokenizer, splits.held_out, config.eval)
    assert judged is not None
    return judged


def scatter(model: Any) -> None:
    """Larger weights, so that the answers to the rows differ: those of a new model are nearly all the
    same."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)


def seen(judged: Any) -> dict[str, Any]:
    """What two ways of judging must agree on."""
    return {
        "scores": {s.name: s.value for s in judged.scores},
        "predictions": judged.predictions,
        "logits": np.asarray(judged.outputs["logits"]),
        "facts": judged.facts,
    }
