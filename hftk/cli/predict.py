"""``hftk predict``: prompts from the command line, a file or stdin; text out, one JSON object a line."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hftk.cli.model_folder import (
    add_device_map,
    add_overwrite,
    all_at_once,
    check_model,
    load,
    say,
    task_name,
    task_of,
    wrong,
)
from hftk.cli.output_file import check_siblings, find_output
from hftk.config import DataConfig, GenerationSettings, InputError, Problem
from hftk.config.settings import Given, WrongValue, convert, read_settings
from hftk.tasks.table import load_task

if TYPE_CHECKING:
    from hftk.generation.generate import Generated

EXAMPLES = """\
examples:
  hftk predict out/gpt2_clm --prompt "Once upon a time"
  hftk predict out/gpt2_clm --file prompts.txt --output answers.jsonl
  hftk predict out/gpt2_clm --file questions.jsonl --column question --num_beams 4
  echo "Once upon a time" | hftk predict out/gpt2_clm --do_sample --temperature 0.8 --top_p 0.95
  hftk predict out/bert_classification --file reviews.csv --column body --output labels.jsonl

One JSON object a line comes out, in the order of the rows. From a classifier (the prompts are its texts):
  {"index": 0, "text": "Great ...", "prediction": "positive", "probability": 0.98, "probabilities": {...}}
From a language model:
  {"index": 0, "prompt": "Once ...", "prediction": " there ...", "finished": true, "tokens": 12, ...}
