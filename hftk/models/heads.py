"""Classification heads: the layer that makes a model's logits, and what can be done to it without changing
the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hftk.console import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def last_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The linear layer that makes the logits: the last one with as many outputs as there are labels.

    Raises:
        RuntimeError: there is none.
    """
    import torch

    # An adapter's matrices have as many outputs as its rank, which may be the number of labels.
    layers = [
        m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".lora_" not in name
    ]
    found = [m for m in layers if m.out_features == model.config.num_labels]
    if not found:
        raise RuntimeError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs"
        )
    return found[-1]


def is_new(model: PreTrainedModel, new: Any) -> bool:
    """Whether the head is among ``new``, the names of the weights that no checkpoint holds."""
    head = last_layer(model)
    name = next(name for name, module in model.named_modules() if module is head)
    return any(weight.startswith(f"{name}.") for weight in new)


def divide_logits(model: PreTrainedModel, temperature: float) -> None:
    """Divide the head's weights and bias, in place: the logits are divided by ``temperature``."""
    import torch

    from hftk.models import sharded

    head = last_layer(model)
    with torch.no_grad(), sharded.gathered_for_update(head, model):
        for parameter in head.parameters():
            parameter.div_(temperature)


def start_around(model: PreTrainedModel, mean: float, spread: float) -> None:
    """Let the head give ``spread`` times what it gave, around ``mean``; in place."""
    import torch

    head: Any = last_layer(model)
    with torch.no_grad():
        head.weight.mul_(spread)
        if head.bias is not None:
            head.bias.fill_(mean)


def start_at_frequencies(model: PreTrainedModel, frequencies: Sequence[float]) -> None:
    """Let the head's biases be the log-odds of ``frequencies``, (labels,) shares of rows that have each
    label; in place.

    Of many labels a row has few: from 1/2 for each, the first hundreds of steps go into unlearning that, and
    on the way a pre-trained encoder forgets what it knew (Lin et al. 2017, *Focal Loss for Dense Object
    Detection*, section 3.3).
    """
    import torch

    head: Any = last_layer(model)
    if head.bias is None:
        return
    with torch.no_grad():
        head.bias.copy_(torch.logit(torch.tensor(frequencies, dtype=head.bias.dtype), eps=1e-4))


def trained_labels(config: Any) -> list[str] | None:
    """Labels of a checkpoint that is a classifier already, in the order of its outputs; None for any
    other."""
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        return None
    return [config.id2label[i] for i in range(config.num_labels)]


def keep_meaning(model: PreTrainedModel, old: list[str]) -> None:
    """Let every output of a head that was trained before mean the label that it meant, in the order of the
    model's labels."""
    import torch

    settings: Any = model.config
    new = [settings.id2label[i] for i in range(settings.num_labels)]
    if new == old:
        return
    if sorted(new) != sorted(old):
        known = "made anew" if len(new) != len(old) else "kept, and its outputs get new names"
        note(
            "the checkpoint was trained for other labels"
            f" ({', '.join(old[:5])}{' ...' if len(old) > 5 else ''}): its head is {known}"
        )
        return
    order = torch.tensor([old.index(name) for name in new])
    with torch.no_grad():
        for parameter in last_layer(model).parameters():
            parameter.copy_(parameter[order])


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every linear layer by its full name: torch's, bitsandbytes's, and the Conv1D of GPT-2."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {
        name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    }


def head_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that stay as they are below adapters and quantization: all outside of the
    base model (classifier, score, lm_head, qa_outputs ...), what makes the logits, and poolers."""
    base: Any = model.base_model
    inside = {id(module) for module in base.modules()} if base is not model else set()
    output = model.get_output_embeddings()

    def is_head(name: str, module: Any) -> bool:
        outside = id(module) not in inside if inside else "." not in name
        return outside or module is output or "pooler" in name.split(".")

    return [name for name, module in linear_layers(model).items() if is_head(name, module)]
