"""``hftk report``: the page of one run made anew, or one page about several runs on the same rows."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from hftk.cli.compare import compare_runs, read_runs
from hftk.cli.model_folder import add_overwrite, check_resamples, say, wrong
from hftk.cli.output_file import Output, find_output
from hftk.reports.record import load_record

EXAMPLES = """\
examples:
  hftk report out/gpt2_clm
  hftk report out/bert out/distilbert out/minilm --output models.html

One folder: report.html is made anew in it from record.json. Several: they hold predictions
(predictions.jsonl) on the same rows of the same split, and one page shows their scores side by side, the
paired tests of each against the first, their curves, the settings in which they differ and the rows that they
answer differently."""
TOGETHER = "comparison.html"


def add_flags(parser: ArgumentParser) -> None:
    """What ``hftk report`` takes."""
    add = parser.add_argument
    add(
        "dirs",
        metavar="DIR",
        nargs="+",
        help="output folder of a run; several: the first is what the others are tested against",
    )
    add(
        "--output",
        metavar="FILE.html",
        help=f"where the page goes (default: report.html in DIR; of several runs {TOGETHER} here)",
    )
    add_overwrite(add)
    add(
        "--resamples",
        type=int,
        metavar="N",
        default=10_000,
        help="bootstrap resamples of the tests (default: %(default)s)",
    )
    add("--seed", type=int, metavar="N", default=0, help="seed of the bootstrap (default: %(default)s)")


def report(given: Namespace) -> int:
    """Run the command and return its exit code.

    Raises: InputError: a folder without a finished run; of several, the same folder twice, runs of different
        tasks or on different
            rows; a place that cannot be written.
    """
    check_resamples(given.resamples)
    if len(given.dirs) > 1:
        return _several(given)
    from hftk.reports import REPORT, render_html

    path = Path(given.dirs[0]).expanduser()
    record = load_record(path)
    own = (path if path.is_dir() else path.parent) / REPORT
    output = find_output(given.output or str(own), "report", [str(path)], overwrite=given.overwrite, own=own)
    _write(output, render_html(record))
    return 0


def _several(given: Namespace) -> int:
    _check_names(given.dirs)
    output = find_output(given.output or TOGETHER, "report", given.dirs, overwrite=given.overwrite)
    runs = read_runs(given.dirs)
    from hftk.reports.comparison import Compared, render_together

    chance = {"resamples": given.resamples, "seed": given.seed}
    said = all("prediction" in line for run in runs for line in run.lines[:1])
    compared = []
    for run in runs:
        tests, words = compare_runs(runs[0], run, chance) if run is not runs[0] else ([], [])
        answers = [line.get("prediction") for line in run.lines] if said else []
        compared.append(Compared(name=run.name, record=run.record, tests=tests, words=words, answers=answers))
    references = [line.get("reference") for line in runs[0].lines] if said else []
    page = render_together(compared, rows=len(runs[0].lines), split=runs[0].split, references=references)
    say(f"{len(runs)} runs, {len(runs[0].lines):,} rows of the {runs[0].split or 'judged'} split")
    _write(output, page)
    return 0


def _check_names(names: Sequence[str]) -> None:
    """InputError for a folder that is named twice: the tests of a run against itself say nothing."""
    seen: dict[Path, str] = {}
    for name in names:
        place = Path(name).expanduser().resolve()
        if place in seen:
            raise wrong(
                f"expected different runs, found {name} and {seen[place]}, which are the same folder",
                "name each run once",
            )
        seen[place] = name


def _write(output: Output | None, page: str) -> None:
    assert output is not None
    try:
        output.write(page)
    except OSError as error:
        raise wrong(
            f"{output.path} cannot be written: {error.strerror}", "choose another --output FILE.html"
        ) from None
    print(output.typed)
