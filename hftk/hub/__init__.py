"""Publishing: the model, its tokenizer and a card with every number of the run, to the Hugging Face Hub.

:func:`publish` is the last line of a recipe and does nothing unless ``--publish.repo`` is given; :func:`push`
is ``hftk push DIR``. A repository is private unless asked otherwise. A push that fails loses nothing: the
folder stays as it is, and the message holds the command that finishes it.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from hftk.config import InputError, PublishConfig, RunConfig
from hftk.hub.card import card
from hftk.hub.checkpoints import finish_checkpoints, push_checkpoints
from hftk.hub.folder import CARD, File, collect, is_own_file, left_out, public
from hftk.hub.upload import full_name, send
from hftk.launch import launched, on_main
from hftk.launch.environment import private
from hftk.launch.launcher import WORLD_SIZE, number_from_environment
from hftk.reports import wording
from hftk.reports.record import RunRecord, load_record
from hftk.training.checks import push_problems

__all__ = ["Plan", "plan_push", "publish", "push", "push_checkpoints"]

T = TypeVar("T")
PULSE_SECONDS = 60.0
"""How often waiting processes hear from the one that sends: a silence of many minutes would end them."""
UNFILLED = "[More Information Needed]"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A push, whole, before anything is sent."""

    repo: str
    private: bool
    files: list[File]
    left_out: list[str]
    """Names in the folder that stay on this machine."""
    card: str
    """Text of README.md."""
    samples: int
    """Rows of the data that the record shows, and with it the report and the card."""

    def lines(self) -> list[str]:
        """What would be sent, for people: every file with its size."""
        width = max(len(file.name) for file in self.files)
        total = wording.size(sum(file.bytes for file in self.files))
        kind = "private" if self.private else "PUBLIC"
        return [
            f"{len(self.files)} files, {total}, for {self.repo} ({kind}):",
            *(f"  {file.name.ljust(width)}  {file.bytes:>14,} bytes" for file in self.files),
            f"not sent: {', '.join(self.left_out) or 'nothing'}",
            *self.warnings(),
        ]

    def warnings(self) -> list[str]:
        """What to know before everybody can see it."""
        if self.private or not self.samples:
            return []
        return [
            f"everybody will see {wording.plural(self.samples, 'row')} of the data as examples; --samples"
            " false leaves them out"
        ]


def publish(record: RunRecord, config: RunConfig) -> str | None:
    """Push the output folder of ``config`` with a card made of ``record``, as ``config.publish`` says; return
    the URL.

    Returns None where there is no ``publish.repo``, and after a dry run, which prints what would be sent. All
    processes call this; the main one works.

    Raises:
        InputError, ServiceError: as :func:`push`.
    """
    if config.publish.repo is None:
        return None
    return _on_main_for_long(lambda: _publish(record, config))


def push(folder: str | Path, settings: PublishConfig, tell: Callable[[str], None] = print) -> str:
    """Push a finished run's folder to ``settings.repo`` and return its URL. Pushing again sends only what is
    new.

    Raises: InputError: no finished run, no token, or something that the Hub refuses; all that can be seen
        before sending at once. ServiceError: the Hub or the network failed; the message holds the command
        that finishes the push.
    """
    folder = Path(folder).expanduser()
    return _push(load_record(folder), folder, settings, tell)


def plan_push(record: RunRecord, folder: Path, settings: PublishConfig) -> Plan:
    """What a push would send; nothing is sent, written or asked of the network.

    A README.md that lies in the folder and was written by a person is taken as the card.

    Raises:
        InputError: no weights, a part of them missing, an adapter whose base nobody else can load.
    """
    assert settings.repo is not None
    shown = public(record, samples=settings.samples)
    text = _own_card(folder) or card(shown, folder, settings, settings.repo)
    files = collect(folder, shown, text, settings.base_model)
    return Plan(
        repo=settings.repo,
        private=settings.private,
        files=files,
        left_out=left_out(folder),
        card=text,
        samples=len(shown.samples) + _rows_shown(shown),
    )


def _rows_shown(record: RunRecord) -> int:
    """Rows of the data that the record's analysis quotes; one that stands in two tables counts twice."""
    tables = sum(
        len(section.get("rows") or ()) for section in record.analysis if section.get("kind") == "examples"
    )
    return tables + sum(
        2 * len(found.get("examples", ())) for found in (record.data.get("conflicts") or {}).values()
    )


def finishing_command(folder: Path, settings: PublishConfig) -> str:
    """``hftk push`` with the settings that are not the default's."""
    words = ["hftk", "push", private(str(folder))]
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "dry_run":
            words += [f"--{field.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return " ".join(word if word.startswith("~/") else shlex.quote(word) for word in words)


def _publish(record: RunRecord, config: RunConfig) -> str | None:
    folder, settings = Path(config.output), config.publish

    def tell(line: str) -> None:
        print(line, flush=True)

    if settings.dry_run:
        plan = plan_push(record, folder, settings)
        tell("\n".join(["", "A dry run: nothing is sent.", *plan.lines(), "", f"{CARD}:", "", plan.card]))
        return None
    for line in finish_checkpoints(config):
        tell(line)
    return _push(record, folder, settings, tell)


def _push(record: RunRecord, folder: Path, settings: PublishConfig, tell: Callable[[str], None]) -> str:
    if problems := list(push_problems(settings)):
        raise InputError(*problems)
    assert settings.repo is not None
    plan, finish = plan_push(record, folder, settings), finishing_command(folder, settings)
    owned = replace(settings, repo=full_name(settings.repo, finish, tell))
    if owned != settings:  # the card names the repository
        plan = plan_push(record, folder, owned)
    for line in plan.warnings():
        tell(line)
    url = send(plan.files, owned, finish, tell)
    tell(f"Published: {url}")
    return url


def _own_card(folder: Path) -> str:
    """The text of a README.md that a person wrote; "" for none, and for the empty form that PEFT saves beside
    an adapter."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if is_own_file(path) else ""
    return "" if UNFILLED in text or not text.strip() else text


def _on_main_for_long(function: Callable[[], T]) -> T:
    """As :func:`hftk.launch.on_main`, for work that takes longer than the processes would wait for each other
    in silence."""
    if number_from_environment(WORLD_SIZE, 1) == 1:
        return function()
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    if launched().is_main:
        threading.Thread(target=work, daemon=True, name="publish").start()
    while not on_main(lambda: bool(wait([result], PULSE_SECONDS).done)):
        pass
    return on_main(lambda: result.result())
