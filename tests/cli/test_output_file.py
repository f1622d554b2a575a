"""No command writes over its input, a run's files or what it did not write; devices and pipes are written
to."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hftk.models.tokenizers import train_byte_bpe

sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
from made_up_runs import gpt2_run

from hftk.reports.record import save_record

LONG = "n" * 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with the record of a run, in ``run``; another run in ``other``; rows in ``d.jsonl``."""
    root = tmp_path_factory.mktemp("made")
    texts = ["one small text", "another small text"] * 20
    tokenizer = train_byte_bpe(texts, 300)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    for name in ("run", "other"):
        GPT2LMHeadModel(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        save_record(gpt2_run(), root / name)
        (root / name / "predictions.jsonl").write_text('{"index": 0, "prediction": "x"}\n')
    (root / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:2]))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


COMMANDS = {
    "predict": ("predict", "run", "--file", "d.jsonl", "--max_new_tokens", "2", "--output"),
    "evaluate": ("evaluate", "run", "--data", "d.jsonl", "--eval.resamples", "0", "--output"),
    "report": ("report", "run", "--output"),
    "export": ("export", "run", "--format", "int8", "--data", "d.jsonl", "--output"),
}
"""Command to its words before a path to write to."""
INPUTS = {"predict": "d.jsonl", "evaluate": "d.jsonl", "report": "run/record.json", "export": "d.jsonl"}
READ = [
    ("predict", "PATH"),
    ("predict", "run", "--file", "PATH"),
    ("evaluate", "PATH", "--data", "d.jsonl"),
    ("evaluate", "run", "--data", "PATH"),
    ("report", "PATH"),
    ("report", "run", "PATH"),
    ("compare", "PATH", "run"),
    ("compare", "run", "PATH"),
    ("export", "PATH", "--output", "new"),
    ("export", "run", "--format", "int8", "--data", "PATH", "--output", "new"),
    ("push", "PATH", "--repo", "a/b"),
    ("plan", "PATH"),
    ("plan", "gpt2_clm", "--model.name", "PATH"),
    ("plan", "gpt2_clm", "--data.path", "PATH"),
    ("plan", "gpt2_clm", "--config", "PATH"),
    ("new", "gpt2_clm", "PATH.py"),
]
"""Every path that a command reads, and the file of ``hftk new``."""


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def forbidden(place: Path, command: str) -> dict[str, str]:
    (place / "notes.txt").write_text("mine")
    for name, target in {
        "to_run": "other/model.safetensors",
        "to_notes": "notes.txt",
        "circle": "circle",
    }.items():
        (place / name).symlink_to(place / target)
    os.link(place / INPUTS[command], place / "same_file")
    return {
        "an input": INPUTS[command],
        "an input by another name": "same_file",
        "another run's file": "other/predictions.jsonl",
        "a file that a run may write": "run/tokenizer.model",
        "weights": "run/model.safetensors",
        "a link into a run": "to_run",
        "a link to a file": "to_notes",
        "a circle of links": "circle",
        "a file of mine": "notes.txt",
        "a folder": "other",
        "a long name": LONG,
        "a long folder": f"{LONG}/x",
        "nobody's home": "~nosuchuser/x",
        "below a file": "notes.txt/x",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_the_commands_own_is_never_written_over(
    hftk: Any, place: Path, monkeypatch: Any, command: str
) -> None:
    monkeypatch.chdir(place)
    for kind, path in forbidden(place, command).items():
        before = contents(place)
        result = hftk(*COMMANDS[command], path)
        assert result.code == 2 and "--output: " in result.err and "Traceback" not in result.err, (
            kind,
            result.err,
        )
        assert contents(place) == before, kind


@pytest.mark.parametrize("command", ("predict", "evaluate", "report"))
def test_overwrite_replaces_a_file_of_mine_and_neither_an_input_nor_a_run(
    hftk: Any, place: Path, monkeypatch: Any, command: str
) -> None:
    monkeypatch.chdir(place)
    (place / "notes.txt").write_text("mine")
    for path in (INPUTS[command], "other/predictions.jsonl", "other/config.json"):
        before = contents(place)
        assert hftk(*COMMANDS[command], path, "--overwrite").code == 2
        assert contents(place) == before
    for words in (
        ("notes.txt", "--overwrite"),
        ("notes.txt",),
    ):  # once it is its own, nothing needs to be said
        result = hftk(*COMMANDS[command], *words)
        assert result.code == 0 and (place / "notes.txt").stat().st_size > 10, result.err


@pytest.mark.parametrize("command", ("predict", "evaluate", "report"))
def test_devices_and_pipes_are_written_to_and_links_are_followed(
    hftk: Any, place: Path, monkeypatch: Any, command: str
) -> None:
    monkeypatch.chdir(place)
    assert hftk(*COMMANDS[command], "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    os.mkfifo(place / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((place / "pipe").read_text()))
    reader.start()
    assert hftk(*COMMANDS[command], "pipe").code == 0
    reader.join(10)
    assert (place / "pipe").is_fifo() and len(read[0]) > 10
    (place / "link").symlink_to("new_file")
    assert hftk(*COMMANDS[command], "link").code == 0
    assert (
        (place / "link").is_symlink() and (place / "new_file").read_text() == read[0]
    ) or command == "evaluate"


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_a_path_that_cannot_be_ends_in_a_sentence(
    hftk: Any, stdin: Any, place: Path, monkeypatch: Any, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(place)
    device = (
        () if words[0] in ("plan", "new") else ("/dev/null",)
    )  # these read no data, and write only what is new
    for path in (LONG, f"{LONG}/x", "~nosuchuser", "~nosuchuser/x", *device):
        stdin(b"a prompt\n")
        before = contents(place)
        result = hftk(*(word.replace("PATH", path) for word in words))
        assert result.code == 2 and "Traceback" not in result.err, (path, result.err)
        assert contents(place) == before
