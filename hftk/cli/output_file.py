"""Output of commands: whether a command may write to a path, and writing there whole or not at all."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hftk.config import InputError, Problem
from hftk.launch.files import find_name_problem, is_run_folder, write_atomically
from hftk.launch.output_folder import OURS

MOST_BYTES = 200
"""Longest name of an output file; the temporary file that becomes it has a longer one."""
NAMES = {"predict": "answers.jsonl", "evaluate": "scores.json", "report": "comparison.html"}
"""Command to a name for its output that belongs to no run."""
STREAMS = ("/dev/", "/proc/")


@dataclass(frozen=True)
class Output:
    """Where a command writes."""

    path: Path
    """The file itself: links are followed."""
    typed: Path
    """The path as it was typed."""
    is_stream: bool
    """A device or a pipe, which is written to and never replaced."""

    def write(self, text: str) -> None:
        """Write ``text``: a file is replaced as a whole."""
        if not self.is_stream:
            return write_atomically(self.path, text)
        with self.open() as file:
            file.write(text)

    @contextlib.contextmanager
    def open(self) -> Iterator[TextIO]:
        """A text file to write to; a regular one takes its place when the block ends without an error."""
        if self.is_stream:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                yield file
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def find_output(
    name: str | None,
    command: str,
    inputs: Iterable[str | None] = (),
    *,
    overwrite: bool = False,
    own: Path | None = None,
) -> Output | None:
    """The place that ``--output`` names; None where it is not given.

    Args:
        inputs: files, folders and globs that the command reads.
        overwrite: also replace a file that the same command did not write.
        own: the file of a run that this command may replace, such as its report.

    Raises:
        InputError: an input, a file of a run, a file that the same command did not write, or no place to
            write to.
    """
    if name is None:
        return None
    path = _existing_place(name)
    if path.is_dir():
        raise _problem(f"expected a file, found the folder {path}", f"use --output {path / NAMES[command]}")
    if _is_stream(path):
        return Output(path, path, True)
    given, path = path, path.resolve()
    is_own = own is not None and path == own.parent.resolve() / own.name
    _check_inputs(path, given, inputs)
    in_run = _run_of(path)
    if in_run is not None and not is_own:
        _check_run_file(path, in_run, command)
    _check_writable(path, given)
    if path.exists() and path.stat().st_size and not _is_written_by(path, command):
        if in_run is not None and not is_own:
            raise _problem(f"{given} is a file of the run in {in_run}", f"use --output {NAMES[command]}")
        if not overwrite:
            message = f"{given} exists, and hftk {command} did not write it"
            raise _problem(message, "choose another file, or add --overwrite to replace it")
    return Output(path, given, False)


def check_siblings(output: Output | None, suffixes: Iterable[str], inputs: Iterable[str | None] = ()) -> None:
    """InputError where a file that is needed while the output is written is something else's."""
    for suffix in suffixes if output is not None and not output.is_stream else ():
        path = output.path.with_name(output.path.name + suffix)  # type: ignore[union-attr]
        ours = path.is_file() and not path.is_symlink() and _is_partial(path)
        given = path.name.removesuffix(suffix)
        if os.path.lexists(path) and not ours:
            raise _problem(
                f"{path} is needed while {given} is written, and holds something else", "choose another file"
            )
        _check_inputs(path, path, inputs)


def find_folder(name: str, inputs: Iterable[str | None] = ()) -> Path:
    """The new or empty folder that ``--output`` names. Raises InputError where it is something else."""
    path = _existing_place(name)
    folder = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise _problem(
            f"expected a new or empty folder, found something in {path}", "choose another --output"
        )
    _check_inputs(folder, path, inputs)
    in_run = _run_of(folder)
    if in_run is not None:
        _check_run_file(folder, in_run, "export")
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise _problem(f"{path} cannot be made in {above}", "choose another --output")
    return folder


