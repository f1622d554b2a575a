"""``hftk evaluate``: score a model on rows that it has not seen."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.cli import predict as prediction
from hftk.cli.model_folder import (
    add_device_map,
    add_overwrite,
    all_at_once,
    check_model,
    load,
    say,
    takes_pairs,
    task_of,
)
from hftk.cli.output_file import find_output
from hftk.config import DataConfig, InputError, Problem

if TYPE_CHECKING:
    from hftk.evaluation.evaluate import Evaluation


EXAMPLES = """\
examples:
  hftk evaluate out/gpt2_clm --data held_out.txt
  hftk evaluate out/gpt2_clm --data reviews.csv --data.columns.text body --stride 512 --output scores.json
  hftk evaluate openai-community/gpt2 --data held_out.txt --json

Every --data.* and --eval.* that recipes take is taken too, such as --data.encoding, --data.documents,
--eval.max_rows and --eval.resamples; --eval.* that are not given are as in the folder's config.yaml, if it
has one."""


def add_flags(parser: ArgumentParser) -> None:
    """The flags of ``hftk evaluate``."""
    add = parser.add_argument
    add(
        "dir",
        metavar="DIR",
        help="output folder of a run, or a folder or Hub id of a language model or classifier",
    )
    add("--data", metavar="PATH", help="the rows: a file, folder or glob")
    # Shown by --help; what begins with --data. and --eval. goes to hftk.config.parse.
    add(
        "--data.columns.ROLE",
        metavar="NAME",
        help="the column of a role of the task, such as --data.columns.text body",
    )
    add(
        "--batch_size",
        metavar="N",
        help="rows in one forward pass (default: as --eval.batch_size); it changes no score",
    )
    add(
        "--stride",
        metavar="N",
        help="tokens between the starts of windows over documents longer than the context",
    )
    add(
        "--max_length",
        type=int,
        metavar="N",
        help="tokens of a window (default: the model's context, at most 1024)",
    )
    add_device_map(add)
    add("--json", action="store_true", help="print the scores as JSON")
    add("--output", metavar="FILE.json", help="write scores, data facts and settings here too")
    add_overwrite(add)


def evaluate(given: Namespace, dotted: Sequence[str]) -> int:
    values = [word.partition("=")[2] if word.startswith("--") else word for word in dotted]
    (task, config), _, output = all_at_once(
        lambda: _task(given, dotted),
        lambda: check_model(given.dir, "evaluate"),
        lambda: find_output(
            given.output, "evaluate", [given.data, given.dir, *values], overwrite=given.overwrite
        ),
    )
    from hftk.data.load import read_rows
    from hftk.evaluation.evaluate import evaluate as score
    from hftk.reports.record import plain, record
    from hftk.task import Splits

    with contextlib.redirect_stdout(sys.stderr):
        rows, facts = read_rows(config.data.path, config.data, task, roles=_roles(given.dir, task))
    second = next(iter(task.inputs[1:2]), None)
    if takes_pairs(given.dir, task) and second not in rows.column_names:
        message = (
            "expected pairs of texts, which the model was trained on, found single ones in"
            f" {config.data.path}"
        )
        raise InputError(
            Problem(
                setting="data", message=message, fix=f"name the other column: --data.columns.{second} NAME"
            )
        )
    model, tokenizer = load(given.dir, task.auto_model, given.device_map)
    _check_length(given.max_length, model)
    split = (Path(config.data.path).name, rows)
    with contextlib.redirect_stdout(sys.stderr):
        result = score(task, model, tokenizer, split, config.eval, max_length=given.max_length, samples=False)
    assert result is not None
    made = record(
        config, Splits(train=rows.select([]), test=rows, facts=facts), None, None, result, task=task.name
    )
    made_dict = plain(made.to_dict())
    prediction.use_utf8()
    print(json.dumps(made_dict["scores"], indent=1, ensure_ascii=False) if given.json else _table(result))
    if output:
        output.write(json.dumps(made_dict, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
        say(f"scores in {given.output}")
    return 0


def _task(given: Namespace, dotted: Sequence[str]) -> tuple[Any, Any]:
    """The task that made DIR, with the settings of DIR, and over them those of this command line."""
    from hftk.config.parse import parse

    def settings(config: Any) -> Any:
        # Other data have other columns and files, but what the run did to every text belongs to the model.
        model = replace(type(config.model)(), name=given.dir)
        config = replace(
            config, data=DataConfig(unicode=config.data.unicode), model=model, resume="never", overwrite=False
        )
        flags = [] if given.data is None else [f"--data.path={given.data}"]
        flags += [] if given.batch_size is None else [f"--eval.batch_size={given.batch_size}"]
        flags += [] if given.stride is None else [f"--eval.stride={given.stride}"]
        return parse(config, [*flags, *dotted])

    task = task_of(given.dir, settings)
    config = task.config
    if config.data.path is None:
        raise InputError(
            Problem(setting="data", message="expected the rows to judge, found none", fix="add --data FILE")
        )
    _check_one_split(config.data.path)
    if given.max_length is not None and given.max_length < 1:
        raise InputError(
            Problem(setting="max_length", message=f"expected at least 1, found {given.max_length}")
        )
    return task, config


def _roles(folder: str, task: Any) -> list[str]:
    """Roles that are read: no second text for a model of single ones, even where a column is called like
    one."""
    single = takes_pairs(folder, task) is False
    left_out = [role for role in task.inputs[1:2] if single and role not in task.config.data.columns]
    return [role for role in task.columns if role not in left_out]


def _check_length(length: int | None, model: Any) -> None:
    from hftk.models.load import context_length

    context = context_length(model.config)
    if length is not None and length > context:
        message = f"expected at most {context}, the context of the model, found {length}"
        raise InputError(Problem(setting="max_length", message=message, fix=f"use --max_length {context}"))


def _check_one_split(path: str) -> None:
    """InputError for a folder of training rows and others: all of them together are no score of anything."""
    from hftk.data.files import by_split, find_files

    found = find_files(path, "data.path", "auto") if Path(path).expanduser().is_dir() else None
    splits = (by_split(found[0], found[1]) if found else None) or {}
    if len(splits) > 1:
        message = f"expected the rows of one split, found files of {', '.join(splits)} in {path}"
        last = next(split for split in ("test", "validation") if split in splits)
        raise InputError(
            Problem(setting="data", message=message, fix=f"such as --data {splits[last][0].path}")
        )


def _table(result: Evaluation) -> str:
    """The scores as people read them, and below them what they are exactly."""
    from hftk.reports.wording import interval_text, number

    head = ("score", "value", "95 % interval", "unit", "n")
    rows = [(s.name, number(s.value), interval_text(s), s.unit, number(s.n)) for s in result.scores]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    ]
    signatures = dict.fromkeys(score.signature for score in result.scores if score.signature)
    return "\n".join([*(line.rstrip() for line in lines), *signatures])
