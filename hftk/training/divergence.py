"""Detect non-finite losses and gradients before the optimizer step; stop the run with a diagnosis, or skip
the step.

On a CPU every step is checked. On a GPU a check waits for the device, so losses are checked when something is
logged, evaluated or saved (``on_non_finite: skip`` checks every step); the gradient norms of the steps
between are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from hftk.config import InputError, PlainError, Problem
from hftk.console import note
from hftk.launch import on_main
from hftk.launch.exits import processes
from hftk.launch.files import write_atomically
from hftk.launch.output_folder import DIVERGENCE
from hftk.training import checkpoints
from hftk.training.protocols import RunningTrainer

CHECK_STEPS = 100
"""Most steps between two looks at the losses where not every step is looked at."""
SKIPS_IN_A_ROW = 10
"""So many steps in a row are skipped; after one more the run has diverged."""
EXPLODED = (1e4, 1e3)
"""A mean loss above the first, and so many times the largest of the first five points of the curve, has
exploded."""


class TrainingDiverged(PlainError):
    """A loss or gradient that is no finite number, or a loss out of all proportion; what was saved before is
    kept."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found in a step that has no finite loss or gradient."""

    step: int
    rows: list[int] = field(default_factory=list)
    """Of the step, all processes together, by their number in the training split from 0 on."""
    suspects: list[int] = field(default_factory=list)
    """Those of the micro-batches whose own loss is not finite."""
    first_non_finite: str = ""
    """The first module, in the order of the forward pass, that gave a value which is not finite."""
    activations: dict[str, float] = field(default_factory=dict)
    """Layer to the largest absolute finite value that a module in it gave."""
    gradient_norms: dict[str, float] = field(default_factory=dict)
    """Layer to the norm of its gradient, before clipping."""
    weights_not_finite: list[str] = field(default_factory=list)
    """Parameters with values that are not finite."""

    def __str__(self) -> str:
        lines = []
        if self.rows:
            own = (
                f"; in the micro-batch of rows {_some(self.suspects)} the loss is not finite"
                if self.suspects
                else ""
            )
            lines.append(f"rows of the step, counted from 0 in the training split: {_some(self.rows)}{own}")
        if self.first_non_finite:
            lines.append(
                f"first value that is not finite in the forward pass: the output of {self.first_non_finite}"
            )
        for title, values in (
            ("largest activations", self.activations),
            ("gradient norms", self.gradient_norms),
        ):
            if values:
                order = sorted(values, key=lambda name: (math.isfinite(values[name]), -values[name]))
                lines.append(
                    f"{title} by layer: {_some([f'{name} {values[name]:.3g}' for name in order], 6)}"
                )
        broken = self.weights_not_finite
        lines.append(
            f"weights that are not finite: {_some(broken, 6)}" if broken else "all weights are finite"
        )
        return "\n".join(f"    {line}" for line in lines)


