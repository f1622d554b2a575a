"""Several runs on the same rows as one page: scores side by side, paired tests against the first, curves,
settings that differ.

Pure as the rest: who read the predictions and made the tests hands them over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftk.metrics.comparison import holm
from hftk.reports import analysis, sections, wording
from hftk.reports.charts import Chart, chart, curve
from hftk.reports.record import RunRecord, plain
from hftk.reports.wording import number
from hftk.task import Score
from hftk.version import __version__

if TYPE_CHECKING:
    from hftk.metrics.comparison import Comparison

NOT_SETTINGS = ("output", "publish", "resume", "overwrite")
"""Parts of the settings that change no result."""
MOST_ROWS = 20
COLORS = 8


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run, with its tests against the first."""

    name: str
    record: RunRecord
    tests: list[Comparison] = field(default_factory=list)
    """Of the first run (``a``) and this one (``b``); empty for the first."""
    words: list[str] = field(default_factory=list)
    """What else was tested, in sentences."""
    answers: list[Any] = field(default_factory=list)
    """What it predicted for each row, in data order; empty where rows have no answer (language models)."""


def render_together(
    runs: Sequence[Compared], *, rows: int, split: str, references: Sequence[Any] = ()
) -> str:
    """One self-contained page about two or more runs of one task, judged on the same ``rows`` rows of
    ``split``.

    ``references`` are the right answers, in data order. Raises InputError where Jinja2 is missing.
    """
    from hftk.reports import environment

    runs = [
        Compared(**{**vars(run), "record": RunRecord.from_dict(plain(run.record.to_dict()))}) for run in runs
    ]
    adjusted = _adjusted(runs)
    tests, charts, settings = _tests(runs, adjusted), list(_charts(runs)), _settings(runs)
    rows_view = _rows(runs, references)
    named = {
        "scores": "Scores",
        "tests": "Tests",
        "curves": charts and "Curves",
        "differing": rows_view and "Rows",
        "settings": "Settings",
        "cost": "Cost",
    }
    title = f"{wording.task_title(runs[0].record)}: {wording.plural(len(runs), 'run')} compared"
    page = (
        environment()
        .get_template("together.html.j2")
        .render(
            title=title,
            names=[run.name for run in runs],
            data=wording.data_name(runs[0].record),
            version=__version__,
            about=f"{wording.plural(rows, 'row')} of the {split or 'judged'} split",
            verdict=_verdict(runs, adjusted),
            sections={key: name for key, name in named.items() if name},
            metrics=_metrics(runs),
            tests=tests,
            words=[sentence for run in runs for sentence in run.words],
            many=len(runs) > 2,
            charts=charts,
            differing=rows_view,
            settings=settings,
            cost=_cost(runs),
        )
    )
    return page.lstrip()


def _metrics(runs: Sequence[Compared]) -> list[dict[str, Any]]:
    """Every score of the trained models, the first run's main score first; the runs share an axis."""
    blocks: dict[tuple[str, str], list[tuple[str, Score]]] = {}
    for run in runs:
        for score in run.record.scores:
            if score.when == "after":
                blocks.setdefault((score.name, score.split), []).append((run.name, score))
    return [sections.metric(systems) for systems in blocks.values()]


def _adjusted(runs: Sequence[Compared]) -> dict[tuple[str, str], float]:
    """(score, run) to its p-value; with more than two runs by Holm's method over the runs that one score is
    tested on."""
    known = [
        (test.name, run.name, test.p_value)
        for run in runs[1:]
        for test in run.tests
        if test.p_value is not None
    ]
    found: dict[tuple[str, str], float] = {}
    for name in dict.fromkeys(score for score, _, _ in known):
        of_name = [(run, p) for score, run, p in known if score == name]
        values = holm([p for _, p in of_name])
        found |= {(name, run): p for (run, _), p in zip(of_name, values, strict=True)}
    return found


