"""Reports: whatever a record holds, the page is whole, safe, offline and says the same as the record."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hftk.config import InputError
from hftk.records import RunRecord, load_record, save_record
from hftk.reports import render_html, render_markdown, summary_lines, write_report
from hftk.reports.charts import axis, chart, curve, thin
from hftk.reports.wording import about, duration, number, size, verdict
from hftk.task import Score

VOID = {"meta", "link", "br", "img", "input", "hr", "col", "path"}


def score(name: str, value: float, when: str = "after", *, higher: bool = False, **more: Any) -> Score:
    spread = more.pop("spread", 0.03 * abs(value))
    interval = (value - spread, value + spread) if spread else None
    facts: dict[str, Any] = {"n": 312, "split": "test", "interval": interval, **more}
    return Score(name=name, value=value, when=when, higher_is_better=higher, **facts)


def gpt2_run(points: int = 200) -> RunRecord:
    """A made-up run of the first recipe, as its stages would leave it."""
    history: list[dict[str, Any]] = []
    for i in range(points):
        step = 6 * (i + 1)
        noise = 0.05 * math.sin(7 * i) + 0.04 * math.cos(13 * i)
        rate = 1e-3 * min(step / 60, (6 * points - step) / max(1, 6 * points - 60))
        history.append(
            {"step": step, "epoch": 3 * (i + 1) / points, "loss": 4.05 + 4.2 * math.exp(-i / 28) + noise,
             "learning_rate": rate, "grad_norm": 0.8 + 3 * math.exp(-i / 9) + 2 * abs(noise), "tokens": step * 3584,
             "seconds": 0.09 * step, "eval_loss": None}
        )  # fmt: skip
        if (i + 1) % max(1, points // 10) == 0:
            history[-1]["eval_loss"] = 4.13 + 4.0 * math.exp(-i / 30)
    signature = "tokens|bpe:4096|context:256|stride:256|hftk:0.1.0"
    return RunRecord(
        hftk="0.1.0", task="causal_lm", started="2026-11-21T22:40:02+00:00", finished="2026-11-21T22:43:10+00:00",
        command="accelerate launch recipes/gpt2_clm.py --train.epochs 3",
        config={
            "data": {"sample": "python_docs", "columns": {}, "validation_fraction": 0.05, "seed": 0},
            "model": {"name": None, "size": "mini", "vocab_size": 4096, "dtype": "auto"},
            "train": {"epochs": 3.0, "per_device_batch_size": 16, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 0.05},
            "eval": {"batch_size": 32, "resamples": 1000}, "output": "out/gpt2_clm",
        },
        choices=[
            "precision bf16: a training step took 31 ms, 58 ms in fp32 (measured on this processor)",
            "model made on the spot (gpt2, mini): for the real one add --model.name openai-community/gpt2",
            "context 256: the model's own",
        ],
        model={"architecture": "gpt2", "parameters": {"total": 4_212_480, "trained": 4_212_480}, "context": 256,
               "vocabulary": 4096, "origin": "made on the spot", "dtype": "float32"},
        data={
            "source": "documentation of Python 3.11 (pydoc_data.topics and docstrings)",
            "splits": {"train": {"documents": 5621, "characters": 912_331, "tokens": 254_930},
                       "validation": {"documents": 301, "characters": 48_120, "tokens": 13_411},
                       "test": {"documents": 312, "characters": 50_977, "tokens": 14_096}},
            "read": 6390, "altered by NFC": 0, "empty, dropped": 3,
            "dropped": {"repeated in train": 121, "of train in validation": 14, "of train in test": 18},
            "disjoint": {"train and validation": 0, "train and test": 0, "validation and test": 0},
        },
        history=history,
        scores=[
            score("perplexity", 4093.2, "before", signature=signature, spread=18.0),
            score("bits_per_byte", 3.911, "before", unit="bits/byte", signature=signature, spread=0.02),
            score("perplexity", 61.34, signature=signature, spread=2.4),
            score("bits_per_byte", 1.935, unit="bits/byte", signature=signature, spread=0.02),
            score("perplexity", 612.4, "baseline:unigram", signature="add-one, same tokens", spread=21),
            score("perplexity", 85.2, "baseline:bigram", signature="interpolated Kneser-Ney, same tokens", spread=3.1),
        ],
        samples=[
            {"prompt": "The with statement is used to", "text": " wrap the execution of a block with methods defined by a "
             "context manager. This allows common try…except…finally usage patterns to be encapsulated for convenient "
             "reuse.\n\nThe context manager's __exit__() method is called.", "text_before": " gz\u0142\ufffd mul seq ))) 0x "
             "getattr the the = = return\n", "reference": " wrap the execution of a block with methods defined by a context "
             "manager (see section With Statement Context Managers)."},
            {"prompt": "明月几时有", "text": "，把酒问青天。不知天上宫阙，今夕是何年。我欲乘风归去，又恐琼楼玉宇，高处不胜寒。",
             "text_before": "的的，，。一 一 不不人", "reference": "，把酒问青天。不知天上宫阙，今夕是何年。"},
        ],
        seconds={"load": 9.2, "train": 108.4, "evaluate": 41.7, "save": 1.9, "total": 168.3},
        tokens_per_second=39_690.4, peak_memory_bytes=1_312_444_416, processes=2,
        hardware={"cpu": "AMD EPYC 9R45", "cores": 2, "ram_bytes": 25_276_514_304, "gpus": [], "threads": 2,
                  "os": "Linux 6.18 x86_64"},
        versions={"hftk": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "datasets": "5.2.0"},
        git={"commit": "9f3c1e0a7d5b4f28a6cc01b7e2d94c7f3ab0d5e1", "dirty": False},
    )  # fmt: skip


def classification_run() -> RunRecord:
    """A classifier: scores in percent, higher is better, short predictions beside their labels."""
    return RunRecord(
        hftk="0.1.0", task="classification", finished="2026-11-21T22:43:10+00:00",
        config={"data": {"path": "stanfordnlp/sst2"}, "model": {"name": "google-bert/bert-base-uncased"}, "output": "out/bert"},
        model={"parameters": {"total": 109_483_778, "trained": 1_331_716}, "adapter": "lora, rank 16"},
        history=[{"step": s, "loss": 0.69 * math.exp(-s / 400), "learning_rate": 5e-5 * (1 - s / 800)} for s in range(8, 801, 8)],
        scores=[
            score("accuracy", 50.8, "before", higher=True, unit="%", n=1821, spread=2.3),
            score("accuracy", 88.3, higher=True, unit="%", n=1821, spread=1.5),
            score("macro_f1", 88.2, higher=True, unit="%", n=1821, spread=1.6),
            score("accuracy", 50.1, "baseline:majority", higher=True, unit="%", n=1821, spread=2.3),
        ],
        samples=[
            {"text": "a gorgeous, witty, seductive movie .", "prediction": "positive", "label": "positive", "probability": 0.9987},
            {"text": "it 's slow -- very , very slow .", "prediction": "positive", "label": "negative", "probability": 0.5321},
        ],
        seconds={"load": 6.1, "train": 3721.0, "evaluate": 64.0, "save": 2.2, "total": 3802.9},
        tokens_per_second=2_702.0,
    )  # fmt: skip


EVERY_RUN = {
    "gpt2": gpt2_run(),
    "classification": classification_run(),
    "nothing": RunRecord(hftk="0.1.0", task="causal_lm"),
    "one_point": RunRecord(hftk="0.1.0", task="x", history=[{"step": 1, "loss": 2.0}], scores=[score("loss", 2.0, spread=0)]),
    "not_finite": RunRecord(
        hftk="0.1.0", task="causal_lm", status="failed", history=[{"step": 1, "loss": math.nan}, {"step": 2, "loss": math.inf}],
        scores=[score("perplexity", math.nan, spread=0)], seconds={"total": None},
    ),
}  # fmt: skip
every_run = pytest.mark.parametrize("name", EVERY_RUN)


class Page(HTMLParser):
    """Checks that tags are balanced, and collects what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()} closes something else"
        self.text += " " if tag in ("td", "th", "dt", "dd", "li") else ""

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.stack[-1:] != ["style"]:
            self.text += data

    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.scripts if text.startswith("{")]


