"""Reports: whatever a record holds, the page is whole, safe, offline and says the same as the record."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import EVERY_RUN, Page, classification_run, gpt2_run, score

from hftk.config import InputError
from hftk.reports import render_html, render_markdown, summary_lines, write_report
from hftk.reports.charts import axis, chart, curve, thin
from hftk.reports.record import RunRecord, load_record, save_record
from hftk.reports.wording import about, duration, number, size, verdict
from hftk.task import Score

every_run = pytest.mark.parametrize("name", EVERY_RUN)


# --- The page


@every_run
def test_every_tag_is_closed_and_every_id_is_unique(name: str) -> None:
    ids = [attrs["id"] for _, attrs in Page(render_html(EVERY_RUN[name])).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


@every_run
def test_links_within_the_page_have_targets(name: str) -> None:
    tags = Page(render_html(EVERY_RUN[name])).tags
    wanted = {attrs["href"][1:] for tag, attrs in tags if tag == "a"}
    wanted |= {key for _, attrs in tags for key in attrs.get("aria-labelledby", "").split()}
    assert wanted <= {attrs.get("id") for _, attrs in tags}


@every_run
def test_the_page_asks_nothing_of_any_network(name: str) -> None:
    html = render_html(EVERY_RUN[name])
    for tag, attrs in Page(html).tags:
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            assert attrs.get(key, "#").startswith(("#", "data:")), (tag, attrs)
    assert not re.search(
        r"url\(|@import|https?:|//[\w.]+\.\w+/|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", html
    )
    assert "default-src 'none'" in html


def test_a_page_stays_below_300_kb_however_long_the_history() -> None:
    assert len(render_html(gpt2_run(points=50_000)).encode()) < 300_000


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "</script><img src=x onerror=alert(1)>",
        '"><b onclick="x">',
        "]]>",
        "{{ 7*7 }}",
    ],
)
def test_nothing_of_a_record_becomes_markup(attack: str) -> None:
    record = RunRecord(
        hftk=attack,
        task=attack,
        status=attack,
        command=attack,
        config={"output": attack, attack: attack, "model": {"name": attack}},
        choices=[attack],
        model={attack: attack},
        data={attack: {attack: attack}, "t": [{attack: attack}]},
        seconds={attack: 3.0},
        history=[{"step": 1, "loss": 1.0, "eval_loss": 2.0, attack: attack}],
        samples=[{attack: attack, "prompt": attack}],
        scores=[score(attack, 1.0, unit=attack, signature=attack), score(attack, 2.0, "baseline:" + attack)],
        hardware={attack: attack},
        versions={attack: attack},
        git={"commit": attack},
        started=attack,
        finished=attack,
    )
    plain_page, page = Page(render_html(RunRecord(hftk="1", task="x"))), Page(render_html(record))
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert len(page.scripts) == len(plain_page.scripts) + 1  # the chart's data
    assert attack in page.text


def test_every_score_stands_on_the_page_with_its_interval_and_signature() -> None:
    text = Page(render_html(gpt2_run())).text
    for shown in (
        "61.34",
        "[58.94, 63.74]",
        "[591.4, 633.4]",
        "[1.915, 1.955]",
        "4,093",
        "85.20",
        "612.4",
        "1.935",
        "bits/byte",
    ):
        assert shown in text
    for s in gpt2_run().scores:
        assert s.signature in text
    assert gpt2_run().git["commit"] in text  # type: ignore[index]
    assert text.count("↓ lower is better") == 3  # two blocks and the tile


def test_the_main_score_is_the_first_one_after_training_and_its_block_comes_first() -> None:
    """Scores from before training come first in a record, and may stand in another order."""
    scores = [
        score("bits", 4.0, "before"),
        score("perplexity", 90.0, "before"),
        score("perplexity", 60.0),
        score("bits", 2.0),
    ]
    record = RunRecord(hftk="1", task="x", scores=scores)
    text = Page(render_html(record)).text
    assert record.main_score == scores[2] and text.index("test perplexity") < text.index("test bits")


def test_charts_hold_every_point_of_a_short_history() -> None:
    loss, rate, norm = Page(render_html(gpt2_run())).charts()
    assert [(s["name"], len(s["points"])) for s in loss["series"]] == [("training", 200), ("validation", 10)]
    assert len(rate["series"][0]["points"]) == len(norm["series"][0]["points"]) == 200
    assert loss["series"][0]["points"][0] == [6, pytest.approx(gpt2_run().history[0]["loss"], rel=1e-5)]


def test_the_drawn_curve_has_as_many_points_as_its_data() -> None:
    page = Page(render_html(gpt2_run()))
    drawn = [attrs["d"] for tag, attrs in page.tags if tag == "path" and attrs["class"].startswith("curve")]
    data = [len(s["points"]) for c in page.charts() for s in c["series"]]
    assert [d.count("L") + 1 for d in drawn] == data == [200, 10, 200, 200]


def test_an_empty_run_says_so_in_words() -> None:
    text = Page(render_html(EVERY_RUN["nothing"])).text
    assert "no held-out rows" in text and "Curves" not in text and "Samples" not in text


def test_samples_are_shown_side_by_side_with_what_was_said_before() -> None:
    html = render_html(gpt2_run())
    assert "把酒问青天。不知天上宫阙" in html and "text before training" in html
    assert [html.count(f'<div class="{role}">') for role in ("input", "output", "before", "reference")] == [
        2
    ] * 4


def test_a_short_prediction_is_marked_right_or_wrong() -> None:
    text = Page(render_html(replace(classification_run(), analysis=[]))).text
    assert text.count("✓ as expected") == text.count("✗ not as expected") == 1


def test_text_in_chinese_is_left_to_the_reader_s_fonts() -> None:
    """lang="en" would pick Japanese or Western glyph variants for Chinese samples on some systems."""
    tags = Page(render_html(gpt2_run())).tags
    assert [attrs["lang"] for tag, attrs in tags if tag == "html"] == ["en"]
    assert all(attrs.get("lang") == "" for tag, attrs in tags if tag == "dd" and "dir" in attrs)


def test_data_facts_become_one_table_per_split_and_counts_of_zero_one_line() -> None:
    facts = {
        "cleaned": {"train": {"empty": {"dropped": 3}, "unicode": {"changed": 0}}},
        "rows": {"train": 177, "test": 11},
        "proof": {"method": "hashes", "keys": {"train": 177, "test": 11}, "overlap": 0},
        "sources": [{"path": "a.txt", "bytes": 1500}],
    }
    text = " ".join(Page(render_html(RunRecord(hftk="1", task="x", data=facts))).text.split())
    assert "cleaned: empty dropped 3 –" in text and "rows 177 11" in text
    assert "0 in every split: cleaned: unicode changed." in text and text.count("unicode") == 1
    assert "No row stands in two splits" in text and "1.5 kB" in text


def test_the_page_of_a_run_that_shares_rows_between_splits_does_not_claim_otherwise() -> None:
    record = RunRecord(
        hftk="1", task="x", data={"rows": {"train": 5}, "proof": {"method": "hashes", "overlap": 2}}
    )
    text = Page(render_html(record)).text
    assert "No row stands" not in text and "overlap" in text


def test_without_jinja_the_record_is_kept_and_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(InputError, match=r'pip install "hftk\[report\]"'):
        write_report(gpt2_run(), tmp_path)
    assert load_record(tmp_path) == gpt2_run()


def test_write_report_leaves_two_files_and_prints_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = write_report(gpt2_run(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["record.json", "report.html"]
    assert page == tmp_path / "report.html"
    assert capsys.readouterr().out.split("\n")[1:6] == summary_lines(gpt2_run(), tmp_path)


def test_a_page_made_from_the_file_equals_the_one_made_from_the_run(tmp_path: Path) -> None:
    for name, record in EVERY_RUN.items():
        save_record(record, tmp_path / name)
        assert render_html(load_record(tmp_path / name)) == render_html(record)


# --- Words


def test_the_summary_is_five_lines_that_say_what_matters() -> None:
    assert summary_lines(gpt2_run()) == [
        (
            "Trained gpt2 (mini), 4.21 million parameters, on python_docs: 3 epochs, 1,200 steps, 4.3 million"
            " tokens."
        ),
        (
            "Test perplexity is 61.34 [58.94, 63.74] after training, down from 4,093 before, and below the"
            " bigram model's 85.20."
        ),
        "Took 2 min 48 s (training 1 min 48 s), 39,690 tokens/s, 1.31 GB of memory at peak.",
        (
            f"Weights, tokenizer and settings: {Path('out/gpt2_clm')}    report:"
            f" {Path('out/gpt2_clm/report.html')}"
        ),
        f"Next: hftk predict {Path('out/gpt2_clm')}",
    ]


@every_run
def test_there_are_always_five_lines(name: str) -> None:
    assert [bool(line) for line in summary_lines(EVERY_RUN[name])] == [True] * 5


def test_the_verdict_tells_better_from_worse_in_both_directions() -> None:
    def said(*scores: Score) -> str:
        return verdict(RunRecord(hftk="1", task="x", scores=list(scores)))

    up, down = {"higher": True, "spread": 0}, {"spread": 0}
    assert said(score("f1", 80.0, **up), score("f1", 70.0, "before", **up)).endswith("up from 70.00 before.")
    assert said(score("f1", 60.0, **up), score("f1", 70.0, "before", **up)).endswith(
        "down from 70.00 before, which was better."
    )
    assert "but above the bigram model's 5.000" in said(
        score("ppl", 7.0, **down), score("ppl", 5.0, "baseline:bigram", **down)
    )
    assert "but below the lead 3 baseline's" in said(
        score("f1", 1.0, **up), score("f1", 5.0, "baseline:lead_3", **up)
    )
    best_of_two = said(
        score("f1", 9.0, **up), score("f1", 5.0, "baseline:a", **up), score("f1", 6.0, "baseline:b", **up)
    )
    assert "and above the b baseline's 6.000" in best_of_two


def test_the_verdict_does_not_claim_what_the_intervals_do_not_show() -> None:
    scores = [
        score("ppl", 60.0, spread=5),
        score("ppl", 66.0, "baseline:bigram", spread=5),
        score("ppl", 62.0, "before", spread=5),
    ]
    said = verdict(RunRecord(hftk="1", task="x", scores=scores))
    assert said.count("(the intervals overlap)") == 2


def test_numbers_keep_four_digits_and_group_thousands() -> None:
    shown = {
        4093.2: "4,093",
        61.344: "61.34",
        0.88751: "0.8875",
        2e-5: "2e-5",
        0.0: "0",
        math.nan: "–",
        1234: "1,234",
    }
    assert {value: number(value) for value in shown} == shown
    assert [duration(s) for s in (0.84, 43, 151, 3840, None)] == [
        "0.8 s",
        "43 s",
        "2 min 31 s",
        "1 h 04 min",
        "–",
    ]
    assert [size(b) for b in (812_000_000, 1_312_444_416, 0)] == ["812 MB", "1.31 GB", "–"]
    assert [about(c) for c in (999, 823_000, 1_240_000, 999_999)] == [
        "999",
        "823 thousand",
        "1.24 million",
        "1 million",
    ]


@every_run
def test_markdown_says_the_same_as_the_page(name: str) -> None:
    record = EVERY_RUN[name]
    text = render_markdown(record).replace("\\", "")
    assert verdict(record) in text
    for s in record.scores:
        assert number(s.value) in text


def test_markdown_shows_hostile_text_as_text() -> None:
    record = RunRecord(
        hftk="1",
        task="x",
        samples=[{"text": "```\n# no heading"}],
        choices=["a|b <script>"],
        scores=[score("a|b", 1.0), score("<img>", 1.0)],
    )
    text = render_markdown(record)
    assert "a\\|b" in text and "<script>" not in text and "<img>" not in text and "````text" in text


# --- Charts


def test_axes_have_round_ticks_inside_their_ends() -> None:
    for values in (
        [0, 1204],
        [3.1, 9.2],
        [5, 5],
        [0, 1e-3],
        [-3, 4],
        [61.3, 4012],
        [1e-7, 5e-4],
        [0.88, 0.91],
    ):
        made = axis(values)
        assert 2 <= len(made.ticks) <= 9 and all(0 <= at <= 1000 for at, _ in made.ticks)
        assert all(0 <= made.place(v) <= 1000 for v in values)
    assert [label for _, label in axis([0, 0.001]).ticks] == ["0", "2e-4", "4e-4", "6e-4", "8e-4", "1e-3"]


def test_an_axis_is_logarithmic_where_values_are_far_apart_and_positive() -> None:
    assert (
        axis([60, 4000]).log
        and not axis([60, 900]).log
        and not axis([0, 4000]).log
        and not axis([1, 99], linear=True).log
    )
    made = axis([10, 1000])
    assert made.place(100) == pytest.approx((made.place(10) + made.place(1000)) / 2, abs=0.1)


def test_thinning_keeps_both_ends_and_the_spikes() -> None:
    points = [(float(i), float(i % 7)) for i in range(30_000)]
    points[12_345] = (12_345.0, 99.0)
    points[23_456] = (23_456.0, -99.0)
    thinned = thin(points)
    assert len(thinned) <= 1000 and thinned == sorted(thinned)
    assert {points[0], points[-1], points[12_345], points[23_456]} <= set(thinned)
    assert thin(points[:1000]) == points[:1000]


def test_a_curve_skips_points_that_are_no_number() -> None:
    history = [
        {"step": 2, "loss": 1.0},
        {"step": 1, "loss": 3.0},
        {"step": 3, "loss": None},
        {"step": 4, "loss": math.nan},
        {"loss": 1},
    ]
    assert curve(history, "loss") == [(1.0, 3.0), (2.0, 1.0)]
    assert chart("loss", "Loss", {"training": ("train", [])}) is None


def test_the_chart_describes_itself_for_those_who_cannot_see_it() -> None:
    made = chart("loss", "Loss", {"training": ("train", [(1.0, 4.0), (5.0, 2.5)])}, "nats per item")
    assert made is not None and made.title == "Loss, nats per item"
    assert made.description == "Over step 1 to 5: training from 4 to 2.5."