class Guard:
    """Looks at the losses and gradients of one trainer. All processes come to the same conclusions at the
    same time."""

    def __init__(self, trainer: RunningTrainer, skipped: list[dict[str, Any]]) -> None:
        self._trainer = trainer
        self._skips = trainer.config.train.on_non_finite == "skip"
        if self._skips and trainer.is_deepspeed_enabled:
            message = "DeepSpeed takes its steps by itself, so that none can be skipped"
            raise InputError(
                Problem(
                    setting="train.on_non_finite", message=message, fix="leave it out, or choose DDP or FSDP"
                )
            )
        self.every_step = self._skips or trainer.args.device.type == "cpu"
        """Whether the host looks at every step, before the optimizer acts."""
        self.skipped = skipped
        """``step``, ``why`` and ``rows`` of each step that changed nothing."""
        self._losses: list[torch.Tensor] = []
        self._norms: deque[tuple[int, list[str], torch.Tensor]] = deque(maxlen=CHECK_STEPS)
        self._lost = ""
        self._again: Callable[[], list[torch.Tensor]] | None = None

    def watch(self, step: Callable[[], list[torch.Tensor]]) -> torch.Tensor:
        """Do the forward and backward passes of a step, which give the losses of its micro-batches; returns
        their sum."""
        trainer = self._trainer
        if self.every_step:
            self._again = _repeatable(step, trainer.args.device)
        loss = sum(step(), torch.zeros((), device=trainer.args.device))
        if self._skips:
            mean = trainer.accelerator.gather(loss.reshape(1)).mean().item()
            if not math.isfinite(mean):
                self._lost = f"the loss of step {trainer.state.global_step + 1} is {mean}"
                trainer.leave_out_of_curve()
                return torch.zeros_like(loss)
        self._losses.append(loss)
        return loss

    def remember(self) -> None:
        """Keep the norms of the gradients as they are before clipping, where nobody looks at them now."""
        if self.every_step:
            return
        named = [(name, p.grad) for name, p in self._trainer.plain.named_parameters() if p.grad is not None]
        if not named or hasattr(named[0][1], "full_tensor"):
            return
        norms = torch.stack(
            [
                norm.float().to(self._trainer.args.device)
                for norm in torch._foreach_norm([grad for _, grad in named])
            ]
        )
        self._norms.append((self._trainer.state.global_step + 1, [name for name, _ in named], norms))

    def before_update(self, grad_norm: Any) -> Any:
        """The norm of the gradient, or None if the optimizer has to leave the weights as they are.

        Raises: TrainingDiverged: it is not finite, or the loss is not, and such steps are not skipped, or too
            many in a row were.
        """
        trainer, step = self._trainer, self._trainer.state.global_step + 1
        what, self._lost = self._lost, ""
        if (
            self.every_step and grad_norm is not None and not what and trainer.precision != "fp16"
        ):  # fp16: the scaler skips
            norm = float(grad_norm)
            if not math.isfinite(norm):
                what = (
                    self._first_bad_loss(step) or (step, f"the gradient of step {step} has the norm {norm}")
                )[1]
        if not what:
            return grad_norm
        in_a_row = sum(1 for i, entry in enumerate(reversed(self.skipped), 1) if entry["step"] == step - i)
        if not self._skips or in_a_row == SKIPS_IN_A_ROW:
            before = f", and the {in_a_row} steps before it were skipped" if in_a_row else ""
            raise self.diverged(what + before, step)
        rows = self._rows(step)
        self.skipped.append({"step": step, "why": what, "rows": rows})
        note(f"step {step} is skipped, the weights stay as they are: {what} (rows {_some(rows)})")
        trainer.plain.zero_grad()  # no optimizer moves a weight that has no gradient
        return None

    def due(self) -> bool:
        """Whether the losses have not been looked at for long."""
        return len(self._losses) >= CHECK_STEPS

    def check(self, grad_norm: Any) -> None:
        """Raise TrainingDiverged before anything is logged or saved that is not finite."""
        step = self._trainer.state.global_step
        bad = self._first_bad_loss(step)
        scaled = self._trainer.accelerator.optimizer_step_was_skipped
        if bad is None and grad_norm is not None and not scaled and not math.isfinite(grad_norm):
            bad = next(
                ((s, "") for s, _, norms in self._norms if not bool(norms.isfinite().all())), (step, "")
            )
            bad = (bad[0], f"the gradient of step {step} has the norm {float(grad_norm)}")
        if bad is not None:
            raise self.diverged(bad[1], bad[0])
        self._norms.clear()

    def check_curve(self, loss: float) -> None:
        """Raise TrainingDiverged if a mean loss that is to be logged is out of all proportion to the first
        ones."""
        first = [point["loss"] for point in self._trainer.history if "loss" in point][:5]
        if first and loss > EXPLODED[0] and loss > EXPLODED[1] * max(first):
            step = self._trainer.state.global_step
            raise self.diverged(
                f"the loss has exploded, from {first[0]:.4g} to {loss:.4g} at step {step}", step
            )

    def diverged(self, what: str, step: int | None = None) -> TrainingDiverged:
        """The error to raise, with what helps, what is kept and, for a ``step``, a diagnosis."""
        trainer, train = self._trainer, self._trainer.config.train
        found = ""
        if step is not None:
            diagnosis = self._diagnose(step)
            kept = on_main(_keep, diagnosis, what, Path(trainer.config.output))
            found = f"\n{diagnosis}" + (f"\n    all of it: {kept}" if kept else "")
        ways = [f"a lower --train.learning_rate (it was {trainer.learning_rate:g})"]
        ways += [] if train.warmup else ["--train.warmup 0.05"]
        ways += [] if 0 < train.max_grad_norm <= 1 else ["--train.max_grad_norm 1"]
        ways += ["--train.precision bf16 or fp32"] if trainer.precision == "fp16" else []
        on_main(trainer.saver.settle)
        saved = checkpoints.checkpoints(trainer.config.output)
        ways += (
            []
            if self._skips or not saved
            else ["--resume auto --train.on_non_finite skip if a few rows are to blame"]
        )
        kept = (
            f"; {saved[-1]} is kept: its weights are a start for a new run by --model.name"
            if saved and any(saved[-1].glob("*.safetensors"))
            else ""
        )
        return TrainingDiverged(f"training diverged: {what}. Try {', '.join(ways)}{kept}{found}")

    def _first_bad_loss(self, step: int) -> tuple[int, str] | None:
        """Step and description of the first loss that is not finite among those not looked at yet, up to
        ``step``'s."""
        if not self._losses:
            return None
        losses = (
            self._trainer.accelerator.gather(torch.stack(self._losses))
            .view(self._trainer.args.world_size, -1)
            .mean(0)
            .tolist()
        )
        self._losses.clear()
        numbered = enumerate(losses, step - len(losses) + 1)
        return next(
            ((n, f"the loss of step {n} is {loss}") for n, loss in numbered if not math.isfinite(loss)), None
        )

    # --- The diagnosis

    def _rows(self, step: int) -> list[int]:
        return sorted(int(row) for row in self._trainer.loader.rows_of(step))

    def _diagnose(self, step: int) -> Diagnosis:
        """Look into ``step``; the one being done is done once more, watched. All processes take part."""
        trainer = self._trainer
        remembered = next((entry[1:] for entry in self._norms if entry[0] == step), None)
        norms = _by_layer(zip(remembered[0], remembered[1].tolist(), strict=True)) if remembered else {}
        seen, suspects = Activations(), []
        # A compiled model is not looked into: each hook would have it compiled anew.
        if (
            self._again is not None
            and step == trainer.state.global_step + 1
            and not trainer.args.torch_compile
        ):
            trainer.plain.zero_grad()
            with seen.of(trainer.plain):
                losses = self._again()
            pieces = trainer.loader.pieces
            suspects = [
                int(row)
                for loss, piece in zip(
                    losses, pieces, strict=False
                )  # an L1 penalty may stand after the losses
                if not bool(loss.isfinite())
                for row in piece
            ]
            scale = trainer.accelerator.scaler.get_scale() if trainer.accelerator.scaler is not None else 1.0
            named = ((n, p.grad) for n, p in trainer.plain.named_parameters() if p.grad is not None)
            norms = _by_layer((name, _number(grad.float().norm()) / scale) for name, grad in named)
        found: list[tuple[list[int], str, dict[str, float]]] = gather_object(
            [(suspects, seen.first_non_finite, seen.largest)]
        )
        return Diagnosis(
            step=step,
            rows=self._rows(step),
            suspects=sorted({row for rows, _, _ in found for row in rows}),
            first_non_finite=next((name for _, name, _ in found if name), ""),
            activations={name: max(one.get(name, 0.0) for _, _, one in found) for name in found[0][2]},
            gradient_norms=norms,
            weights_not_finite=[
                n for n, p in trainer.plain.named_parameters() if not _number(p.detach().isfinite().all())
            ],
        )


