"""``hftk report``: one run's page anew, and several runs on one page with the tests of ``hftk compare``."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hftk.metrics.comparison import holm
from hftk.reports.record import save_record
from hftk.task import Score

sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
from made_up_runs import Page, classification_run, gpt2_run

TRUE = [random.Random(i).choice(["positive", "negative"]) for i in range(120)]
OTHER = {"positive": "negative", "negative": "positive"}


def save_run(folder: Path, wrong: range, rate: float = 5e-5, task: str = "classification") -> Path:
    """A classifier that answers the rows in ``wrong`` wrongly."""
    answers = [OTHER[label] if i in wrong else label for i, label in enumerate(TRUE)]
    value = 1 - len(wrong) / len(TRUE)
    made = classification_run()
    score = Score(
        name="accuracy",
        value=value,
        interval=(value - 0.05, value + 0.05),
        higher_is_better=True,
        n=len(TRUE),
        split="test",
        signature="one",
    )
    save_record(
        replace(
            made,
            task=task,
            scores=[score],
            config={**made.config, "output": str(folder), "train": {"learning_rate": rate, "epochs": 3}},
        ),
        folder,
    )
    lines = (
        {"index": i, "prediction": p, "reference": t}
        for i, (p, t) in enumerate(zip(answers, TRUE, strict=True))
    )
    (folder / "predictions.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder


def cells(page: Page, html: str, section: str) -> list[list[str]]:
    """Texts of the cells of the first table of a section, row by row."""
    part = html.partition(f'<section id="{section}"')[2].partition("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part.partition("<tbody>")[2].partition("</tbody>")[0], re.DOTALL)
    return [
        [
            re.sub(r"<[^>]+>", "", cell).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "plain", range(0, 30))
    save_run(tmp_path / "close_to_it", range(1, 30))
    save_run(tmp_path / "better", range(0, 4), rate=2e-4)
    return tmp_path


def test_one_folder_gets_its_page_anew(hftk: Any, three: Path) -> None:
    assert hftk("report", "plain").out == "plain/report.html\n" and "plain" in (
        three / "plain/report.html"
    ).read_text(encoding="utf-8")
    assert hftk("report", three / "plain/record.json", "--output", "x.html").out == "x.html\n"


def test_several_runs_are_on_one_page_with_the_numbers_of_compare(hftk: Any, three: Path) -> None:
    result = hftk("report", "plain", "close_to_it", "better", "--resamples", 500)
    assert (result.code, result.out, result.err) == (
        0,
        "comparison.html\n",
        "hftk: 3 runs, 120 rows of the test split\n",
    )
    html = (three / "comparison.html").read_text(encoding="utf-8")
    page = Page(html)
    assert (
        "better has the best test accuracy: 0.9667" in page.text
        and "Its lead over plain is real (p = 0.008)" in page.text
    )
    tests = {(row[0], row[1]): row for row in cells(page, html, "tests")}
    for other in ("close_to_it", "better"):
        told = json.loads(hftk("compare", "plain", other, "--json", "--resamples", 500).out)
        for found in told["comparisons"]:
            row = tests[found["name"].replace("_", " ").replace("f1", "F1"), other]
            assert row[2:4] == [f"{found['b']:.4f}", f"{found['a']:.4f}"]
            assert row[4].split()[0] == f"{-found['difference']:.4f}"
        assert told["words"][-1] in page.text
    assert (
        tests["accuracy", "better"][-1] == "better"
        and tests["accuracy", "close_to_it"][-1] == "may be chance"
    )
    settings = cells(page, html, "settings")
    assert settings == [["train.learning_rate", "5e-05", "5e-05", "0.0002"]]
    assert "27 of 120 rows have different answers; these are the first 20" in page.text
    assert cells(page, html, "differing")[0][:3] == ["0", TRUE[0], OTHER[TRUE[0]]]
    assert "default-src 'none'" in html and not re.search(r'(?:src|href)="(?!#|data:)', html)


def test_two_runs_need_no_adjustment_and_say_what_may_be_chance(hftk: Any, three: Path) -> None:
    assert hftk("report", "plain", "close_to_it", "--output", "two.html", "--resamples", 200).code == 0
    html = (three / "two.html").read_text(encoding="utf-8")
    assert "Holm" not in html and "may be chance" in html and "Settings that differ" in html
    assert cells(Page(html), html, "settings") == []


def test_language_models_have_no_rows_to_show(
    hftk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, factor in (("a", 1.0), ("b", 1.1)):
        save_record(gpt2_run(20), tmp_path / name)
        lines = ({"index": i, "nats": factor * (9 + i % 3), "tokens": 5, "bytes": 20} for i in range(30))
        (tmp_path / name / "predictions.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
    assert hftk("report", "a", "b", "--resamples", 100).code == 0
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "bits per byte" in Page(html).text and 'id="differing"' not in html


def test_names_and_answers_of_the_data_are_text_and_nothing_else(
    hftk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "<script>alert(1)</script>"
    for name, said in (("a&b", evil * 3), ("<i>", "fine")):
        folder = save_run(tmp_path / name, range(0))
        (folder / "predictions.jsonl").write_text(
            json.dumps({"index": 0, "prediction": said, "reference": evil}) + "\n", encoding="utf-8"
        )
    assert hftk("report", "a&b", "<i>", "--resamples", 50).code == 0
    html = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html and evil in Page(html).text and "a&amp;b" in html and "<i>" not in html


def test_mistakes_are_told_with_what_to_type(hftk: Any, three: Path) -> None:
    assert "the same folder" in hftk("report", "plain", "./plain").err
    save_run(three / "other", range(0), task="translation")
    assert "expected two runs of one task" in hftk("report", "plain", "other").err
    (three / "close_to_it/predictions.jsonl").unlink()
    result = hftk("report", "plain", "close_to_it", "nothing")
    assert result.code == 2 and "2 problems" in result.err and "Traceback" not in result.err
    assert (
        "is a folder" in hftk("report", "plain", "better", "--output", ".").err
        or "found the folder" in hftk("report", "plain", "better", "--output", ".").err
    )
    assert hftk("report", "plain", "better", "--resamples", 0).code == 2


def test_holm_s_p_values_are_those_worked_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1 and never below the one before.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
