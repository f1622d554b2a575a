"""Checkpoints saved in the background: training waits only while files are written, not while they are
fsynced and renamed.

A checkpoint exists once its folder has its final name; rotation and best weights follow after that. If the
disk is full, the run ends and its state is saved where there is room.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import TrainerCallback

from hftk.config import DiskError
from hftk.launch import on_main, wait_for_all
from hftk.launch.environment import versions
from hftk.models import adapter_files, adapters
from hftk.models.weights import no_progress_bars
from hftk.training import checkpoints
from hftk.training.background import BackgroundTask
from hftk.training.protocols import RunningTrainer

STATE = "hftk.json"
"""What a checkpoint of ours holds besides Trainer's files: history, counters, automatic choices, and what the
run trains on."""
STREAM_KEYS = "stream_keys.bin"
"""Keys of the rows of a stream that stand before the place where a continued run goes on."""
UNWRITTEN = re.compile(r"PytorchStreamWriter|inline_container|iostream|file write failed|Parent directory")
"""What torch's RuntimeErrors say of a file that could not be written."""
RESCUED = "hftk-rescued-"


class CheckpointWriter:
    """Writes, seals and rotates the checkpoints of one trainer. All processes call ``begin``, ``save`` and
    ``finish`` together."""

    def __init__(self, trainer: RunningTrainer) -> None:
        self._trainer = trainer
        self._output = Path(trainer.config.output)
        self._background = BackgroundTask()
        self._companions: dict[str, bytes] = {}
        self._versions: dict[str, str] = {}
        self._random_states: list[tuple[str, bytes]] = []
        self.staging: Path | None = None
        """Folder in which Trainer makes its folder of the present step, while it does."""

    @property
    def failed(self) -> bool:
        """On the main process: whether the last checkpoint could not be sealed, which the next :meth:`save`
        raises."""
        return self._background.failed

    def begin(self) -> None:
        """Make ready; what a run left that was killed while it saved is removed, else it would be sealed with
        the next one."""
        on_main(self._begin)

    def save(self) -> None:
        """Write the checkpoint of the present step, and let it be sealed while the training goes on.

        Raises: DiskError: it, or the one before it, could not be written; the message says where the state is
            instead.
        """
        try:
            on_main(self._background.wait)
            staged = self._write(self._folder / checkpoints.STAGING)
            state, best = self._trainer.run_state(), self._trainer.best_step()
            on_main(self._background.start, lambda: self._complete(staged, state, best))
            if self._is_watched():
                on_main(self._background.wait)
        except (OSError, DiskError) as error:
            self._rescue(error)

    def finish(self) -> None:
        """Return when the last checkpoint is whole, and those before it are gone that are not to be kept,
        also where the run that wrote it was killed before it came to that. Raises DiskError, as :meth:`save`
        does."""
        try:
            on_main(self._background.wait)
            on_main(
                checkpoints.rotate,
                self._output,
                self._trainer.config.train.keep_checkpoints,
                self._trainer.best_step(),
            )
        except (OSError, DiskError) as error:
            self._rescue(error)

    def settle(self) -> None:
        """By each process alone, when an error ends the run: let the checkpoint under way become whole, or
        say that it did not."""
        try:
            self._background.wait()
        except Exception as error:
            print(f"hftk: the last checkpoint could not be written: {error}", file=sys.stderr, flush=True)

    def write_random_states(self, folder: str) -> None:
        """The random state of every process, gathered by :meth:`save`, among Trainer's files."""
        for name, content in self._random_states:
            (Path(folder) / name).write_bytes(content)

    # --- Writing

    @property
    def _folder(self) -> Path:
        return self._output / checkpoints.FOLDER

    def _begin(self) -> None:
        """The tokenizer's files are the same in every checkpoint of a run: written out once, while nothing
        waits for it."""
        self._versions = versions()
        folder = checkpoints.clear(self._output) / checkpoints.STAGING
        folder.mkdir()
        self._trainer.tokenizer.save_pretrained(folder)
        if adapters.is_adapter(self._trainer.plain):
            adapter_files.save_config(self._trainer.plain, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        self._companions = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        shutil.rmtree(folder)

    def _write(self, staging: Path) -> Path:
        """Trainer's files of the present step, in a folder below ``staging``; what goes wrong on one process
        is raised on all."""
        trainer = self._trainer
        trainer.gather_losses()
        self.staging = staging
        failure: Exception | None = None
        states: list[tuple[str, bytes]] = []
        try:
            states = trainer.random_states()
        except OSError as error:
            failure = error
        self._random_states = gather_object(states)
        try:
            with no_progress_bars():
                trainer.write_files()
        except (OSError, SafetensorError, RuntimeError) as error:
            failure = error
        self.staging, self._random_states = None, []
        try:
            _raise_together(failure)
        except BaseException:
            on_main(shutil.rmtree, staging, ignore_errors=True)  # it may be what fills the disk
            raise
        return staging / f"checkpoint-{trainer.state.global_step}"

    def _complete(self, staged: Path, state: dict[str, Any], best: int | None) -> None:
        """All that is left to do for a checkpoint in the output folder; it needs nothing that the training
        changes."""
        final = self._seal(staged, self._folder, state)
        if self._trainer.on_checkpoint is not None:
            self._trainer.on_checkpoint(final)
        checkpoints.rotate(self._output, self._trainer.config.train.keep_checkpoints, best)

    def _seal(self, staged: Path, folder: Path, state: dict[str, Any], **facts: Any) -> Path:
        """Add what is ours to Trainer's files and make a checkpoint in ``folder`` of them."""
        final = folder / staged.name
        try:
            for needless in (
                "training_args.bin",
                "README.md",
            ):  # a pickle that nothing reads, PEFT's empty form
                (staged / needless).unlink(missing_ok=True)
            for name, content in self._companions.items():
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).write_bytes(content)
            keys = state.pop("stream_keys", b"")
            if keys:
                (staged / STREAM_KEYS).write_bytes(keys)
            (staged / STATE).write_text(json.dumps(state), encoding="utf-8")
            facts = {
                "step": checkpoints.step_of(final),
                "processes": self._trainer.args.world_size,
                "versions": self._versions,
                **facts,
            }
            checkpoints.seal(staged, final, facts)
        except BaseException:
            shutil.rmtree(staged.parent, ignore_errors=True)  # it may be what fills the disk
            raise
        staged.parent.rmdir()
        return final

    def _is_watched(self) -> bool:
        """Whether a callback, such as a tracker's, wants to see the checkpoint right after it was saved."""
        watchers = self._trainer.callback_handler.callbacks
        return any(type(watcher).on_save is not TrainerCallback.on_save for watcher in watchers)

    # --- Where the disk does not take it

    def _rescue(self, failure: Exception) -> NoReturn:
        """End the run by a DiskError; its state is saved first, if there is room elsewhere. All processes
        take part."""
        place = on_main(_place_with_room, self._trainer.state_bytes())
        told = "there is no other place with room for its state"
        if place is not None:
            try:
                staged = self._write(place / checkpoints.STAGING)
                state = self._trainer.run_state()
                rescued = on_main(self._seal, staged, place, state, output=str(self._output.resolve()))
                told = (
                    f"the state after step {checkpoints.step_of(rescued)} is in {rescued} instead. Make room,"
                    f" or choose another --output, and go on with --resume {rescued}"
                )
            except (OSError, DiskError) as error:
                told = f"its state could not be saved in {place} either ({error})"
                on_main(shutil.rmtree, place, ignore_errors=True)
        raise DiskError(on_main(self._failure_in_words, failure, told)) from None

    def _failure_in_words(self, failure: Exception, told: str) -> str:
        whole = [
            folder.name
            for folder in checkpoints.checkpoints(self._output)
            if not checkpoints.damage(folder, contents=False)
        ]
        older = (
            f"{whole[-1]} and older ones are as they were" if whole else "no checkpoint was written before"
        )
        free = ""
        with contextlib.suppress(OSError):
            free = (
                f" ({shutil.disk_usage(self._output).free / 1e6:,.0f} MB free,"
                f" {self._trainer.state_bytes() / 1e6:,.0f} MB needed)"
            )
        return (
            f"a checkpoint could not be written to {self._folder}: {in_words(failure)}{free}; {older}; {told}"
        )


def _place_with_room(size: int) -> Path | None:
    """A new folder on a disk with ``size`` bytes to spare: in the system's temporary folder (TMPDIR), the
    home, or here."""
    for place in (tempfile.gettempdir, Path.home, Path.cwd):
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path(place())
            if shutil.disk_usage(folder).free > 1.1 * size + 2**24:
                return Path(tempfile.mkdtemp(prefix=RESCUED, dir=folder))
    return None


def _raise_together(failure: Exception | None) -> None:
    """Raise on every process what kept one of them from writing its files."""
    unwritten = isinstance(failure, (OSError, SafetensorError)) or bool(
        failure and UNWRITTEN.search(str(failure))
    )
    wait_for_all()  # the main process may write for longer than the backend waits
    told = gather_object([(unwritten, in_words(failure)) if failure else None])
    first = next((words for words in told if words), None)
    if first is None:
        return
    if failure is not None and not unwritten:
        raise failure
    raise (DiskError if first[0] else RuntimeError)(first[1])


def in_words(failure: Exception) -> str:
    """One line about what kept a file from being written."""
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror + (f" ({failure.filename})" if failure.filename else "")
    return (str(failure).splitlines() or [type(failure).__name__])[0]
