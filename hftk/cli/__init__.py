"""The command ``hftk``: use, judge and report on what a run made.

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
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from hftk.cli import compare as comparison
from hftk.cli import env as environment
from hftk.cli import export, predict_labels
from hftk.cli import new as recipes
from hftk.cli import plan as planning
from hftk.cli import predict as prediction
from hftk.cli import push as publication
from hftk.cli import report as reporting
from hftk.cli.evaluate import EVALUATE, _add_evaluate, _evaluate
from hftk.cli.model_folder import check_names, task_name, wrong
from hftk.config import InputError, Problem, ServiceError
from hftk.redaction import redact_text
from hftk.tasks.table import load_task
from hftk.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv`` (default: the command line) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
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
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # else Python complains when it exits
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
        words, dotted = (_split_dotted if words[0] == "evaluate" else planning.split_words)(words)
    given, unknown = parser.parse_known_args(words)
    check_names(given)
    if unknown:
        known = [name for action in commands[given.command]._actions for name in action.option_strings]
        raise InputError(*(_unknown(word, known, given.command) for word in unknown))
    if given.command == "predict":
        task, _ = load_task(task_name(given.dir))
        return (prediction if task.generates else predict_labels).predict(given)
    if given.command == "compare":
        return comparison.compare(given)
    if given.command in _COMMANDS:
        return _COMMANDS[given.command](given)
    if given.command == "plan":
        return planning.run_plan(given, dotted)
    return _evaluate(given, dotted)


_COMMANDS = {
    "report": reporting.report,
    "export": export.export,
    "push": publication.push,
    "new": recipes.copy_recipe,
    "recipes": recipes.list_recipes,
    "env": environment.show,
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
    parser = _Parser(prog="hftk", description="Use, judge and report on what a fine-tuning run made.")
    parser.add_argument("--version", action="version", version=f"hftk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    predict = commands.add_parser(
        "predict",
        help="use a model: labels for texts, or text from prompts; JSON lines out",
        epilog=prediction.EXAMPLES,
        description=(
            "Use a model. A classifier gives label and probabilities for each text. A language model"
            " generates text: the likeliest tokens, sampled ones (--do_sample), or by beam search"
            " (--num_beams)."
        ),
    )
    prediction.add_flags(predict)
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on rows that it has not seen",
        epilog=EVALUATE,
        description="Score a model on rows that it has not seen.",
    )
    _add_evaluate(evaluate)
    compare = commands.add_parser(
        "compare",
        help="test whether one run is better than another",
        epilog=comparison.EXAMPLES,
        description="Test on the same rows whether one run is better than another.",
    )
    comparison.add_flags(compare)
    merge = commands.add_parser(
        "export",
        help="merge an adapter into full-precision weights, checked on real rows",
        epilog=export.EXAMPLES,
        description="Merge an adapter into full-precision weights, checked on real rows.",
    )
    export.add_flags(merge)
    plan = commands.add_parser(
        "plan",
        help="memory, time and cost of a run before anything is loaded",
        epilog=planning.EXAMPLES,
        description=(
            "What a run will need: memory of each device, the largest batch that fits, operations, time and"
            " cost."
        ),
    )
    planning.add_flags(plan)
    report = commands.add_parser(
        "report",
        help="a page about a run, or about several runs on the same rows",
        epilog=reporting.EXAMPLES,
        description=(
            "Make report.html of a run anew from its record.json; or compare several runs on one page."
        ),
    )
    reporting.add_flags(report)
    push = commands.add_parser(
        "push",
        help="publish a run on the Hub, with a model card",
        epilog=publication.EXAMPLES,
        description="Publish the model of a finished run on the Hub, with a card made from its record.",
    )
    publication.add_flags(push)
    new = commands.add_parser(
        "new", help="copy a recipe", epilog=recipes.EXAMPLES, description="Copy a recipe to start from."
    )
    recipes.add_flags(new)
    listed = commands.add_parser(
        "recipes", help="list the recipes", description="List the recipes that come with hftk."
    )
    env = commands.add_parser(
        "env",
        help="what a launch really gives: processes, devices, strategy, precision",
        epilog=environment.EXAMPLES,
        description="What a launch really gives: processes, devices, backend, strategy, precision, versions.",
    )
    environment.add_flags(env)
    return parser, {
        "predict": predict,
        "evaluate": evaluate,
        "compare": compare,
        "export": merge,
        "plan": plan,
        "report": report,
        "push": push,
        "new": new,
        "recipes": listed,
        "env": env,
    }


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
