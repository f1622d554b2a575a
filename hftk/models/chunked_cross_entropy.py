"""Cross-entropy over a vocabulary whose (tokens x vocabulary) logits are never whole in memory.

The last projection and the loss are computed for some hundred positions at a time, and their gradients at
once with them, so that logits are read while they are in the cache and then forgotten; positions that are not
trained are left out. The same numbers as ``cross_entropy(model(...).logits, labels, reduction="sum")`` up to
rounding. (The idea of taking the gradient in the forward pass is that of Hsu et al. 2024, *Liger Kernel*;
Wijmans et al. 2024, *Cut Your Losses in Large-Vocabulary Language Models*, go further with kernels for one
GPU.)

What a model does behind its last projection (scaled or capped logits) is not known here: on a corner of its
first batch it is seen whether the projections come out as they are, and a model that does more to them keeps
its whole logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from hftk.models import device_map
from hftk.task import IGNORED

LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
"""Logits of one piece: on a CPU they fit into the cache, on a GPU they keep it busy."""
FEWEST_POSITIONS = 256
"""Positions of a piece at least: below, the gradient of a large projection is read and written too often."""
TRIED_ON = (2, 16)
"""Rows and positions of the first batch on which a model is tried."""

AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Fields of configs whose models do more to their logits, for models without weights, of which nothing can be
found out."""

_in_pieces: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
"""Model to whether its loss may be computed in pieces."""


