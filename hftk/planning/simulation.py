"""One training step and one judged batch on tensors that have a shape but no memory, with every byte counted.

The task's own loss, the model's own forward and backward and the run's own optimizer are executed under
torch's ``FakeTensorMode``, and :class:`LiveBytes` sees each storage come and go. So the count is exact for
every architecture, adapter and loss, with no formula. What it cannot see is scratch space inside a kernel and
what an allocator wastes. Attention keeps what torch's fused kernels keep (query, key, value, output and one
number per row, as FlashAttention does: Dao et al. 2022, arXiv:2205.14135) unless ``model.attention`` is
``eager``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from hftk.config import InputError, Problem, RunConfig
from hftk.models.architectures import kind_of
from hftk.models.encoder_decoder import joined_config
from hftk.models.hub_names import from_config
from hftk.planning.fake_adapters import adapt
from hftk.task import Task
from hftk.training.activation_offload import moves, stays, weight_shapes
from hftk.training.optimizers import BITSANDBYTES, make_optimizer, state_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

STATES = ("weights", "gradients", "optimizer")
KINDS = (*STATES, "copies", "activations", "logits", "temporary")
"""What a byte is for. ``copies``: weights that autocast has converted; ``logits``: scores over the
vocabulary, their gradients and the softmax; ``temporary``: born in the backward pass or the optimizer
step."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What :func:`simulate` counted on one device without sharding; bytes, unless said otherwise."""

    parameters: int
    """Number of weights; those that two layers share count once."""
    trained: int
    """Number of weights that are trained."""
    largest_layer: int
    """Number of weights of the largest of the repeated layers."""
    outside_layers: int
    """Number of weights in no repeated layer: embeddings, head."""
    weights: int
    gradients: int
    optimizer: int
    peak: Mapping[str, int]
    """Kind of :data:`KINDS` to bytes, at the moment when most is held in a training step."""
    batch_peak: int
    """Most bytes held at once beside weights, gradients, optimizer state and converted weights: what a batch
    costs."""
    kept: int
    """Bytes that the forward pass keeps for the backward pass: activations, and logits."""
    judging_peak: int
    """Most bytes held at once beside the weights while a batch is judged, without gradients."""
    tokens: int
    """Tokens of the micro-batch, those of the targets included."""
    flops_forward: int
    """Floating-point operations of its forward pass: two for each multiply-add of matrix products and
    attention."""
    flops_training: int
    """Those of forward and backward pass, what gradient checkpointing computes again included."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Rows and tokens of one micro-batch, every row as long as it may be."""

    rows: int
    length: int
    """Tokens of a row."""
    target_length: int = 0
    """Tokens of a target, in tasks that have targets."""


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    """Five products where the forward pass has two, as scores are computed again (Dao et al. 2022)."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape) * 5 // 2)


FLOPS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operation to the function that counts its multiplications and additions, as torch's FlopCounterMode has
it."""


class LiveBytes(TorchDispatchMode):
    """Inside, every storage that an operation makes is counted from its birth to its death. Works on fake and
    on real tensors."""

    def __init__(self, vocabulary: int = 0, positions: int = 0) -> None:
        """``vocabulary`` and ``positions`` (rows x tokens of the logits) tell logits by their number of
        elements."""
        super().__init__()
        self.live = dict.fromkeys(KINDS, 0)
        self.peak = dict(self.live)
        self.batch_peak = 0
        self.stage = "weights"
        """Kind of what is born now."""
        self.flops = 0
        self._logits = vocabulary * positions, vocabulary
        self._known: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    @property
    def total(self) -> int:
        return sum(self.live.values())

    @property
    def batch(self) -> int:
        return self.live["activations"] + self.live["logits"] + self.live["temporary"]

    def restart(self) -> None:
        """Forget the peaks and the operations so far."""
        self.peak, self.batch_peak, self.flops = dict(self.live), self.batch, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = FLOPS.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor, func, args)
        return out

    def _hold(self, tensor: torch.Tensor, func: Any, args: tuple[Any, ...]) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        kind = self.stage
        if kind in ("activations", "temporary"):
            if tensor.dim() > 1 and tensor.shape[-1] == self._logits[1] and tensor.numel() <= self._logits[0]:
                kind = "logits"
            elif func is torch.ops.aten._to_copy.default and self.kind_of(args[0]) == "weights":
                kind = "copies"
        self._add(storage, kind)

    def _add(self, storage: Any, kind: str) -> None:
        key, size = id(storage), storage.nbytes()
        self._known[key] = kind, size, weakref.ref(storage, lambda _: self._drop(key))
        self.live[kind] += size
        self.batch_peak = max(self.batch_peak, self.batch)
        if self.total > sum(self.peak.values()):
            self.peak = dict(self.live)

    def _drop(self, key: int) -> None:
        kind, size, _ = self._known.pop(key)
        self.live[kind] -= size

    def kind_of(self, tensor: Any) -> str:
        """Kind of the storage behind a tensor; "" for one that was made outside."""
        found = self._known.get(id(tensor.untyped_storage()))
        return found[0] if found else ""

    def is_now(self, tensor: torch.Tensor, kind: str) -> None:
        """Book the storage of ``tensor`` under another kind."""
        key = id(tensor.untyped_storage())
        if key in self._known:
            old, size, ref = self._known[key]
            self.live[old] -= size
            self.live[kind] += size
            self._known[key] = kind, size, ref


