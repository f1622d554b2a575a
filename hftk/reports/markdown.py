"""A report as GitHub-flavoured Markdown, for a README, an issue or a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hftk.reports import analysis, sections, wording
from hftk.reports.record import RunRecord, plain
from hftk.reports.sections import MOST_SAMPLES


def render_markdown(record: RunRecord) -> str:
    """The facts of the page: verdict, scores, analysis, samples, data, time, choices, settings,
    environment."""
    record = RunRecord.from_dict(plain(record.to_dict()))
    parts = [
        ("Scores", scores_table(record)),
        *((_head(view), _analysis(view)) for view in analysis.views(record)),
        ("Samples", _samples([sections.sample_view(s) for s in record.samples[:MOST_SAMPLES]])),
        ("Training", sections.passes(record)),
        (
            "Time",
            table(
                ("stage", "time", "share"),
                [
                    (p["name"], wording.duration(p["seconds"]), f"{100 * p['share']:.0f} %")
                    for p in sections.stages(record)
                ],
            ),
        ),
        ("Model", _facts(record.model)),
        ("Data", _facts(record.data)),
        ("Automatic choices", "\n".join(f"- {escape(line)}" for line in record.choices)),
        ("Run it again", fenced(record.command, "sh") if record.command else ""),
        ("Settings", fenced(sections.settings(record.config), "yaml") if record.config else ""),
        ("Environment", _facts({**record.hardware, "processes": record.processes, **record.versions})),
    ]
    title = f"# {escape(wording.model_name(record))} on {escape(wording.data_name(record))}"
    about = f"{wording.task_title(record)}, {record.status}, {wording.moment(record.finished)}".rstrip(", ")
    body = [f"## {name}\n\n{text}" for name, text in parts if text]
    return "\n\n".join([title, about, f"**{escape(wording.verdict(record))}**", *body]) + "\n"


def scores_table(record: RunRecord) -> str:
    """Every score of every system in one table, the main score first."""
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
    return table(("score", "better", "system", "value", "95 % interval", "n"), rows)


def _head(view: Mapping[str, Any]) -> str:
    return escape(view["title"] + (f" ({view['split']})" if view["split"] else ""))


def _analysis(view: Mapping[str, Any]) -> str:
    """One section that the task made; a diagram is told in numbers."""
    shape = view["shape"]
    if shape == "matrix":
        corner = f"{view['row_title']} / {view['column_title']}"
        rows = [
            (row["title"] or row["text"], *(c["text"] for c in row["cells"]), row["total"])
            for row in view["rows"]
        ]
        parts = [
            table((corner, *(c["title"] or c["text"] for c in view["columns"]), "all"), rows, numbers=True)
        ]
    elif shape == "table":
        parts = [escape(view["lead"]), _cells(view), view["more"]]
    elif shape == "reliability":
        parts = [_cells(view["table"])]
    elif shape == "examples":
        parts = [_samples(view["samples"]), view["more"]]
    else:
        parts = [escape(view["description"]) if shape == "scatter" else _facts(view["facts"])]
    return "\n\n".join(part for part in (escape(view["note"]), *parts) if part)


def _cells(view: Mapping[str, Any]) -> str:
    rows = [[f"{cell['text']} {cell['interval']}" for cell in row] for row in view["rows"]]
    return table([head["text"] for head in view["head"]], rows, [head["number"] for head in view["head"]])


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[bool] | bool = False) -> str:
    """``numbers`` tells which columns are right-aligned; True: all but the first."""
    if not rows:
        return ""
    right = [bool(numbers) and i > 0 for i in range(len(head))] if isinstance(numbers, bool) else numbers
    heads = [escape(name) for name in head]
    lines = [heads, ["---:" if r else "---" for r in right], *([escape(str(c)) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _facts(facts: Mapping[str, Any], depth: int = 0) -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and not sections.is_scalar(value):
            value = dict(enumerate(value, 1))
        start = f"{'  ' * depth}- {escape(sections.fact_name(key))}:"
        inner = isinstance(value, Mapping)
        text = f"\n{_facts(value, depth + 1)}" if inner else f" {escape(sections.fact_text(key, value))}"
        lines.append(start + text)
    return "\n".join(lines)


def _samples(views: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(
        fenced("\n".join(f"{f['label']}: {f['text']}" for f in view["fields"])) for view in views
    )


def fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


SIGNS = str.maketrans({**{sign: "\\" + sign for sign in "\\`*_[]|#"}, "<": "&lt;", ">": "&gt;"})


def escape(text: str) -> str:
    """Text that Markdown shows as it is, also in a table cell."""
    return " ".join(text.translate(SIGNS).split())
