"""``hftk push``: a finished run's folder to the Hub; the same settings as ``--publish.*`` of recipes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path

from hftk.cli.model_folder import say
from hftk.cli.predict import use_utf8
from hftk.config import InputError, Problem, PublishConfig
from hftk.config.parse import parse
from hftk.config.settings import read_settings
from hftk.reports.record import RunRecord, load_record

EXAMPLES = """\
examples:
  hftk push out/gpt2_clm --repo my-name/my-model
  hftk push out/gpt2_clm --repo my-name/my-model --private false --license mit --language en
  hftk push out/gpt2_clm --repo my-name/my-model --dry_run > card.md

Settings that are not given are those of the run (--publish.*). What arrived before an interruption is not
sent again. A README.md that you put into the folder is taken as the model card; --dry_run prints the one that
would be made."""


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk push`` takes."""
    parser.add_argument("dir", metavar="DIR", help="output folder of a run")
    for name, setting in read_settings(PublishConfig()).items():
        help = setting.meaning.replace("%", "%%").replace("--publish.", "--")
        if setting.is_bool:
            parser.add_argument(f"--{name}", metavar="true|false", nargs="?", const="true", help=help)
        else:
            parser.add_argument(f"--{name}", metavar="TEXT", help=help)


def push(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        InputError: no finished run in the folder, no repository named, or as :func:`hftk.hub.push`.
        ServiceError: as :func:`hftk.hub.push`.
    """
    from hftk import hub

    folder = Path(given.dir).expanduser()
    record = load_record(folder)
    folder = folder if folder.is_dir() else folder.parent
    settings = _settings(given, record)
    use_utf8()
    if settings.dry_run:
        plan = hub.plan_push(record, folder, settings)
        say("a dry run: nothing is sent\n" + "\n".join(plan.lines()))
        print(plan.card, end="")
        return 0
    print(hub.push(folder, settings, say))
    return 0


def _settings(given: Namespace, record: RunRecord) -> PublishConfig:
    """The run's own settings with the flags laid over them."""
    names = [field.name for field in fields(PublishConfig)]
    stored = record.config.get("publish") or {}
    settings = PublishConfig(**{name: stored[name] for name in names if name in stored and name != "dry_run"})
    settings = parse(
        settings, [f"--{name}={value}" for name in names if (value := getattr(given, name)) is not None]
    )
    if settings.repo is None:
        message = "expected the repository to push to, found none"
        raise InputError(
            Problem(setting="publish.repo", message=message, fix="add --publish.repo NAME/MODEL")
        )
    return settings