def _tests(runs: Sequence[Compared], adjusted: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """One row per score and run: by how much it is better than the first, and whether that is real."""
    found = [(run, test) for run in runs[1:] for test in run.tests]
    names = dict.fromkeys(test.name for _, test in found)
    lines = [
        _test(run, test, adjusted.get((name, run.name)))
        for name in names
        for run, test in found
        if test.name == name
    ]
    heads = {
        "score": "score",
        "run": "run",
        "value": "value",
        "first": f"{runs[0].name}",
        "difference": "difference [95 %]",
        "p": "p",
        **({"holm": "p, Holm"} if len(runs) > 2 else {}),
        "verdict": "verdict",
    }
    columns = [{"key": key, "title": title} for key, title in heads.items()]
    return analysis.table_view({"columns": columns, "rows": lines})


def _test(run: Compared, test: Comparison, adjusted: float | None) -> dict[str, Any]:
    interval = [-end for end in reversed(test.interval)] if test.interval else None
    return {
        "score": wording.words(test.name),
        "run": run.name,
        "value": test.b,
        "first": test.a,
        "difference": {"value": -test.difference, "interval": interval},
        "p": _chance(test.p_value),
        "holm": _chance(adjusted),
        "verdict": _judged(test, adjusted),
    }


def _chance(value: float | None) -> str | None:
    return None if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _judged(test: Comparison, p_value: float | None) -> str:
    """ "better", "worse", "may be chance": by the adjusted p-value."""
    if test.difference != test.difference:
        return "undefined"
    if test.difference == 0:
        return "equal"
    if p_value is None:
        return "not tested"
    if p_value >= wording.LEVEL:
        return "may be chance"
    return "better" if (test.difference < 0) == test.higher_is_better else "worse"


def _verdict(runs: Sequence[Compared], adjusted: Mapping[tuple[str, str], float]) -> str:
    """Which run is best by the main score, and whether its lead over the first, or the first's over it, is
    real."""
    main = runs[0].record.main_score
    if main is None:
        return "The first run has no score: no held-out rows were judged."
    systems = [(run, _same(run.record, main)) for run in runs]
    known = [(run, score) for run, score in systems if score is not None and score.value == score.value]
    if not known:
        return f"No run has a {wording.score_title(main)} that is a number."
    best, top = known[0]
    for run, score in known[1:]:
        if wording.better(score, top):
            best, top = run, score
    rest = [f"{run.name} {wording.value_text(score)}" for run, score in known if run is not best]
    text = (
        f"{best.name} has the best {wording.score_title(main)}: {wording.value_text(top)}"
        f" {wording.interval_text(top)}".rstrip()
    )
    text += f", against {', '.join(rest)}" if rest else ""
    chance = adjusted.get((main.name, best.name))
    if chance is None:
        return f"{text}."
    shown = str(_chance(chance))
    equals = shown if shown.startswith("<") else f"= {shown}"
    return (
        f"{text}. Its lead over {runs[0].name} {'is real' if chance < wording.LEVEL else 'may be chance'} (p"
        f" {equals})."
    )


def _same(record: RunRecord, main: Score) -> Score | None:
    found = (s for s in record.scores if (s.when, s.name, s.split) == ("after", main.name, main.split))
    return next(found, None)


def _charts(runs: Sequence[Compared]) -> Iterator[Chart]:
    main = runs[0].record.main_score
    keys = {"eval_loss": "Validation loss", "loss": "Training loss"}
    if main is not None and main.name != "loss":
        keys = {f"eval_{main.name}": f"Validation {wording.words(main.name)}", **keys}
    for at, (key, title) in enumerate(keys.items()):
        curves = {
            run.name: (f"score-{i % COLORS}", curve(run.record.history, key)) for i, run in enumerate(runs)
        }
        if made := chart(f"curve-{at}", title, curves, linear=key not in ("loss", "eval_loss")):
            yield made


def _rows(runs: Sequence[Compared], references: Sequence[Any]) -> dict[str, Any] | None:
    """The first rows for which the runs have different answers, and how many there are."""
    if not references or not all(len(run.answers) == len(references) for run in runs):
        return None
    differing = [
        i for i, _ in enumerate(references) if any(run.answers[i] != runs[0].answers[i] for run in runs[1:])
    ]
    shown = differing[:MOST_ROWS]
    about = f"{len(differing):,} of {len(references):,} rows have different answers"
    about += f"; these are the first {len(shown)}." if len(shown) < len(differing) else "."
    said = [{"reference": references[i], **{f"by {run.name}": run.answers[i] for run in runs}} for i in shown]
    long = any(
        isinstance(value, str) and len(value) > analysis.LONGEST_NAME * 2
        for row in said
        for value in row.values()
    )
    if long:
        return {
            "about": about,
            "samples": [_card(i, row) for i, row in zip(shown, said, strict=True)],
            "table": None,
        }
    columns = [{"key": key, "title": key} for key in ("row", *(said[0] if said else ()))]
    table = analysis.table_view(
        {"columns": columns, "rows": [{"row": i, **row} for i, row in zip(shown, said, strict=True)]}
    )
    return {"about": about, "samples": [], "table": table if said else None}


def _card(index: int, answers: Mapping[str, Any]) -> dict[str, Any]:
    fields = [
        {
            "label": label,
            "text": sections.fact_text("", answer),
            "role": "reference" if label == "reference" else "output",
        }
        for label, answer in answers.items()
    ]
    return {
        "inputs": [],
        "outputs": fields,
        "others": [{"label": "row", "text": str(index), "role": "other"}],
        "match": None,
    }


def _settings(runs: Sequence[Compared]) -> dict[str, Any] | None:
    """Settings that are not the same in all runs, one to a row; None where there are none."""
    flat = [dict(_leaves(run.record.config)) for run in runs]
    names = [
        name
        for name in dict.fromkeys(n for values in flat for n in values)
        if name.partition(".")[0] not in NOT_SETTINGS
    ]
    differ = [name for name in names if any(values.get(name) != flat[0].get(name) for values in flat[1:])]
    return _by_run(runs, {name: [values.get(name) for values in flat] for name in differ}) if differ else None


def _by_run(runs: Sequence[Compared], facts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """A table with a row per fact and a column per run."""
    columns = [{"key": "", "title": ""}, *({"key": i, "title": run.name} for i, run in enumerate(runs))]
    exact = {
        name: [wording.exact(v) if isinstance(v, (int, float)) else v for v in values]
        for name, values in facts.items()
    }
    return analysis.table_view(
        {
            "columns": columns,
            "rows": [{"": name, **dict(enumerate(values))} for name, values in exact.items()],
        }
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _cost(runs: Sequence[Compared]) -> dict[str, Any]:
    """What each run took."""

    def facts(record: RunRecord) -> dict[str, str]:
        everything, trained = wording.parameters(record)
        machine = ", ".join(record.hardware.get("gpus") or []) or str(record.hardware.get("cpu") or "")
        return {
            "model": wording.model_name(record),
            "parameters": wording.about(everything) if everything else wording.NOTHING,
            "trained parameters": wording.about(trained) if trained else wording.NOTHING,
            "training": sections.passes(record),
            "training time": wording.duration(record.seconds.get("train")),
            "time in all": wording.duration(record.seconds.get("total")),
            "tokens per second": (
                number(round(record.tokens_per_second)) if record.tokens_per_second else wording.NOTHING
            ),
            "peak memory": wording.size(record.peak_memory_bytes),
            "processes": str(record.processes),
            "machine": machine,
            "finished": wording.moment(record.finished),
        }

    found = [facts(run.record) for run in runs]
    return _by_run(runs, {name: [each[name] for each in found] for name in found[0]})
