"""Memory that runs out: foretold before training where the plan sees it coming, and explained where it happened.

Linux hands out more memory than it has and ends the process that uses it, with a signal that no program can catch: on a processor the
warning beforehand is all there is. On a GPU, and where a limit is set (``ulimit -v``), torch raises an error, which is explained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftk.config import RunConfig
from hftk.console import note
from hftk.launch import launched
from hftk.models import device_map
from hftk.models.quantization import bytes_of, count
from hftk.planning import Plan, Setup, plan, remedies
from hftk.planning.devices import USABLE
from hftk.problems import InputError, OutOfMemory, is_out_of_memory
from hftk.task import Task

_CGROUP = Path("/sys/fs/cgroup")
FAR_BELOW = 0.5
"""Share of the free memory up to which a rough upper estimate spares the plan, which takes seconds."""
STATE_BYTES, LAYER_BYTES = 16, 200
"""Of that estimate: bytes for each trained weight, and for each token, layer and element of the width (fp32, dropout, attention kept)."""
SETTINGS = (
    "--train.per_device_batch_size 1 --train.global_batch_size N",
    "--train.gradient_checkpointing",
    "--model.adapter.method lora",
)
"""What is named where no plan can be made."""


def free_memory() -> int:
    """Bytes that this process can still take: on a GPU what is free there, else of main memory, by the limit of its container if that is
    less."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def foretell(config: RunConfig, task: Task, model: Any, precision: str) -> str | None:
    """A warning if the plan for training needs more than there is, with settings that would fit; noted among the run's choices too.

    A run that is far from it by a rough estimate, is sharded or spread over GPUs, or cannot be counted, gets None.
    """
    held = bytes_of(model)
    room = free_memory() + held
    if device_map.is_spread(model) or launched().strategy not in ("none", "ddp") or _rough_estimate(config, model) < FAR_BELOW * room:
        return None
    setup = _setup(room)
    try:
        made = plan(config, task, setup, precision=precision, search=False)
    except Exception:  # whatever an unknown architecture raises: a warning that cannot be given must not end a run
        return None
    if made.peak <= room:
        return None
    ways = _ways(config, task, replace(setup, device_memory=room / USABLE))
    text = f"memory may run out, and the system may end the run without a word: {_numbers(made)}, and {_gb(room)} are there; {ways}"
    note(text)
    return text


@contextmanager
def explained(config: RunConfig, task: Task, model: Any, precision: str) -> Iterator[None]:
    """Inside, an error that says that memory ran out becomes :class:`hftk.problems.OutOfMemory`, with the plan's numbers and settings that
    would fit."""
    held = bytes_of(model)
    room = (device_map.free_memory() if device_map.is_spread(model) else free_memory()) + held
    try:
        yield
        return
    except BaseException as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        text = f"out of memory in training: {reason}\n{_explanation(config, task, precision, room)}"
        raise OutOfMemory(text) from None


def _explanation(config: RunConfig, task: Task, precision: str, room: int) -> str:
    setup = _setup(room)
    try:
        made = plan(config, task, setup, precision=precision, search=False)
    except Exception:  # as above
        return f"This model cannot be planned for; less memory takes: {', '.join(SETTINGS)}"
    # Less than what was too much, whatever the plan thinks of it.
    least = min(room / USABLE, 0.9 * made.peak / USABLE)
    return f"{_numbers(made)}, and {_gb(room)} were there; {_ways(config, task, replace(setup, device_memory=least))}"


def _setup(room: int) -> Setup:
    import torch

    devices = launched().processes
    return Setup(
        devices=devices, sharding="ddp" if devices > 1 else "none", device_memory=room,
        processor=not torch.cuda.is_available(),
    )  # fmt: skip


def _rough_estimate(config: RunConfig, model: Any) -> float:
    """Bytes, rather too many: states of Adam and activations of one micro-batch."""
    from hftk.models.load import default_length

    made = model.config.get_text_config()
    layers = getattr(made, "num_hidden_layers", None) or 12
    width = getattr(made, "hidden_size", None) or 1024
    rows = config.train.per_device_batch_size
    tokens = min(
        rows * (config.train.max_length or default_length(model.config)), config.train.max_tokens_per_batch or 2**62
    )
    sides = 2 if model.config.is_encoder_decoder else 1
    return (
        bytes_of(model)
        + STATE_BYTES * count(model, trained=True)
        + float(LAYER_BYTES * sides * tokens * layers * width)
    )


def _numbers(made: Plan) -> str:
    parts = [f"{kind} {_gb(size)}" for kind, size in made.memory.items() if size >= 5 * 10**7]
    phase = max(made.phases, key=lambda name: made.phases[name])
    return f"the plan counts {_gb(made.peak)} for this run at {made.batch['per_device_rows']} rows a micro-batch ({phase}; in training: {', '.join(parts)})"


def _ways(config: RunConfig, task: Task, setup: Setup) -> str:
    try:
        found: Sequence[tuple[str, Plan]] = remedies(config, task, setup)
    except (InputError, RuntimeError):
        found = ()
    if not found:
        return f"less memory takes: {', '.join(SETTINGS)}"
    return "these would fit:" + "".join(f"\n    {typed}  ({_gb(other.peak)})" for typed, other in found)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
