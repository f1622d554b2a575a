"""Checkpoints pushed while training goes on (``--publish.checkpoints``): by a thread that never holds the
training up nor ends it.

The branch ``checkpoints`` of the repository holds the newest one, one commit each. A checkpoint is taken by
hard links the moment it is whole, so that the training may delete it; of those that wait for a slow network
the newest alone is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from hftk.config import InputError, PublishConfig, RunConfig
from hftk.hub.card import base_model
from hftk.hub.folder import CARD, SCRUBBED, File, is_own_file, model_files
from hftk.hub.upload import explain, full_name, quiet, send_to_branch
from hftk.launch.environment import private
from hftk.models.adapter_files import ADAPTER
from hftk.reports.record import RunRecord
from hftk.training.checkpoints import MANIFEST, manifest_bytes, step_of
from hftk.version import __version__

BRANCH = "checkpoints"
TAKEN = ".pushing"
"""Folder beside the checkpoints for those that are on their way."""
_running: dict[str, CheckpointPusher] = {}


def push_checkpoints(config: RunConfig) -> CheckpointPusher | None:
    """What :func:`hftk.training.fit.fit` calls with each checkpoint, so that it is pushed as
    ``config.publish.checkpoints`` says; None where nothing is to be pushed. :func:`hftk.hub.publish` waits
    for the last one and tells which did not arrive."""
    settings = config.publish
    if settings.repo is None or settings.checkpoints == "none" or settings.dry_run:
        return None
    made = _running[config.output] = CheckpointPusher(settings, str(config.model.name or ""))
    return made


def finish_checkpoints(config: RunConfig) -> list[str]:
    """Wait until the last checkpoint of the run has arrived or failed; lines about what did and what did
    not."""
    pusher = _running.pop(config.output, None)
    return pusher.finish() if pusher else []


class CheckpointPusher:
    """Sends whole checkpoints one after the other in a thread of its own. Calling it returns at once and
    raises nothing."""

    def __init__(self, settings: PublishConfig, model_name: str) -> None:
        """``model_name`` is the setting ``model.name``, for the card."""
        self.settings, self.model_name = settings, model_name
        self.sent: list[int] = []
        """Steps of the checkpoints that arrived."""
        self.failed: dict[int, str] = {}
        """Step to what went wrong."""
        self._waiting: Path | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._over = False

    def __call__(self, checkpoint: Path) -> None:
        """Take a checkpoint that is whole. The main process alone calls this."""
        if self._over:
            return
        taken = _take(checkpoint, anew=self._thread is None)
        with self._lock:
            replaced, self._waiting = self._waiting, taken
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, daemon=True, name="push-checkpoints")
                self._thread.start()
        _forget(replaced)

    def finish(self) -> list[str]:
        """Wait for what is under way; lines for the end of a run."""
        thread = self._thread
        if thread is not None:
            thread.join()
        lines = []
        if self.sent:
            lines.append(
                f"checkpoints pushed: steps {_listed(self.sent)}; the newest is revision {BRANCH} of"
                f" {self.settings.repo}"
            )
        if self.failed:
            reason = [*self.failed.values()][-1]
            lines.append(f"checkpoints that did not arrive: steps {_listed(self.failed)}: {reason}")
        return lines

    def _work(self) -> None:
        while True:
            with self._lock:
                taken, self._waiting = self._waiting, None
                if taken is None:
                    self._thread = None
                    return
            step = step_of(taken)
            try:
                self._send(taken, step)
                self.sent.append(step)
            except Exception as error:  # whatever it is, the training goes on
                self._tell_once(step, error)
            finally:
                _forget(taken)

    def _send(self, taken: Path, step: int) -> None:
        from huggingface_hub.utils import disable_progress_bars

        with disable_progress_bars():
            owned = replace(self.settings, repo=full_name(str(self.settings.repo), "", quiet))
            files = checkpoint_files(taken, owned, self.model_name)
            send_to_branch(files, owned, BRANCH, f"Checkpoint of step {step}")

    def _tell_once(self, step: int, error: Exception) -> None:
        from tqdm import tqdm

        meant = explain(error, str(self.settings.repo), "") if not isinstance(error, InputError) else error
        reason = meant.problems[0].message if isinstance(meant, InputError) else str(meant).partition("\n")[0]
        lasting = isinstance(meant, InputError)
        if not self.failed:
            goes_on = "no other is tried" if lasting else "the next one is tried"
            tqdm.write(
                private(
                    f"  · the checkpoint of step {step} was not pushed: {reason}; training goes on, {goes_on}"
                )
            )
        self.failed[step], self._over = private(reason), lasting


def checkpoint_files(checkpoint: Path, settings: PublishConfig, model_name: str) -> list[File]:
    """What of a checkpoint is sent: what loading takes, or with ``whole`` every file; no folder of this
    machine is named in it.

    Raises:
        InputError: as :func:`hftk.hub.folder.collect`.
    """
    files = {file.name: file for file in model_files(checkpoint, settings.base_model)}
    if settings.checkpoints == "whole":
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        paths = {
            name: checkpoint / name for name in listed if name not in files and ".." not in Path(name).parts
        }
        files |= {name: File(name=name, content=path) for name, path in paths.items() if is_own_file(path)}
        files[MANIFEST] = File(name=MANIFEST, content=_manifest(checkpoint, files))
    files[CARD] = File(name=CARD, content=_card(checkpoint, settings, model_name).encode())
    return [files[name] for name in sorted(files)]


def _manifest(checkpoint: Path, files: dict[str, File]) -> bytes:
    """The manifest for the files as they are sent: some have lost a path."""
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    for name, listed in manifest["files"].items():
        content = files[name].content
        if name in SCRUBBED and isinstance(content, bytes):
            listed |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return manifest_bytes({name: value for name, value in manifest.items() if name != "sha256"})


def _card(checkpoint: Path, settings: PublishConfig, model_name: str) -> str:
    from huggingface_hub import ModelCardData

    repo = str(settings.repo)
    base = base_model(
        RunRecord(hftk=__version__, task="", config={"model": {"name": model_name}}), checkpoint, settings
    )
    data = ModelCardData(
        base_model=base,
        library_name="peft" if (checkpoint / ADAPTER).is_file() else "transformers",
        license=settings.license,
        tags=["hftk", "checkpoint"],
    )
    whole = settings.checkpoints == "whole"
    lines = [
        f"# {repo.rpartition('/')[2]}, step {step_of(checkpoint)}",
        (
            f"A checkpoint of a run that was going on when it was pushed{_judged(checkpoint)}. The finished"
            " model is on the branch `main`."
        ),
        (
            f"Load it with `from_pretrained({repo!r}, revision={BRANCH!r})`; earlier steps are earlier"
            " commits of this branch."
        ),
    ]
    if whole:
        place = f"checkpoint-{step_of(checkpoint)}"
        lines.append(
            f"To continue the run elsewhere: `hf download {repo} --revision {BRANCH} --local-dir {place}`,"
            f" then start the recipe with the same settings and `--resume {place}`."
        )
    return f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n" + "\n\n".join(lines) + "\n"


def _judged(checkpoint: Path) -> str:
    """The last evaluation in words, "" where there was none."""
    try:
        history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError):
        return ""
    last: dict[str, Any] = next(
        (point for point in reversed(history) if point.get("eval_loss") is not None), {}
    )
    return f" (validation loss {last['eval_loss']:.4f} at step {last['step']})" if last else ""


def _take(checkpoint: Path, *, anew: bool) -> Path:
    """A copy by hard links, which lives on when the training deletes its own; the checkpoint itself where
    there are no links."""
    place = checkpoint.parent / TAKEN
    if anew:  # what a run that was killed left
        shutil.rmtree(place, ignore_errors=True)
    taken = place / checkpoint.name
    try:
        shutil.copytree(checkpoint, taken, copy_function=os.link)
    except (OSError, shutil.Error):
        shutil.rmtree(taken, ignore_errors=True)
        return checkpoint
    return taken


def _forget(taken: Path | None) -> None:
    if taken is not None and taken.parent.name == TAKEN:
        shutil.rmtree(taken, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are still on their way
            taken.parent.rmdir()


def _listed(steps: Any) -> str:
    return ", ".join(f"{step:,}" for step in sorted(steps))
