"""Stopping on request: what SIGINT and SIGTERM mean to a run, and that no process outlives its launcher.

Outside of :func:`graceful` the first signal raises :class:`StopRequested` in the main thread. Inside of it
the first signal only sets a flag, so that the training loop can finish its step, save, and leave. A second
SIGINT ends the process at once.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hftk.console import in_notebook

SAME_REQUEST_SECONDS = 1.0
"""A terminal's Ctrl-C reaches the launcher too, which hands it on: a SIGINT this soon after the first is the
same wish."""
WATCH_SECONDS = 2.0
"""How often the launcher is looked at where the kernel cannot tell of its death."""


class StopRequested(KeyboardInterrupt):
    """Somebody asked the run to stop (SIGINT, SIGTERM); :func:`hftk.launch.run` exits with code 3."""


class _Request:
    """What was asked of this process, between the first and the last line of :func:`handled`."""

    signal_name: str = ""
    since: float = 0.0
    owner: int = 0
    graceful_depth: int = 0
    deaf: bool = False


_request = _Request()


def stop_requested() -> bool:
    """Whether a signal has asked this process to stop. Peers may not have got it yet: agree on a step before
    leaving."""
    return bool(_request.signal_name)


@contextmanager
def graceful() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM only makes :func:`stop_requested` true; leaving it then raises
    StopRequested.

    ::

        with graceful():
            for batch in batches:
                step(batch)
                if stop_requested():
                    save()
                    break
    """
    with handled():
        _request.graceful_depth += 1
        try:
            yield
        finally:
            _request.graceful_depth -= 1
        if _request.signal_name and not _request.graceful_depth and not _request.deaf:
            raise StopRequested(_request.signal_name)


@contextmanager
def handled() -> Iterator[None]:
    """Installs the handlers and puts the former ones back at the end; inside of itself, or off the main
    thread, does nothing."""
    if _request.owner == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    _reset(owner=os.getpid())
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGHUP: POSIX only, SIGBREAK: Windows only
    former = {}
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        # An ignored signal was ignored on purpose: nohup does it to SIGHUP, a shell to the SIGINT of a
        # background job.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            former[number] = signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _reset(owner=0)


def ignore_requests() -> None:
    """From here to the end of :func:`handled` no first signal raises: the run is writing down how it
    ended."""
    _request.deaf = True


def die_with(launcher: int) -> None:
    """SIGTERM to this process when process ``launcher`` ends: ``accelerate launch`` leaves its children
    running otherwise.

    Linux asks the kernel (PR_SET_PDEATHSIG) if the launcher is the parent; elsewhere a daemon thread looks
    every 2 s.
    """
    if launcher == os.getppid() and _ask_kernel():
        if os.getppid() != launcher:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGTERM)
        return
    threading.Thread(target=_watch, args=(launcher,), daemon=True, name="launcher-watch").start()


def _on_signal(number: int, frame: FrameType | None) -> None:
    # A forked worker: Ctrl-C is for its parent to answer, and SIGTERM is the parent's answer.
    if _request.owner != os.getpid():
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    if _request.signal_name:
        if number == signal.SIGINT and time.monotonic() - _request.since > SAME_REQUEST_SECONDS:
            if in_notebook():  # the kernel lives on, and what its cells have made with it
                raise KeyboardInterrupt
            os.write(2, b"\nSecond interrupt: ended at once, nothing more is saved.\n")
            os._exit(130)
        return
    _request.signal_name = signal.Signals(number).name
    _request.since = time.monotonic()
    if _request.deaf:
        return
    if not _request.graceful_depth:
        raise StopRequested(_request.signal_name)
    os.write(2, f"\n{_request.signal_name}: saving, then stopping. Ctrl-C ends at once.\n".encode())


def _reset(owner: int) -> None:
    _request.signal_name, _request.since, _request.owner = "", 0.0, owner
    _request.graceful_depth, _request.deaf = 0, False


def _ask_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    try:
        return bool(
            ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0)
            == 0
        )
    except (OSError, AttributeError):
        return False


def _watch(launcher: int) -> None:
    import psutil

    try:
        process = psutil.Process(launcher)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(WATCH_SECONDS)
    except psutil.NoSuchProcess:
        pass
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # also wakes it from waiting
    else:  # Windows, where os.kill would end the process without its handler
        _thread.interrupt_main(signal.SIGTERM)
