"""Runs recipes and commands in forked children: the imports, which take longer than a small run, are done
once.

    python fork_server.py          reads requests from stdin, one JSON object a line, and answers on stdout

The server itself only imports: it runs nothing and has no threads, so that a child is what a new process
would be.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from phases import NAMES, show_phases

HERE = Path(__file__).parent
IMPORTS = (
    "hftk",
    "hftk.training.fit",
    "hftk.evaluation.evaluate",
    "hftk.reports.record",
    "hftk.reports",
    "hftk.hub",
    "hftk.cli",
    "hftk.tasks",
)


def serve() -> None:
    """Answer requests until stdin ends; children that still run are killed then."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    running: set[int] = set()
    try:
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), running)), file=replies, flush=True)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)


def _answer(request: dict[str, Any], running: set[int]) -> Any:
    if "imports" in request:
        return _import(request["imports"])
    if "argv" in request:
        gc.freeze()
        pid = os.fork()
        if not pid:
            _child(request)
        running.add(pid)
        return pid
    pid, status = os.waitpid(request["wait"], 0 if request["long"] else os.WNOHANG)
    if not pid:
        return None
    running.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _import(names: list[str]) -> list[str]:
    """Import what can be; the names of those that could not."""
    failed = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            failed.append(name)
    return failed


def _child(request: dict[str, Any]) -> None:
    """Be the process that was asked for, to its end."""
    code = 1
    try:
        _begin(request)
        try:
            if request["argv"][0] == "hftk":
                from hftk.cli import main

                code = main(request["argv"][1:])
            else:
                runpy.run_path(request["argv"][0], run_name="__main__")
                code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons, as the interpreter does
        if request.get("modules"):
            Path(request["modules"]).write_text(json.dumps(sorted(sys.modules)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _begin(request: dict[str, Any]) -> None:
    import ctypes

    from interposer import Shared, fork_watched

    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG: die with the server
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = list(request["argv"])
    trace = Path(request["trace"]) if request["trace"] else None
    fork_watched(Path(request["folder"]), Shared(Path(request["shared"]), NAMES), trace)
    show_phases(Path(request["shared"]))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    _import(list(IMPORTS))
    serve()