class Activations:
    """What the modules of a model give while it is watched."""

    def __init__(self) -> None:
        self.first_non_finite = ""
        self.largest: dict[str, float] = {}
        """Layer to the largest absolute finite value."""

    @contextlib.contextmanager
    def of(self, model: torch.nn.Module) -> Iterator[None]:
        """Watch every module without modules of its own."""
        handles = []
        for name, module in model.named_modules():
            if name and next(module.children(), None) is None:
                handles.append(module.register_forward_hook(self._hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            for value in output if isinstance(output, (tuple, list)) else (output,):
                if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
                    continue
                finite = value.detach().isfinite()
                if not self.first_non_finite and not bool(finite.all()):
                    self.first_non_finite = name
                most = float(
                    value.detach().float().abs().where(finite, torch.zeros((), device=value.device)).max()
                )
                layer = layer_of(name)
                self.largest[layer] = max(self.largest.get(layer, 0.0), most)

        return look


def layer_of(name: str) -> str:
    """The layer that a module or parameter belongs to: its name up to the first number, else all but its last
    part.

    ``transformer.h.3.mlp.c_fc.weight`` is of ``transformer.h.3``, ``lm_head.weight`` of ``lm_head``.
    """
    numbered = re.match(r"(.*?\.\d+)\.", name + ".")
    if numbered:
        return numbered[1]
    return name.rsplit(".", 1)[0] if name.endswith((".weight", ".bias")) else name


def _by_layer(norms: Any) -> dict[str, float]:
    """Layer to the norm of all of its gradients together, from (name, norm) of each."""
    squares: dict[str, float] = {}
    for name, norm in norms:
        squares[layer_of(name)] = squares.get(layer_of(name), 0.0) + norm * norm
    return {layer: math.sqrt(square) if square == square else square for layer, square in squares.items()}


def _repeatable(
    step: Callable[[], list[torch.Tensor]], device: torch.device
) -> Callable[[], list[torch.Tensor]]:
    """``step`` with the random numbers that it draws if it is done now."""
    devices = [device] if device.type == "cuda" else []
    if devices and processes() == 1:
        devices = [
            torch.device("cuda", number) for number in range(torch.cuda.device_count())
        ]  # model.device_map: all draw
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(each) for each in devices]

    def again() -> list[torch.Tensor]:
        torch.set_rng_state(states[0])
        for each, state in zip(devices, states[1], strict=True):
            torch.cuda.set_rng_state(state, each)
        return step()

    return again


def _number(value: torch.Tensor) -> float:
    """A tensor of one element as a number, also where it is spread over the processes (DTensor)."""
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)


def _keep(diagnosis: Diagnosis, what: str, output: Path) -> str:
    """Write the diagnosis into the output folder; the path, or "" where that is not possible."""
    with contextlib.suppress(OSError):
        text = json.dumps({"what": what, **asdict(diagnosis)}, indent=1)
        write_atomically(output / DIVERGENCE, re.sub(r"\b(NaN|-?Infinity)\b", r'"\1"', text) + "\n")
        return str(output / DIVERGENCE)
    return ""


def _some(entries: Sequence[Any], most: int = 16) -> str:
    more = len(entries) - most
    return ", ".join(str(entry) for entry in itertools.islice(entries, most)) + (
        f" and {more} more" if more > 0 else ""
    )
