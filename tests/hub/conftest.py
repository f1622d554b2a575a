"""A Hub on loopback, a client process, and the folder of a finished run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hftk.models.tokenizers import train_byte_bpe
from hftk.reports.record import save_record

if TYPE_CHECKING:
    from hub_server import Hub

for place in (Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[1] / "reports"):
    sys.path.insert(0, str(place))  # recipe_runs, hub_server, made_up_runs

TEXTS = ["The river is wide and slow.", "once upon a time there was a river"] * 5


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    from hub_server import Hub

    with Hub() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub) -> Hub:
    """The Hub, empty, with nothing wrong."""
    for kept in (server.repos, server.blobs, server.calls, server.faults):
        kept.clear()
    return server


@pytest.fixture(scope="session")
def client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., SimpleNamespace]]:
    """A function that runs a command of hftk (words) or Python (``code=``) in the client process, logged in
    unless told otherwise."""
    from hub_server import TOKEN

    home = tmp_path_factory.mktemp("client")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE_"))}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    log = home / "stderr.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("client.py"))],
            cwd=home,
            env=environment,
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin is not None and process.stdout is not None

    def call(*words: Any, code: str | None = None, token: str | None = TOKEN) -> SimpleNamespace:
        asked: dict[str, Any] = {"argv": [str(word) for word in words]} if code is None else {"code": code}
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({**asked, "env": {"HF_TOKEN": token}}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, log.read_text()
        result = SimpleNamespace(**json.loads(line))
        assert TOKEN not in result.out + result.err + log.read_text(), "a token is never printed"
        return result

    yield call
    process.stdin.close()
    process.wait(timeout=20)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two shards with its tokenizer, record, and all that stays at home; not to be changed."""
    from made_up_runs import gpt2_run

    folder = tmp_path_factory.mktemp("runs") / "gpt2_clm"
    tokenizer = train_byte_bpe(TEXTS, 300)
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    record = gpt2_run(30)
    save_record(replace(record, model={**record.model, "context": config.n_positions}), folder)
    (folder / "checkpoints/checkpoint-3").mkdir(parents=True)
    for name in (
        "checkpoints/checkpoint-3/optimizer.pt",
        "predictions.jsonl",
        ".generated.jsonl",
        "status.json",
        "training_args.bin",
        "run.lock",
        "notes.txt",
    ):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to change at will."""
    return Path(shutil.copytree(finished, tmp_path / "gpt2_clm"))
