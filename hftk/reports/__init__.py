"""RunRecord to what people read: an HTML page, Markdown, and the last five lines of a run. Pure: no model, no Trainer.

The page is one file that asks nothing of any network (its content policy forbids it), can be read without its script, and
serves every task: it knows scores, samples and facts, whatever their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.config import InputError, Problem
from hftk.launch import on_main
from hftk.records import RunRecord, plain, save_record, write_text
from hftk.reports import sections, wording
from hftk.reports.wording import number, verdict

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
MOST_SAMPLES = 20


def write_report(record: RunRecord, folder: str | Path) -> Path:
    """Write ``record.json`` and ``report.html`` into ``folder``, each whole or not at all; returns the page's path.

    All processes call this; the main one writes, and prints :func:`summary_lines`. The record comes first, so that a page
    that fails can be made later by ``hftk report FOLDER``. Raises InputError where Jinja2 is missing.
    """
    return on_main(_write, record, Path(folder))


def _write(record: RunRecord, folder: Path) -> Path:
    save_record(record, folder)
    page = write_text(folder / REPORT, render_html(record))
    print("\n" + "\n".join(summary_lines(record, folder)), flush=True)
    return page


def summary_lines(record: RunRecord, folder: str | Path | None = None) -> list[str]:
    """Five lines for the end of a run: what was trained, how good it is, the cost, where it is, what to type next.

    ``folder`` is where the run lies; default: its ``output`` setting.
    """
    at = Path(folder or record.config.get("output") or "out")
    _, steps, _ = wording.training_done(record)
    done = "Trained" if steps else "Judged"
    everything, _ = wording.parameters(record)
    model = wording.model_name(record) + (f", {wording.about(everything)} parameters," if everything else "")
    cost = [f"Took {wording.duration(record.seconds.get('total'))}"]
    if steps:
        cost[0] += f" (training {wording.duration(record.seconds.get('train'))})"
    cost += [f"{number(round(record.tokens_per_second))} tokens/s"] if record.tokens_per_second else []
    cost += [f"{wording.size(record.peak_memory_bytes)} of memory at peak"] if record.peak_memory_bytes else []
    return [
        f"{done} {model} on {wording.data_name(record)}" + (f": {sections.passes(record)}." if steps else "."),
        verdict(record),
        ", ".join(cost) + ".",
        f"Weights, tokenizer and settings: {at}    report: {at / REPORT}",
        f"Next: hftk predict {at}",
    ]


def render_html(record: RunRecord) -> str:
    """One self-contained page. Everything from the record is escaped. Raises InputError where Jinja2 is missing."""
    record = RunRecord.from_dict(plain(record.to_dict()))
    charts, seconds = sections.charts(record), sections.stages(record)
    named = {
        "scores": "Scores",
        "curves": charts and "Curves",
        "samples": record.samples and "Samples",
        "data": record.data and "Data",
        "time": seconds and "Time",
        "settings": "Settings",
        "environment": "Environment",
        "again": "Run it again",
    }
    page = _environment().get_template("report.html.j2").render(
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
        samples=[sections.sample_view(s) for s in record.samples[:MOST_SAMPLES]],
        more_samples=len(record.samples) - MOST_SAMPLES if len(record.samples) > MOST_SAMPLES else 0,
        seconds=seconds,
        environment=sections.machine(record),
        settings=_yaml(record.config),
        output=record.config.get("output") or "out",
    )  # fmt: skip
    return page.lstrip()


def _environment() -> Environment:
    try:
        import jinja2
    except ImportError:
        message = "expected Jinja2 for the report, found it not installed (the run itself is saved)"
        raise InputError(Problem(setting="", message=message, fix='pip install "hftk[report]"')) from None
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
        "moment": _moment,
        "title_of": wording.task_title,
        "as_table": sections.table_of,
        "fact_name": sections.fact_name,
        "fact": lambda value, key: sections.fact_text(key, value),
    }
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.tests |= {"scalar": sections.is_scalar, "table": sections.is_table}
    return environment


def _moment(text: str | None) -> str:
    """An ISO time as 21 Nov 2026, 22:43 UTC."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return text or ""
    return f"{moment.day} {moment:%b %Y, %H:%M}" + (" UTC" if moment.utcoffset() is not None else "")


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(plain(values), sort_keys=False, allow_unicode=True, width=100)) if values else ""


def render_markdown(record: RunRecord) -> str:
    """The same facts as GitHub-flavoured Markdown: verdict, scores, samples, data, time, choices, settings, environment."""
    record = RunRecord.from_dict(plain(record.to_dict()))
    parts = {
        "Scores": _score_table(record),
        "Samples": "\n\n".join(_fenced(_sample_text(s)) for s in record.samples[:MOST_SAMPLES]),
        "Training": sections.passes(record),
        "Time": _table(("stage", "time", "share"), [
            (p["name"], wording.duration(p["seconds"]), f"{100 * p['share']:.0f} %") for p in sections.stages(record)
        ]),
        "Model": _facts_list(record.model),
        "Data": _facts_list(record.data),
        "Automatic choices": "\n".join(f"- {_escape(line)}" for line in record.choices),
        "Run it again": _fenced(record.command, "sh") if record.command else "",
        "Settings": _fenced(_yaml(record.config), "yaml") if record.config else "",
        "Environment": _facts_list({**record.hardware, "processes": record.processes, **record.versions}),
    }  # fmt: skip
    title = f"# {_escape(wording.model_name(record))} on {_escape(wording.data_name(record))}"
    about = f"{wording.task_title(record)}, {record.status}, {_moment(record.finished)}".rstrip(", ")
    body = [f"## {name}\n\n{text}" for name, text in parts.items() if text]
    return "\n\n".join([title, about, f"**{_escape(verdict(record))}**", *body]) + "\n"


def _score_table(record: RunRecord) -> str:
    rows = [
        (
            m["title"],
            "higher" if m["higher"] else "lower",
            r["system"],
            f"{r['value']} {m['unit']}",
            r["interval"],
            r["n"],
        )
        for m in sections.metrics(record)
        for r in m["rows"]
    ]
    return _table(("score", "better", "system", "value", "95 % interval", "n"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *(tuple(_escape(str(c).strip()) for c in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _facts_list(facts: Mapping[str, Any], depth: int = 0) -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and not sections.is_scalar(value):
            value = dict(enumerate(value, 1))
        inner = isinstance(value, Mapping)
        start = f"{'  ' * depth}- {_escape(sections.fact_name(key))}:"
        lines.append(
            f"{start}\n{_facts_list(value, depth + 1)}"
            if inner
            else f"{start} {_escape(sections.fact_text(key, value))}"
        )
    return "\n".join(lines)


def _sample_text(sample: Mapping[str, Any]) -> str:
    return "\n".join(f"{f['label']}: {f['text']}" for f in sections.sample_view(sample)["fields"])


def _fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, also in a table cell."""
    for sign in "\\`*_[]<>|#":
        text = (
            text.replace(sign, "\\" + sign)
            if sign not in "<>"
            else text.replace(sign, {"<": "&lt;", ">": "&gt;"}[sign])
        )
    return " ".join(text.split())
