"""Where a run ran and what started it, with nothing private: no host or user name, no home folder, no token.

Nothing here imports torch; what it says about devices comes from a torch that is already loaded.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hftk import redaction
from hftk.redaction import REDACTED, is_secret_name, redact_text
from hftk.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "bitsandbytes")


def redact(value: Any) -> Any:
    """A copy of plain ``value`` without secrets and home folder (numbers, such as ``max_tokens``, are
    kept)."""
    return _shorten(redaction.redact(value))


def _shorten(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shorten(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shorten(item) for item in value]
    return _without_folders(value) if isinstance(value, str) else value


def private(text: str) -> str:
    """``text`` with paths relative to the working directory, the home folder as ``~``, and tokens
    redacted."""
    return redact_text(_without_folders(text))


def _without_folders(text: str) -> str:
    here, home = str(Path.cwd()), str(Path.home())
    if len(here) > 1:
        text = re.sub(rf"(?<![\w.~-]){re.escape(here)}[/\\](?=[\w.])", "", text)
        text = re.sub(rf"(?<![\w.~-]){re.escape(here)}(?![\w.-])", ".", text)
    if len(home) > 1:  # "/" is the home of some containers' users
        for form in {home, home.replace("\\", "/")}:
            text = re.sub(re.escape(form) + r"(?![\w.-])", "~", text)
    return text


def redact_command(words: Sequence[str]) -> str:
    """Command-line ``words`` as one line to paste: quoted, values of ``--hub_token``, ``API_KEY=`` &c.
    redacted."""
    shown: list[str] = []
    hide = False
    for word in words:
        name, equals, value = word.partition("=")
        if hide and not word.startswith("-") and not word.isdigit():
            word = REDACTED
        elif equals and is_secret_name(name) and not value.isdigit():
            word = f"{name}={REDACTED}"
        hide = word.startswith("-") and not equals and is_secret_name(word)
        shown.append(_quote(private(word)))
    return " ".join(shown)


def _quote(word: str) -> str:
    """Double quotes where needed: they serve POSIX shells and Windows alike. A leading ``~/`` is left to the
    shell."""
    if word.startswith("~/") and word != "~/":
        return "~/" + _quote(word[2:])
    if re.fullmatch(r"[\w@%+=:,./~-]+", word, re.ASCII):
        return word
    return '"' + re.sub(r'(["$`])', r"\\\1", word) + '"'


def command_line() -> str:
    """What was typed to start this process, as far as it can be told; "" inside a notebook or another
    program."""
    script, *flags = sys.argv or [""]
    if Path(script).stem == "hftk":
        return redact_command(["hftk", *flags])
    if not script.endswith(".py") or Path(script).name.startswith(("ipykernel", "colab_kernel")):
        return ""
    return redact_command([*(_launcher() or ["python"]), script, *flags])


def _launcher() -> list[str]:
    """``accelerate launch`` with its flags, read from the parent process: children are told only the
    outcome."""
    try:
        import psutil

        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except Exception:  # no psutil, no parent, no permission: the command is then shown as a plain python one
        return []
    for at, word in enumerate(words[:6]):
        name = ["python", "-m", word] if words[at - 1 : at] == ["-m"] else [Path(word).stem]
        if name[-1] in (
            "accelerate",
            "accelerate-launch",
            "torchrun",
            "accelerate.commands.launch",
            "torch.distributed.run",
        ):
            rest = words[at + 1 :]
            script = next((i for i, w in enumerate(rest) if w.endswith(".py")), len(rest))
            return [*name, *rest[:script]]
    return []


def environment() -> dict[str, Any]:
    """``hardware``, ``versions`` and ``git`` of this process, without anything that names the machine or its
    user."""
    return {"hardware": _hardware(), "versions": versions(), "git": _git()}


def versions() -> dict[str, str]:
    """Versions of hftk, Python and the libraries that matter, as far as they are installed."""
    found = {
        "hftk": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    return {name: number for name, number in found.items() if number}


def version(package: str) -> str | None:
    """The installed version, found without an import; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    """Keys: cpu, cores (usable by this process), ram_bytes, gpus, os, and threads where torch is loaded."""
    torch = sys.modules.get("torch")
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    facts = {"cpu": _cpu(), "cores": cores, "ram_bytes": _ram(), "gpus": list(_gpus(torch))}
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
    return {**facts, "os": f"{platform.system()} {platform.machine()}"}


def _cpu() -> str:
    """The processor's name as people know it; the architecture where the system does not tell."""
    name = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError, StopIteration, ImportError):
        if sys.platform == "darwin":
            name = _output("sysctl", "-n", "machdep.cpu.brand_string")
        elif sys.platform == "win32":
            import winreg

            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            ) as key:
                name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
        else:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            name = next(line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(name.split()) or platform.processor() or platform.machine()


def _ram() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().total)


def _gpus(torch: Any) -> Iterator[str]:
    """Names of the GPUs that this process sees, without loading torch for it."""
    if torch is None:
        return
    if torch.cuda.is_available():
        yield from (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    elif torch.backends.mps.is_available():
        yield "Apple MPS"


def _git() -> dict[str, Any] | None:
    """Commit of the working directory, and whether tracked files differ from it."""
    try:
        commit = _output("git", "rev-parse", "HEAD")
        dirty = bool(_output("git", "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": dirty}


def _output(*command: str) -> str:
    """Standard output of a short command; OSError or SubprocessError where it is missing, fails or hangs."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, env=environment)
    return result.stdout.strip()
