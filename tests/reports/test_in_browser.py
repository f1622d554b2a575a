"""The pages in a real browser, where one is installed: no complaint, no request, readable in both themes,
usable by keys, printable."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from browser import PROGRAM, Browser
from made_up_runs import EVERY_RUN, classification_run, gpt2_run

from hftk.metrics.comparison import Comparison
from hftk.reports import render_html
from hftk.reports.comparison import Compared, render_together
from hftk.reports.record import RunRecord, load_record

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
RESULTS = Path(__file__).parents[2] / "results"
REAL = ("quickstart", "multi30k_en_de", "goemotions_minilm", "songci_zh")


def awkward() -> RunRecord:
    """Right-to-left and Chinese text, words without an end, 28 classes with long names, curves of one
    point."""
    names = [f"a_quite_long_label_number_{i}" for i in range(28)]
    samples = [
        {
            "source": "لم يعبر الحيوان الشارع لأنه كان متعبًا جدًا (حوالي 3 كم).",
            "prediction": "It was too tired.",
            "reference": "It was.",
        },
        {
            "source": "The capital of France.",
            "prediction": "عاصمة فرنسا",
            "reference": "那只动物没有过马路，因为它太累了。",
        },
        {"source": "x" * 400, "prediction": "https://example.org/" + "a" * 300, "reference": "词" * 300},
    ]
    matrix = {
        "title": "Confusion matrix",
        "kind": "matrix",
        "rows": names,
        "columns": names,
        "values": [[i * j % 900 for j in range(28)] for i in range(28)],
    }
    config = {
        "model": {"name": "somebody/" + "a-model-with-a-name-" * 6},
        "data": {"path": "data/" + "long" * 30 + ".csv"},
    }
    return replace(gpt2_run(1), samples=samples, analysis=[matrix], config=config, choices=["y" * 300])


def together() -> str:
    run = replace(classification_run(), analysis=[])
    test = Comparison(
        name="accuracy", a=0.88, b=0.9, difference=-0.02, interval=(-0.03, -0.01), p_value=0.002
    )
    runs = [
        Compared(name="out/" + "first" * 9, record=run, answers=["a" * 60, "b"]),
        Compared(name="second", record=run, tests=[test], words=["So."], answers=["b", "b"]),
    ]
    return render_together(runs, rows=2, split="test", references=["a", "b"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    records = {
        **EVERY_RUN,
        **{name: load_record(RESULTS / f"{name}.json") for name in REAL},
        "awkward": awkward(),
    }
    texts = {**{name: render_html(record) for name, record in records.items()}, "together": together()}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


ALL = [*EVERY_RUN, *REAL, "awkward", "together"]


@pytest.mark.parametrize("name", ALL)
def test_the_browser_has_no_complaint_nothing_is_asked_of_a_network_and_nothing_sticks_out(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name])
    assert browser.run("document.documentElement.classList.contains('scripted')"), "its script has run"
    for width in (1280, 360):
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        wide = (
            "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right >"
            " innerWidth + 1 && !e.closest('.scroll, pre')).map((e) => e.className || e.tagName)"
        )
        assert browser.run("document.documentElement.scrollWidth") <= width, browser.run(wide)
    browser.run("for (const e of document.querySelectorAll('details')) e.open = true")
    assert browser.complaints() == []


def test_a_page_that_asks_for_something_is_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<img src="http://127.0.0.1:9/x.png"><script>console.error("wrong"); throw new Error("bad")</script>'
    )
    browser.open(page)
    told = " ".join(browser.complaints())
    assert "127.0.0.1:9" in told and "wrong" in told and "Uncaught" in told


CONTRAST = """
(() => {
  const light = (c) => { const v = c / 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const bright = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  let least = [99, ""];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || ["SCRIPT", "STYLE", "TITLE", "DESC"].includes(e.tagName.toUpperCase()) || !e.getClientRects().length) continue;
    const [a, b] = [bright(numbers(getComputedStyle(e).color)), bright(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, node.data.trim().slice(0, 60)];
  }
  return least;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["classification", "together", "nothing"])
def test_every_text_can_be_read_in_both_themes(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    browser.open(pages[name], dark=dark)
    ratio, text = browser.run(CONTRAST)
    assert ratio >= 4.5, f"{text!r} has a contrast of {ratio:.2f} (WCAG 2.1 AA asks for 4.5)"
    red, green, blue = browser.run(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (red + green + blue < 200) == dark


def test_the_keyboard_reaches_the_values_of_a_curve_and_the_theme(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["gpt2"])
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Skip to the scores"
    browser.run("document.querySelector('#curves .plot').focus()")
    browser.press("Home")
    tip = "document.querySelector('#curves .tip')"
    assert browser.run(f"{tip}.hidden") is False and browser.run(f"{tip}.textContent").startswith(
        "step 6training "
    )
    browser.press("ArrowLeft")
    value = browser.run("document.querySelector('#curves .plot').getAttribute('aria-valuetext')")
    assert value.startswith("step 6: training ")
    browser.press("Escape")
    assert browser.run(f"{tip}.hidden") is True
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.run("document.querySelector('.theme').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != before
    browser.run("document.querySelector('.theme').click()")
    assert (
        browser.run("getComputedStyle(document.body).backgroundColor") == before
        and browser.complaints() == []
    )


def test_the_pointer_shows_the_values_of_all_curves(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["classification"])
    box = browser.run(
        "(() => { const p = document.querySelector('#curves .plot'); p.scrollIntoView({behavior: 'instant'});"
        " const b = p.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 2, y=box[1] + box[3] / 2)
    told = browser.run("document.querySelector('#curves .tip').textContent")
    assert told.startswith("step 800") and "validation 0.4" in told


@pytest.mark.parametrize("name", ["classification", "awkward", "together"])
def test_on_paper_everything_is_open_and_nothing_is_a_button(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], dark=True, media="print")
    shown = "[...document.querySelectorAll('nav, button')].filter((e) => e.getClientRects().length).length"
    assert browser.run(shown) == 0
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    made = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert made.startswith(b"%PDF") and len(made) > 10_000
