"""The site builds without a warning and asks nothing of the network; generated pages are up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from markdown_blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not all(find_spec(name) for name in ("sphinx", "furo", "myst_parser")):
        pytest.skip('the site needs pip install "hftk[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        folder / "trees",
        ROOT / "docs",
        folder / "site",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_a_page_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']([^\"']+)", text)
        loaded += re.findall(
            r"<link\b(?![^>]*rel=[\"'](?:canonical|next|prev|search|index|author))[^>]*\bhref=[\"']([^\"']+)",
            text,
        )
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(
            r"url\(\s*[\"']?(https?:)?//|@import\s+[\"'](https?:)?//", style.read_text(encoding="utf-8")
        ), style.name


def test_every_promised_name_is_in_the_reference(site):
    import hftk

    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    homes = {
        name: f"{getattr(hftk, name).__module__}.{name}" for name in hftk.__all__ if name != "__version__"
    }
    assert [name for name, full in homes.items() if f'id="{full}"' not in text] == []


def test_the_page_of_settings_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    import settings_page

    assert settings_page.PAGE.read_text(encoding="utf-8") == settings_page.render(), (
        "run: python docs/settings_page.py"
    )