# The page ---------------------------------------------------------------------------------------------------------------


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
    assert not re.search(r"url\(|@import|https?:|//[\w.]+\.\w+/|fetch\(|XMLHttpRequest|sendBeacon|WebSocket", html)
    assert "default-src 'none'" in html


def test_a_page_stays_below_300_kb_however_long_the_history() -> None:
    assert len(render_html(gpt2_run(points=50_000)).encode()) < 300_000


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", '"><b onclick="x">', "]]>", "{{ 7*7 }}"])  # fmt: skip
def test_nothing_of_a_record_becomes_markup(attack: str) -> None:
    record = RunRecord(
        hftk=attack, task=attack, status=attack, command=attack, config={"output": attack, attack: attack, "model": {"name": attack}},
        choices=[attack], model={attack: attack}, data={attack: {attack: attack}, "t": [{attack: attack}]}, seconds={attack: 3.0},
        history=[{"step": 1, "loss": 1.0, "eval_loss": 2.0, attack: attack}], samples=[{attack: attack, "prompt": attack}],
        scores=[score(attack, 1.0, unit=attack, signature=attack), score(attack, 2.0, "baseline:" + attack)],
        hardware={attack: attack}, versions={attack: attack}, git={"commit": attack}, started=attack, finished=attack,
    )  # fmt: skip
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
    assert [html.count(f'<div class="{role}">') for role in ("input", "output", "before", "reference")] == [2] * 4


