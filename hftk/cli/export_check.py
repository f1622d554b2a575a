"""Whether a model that was written in another form still says the same: logits and greedy texts on real
rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROWS = 8
NEW_TOKENS = 16
PROMPT_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model says to some rows."""

    inputs: list[dict[str, Any]]
    """What the model was called with, row by row: name to a tensor of (1, tokens)."""
    logits: list[Any]
    """(1, ..., outputs) of each call, in float32."""
    texts: list[str]
    """Greedy continuations or targets; none of a classifier."""


def ask(task: Any, model: Any, tokenizer: Any, rows: Any) -> Said:
    """Run the task's model on the first :data:`ROWS` of ``rows``, with no gradient."""
    import torch

    from hftk.models.chunked_cross_entropy import whole_logits
    from hftk.models.load import default_length

    features = task.encode(rows, tokenizer, max_length=default_length(model.config), training=False)
    collate = task.collator(tokenizer, model, training=False)
    inputs: list[dict[str, Any]] = []
    logits: list[Any] = []

    def note_inputs(module: Any, arguments: Any, named: Mapping[str, Any]) -> None:
        inputs.append({name: value for name, value in named.items() if isinstance(value, torch.Tensor)})

    hooks = [
        model.register_forward_pre_hook(note_inputs, with_kwargs=True),
        model.register_forward_hook(lambda module, arguments, output: logits.append(output.logits.float())),
    ]
    try:
        with torch.no_grad(), whole_logits(model):
            for number in range(min(len(features), ROWS)):
                task.outputs(model, collate([features[number]]))
    finally:
        for hook in hooks:
            hook.remove()
    return Said(inputs=inputs, logits=logits, texts=_texts(task, model, tokenizer, rows))


def _texts(task: Any, model: Any, tokenizer: Any, rows: Any) -> list[str]:
    """Greedy texts: the targets of an encoder-decoder or of a prompted decoder, the continuations of a
    language model."""
    from hftk.config import GenerationSettings
    from hftk.generation.generate import generate
    from hftk.models.load import default_length

    length = default_length(model.config)
    new = max(1, min(NEW_TOKENS, length // 4))
    if not task.generates:
        return []
    texts = list(rows[task.inputs[0]][:ROWS])
    if "generation" not in task.judged_by:
        texts = [text[: min(PROMPT_CHARACTERS, len(text) // 2)] for text in texts]
    prompts, _ = task.prompts(texts, tokenizer, max_length=length, new=new)
    found = generate(
        model, tokenizer, prompts, GenerationSettings(max_new_tokens=new), max_prompt_tokens=length
    )
    return [one.text for one in found]


def recompute(said: Said, forward: Callable[[Mapping[str, Any]], Any]) -> Said:
    """What a bare function from inputs to logits says to the same inputs; it generates nothing."""
    return Said(inputs=said.inputs, logits=[forward(one).float() for one in said.inputs], texts=[])


def compare(before: Said, after: Said, tolerance: float) -> dict[str, Any]:
    """How far two models lie apart: ``difference`` is the largest of two logits, ``tolerance`` (given as a
    share of the largest logit, where that is above 1) what it may be, ``same_choice`` the share of positions
    with the same likeliest output."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(before.logits, after.logits, strict=True))
    largest = max(float(a.abs().max()) for a, _ in pairs)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    found = {
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
        "largest_logit": largest,
        "tolerance": tolerance * max(1.0, largest),
        "same_choice": same / sum(a[..., 0].numel() for a, _ in pairs),
    }
    if before.texts and after.texts:
        found["texts"] = len(before.texts)
        found["same_texts"] = sum(a == b for a, b in zip(before.texts, after.texts, strict=True))
    return found
