"""Generation killed in the middle and started again writes the file of a run that was not killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
import torch
from small_writers import make
from hftk import generation
from hftk.config import GenerationSettings
from hftk.tokenizers import train_byte_bpe

torch.set_num_threads(1)
path, pause, kind, beams = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
texts = [f"{word} {i}" for i in range(8) for word in ("Hund", "自行车", "бежит")]
tokenizer = train_byte_bpe(texts, 300)
model = make(kind, vocabulary=len(tokenizer), end=tokenizer.eos_token_id)
inner = generation._run
def slow(job, batch):
    time.sleep(pause)
    return inner(job, batch)
generation._run = slow
how = GenerationSettings(max_new_tokens=8, num_beams=beams)
generation.generate_to_file(path, model, tokenizer, texts, how, columns={"source": texts}, batch_size=4)
"""


def start(path: Path, pause: float, how: list[str]) -> subprocess.Popen[bytes]:
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", PROGRAM, str(path), str(pause), *how]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    )


def kill_after(process: subprocess.Popen[bytes], partial: Path, lines: int) -> None:
    """SIGKILL once ``partial`` has more than this many lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if partial.exists() and partial.read_bytes().count(b"\n") > lines:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.launch
def test_generation_killed_twice_ends_in_the_same_file(tmp_path: Path) -> None:
    how = ["marian", "4"]  # four beams
    straight, killed = tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    partial = killed.with_name("killed.jsonl.partial")
    assert start(straight, 0, how).wait() == 0
    for lines in (4, 12):
        kill_after(start(killed, 0.3, how), partial, lines)
        assert partial.exists() and not killed.exists()
    kept = partial.read_bytes()
    assert kept.count(b"\n") > 12
    assert start(killed, 0, how).wait() == 0
    assert killed.read_bytes() == straight.read_bytes() and straight.read_bytes().count(b"\n") == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "straight.jsonl"]
