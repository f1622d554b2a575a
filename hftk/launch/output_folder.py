"""The output folder: one run at a time writes to it, an earlier run is never lost by accident, and it says
how the run stands.

``status.json`` is there because exit codes do not pass through ``accelerate launch``, which turns every
failure into 1.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem, RunConfig
from hftk.launch.environment import redact
from hftk.launch.files import find_name_problem, make_folder, remove_unfinished, write_atomically

STATUS = "status.json"
PREDICTIONS = "predictions.jsonl"
LOCK = "run.lock"
DIVERGENCE = "divergence.json"
OURS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "base_config.json",
    "base",
    "training_args.bin",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.spm",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.json*",
    "chat_template.jinja",
    "README.md",
    "report.html",
    "report.md",
    PREDICTIONS,
    DIVERGENCE,
    ".generated.jsonl*",
    "checkpoints",
    ".saving",
    ".replaced",
    f"{PREDICTIONS}.partial",
    ".*.tmp",
    LOCK,
    "record.json",
    "config.yaml",
    STATUS,
)
"""Names that a run leaves in its output folder, and that ``--overwrite`` removes; the last ones tell whose
folder it is."""
REPLACED = ".replaced"
"""Where ``--overwrite`` keeps the earlier run until the new one has proved its input right."""
NOTHING_YET = frozenset({STATUS, LOCK, "config.yaml"})
"""All that a run leaves which ended before it made anything."""
HEARTBEAT_SECONDS = 20.0
"""How often a run touches its lock, for those that look from another machine and cannot see its process."""
HALF_WRITTEN_SECONDS = 5.0
"""A lock without an owner that is younger than this is being written; an older one is left from a crash."""
SILENT_SECONDS = 120.0
"""A lock from another machine that was not touched for so long belongs to nobody."""


def prepare_output(config: RunConfig) -> Path:
    """Creates ``config.output``, locks it for this process and, with ``overwrite``, sets aside what an
    earlier run left.

    Raises InputError, with the folder as it was, where the folder holds something that is not to be lost,
    another run writes to it, or it cannot be written. :func:`settle_output` removes or brings back what was
    set aside, and :func:`release_output` gives the lock back.
    """
    folder = check_output(config)
    with _folder_errors(folder):
        make_folder(folder)
        _lock(folder)
        try:
            _check_contents(folder, config)  # again: until the lock was taken, another run may have written
            remove_unfinished(folder)
            if config.overwrite:
                _set_aside(folder)
        except BaseException:
            release_output(folder)
            raise
    return folder


def check_output(config: RunConfig) -> Path:
    """The folder of ``config.output`` if a run may write there; makes and removes nothing. Raises InputError
    as above."""
    if not config.output.strip():
        raise _problem("expected a folder, found an empty name", "name one: --output out/my_run")
    check_paths(config)
    folder = Path(config.output).expanduser()
    with _folder_errors(folder):
        _unlock(_flock(folder))
        _check_free(folder / LOCK)
        _check_contents(folder, config)
    return folder


def check_paths(config: RunConfig) -> None:
    """InputError for paths in the settings that cannot be, and for an output folder that holds or is an
    input."""
    data = {f"data.{name}": getattr(config.data, name) for name in ("path", "train", "validation", "test")}
    inputs = {name: value for name, value in {**data, "model.name": config.model.name}.items() if value}
    typed = {
        "output": config.output,
        "resume": config.resume,
        "model.tokenizer": config.model.tokenizer,
        **inputs,
    }
    if problems := [
        found for name, text in typed.items() if text and (found := find_name_problem(name, text))
    ]:
        raise InputError(*problems)
    folder = Path(config.output).expanduser().resolve()
    for name, text in inputs.items():
        source = Path(text).expanduser()
        if source.exists() and source.resolve().is_relative_to(folder):
            raise _problem(
                f"expected a folder without inputs of the run, found --{name} {text} in it",
                "choose another --output",
            )


def settle_output(folder: Path, *, keep_new: bool) -> None:
    """Ends an overwrite: removes what was set aside or, where the new run came to nothing, brings it back.

    The new run's ``status.json`` stays: it says why nothing came of it.
    """
    aside = folder / REPLACED
    if not aside.is_dir():
        return
    if not keep_new:
        _remove([entry for entry in folder.iterdir() if entry.name not in (LOCK, REPLACED, STATUS)])
        for entry in sorted(aside.iterdir()):
            if entry.name != STATUS:
                os.replace(entry, folder / entry.name)
    _remove([aside])


def release_output(folder: Path) -> None:
    """Gives back the lock on ``folder`` if this process holds it."""
    _unlock(_held.pop(folder.resolve(), None))
    owner = _read_json(folder / LOCK)
    if owner is not None and owner.get("pid") == os.getpid() and owner.get("host") == socket.gethostname():
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()


def write_status(folder: Path, status: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``status.json`` whole or not at all, with secrets left out and ``updated`` set to now; returns
    what it wrote."""
    written = {**status, "updated": now()}
    written = redact(written)
    write_atomically(folder / STATUS, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return written


def read_status(folder: Path) -> dict[str, Any] | None:
    """What ``status.json`` says, or None where there is none of hftk's."""
    status = _read_json(folder / STATUS)
    return status if status is not None and {"state", "exit_code", "pid"} <= status.keys() else None


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_contents(folder: Path, config: RunConfig) -> None:
    if not folder.is_dir():
        return
    # Temporary files are those of another run that looks at the lock just now: they come and go.
    names = (entry.name for entry in folder.iterdir())
    entries = sorted(n for n in names if n not in (LOCK, REPLACED) and not fnmatch.fnmatch(n, ".*.tmp"))
    foreign = [name for name in entries if not any(fnmatch.fnmatch(name, pattern) for pattern in OURS)]
    earlier = _earlier_run(folder)
    if not entries:
        return
    if config.overwrite:
        _check_removable(folder, foreign, earlier)
        return
    if (
        earlier is not None
        and set(entries) <= NOTHING_YET
        and (read_status(folder) or {"state": "done"})["state"] != "done"
    ):
        return
    if _continues(config, folder) and (earlier is not None or len(foreign) == len(entries)):
        return
    if earlier is None:
        raise _problem(
            f"expected a new or empty folder, found {_count(folder)} that no hftk run left there:"
            f" {_some(entries)}",
            "choose another --output; --overwrite and --resume are for what an earlier hftk run left",
        )
    raise _problem(
        f"expected a new or empty folder, found {_count(folder)} of {earlier}",
        "add --resume auto to continue it, --overwrite to replace it, or choose another --output",
    )


def _continues(config: RunConfig, folder: Path) -> bool:
    """Whether the run goes on with what the folder holds: --resume auto, or the path of a checkpoint inside
    of it, or of one that was saved elsewhere because this folder's disk was full (its manifest tells)."""
    if config.resume in ("auto", "never"):
        return config.resume == "auto"
    path = Path(config.resume).expanduser().resolve()
    here = folder.resolve()
    return path.is_relative_to(here) or (_read_json(path / "manifest.json") or {}).get("output") == str(here)


def _check_removable(folder: Path, foreign: list[str], earlier: str | None) -> None:
    here, kept = folder.resolve(), (Path.cwd().resolve(), Path.home().resolve())
    if any(here == place or here in place.parents for place in kept):
        raise _problem(
            f"--overwrite does not empty {here}: it is the working or the home directory, or above them",
            "choose another --output",
        )
    if earlier is None:
        raise _problem(
            f"--overwrite replaces what an hftk run left, and {_count(folder)} in {folder} are not known to"
            " be from one: there is no status.json, record.json or config.yaml of hftk's",
            "choose another --output, or empty the folder yourself",
        )
    if foreign:
        raise _problem(
            f"--overwrite would have to delete what no hftk run left there: {_some(foreign)}",
            "move these away, or choose another --output",
        )


def _earlier_run(folder: Path) -> str | None:
    """The run that left its output in ``folder``, in words, or None."""
    status = read_status(folder)
    if status is not None:
        state = "running or killed" if status["state"] == "running" else status["state"]
        return f"a run that was started at {status.get('started')} ({state})"
    if "hftk" in (_read_json(folder / "record.json") or {}):
        return "a finished run (record.json)"
    try:
        settings = (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    known = all(re.search(rf"^{name}:", settings, re.MULTILINE) for name in ("model", "train", "output"))
    return "a run that ended early (config.yaml)" if known else None


def _set_aside(folder: Path) -> None:
    """Moves what an earlier run left into a folder of its own; what tells whose folder it is goes last, in
    case of a crash."""
    aside = folder / REPLACED
    order = {pattern: position for position, pattern in enumerate(OURS)}
    entries = [entry for entry in folder.iterdir() if entry.name not in (LOCK, REPLACED)]
    if entries:
        _remove([aside])
        aside.mkdir()
    for entry in sorted(entries, key=lambda entry: order.get(entry.name, 0)):
        os.replace(entry, aside / entry.name)


def _remove(entries: list[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _lock(folder: Path) -> None:
    """Lock the folder for the life of this run: by the kernel, and by a file that other machines and people
    read."""
    import psutil

    path = folder / LOCK
    mine = {
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "since": now(),
    }
    handle = _flock(folder)
    try:
        _break_stale_lock(path)
        with open(path, "x", encoding="utf-8") as file:
            json.dump(mine, file)
    except FileExistsError:  # without locks of the kernel another run may have been faster
        _unlock(handle)
        raise _problem(
            "another run is being started in this folder right now", "choose another --output"
        ) from None
    except BaseException:
        with contextlib.suppress(OSError):
            if (_read_json(path) or mine) == mine:
                path.unlink()
        _unlock(handle)
        raise
    if handle is not None:
        _held[folder.resolve()] = handle
    threading.Thread(target=_keep_alive, args=(path, mine["since"]), daemon=True, name="output-lock").start()


_held: dict[Path, int] = {}
"""Locked folder to the handle that the kernel has locked, until it is closed or the process ends."""


def _flock(folder: Path) -> int | None:
    """Lock ``folder`` itself (``flock``), which no PID namespace and no clock can fool; None where the system
    has no such lock.

    Raises:
        InputError: another run holds it.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, FileNotFoundError, PermissionError):  # Windows; a folder that is not there yet
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        owner = _read_json(folder / LOCK) or {}
        who = (
            f" (process {owner['pid']} on {owner.get('host')}, since {owner.get('since')})"
            if "pid" in owner
            else ""
        )
        raise _problem(
            f"another run{who} writes to this folder", "wait for it, stop it, or choose another --output"
        ) from None
    except OSError:  # a network file system without locks
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _check_free(path: Path) -> dict[str, Any] | None:
    """InputError if the run that made the lock still runs, or may; else what the lock says, if there is
    one."""
    owner = _read_json(path)
    if owner is None or not {"pid", "process_started", "host"} <= owner.keys():
        if path.exists() and _silence(path) < HALF_WRITTEN_SECONDS:
            raise _problem("another run is being started in this folder right now", "choose another --output")
    elif _is_alive(owner, path):
        raise _problem(
            f"another run (process {owner['pid']} on {owner['host']}, since {owner.get('since')}) writes to"
            " this folder",
            "wait for it, stop it, or choose another --output (if it was killed on another machine, the"
            f" folder is free {SILENT_SECONDS:g} s after its end)",
        )
    return owner


def _break_stale_lock(path: Path) -> None:
    """Removes the lock of a run that is no more; InputError if it still runs, or may."""
    owner = _check_free(path)
    # Renaming, not unlinking: of two runs that found the same stale lock one alone gets it, and neither
    # removes a fresh one.
    taken = path.with_name(f".{LOCK}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, taken)
        if _read_json(taken) != owner:
            os.replace(taken, path)
        else:
            taken.unlink()


def _is_alive(owner: Mapping[str, Any], path: Path) -> bool:
    import psutil

    if owner["host"] != socket.gethostname():
        return _is_touched(path)
    try:
        process = psutil.Process(int(owner["pid"]))
        same = (
            abs(process.create_time() - float(owner["process_started"])) < 5
        )  # else the number was given to another process
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True


def _is_touched(path: Path) -> bool:
    """Whether the owner, on another machine, still touches its lock: waits until it does, or has been silent
    for long enough.

    So a run that is started again on another machine, after the first one's failed, need not be started
    twice.
    """
    seen, told = _touched(path), False
    while (silence := _silence(path)) < SILENT_SECONDS:
        if _touched(path) != seen:
            return True
        if not told:
            told = True
            print(
                f"{path}: another machine's run was here {silence:.0f} s ago; waiting to see whether it still"
                f" runs (at most {SILENT_SECONDS:g} s)",
                flush=True,
            )
        time.sleep(min(1.0, SILENT_SECONDS / 10))
    return False


def _touched(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _silence(path: Path) -> float:
    """Seconds since the file was touched, by the clock of the file system that holds it."""
    probe = path.with_name(f".clock.{os.getpid()}.tmp")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        probe.unlink()


def _keep_alive(path: Path, since: Any) -> None:
    owner = {"pid": os.getpid(), "since": since}
    while owner.items() <= (_read_json(path) or {}).items():
        with contextlib.suppress(OSError):
            os.utime(path)
        time.sleep(HEARTBEAT_SECONDS)


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise _problem(
            f"expected a folder, found a file in the way: {error.filename or folder}",
            "choose another --output",
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise _problem(
            f"the folder {folder} cannot be written: {reason} ({error.filename})", "choose another --output"
        ) from None


def _problem(message: str, fix: str) -> InputError:
    return InputError(Problem(setting="output", message=message, fix=fix))


def _count(folder: Path) -> str:
    most, files = 1000, 0
    for _, _, names in os.walk(folder):
        files += len(names)
        if files > most:
            return f"more than {most} files"
    return f"{files} file{'' if files == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