def simulate(
    config: RunConfig,
    task: Task,
    made: PretrainedConfig,
    shape: BatchShape,
    *,
    precision: str,
    judged: BatchShape,
    accumulate: bool = False,
    dtype: torch.dtype | None = None,
) -> Footprint:
    """Count one optimizer step of ``shape`` and one judged batch, without memory for either; seconds, for any
    size of model.

    ``precision`` is fp32, bf16 or fp16. With ``accumulate`` the gradients of an earlier micro-batch are held
    through the step. ``dtype`` overrules ``model.dtype``: sharded weights are gathered, and so computed with,
    in 16 bits.

    Raises:
        InputError: no model can be made of these settings; the adapter needs a package that is missing.
    """
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    vocabulary = int(getattr(made.get_text_config(decoder=True), "vocab_size", 0) or 0)
    logits = vocabulary if "loss" in task.judged_by else 0, shape.rows * (shape.target_length or shape.length)
    live = LiveBytes(*logits)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), live:
        model = _make(config, task, made, dtype)
        try:
            return _count_step(config, task, model, shape, judged, precision, accumulate, live)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            message = (
                f"{made.model_type} looks at the values of its tensors while it computes ({error}): it cannot"
                " be planned for"
            )
            raise InputError(
                Problem(setting="model.name", message=message, fix="run a few steps: --train.max_steps 3")
            ) from error


def _make(config: RunConfig, task: Task, made: PretrainedConfig, dtype: torch.dtype | None) -> Any:
    """The model with everything that training adds to it; InputError where none can be made."""
    from transformers.initialization import no_init_weights

    try:
        with no_init_weights():
            model = _build(config, task, made, dtype)
        model.tie_weights()
        return adapt(model, config.model, task.auto_model)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        AssertionError,
        ArithmeticError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"a {made.model_type} cannot be made of these settings: {reason}"
        raise InputError(
            Problem(
                setting="model.config", message=message, fix="change or leave out the field that is named"
            )
        ) from error


