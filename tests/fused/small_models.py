"""Models of a few weights, of every architecture that has fused layers."""

from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = 50
KINDS = ("marian", "bart", "mbart", "m2m_100", "pegasus", "t5", "t5_gated", "mt5")
BART_LIKE = {
    "marian": (MarianMTModel, MarianConfig), "bart": (BartForConditionalGeneration, BartConfig), "mbart": (MBartForConditionalGeneration, MBartConfig),
    "m2m_100": (M2M100ForConditionalGeneration, M2M100Config), "pegasus": (PegasusForConditionalGeneration, PegasusConfig),
}  # fmt: skip


def make(kind: str, *, dropout: float = 0.0, activation: str | None = None, width: int = 24, heads: int = 2) -> Any:
    """A model in training mode; its norms and biases are not what they start as."""
    torch.manual_seed(1)
    ids = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if kind in BART_LIKE:
        sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", 2), ("attention_heads", heads), ("ffn_dim", 40), ("layerdrop", 0.0))}
        rates = {"dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout}
        chosen = {"activation_function": activation} if activation else {}
        cls, config = BART_LIKE[kind]
        model = cls(config(vocab_size=WORDS, d_model=width, max_position_embeddings=200, forced_eos_token_id=None, **ids, **sides, **rates, **chosen))
    else:
        gated = {"feed_forward_proj": "gated-gelu"} if kind == "t5_gated" else {}
        if activation:
            gated = {"feed_forward_proj": activation}
        cls, config = (MT5ForConditionalGeneration, MT5Config) if kind == "mt5" else (T5ForConditionalGeneration, T5Config)
        model = cls(config(vocab_size=WORDS, d_model=width, d_kv=9, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=heads, dropout_rate=dropout, **ids, **gated))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model.train()


def batch(rows: int = 3, source: int = 11, target: int = 18) -> dict[str, torch.Tensor]:
    """Rows of unequal length on both sides."""
    torch.manual_seed(2)
    inputs = torch.randint(3, WORDS, (rows, source))
    labels = torch.randint(3, WORDS, (rows, target))
    mask = torch.ones_like(inputs)
    for row in range(1, rows):
        inputs[row, source - 2 * row :], mask[row, source - 2 * row :], labels[row, target - row :] = 0, 0, -100
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model: Any, given: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**given, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], share: float = 1e-4) -> None:
    """Equal but for rounding: each gradient within ``share`` of the largest of all."""
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=2e-3, atol=float(largest) * share, msg=lambda text, name=name: f"{name}: {text}")
