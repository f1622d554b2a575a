"""Samples of pairs of texts: what is in them, and that they are the same each time."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hftk
from hftk.config import InputError
from hftk.data import pairs
from hftk.data.samples import load_sample, read_docstrings
from hftk.data.stdlib import stdlib_modules

MONTHS = [
    "Januar",
    "Februar",
    "März",
    "April",
    "Mai",
    "Juni",
    "Juli",
    "August",
    "September",
    "Oktober",
    "November",
    "Dezember",
]


@pytest.fixture(scope="module")
def summaries() -> list[dict[str, Any]]:
    return load_sample("docstring_summaries")


@pytest.fixture(scope="module", params=["de", "zh"])
def cldr(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    pytest.importorskip("babel")
    return request.param, load_sample(f"cldr_en_{request.param}")


def test_docstrings_and_their_first_lines_make_more_than_a_thousand_pairs(
    summaries: list[dict[str, Any]],
) -> None:
    assert len(summaries) > 1000 and all(set(row) == {"source", "target"} for row in summaries)
    targets = [row["target"] for row in summaries]
    assert len(set(targets)) == len(targets), "a summary occurs once, so that none is in two splits"
    for row in summaries:
        assert row["target"].endswith(".") and "\n" not in row["target"] and 20 <= len(row["target"]) <= 140
        assert 120 <= len(row["source"]) <= 1500 and row["source"] == row["source"].lstrip()


def test_docstrings_are_found_without_parsing() -> None:
    code = '''# head
"""The module."""
import os  # """no docstring"""
TEXT = """neither"""


class A:  # a comment
    r"""A class with \\d.

    Body.
    """

    def f(
        self, value: dict[str, int],
    ) -> None:
        """Say \\"hello\\"."""

        def inside():
            """Nested."""

    def none(self):
        return {"key":
            """a value"""}[0]

    def broken(self):
        """\\N{no such}"""
'''
    found = list(pairs.find_docstrings(code.replace("\\\\", "\\")))
    assert found == ["The module.", "A class with \\d.\n\nBody.", 'Say "hello".', "Nested.", "a value"]
    assert list(pairs.find_docstrings("")) == []


def test_finding_docstrings_misses_none_that_parsing_sees() -> None:
    modules = stdlib_modules()[:60]
    parsed = {
        docstring.text
        for module, path in modules
        for docstring in read_docstrings(module, path)
        if "\n" in docstring.text
    }
    found = {text for _, path in modules for text in pairs.find_docstrings(path.read_text(encoding="utf-8"))}
    assert len(parsed) > 200 and not parsed - found


def test_a_summary_is_not_the_beginning_of_its_source(summaries: list[dict[str, Any]]) -> None:
    assert sum(row["source"].startswith(row["target"]) for row in summaries) < len(summaries) / 100


def test_docstrings_come_from_the_packages_too_wherever_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of tests are left out inside a package; the package itself may live in a folder of that
    name."""
    package = tmp_path / "tests" / "made_up"
    (package / "tests").mkdir(parents=True)
    body = (
        "A body that says at length what the function does, with all of its arguments and what becomes of"
        " each of them, " * 2
    )
    for path, name in (
        (package / "good.py", "Say what good things are made of."),
        (package / "tests/bad.py", "Say what bad things are."),
    ):
        path.write_text(f'def f():\n    """{name}\n\n    {body}\n    """\n')
    spec = SimpleNamespace(submodule_search_locations=[str(package)])
    monkeypatch.setattr(pairs, "find_spec", lambda name: spec if name == "numpy" else None)
    monkeypatch.setattr(pairs, "stdlib_modules", lambda: [])
    assert [row["target"] for row in pairs.docstring_summaries()] == ["Say what good things are made of."]
    monkeypatch.setattr(pairs, "find_spec", lambda name: None)
    assert pairs.docstring_summaries() == []


def test_translations_hold_names_dates_and_amounts(cldr: tuple[str, list[dict[str, Any]]]) -> None:
    language, rows = cldr
    assert len(rows) > 3000 and len({row["source"] for row in rows}) == len(rows)
    of = {row["source"]: row["target"] for row in rows}
    assert of["Germany"] == {"de": "Deutschland", "zh": "德国"}[language]
    dates = [row for row in rows if re.search(r"\b(19|20)\d\d$", row["source"])]
    amounts = [row for row in rows if row["source"].endswith(("euros", "dollars", "yen", "yuan"))]
    assert len(dates) > 1000 and len(amounts) > 1000
    if language == "de":
        assert {month for month in MONTHS if any(month in row["target"] for row in rows)} == set(MONTHS)
        said = {row["source"]: row["target"] for row in dates}
        monday = next(text for text in said if re.fullmatch(r"Monday, March \d+, \d{4}", text))
        day, year = re.findall(r"\d+", monday)
        assert said[monday] == f"Montag, {day}. März {year}"
    else:
        assert sum("年" in row["target"] and "月" in row["target"] for row in dates) > 0.9 * len(dates)
    assert all(row["source"].strip() and row["target"].strip() for row in rows)


def test_translations_are_the_same_each_time(cldr: tuple[str, list[dict[str, Any]]]) -> None:
    language, rows = cldr
    assert load_sample(f"cldr_en_{language}") == rows


def test_summaries_are_the_same_each_time_and_in_an_order_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs, "PACKAGES", ())
    modules = stdlib_modules()[:150]
    monkeypatch.setattr(pairs, "stdlib_modules", lambda: modules)
    first = pairs.docstring_summaries()
    modules.reverse()
    again = pairs.docstring_summaries()
    assert len(first) > 50 and [row["target"] for row in again] == [row["target"] for row in first]


def test_translations_load_as_splits(cldr: tuple[str, list[dict[str, Any]]]) -> None:
    language, rows = cldr
    config = hftk.DataConfig(sample=f"cldr_en_{language}", validation_fraction=0.05, test_fraction=0.05)
    splits = hftk.load_splits(config, hftk.Translation(hftk.TranslationConfig()))
    assert splits.test is not None and splits.validation is not None
    assert len(rows) * 0.99 < len(splits.train) + len(splits.test) + len(splits.validation) <= len(rows)


def test_without_babel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(InputError, match=r'pip install "hftk\[samples\]"'):
        load_sample("cldr_en_de")


def test_an_unknown_sample_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"did you mean cldr_en_\w\w\?"):
        load_sample("cldr_de_en")
