"""What the launcher above this process was asked for, read off its command line and its config file.

``accelerate launch`` tells its children how many processes run, never how many were asked for, and there are
ways of asking for several that give one (``--cpu --num_processes 2``, ``distributed_type: MULTI_CPU``;
accelerate 1.15). accelerate's own parser is not used: it imports torch, and the answer is wanted before
anything slow.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftk.config import Problem
from hftk.launch.environment import redact_command

TWO_PROCESSES = "recipes/accelerate/two_processes.yaml"
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
THREADS = "OMP_NUM_THREADS"
_SET_BY_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
_FOSTER_PARENTS = ("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "launchd")
"""Who takes in the children of a process that has ended."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
WORLD_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Environment variables in which torchrun and the MPI launchers number the processes, in accelerate's
order."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The nearest launcher among the parents of this process."""

    name: str
    """accelerate, torchrun or deepspeed."""
    pid: int
    processes: int | None = None
    """Number of processes asked for by flag or config file, on all machines together; None: left to the
    launcher."""
    cpu: bool = False
    """Whether the CPU was asked for."""
    strategy: str = ""
    """fsdp or deepspeed if asked for, else ""."""
    gpus: bool = False
    """Whether GPUs, or accelerators of another kind, were asked for."""


def number_from_environment(names: Sequence[str], default: int) -> int:
    """The first of the environment variables that is a number of 0 or more."""
    for name in names:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return default


def malformed_variables() -> Iterator[Problem]:
    """Variables of a launcher without a number (``WORLD_SIZE=abc``): a run would take itself for alone."""
    for name in (*RANK, *WORLD_SIZE, *LOCAL_RANK):
        value = os.environ.get(name, "")
        if value and not value.isdecimal():
            message = f"expected a number in the environment variable {name}, found {value!r}"
            yield Problem(setting="", message=message, fix=f"unset {name}, or start by accelerate launch")


def strategy_in_environment() -> str:
    """fsdp, deepspeed or "", as the launcher hands it on to its children."""
    for strategy in ("deepspeed", "fsdp"):
        if os.environ.get(f"ACCELERATE_USE_{strategy.upper()}", "").lower() in ("true", "1", "yes"):
            return strategy
    return ""


def find_launcher() -> Launcher | None:
    """The nearest ``accelerate launch``, ``torchrun`` or ``deepspeed`` above this process, or None."""
    import psutil

    try:
        parents = psutil.Process().parents()
    except psutil.Error:
        return None
    for parent in parents:
        try:
            command, folder = parent.cmdline(), parent.cwd()
        except psutil.Error:
            continue
        found = _recognized(command)
        if found is not None:
            name, arguments = found
            asked = (
                _asked_of_accelerate(_before_script(arguments), Path(folder)) if name == "accelerate" else {}
            )
            return Launcher(name=name, pid=parent.pid, **asked)
    return None


def is_orphan(launcher: Launcher | None) -> bool:
    """Whether a launcher started this process and is gone already, so that nobody would wait for it or end
    it."""
    import psutil

    if launcher is not None or not any(name in os.environ for name in _SET_BY_LAUNCHERS):
        return False
    try:
        parent = psutil.Process().parent()
        if parent is None:  # the first process of a container
            return False
        return parent.pid == 1 or parent.name() in _FOSTER_PARENTS
    except psutil.Error:
        return False


def contradictions(launcher: Launcher | None) -> list[Problem]:
    """What was asked of the launcher and is not what runs, as far as the environment tells (no torch)."""
    world = number_from_environment(WORLD_SIZE, 1)
    if launcher is None:
        return []
    problems = []
    asked = launcher.processes
    if asked is not None and world < asked:
        message = (
            f"expected {asked} processes, as asked of accelerate launch, found {world}: it starts several"
            " only with --multi_gpu (in a config file: distributed_type: MULTI_GPU), on a CPU too"
        )
        fix = (
            f"type: {_relaunch(asked)}\n    or, without that file, set ACCELERATE_USE_CPU=true (for a CPU)"
            f" and type: accelerate launch --multi_gpu --num_processes {asked} {_script()}"
        )
        problems.append(_launch_problem(message, fix))
    if asked is not None and world > asked:
        message = (
            f"expected {asked} process{'es' if asked > 1 else ''}, as asked of accelerate launch, but the"
            f" environment says that {world} run (WORLD_SIZE or an MPI variable, perhaps left over)"
        )
        problems.append(_launch_problem(message, "type: unset WORLD_SIZE RANK LOCAL_RANK, and launch again"))
    if launcher.strategy and launcher.strategy != strategy_in_environment():
        message = f"expected {launcher.strategy}, as asked of accelerate launch, but it started without it"
        problems.append(_launch_problem(message, "leave out --cpu, or ask for another strategy"))
    return problems


