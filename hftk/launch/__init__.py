"""Start a recipe: what accelerate really started, work of the main process alone, signals, exit codes and ``status.json``.

====  ============  =====================================================================
exit  status.json   meaning
====  ============  =====================================================================
0     done
2     wrong input   every problem is on stderr, with what to type; there is no traceback
3     stopped       on request (Ctrl-C, SIGTERM); ``--resume auto`` goes on from there
1     failed        anything else; the traceback is on stderr
====  ============  =====================================================================

``accelerate launch`` turns every failure into 1, so schedulers should read ``status.json`` in the output folder.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import io
import os
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from hftk import choices
from hftk.config import InputError, RunConfig, ServiceError, override, to_dict
from hftk.launch import launcher
from hftk.launch.environment import command_line, private, redact
from hftk.launch.output import (
    check_output,
    now,
    prepare_output,
    read_status,
    release_output,
    settle_output,
    write_status,
)
from hftk.launch.signals import StopRequested, die_with, graceful, handled, ignore_requests, stop_requested
from hftk.problems import OutOfMemory, is_out_of_memory

__all__ = ["Launch", "StopRequested", "graceful", "launched", "on_main", "run", "stop_requested"]

P = ParamSpec("P")
T = TypeVar("T")
PEER_SECONDS = 2.0
"""How long a failed peer waits for the main process to say the same before it speaks itself."""


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
    processes = _processes()
    available = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if available is None or _cpu_asked(started_by) else available.type
    if kind == "mps" and processes > 1:  # accelerate joins no processes on Apple's GPU: each would believe it is alone
        kind = "cpu"
    if kind == "cpu" and "LOCAL_RANK" in os.environ:
        # The launcher hands on `use_cpu` to a single process only (accelerate 1.15), and Trainer makes the state anew.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    state = PartialState(cpu=kind == "cpu")
    strategy = launcher.strategy_in_environment() or ("ddp" if processes > 1 else "none")
    launch = Launch(
        processes=state.num_processes,
        rank=state.process_index,
        local_rank=max(0, state.local_process_index),
        device=state.device.type,
        backend=state.backend,
        strategy=strategy,
        asked_processes=started_by.processes if started_by else None,
    )
    # Where accelerate sees no group of processes and Trainer sees several GPUs, it wraps the model in nn.DataParallel.
    gpus = torch.cuda.device_count() if kind == "cuda" and state.distributed_type == DistributedType.NO else 1
    problems = launcher.downgrades(
        asked=processes, found=launch.processes, strategy=strategy, device=launch.device, gpus_of_one_process=gpus
    )
    if problems:
        raise InputError(*problems)
    return launch


def on_main(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls ``function`` on the main process only and returns its result, or raises its exception, on every process.

    So a full disk on the main process ends its peers instead of leaving them waiting. All processes must come here; the others
    wait no longer than the backend's time-out. The result must be picklable. A single process needs no torch for it.
    """
    if _processes() == 1 or _Inside.on_main:
        return function(*args, **kwargs)
    is_main = launched().is_main
    from accelerate.utils import broadcast_object_list

    value: Any = None
    error: BaseException | None = None
    parcel: list[Any] = [None]
    if is_main:
        _Inside.on_main = True
        try:
            value = function(*args, **kwargs)
        except BaseException as caught:
            error = caught
        finally:
            _Inside.on_main = False
        parcel, error = _packed(value, error)
    broadcast_object_list(parcel, from_process=0)
    if not is_main:
        value, error = pickle.loads(parcel[0])
        if error is not None:
            error.__dict__["from_main"] = True
    if error is not None:
        raise error
    return value


