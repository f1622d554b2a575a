"""Start a recipe: what accelerate really started, work of the main process alone, signals, exit codes and
``status.json``.

====  ============  =====================================================================
exit  status.json   meaning
====  ============  =====================================================================
0     done
2     wrong input   every problem is on stderr, with what to type; there is no traceback
3     stopped       on request (Ctrl-C, SIGTERM); ``--resume auto`` goes on from there
1     failed        anything else; the traceback is on stderr
====  ============  =====================================================================

``accelerate launch`` turns every failure into 1, so schedulers should read ``status.json`` in the output
folder.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hftk import console
from hftk.config import InputError, RunConfig, override, to_dict
from hftk.launch import launcher, machines, peers, strategies
from hftk.launch.environment import command_line, redact
from hftk.launch.exits import Run, end, exit_when_stuck, is_main, processes
from hftk.launch.files import write_atomically
from hftk.launch.output_folder import (
    check_output,
    now,
    prepare_output,
    read_status,
    release_output,
    write_status,
)
from hftk.launch.signals import StopRequested, die_with, graceful, handled, ignore_requests, stop_requested

__all__ = [
    "Launch",
    "StopRequested",
    "alone",
    "graceful",
    "launched",
    "on_main",
    "run",
    "stop_requested",
    "use_all_gpus",
    "wait_for_all",
]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What really runs, as this process sees it."""

    processes: int
    """Processes on all machines together."""
    rank: int
    """Number of this process, from 0; 0 is the main one."""
    local_rank: int
    """Number of this process on its machine, from 0."""
    device: str
    """Type of the device: cpu, cuda, mps, xpu ..."""
    backend: str | None
    """What the processes talk through: gloo, nccl ...; None for a single one."""
    strategy: str
    """none (one process), ddp, fsdp or deepspeed."""
    asked_processes: int | None
    """What ``accelerate launch`` was asked for; None where that was left to it, or it was not used."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


@functools.cache
def launched() -> Launch:
    """Joins the processes (the first call waits for all of them) and says what runs. Imports torch.

    Raises InputError where that is not what was asked for.
    """
    import torch
    from accelerate import DistributedType, PartialState

    started_by = launcher.find_launcher()
    asked = processes()
    available = torch.accelerator.current_accelerator(check_available=True)
    cpu_asked = _cpu_asked(started_by)
    kind = "cpu" if available is None or cpu_asked else available.type
    if (
        kind == "mps" and asked > 1
    ):  # accelerate joins no processes on Apple's GPU: each would believe it is alone
        kind = "cpu"
    strategy = launcher.strategy_in_environment() or ("ddp" if asked > 1 else "none")
    if kind == "cpu" and strategy == "deepspeed":
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # accelerate drops DeepSpeed where its own variable says CPU
    elif kind == "cpu" and "LOCAL_RANK" in os.environ:
        # The launcher hands on `use_cpu` to a single process only (accelerate 1.15), and Trainer makes the
        # state anew.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    patience = {"timeout": timedelta(seconds=_Inside.timeout)} if asked > 1 else {}
    state = PartialState(cpu=kind == "cpu", **patience)
    launch = Launch(
        processes=state.num_processes,
        rank=state.process_index,
        local_rank=max(0, state.local_process_index),
        device=state.device.type,
        backend=state.backend,
        strategy=strategy,
        asked_processes=started_by.processes if started_by else None,
    )
    # Where accelerate sees no group of processes and Trainer sees several GPUs, it wraps the model in
    # nn.DataParallel.
    several = kind == "cuda" and state.distributed_type == DistributedType.NO and not _Inside.all_gpus
    gpus = torch.cuda.device_count() if several else 1
    problems = launcher.downgrades(
        asked=asked,
        found=launch.processes,
        strategy=strategy,
        device=launch.device,
        gpus_of_one_process=gpus,
        gpus_asked=bool(started_by and started_by.gpus) and not cpu_asked,
    )
    if problems:
        raise InputError(*problems)
    return launch


def on_main(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls ``function`` on the main process only and returns its result, or raises its exception, on every
    process.

    So a full disk on the main process ends its peers instead of leaving them waiting. All processes must come
    here. Under :func:`run` the others wait as long as it takes; elsewhere no longer than the backend's
    time-out. The result must be picklable. A single process needs no torch for it.
    """
    if alone():
        return function(*args, **kwargs)
    current = _Inside.run
    main = launched().is_main
    from accelerate.utils import broadcast_object_list

    value: Any = None
    error: BaseException | None = None
    parcel: list[Any] = [None]
    if main:
        current.busy = True
        try:
            value = function(*args, **kwargs)
        except BaseException as caught:
            error = caught
        finally:
            current.busy = False
        parcel, error = _packed(value, error)
    wait_for_all()
    broadcast_object_list(parcel, from_process=0)
    if not main:
        value, error = pickle.loads(parcel[0])
        if error is not None:
            error.__dict__["from_main"] = True
    if error is not None:
        raise error
    return value


def alone() -> bool:
    """Whether this process has nobody to wait for: it is the only one, or does something that :func:`on_main`
    gave it."""
    return processes() == 1 or _Inside.run.busy


def wait_for_all() -> None:
    """Returns when all processes have come here. Under :func:`run` that may take as long as it takes; else it
    does not wait.

    To be called before a collective operation at which some processes may arrive long after the others.
    """
    if _Inside.run.peers is not None:
        _Inside.run.peers.meet()


