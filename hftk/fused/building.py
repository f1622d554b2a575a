"""The folder ``kernels`` compiled for this processor, once: the library is kept in ``hftk`` under ``TORCH_EXTENSIONS_DIR`` or the user's cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hftk.console import note
from hftk.models.precision import cpu_flags

SOURCES = Path(__file__).with_name("kernels")
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-w")


class Unavailable(Exception):
    """The library is not there and cannot be made; the message says why, and what would help."""


@functools.cache
def library() -> Any:
    """The operators of ``kernels`` (``torch.ops.hftk``), compiled at their first use, which takes about half a minute.

    Raises:
        Unavailable: no compiler, a platform that it is not written for, or no place to keep the library.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable(f"they are not compiled on {sys.platform}")
    compiler = _compiler()
    try:
        target = _place() / f"kernels-{_key(compiler)}.so"
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(target):
            if not _is_whole(target):
                note(f"compiling the fused layers with {compiler}: about half a minute, once on this machine")
                _compile(compiler, target)
        if not hasattr(torch.ops.hftk, "attention"):  # registering the operators twice would end the process
            torch.ops.load_library(str(target))
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"the fused layers could not be loaded: {error}") from error
    return torch.ops.hftk


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise Unavailable("no C++ compiler was found (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)")


def _place() -> Path:
    chosen = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(chosen or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hftk"


def _key(compiler: str) -> str:
    """What the library depends on: the sources, torch, the compiler, and the instructions that the processor has."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (*(path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())), torch.__version__, version, platform.machine(), " ".join(sorted(cpu_flags() or ())), *FLAGS)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of a machine at a time; the system lets go of the lock of a process that was killed."""
    import fcntl

    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(target: Path) -> bool:
    """Whether the library is as it was made: loading one that was cut off would end the process."""
    digest = target.with_suffix(".sha256")
    return target.exists() and digest.exists() and digest.read_text() == _digest(target)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: str, target: Path) -> None:
    home = Path(torch.__file__).parent  # torch.utils.cpp_extension knows these too, and asks for setuptools
    paths = [f"-I{home / 'include'}", f"-I{home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    links = [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    said = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for tuned in (["-fopenmp", "-march=native"], ["-fopenmp-simd", "-mcpu=native"], ["-fopenmp-simd"]):
            command = [compiler, *FLAGS, *tuned, abi, *paths, str(SOURCES / "library.cpp"), "-o", str(made), *links]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                target.with_suffix(".sha256").write_text(_digest(made))
                made.replace(target)
                return
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:]).strip()
    raise Unavailable(f"{compiler} could not compile them: {said}")
