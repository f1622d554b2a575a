"""Each message that the page on troubleshooting is ordered by is a message of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from markdown_blocks import ROOT

PAGES = [ROOT / "docs/troubleshooting.md", ROOT / "docs/zh/troubleshooting.md"]
GAP = "…"
OTHERS = {
    "docs/troubleshooting.md": "## Messages of other programs",
    "docs/zh/troubleshooting.md": "## 其他程序的消息",
}


def template(node: ast.AST) -> str | None:
    """The text of a string in the code, with a gap for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


@cache
def templates() -> list[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "hftk").rglob("*.py")))
    return [
        text
        for tree in trees
        for node in ast.walk(tree)
        if (text := template(node)) is not None and len(text) > 10
    ]


def messages(page):
    text = page.read_text(encoding="utf-8").split(OTHERS[str(page.relative_to(ROOT))])[0]
    return re.findall(r"^### `(.*)`$", text, flags=re.MULTILINE)


def is_in_the_code(message: str) -> bool:
    """Whether a string of the code has the parts between the gaps in this order, from its beginning on."""
    parts = [re.escape(part) for part in message.split(GAP)]
    pattern = re.compile(r".*?".join(parts), re.DOTALL)
    return any(pattern.match(text) for text in templates())


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.parent.name)
def test_every_message_stands_in_the_code(page):
    found = messages(page)
    assert len(found) >= 35
    assert [message for message in found if not is_in_the_code(message)] == []


def test_a_message_that_nobody_prints_is_found_out():
    assert not is_in_the_code("expected a sunny day, found rain")
    assert not is_in_the_code("expected … processes, as asked of nobody, found …")


def test_both_languages_have_the_same_messages():
    if PAGES[1].exists():
        assert messages(PAGES[0]) == messages(PAGES[1])