def run(main: Callable[[Any], Any], config: RunConfig, argv: Sequence[str] | None = None) -> None:
    """Runs ``main`` with ``config`` under the flags in ``argv`` (default: the command line); exits with the
    codes above.

    Reads the flags, compares the launch with what was asked for, prepares the output folder, prints and saves
    the merged config, and keeps ``status.json``. Returns if all went well. Wrong flags and ``--help`` need no
    torch and touch no file.
    """
    current = _Inside.run = Run()
    code = 1
    console.print_what_can_be_printed()
    with handled():
        try:
            code = _attempt(main, config, argv, current)
        except BaseException as error:
            if isinstance(error, SystemExit) and current.folder is None:
                raise  # --help
            ignore_requests()
            code = end(error, current)
        finally:
            current.close(code)
            _Inside.run = Run()
    if code:
        sys.stdout.flush()
        sys.exit(code)


def use_all_gpus() -> None:
    """Allow this process to be the only one of several GPUs: a model is spread over them
    (``model.device_map``)."""
    _Inside.all_gpus = True


class _Inside:
    """Of this process."""

    run = Run()
    all_gpus = False
    """Whether one process with several GPUs is meant so."""
    timeout = 1800.0
    """Seconds after which a collective operation of gloo or NCCL gives up: as
    ``TrainingArguments.ddp_timeout`` has it."""


def _attempt(main: Callable[[Any], Any], config: RunConfig, argv: Sequence[str] | None, current: Run) -> int:
    from hftk.config.parse import parse

    recipe = config
    description = getattr(sys.modules.get(main.__module__), "__doc__", None) or ""
    with contextlib.nullcontext() if is_main() else contextlib.redirect_stdout(io.StringIO()):  # --help once
        config = parse(config, argv, description=description)
    console.clear_notes()
    started_by = launcher.find_launcher()
    problems = [
        *launcher.malformed_variables(),
        *launcher.contradictions(started_by),
        *strategies.find_problems(config),
    ]
    if problems:
        raise InputError(*problems)
    _Inside.all_gpus = config.model.device_map != "none"
    if launcher.is_orphan(started_by):
        raise StopRequested("the launcher has ended")
    if started_by is not None:
        die_with(started_by.pid)
    launcher.use_all_cores(started_by)
    launcher.keep_memory()
    atexit.register(gc.freeze)  # else the interpreter looks through a million objects at its end: 1.5 s
    if processes() == 1:  # several processes have to be joined before one of them may stop
        check_output(config)
    if processes() > 1 or not _cpu_asked(
        started_by
    ):  # one process on the CPU, as asked: nothing can be amiss
        _Inside.timeout = float(config.train.extra.get("ddp_timeout", 1800))
        launch = launched()  # before --overwrite sets anything aside
        if launch.processes > 1:
            _watch(launch, config.train.peer_timeout, current)
    current.folder, current.status, current.previous = on_main(_begin, config, recipe)
    if current.peers is not None:
        machines.check_output_is_seen(current.folder, current.status)
    main(config)
    on_main(current.write, state="done", exit_code=0, message="")
    if current.peers is not None:
        current.peers.leave("done")
    leave_group()
    return 0


def _watch(launch: Launch, seconds: float, current: Run) -> None:
    """Lets the processes watch each other, or says that they cannot."""
    found = peers.watch(
        launch.rank, launch.processes, seconds, functools.partial(exit_when_stuck, current=current)
    )
    if isinstance(found, str):
        console.note(
            f"the processes do not watch each other, since {found}; a lost one is noticed by {launch.backend}"
            f" alone, and none may work alone for more than {_Inside.timeout:g} s (--train.extra.ddp_timeout)"
        )
    else:
        current.peers = found


def _begin(config: RunConfig, recipe: RunConfig) -> tuple[Path, dict[str, Any], dict[str, Any] | None]:
    """Locks the output folder, says that the run runs, saves the config and prints what is special in it."""
    from hftk.config.parse import dump_config, print_changed

    folder = prepare_output(config)
    try:
        previous = read_status(folder)
        status = write_status(
            folder,
            {
                "state": "running",
                "exit_code": None,
                "message": "",
                "pid": os.getpid(),
                "started": now(),
                "updated": "",
                "processes": processes(),
                "command": command_line(),
            },
        )
        saved = folder / "config.yaml"
        anew = config.resume == "never" or not saved.exists()  # a resumed run is compared with what is there
        if anew:
            write_atomically(saved, dump_config(config))
        print_changed(override(config, redact(to_dict(config))), recipe)
        print(f"all settings{'' if anew else ' of the first start'}: {saved}", flush=True)
    except BaseException:
        release_output(folder)
        raise
    return folder, status, previous


def _cpu_asked(started_by: launcher.Launcher | None) -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or bool(
        started_by and started_by.cpu
    )


def _packed(value: Any, error: BaseException | None) -> tuple[list[bytes], BaseException | None]:
    """(what is sent to the peers, what the main process raises): a parcel that the peers are sure to be able
    to open."""
    if error is None:
        try:
            return [pickle.dumps((value, None))], None
        except Exception as reason:
            error = TypeError(
                f"on_main cannot hand a {type(value).__name__} to the other processes: {reason}"
            )
    try:
        parcel = pickle.dumps((None, error))
        pickle.loads(parcel)  # an exception with arguments of its own may fail only here
    except Exception:
        parcel = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return [parcel], error


def leave_group() -> None:
    """Leaves the group of processes, which torch otherwise complains about at exit."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        from accelerate.state import AcceleratorState

        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        launched.cache_clear()