def _existing_place(name: str) -> Path:
    if found := find_name_problem("output", name):
        raise InputError(found)
    path = Path(name).expanduser()
    if len(os.fsencode(path.name)) > MOST_BYTES:
        message = f"expected a name of at most {MOST_BYTES} bytes, found {len(os.fsencode(path.name))}"
        raise _problem(message, "choose a shorter name")
    try:
        path.resolve(strict=False)
        path.is_dir()
    except (OSError, RuntimeError) as error:  # a circle of links
        raise _problem(f"{path} cannot be written: {error}", "choose another file") from None
    return path


def _is_stream(path: Path) -> bool:
    """Whether a path is a terminal, pipe or other stream. Raises InputError for a disk or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return True
    if not stat.S_ISREG(mode):
        raise _problem(f"expected a file, found a disk or a socket: {path}", "choose another file")
    return str(path.absolute()).startswith(STREAMS)  # /dev/stdout, sent to a file by the shell


def _check_inputs(path: Path, given: Path, inputs: Iterable[str | None]) -> None:
    for name in inputs:
        if not name:
            continue
        source = Path(os.path.expanduser(name))
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            found = (
                [Path(match) for match in glob.glob(str(source), recursive=True)]
                if glob.has_magic(name)
                else [source]
            )
            same = any(other.exists() and path.exists() and path.samefile(other) for other in found)
            if same or path in [other.resolve() for other in found]:
                raise _problem(f"{given} is an input of this command: {name}", "choose another file")
            if source.is_dir() and not is_run_folder(source) and path.is_relative_to(source.resolve()):
                raise _problem(f"{given} is in the folder that is read: {name}", "choose a file elsewhere")


def _run_of(path: Path) -> Path | None:
    """The folder of the run or model that a path is in."""
    return next((folder for folder in path.parents if is_run_folder(folder)), None)


def _check_run_file(path: Path, run: Path, command: str) -> None:
    first = path.relative_to(run).parts[0]
    if any(fnmatch.fnmatch(first, pattern) for pattern in OURS):
        fix = f"use --output {run / NAMES[command]}" if command in NAMES else "choose another --output"
        raise _problem(f"{path} is the name of a file of the run in {run}", fix)


def _check_writable(path: Path, given: Path) -> None:
    if not path.parent.is_dir():
        raise _problem(f"the folder {given.parent} does not exist", "make it first, or choose another file")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise _problem(f"{given} cannot be written", "choose another file")


def _is_written_by(path: Path, command: str) -> bool:
    """Whether a file is like those that ``hftk command`` writes."""
    with contextlib.suppress(OSError, ValueError):
        return _KINDS[command](path)
    return False


def _is_predictions(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        line = json.loads(file.readline(1_000_000))
    return isinstance(line, dict) and {"index", "prediction"} <= line.keys()


def _is_scores(path: Path) -> bool:
    found = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(found, dict) and {"hftk", "scores"} <= found.keys() and not found.get("history")


def _is_page(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        start = file.read(2000)
    return (
        start.lstrip().startswith("<!doctype html>")
        and "default-src 'none'; style-src 'unsafe-inline'" in start
    )


def _is_partial(path: Path) -> bool:
    """Whether a file holds the outputs of an interrupted ``hftk predict``."""
    with contextlib.suppress(OSError, ValueError):
        with path.open(encoding="utf-8") as file:
            first = file.readline(1_000_000)
        if first.startswith("{") and not first.endswith("\n"):
            return True  # interrupted while its first line was written
        line = json.loads(first or "{}")
        return isinstance(line, dict) and (
            not line or "fingerprint" in line or {"index", "prediction"} <= line.keys()
        )
    return False


def _problem(message: str, fix: str) -> InputError:
    return InputError(Problem(setting="output", message=message, fix=fix))


_KINDS: dict[str, Callable[[Path], bool]] = {
    "predict": _is_predictions,
    "evaluate": _is_scores,
    "report": _is_page,
}