def run(main: Callable[[Any], Any], config: RunConfig, argv: Sequence[str] | None = None) -> None:
    """Runs ``main`` with ``config`` under the flags in ``argv`` (default: the command line); exits with the codes above.

    Reads the flags, compares the launch with what was asked for, prepares the output folder, prints and saves the merged config,
    and keeps ``status.json``. Returns if all went well. Wrong flags and ``--help`` need no torch and touch no file.
    """
    current = _Run()
    code = 1
    with handled():
        try:
            code = _attempt(main, config, argv, current)
        except BaseException as error:
            if isinstance(error, SystemExit) and current.folder is None:
                raise  # --help
            ignore_requests()
            code = _end(error, current)
        finally:
            if current.folder is not None and _is_main():
                with contextlib.suppress(OSError):
                    settle_output(current.folder, keep_new=code != 2 or _has_weights(current.folder))
                release_output(current.folder)
    if code:
        sys.stdout.flush()
        sys.exit(code)


def _has_weights(folder: Path) -> bool:
    """Whether this run has trained: what an earlier run left is set aside, so these are not its weights."""
    return any(folder.glob("*.safetensors")) or any((folder / "checkpoints").glob("checkpoint-*"))


class _Inside:
    on_main = False


@dataclass
class _Run:
    """What :func:`run` knows so far."""

    folder: Path | None = None
    """The output folder once it is locked for this run."""
    status: dict[str, Any] | None = None


def _attempt(main: Callable[[Any], Any], config: RunConfig, argv: Sequence[str] | None, current: _Run) -> int:
    from hftk.parsing import parse

    recipe = config
    description = getattr(sys.modules.get(main.__module__), "__doc__", None) or ""
    with contextlib.nullcontext() if _is_main() else contextlib.redirect_stdout(io.StringIO()):  # --help once
        config = parse(config, argv, description=description)
    choices.forget()
    started_by = launcher.find_launcher()
    problems = launcher.contradictions(started_by)
    if problems:
        raise InputError(*problems)
    if started_by is not None:
        die_with(started_by.pid)
    launcher.use_all_cores(started_by)
    launcher.keep_memory()
    atexit.register(gc.freeze)  # else the interpreter looks through a million objects at its end: 1.5 s
    if _processes() == 1:  # several processes have to be joined before one of them may stop
        check_output(config)
    if _processes() > 1 or not _cpu_asked(started_by):  # one process on the CPU, as asked: nothing can be amiss
        launched()  # before --overwrite sets anything aside
    current.folder, current.status = on_main(_begin, config, recipe)
    main(config)
    on_main(_write, current, state="done", exit_code=0, message="")
    _leave_group()
    return 0


def _begin(config: RunConfig, recipe: RunConfig) -> tuple[Path, dict[str, Any]]:
    """Locks the output folder, says that the run runs, saves the config and prints what is special in it."""
    from hftk.parsing import print_changed, save_config

    folder = prepare_output(config)
    try:
        status = write_status(
            folder,
            {
                "state": "running", "exit_code": None, "message": "", "pid": os.getpid(), "started": now(), "updated": "",
                "processes": _processes(), "command": command_line(),
            },
        )  # fmt: skip
        saved = folder / "config.yaml"
        anew = config.resume == "never" or not saved.exists()  # a resumed run is compared with what is there
        if anew:
            save_config(config, saved)
        print_changed(override(config, redact(to_dict(config))), recipe)
        print(f"all settings{'' if anew else ' of the first start'}: {saved}", flush=True)
    except BaseException:
        release_output(folder)
        raise
    return folder, status


def _write(current: _Run, **changes: Any) -> None:
    if current.folder is not None and current.status is not None:
        write_status(current.folder, {**current.status, **changes})


def _end(error: BaseException, current: _Run) -> int:
    """Says how the run ended, on stderr and in ``status.json``, and returns the exit code."""
    state, code, message = _meaning(error)
    if not _is_main():
        return _end_peer(error, current, state, code, message)
    told_by_peer = _told(current)
    if told_by_peer is not None:  # what ends the main process then is only that the peer is gone
        print(f"hftk: {told_by_peer['state']}: {told_by_peer['message']}", file=sys.stderr, flush=True)
        return int(told_by_peer["exit_code"])
    _print_ending(error, state, message, current.folder)
    with contextlib.suppress(OSError):  # a full disk must not hide the reason
        _write(current, state=state, exit_code=code, message=message)
    return code


