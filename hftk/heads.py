"""Classification heads: the layer that makes a model's logits, and what can be done to it without changing the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hftk.choices import note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def last_layer(model: PreTrainedModel) -> torch.nn.Module:
    """The linear layer that makes the logits: the last one with as many outputs as there are labels.

    Raises:
        RuntimeError: there is none.
    """
    import torch

    found = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == model.config.num_labels]
    if not found:
        raise RuntimeError(f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs")
    return found[-1]


def is_new(model: PreTrainedModel, new: Any) -> bool:
    """Whether the head is among ``new``, the names of the weights that no checkpoint holds."""
    head = last_layer(model)
    name = next(name for name, module in model.named_modules() if module is head)
    return any(weight.startswith(f"{name}.") for weight in new)


def divide_logits(model: PreTrainedModel, temperature: float) -> None:
    """Divide the head's weights and bias, in place: the logits are divided by ``temperature``."""
    import torch

    with torch.no_grad():
        for parameter in last_layer(model).parameters():
            parameter.div_(temperature)


def start_around(model: PreTrainedModel, mean: float, spread: float) -> None:
    """Let the head give ``spread`` times what it gave, around ``mean``; in place."""
    import torch

    head: Any = last_layer(model)
    with torch.no_grad():
        head.weight.mul_(spread)
        if head.bias is not None:
            head.bias.fill_(mean)


def trained_labels(config: Any) -> list[str] | None:
    """Labels of a checkpoint that is a classifier already, in the order of its outputs; None for any other."""
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        return None
    return [config.id2label[i] for i in range(config.num_labels)]


def keep_meaning(model: PreTrainedModel, old: list[str]) -> None:
    """Let every output of a head that was trained before mean the label that it meant, in the order of the model's labels."""
    import torch

    settings: Any = model.config
    new = [settings.id2label[i] for i in range(settings.num_labels)]
    if new == old:
        return
    if sorted(new) != sorted(old):
        known = "made anew" if len(new) != len(old) else "kept, and its outputs get new names"
        note(f"the checkpoint was trained for other labels ({', '.join(old[:5])}{' ...' if len(old) > 5 else ''}): its head is {known}")
        return
    order = torch.tensor([old.index(name) for name in new])
    with torch.no_grad():
        for parameter in last_layer(model).parameters():
            parameter.copy_(parameter[order])