finished: ended by itself; else it was cut off at --max_new_tokens.
truncated: the prompt was longer than the model's context leaves room for, and lost its beginning."""


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk predict`` takes; the flags of generation are the fields of
    :class:`~hftk.config.GenerationSettings`."""
    parser.add_argument(
        "dir",
        metavar="DIR",
        help="output folder of a run, or a folder or Hub id of a language model or classifier",
    )
    prompts = parser.add_argument_group("prompts (default: one a line on stdin)")
    one = prompts.add_mutually_exclusive_group()
    one.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be given several times")
    one.add_argument(
        "--file", metavar="FILE", help="prompts in a file: .txt (one a line), .jsonl, .csv, .parquet ..."
    )
    prompts.add_argument(
        "--column", metavar="NAME", help="the column of --file with the prompts (default: prompt, text)"
    )
    prompts.add_argument(
        "--encoding", metavar="NAME", default=DataConfig.encoding, help="of --file (default: %(default)s)"
    )
    prompts.add_argument(
        "--text_pair",
        action="append",
        metavar="TEXT",
        help="the second text of a pair, one for each --prompt",
    )
    prompts.add_argument("--pair_column", metavar="NAME", help="the column of --file with second texts")
    where = parser.add_argument_group("output (default: stdout)")
    where.add_argument(
        "--output",
        metavar="OUT.jsonl",
        help=(
            "a file; one that this command wrote is replaced. The same command after an interruption goes on"
            " from there (language models)"
        ),
    )
    add_overwrite(where.add_argument)
    how = parser.add_argument_group("generation")
    for item in read_settings(GenerationSettings()).values():
        meaning = item.meaning.replace("%", "%%")
        if item.hint is bool:
            how.add_argument(f"--{item.name}", action="store_true", help=meaning)
            continue
        if item.is_bool:  # or a word
            how.add_argument(
                f"--{item.name}", type=_reader(item.hint), metavar="WORD", help=f"{meaning} (default: false)"
            )
            continue
        kind: Any = item.members[0]
        default = (
            f"{item.default}, or half of a shorter context" if item.name == "max_new_tokens" else item.default
        )
        how.add_argument(
            f"--{item.name}", type=kind, metavar=kind.__name__.upper(), help=f"{meaning} (default: {default})"
        )
    how.add_argument(
        "--batch_size",
        type=int,
        metavar="INT",
        help=(
            "Most prompts at a time; it changes no output. (default: as many as fit into memory; classifiers:"
            " 64 rows)"
        ),
    )
    add_device_map(how.add_argument)


def _reader(hint: Any) -> Callable[[str], Any]:
    """Reads a flag's text as a recipe's flag is read."""

    def value(text: str) -> Any:
        try:
            return convert(hint, Given(value=yaml.safe_load(text), text=text))
        except WrongValue as error:
            raise ArgumentTypeError(error.message) from None

    return value


def predict(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        InputError: wrong flags, prompts, folder or output, all of them together, before anything is loaded.
    """
    for name in ("text_pair", "pair_column"):
        if getattr(given, name):
            raise InputError(
                Problem(setting=name, message="is for classifiers of pairs of texts", fix="leave it out")
            )
    task_class, _ = load_task(task_name(given.dir))
    text_to_text = "generation" in task_class.judged_by
    values = {f.name: getattr(given, f.name) for f in fields(GenerationSettings)}
    settings = GenerationSettings(**{name: value for name, value in values.items() if value is not None})
    prompts: list[str]
    prompts, _, _, output = all_at_once(
        lambda: read_prompts(given),
        lambda: _check_settings(settings, given.batch_size, text_to_text),
        lambda: check_model(given.dir, "predict"),
        lambda: find_output(given.output, "predict", [given.file, given.dir], overwrite=given.overwrite),
    )
    check_siblings(output, (".partial", ".new"), [given.file])
    from hftk.generation.generate import generate_to_file, stream, to_record

    task = task_of(given.dir) if text_to_text else None
    model, tokenizer = load(given.dir, (task or task_class).auto_model, given.device_map)
    if task:  # as the run was evaluated, unless a flag says otherwise
        flags = {
            name: value
            for name, value in values.items()
            if value is not None and (name, value) != ("max_new_tokens", 0)
        }
        settings = task.generation(model)
        if not (
            Path(given.dir).expanduser() / "config.yaml"
        ).is_file():  # a folder of no run: as its generation config says
            most = getattr(model.generation_config, "max_new_tokens", None)
            settings = replace(settings, max_new_tokens=most or GenerationSettings.max_new_tokens)
        settings = replace(settings, **flags)
    elif not given.max_new_tokens:
        settings = _fit_context(replace(settings, max_new_tokens=GenerationSettings.max_new_tokens), model)
    asked = prompts
    finish: Callable[[Generated], Generated] = _unchanged
    if task:
        with contextlib.redirect_stdout(sys.stderr):
            prompts, finish = _framed(task, model, tokenizer, asked, settings)
    options: dict[str, Any] = {"batch_size": given.batch_size, "progress": sys.stderr.isatty()}
    if output and not output.is_stream:
        columns = {"prompt": asked}
        try:
            results = generate_to_file(
                output.path, model, tokenizer, prompts, settings, columns=columns, finish=finish, **options
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("; the same command goes on from there") from None
        say(f"{len(results)} prediction{'s' if len(results) > 1 else ''} in {given.output}")
    else:
        use_utf8()
        results = []
        with output.open() if output else contextlib.nullcontext(sys.stdout) as file:
            for result in map(finish, _in_order(stream(model, tokenizer, prompts, settings, **options))):
                line = json.dumps(to_record(result, prompt=asked[result.index]), ensure_ascii=False)
                print(line, file=file, flush=True)
                results.append(result)
    cut = sum(result.truncated for result in results)
    if cut:
        lost = "end" if text_to_text else "beginning"
        say(
            f"{cut} of {len(results)} prompts were longer than the context leaves room for: they lost their"
            f" {lost}"
        )
    return 0


def _unchanged(result: Generated) -> Generated:
    return result


def _framed(
    task: Any, model: Any, tokenizer: Any, texts: list[str], settings: GenerationSettings
) -> tuple[list[str], Callable[[Generated], Generated]]:
    """The prompts that the task makes of texts, and what makes of an output that of the text."""
    from hftk.models.load import default_length

    prompts, lost = task.prompts(
        texts, tokenizer, max_length=default_length(model.config), new=settings.max_new_tokens
    )

    def finish(result: Generated) -> Generated:
        return replace(
            result, text=result.text.strip(), truncated=result.truncated or bool(lost[result.index])
        )

    return prompts, finish


def use_utf8() -> None:
    """JSON is UTF-8 whatever the encoding of the terminal is."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def read_prompts(given: Namespace) -> list[str]:
    """The prompts from --prompt, --file or stdin; InputError where there is none, or one that is not text."""
    if given.column and not given.file:
        raise InputError(
            Problem(setting="column", message="is for --file", fix="add --file FILE, or leave it out")
        )
    if given.file:
        prompts = _file_prompts(Path(given.file), given.column, given.encoding)
    elif given.prompt:
        prompts = list(given.prompt)
    elif sys.stdin is None or sys.stdin.isatty():
        fix = (
            f'hftk predict {shlex.quote(given.dir)} --prompt "Once upon a time" (or --file FILE, or pipe'
            " them in)"
        )
        raise wrong("expected prompts, found none", fix)
    else:
        prompts = _stdin_prompts()
    for number, prompt in enumerate(prompts, 1):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise wrong(
                f"expected UTF-8, found other bytes in prompt {number}", "use --file with --encoding"
            ) from None
    return prompts


def _stdin_prompts() -> list[str]:
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode("utf-8-sig")  # PowerShell puts a byte-order mark before what it pipes
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise wrong(
            f"expected UTF-8, found other bytes in line {line} of stdin", "use --file with --encoding"
        ) from None
    if not text:
        raise wrong(
            "expected prompts on stdin, one a line, found nothing", "use --prompt TEXT or --file FILE"
        )
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _file_prompts(path: Path, column: str | None, encoding: str) -> list[str]:
    from hftk.data.files import format_of
    from hftk.data.sources import read_source

    shape: Any = format_of(path) or "txt"
    source, _ = read_source(path, DataConfig(format=shape, documents="line", encoding=encoding), "file")
    prompts: list[str] = []
    for chunk in source.read(None):
        name = column or next((name for name in ("prompt", "text") if name in chunk.table), None)
        if name not in chunk.table:
            columns = ", ".join(chunk.table) or "none"
            message = f"expected a column {column or 'prompt or text'} in {path}, found {columns}"
            raise InputError(
                Problem(setting="column", message=message, fix="name the column of prompts: --column NAME")
            )
        values = chunk.table[name]
        odd = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
        if odd is not None:
            message = (
                f"expected text in column {name} of {path}, found {values[odd]!r:.40} in row"
                f" {chunk.start + odd}"
            )
            raise InputError(
                Problem(setting="column", message=message, fix="drop the row, or name another column")
            )
        prompts += values
    if not prompts:
        raise InputError(Problem(setting="file", message=f"expected prompts, one a line, found {path} empty"))
    return prompts


def _check_settings(settings: GenerationSettings, batch_size: int | None, text_to_text: bool) -> None:
    problems = list(settings.problems())
    if settings.max_new_tokens == 0 and not text_to_text:
        problems.append(Problem(setting="generation.max_new_tokens", message="expected at least 1, found 0"))
    if batch_size is not None and batch_size < 1:
        problems.append(Problem(setting="batch_size", message=f"expected at least 1, found {batch_size}"))
    if problems:
        raise InputError(*problems)


def _fit_context(settings: GenerationSettings, model: Any) -> GenerationSettings:
    """The default number of new tokens, made to leave half of the context to the prompt."""
    from hftk.models.load import context_length

    context = context_length(model.config)
    if context // 2 >= settings.max_new_tokens:
        return settings
    say(f"--max_new_tokens {max(1, context // 2)}: half of the model's context of {context} tokens")
    return replace(settings, max_new_tokens=max(1, context // 2))


def _in_order(results: Iterator[Generated]) -> Iterator[Generated]:
    """Results in the order of the prompts, each as soon as those before it are there."""
    waiting: dict[int, Generated] = {}
    due = 0
    for result in results:
        waiting[result.index] = result
        while due in waiting:
            yield waiting.pop(due)
            due += 1
