"""``hftk predict`` for classifiers: texts (and pairs of texts) in; label and probabilities out, one JSON
object a line."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.cli.model_folder import all_at_once, check_model, load, say, takes_pairs, task_of
from hftk.cli.output_file import find_output
from hftk.cli.predict import read_prompts, use_utf8
from hftk.config import DataConfig, GenerationSettings, InputError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 10_000
"""Rows that are encoded and written at a time."""
GENERATING = tuple(field.name for field in fields(GenerationSettings))


def predict(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        InputError: wrong flags, texts, folder or output, all of them together, before anything is loaded.
    """
    (task, rows), _, output, _ = all_at_once(
        lambda: _task_and_rows(given),
        lambda: check_model(given.dir, "predict"),
        lambda: find_output(given.output, "predict", [given.file, given.dir], overwrite=given.overwrite),
        lambda: _check_flags(given),
    )
    from datasets import Dataset

    model, tokenizer = load(given.dir, task.auto_model, given.device_map)
    data = Dataset.from_dict({role: texts for role, texts in rows.items() if texts is not None})
    chunks = (_lines(given, task, model, tokenizer, data, start) for start in range(0, len(data), CHUNK))
    if output is None:
        use_utf8()
        for lines in chunks:
            print("\n".join(lines), flush=True)
        return 0
    with output.open() as file:
        for lines in chunks:
            file.writelines(line + "\n" for line in lines)
    say(f"{len(data):,} prediction{'s' if len(data) > 1 else ''} in {output.typed}")
    return 0


def _lines(given: Namespace, task: Any, model: Any, tokenizer: Any, data: Dataset, start: int) -> list[str]:
    """Rows from ``start`` on, at most :data:`CHUNK`, as JSON."""
    from hftk.evaluation.evaluate import run_model
    from hftk.models.load import default_length
    from hftk.task import Outputs

    some = data.select(range(start, min(len(data), start + CHUNK)))
    with contextlib.redirect_stdout(sys.stderr):
        features = task.encode(some, tokenizer, max_length=default_length(model.config), training=False)
        outputs = run_model(
            task, model, tokenizer, features, batch_size=given.batch_size or 64, title="predicting"
        )
    said = task.predictions(
        Outputs(arrays=outputs, features=features, rows=some, tokenizer=tokenizer, model_config=model.config)
    )
    return [
        json.dumps(
            {"index": start + i, **some[i], **{k: v for k, v in line.items() if k != "index"}},
            ensure_ascii=False,
        )
        for i, line in enumerate(said)
    ]


def _task_and_rows(given: Namespace) -> tuple[Any, dict[str, list[str] | None]]:
    """The task that made DIR, and role to texts; the second texts are None for a model of single texts."""
    task = task_of(given.dir)
    wanted = takes_pairs(given.dir, task)
    table = given.file is not None and not _one_a_line(Path(given.file))
    _check_sources(given, table)
    if not table:
        texts, pairs = read_prompts(given), given.text_pair
    else:
        texts, pairs = _read_table(given, task, wanted)
    if wanted and pairs is None:
        raise InputError(
            Problem(
                setting="text_pair",
                message="expected pairs of texts, which the model was trained on, found single ones",
                fix=(
                    "add --text_pair TEXT after --prompt TEXT, or --file FILE with two columns of text"
                    " (--pair_column NAME)"
                ),
            )
        )
    if wanted is False and pairs is not None:
        message = "expected single texts, which the model was trained on, found pairs"
        raise InputError(
            Problem(
                setting="text_pair" if given.text_pair else "pair_column",
                message=message,
                fix="leave the second texts out",
            )
        )
    if pairs is not None and len(pairs) != len(texts):
        message = f"expected one for each of the {len(texts)} texts, found {len(pairs)}"
        raise InputError(Problem(setting="text_pair", message=message))
    return task, dict(zip(task.inputs, (texts, pairs), strict=False))


def _one_a_line(path: Path) -> bool:
    """Whether each line of a file is a text, as :func:`hftk.cli.predict.read_prompts` takes it."""
    from hftk.data.files import format_of

    return format_of(path) in (None, "txt")


def _read_table(given: Namespace, task: Any, wanted: bool | None) -> tuple[list[str], list[str] | None]:
    """Texts, and second texts where the model may want some and the file has them."""
    from hftk.data.load import read_rows

    config = DataConfig(
        encoding=given.encoding,
        unicode=task.config.data.unicode,
        columns={
            role: name
            for role, name in zip(task.inputs, (given.column, given.pair_column), strict=False)
            if name
        },
    )
    roles = task.inputs[:1] if wanted is False and not given.pair_column else task.inputs[:2]
    with contextlib.redirect_stdout(sys.stderr):
        rows, facts = read_rows(given.file, config, task, roles=roles, setting="file")
    lost = facts["read"]["rows"] - len(rows)
    if lost:
        message = f"expected a text in every row, found {lost:,} of nothing but control characters"
        raise InputError(Problem(setting="file", message=message, fix="drop these rows"))
    texts, *pairs = [list(rows[role]) for role in roles if role in rows.column_names]
    return texts, pairs[0] if pairs else None


def _check_sources(given: Namespace, table: bool) -> None:
    """Flags that would have no effect on what is read."""
    problems = []
    if table and given.text_pair:
        problems.append(
            Problem(
                setting="text_pair",
                message="is for --prompt",
                fix="use --pair_column NAME for a column of --file",
            )
        )
    for name in ("column", "pair_column"):
        if getattr(given, name) and not table:
            message = "is for a --file with columns, such as .csv or .jsonl"
            problems.append(Problem(setting=name, message=message, fix="add --file FILE, or leave it out"))
    if problems:
        raise InputError(*problems)


def _check_flags(given: Namespace) -> None:
    problems = [
        Problem(
            setting=name, message="is for generating text, and the model generates none", fix="leave it out"
        )
        for name in GENERATING
        if getattr(given, name) is not None and getattr(given, name) is not False
    ]
    if given.batch_size is not None and given.batch_size < 1:
        problems.append(
            Problem(setting="batch_size", message=f"expected at least 1, found {given.batch_size}")
        )
    if problems:
        raise InputError(*problems)