def _end_peer(error: BaseException, current: _Run, state: str, code: int, message: str) -> int:
    """A process that is not the main one speaks only where the main process, given time, does not say what went wrong."""
    if state in ("stopped", "done") or getattr(error, "from_main", False):
        return code
    if current.folder is None:  # too early for the two to have seen different things, unless it is a defect
        if state == "failed":
            traceback.print_exception(error)
        return code
    deadline = time.monotonic() + PEER_SECONDS
    while time.monotonic() < deadline:
        if _told(current) is not None:
            return code
        time.sleep(0.05)
    message = f"process {launcher.number_from_environment(launcher.RANK, 0)}: {message}"
    _print_ending(error, state, message, current.folder)
    with contextlib.suppress(OSError):  # another machine may not see the folder
        _write(current, state=state, exit_code=code, message=message)
    return code


def _told(current: _Run) -> dict[str, Any] | None:
    """``status.json`` if it already says how this run went wrong."""
    status = read_status(current.folder) if current.folder is not None else None
    if status is None or current.status is None or status["state"] not in ("failed", "wrong input"):
        return None
    return status if (status["pid"], status["started"]) == (current.status["pid"], current.status["started"]) else None


def _meaning(error: BaseException) -> tuple[str, int, str]:
    """(state, exit code, message) of what ended the run."""
    if isinstance(error, InputError):
        return "wrong input", 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 3, f"stopped on request ({error or 'SIGINT'})"
    if isinstance(error, SystemExit) and not error.code:
        return "done", 0, ""
    if isinstance(error, ServiceError | OutOfMemory):
        return "failed", 1, str(error)
    if is_out_of_memory(error):
        return "failed", 1, f"out of memory: {_first_line(error)}; hftk plan RECIPE with the same settings says what needs it, and what would fit"
    message = f"{type(error).__name__}: {error}"
    if _processes() > 1 and re.search(r"Connection (closed|reset) by peer", message):
        message = f"another process of this run ended without a word (killed, or out of memory?); {message}"
    return "failed", 1, message


def _print_ending(error: BaseException, state: str, message: str, folder: Path | None) -> None:
    if state == "wrong input" and isinstance(error, InputError):
        number = len(error.problems)
        lines = [f"hftk: {number} problem{'s' if number > 1 else ''} in the input", *(f"  {p}" for p in error.problems)]
        text = "\n".join(lines)
    elif state == "stopped":
        text = f"hftk: {message}" + ("; --resume auto goes on from the last checkpoint" if folder else "")
    elif isinstance(error, ServiceError) or is_out_of_memory(error):
        text = f"hftk: failed: {message}"
    elif state == "failed":
        traceback.print_exception(error)
        text = f"hftk: failed: {message}" + (f" (kept in {folder / 'status.json'})" if folder else "")
    else:
        return
    sys.stdout.flush()
    print(private(text), file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _processes() -> int:
    """Processes on all machines together, from the environment alone."""
    return launcher.number_from_environment(launcher.WORLD_SIZE, 1)


def _is_main() -> bool:
    """Whether this process is the main one, from the environment alone."""
    return launcher.number_from_environment(launcher.RANK, 0) == 0


def _cpu_asked(started_by: launcher.Launcher | None) -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or bool(
        started_by and started_by.cpu
    )


def _packed(value: Any, error: BaseException | None) -> tuple[list[bytes], BaseException | None]:
    """(what is sent to the peers, what the main process raises): a parcel that the peers are sure to be able to open."""
    if error is None:
        try:
            return [pickle.dumps((value, None))], None
        except Exception as reason:
            error = TypeError(f"on_main cannot hand a {type(value).__name__} to the other processes: {reason}")
    try:
        parcel = pickle.dumps((None, error))
        pickle.loads(parcel)  # an exception with arguments of its own may fail only here
    except Exception:
        parcel = pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return [parcel], error


def _leave_group() -> None:
    """Leaves the group of processes, which torch otherwise complains about at exit."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        from accelerate.state import AcceleratorState

        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        launched.cache_clear()
