"""``kernels.cpp`` compiled for this processor, once: the library is kept where torch keeps its own extensions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
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

from hftk.choices import note
from hftk.precision import cpu_flags

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-w")
FOLDER = "hftk"
"""Under ``TORCH_EXTENSIONS_DIR``, or torch's default for it in the user's cache."""


class Unavailable(Exception):
    """The library is not there and cannot be made; the message says why, and what would help."""


@functools.cache
def library() -> Any:
    """The operators of ``kernels.cpp`` (``torch.ops.hftk``), compiled at their first use, which takes about half a minute.

    Raises:
        Unavailable: no compiler, a platform that it is not written for, or no place to keep the library.
    """
    if sys.platform not in ("linux", "darwin"):
        raise Unavailable(f"they are not compiled on {sys.platform}")
    compiler = _compiler()
    target = _place() / f"kernels-{_key(compiler)}.so"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not target.exists():
                note(f"compiling the fused layers with {compiler}: about half a minute, once on this machine")
                _compile(compiler, target)
        torch.ops.load_library(str(target))
    except OSError as error:
        raise Unavailable(f"{target}: {error}") from error
    return torch.ops.hftk


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    raise Unavailable("no C++ compiler was found (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)")


def _place() -> Path:
    extensions: Any = importlib.import_module("torch.utils.cpp_extension")
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or extensions.get_default_build_root()) / FOLDER


def _key(compiler: str) -> str:
    """What the library depends on: the source, torch, the compiler, and the instructions that the processor has."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (SOURCE.read_text(encoding="utf-8"), torch.__version__, version, platform.machine(), " ".join(sorted(cpu_flags() or ())), *FLAGS)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of a machine at a time; the system lets go of the lock of a process that was killed."""
    import fcntl

    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, target: Path) -> None:
    extensions: Any = importlib.import_module("torch.utils.cpp_extension")
    libraries = extensions.library_paths()
    paths = [f"-I{path}" for path in extensions.include_paths()]
    links = [*(f"-L{path}" for path in libraries), *(f"-Wl,-rpath,{path}" for path in libraries), "-ltorch", "-ltorch_cpu", "-lc10"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    said = ""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for tuned in (["-fopenmp", "-march=native"], ["-fopenmp-simd", "-mcpu=native"], ["-fopenmp-simd"]):
            command = [compiler, *FLAGS, *tuned, abi, *paths, str(SOURCE), "-o", str(made), *links]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(target)
                return
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[-200:]).strip()
    raise Unavailable(f"{compiler} could not compile them: {said}")
