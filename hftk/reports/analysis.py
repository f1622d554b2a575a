"""What a task found out beyond scores (``RunRecord.analysis``) as plain values to show, the same for HTML and
Markdown.

Nothing here knows a task. A section is a dictionary with ``title``, ``kind``, perhaps ``note`` (one sentence)
and ``split``:

- matrix: ``rows`` and ``columns`` (names), ``values`` (a list of counts per row), ``row_title``,
``column_title``;
- table: ``columns`` ([{key, title}]) and ``rows`` (one {key: cell} each), a cell being a text, a number, None
  or {"value": number, "interval": [low, high]};
- examples: ``rows`` (texts with their labels, as in the record's samples);
- reliability: ``bins`` ([{low, high, rows, confidence, accuracy, accuracy_interval}]);
- scatter: ``points`` ([[x, y]]), ``x_title``, ``y_title``;
- facts: ``facts`` (a dictionary).

Whatever else a section holds, and one that is not made as its kind says, is shown as facts: no record breaks
a report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hftk.reports import wording
from hftk.reports.charts import MOST_POINTS, SPAN, Axis, axis
from hftk.reports.record import RunRecord
from hftk.reports.sections import LONGEST_TEXT, is_number, is_scalar, sample_view
from hftk.reports.wording import number

MOST_NAMES = 30
"""A matrix with more rows or columns is shown as its largest cells off the diagonal."""
MOST_CELLS = 20
MOST_ROWS = 50
LONGEST_NAME = 20
LONGEST_CELL = 200
DENSE = 12
"""A matrix with more columns is drawn with smaller cells."""
WIDEST_DOT = 18.0
"""Pixels across the dot of the bin with the most rows; the areas of the others are in proportion to their
rows."""
LAYERS = 8
"""Paths that a scatter's points are dealt to: where points of different paths overlap, the colour gets
stronger."""
ABOUT = ("title", "note", "split")
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


def views(record: RunRecord) -> list[dict[str, Any]]:
    """The sections in order, each with ``id``, ``title``, ``note``, ``split``, ``shape`` and what that shape
    needs.

    Shapes are matrix, table, examples, reliability, scatter and facts; ``record`` holds plain JSON values.
    """
    return [{"id": f"analysis-{i}", **_view(section)} for i, section in enumerate(record.analysis, 1)]


def _view(section: Any) -> dict[str, Any]:
    given: Mapping[str, Any] = section if isinstance(section, Mapping) else {"value": section}
    make = SHAPES.get(given["kind"]) if isinstance(given.get("kind"), str) else None
    try:
        shown = make(given) if make else _anything(given)
    except MALFORMED:
        shown = _anything(given)
    title = str(given.get("title") or wording.words(given.get("kind") or "analysis").capitalize())
    return {
        "title": title,
        "note": str(given.get("note") or ""),
        "split": str(given.get("split") or ""),
        **shown,
    }


# --- Matrices


def _matrix(section: Mapping[str, Any]) -> dict[str, Any]:
    """Cells with their share of the row; the largest cells off the diagonal as a table where there are too
    many names."""
    rows, columns = ([str(name) for name in _list(section, key)] for key in ("rows", "columns"))
    values = _list(section, "values")
    if [len(row) for row in values] != [len(columns)] * len(rows):
        raise ValueError("expected one list per row with one number per column")
    totals = [float(sum(_number(value) for value in row)) for row in values]
    titles = (str(section.get("row_title") or "row"), str(section.get("column_title") or "column"))
    if max(len(rows), len(columns)) > MOST_NAMES:
        return _largest(rows, columns, values, totals, titles)

    def cell(i: int, j: int) -> dict[str, Any]:
        value, share = values[i][j], min(1.0, max(0.0, values[i][j] / totals[i])) if totals[i] > 0 else 0.0
        kind = "zero" if not value else "same" if rows != columns or i == j else "other"
        about = (
            f"{rows[i]} → {columns[j]}: {number(value)} of {number(_whole(totals[i]))} ({_percent(share)})"
        )
        return {
            "text": number(value),
            "share": round(share, 3),
            "kind": kind,
            "title": about if value else "",
        }

    lines = [
        {
            **_short(name),
            "cells": [cell(i, j) for j in range(len(columns))],
            "total": number(_whole(totals[i])),
        }
        for i, name in enumerate(rows)
    ]
    return {
        "shape": "matrix",
        "row_title": titles[0],
        "column_title": titles[1],
        "columns": [_short(name) for name in columns],
        "rows": lines,
        "dense": len(columns) > DENSE,
        "upright": max(map(len, columns), default=0) * len(columns) <= 72,
        "diagonal": rows == columns,
    }


def _largest(
    rows: list[str], columns: list[str], values: list[list[Any]], totals: list[float], titles: tuple[str, str]
) -> dict[str, Any]:
    """The largest cells whose row and column have different names."""
    cells = [
        (value, i, j)
        for i, row in enumerate(values)
        for j, value in enumerate(row)
        if value > 0 and rows[i] != columns[j]
    ]
    cells.sort(key=lambda cell: (-cell[0], *cell[1:]))
    heads = (*titles, "rows", f"share of {titles[0]}")
    lines = [(rows[i], columns[j], value, _percent(value / totals[i])) for value, i, j in cells[:MOST_CELLS]]
    keys = [{"key": str(k), "title": head} for k, head in enumerate(heads)]
    shown = table_view({"columns": keys, "rows": [{str(k): v for k, v in enumerate(line)} for line in lines]})
    off = f"{len(cells):,} cells off the diagonal of {len(rows):,} x {len(columns):,} hold rows"
    more = f"; these are the {MOST_CELLS} largest" if len(cells) > MOST_CELLS else ""
    return {**shown, "lead": f"{off}{more}." if cells else "No cell off the diagonal holds a row."}


# --- Tables, examples, facts


def table_view(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of the kind table as heads and rows of cells, each with text, title, number (or not) and
    interval."""
    columns = [
        (column["key"], str(column.get("title") or column["key"])) for column in _list(section, "columns")
    ]
    given = _list(section, "rows")
    rows = given[:MOST_ROWS]
    cells = [_cells([row.get(key) for row in rows]) for key, _ in columns]
    heads = [
        {"text": title, "number": any(c["number"] for c in some)}
        for (_, title), some in zip(columns, cells, strict=True)
    ]
    named = bool(heads) and not heads[0]["number"]
    more = f"and {len(given) - len(rows):,} more" if len(given) > len(rows) else ""
    lines = list(zip(*cells, strict=True))
    return {"shape": "table", "head": heads, "rows": lines, "named": named, "more": more, "lead": ""}


