"""Every block of code in the README, CONTRIBUTING and docs/ runs as it stands there, or says why it is not
run.

The blocks of a page run in order, each by bash or Python, in a folder that holds the files which the pages
name. Commands are the page's to the letter; a server with everything imported forks for each
(``command_server.py``), and makes runs short.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_blocks import ROOT, Block, chinese_page, find_pages, read_blocks
from small_hub import make_files

HERE = Path(__file__).parent
PAGES = find_pages()
COMMANDS = ("accelerate", "hftk", "python", "python3", "pip", "make", "hf", "git", "modelscope", "rsync")
"""What blocks may call, beside a few tools of the shell; each goes to the server."""
TOOLS = ("bash", "cat", "cp", "du", "echo", "env", "head", "ls", "mkdir", "rm", "sed", "sort", "tail", "wc")
COUNTS = {"bash": 48, "python": 2, "not run": 15}
"""Blocks in all pages, and those that are not run."""
LANGUAGES = {"bash", "python", "text", "yaml", "json", "bibtex"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the server forks")


class Shell:
    """Runs blocks in the folder of one page."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home, self.environment = home, environment

    def run(self, block: Block) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **({"HFTK_DOCS_CHECK": "1"} if block.not_run else {})}
        command = (
            ["bash", "-euo", "pipefail", "-c", block.text]
            if block.language == "bash"
            else [f"{environment['PATH']}/python"]
        )
        return subprocess.run(
            command,
            input=None if block.language == "bash" else block.text,
            cwd=self.home,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=900,
            encoding="utf-8",
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of the commands: they, and nothing else, are in PATH, and the Hub is a folder of tiny
    models."""
    folder = tmp_path_factory.mktemp("commands")
    tools = folder / "bin"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(shutil.which(name) or "/missing")
    for name in COMMANDS:
        (tools / name).write_text(f"#!{sys.executable} -ISE\n{(HERE / 'shim.py').read_text()}")
        (tools / name).chmod(0o755)
    found = {
        "PATH": str(tools),
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HFTK_DOCS_SERVER": str(folder / "socket"),
        "LANG": "C.UTF-8",
        "TMPDIR": str(folder),
    }
    server = subprocess.Popen(
        [sys.executable, HERE / "command_server.py", found["HFTK_DOCS_SERVER"], folder / "hf/hub"],
        env={**found, "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    yield found
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, environment: dict[str, str], tmp_path: Path) -> None:
    blocks = read_blocks(page)
    if not any(block.language in ("bash", "python") for block in blocks):
        return
    make_files(tmp_path / "work", Path(environment["PATH"]))
    shell, printed = Shell(tmp_path / "work", environment), ""
    for block in blocks:
        if block.shown:
            for line in filter(str.strip, block.text.splitlines()):
                assert line in printed, (
                    f"{block.name}: {line!r} is not in what the block above prints:\n{printed}"
                )
        if block.language in ("bash", "python"):
            result = shell.run(block)
            printed = result.stdout
            assert result.returncode == block.exit_code, (
                f"{block.name}: exit code {result.returncode}\n{block.text}\n{printed[-6000:]}"
            )


@pytest.mark.parametrize(
    "command",
    [
        "accelerate launch recipes/gpt2_clm.py --train.learning_rat 3e-4",
        "accelerate launch --num_proceses 2 recipes/gpt2_clm.py",
        "accelerate launch --config_file recipes/accelerate/none.yaml recipes/gpt2_clm.py",
        "hftk push out/gpt2_clm --repository my-name/my-model",
        "hftk plan gpt2_clm --model.nam openai-community/gpt2",
        "hf download google-bert/bert-base-chinese --folder models",
        'pip install "hftk[no_such_extra]"',
        "make no_such_target",
        "curl https://huggingface.co",
    ],
)
def test_a_wrong_command_is_found_out_though_it_is_not_run(
    command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    make_files(tmp_path / "work", Path(environment["PATH"]))
    block = Block(page=PAGES[0], line=1, language="bash", text=command, not_run="for this test")
    assert Shell(tmp_path / "work", environment).run(block).returncode != 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in read_blocks(page):
        assert block.language in LANGUAGES or block.language.startswith("{"), (
            f"{block.name}: {block.language!r}"
        )
        assert not (block.not_run or block.exit_code) or block.language in ("bash", "python"), block.name


@pytest.mark.parametrize(
    "page", [p for p in PAGES if chinese_page(p).exists()], ids=lambda page: str(page.relative_to(ROOT))
)
def test_both_languages_show_the_same_code(page: Path) -> None:
    english, chinese = (
        [b for b in read_blocks(p) if not b.language.startswith("{")] for p in (page, chinese_page(page))
    )
    assert [(b.language, b.text) for b in english] == [(b.language, b.text) for b in chinese]
    assert [(bool(b.not_run), b.exit_code, b.shown) for b in english] == [
        (bool(b.not_run), b.exit_code, b.shown) for b in chinese
    ]


def test_every_chinese_page_has_an_english_one() -> None:
    chinese = {ROOT / "README.zh-CN.md", *(ROOT / "docs/zh").rglob("*.md")}
    assert chinese == {chinese_page(page) for page in PAGES if chinese_page(page).exists()}
    assert len(chinese) >= 8


def test_the_number_of_blocks_is_the_one_known() -> None:
    blocks = [block for page in PAGES for block in read_blocks(page)]
    found = {language: sum(block.language == language for block in blocks) for language in ("bash", "python")}
    assert {**found, "not run": sum(bool(block.not_run) for block in blocks)} == COUNTS
