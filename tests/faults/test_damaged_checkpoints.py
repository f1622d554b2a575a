"""Damage to any one file of the newest checkpoint of a real run is found and named; the run goes on from the
one before, to the same weights."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

import adapted_runs

from hftk.config import InputError, override
from hftk.training import checkpoints

pytestmark = pytest.mark.usefixtures("tiny_runs")

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "bert": ("bert", {}),
    "t5": ("t5", {}),
    "lora": ("gpt2", {"adapter": {"method": "lora", "rank": 2}}),
}
EXPECTED = {
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "hftk.json",
    "config.json",
    "tokenizer.json",
    "manifest.json",
}


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1 << len(data) % 8
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARM: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped": flip_a_bit,
    "deleted": Path.unlink,
    "a folder": replace_by_folder,
}
REASONS = (
    "bytes instead of",
    "SHA-256 differs",
    "is missing",
    "is no file",
    "cannot be read",
    "has no manifest",
)


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any, dict[str, torch.Tensor]]:
    """A finished run with checkpoints of steps 2 and 4: kind of model, settings, trained weights."""
    kind, model = RUNS[request.param]
    if model:
        pytest.importorskip("peft")
    train = {"max_steps": 4, "save_steps": 2, "eval_steps": 2}
    config = adapted_runs.make_config(
        kind, tmp_path_factory.mktemp(request.param), None, model=model, train=train
    )
    return kind, config, adapted_runs.trained_weights(adapted_runs.fit(kind, config)[1].model)


@pytest.mark.parametrize("harm", HARM)
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_chosen(run: Any, harm: str) -> None:
    _, config, _ = run
    before, newest = checkpoints.checkpoints(config.output)
    files = [path for path in newest.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    adapter = "adapter_model.safetensors" in names
    assert names >= (
        EXPECTED - {"model.safetensors", "config.json"} | {"adapter_config.json"} if adapter else EXPECTED
    )
    for path in files:
        name, whole = path.relative_to(newest).as_posix(), path.read_bytes()
        HARM[harm](path)
        chosen, (told,) = checkpoints.choose("auto", config.output)
        assert chosen == before
        assert str(newest) in told and (
            name in told or (path.name == checkpoints.MANIFEST and "manifest" in told)
        )
        assert any(reason in told for reason in REASONS), told
        with pytest.raises(InputError, match=f"use --resume {before}"):
            checkpoints.choose(str(newest), config.output)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
    assert checkpoints.choose("auto", config.output) == (newest, [])


def test_the_run_goes_on_from_the_one_before_to_the_same_weights(
    run: Any, tmp_path: Path, capsys: Any
) -> None:
    kind, config, weights = run
    shutil.copytree(config.output, tmp_path / "run")
    config = override(config, {"output": str(tmp_path / "run"), "resume": "auto"})
    newest = checkpoints.checkpoints(config.output)[-1]
    flip_a_bit(newest / "optimizer.pt")
    harmed = (newest / "optimizer.pt").read_bytes()
    again = adapted_runs.trained_weights(adapted_runs.fit(kind, config)[1].model)
    told = capsys.readouterr().out
    assert (
        "checkpoint-4 is damaged: optimizer.pt is not what was written" in told
        and "(2 of 4 steps done)" in told
    )
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)
    kept = newest.with_name(f"damaged-{newest.name}")
    assert (kept / "optimizer.pt").read_bytes() == harmed, "left to its owner"
    assert not checkpoints.damage(newest), "and written anew"
