"""The command ``hftk``: use and evaluate what a run has made, and report on it.

Exit codes are those of :mod:`hftk.launch`: 0 done, 2 wrong input (a message, no traceback), 3 stopped on
request, 1 the rest. Results go to stdout, everything else to stderr. torch is imported when a command needs
it and not before.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from hftk.cli import compare, env, evaluate, export, new, plan, predict, predict_labels, push, report
from hftk.cli.model_folder import check_names, task_name, wrong
from hftk.config import InputError, Problem, ServiceError
from hftk.console import print_what_can_be_printed
from hftk.redaction import redact_text
from hftk.tasks.table import load_task
from hftk.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv`` (default: the command line) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    print_what_can_be_printed()
    try:
        try:
            code = _command(words)
        except SystemExit as end:  # --help, --version
            code = int(end.code or 0)
        sys.stdout.flush()
        return code
    except InputError as error:
        problems = [str(_as_typed(problem, words[0])) for problem in error.problems]
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        print(
            "\n".join([f"hftk: {count} in the input", *(f"  {redact_text(p)}" for p in problems)]),
            file=sys.stderr,
        )
        return 2
    except ServiceError as error:
        print(redact_text(f"hftk: failed: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"hftk: stopped on request{stop}", file=sys.stderr)
        return 3
    except BrokenPipeError:  # the reader, such as head, has had enough
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
        return 0
    except Exception:
        print(redact_text(traceback.format_exc()), end="", file=sys.stderr)
        return 1


def _command(words: list[str]) -> int:
    parser, commands = _parsers()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    if not words[0].startswith("-") and words[0] not in commands:
        near = difflib.get_close_matches(words[0], commands, n=1)
        fix = f"did you mean hftk {near[0]}?" if near else "hftk --help says what each does"
        raise wrong(f"expected one of the commands {', '.join(commands)}, found {words[0]}", fix)
    dotted: list[str] = []
    if words[0] in ("evaluate", "plan"):
        words, dotted = (_split_dotted if words[0] == "evaluate" else plan.split_words)(words)
    given, unknown = parser.parse_known_args(words)
    check_names(given)
    if unknown:
        known = [name for action in commands[given.command]._actions for name in action.option_strings]
        raise InputError(*(_unknown(word, known, given.command) for word in unknown))
    run = COMMANDS[given.command].run
    return run(given, dotted) if given.command in ("evaluate", "plan") else run(given)


def _predict(given: Namespace) -> int:
    task, _ = load_task(task_name(given.dir))
    return (predict if task.generates else predict_labels).predict(given)


class Command(NamedTuple):
    """One command of ``hftk``."""

    module: ModuleType
    """Where its flags (``add_flags``) and examples (``EXAMPLES``) are."""
    run: Callable[..., int]
    help: str
    description: str


COMMANDS = {
    "predict": Command(
        predict,
        _predict,
        "use a model: labels for texts, or text from prompts; JSON lines out",
        "Use a model. A classifier gives label and probabilities for each text. A language model generates"
        " text: the likeliest tokens, sampled ones (--do_sample), or by beam search (--num_beams).",
    ),
    "evaluate": Command(
        evaluate,
        evaluate.evaluate,
        "score a model on rows that it has not seen",
        "Score a model on rows that it has not seen.",
    ),
    "compare": Command(
        compare,
        compare.compare,
        "test whether one run is better than another",
        "Test on the same rows whether one run is better than another.",
    ),
    "export": Command(
        export,
        export.export,
        "merge an adapter into full-precision weights, checked on real rows",
        "Merge an adapter into full-precision weights, checked on real rows.",
    ),
    "plan": Command(
        plan,
        plan.run_plan,
        "memory, time and cost of a run before anything is loaded",
        "What a run will need: memory of each device, the largest batch that fits, operations, time, cost.",
    ),
    "report": Command(
        report,
        report.report,
        "a page about a run, or about several runs on the same rows",
        "Make report.html of a run from its record.json; or compare several runs on one page.",
    ),
    "push": Command(
        push,
        push.push,
        "publish a run on the Hub, with a model card",
        "Publish the model of a finished run on the Hub, with a card made from its record.",
    ),
    "new": Command(new, new.copy_recipe, "copy a recipe", "Copy a recipe to start from."),
    "recipes": Command(new, new.list_recipes, "list the recipes", "List the recipes that come with hftk."),
    "env": Command(
        env,
        env.show,
        "what a launch really gives: processes, devices, strategy, precision",
        "What a launch really gives: processes, devices, backend, strategy, precision, versions.",
    ),
}


# --- Flags


class _Parser(ArgumentParser):
    """Raises InputError for a wrong flag, and takes no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise wrong(message, f"{self.prog} --help lists what it takes")


def _parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of ``hftk``, and those of its commands by name."""
    parser = _Parser(
        prog="hftk", description="Use and evaluate what a fine-tuning run has made, and report on it."
    )
    parser.add_argument("--version", action="version", version=f"hftk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found: dict[str, ArgumentParser] = {}
    for name, command in COMMANDS.items():
        has_flags = name != "recipes"
        found[name] = commands.add_parser(
            name,
            help=command.help,
            description=command.description,
            epilog=command.module.EXAMPLES if has_flags else None,
        )
        if has_flags:
            command.module.add_flags(found[name])
    return parser, found


def _split_dotted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without, and those of, settings such as ``--data.encoding latin-1`` that recipes have too."""
    rest: list[str] = []
    dotted: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith(("--data.", "--eval.", "--no-data.", "--no-eval.")):
            rest.append(word)
            continue
        dotted.append(word)
        if "=" not in word and left and not left[0].startswith("--"):
            dotted.append(left.pop(0))
    return rest, dotted


def _unknown(word: str, known: Sequence[str], command: str) -> Problem:
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1) if word.startswith("-") else []
    fix = f"did you mean {near[0]}?" if near else f"hftk {command} --help lists what it takes"
    return Problem(setting="", message=f"hftk {command} does not take {word}", fix=fix)


def _as_typed(problem: Problem, command: str) -> Problem:
    """The problem in the words of this command line, where some flags have no section before them."""

    def typed(text: str) -> str:
        text = text.replace("--generation.do_sample true", "--do_sample").replace("--generation.", "--")
        text = text.replace("--publish.", "--") if command == "push" else text
        for name, flag in _OF_PREDICT if command == "predict" else ():
            text = text.replace(name, flag)
        return text

    setting = (
        "data"
        if problem.setting == "data.path"
        else problem.setting.removeprefix("generation.").removeprefix("publish.")
    )
    setting = typed(f"--{setting}").removeprefix("--") if setting else ""
    return replace(problem, setting=setting, message=typed(problem.message), fix=typed(problem.fix))


_OF_PREDICT = (
    ("--data.encoding", "--encoding"),
    ("--data.columns.text_pair", "--pair_column"),
    ("--data.columns.text", "--column"),
    (", or leave such rows out: --data.incomplete drop", ""),
)
"""Settings of recipes to the flags of ``hftk predict``, the longer names first."""
