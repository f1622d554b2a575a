"""How a run ends, and who says so: one message on stderr, the same in ``status.json``, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hftk.config import InputError, PlainError
from hftk.config.problems import is_out_of_memory
from hftk.launch import launcher
from hftk.launch.environment import command_line, private
from hftk.launch.output_folder import read_status, release_output, settle_output, write_status
from hftk.launch.peers import Ending, PeerLost, Peers

FROM_OUTSIDE = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ENOENT,
        errno.ESTALE,
    )
)
"""No room (for anybody, for this user, in one file), read-only, not allowed, broken, gone, gone from a
network disk."""
PEER_SECONDS = 2.0
"""How long a failed peer waits for the main process to say the same before it speaks itself."""
NEWS_SECONDS = 3.0
"""How long a process that can no longer talk to the others waits for the news of which one is gone."""
STOP_SECONDS = 1.0
"""The same for a process that is asked to stop."""
GRACE_SECONDS = 5.0
"""How long a process may take to end by itself once another one is gone; then it is taken to wait for that
one."""
CHECKPOINT_THREAD = "checkpoint-writer"
"""Name of the thread that writes a checkpoint, which is waited for at an exit."""
LAST_WORDS_SECONDS = 10.0
"""How long the last words of a process may take: the output folder may hang with the network."""
BUSY_SECONDS = 600.0
"""How long the main process may take, once another one is gone, to finish what it does alone, such as writing
a checkpoint."""
_COMMUNICATION = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|gloo|nccl|socket|\bpeer\b", re.I
)


@dataclass
class Run:
    """What :func:`hftk.launch.run` knows so far."""

    folder: Path | None = None
    """The output folder once it is locked for this run."""
    status: dict[str, Any] | None = None
    previous: dict[str, Any] | None = None
    """``status.json`` as an earlier run left it in the same folder."""
    peers: Peers | None = None
    """The watch over the other processes, where there are any."""
    busy: bool = False
    """Whether the main process does something alone, so that it does not wait for a peer."""
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        """Whether the caller is the one that says how the run ended: the main thread, or the watch where that
        one is stuck."""
        return self._ending.acquire(blocking=False)

    def write(self, **changes: Any) -> None:
        """``status.json`` with these fields changed, where there is an output folder."""
        if self.folder is not None and self.status is not None:
            write_status(self.folder, {**self.status, **changes})

    def told(self) -> dict[str, Any] | None:
        """``status.json`` if it already says how this run went wrong."""
        status = read_status(self.folder) if self.folder is not None else None
        if status is None or self.status is None or status["state"] not in ("failed", "wrong input"):
            return None
        return (
            status
            if (status["pid"], status["started"]) == (self.status["pid"], self.status["started"])
            else None
        )

    @property
    def is_after_finished_run(self) -> bool:
        """Whether the folder holds a finished run, which a refused ``--resume`` leaves finished."""
        return self.folder is not None and (self.previous or {}).get("state") == "done"

    def close(self, code: int) -> None:
        """Leaves the output folder as the next run wants to find it."""
        if self.folder is not None and is_main():
            with contextlib.suppress(OSError):
                settle_output(self.folder, keep_new=code != 2 or _has_weights(self.folder))
            release_output(self.folder)


def is_main() -> bool:
    """Whether this process is the main one, from the environment alone."""
    return launcher.number_from_environment(launcher.RANK, 0) == 0


def processes() -> int:
    """Processes on all machines together, from the environment alone."""
    return launcher.number_from_environment(launcher.WORLD_SIZE, 1)


def end(error: BaseException, current: Run) -> int:
    """Says how the run ended, on stderr and in ``status.json``, and returns the exit code."""
    if not current.claim():
        time.sleep(2 * LAST_WORDS_SECONDS)  # the watch has given this thread up, and ends the process
    state, code, message = meaning(error)
    if current.peers is not None:
        # What ends this process may only be that another one is gone: the watch knows which. The launcher,
        # too, asks the rest to stop when one of its processes has ended.
        lost = state == "failed" and _is_communication(error)
        wait = NEWS_SECONDS if lost else STOP_SECONDS if state == "stopped" else None
        other = current.peers.verdict(wait) if wait is not None else None
        if other is not None and (state == "failed" or other.state != "stopped"):
            return _end_after(other, current)
        current.peers.leave(state, code, message)
    if not is_main():
        return _end_peer(error, current, state, code, message)
    told_by_peer = current.told()
    if told_by_peer is not None:  # what ends the main process then is only that the peer is gone
        print(
            private(f"hftk: {told_by_peer['state']}: {told_by_peer['message']}"), file=sys.stderr, flush=True
        )
        return int(told_by_peer["exit_code"])
    _print_ending(error, state, message, current.folder)
    with contextlib.suppress(OSError):  # a full disk must not hide the reason
        if state == "wrong input" and current.is_after_finished_run:
            write_status(current.folder, current.previous)  # type: ignore[arg-type]
        else:
            current.write(state=state, exit_code=code, message=message)
    return code


def exit_when_stuck(other: Ending, current: Run) -> None:
    """Ends this process because another one is gone, unless it does so by itself: it may wait for that one
    without end.

    Runs in a thread of the watch.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    if other.state == "stopped" and is_main():  # it may still have to finish what it writes
        if os.name == "nt":  # where os.kill ends the process at once
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(BUSY_SECONDS)
    time.sleep(GRACE_SECONDS)
    while current.busy and time.monotonic() < deadline:
        time.sleep(0.1)
        if not current.busy:
            time.sleep(GRACE_SECONDS)
    if not current.claim():
        return
    for thread in threading.enumerate():
        if thread.name == CHECKPOINT_THREAD:  # idle threads of a pool would never end
            thread.join(max(0.0, deadline - time.monotonic()))
    last = threading.Timer(LAST_WORDS_SECONDS, os._exit, (1,))
    last.daemon = True
    last.start()
    code = _end_after(other, current)
    current.close(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_after(other: Ending, current: Run) -> int:
    """Says that another process ended the run; one process alone says it where all see the same output
    folder."""
    state, code = other.state, other.code
    main, local_rank = is_main(), launcher.number_from_environment(launcher.LOCAL_RANK, 0)
    wait = (
        0.0 if main and other.lost else PEER_SECONDS + 1.0 + 0.1 * local_rank
    )  # a failed peer speaks itself
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and current.told() is None:
        time.sleep(0.05)
    message = private(f"{other.message}{_how_to_go_on(current.folder)}")
    told = current.told() is not None
    if not told:
        with contextlib.suppress(OSError):
            current.write(state=state, exit_code=code, message=message)
    if not told or local_rank == 0:  # once on each machine
        sys.stdout.flush()
        print(f"hftk: {state}: {message}", file=sys.stderr, flush=True)
    return code


def _how_to_go_on(folder: Path | None) -> str:
    """Where the last whole checkpoint is, and what to type."""
    if folder is None:
        return ""
    numbered = (
        re.fullmatch(r"checkpoint-(\d+)", p.parent.name) for p in folder.glob("checkpoints/*/manifest.json")
    )
    steps = [int(match[1]) for match in numbered if match]
    last = (
        f"the last checkpoint is {folder}/checkpoints/checkpoint-{max(steps)}"
        if steps
        else "there is no checkpoint yet"
    )
    command = re.sub(r" --(overwrite|resume)([ =](?!-)\S+)?(?= |$)", "", command_line())
    return f"; {last}; to go on: {command} --resume auto"


def _end_peer(error: BaseException, current: Run, state: str, code: int, message: str) -> int:
    """A process that is not the main one speaks only where the main process, given time, does not say what
    went wrong."""
    if state in ("stopped", "done") or getattr(error, "from_main", False):
        return code
    if current.folder is None:  # too early for the two to have seen different things, unless it is a defect
        if state == "failed":
            print(private("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        return code
    deadline = time.monotonic() + PEER_SECONDS
    while time.monotonic() < deadline:
        if current.told() is not None:
            return code
        time.sleep(0.05)
    message = f"process {launcher.number_from_environment(launcher.RANK, 0)}: {message}"
    _print_ending(error, state, message, current.folder)
    with contextlib.suppress(OSError):  # another machine may not see the folder
        current.write(state=state, exit_code=code, message=message)
    return code


def meaning(error: BaseException) -> tuple[str, int, str]:
    """(state, exit code, message) of what ended the run."""
    if isinstance(error, InputError):
        return "wrong input", 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 3, f"stopped on request ({error or 'SIGINT'})"
    if isinstance(error, SystemExit) and not error.code:
        return "done", 0, ""
    if isinstance(error, PlainError):
        return "failed", 1, str(error)
    if isinstance(error, OSError) and error.errno in FROM_OUTSIDE:
        return "failed", 1, _of_system(error)
    if is_out_of_memory(error):
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        return (
            "failed",
            1,
            (
                f"out of memory: {reason}; hftk plan RECIPE with the same settings says what needs it, and"
                " what would fit"
            ),
        )
    message = f"{type(error).__name__}: {error}"
    if processes() > 1 and re.search(r"Connection (closed|reset) by peer", message):
        message = f"another process of this run ended without a word (killed, or out of memory?); {message}"
    return "failed", 1, message


def _of_system(error: OSError) -> str:
    """What to say of a disk that is full or refuses to be written, and of a file that is gone."""
    where = f": {error.filename}" if error.filename else ""
    return (
        f"{error.strerror}{where}. What was written whole before is kept; once this is mended, the same"
        " command with --resume auto goes on"
    )


def _is_communication(error: BaseException) -> bool:
    """Whether an error may come from talking to another process: torch has no class for that, NCCL's
    aside."""
    return isinstance(error, PeerLost | ConnectionError) or bool(
        isinstance(error, RuntimeError) and _COMMUNICATION.search(str(error))
    )


def _print_ending(error: BaseException, state: str, message: str, folder: Path | None) -> None:
    if state == "wrong input" and isinstance(error, InputError):
        number = len(error.problems)
        lines = [
            f"hftk: {number} problem{'s' if number > 1 else ''} in the input",
            *(f"  {p}" for p in error.problems),
        ]
        text = "\n".join(lines)
    elif state == "stopped":
        text = f"hftk: {message}" + ("; --resume auto goes on from the last checkpoint" if folder else "")
    elif isinstance(error, PlainError) or is_out_of_memory(error):
        text = f"hftk: failed: {message}"
    elif state == "failed":
        print(private("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        text = f"hftk: failed: {message}" + (f" (kept in {folder / 'status.json'})" if folder else "")
    else:
        return
    sys.stdout.flush()
    print(private(text), file=sys.stderr, flush=True)


def _has_weights(folder: Path) -> bool:
    """Whether this run has trained: what an earlier run left is set aside, so these are not its weights."""
    return any(folder.glob("*.safetensors")) or any((folder / "checkpoints").glob("checkpoint-*"))
