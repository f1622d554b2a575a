"""Sample data sets of pairs of texts, made from what is installed: no download and no licence question.

``docstring_summaries`` pairs the body of a docstring with its first line, as the authors of the standard
library and of installed scientific packages wrote both. ``cldr_en_de`` and ``cldr_en_zh`` pair names, dates
and amounts in two languages, as the Unicode Common Locale Data Repository (by Babel) has them.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from datetime import date
from hashlib import blake2b
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem
from hftk.data.stdlib import stdlib_modules

PACKAGES = ("numpy", "scipy", "sklearn")
BODY, SUMMARY = (120, 1500), (20, 140)
"""Characters, from and to."""
DATES = 3000
DOCSTRING = re.compile(
    r"""
    (?: :[ \t]*(?:\#[^\n]*)?\n     # a line that ends in a colon, and perhaps a comment
      | \A(?:\#[^\n]*\n|\s)*      # or the head of the module
    ) \s*
    (?P<literal>[rR]?(?P<quotes>\"{3}|'{3}).*?(?<!\\)(?P=quotes))
    """,
    re.DOTALL | re.VERBOSE,
)
"""A docstring in triple quotes, and what stands before it."""


def docstring_summaries() -> list[dict[str, Any]]:
    """Columns ``source`` (a docstring without its first line) and ``target`` (the first line), each summary
    once."""
    rows: dict[str, str] = {}
    for text in _docstrings():
        head, _, rest = text.partition("\n\n")
        summary, body = " ".join(head.split()), rest.strip()
        if summary.endswith(".") and SUMMARY[0] <= len(summary) <= SUMMARY[1] and len(body) >= BODY[0]:
            rows.setdefault(summary, body[: BODY[1]])
    order = sorted(rows, key=lambda summary: blake2b(summary.encode(), digest_size=8).digest())
    return [{"source": rows[summary], "target": summary} for summary in order]


def cldr(target: str) -> list[dict[str, Any]]:
    """Columns ``source`` (English) and ``target``: names of countries, languages, scripts and currencies, and
    :data:`DATES` dates and amounts from a fixed seed. InputError where Babel is not installed."""
    try:
        from babel import Locale
        from babel.dates import format_date
        from babel.numbers import format_currency
    except ImportError:
        raise InputError(
            Problem(
                setting="data.sample", message="this sample needs Babel", fix='pip install "hftk[samples]"'
            )
        ) from None
    english, other = Locale.parse("en"), Locale.parse(target)
    pairs: dict[str, str] = {}
    for kind in ("territories", "languages", "scripts", "currencies"):
        names = getattr(other, kind)
        for code, name in getattr(english, kind).items():
            if code in names and not re.fullmatch(r"[\dA-Z]+", str(name)):
                pairs.setdefault(str(name), str(names[code]))
    draw = random.Random(0)
    for _ in range(DATES):
        day = date(draw.randint(1900, 2099), draw.randint(1, 12), draw.randint(1, 28))
        shape = draw.choice(("full", "long", "medium"))
        pairs.setdefault(format_date(day, shape, locale=english), format_date(day, shape, locale=other))
        amount, currency = (
            round(draw.uniform(1, 10 ** draw.randint(1, 6)), 2),
            draw.choice(("EUR", "USD", "JPY", "CNY")),
        )
        said = [
            format_currency(amount, currency, locale=locale, format_type="name")
            for locale in (english, other)
        ]
        pairs.setdefault(*said)
    order = sorted(pairs, key=lambda text: blake2b(text.encode(), digest_size=8).digest())
    return [{"source": text, "target": pairs[text]} for text in order]


def _docstrings() -> Iterator[str]:
    for path in _sources():
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        yield from find_docstrings(text)


def find_docstrings(code: str) -> Iterator[str]:
    """The docstrings of Python source, without indentation, in source order.

    Parsing 31 MB of source takes :mod:`ast` 12 s. Looking for the strings behind a colon alone takes 2 s, and
    finds every one in triple quotes, those of nested functions too.
    """
    for found in DOCSTRING.finditer(code):
        try:
            text = ast.literal_eval(found["literal"])
        except (SyntaxError, ValueError):  # no docstring: it stood inside a string, or has a bad escape
            continue
        yield cleandoc(text).strip()


def _sources() -> Iterator[Path]:
    yield from (path for _, path in stdlib_modules())
    for package in PACKAGES:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*.py")):
                if not {"tests", "testing", "_examples"} & set(path.relative_to(folder).parts):
                    yield path