def _count_step(
    config: RunConfig,
    task: Task,
    model: Any,
    shape: BatchShape,
    judged: BatchShape,
    precision: str,
    accumulate: bool,
    live: LiveBytes,
) -> Footprint:
    """An optimizer's state, then one whole step, then one judged batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with _gradients_booked(trained, live):
        live.stage = "optimizer"
        optimizer = _with_state(model, config, trained)
        live.restart()
        weights, states = live.live["weights"], live.live["optimizer"]
        if accumulate:
            live.stage = "gradients"
            _give_gradients(trained)
        kept, forward, training = _forward_backward(task, model, shape, precision, live)
        gradients = live.live["gradients"]
        if config.train.max_grad_norm and trained:
            torch.nn.utils.clip_grad_norm_(trained, config.train.max_grad_norm)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    peak, batch_peak = dict(live.peak), live.batch_peak
    if config.train.optimizer in BITSANDBYTES:  # its kernels take no fake tensors
        states = peak["optimizer"] = state_bytes(config.train.optimizer, model)
    return Footprint(
        parameters=sum(_count(p) for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        **_layers(model),
        weights=weights,
        gradients=gradients,
        optimizer=states,
        peak=peak,
        batch_peak=batch_peak,
        kept=kept,
        judging_peak=_judge(task, model, judged, live),
        tokens=shape.rows * (shape.length + shape.target_length),
        flops_forward=forward,
        flops_training=training,
    )


def _build(
    config: RunConfig, task: Task, made: PretrainedConfig, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    import transformers

    asked = torch.float32 if config.model.dtype == "auto" else getattr(torch, config.model.dtype)
    attention = "eager" if config.model.attention == "eager" else None
    if task.auto_model == "AutoModelForSeq2SeqLM" and kind_of(made) == "encoder":
        made = joined_config(made)
    model: PreTrainedModel = from_config(
        getattr(transformers, task.auto_model),
        made,
        dtype=dtype or asked,
        **({"attn_implementation": attention} if attention else {}),
    )
    return model


@contextmanager
def _gradients_booked(trained: Sequence[torch.nn.Parameter], live: LiveBytes) -> Iterator[None]:
    """Inside, a gradient that is complete is booked as one."""
    hooks = [
        p.register_post_accumulate_grad_hook(lambda p: live.is_now(p.grad, "gradients")) for p in trained
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _give_gradients(trained: Sequence[torch.nn.Parameter]) -> None:
    for p in trained:
        p.grad = torch.empty_like(p)


def _with_state(
    model: torch.nn.Module, config: RunConfig, trained: Sequence[torch.nn.Parameter]
) -> torch.optim.Optimizer | None:
    """The run's optimizer after a first step, when it holds its state; None for those of bitsandbytes and
    where nothing is trained."""
    if config.train.optimizer in BITSANDBYTES or not trained:
        return None
    optimizer = make_optimizer(model, config.train, 1e-3)
    _give_gradients(trained)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _forward_backward(
    task: Task, model: Any, shape: BatchShape, precision: str, live: LiveBytes
) -> tuple[int, int, int]:
    """Forward and backward: bytes kept in between, operations of the first, operations of both."""
    model.train()
    if task.config.train.gradient_checkpointing:
        # The random state is kept on the real device, where there is nothing to keep it for.
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    batch = task.example_batch(shape.rows, shape.length, shape.target_length)
    live.stage = "activations"
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    away = _elsewhere(weight_shapes(model)) if task.config.train.activation_offload else nullcontext()
    with away, torch.autocast("cpu", half) if half else nullcontext():
        terms = task.loss(model, batch)
    loss: Any = sum(total.float() / items for total, items in terms.values())
    kept, forward = live.live["activations"] + live.live["logits"] + live.live["copies"], live.flops
    live.stage = "temporary"
    del terms
    if loss.requires_grad:
        loss.backward()
    return kept, forward, live.flops


def _elsewhere(weights: set[tuple[int, ...]]) -> torch.autograd.graph.saved_tensors_hooks:
    """As :func:`hftk.training.activation_offload.offloading`: what is moved takes no byte of the device until
    the backward pass asks for it."""

    def pack(tensor: torch.Tensor) -> Any:
        return (tensor.size(), tensor.dtype, tensor.device) if moves(tensor, weights) else stays(tensor)

    def unpack(packed: Any) -> torch.Tensor:
        return (
            packed
            if isinstance(packed, torch.Tensor)
            else torch.empty(packed[0], dtype=packed[1], device=packed[2])
        )

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _judge(task: Task, model: Any, shape: BatchShape, live: LiveBytes) -> int:
    model.eval()
    before = live.total
    live.restart()
    live.stage = "activations"
    batch = task.example_batch(shape.rows, shape.length, shape.target_length, training=False)
    with torch.no_grad():
        task.outputs(model, batch)
    return sum(live.peak.values()) - before


def _layers(model: torch.nn.Module) -> dict[str, int]:
    """Sizes in weights of the largest layer that stands in a list of layers, and of what stands in none."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    inner = {
        id(m)
        for outer in lists
        for layer in outer
        for m in layer.modules()
        if isinstance(m, torch.nn.ModuleList)
    }
    layers = [layer for outer in lists if id(outer) not in inner for layer in outer]
    sizes = [sum(_count(p) for p in layer.parameters()) for layer in layers]
    within = {id(p): _count(p) for layer in layers for p in layer.parameters()}
    return {
        "largest_layer": max(sizes, default=0),
        "outside_layers": sum(_count(p) for p in model.parameters() if id(p) not in within),
    }


def _count(parameter: torch.Tensor) -> int:
    """Number of weights; a quantized one holds more of them than it has elements."""
    return int(getattr(parameter, "weights_held", parameter.numel()))
