"""The recipes as they are shipped, made small enough to be run hundreds of times."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parents[2] / "recipes"
BART = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "d_model": 16,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
SETTINGS: dict[str, Any] = {
    "model": {"vocab_size": 300, "dropout": 0.1},
    "train": {
        "max_steps": 6,
        "per_device_batch_size": 8,
        "global_batch_size": 16,
        "precision": "fp32",
        "log_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": 0.003,
        "keep_checkpoints": 1,
    },
    "eval": {"resamples": 10, "batch_size": 8},
}
"""Dropout draws from the random state; old checkpoints go; two micro-batches make a step."""


@dataclass(frozen=True)
class Recipe:
    """A recipe's file and what makes it small."""

    name: str
    script: str
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)

    def prepare(self, folder: Path) -> list[str]:
        """Write its data and settings; the command that runs it, but for ``--output``. The same command goes
        on after a kill."""
        data = folder / f"{self.name}.jsonl"
        data.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows), encoding="utf-8"
        )
        settings = folder / f"{self.name}.yaml"
        given = _laid_over(SETTINGS, self.settings)
        given["data"] = {
            **given.get("data", {}),
            "path": str(data),
            "validation_fraction": 0.2,
            "test_fraction": 0.2,
        }
        settings.write_text(yaml.safe_dump(given), encoding="utf-8")
        return [str(RECIPES / self.script), "--config", str(settings), "--resume", "auto"]


def _laid_over(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return {
        **values,
        **{k: _laid_over(values.get(k, {}), v) if isinstance(v, dict) else v for k, v in over.items()},
    }


def _texts(count: int, words: tuple[int, int], seed: int) -> list[str]:
    rng = random.Random(seed)
    known = ["cat", "dog", "house", "tree", "red", "small", "über", "自行车", "бежит", "and", "the"]
    return [
        " ".join([*(rng.choice(known) for _ in range(rng.randint(*words))), str(number)])
        for number in range(count)
    ]


def _gpt2() -> Recipe:
    rows = [{"text": text} for text in _texts(80, (3, 40), 0)]
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 48}
    settings = {
        "model": {"config": shape},
        "generation": {"max_new_tokens": 8},
        "train": {"schedule": "cosine", "warmup": 0.2},
    }
    return Recipe("gpt2", "gpt2_clm.py", settings, rows)


def _bert() -> Recipe:
    """Its best weights, by accuracy, are restored at the end."""
    rows = [
        {"text": text, "label": "animal" if "cat" in text else "other"} for text in _texts(120, (1, 12), 1)
    ]
    shape = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 48,
    }
    train = {
        "metric_for_best_model": "accuracy",
        "restore_best": True,
        "learning_rate": 0.02,
        "max_length": 32,
    }
    return Recipe("bert", "bert_classification.py", {"model": {"config": shape}, "train": train}, rows)


def _marian() -> Recipe:
    """Text is generated between the steps too, and greedily at the end."""
    rows = [{"en": text, "de": " ".join(reversed(text.split()))} for text in _texts(100, (2, 8), 2)]
    settings = {"model": {"config": BART}, "generation": {"max_new_tokens": 12}, "eval": {"generate_rows": 8}}
    return Recipe("marian", "marian_translation.py", settings, rows)


def _t5() -> Recipe:
    """Beams, and the weights of the best score."""
    rows = [{"document": f"{text}. {text[:9]}.", "summary": text[:9]} for text in _texts(100, (2, 8), 3)]
    shape = {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_model": 16, "d_kv": 8, "d_ff": 32}
    settings = {
        "model": {"config": shape},
        "generation": {"max_new_tokens": 10, "num_beams": 3},
        "eval": {"generate_rows": 8},
        "train": {"metric_for_best_model": "rougeL", "restore_best": True},
    }
    return Recipe("t5", "t5_summarization.py", settings, rows)


ALL = {recipe.name: recipe for recipe in (_gpt2(), _bert(), _marian(), _t5())}
