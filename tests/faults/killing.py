"""Kill a run, start it again by the same command, and hold what it leaves against a run that was left
alone."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interposer import Shared
from phases import NAMES, PHASES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), str(HERE.parent)]),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ACCELERATE_USE_CPU": "true",
}
"""One thread, so that the bits are the same; no thread of a library's own where processes are forked."""
LONGEST = 300.0
"""Seconds that no run of a small recipe takes."""
POLL = 0.0003


class Server:
    """A process in which everything is imported, and that forks the runs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.folder = Path(tempfile.mkdtemp(prefix="kills"))

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the fork server has ended")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


@dataclass
class Process:
    """One forked process of a run."""

    server: Server
    watcher: int
    """The parent of the process, which ends as it ends."""
    shared: Shared
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code once it has ended; minus the signal's number if it was killed."""
        if self.code is None:
            self.code = self.server.ask(wait=self.watcher, long=False)
        return self.code

    def kill(self) -> None:
        if self.code is None:
            self.signal_kill()
            self.code = self.server.ask(wait=self.watcher, long=True)

    def signal_kill(self) -> None:
        """SIGKILL, without waiting for the end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.shared["pid"] or self.watcher, signal.SIGKILL)

    @property
    def phase(self) -> str:
        return PHASES[self.shared["phase"]]


@dataclass
class Run:
    """The processes of one start of a command."""

    processes: list[Process]
    folder: Path

    @property
    def main(self) -> Process:
        return self.processes[0]

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the end, or for ``until``; whether it was that."""
        deadline = time.monotonic() + LONGEST
        for turn in itertools.count():
            if until():
                return True
            if turn % 30 == 0 and any([process.poll() is not None for process in self.processes]):
                if all(process.code is not None for process in self.processes):
                    return False
                if any(process.code for process in self.processes if process.code is not None):
                    self.kill()  # its peers wait for one that is gone
                    return False
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"still running after {LONGEST:g} s:\n{self.printed()}")
            time.sleep(POLL)
        raise AssertionError

    def kill(self) -> None:
        """SIGKILL for all at once."""
        for process in self.processes:
            if process.code is None:
                process.signal_kill()
        for process in self.processes:
            process.kill()

    def printed(self) -> str:
        return "".join(
            process.log.read_text(encoding="utf-8", errors="replace") for process in self.processes
        )


def start(
    server: Server,
    command: list[str],
    folder: Path,
    *,
    processes: int = 1,
    kill_at: int = 0,
    torn: bool = False,
    trace: Path | None = None,
    modules: Path | None = None,
) -> Run:
    """Start ``command`` on so many processes and watch what they do to ``folder``."""
    started = []
    port = _free_port()
    for rank in range(processes):
        place = Path(tempfile.mkdtemp(dir=server.folder))
        shared = Shared(place / "shared", NAMES)
        if rank == 0:
            shared["kill_at"], shared["torn"] = kill_at, int(torn)
        group = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {name: str(value) for name, value in group.items()} if processes > 1 else {}
        watcher = server.ask(
            argv=command,
            env=environment,
            cwd=str(server.folder),
            log=str(place / "log"),
            shared=str(place / "shared"),
            folder=str(folder),
            trace=str(trace) if trace and rank == 0 else None,
            modules=str(modules) if modules and rank == 0 else None,
        )
        started.append(Process(server, watcher, shared, place / "log"))
    return Run(started, folder)


def finish(server: Server, command: list[str], folder: Path, **options: Any) -> Run:
    """Start ``command`` and wait; AssertionError unless it ends well."""
    run = start(server, command, folder, **options)
    run.wait()
    assert [process.code for process in run.processes] == [0] * len(run.processes), run.printed()[-6000:]
    return run


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
