"""Rows of each kind of problem, and classifiers small enough to be made in a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, List, Value
from datasets import Features as Types

from hftk.config import ModelConfig, TrainConfig
from hftk.models.load import load_model
from hftk.models.tokenizers import train_byte_bpe
from hftk.task import Splits
from hftk.tasks.classification import Classification, ClassificationConfig
from hftk.tasks.labels import MULTI, REGRESSION, SINGLE

TEXTS = [
    "good",
    "bad film",
    "a good, good film indeed",
    "so-so",
    "the film was bad. Very bad and long",
    "早上好，世界",
    "indeed good",
]
NAMES = ["bad", "good", "so-so"]
CLASSES = [1, 0, 1, 2, 0, 1, 1]
SETS = [[1], [0, 2], [1, 2], [], [0], [0, 1, 2], [2]]
NUMBERS = [0.5, -1.0, 2.25, 0.0, -3.5, 1.0, 4.0]
KINDS = (SINGLE, MULTI, REGRESSION)
FIELDS: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    "distilbert": {"n_layers": 2, "dim": 16, "n_heads": 2, "hidden_dim": 24},
    "roberta": {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    "modernbert": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    },
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64},
}


def rows_of(
    kind: str,
    values: Sequence[Any] | None = None,
    texts: Sequence[str] = TEXTS,
    pairs: Sequence[str] | None = None,
) -> Dataset:
    given = {SINGLE: CLASSES, MULTI: SETS, REGRESSION: NUMBERS}[kind] if values is None else list(values)
    label = {
        SINGLE: ClassLabel(names=NAMES),
        MULTI: List(ClassLabel(names=NAMES)),
        REGRESSION: Value("float64"),
    }[kind]
    table: dict[str, Any] = {"text": list(texts)} | ({"text_pair": list(pairs)} if pairs is not None else {})
    types = Types({**{role: Value("string") for role in table}, "label": label})
    return Dataset.from_dict({**table, "label": given}, features=types)


def task_of(train: dict[str, Any] | None = None, **settings: Any) -> Classification:
    return Classification(ClassificationConfig(train=TrainConfig(**(train or {})), **settings))


def make(architecture: str, kind: str = SINGLE, pairs: Sequence[str] | None = None) -> tuple[Any, Any]:
    """A model with weights large enough to see what changes its logits, and its tokenizer."""
    rows = rows_of(kind, pairs=pairs)
    if architecture == "gpt2":  # a decoder: no table of sizes, yet it may be loaded by name
        from transformers import AutoConfig, AutoModelForSequenceClassification

        tokenizer = train_byte_bpe(TEXTS, 300)
        fields = (
            task_of().model_settings(Splits(train=rows)) | FIELDS["gpt2"] | {"vocab_size": len(tokenizer)}
        )
        torch.manual_seed(0)
        config = AutoConfig.for_model("gpt2", **{**fields, "num_labels": len(fields["id2label"])})
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.25)
        return model.eval(), tokenizer
    config = ModelConfig(
        size="tiny",
        architecture=architecture,
        config=FIELDS[architecture],
        vocab_size=200,
        initialization="xavier",
    )
    model, tokenizer = load_model(config, task_of(), Splits(train=rows))
    return model.eval(), tokenizer


MADE: dict[tuple[str, str], tuple[Any, Any]] = {}


def made(architecture: str, kind: str = SINGLE) -> tuple[Any, Any]:
    """As :func:`make`, kept for tests that change nothing."""
    if (architecture, kind) not in MADE:
        MADE[architecture, kind] = make(architecture, kind)
    return MADE[architecture, kind]


def batch_of(
    task: Classification,
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    which: Sequence[int] | None = None,
    training: bool = True,
) -> Any:
    features = task.encode(rows, tokenizer, max_length=64, training=training)
    chosen = [features[i] for i in (range(len(features)) if which is None else which)]
    return task.collator(tokenizer, model, training=training)(chosen)


def logits_of(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return task_of().outputs(model, batch)["logits"]


TRUE = torch.tensor(CLASSES)
PRESENT = torch.tensor([[float(i in row) for i in range(3)] for row in SETS])
