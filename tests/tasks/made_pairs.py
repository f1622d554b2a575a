"""Small encoder-decoders and made-up pairs of texts that the tests of this folder share."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset

import hftk
from hftk.config import EvalConfig, GenerationSettings, ModelConfig, TrainConfig, override
from hftk.task import Splits
from hftk.training import fit as training
from hftk.training.trainer import ExactTrainer

CONTEXT = 64
BART = {
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
    "t5": {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "d_model": 32, "d_kv": 16, "d_ff": 64},
    "marian": BART,
}
ARCHITECTURES = ("t5", "marian", "bart")


def rows_of(count: int, *, seed: int = 0, longest: int = 40) -> Dataset:
    """Sources of 2 to ``longest`` characters, which are the tokens here; the target are its letters but a,
    sorted."""
    rng = random.Random(seed)
    sources = [
        "".join(rng.choice("aaabcd") for _ in range(rng.randint(1, longest - 1))) + "." for _ in range(count)
    ]
    return Dataset.from_dict(
        {"source": sources, "target": ["".join(sorted(text.replace("a", ""))) for text in sources]}
    )


def bart_folder(folder: Path) -> str:
    """A BART as it comes from elsewhere: its decoder starts with the end token, and an end is forced at the
    last place."""
    from transformers import BartConfig, BartForConditionalGeneration

    from hftk.models.tokenizers import train_characters

    tokenizer = train_characters(["abcd."], 16, frame="t5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = BartConfig(
            **BART,
            vocab_size=len(tokenizer),
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
            decoder_start_token_id=1,
            forced_eos_token_id=1,
        )
        BartForConditionalGeneration(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_config(
    output: Any, architecture: str, *, kind: Any = None, name: str | None = None, **changes: Any
) -> Any:
    """fp32, character tokens, three steps of plain SGD without dropout; ``changes`` are ``train={...}`` and
    the like."""
    if name is not None:
        model = ModelConfig(name=name, dropout=0.0)
    else:
        model = ModelConfig(
            size="tiny",
            architecture=architecture,
            tokenizer="characters",
            config=SHAPES[architecture],
            dropout=0.0,
        )
    config = (kind or hftk.SummarizationConfig)(
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
        generation=GenerationSettings(max_new_tokens=0),
        output=str(output),
    )
    return override(config, changes)


def task_of(config: Any) -> Any:
    return (hftk.Translation if isinstance(config, hftk.TranslationConfig) else hftk.Summarization)(config)


def load(config: Any, splits: Splits) -> tuple[Any, Any, Any]:
    task = task_of(config)
    return (task, *hftk.load_model(config.model, task, splits))


def scatter(model: Any, factor: float = 8.0) -> None:
    """Larger weights, so that what a new model writes differs from row to row."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(factor)


def teach(task: Any, model: Any, tokenizer: Any, steps: int = 90) -> None:
    """A few quick steps, after which what the model writes differs from row to row."""
    rows = rows_of(96)
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=True)
    collate = task.collator(tokenizer, model, training=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = collate([features[i] for i in range(step % 6 * 16, step % 6 * 16 + 16)])
        total, items = task.loss(model, batch)["tokens"]
        (total / items).backward()
        optimizer.step()
        optimizer.zero_grad()


def fit(config: Any, splits: Splits) -> tuple[Any, dict[str, torch.Tensor]]:
    """``hftk.fit`` from new weights, and the gradient of its first step."""
    task, model, tokenizer = load(config, splits)
    gradient: dict[str, torch.Tensor] = {}

    class Watched(ExactTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            if not gradient:
                gradient.update(
                    {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
                )
            return loss

    with mock.patch.object(training, "ExactTrainer", Watched):
        trained = hftk.fit(task, model, tokenizer, splits, config)
    return trained, gradient


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    assert one.keys() == other.keys() and one
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return (apart / sum(float(t.double().square().sum()) for t in one.values())) ** 0.5


def logits_of(task: Any, model: Any, batch: Any) -> Any:
    """(batch, positions, vocabulary): what the loss is over, whole."""
    return model(**task.way.aligned(batch)[0]).logits
