"""``hftk compare``: two runs on the same rows, and in words whether the difference between them is real."""

from __future__ import annotations

import functools
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.cli.model_folder import all_at_once, check_resamples, say, wrong
from hftk.launch.output_folder import PREDICTIONS
from hftk.reports.record import RunRecord, load_record, plain
from hftk.tasks.table import load_task

if TYPE_CHECKING:
    import numpy as np

    from hftk.metrics.comparison import Comparison

EXAMPLES = """\
example:
  hftk compare out/bert out/distilbert

Both folders hold the predictions of a run (predictions.jsonl) on the same rows of the same split. Every score
is tested by the paired bootstrap, accuracy also by McNemar's exact test. The tests say whether other rows of
the same kind would show the difference; another seed in training may move a score too."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the two folders."""

    name: str
    record: RunRecord
    lines: list[dict[str, Any]]

    @property
    def split(self) -> str:
        """The split that was judged."""
        return next((score.split for score in self.record.scores if score.when == "after"), "")


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk compare`` takes."""
    parser.add_argument("dir_a", metavar="DIR_A", help="output folder of a run")
    parser.add_argument(
        "dir_b", metavar="DIR_B", help="output folder of another run, judged on the same rows"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        metavar="N",
        default=10_000,
        help="bootstrap resamples (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="seed of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")


def compare(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises:
        InputError: a folder without a finished run, runs of different tasks or on different rows.
    """
    check_resamples(given.resamples)
    a, b = read_runs([given.dir_a, given.dir_b])
    from hftk.metrics.comparison import in_words

    found, sentences = compare_runs(a, b, {"resamples": given.resamples, "seed": given.seed})
    sentences = [in_words(comparison, a.name, b.name) for comparison in found] + sentences
    say(f"{len(a.lines):,} rows of the {a.split or 'judged'} split")
    if given.json:
        print(
            json.dumps(
                plain({"rows": len(a.lines), "comparisons": [asdict(c) for c in found], "words": sentences}),
                indent=1,
                ensure_ascii=False,
            )
        )
    else:
        print("\n".join(sentences))
    return 0


def read_runs(names: Sequence[str]) -> list[Run]:
    """The runs in folders of these names, judged on the same rows.

    Raises:
        InputError: a folder without a finished run, runs of different tasks or on different rows.
    """
    runs = all_at_once(*(functools.partial(_read, name) for name in names))
    for other in runs[1:]:
        _check_same(runs[0], other)
    return list(runs)


def compare_runs(a: Run, b: Run, chance: Mapping[str, Any]) -> tuple[list[Comparison], list[str]]:
    """The paired tests of every score, and what else was tested in sentences; ``chance`` holds resamples and
    seed."""
    task, _ = load_task(a.record.task)
    try:
        own = task.compare((a.lines, b.lines), (a.name, b.name), a.record.config, **chance)
        return _by_kind(a, b, chance) if own is None else own
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = (
            f"expected the predictions of a run in {PREDICTIONS} of {a.name} and {b.name}, found"
            f" {type(error).__name__} {error}"
        )
        raise wrong(found, "judge both on the same file again") from error


def _read(name: str) -> Run:
    folder = Path(name).expanduser()
    record = load_record(folder)
    file = folder / PREDICTIONS
    if not file.is_file():
        raise wrong(
            f"expected {PREDICTIONS} in {folder}, found none",
            "name the --output folder of a run that judged a split",
        )
    load_task(record.task)
    try:
        text = file.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise wrong(
            f"expected UTF-8 in {file}, found byte {error.object[error.start]:#04x}", "judge the split again"
        ) from None
    lines = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would cut at U+2028 too
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise wrong(
                f"expected JSON in line {number} of {file}, found a mistake: {error.msg}",
                "judge the split again",
            ) from None
        if not isinstance(lines[-1], dict):
            raise wrong(
                f"expected an object in line {number} of {file}, found {line:.60}", "judge the split again"
            )
    return Run(name=name, record=record, lines=lines)


def _check_same(a: Run, b: Run) -> None:
    """InputError unless both runs judged the same rows with the same references."""
    if a.record.task != b.record.task:
        raise wrong(f"expected two runs of one task, found {a.record.task} and {b.record.task}")
    if len(a.lines) != len(b.lines):
        raise wrong(
            f"expected predictions on the same rows, found {len(a.lines):,} and {len(b.lines):,}",
            "judge both on the same file",
        )
    prints = [(run.record.data.get("fingerprint") or {}).get(run.split) for run in (a, b)]
    cut = any(run.record.config.get("eval", {}).get("max_rows") for run in (a, b))
    if None not in prints and prints[0] != prints[1] and not cut:
        raise wrong(
            f"expected predictions on the same rows, found other texts in the {a.split} split of {b.name}",
            "judge both on the same file",
        )
    other = next(
        (
            i
            for i, (x, y) in enumerate(zip(a.lines, b.lines, strict=True))
            if x.get("reference") != y.get("reference")
        ),
        None,
    )
    if other is not None:
        said = f"{a.lines[other].get('reference')!r:.60} and {b.lines[other].get('reference')!r:.60}"
        raise wrong(
            f"expected the same references, found {said} in row {other}", "judge both on the same file"
        )


def _by_kind(a: Run, b: Run, chance: Mapping[str, Any]) -> tuple[list[Comparison], list[str]]:
    """By the kind of the predictions: lists of labels, labels, or numbers."""
    import numpy as np

    from hftk.metrics.comparison import compare_multi_label, compare_regression, compare_single_label, mcnemar

    references = [line["reference"] for line in a.lines]
    answers = [[line["prediction"] for line in run.lines] for run in (a, b)]
    if isinstance(references[0], list):
        known = {
            name for run in (a, b) for name in run.lines[0].get("probabilities") or ()
        }  # those that no row has count in macro F1
        names = sorted(
            known | {name for values in (references, *answers) for value in values for name in value}
        )
        true, one, other = (_matrix(values, names) for values in (references, *answers))
        return compare_multi_label(true, one, other, names, **chance), []
    if not isinstance(references[0], str):
        return (
            compare_regression(np.array(references), np.array(answers[0]), np.array(answers[1]), **chance),
            [],
        )
    names = sorted({name for values in (references, *answers) for name in values})
    number = {name: i for i, name in enumerate(names)}
    true, one, other = (np.array([number[name] for name in values]) for values in (references, *answers))
    test = mcnemar(one == true, other == true)
    verdict = "the difference is real" if test.p_value < 0.05 else "the difference may be chance"
    told = (
        f"McNemar: {a.name} alone has {test.only_a:,} rows right, {b.name} alone {test.only_b:,}, p ="
        f" {test.p_value:.3g}: {verdict}."
    )
    return compare_single_label(true, one, other, names, **chance), [told]


def _matrix(values: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    import numpy as np

    number = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(values), len(names)), bool)
    for row, labels in enumerate(values):
        found[row, [number[name] for name in labels]] = True
    return found
