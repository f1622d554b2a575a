"""Sections that a task made: every kind is shown as it is, a broken one as facts, in HTML and in Markdown."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from made_up_runs import Page, classification_run, every_section

from hftk.reports import render_html, render_markdown
from hftk.reports.analysis import views
from hftk.reports.record import RunRecord, plain
from hftk.reports.sections import charts, evaluations
from hftk.reports.wording import column, number, task_title, verdict
from hftk.task import Score

ATTACK = '"></td><script>alert(1)</script><img src=x onerror=alert(1)>'


def run(*sections: Any) -> RunRecord:
    return RunRecord(hftk="1", task="x", analysis=plain(list(sections)))


def view(**section: Any) -> dict[str, Any]:
    return views(run(section))[0]


def text(record: RunRecord) -> str:
    return " ".join(Page(render_html(record)).text.split())


def confusion(size: int) -> dict[str, Any]:
    """Row i: 100 right, i wrong as the next label."""
    names = [f"label {i}" for i in range(size)]
    values = [[100 if i == j else i if j == (i + 1) % size else 0 for j in range(size)] for i in range(size)]
    return {"kind": "matrix", "title": "Confusion", "rows": names, "columns": names, "values": values}


# --- The page


def test_sections_stand_between_curves_and_samples_in_order_and_in_the_navigation() -> None:
    html = render_html(classification_run())
    heads = re.findall(r'<h2 id="[\w-]+">([^<]+?) ?<', html)
    titles = [section["title"] for section in every_section()]
    assert heads[1:9] == ["Curves", *titles, "Samples"]
    navigation = html[html.index("<nav") : html.index("</nav")]
    assert re.findall(r'#(analysis-\d)">([^<]+)', navigation) == [
        (f"analysis-{i}", t) for i, t in enumerate(titles, 1)
    ]


def test_a_matrix_shows_its_numbers_its_totals_and_the_share_of_each_row() -> None:
    html = render_html(classification_run())
    matrix = html[html.index('<table class="matrix') :]
    matrix = matrix[: matrix.index("</table>")]
    assert re.findall(r"<td[^>]*>(\d+)</td>", matrix) == ["800", "112", "912", "93", "816", "909"]
    assert (
        'title="negative → positive: 112 of 912 (12.3 %)"' in matrix
        and 'class="other" style="--share:0.123"' in matrix
    )
    assert "predicted label" in matrix and "true label" in matrix


def test_shares_of_a_row_add_up_to_one_and_an_empty_row_has_none() -> None:
    shown = view(kind="matrix", rows=["a", "b"], columns=["a", "c", "d"], values=[[1, 1, 2], [0, 0, 0]])
    assert [[cell["share"] for cell in row["cells"]] for row in shown["rows"]] == [
        [0.25, 0.25, 0.5],
        [0, 0, 0],
    ]
    assert [row["total"] for row in shown["rows"]] == ["4", "0"] and not shown["diagonal"]


def test_beyond_thirty_names_the_largest_cells_off_the_diagonal_are_listed() -> None:
    assert view(**confusion(30))["shape"] == "matrix"
    shown = view(**confusion(31))
    assert (shown["shape"], len(shown["rows"])) == ("table", 20)
    assert [cell["text"] for cell in shown["rows"][0]] == ["label 30", "label 0", "30", "23.1 %"]
    assert [cell["text"] for cell in shown["rows"][-1]] == ["label 11", "label 12", "11", "9.9 %"]
    assert shown["lead"].startswith("30 cells") and "20 largest" in text(run(confusion(31)))
    perfect = {**confusion(31), "values": [[int(i == j) for j in range(31)] for i in range(31)]}
    assert "No cell off the diagonal holds a row." in text(run(perfect))


def test_a_long_name_is_cut_and_stands_whole_in_the_title() -> None:
    name = "a very long name of a label indeed"
    html = render_html(run({**confusion(2), "rows": [name, "b"], "columns": [name, "b"]}))
    assert html.count(f'title="{name}"') == 2 and ">a very long n…indeed<" in html, (
        "its end tells it from others"
    )


def test_a_table_aligns_numbers_and_shows_intervals() -> None:
    html = render_html(classification_run())
    assert '<td class="number">0.9012 <span class="between">[0.8812, 0.9212]</span></td>' in html
    assert (
        '<th scope="row" lang="" dir="auto">negative</th>' in html and '<td class="number">912</td>' in html
    )
    assert "negative 0.9012 [0.8812, 0.9212] 0.0500 912 – " in text(classification_run())


def test_a_table_of_more_than_fifty_rows_says_how_many_are_left_out() -> None:
    rows = [{"label": f"row {i}", "n": i} for i in range(1234)]
    table = {"kind": "table", "title": "Long", "columns": [{"key": "label"}, {"key": "n"}], "rows": rows}
    assert (
        len(view(**table)["rows"]) == 50 and "row 49" in text(run(table)) and "row 50" not in text(run(table))
    )
    assert "and 1,184 more" in text(run(table)) and "and 1,184 more" in render_markdown(run(table))


def test_examples_are_cards_ten_open_and_fifty_at_most() -> None:
    rows = [{"text": f"text {i}", "label": "a", "prediction": "b", "probability": 0.9} for i in range(60)]
    html = render_html(run({"kind": "examples", "title": "Mistakes", "rows": rows}))
    assert (
        html.count("<article") == 50
        and "<summary>40 more</summary>" in html
        and "10 more are in record.json" in html
    )
    assert html.index("text 9<") < html.index("<summary>40 more") < html.index("text 10<")


def test_the_reliability_diagram_places_dots_by_confidence_and_accuracy() -> None:
    bins = [
        {
            "low": 0.0,
            "high": 0.5,
            "rows": 25,
            "confidence": 0.25,
            "accuracy": 0.5,
            "accuracy_interval": [0.25, 0.75],
        },
        {
            "low": 0.5,
            "high": 1.0,
            "rows": 100,
            "confidence": 0.75,
            "accuracy": 1.0,
            "accuracy_interval": None,
        },
        {"low": 1.0, "high": 1.0, "rows": 0, "confidence": None, "accuracy": None, "accuracy_interval": None},
    ]
    shown = view(kind="reliability", bins=bins)
    first, second = shown["dots"]
    assert (first["x"], first["y"], first["range"]) == (250, 500, [750, 250])
    assert (second["x"], second["y"], second["range"]) == (750, 0, [])
    assert second["size"] ** 2 / first["size"] ** 2 == pytest.approx(4)  # areas as 100 rows to 25
    assert first["title"] == "confidence 0.2500, accuracy 0.5000 [0.2500, 0.7500], 25 rows"
    said = text(run({"kind": "reliability", "title": "Calibration", "bins": bins}))
    assert "0.00 to 0.50 25 0.2500 0.5000 [0.2500, 0.7500] " in said and "1.00 to 1.00 0 – – " in said


def test_a_scatter_draws_a_thousand_points_at_most_always_the_same_ones() -> None:
    points = [[i / 7, (i * 37 % 1000) / 7] for i in range(4000)]
    shown = view(kind="scatter", points=points)
    assert sum(path.count("M") for path in shown["layers"]) == 1000
    assert (
        shown == view(kind="scatter", points=points)
        and "4,000 points, 1,000 of them drawn" in shown["description"]
    )
    few = view(kind="scatter", points=[[0, 1], [1, 0], [math.nan, 1]])
    (x0, y0), (x1, y1) = (map(float, re.findall(r"M([\d.]+) ([\d.]+)", path)[0]) for path in few["layers"])
    assert (y0, y1) == (pytest.approx(1000 - x1), pytest.approx(1000 - x0))  # equal axes


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "heatmap", "title": "New", "grid": [[1, 2], {"a": None}]},
        {"title": "No kind", "value": 3},
        {"kind": ["x"]},
        "text",
        None,
        7,
        [],
        {},
        {"kind": "matrix", "rows": ["a"], "columns": ["a"], "values": [[1, 2]]},
        {"kind": "matrix", "rows": "ab"},
        {"kind": "matrix", "rows": ["a"], "columns": ["a"], "values": [["x"]]},
        {"kind": "table", "columns": [{"title": "x"}], "rows": [{}]},
        {"kind": "table", "columns": [{"key": "x"}], "rows": [1]},
        {"kind": "table", "columns": [], "rows": []},
        {"kind": "examples", "rows": ["a"]},
        {"kind": "examples", "rows": []},
        {"kind": "reliability", "bins": [{}]},
        {"kind": "reliability", "bins": []},
        {
            "kind": "reliability",
            "bins": [{"low": 0, "high": 1, "rows": 5, "confidence": 0.5, "accuracy": 50}],
        },
        {"kind": "scatter", "points": []},
        {"kind": "scatter", "points": [[1]]},
        {"kind": "facts"},
        {"kind": "facts", "facts": []},
        {"kind": "matrix", "rows": [], "columns": [], "values": []},
        {"kind": "scatter", "points": [[1, 1]]},
    ],
)
def test_no_section_breaks_a_report(section: Any) -> None:
    assert "analysis-1" in render_html(run(section)) and render_markdown(run(section))


def test_an_unknown_or_broken_section_is_shown_as_facts() -> None:
    assert "kind heatmap grid [[1, 2]] " in text(run({"kind": "heatmap", "title": "New", "grid": [[1, 2]]}))
    broken = run({"kind": "matrix", "title": "Broken", "rows": ["a"], "columns": ["a"], "values": [[1, 2]]})
    assert "values [[1, 2]]" in text(broken) and "values: \\[\\[1, 2\\]\\]" in render_markdown(broken)


def test_nothing_of_a_section_becomes_markup() -> None:
    a = ATTACK
    sections = [
        {
            "kind": "matrix",
            "title": a,
            "note": a,
            "split": a,
            "rows": [a, "b"],
            "columns": [a, "b"],
            "values": [[1, 1], [1, 1]],
            "row_title": a,
            "column_title": a,
        },
        {
            "kind": "table",
            "title": a,
            "columns": [{"key": a, "title": a}],
            "rows": [{a: a}, {a: {a: a}}, {a: a * 9}],
        },
        {"kind": "examples", "title": a, "rows": [{a: a, "text": a, "label": a, "prediction": a}]},
        {"kind": "scatter", "title": a, "points": [[1, 2]], "x_title": a, "y_title": a},
        {"kind": "facts", "title": a, "facts": {a: a, "inner": {a: [{a: a}]}}},
        {"kind": a, a: [a, {a: a}]},
        {"kind": "reliability", "title": a, "bins": [{"low": a}]},
    ]
    page, empty = Page(render_html(run(*sections))), Page(render_html(run()))
    assert "img" not in {tag for tag, _ in page.tags} and len(page.scripts) == len(empty.scripts)
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs) and ATTACK in page.text
    assert "<script" not in re.sub(r"```.*?```", "", render_markdown(run(*sections)), flags=re.DOTALL)


def test_markdown_has_tables_and_fenced_examples() -> None:
    said = render_markdown(classification_run())
    assert "## Confusion matrix (test)\n\nMost mistakes are short reviews." in said
    assert (
        "| true label / predicted label | negative | positive | all |\n| --- | ---: | ---: | ---: |" in said
    )
    assert "| negative | 800 | 112 | 912 |" in said
    assert "| negative | 0.9012 \\[0.8812, 0.9212\\] | 0.0500 | 912 | – |" in said
    assert "| 0.90 to 1.00 | 360 | 0.9600 | 0.9100 \\[0.8600, 0.9500\\] |" in said
    assert (
        "```text\ntext: a film of <b>ideas</b> .\ntext pair: its pair\nprediction: positive\nlabel: negative"
        in said
    )
    assert "50 points: true value from" in said and "- temperature: 1.31" in said


# --- Scores between 0 and 1


def test_scores_of_the_validation_split_have_a_chart_and_columns() -> None:
    made = {c.title: c for c in charts(classification_run())}
    chart = made["Validation scores"]
    assert [s.name for s in chart.series] == ["accuracy", "F1 macro"] and len(chart.series[0].points) == 10
    assert chart.note == "highest accuracy 0.8500 at step 800"
    assert evaluations(classification_run())[-1]["eval_accuracy"] == pytest.approx(0.85)
    assert len(Page(render_html(classification_run())).charts()) == 3


def test_scores_on_other_scales_have_a_chart_each() -> None:
    history = [{"step": s, "eval_pearson": 0.8, "eval_spearman": -0.1, "eval_mse": 2.5 + s} for s in (1, 2)]
    record = RunRecord(hftk="1", task="x", history=history)
    assert [c.title for c in charts(record)] == ["Validation scores", "Validation MSE"]
    assert len(evaluations(record)) == 2
    assert [
        c.title for c in charts(RunRecord(hftk="1", task="x", history=[{"step": 1, "eval_f1": 0.5}]))
    ] == ["Validation F1"]


def test_accuracy_reads_well_against_its_baselines() -> None:
    def accuracy(value: float, when: str = "after", ends: tuple[float, float] | None = None) -> Score:
        return Score(
            name="accuracy", value=value, higher_is_better=True, n=80, interval=ends, split="test", when=when
        )

    main, before = accuracy(0.8875, ends=(0.87, 0.9)), accuracy(0.492, "before")
    loss = Score(name="loss", value=0.3, higher_is_better=False, n=80, split="test")
    rivals = [accuracy(0.5, "baseline:majority"), accuracy(0.8012, "baseline:tfidf")]
    said = verdict(RunRecord(hftk="1", task="classification", scores=[before, main, loss, *rivals]))
    assert (
        said == "Test accuracy is 0.8875 [0.8700, 0.9000] after training, up from 0.4920 before, "
        "and above the TF-IDF baseline's 0.8012."
    )
    said = verdict(RunRecord(hftk="1", task="classification", scores=[main, loss, rivals[0]]))
    assert said == "Test accuracy is 0.8875 [0.8700, 0.9000], and above the majority baseline's 0.5000."
    assert task_title(RunRecord(hftk="1", task="classification")) == "Text classification"
    assert "TF-IDF baseline 0.8012" in text(classification_run()) and "Test F1 macro" not in said


def test_shares_of_one_column_have_the_same_decimals() -> None:
    assert column([0.05, 1.0, 0.0, None, 3]) == ["0.0500", "1.0000", "0.0000", "–", "3"]
    assert column([0.05, 1234.5]) == ["0.05000", "1,234"] and column([1e-5, 0.5]) == ["1e-5", "0.5000"]
    assert number(0.99996) == "1.000" and number(123_456_789.0) == "123,456,789"