def _cells(values: Sequence[Any]) -> list[dict[str, Any]]:
    """The cells of one column."""
    bare = [
        value.get("value") if isinstance(value, Mapping) and "value" in value else value for value in values
    ]
    numbers = iter(wording.column([value for value in bare if value is None or is_number(value)]))
    cells = []
    for value, inner in zip(values, bare, strict=True):
        if inner is None or is_number(inner):
            cells.append(
                {
                    "text": next(numbers),
                    "title": "",
                    "number": inner is not None,
                    "interval": _interval(value),
                }
            )
        else:
            text = wording.exact(inner) if is_scalar(inner) and not isinstance(inner, list) else _json(inner)
            cells.append({**_short(text, LONGEST_CELL), "number": False, "interval": ""})
    return cells


def _interval(value: Any) -> str:
    ends = value.get("interval") if isinstance(value, Mapping) else None
    if not isinstance(ends, list) or len(ends) != 2 or None in ends:
        return ""
    low, high = wording.column([_number(end) for end in ends])
    return f"[{low}, {high}]"


def _examples(section: Mapping[str, Any]) -> dict[str, Any]:
    given = _list(section, "rows")
    more = f"{len(given) - MOST_ROWS:,} more are in record.json." if len(given) > MOST_ROWS else ""
    return {"shape": "examples", "samples": [sample_view(row) for row in given[:MOST_ROWS]], "more": more}


def _facts(section: Mapping[str, Any]) -> dict[str, Any]:
    facts = section["facts"].items()
    return {
        "shape": "facts",
        "facts": {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in facts},
    }