def cross_entropy_sum(
    model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats, summed over the positions of ``labels`` that are not -100: a scalar with a
    gradient.

    ``model`` may be wrapped (DDP, PEFT); it is called once, with ``inputs``. ``labels`` is (batch,
    positions), each the target of the logits in its place.
    """
    if _can_be_in_pieces(model, inputs):
        with _loss_instead_of_logits(model, labels, label_smoothing, summed=True):
            total: torch.Tensor = model(**inputs, use_cache=False)
        return total
    logits = _behind_virtual_tokens(model(**inputs, use_cache=False).logits, labels)
    return cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def token_losses(model: Any, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each position, (batch, positions), 0 where the label is -100. For judging: it
    has no gradient."""
    with torch.no_grad():
        if _can_be_in_pieces(model, inputs):
            with _loss_instead_of_logits(model, labels, 0.0, summed=False):
                nats: torch.Tensor = model(**inputs, use_cache=False)
            return nats
        logits = _behind_virtual_tokens(model(**inputs, use_cache=False).logits, labels)
        flat = logits.flatten(0, 1).float()  # five times as fast as with the classes in the middle
        return cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view(
            labels.shape
        )


def _behind_virtual_tokens(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``values`` of the positions that have a label: prompt tuning puts others before them."""
    return values if values.shape[1] == labels.shape[1] else values[:, -labels.shape[1] :]


class ChunkedCrossEntropy(torch.autograd.Function):
    """The loss of ``hidden @ weight.T + bias``, summed, with its gradients computed piece by piece in the
    forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        """``hidden`` (positions, width), ``weight`` (vocabulary, width), ``labels`` (positions,) without
        -100; a scalar."""
        dtype = _arithmetic(hidden)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        from_hidden = torch.empty_like(hidden) if needs_hidden else None
        from_weight: torch.Tensor | None = None
        from_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        matrix, even = weight.to(dtype), smoothing / len(weight)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for piece in _pieces(hidden, weight):
                states, targets = hidden[piece].to(dtype), labels[piece, None]
                nats, from_logits = _nats_and_gradient(states, matrix, bias, targets, smoothing)
                total += nats.sum()
                slopes = from_logits.to(dtype)
                if from_hidden is not None:
                    from_hidden[piece] = slopes @ matrix
                if needs_weight:
                    from_weight = _add_product(from_weight, slopes, states)
                if from_bias is not None:
                    from_bias += from_logits.sum(0)
            if smoothing:
                # An even share of every entry: all pieces' at once, since it is the same for every position.
                column, states = weight.float().sum(0), hidden.float().sum(0)
                count = len(labels)
                shift = 0.0 if bias is None else bias.float().sum()
                picked = _picked(hidden, matrix, bias, labels)
                total += smoothing * picked - even * (states @ column + count * shift)
                if from_hidden is not None:
                    from_hidden -= (even * column).to(from_hidden.dtype)
                if from_weight is not None:
                    from_weight -= even * states
                if from_bias is not None:
                    from_bias -= even * count
            if needs_weight and from_weight is None:  # no position is trained
                from_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.save_for_backward(from_hidden, from_weight, from_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from_hidden, from_weight, from_bias = ctx.saved_tensors
        scale = upstream[0]
        weight = (
            None if from_weight is None else from_weight.mul_(scale).to(ctx.dtypes[0])
        )  # large, and torch refuses a second time
        bias = None if from_bias is None else (from_bias * scale).to(ctx.dtypes[1])
        return None if from_hidden is None else from_hidden * scale, weight, bias, None, None


def _nats(
    states: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions, 1) nats of ``targets`` and (positions, vocabulary) probabilities, both float32."""
    logits = (states @ matrix.T).float()
    if bias is not None:
        logits += bias.float()
    wanted = logits.gather(1, targets)
    highest = logits.amax(1, keepdim=True)
    probabilities = torch.softmax(logits, 1, out=logits)
    # The logarithm of the sum, from the largest probability: unlike the target's it cannot be 0.
    return highest - probabilities.amax(1, keepdim=True).log() - wanted, probabilities


def _picked(
    hidden: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Sum of the targets' logits."""
    logits = (hidden.float() * matrix[labels].float()).sum()
    return logits if bias is None else logits + bias[labels].float().sum()


def _nats_and_gradient(
    states: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of each of ``targets``, and the gradient of the (positions, vocabulary) logits but for the even
    share."""
    nats, probabilities = _nats(states, matrix, bias, targets)
    return nats, probabilities.scatter_add_(1, targets, torch.full_like(nats, smoothing - 1))


def _add_product(total: torch.Tensor | None, gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Add the product of a piece to the (vocabulary, width) sum."""
    if total is None:
        return (gradient.T @ states).float()
    return (
        total.addmm_(gradient.T, states) if gradient.dtype == total.dtype else total.add_(gradient.T @ states)
    )


def _arithmetic(hidden: torch.Tensor) -> torch.dtype:
    """The type in which the model's own projection would be computed."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _pieces(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    size = max(
        FEWEST_POSITIONS, LOGITS_AT_ONCE.get(hidden.device.type, LOGITS_AT_ONCE["cuda"]) // len(weight)
    )
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


# --- In place of the model's logits


class _Reached(Exception):
    """The model has come to its last projection."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _plain(model: Any) -> Any:
    """The transformers model inside DDP and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head(plain: Any) -> torch.nn.Linear | None:
    """The last projection, where it is a plain one: a quantized or adapted one has more to do."""
    find = getattr(plain, "get_output_embeddings", None)
    head = find() if find else None
    if hasattr(getattr(head, "weight", None), "ds_id"):
        return None  # DeepSpeed gathers it for the layer's own forward pass alone
    if device_map.is_offloaded(plain):
        return None  # it is there in the layer's own forward pass alone
    return head if type(head) is torch.nn.Linear or getattr(head, "is_projection", False) else None


@contextmanager
def _loss_instead_of_logits(
    model: Any, labels: torch.Tensor, smoothing: float, *, summed: bool
) -> Iterator[None]:
    """Inside, calling ``model`` returns the loss. It is computed within the call, since that is where DDP and
    FSDP expect the weights to be used, the gathered ones of FSDP above all."""
    plain = _plain(model)
    head, own = _head(plain), plain.forward
    assert head is not None

    def forward(*arguments: Any, **inputs: Any) -> torch.Tensor:
        # Spread over devices (model.device_map), a projection is where the word embeddings are: not with the
        # last layer.
        device = head.weight.device
        hidden = _behind_virtual_tokens(_before(head, plain, own, arguments, inputs), labels).to(device)
        states, targets, weight = hidden.flatten(0, 1), labels.to(device).flatten(), head.weight
        bias, extra = head.bias, getattr(plain, "final_logits_bias", None)
        if extra is not None:
            extra = extra[0].to(device)
            bias = extra if bias is None else bias + extra
        # Tensors without values (hftk.planning) cannot say which labels count: all of them.
        counted = None if _has_no_values(labels) else targets != IGNORED
        if counted is not None:
            states, targets = states[counted], targets[counted]
        if summed:
            total: torch.Tensor = ChunkedCrossEntropy.apply(states, weight, bias, targets, smoothing)
            return total.to(labels.device)
        nats = states.new_zeros(labels.numel(), dtype=torch.float32)
        nats[slice(None) if counted is None else counted] = _each(states, weight, bias, targets)
        return nats.view(labels.shape).to(labels.device)

    shadowed = vars(plain).get("forward")
    plain.forward = forward
    try:
        yield
    finally:
        if shadowed is None:
            del plain.forward
        else:
            plain.forward = shadowed


def _before(head: torch.nn.Module, plain: Any, own: Any, arguments: Any, inputs: Any) -> torch.Tensor:
    """What ``head`` is given in the model's own forward pass, which ends there."""

    def stop(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        raise _Reached(arguments[0])

    hook = head.register_forward_pre_hook(stop)
    try:
        own(*arguments, **inputs)
    except _Reached as reached:
        return reached.hidden
    finally:
        hook.remove()
    raise RuntimeError(f"{type(plain).__name__} does not use its output embeddings")


def _each(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    dtype = _arithmetic(hidden)
    matrix = weight.to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        parts = [
            _nats(hidden[p].to(dtype), matrix, bias, labels[p, None])[0][:, 0]
            for p in _pieces(hidden, weight)
        ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _can_be_in_pieces(model: Any, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the loss in pieces is the model's: found out on the corner of its first batch, and
    remembered."""
    plain = _plain(model)
    if hasattr(model, "_orig_mod") or hasattr(plain, "_orig_mod"):
        return False  # torch.compile keeps the forward that it has seen
    known = _in_pieces.get(plain)
    if known is None and _has_no_values(next(iter(inputs.values()))):
        return _head(plain) is not None and not any(
            getattr(plain.config, name, None) for name in AFTER_THE_HEAD
        )
    if known is None:
        known = _in_pieces[plain] = _head(plain) is not None and _hands_out_projections(model, inputs)
    return known


@contextmanager
def whole_logits(model: Any) -> Iterator[None]:
    """Inside, the loss of ``model`` is computed from whole logits, for those who look at them."""
    plain = _plain(model)
    known = _in_pieces.get(plain)
    _in_pieces[plain] = False
    try:
        yield
    finally:
        del _in_pieces[plain]
        if known is not None:
            _in_pieces[plain] = known


def _has_no_values(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "fake_mode") or tensor.is_meta


def _hands_out_projections(model: Any, inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the logits are the last projection and nothing else: numbers put in its place must come out as
    they are."""
    plain, (rows, positions) = _plain(model), TRIED_ON
    corner = {name: value[:rows, :positions] for name, value in inputs.items()}
    put: list[torch.Tensor] = []

    def replace(module: Any, arguments: Any, projected: torch.Tensor) -> torch.Tensor:
        put.append(
            torch.linspace(-100, 100, projected.numel(), device=projected.device)
            .view(projected.shape)
            .to(projected.dtype)
        )
        return put[-1]

    # Not through DistributedDataParallel, whose forward pass is a meeting of processes: one of them may find
    # out alone.
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    head, training = _head(plain), model.training
    assert head is not None
    hook = head.register_forward_hook(replace)
    model.eval()
    try:
        with torch.no_grad():
            logits = inner(**corner, use_cache=False).logits
    except (
        AttributeError,
        IndexError,
        RuntimeError,
        TypeError,
    ):  # a model that is put together in another way
        return False
    finally:
        hook.remove()
        model.train(training)
    extra = getattr(plain, "final_logits_bias", None)
    if len(put) != 1:
        return False
    expected = put[0].to(logits.device)
    return torch.equal(
        logits.float(), (expected if extra is None else expected + extra.to(logits.device)).float()
    )
