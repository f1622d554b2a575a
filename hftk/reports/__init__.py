"""RunRecord to what people read: an HTML page, Markdown, and the last five lines of a run. Pure: no model, no
Trainer.

The page is one file that asks nothing of any network (its content policy forbids it), can be read without its
script, and serves every task: it knows scores, samples, facts and sections of analysis, whatever their names.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hftk.config import InputError, Problem
from hftk.launch import on_main
from hftk.reports import analysis, sections, wording
from hftk.reports.markdown import render_markdown
from hftk.reports.record import RunRecord, plain, save_record, write_text
from hftk.reports.sections import MOST_SAMPLES
from hftk.reports.wording import number, verdict

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["REPORT", "render_html", "render_markdown", "summary_lines", "write_report"]

REPORT = "report.html"


def write_report(record: RunRecord, folder: str | Path) -> Path:
    """Write ``record.json`` and ``report.html`` into ``folder``, each whole or not at all; returns the page's
    path.

    All processes call this; the main one writes, and prints :func:`summary_lines`. The record comes first, so
    that a page that fails can be made later by ``hftk report FOLDER``. Raises InputError where Jinja2 is
    missing.
    """
    return on_main(_write, record, Path(folder))


def _write(record: RunRecord, folder: Path) -> Path:
    save_record(record, folder)
    page = write_text(folder / REPORT, render_html(record))
    print("\n" + "\n".join(summary_lines(record, folder)), flush=True)
    return page


def summary_lines(record: RunRecord, folder: str | Path | None = None) -> list[str]:
    """Five lines for the end of a run: what was trained, how good it is, the cost, where it is, what to type
    next.

    ``folder`` is where the run lies; default: its ``output`` setting.
    """
    at = Path(folder or record.config.get("output") or "out")
    _, steps, _ = wording.training_done(record)
    done = "Trained" if steps else "ValidationSet"
    everything, _ = wording.parameters(record)
    model = wording.model_name(record) + (f", {wording.about(everything)} parameters," if everything else "")
    cost = [f"Took {wording.duration(record.seconds.get('total'))}"]
    if steps:
        cost[0] += f" (training {wording.duration(record.seconds.get('train'))})"
    cost += [f"{number(round(record.tokens_per_second))} tokens/s"] if record.tokens_per_second else []
    cost += (
        [f"{wording.size(record.peak_memory_bytes)} of memory at peak"] if record.peak_memory_bytes else []
    )
    return [
        f"{done} {model} on {wording.data_name(record)}"
        + (f": {sections.passes(record)}." if steps else "."),
        verdict(record),
        ", ".join(cost) + ".",
        f"Weights, tokenizer and settings: {at}    report: {at / REPORT}",
        f"Next: hftk predict {at}",
    ]


def render_html(record: RunRecord) -> str:
    """One self-contained page. Everything from the record is escaped. Raises InputError where Jinja2 is
    missing."""
    record = RunRecord.from_dict(plain(record.to_dict()))
    charts, seconds, findings = sections.charts(record), sections.stages(record), analysis.views(record)
    named = {
        "scores": "Scores",
        "curves": charts and "Curves",
        **{view["id"]: view["title"] for view in findings},
        "samples": record.samples and "Samples",
        "data": record.data and "Data",
        "time": seconds and "Time",
        "settings": "Settings",
        "environment": "Environment",
        "again": "Run it again",
    }
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            model=wording.model_name(record),
            data=wording.data_name(record),
            about=sections.about_model(record),
            verdict=verdict(record),
            tiles=sections.tiles(record),
            sections={key: name for key, name in named.items() if name},
            metrics=sections.metrics(record),
            data_facts=sections.data_view(record.data),
            charts=charts,
            evaluations=sections.evaluations(record),
            analysis=findings,
            samples=[sections.sample_view(s) for s in record.samples[:MOST_SAMPLES]],
            more_samples=len(record.samples) - MOST_SAMPLES if len(record.samples) > MOST_SAMPLES else 0,
            seconds=seconds,
            environment=sections.machine(record),
            settings=sections.settings(record.config),
            output=record.config.get("output") or "out",
        )
    )
    return page.lstrip()


def environment() -> Environment:
    """The templates' environment. Raises InputError where Jinja2 is missing."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        message = "expected Jinja2 for the report, found it not installed (the run itself is saved)"
        raise InputError(Problem(setting="", message=message, fix='pip install "hftk[report]"')) from None
    return _templates()


@cache
def _templates() -> Environment:
    """The templates, compiled once per process (0.1 s)."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "words": wording.words,
        "duration": wording.duration,
        "moment": wording.moment,
        "title_of": wording.task_title,
        "as_table": sections.table_of,
        "fact_name": sections.fact_name,
        "fact": lambda value, key: sections.fact_text(key, value),
    }
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.tests |= {"scalar": sections.is_scalar, "table": sections.is_table}
    return environment
