"""From the docstrings of hftk, which people read in a terminal, to what Sphinx reads.

Tables are Markdown tables there, code stands indented, and a task's docstring opens with a card (Needs, When,
Siblings).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

CARD = re.compile(r"(\w+)  +(\S.*)")
SECTION = re.compile(r"\w+:$")


def convert(lines: list[str]) -> Iterator[str]:
    """The lines with tables, cards, code and vertical bars as reStructuredText has them."""
    for kind, group in groupby(zip(_kinds(lines), lines, strict=True), key=itemgetter(0)):
        some = [line for _, line in group]
        if kind == "table":
            yield from _table(some)
        elif kind == "card":
            yield from ["", *(f":{CARD.fullmatch(line)[1]}: {CARD.fullmatch(line)[2]}" for line in some), ""]
        elif kind == "code":
            yield from ["::", "", *some, ""]
        else:
            yield from (re.sub(r"(?<!`)\|([^|`]+)\|", r"\|\1\|", line) for line in some)


def _kinds(lines: list[str]) -> Iterator[str]:
    """The kind of each line. Code is indented below an empty line, and not in a section such as Raises."""
    section, before = False, ""
    for number, line in enumerate(lines):
        if line and not line.startswith(" "):
            section = bool(SECTION.fullmatch(line))
        inside = before == "code" and (line.startswith("    ") or not line.strip())
        opens = line.startswith("    ") and not section and (number == 0 or not lines[number - 1].strip())
        if re.fullmatch(r"\|.*\|", line):
            before = "table"
        else:
            before = "card" if CARD.fullmatch(line) else "code" if inside or opens else "text"
        yield before


def _table(lines: list[str]) -> Iterator[str]:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    yield from ["", ".. list-table::", "   :header-rows: 1", ""]
    for cells in rows[:1] + rows[2:]:
        for number, cell in enumerate(cells):
            yield f"   {'* -' if number == 0 else '  -'} {cell}".rstrip()
    yield ""


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert in place. Google sections (Args, Returns, Raises) everywhere but in the one-line texts of
    fields."""
    from sphinx.ext.napoleon import Config, GoogleDocstring

    text = list(convert(lines))
    lines[:] = (
        text
        if what == "attribute"
        else GoogleDocstring(text, Config(), app, what, name, obj, options).lines()
    )


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
