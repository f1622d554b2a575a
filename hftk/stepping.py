"""What stands between two backward passes, with little Python around it.

torch and Accelerate walk over the modules of a model for every clipping and every ``zero_grad``, and AdamW looks up the state of
each weight for every update, which a small model's step feels. What they find does not change, and is listed once here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Listed(NamedTuple):
    """The weights of a parameter group that have a state, and it."""

    group: dict[str, Any]
    weights: list[torch.Tensor]
    exp_avgs: list[torch.Tensor]
    exp_avg_sqs: list[torch.Tensor]
    steps: torch.Tensor
    """(weights,) numbers of updates, of which each state has its own as a view."""
    each: list[torch.Tensor]
    others: list[torch.nn.Parameter]
    """Weights that had no gradient yet."""


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW on a CPU: the same kernel on the same tensors, which are listed once instead of at each step."""

    _listed: list[_Listed] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        grads = self._gradients() if closure is None else None
        if self._listed is None or grads is None:
            loss = super().step(closure)
            self._listed = [self._list(group) for group in self.param_groups]
            return loss
        for listed, given in zip(self._listed, grads, strict=True):
            if not given:
                continue
            group = listed.group
            listed.steps.add_(1)
            torch._fused_adamw_(
                listed.weights, given, listed.exp_avgs, listed.exp_avg_sqs, [], listed.each,
                amsgrad=False, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
                weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, grad_scale=None, found_inf=None,
            )  # fmt: skip
        return None

    def load_state_dict(self, state_dict: Any) -> None:
        self._listed = None
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._listed = None
        super().add_param_group(param_group)

    def _gradients(self) -> list[list[torch.Tensor]] | None:
        """Those of the listed weights, or None where the list does not fit: one has none now, another has one, or a state is new."""
        if self._listed is None or any(weight.grad is not None for listed in self._listed for weight in listed.others):
            return None
        if any(self.state[w]["exp_avg"] is not a for listed in self._listed for w, a in zip(listed.weights, listed.exp_avgs, strict=True)):
            return None
        found = [[weight.grad for weight in listed.weights if weight.grad is not None] for listed in self._listed]
        return found if all(len(f) == len(listed.weights) for f, listed in zip(found, self._listed, strict=True)) else None

    def _list(self, group: dict[str, Any]) -> _Listed:
        weights = [w for w in group["params"] if self.state.get(w)]
        others = [w for w in group["params"] if not self.state.get(w)]
        states = [self.state[w] for w in weights]
        steps = torch.stack([state["step"] for state in states]) if states else torch.zeros(0)
        each = list(steps.unbind())
        for state, step in zip(states, each, strict=True):
            state["step"] = step
        return _Listed(group, weights, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], steps, each, others)


def clip_grad_norm_(weights: list[torch.nn.Parameter], most: float) -> torch.Tensor:
    """As :func:`torch.nn.utils.clip_grad_norm_`: the norm of all gradients together, which are scaled down to ``most``."""
    return torch.nn.utils.clip_grad_norm_(weights, most)


@contextmanager
def settled_memory() -> Iterator[None]:
    """Inside, Python's garbage collector leaves out what is there now: models and data, which no step throws away."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def short_zero_grad(model: torch.nn.Module, weights: list[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, ``model.zero_grad()`` forgets the gradients of ``weights`` without looking for them in the model."""

    def zero_grad(set_to_none: bool = True) -> None:
        for weight in weights:
            weight.grad = None

    model.zero_grad = zero_grad  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.zero_grad