def _anything(section: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever a section holds, nested values as JSON, long ones cut."""
    shown = {key: value for key, value in section.items() if key not in ABOUT}
    texts = {k: v if is_scalar(v) and not isinstance(v, str) else _cut(v) for k, v in shown.items()}
    return {"shape": "facts", "facts": texts}


# --- Diagrams


def _reliability(section: Mapping[str, Any]) -> dict[str, Any]:
    """Dots (accuracy over confidence) with intervals, in thousandths from the left and the top, and a table
    of the bins."""
    bins = _list(section, "bins")
    scale = axis([0.0, 1.0], exact=True, most=5)
    most = max((_number(b["rows"]) for b in bins), default=0)
    drawn = [b for b in bins if b["rows"] and is_number(b.get("confidence")) and is_number(b.get("accuracy"))]
    dots = [_dot(b, scale, WIDEST_DOT * math.sqrt(b["rows"] / most)) for b in drawn]
    rows = [
        {
            "bin": f"{_number(b['low']):.2f} to {_number(b['high']):.2f}",
            "rows": b["rows"],
            "confidence": b.get("confidence"),
            "accuracy": {"value": b.get("accuracy"), "interval": b.get("accuracy_interval")},
        }
        for b in bins
    ]
    columns = [{"key": key, "title": key} for key in ("bin", "rows", "confidence", "accuracy")]
    return {
        "shape": "reliability",
        "x": scale,
        "y": scale,
        "dots": dots,
        "layers": [],
        "x_title": "confidence",
        "y_title": "accuracy",
        "table": table_view({"columns": columns, "rows": rows}),
        "description": (
            f"Accuracy over confidence in {wording.plural(len(dots), 'bin')}; the table holds the numbers."
        ),
    }


def _dot(bin: Mapping[str, Any], scale: Axis, size: float) -> dict[str, Any]:
    x, y, interval = bin["confidence"], bin["accuracy"], bin.get("accuracy_interval")
    ends = [_number(end) for end in interval] if isinstance(interval, list) and None not in interval else []
    if not all(0 <= value <= 1 for value in (x, y, *ends)) or len(ends) not in (0, 2):
        raise ValueError("expected confidence, accuracy and both ends of its interval within 0 and 1")
    about = f"confidence {number(x)}, accuracy {number(y)} {_interval({'interval': ends})}".strip()
    return {
        "x": scale.place(x),
        "y": _down(scale, y),
        "range": [_down(scale, end) for end in ends],
        "size": round(max(4.0, size), 1),
        "title": f"{about}, {wording.plural(bin['rows'], 'row')}",
    }


def _down(scale: Axis, value: float) -> float:
    """Thousandths from the top."""
    return round(SPAN - scale.place(value), 2)


def _scatter(section: Mapping[str, Any]) -> dict[str, Any]:
    """Points on two equal axes, so that the diagonal is where both values agree; every n-th one where there
    are many."""
    pairs = [(x, y) for x, y in _list(section, "points") if is_number(x) and is_number(y)]
    if not pairs:
        raise ValueError("expected at least one point with two numbers")
    drawn = (
        [pairs[len(pairs) * i // MOST_POINTS] for i in range(MOST_POINTS)]
        if len(pairs) > MOST_POINTS
        else pairs
    )
    scale = axis([float(value) for pair in pairs for value in pair], linear=True)
    places = [(scale.place(x), _down(scale, y)) for x, y in drawn]
    paths = ["".join(f"M{x:g} {y:g}h.01" for x, y in places[i::LAYERS]) for i in range(LAYERS)]
    titles = [str(section.get(key) or key[0]) for key in ("x_title", "y_title")]
    spans = [
        f"{t} from {number(min(some))} to {number(max(some))}"
        for t, some in zip(titles, zip(*pairs, strict=True), strict=True)
    ]
    part = f", {len(drawn):,} of them drawn" if len(drawn) < len(pairs) else ""
    return {
        "shape": "scatter",
        "x": scale,
        "y": scale,
        "dots": [],
        "layers": [path for path in paths if path],
        "x_title": titles[0],
        "y_title": titles[1],
        "description": f"{wording.plural(len(pairs), 'point')}{part}: {spans[0]}, {spans[1]}.",
    }


SHAPES = {
    "matrix": _matrix,
    "table": table_view,
    "examples": _examples,
    "reliability": _reliability,
    "scatter": _scatter,
    "facts": _facts,
}


# --- Values


def _list(section: Mapping[str, Any], key: str) -> list[Any]:
    value = section[key]
    if not isinstance(value, list):
        raise TypeError(f"expected a list under {key!r}, found a {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if not is_number(value):
        raise TypeError(f"expected a number, found {value!r:.80}")
    return float(value)


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(text: str, most: int = LONGEST_NAME) -> dict[str, str]:
    """A text cut to a length, with the whole one as its title where it was cut; of a name its end stays,
    which tells it from others."""
    if len(text) <= most:
        return {"text": text, "title": ""}
    end = most // 3 if most == LONGEST_NAME else 0
    return {"text": text[: most - 1 - end].rstrip() + "…" + text[len(text) - end :].lstrip(), "title": text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else _json(value)
    return text[:LONGEST_TEXT] + ("…" if len(text) > LONGEST_TEXT else "")