def downgrades(
    *, asked: int, found: int, strategy: str, device: str, gpus_of_one_process: int, gpus_asked: bool = False
) -> list[Problem]:
    """What accelerate made less of without a word: processes, GPUs, FSDP on a CPU, several GPUs in one
    process."""
    problems = []
    if gpus_asked and device == "cpu":
        message = "expected GPUs, as asked of accelerate launch, found none that torch can use"
        fix = (
            f"for a CPU type: {_relaunch(asked)}\n    or set ACCELERATE_USE_CPU=true; for a GPU see what"
            " nvidia-smi and torch.cuda.is_available() say"
        )
        return [_launch_problem(message, fix)]
    if found != asked:
        message = (
            f"expected {asked} processes, as the environment says, found {found}: each would train alone"
        )
        problems.append(
            _launch_problem(
                message, f"type: accelerate launch --multi_gpu --num_processes {asked} {_script()}"
            )
        )
    if strategy == "fsdp" and device == "cpu":
        message = (
            "expected FSDP, as asked of accelerate launch, but on a CPU accelerate silently runs plain DDP"
        )
        problems.append(_launch_problem(message, f"type: {_relaunch(2)}"))
    if gpus_of_one_process > 1:
        message = (
            f"expected one process for each of the {gpus_of_one_process} visible GPUs, found one process"
        )
        fix = (
            f"for all of them type: accelerate launch --multi_gpu --num_processes {gpus_of_one_process}"
            f" {_script()}"
        )
        problems.append(
            _launch_problem(message, f"{fix}\n    for one of them: CUDA_VISIBLE_DEVICES=0 python {_script()}")
        )
    return problems


def _launch_problem(message: str, fix: str) -> Problem:
    return Problem(setting="", message=message, fix=fix)


def _script() -> str:
    return redact_command(sys.argv)


def _relaunch(processes: int) -> str:
    number = "" if processes == 2 else f" --num_processes {processes}"
    return f"accelerate launch --config_file {TWO_PROCESSES}{number} {_script()}"


def _recognized(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """(launcher's name, its arguments) if the command line is a launcher's."""
    words = list(command)
    if words and re.fullmatch(r"(python|pypy)[\d.]*w?", _stem(words[0])):
        words = words[1:]
        while words and words[0].startswith("-") and words[0] != "-m":
            words = words[2 if words[0] in ("-X", "-W") else 1 :]
    if len(words) > 1 and words[0] == "-m":
        words = words[1:]
    if not words:
        return None
    first, rest = _stem(words[0]), words[1:]
    if first in ("accelerate", "accelerate.commands.accelerate_cli") and rest[:1] == ["launch"]:
        return "accelerate", rest[1:]
    if first in ("accelerate-launch", "accelerate.commands.launch"):
        return "accelerate", rest
    if first in ("torchrun", "torch.distributed.run", "torch.distributed.launch"):
        return "torchrun", rest
    return ("deepspeed", rest) if first == "deepspeed" else None


def _stem(word: str) -> str:
    return re.sub(r"(\.exe|-script\.pyw?|\.pyw?)$", "", re.split(r"[\\/]", word)[-1])


def _before_script(arguments: Sequence[str]) -> list[str]:
    """The launcher's own options: those before this script's path or module name (what follows is the
    script's)."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    names = {Path(sys.argv[0]).name, spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name}
    for position, word in enumerate(arguments):
        if re.split(r"[\\/]", word)[-1] in names:
            return list(arguments[:position])
    return list(arguments)


def _asked_of_accelerate(options: Sequence[str], folder: Path) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--config_file", "--config-file")
    for flag in ("cpu", "use_fsdp", "use_deepspeed", "multi_gpu"):
        parser.add_argument(f"--{flag}", f"--{flag.replace('_', '-')}", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(options))
    except argparse.ArgumentError:
        return {}  # accelerate understood what this parser does not: say nothing rather than something wrong
    path = folder / given.config_file if given.config_file else _default_config_file()
    config = _config_file(path) if given.config_file or not given.cpu else {}
    in_file = config.get("num_processes")
    kind = str(config.get("distributed_type", "")).lower()
    cpu = given.cpu or bool(config.get("use_cpu"))
    several = (
        given.multi_gpu or given.use_fsdp or given.use_deepspeed or kind in ("multi_gpu", "fsdp", "deepspeed")
    )
    if given.use_fsdp or given.use_deepspeed or given.multi_gpu:  # one of these wins over the file's type
        kind = "fsdp" if given.use_fsdp else "deepspeed" if given.use_deepspeed else ""
    return {
        "processes": given.num_processes or (in_file if isinstance(in_file, int) and in_file > 0 else None),
        "cpu": cpu,
        "gpus": several and not cpu,
        "strategy": kind if kind in ("fsdp", "deepspeed") else "",
    }


def _default_config_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(os.path.expanduser(home)) / "accelerate" / "default_config.yaml"


def _config_file(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # accelerate reads JSON too, which is YAML
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def use_all_cores(started_by: Launcher | None) -> None:
    """Gives each process its share of this machine's cores, unless the user has set ``OMP_NUM_THREADS``.

    ``accelerate launch`` and torchrun set it to 1 where it is not set, and a run on a CPU then takes twice as
    long on two cores (accelerate 1.15, ``commands/launch.py``). Acts on a torch that is loaded later, too.
    """
    import psutil

    if started_by is None or THREADS not in os.environ:
        return
    try:
        process = psutil.Process(started_by.pid)
        asked = THREADS in process.environ() or any(
            "cpu_threads_per_process" in w.replace("-", "_") for w in process.cmdline()
        )
    except (psutil.Error, OSError):
        return
    if asked:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // number_from_environment(("LOCAL_WORLD_SIZE",), 1))
    os.environ[THREADS] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def keep_memory() -> None:
    """Tells glibc's malloc to keep the memory of freed tensors: each step needs it again.

    By default blocks above 32 MB at most go back to the system at once, and every step pays for its pages
    anew. Does nothing elsewhere, or where the user has set a ``MALLOC_`` variable.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory() -> None:
    """Gives the free memory of glibc's malloc to the system: what reading data and loading weights have left
    behind.

    It lies in holes that a training step would hardly fill. Does nothing elsewhere.
    """
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
