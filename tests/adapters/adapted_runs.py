"""Small pre-trained models of five architectures, and short runs with adapters on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Value
from datasets import Features as Types

import hftk
from hftk.config import EvalConfig, GenerationSettings, ModelConfig, TrainConfig, override
from hftk.evaluation.evaluate import run_model
from hftk.task import Splits

KINDS = ("bert", "gpt2", "llama", "t5", "marian")
TASKS: dict[str, Any] = {
    "bert": (hftk.Classification, hftk.ClassificationConfig),
    "gpt2": (hftk.CausalLM, hftk.CausalLMConfig),
    "llama": (hftk.CausalLM, hftk.CausalLMConfig),
    "t5": (hftk.Summarization, hftk.SummarizationConfig),
    "marian": (hftk.Summarization, hftk.SummarizationConfig),
}
CONTEXT = 64
_BART = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_model": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
    },
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": CONTEXT},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": CONTEXT,
    },
    "t5": {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64},
    "marian": _BART,
}
LABELS = ["calm", "loud", "odd"]


def splits_of(kind: str, count: int = 16) -> Splits:
    rng = random.Random(0)
    texts = [
        "".join(rng.choice("aaabcd ") for _ in range(rng.randint(12, 40))).strip() + "."
        for _ in range(2 * count)
    ]
    if kind == "bert":
        table = {"text": texts, "label": [i % 3 for i in range(len(texts))]}
        rows = Dataset.from_dict(
            table, features=Types({"text": Value("string"), "label": ClassLabel(names=LABELS)})
        )
    elif kind in ("gpt2", "llama"):
        rows = Dataset.from_dict({"text": texts})
    else:
        rows = Dataset.from_dict(
            {"source": texts, "target": ["".join(sorted(text)).strip() for text in texts]}
        )
    return Splits(train=rows.select(range(count)), validation=rows.select(range(count, 2 * count)))


def make_config(kind: str, output: Any, name: str | None, **changes: Any) -> Any:
    """Three steps of AdamW in fp32 without dropout; ``changes`` are ``model={...}`` and the like."""
    made: dict[str, Any] = (
        {"name": name}
        if name
        else {
            "size": "tiny",
            "architecture": kind,
            "config": SHAPES[kind],
            "vocab_size": 60,
            "tokenizer": "wordpiece" if kind == "bert" else "characters",
        }
    )
    extra = {"suspicious_labels": 0} if kind == "bert" else {}
    config = TASKS[kind][1](
        model=ModelConfig(**made, dropout=0.0 if kind != "llama" else None),
        train=TrainConfig(
            max_steps=3,
            per_device_batch_size=8,
            global_batch_size=8,
            learning_rate=1e-2,
            precision="fp32",
            log_steps=1,
            save_steps=0,
        ),
        eval=EvalConfig(resamples=0),
        generation=GenerationSettings(max_new_tokens=8),
        output=str(output),
        **extra,
    )
    return override(config, changes)


def make_base(kind: str, folder: Path) -> str:
    """A model with weights large enough to see what changes its outputs; of BERT the encoder alone, as
    pre-training leaves it."""
    config = make_config(kind, folder, None)
    model, tokenizer = hftk.load_model(config.model, TASKS[kind][0](config), splits_of(kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name and "shared" not in name:
                parameter.mul_(4.0)
    (model.bert if kind == "bert" else model).save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(kind: str, config: Any) -> tuple[Any, Any, Any]:
    task = TASKS[kind][0](config)
    return (task, *hftk.load_model(config.model, task, splits_of(kind), seed=config.train.seed))


def fit(kind: str, config: Any) -> tuple[Any, Any]:
    """The task and what ``hftk.fit`` gave."""
    task, model, tokenizer = load(kind, config)
    return task, hftk.fit(task, model, tokenizer, splits_of(kind), config)


def judge(kind: str, task: Any, model: Any, tokenizer: Any) -> np.ndarray:
    """Logits, or nats of each document, of the validation rows."""
    features = task.encode(splits_of(kind).validation, tokenizer, max_length=CONTEXT, training=False)
    outputs = run_model(task, model, tokenizer, features, batch_size=4)
    return np.asarray(outputs["logits" if kind == "bert" else "nats"], dtype=np.float64)


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