def test_a_short_prediction_is_marked_right_or_wrong() -> None:
    text = Page(render_html(classification_run())).text
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
    record = RunRecord(hftk="1", task="x", data={"rows": {"train": 5}, "proof": {"method": "hashes", "overlap": 2}})
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


# Words ------------------------------------------------------------------------------------------------------------------


def test_the_summary_is_five_lines_that_say_what_matters() -> None:
    assert summary_lines(gpt2_run()) == [
        "Trained gpt2 (mini), 4.21 million parameters, on python_docs: 3 epochs, 1,200 steps, 4.3 million tokens.",
        "Test perplexity is 61.34 [58.94, 63.74] after training, down from 4,093 before, and below the bigram model's 85.20.",
        "Took 2 min 48 s (training 1 min 48 s), 39,690 tokens/s, 1.31 GB of memory at peak.",
        f"Weights, tokenizer and settings: {Path('out/gpt2_clm')}    report: {Path('out/gpt2_clm/report.html')}",
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
    assert "but below the lead 3 baseline's" in said(score("f1", 1.0, **up), score("f1", 5.0, "baseline:lead_3", **up))
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
    shown = {4093.2: "4,093", 61.344: "61.34", 0.88751: "0.8875", 2e-5: "2e-5", 0.0: "0", math.nan: "–", 1234: "1,234"}
    assert {value: number(value) for value in shown} == shown
    assert [duration(s) for s in (0.84, 43, 151, 3840, None)] == ["0.8 s", "43 s", "2 min 31 s", "1 h 04 min", "–"]
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
        hftk="1", task="x", samples=[{"text": "```\n# no heading"}], choices=["a|b <script>"],
        scores=[score("a|b", 1.0), score("<img>", 1.0)],
    )  # fmt: skip
    text = render_markdown(record)
    assert "a\\|b" in text and "<script>" not in text and "<img>" not in text and "````text" in text


# Charts -----------------------------------------------------------------------------------------------------------------


def test_axes_have_round_ticks_inside_their_ends() -> None:
    for values in ([0, 1204], [3.1, 9.2], [5, 5], [0, 1e-3], [-3, 4], [61.3, 4012], [1e-7, 5e-4], [0.88, 0.91]):
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
