"""Links between the pages lead somewhere: to a file of the repository, and to a heading that is there."""

from __future__ import annotations

import re

import pytest
from markdown_blocks import FENCE, ROOT

PAGES = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_there_are_links():
    assert sum(len(re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))) for page in PAGES) > 50
