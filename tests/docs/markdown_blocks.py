"""Blocks of code in the Markdown pages, and what the pages say about running them.

A block is run unless the line above its fence is ``<!-- not run: REASON -->``; then its commands are only
read by the parsers that would read them. ``<!-- exit: 2 -->`` above it: the block ends with that exit code. A
``text`` block below ``<!-- shown -->`` quotes lines that the block above it prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHINESE = {ROOT / "README.md": ROOT / "README.zh-CN.md"}
"""English page to the same page in Chinese; pages of docs/ have theirs under the same name in docs/zh/."""
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"<!-- (not run|exit|shown)(?:: (.*?))? -->\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    exit_code: int = 0
    shown: bool = False

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def find_pages() -> list[Path]:
    """Every page that people read in English: the README, CONTRIBUTING and what is in docs/."""
    docs = [
        path
        for path in (ROOT / "docs").rglob("*.md")
        if not {"zh", "_build", "api"} & set(path.relative_to(ROOT / "docs").parts)
    ]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(docs)]


def chinese_page(page: Path) -> Path:
    """Where the same page is in Chinese, whether it exists or not."""
    return (
        CHINESE[page]
        if page in CHINESE
        else ROOT / "docs/zh" / page.relative_to(ROOT / "docs")
        if page.is_relative_to(ROOT / "docs")
        else page.with_suffix(".zh-CN.md")
    )


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for found in FENCE.finditer(text):
        note = NOTE.search(text[: found.start()])
        kind, said = (note[1], note[2] or "") if note else ("", "")
        blocks.append(
            Block(
                page=page,
                line=text.count("\n", 0, found.start()) + 1,
                language=found["language"].strip(),
                text=re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
                not_run=said if kind == "not run" else "",
                exit_code=int(said) if kind == "exit" else 0,
                shown=kind == "shown",
            )
        )
    return blocks
