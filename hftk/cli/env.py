"""``hftk env``: what a launch really gives, before anything is trained."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from typing import Any

from hftk.config import InputError, RunConfig, TrainConfig

EXAMPLES = """examples:
  hftk env
  accelerate launch -m hftk env
  accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 8 -m hftk env

Exit code 2, and what to type, where less runs than was asked for.
"""
OPTIONAL = {
    "peft": "adapters",
    "bitsandbytes": "8 and 4 bits, lion",
    "flash-attn": "--model.attention flash_attention_2",
    "deepspeed": "ZeRO-2 and ZeRO-3",
    "gguf": "GGUF files",
}
"""Packages that hftk uses where they are, and for what."""


def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def show(given: Namespace) -> int:
    """Print what runs, on the main process; InputError where it is less than was asked for."""
    from hftk.launch import launched, launcher, leave_group, strategies

    started_by = launcher.find_launcher()
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    config = RunConfig(train=TrainConfig(precision="auto" if asked == "no" else asked))  # type: ignore[arg-type]
    problems = [*launcher.contradictions(started_by), *strategies.find_problems(config)]
    if problems:
        raise InputError(*problems)
    launcher.use_all_cores(started_by)
    launch = launched()
    processes = _gathered(_this_process(launch), launch.processes)
    if launch.is_main:
        found = _facts(launch, started_by, processes, config.train.precision)
        print(json.dumps(found, indent=2) if given.json else "\n".join(_lines(found)), flush=True)
    leave_group()
    return 0


def _this_process(launch: Any) -> dict[str, Any]:
    """What is this process's own. Memory in bytes: that of its GPU, else that of the machine."""
    import psutil
    import torch

    if launch.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        device = torch.cuda.get_device_name()
    else:
        memory = psutil.virtual_memory()
        free, total, device = memory.available, memory.total, launch.device
    return {
        "rank": launch.rank,
        "local_rank": launch.local_rank,
        "device": device,
        "threads": torch.get_num_threads(),
        "memory_bytes": int(total),
        "free_bytes": int(free),
    }


def _gathered(own: dict[str, Any], count: int) -> list[dict[str, Any]]:
    if count == 1:
        return [own]
    import torch

    found: list[Any] = [None] * count
    torch.distributed.all_gather_object(found, own)
    return found


def _facts(launch: Any, started_by: Any, processes: list[dict[str, Any]], precision: str) -> dict[str, Any]:
    import torch

    from hftk.launch import strategies
    from hftk.launch.environment import environment, version
    from hftk.models.precision import choose_precision, cpu_has_bf16

    chosen, reason = choose_precision(precision, torch.device(launch.device))
    if precision == "auto" and launch.device == "cpu" and cpu_has_bf16() is not False:
        chosen, reason = (
            "fp32 or bf16",
            "the faster one, measured on the model: this processor may have bf16 instructions",
        )
    strategy = launch.strategy
    if strategy == "deepspeed":
        strategy += f" (ZeRO-{strategies.zero_stage()})"
    return {
        "launcher": started_by.name if started_by else None,
        "asked_processes": launch.asked_processes,
        "processes": launch.processes,
        "machines": sum(process["local_rank"] == 0 for process in processes),
        "strategy": {"fsdp": "fsdp (FSDP2)"}.get(strategy, strategy),
        "backend": launch.backend,
        "device": launch.device,
        "precision": (
            {"train.precision auto": chosen, "reason": reason}
            if precision == "auto"
            else {"mixed_precision": chosen, "reason": reason}
        ),
        "ranks": processes,
        **environment(),
        "optional": {name: version(name) for name in OPTIONAL},
    }


def _lines(found: dict[str, Any]) -> list[str]:
    hardware, optional = found["hardware"], found["optional"]
    asked = found["asked_processes"]
    started = found["launcher"] or "python alone"
    precision, reason = found["precision"].values()
    name = next(iter(found["precision"]))
    rows = [
        (
            "started by",
            started + (f", asked for {asked} process{'es' if asked != 1 else ''}" if asked else ""),
        ),
        (
            "processes",
            f"{found['processes']} on {found['machines']} machine{'s' if found['machines'] > 1 else ''}",
        ),
        ("strategy", found["strategy"]),
        ("backend", found["backend"] or "none (a single process)"),
        ("device", found["device"]),
        ("precision", f"{name}: {precision} ({reason})"),
        *(
            (
                f"rank {p['rank']}",
                (
                    f"{p['device']}, {p['threads']} thread{'s' if p['threads'] > 1 else ''},"
                    f" {p['free_bytes'] / 2**30:.1f} of {p['memory_bytes'] / 2**30:.1f} GiB free"
                ),
            )
            for p in found["ranks"]
        ),
        (
            "processor",
            f"{hardware['cpu']}, {hardware['cores']} cores, {(hardware['ram_bytes'] or 0) / 2**30:.1f} GiB",
        ),
        ("GPUs", ", ".join(hardware["gpus"]) or "none"),
        ("system", hardware["os"]),
        (
            "versions",
            ", ".join(
                f"{package} {number}"
                for package, number in found["versions"].items()
                if package not in optional
            ),
        ),
        *((package, optional[package] or f"not installed ({use})") for package, use in OPTIONAL.items()),
    ]
    width = max(len(title) for title, _ in rows) + 2
    return [f"{title:{width}}{text}" for title, text in rows]
