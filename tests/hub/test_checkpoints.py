"""Checkpoints pushed while training goes on: what arrives, that nothing waits for it, and what is said where
it fails."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import TOKEN, USER, Hub
from recipe_runs import run as recipe

from hftk.config import InputError, PublishConfig
from hftk.hub import checkpoints as pushing
from hftk.hub.checkpoints import CheckpointPusher, checkpoint_files
from hftk.training import checkpoints

REPO = f"{USER}/rivers"
SETTINGS = PublishConfig(repo=REPO, checkpoints="weights", license="mit")


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Any:
    """A function that makes a whole checkpoint of a step, as training would leave it."""

    def make(step: int) -> Path:
        staged, final = tmp_path / "checkpoints/.partial/x", tmp_path / f"checkpoints/checkpoint-{step}"
        staged.mkdir(parents=True)
        for file in finished.glob("*.json"):
            shutil.copy(file, staged)
        for file in finished.glob("*.safetensors"):
            shutil.copy(file, staged)
        (staged / "record.json").unlink()
        (staged / "optimizer.pt").write_bytes(b"moments")
        config = json.loads((staged / "config.json").read_text(encoding="utf-8"))
        (staged / "config.json").write_text(
            json.dumps({**config, "_name_or_path": str(tmp_path / "secret_folder/gpt2")})
        )
        (staged / "trainer_state.json").write_text(
            json.dumps({"log_history": [{"step": step, "eval_loss": 2.5}, {"step": step + 1, "loss": 1}]})
        )
        checkpoints.seal(staged, final, {"step": step})
        return final

    return make


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A Hub that takes what it is sent when ``open`` is set; ``fails`` holds what it raises instead."""
    made = SimpleNamespace(open=threading.Event(), sent=[], fails=None, begun=threading.Event())

    def send(files: Any, settings: Any, branch: str, message: str) -> None:
        made.begun.set()
        assert made.open.wait(60)
        content = {
            f.name: f.content if isinstance(f.content, bytes) else f.content.read_bytes() for f in files
        }
        if made.fails is not None:
            raise made.fails
        made.sent.append((message, content))

    monkeypatch.setattr(pushing, "send_to_branch", send)
    yield made
    made.open.set()


def test_training_does_not_wait_and_may_delete_what_is_on_its_way(network: Any, checkpoint: Any) -> None:
    pusher, first = CheckpointPusher(SETTINGS, ""), checkpoint(5)
    weights = {path.name: path.read_bytes() for path in first.glob("*.safetensors")}
    pusher(first)  # returns while the network is closed
    assert network.begun.wait(60) and not network.sent
    shutil.rmtree(first)
    assert checkpoints.checkpoints(first.parent.parent) == [], (
        "what is on its way is no checkpoint to resume from"
    )
    network.open.set()
    assert pusher.finish() == [f"checkpoints pushed: steps 5; the newest is revision checkpoints of {REPO}"]
    ((message, files),) = network.sent
    assert message == "Checkpoint of step 5" and weights and weights.items() <= files.items()
    assert not (first.parent / ".pushing").exists()


def test_of_those_that_wait_the_newest_alone_is_sent(network: Any, checkpoint: Any) -> None:
    pusher = CheckpointPusher(SETTINGS, "")
    pusher(checkpoint(1))
    assert network.begun.wait(60)
    for step in (2, 3, 4):
        pusher(checkpoint(step))
    network.open.set()
    pusher.finish()
    assert [message for message, _ in network.sent] == ["Checkpoint of step 1", "Checkpoint of step 4"]


def test_a_failure_is_told_once_and_again_at_the_end(
    network: Any, checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    network.fails = ConnectionError(f"cut; {TOKEN}")
    network.open.set()
    pusher = CheckpointPusher(SETTINGS, "")
    for step in (1, 2):
        pusher(checkpoint(step))
        pusher.finish()
    told = capsys.readouterr()
    assert (told.out + told.err).count(
        "was not pushed"
    ) == 1 and "training goes on, the next one is tried" in told.out + told.err
    network.fails = None
    pusher(checkpoint(3))
    lines = pusher.finish()
    assert lines[0].startswith("checkpoints pushed: steps 3;") and lines[1].startswith(
        "checkpoints that did not arrive: steps 1, 2: "
    )
    assert TOKEN not in told.out + told.err + "".join(lines)


def test_after_a_refusal_no_other_is_tried(
    network: Any, checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    network.fails = InputError("the repository is public")
    network.open.set()
    pusher = CheckpointPusher(SETTINGS, "")
    for step in (1, 2):
        pusher(checkpoint(step))
        pusher.finish()
    assert list(pusher.failed) == [1] and "no other is tried" in "".join(capsys.readouterr())


def test_where_there_are_no_hard_links_the_checkpoint_itself_is_sent(
    network: Any, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    pusher, made = CheckpointPusher(SETTINGS, ""), checkpoint(3)
    network.open.set()
    pusher(made)
    assert (
        pusher.finish()[0].startswith("checkpoints pushed: steps 3")
        and made.is_dir()
        and len(network.sent) == 1
    )


def test_weights_leave_without_the_optimizer_and_without_folders_of_this_machine(
    checkpoint: Any, tmp_path: Path
) -> None:
    made = checkpoint(5)
    files = {file.name: file.content for file in checkpoint_files(made, SETTINGS, "openai-community/gpt2")}
    assert (
        "optimizer.pt" not in files
        and "manifest.json" not in files
        and any(name.endswith(".safetensors") for name in files)
    )
    assert b"secret_folder" not in files["config.json"]
    card = files["README.md"].decode()
    assert (
        "validation loss 2.5000 at step 5" in card
        and "base_model: openai-community/gpt2" in card
        and "--resume" not in card
    )


def test_a_whole_checkpoint_is_whole_where_it_arrives(checkpoint: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    made, there = checkpoint(5), tmp_path / "elsewhere/checkpoint-5"
    there.mkdir(parents=True)
    for file in checkpoint_files(made, replace(SETTINGS, checkpoints="whole"), ""):
        (there / file.name).write_bytes(
            file.content if isinstance(file.content, bytes) else file.content.read_bytes()
        )
    assert (there / "optimizer.pt").read_bytes() == b"moments" and checkpoints.damage(there) == ""
    assert b"secret_folder" not in b"".join(path.read_bytes() for path in there.iterdir())
    for name in (".gitattributes", ".cache/huggingface/trees/x.json"):  # what a download leaves
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("{}")
    assert checkpoints.damage(there) == ""
    (there / "config.json").write_text("{}")
    assert "config.json" in checkpoints.damage(there), "the manifest still guards it"


def test_checkpoints_need_a_repository() -> None:
    assert [p.setting for p in PublishConfig(checkpoints="whole").problems()] == ["publish.checkpoints"]
    assert not list(SETTINGS.problems())


def words(texts: Path, output: Path, *more: str) -> list[str]:
    return [
        "--data.path",
        str(texts),
        "--model.vocab_size",
        "300",
        "--model.config.n_layer",
        "1",
        "--model.config.n_embd",
        "16",
        "--model.config.n_head",
        "2",
        "--train.max_steps",
        "4",
        "--train.save_steps",
        "2",
        "--train.precision",
        "fp32",
        "--eval.resamples",
        "0",
        "--output",
        str(output),
        *more,
    ]


def test_a_run_is_continued_elsewhere_from_what_it_pushed_to_the_same_weights(
    hub: Hub, client: Any, tmp_path: Path
) -> None:
    texts, here, there = tmp_path / "texts.txt", tmp_path / "here", tmp_path / "there"
    texts.write_text(
        "\n\n".join(f"The river number {n} is wide and slow." for n in range(60)), encoding="utf-8"
    )
    hub.fail("GET /api/models/.*", 500, times=1)
    done = client(
        code=recipe("gpt2_clm", words(texts, here, "--publish.repo", REPO, "--publish.checkpoints", "whole"))
    )
    assert "exit code 0" in done.out, done.err
    assert "checkpoints pushed: steps" in done.out and "the newest is revision checkpoints" in done.out, (
        done.out
    )
    repo = hub.repos[REPO]
    branch = repo.others["checkpoints"]
    assert (
        set(repo.others) == {"checkpoints"} and "optimizer.pt" in branch and "optimizer.pt" not in repo.files
    )
    assert (
        "Checkpoint of step 4" in repo.commits and "report.html" in repo.files and "report.html" not in branch
    )
    used = client(
        code=(
            f"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained({REPO!r},"
            " revision='checkpoints')"
        )
    )
    assert used.code == 0, used.err
    early = next(
        sha for sha, files in repo.history.items() if b'"step": 2' in files.get("manifest.json", b"")
    )
    kept = tmp_path / "checkpoint-2"
    got = client(
        code=(
            f"from huggingface_hub import snapshot_download; snapshot_download({REPO!r}, revision={early!r},"
            f" local_dir={str(kept)!r})"
        )
    )
    assert got.code == 0, got.err
    again = client(code=recipe("gpt2_clm", words(texts, there, "--resume", str(kept))))
    assert "exit code 0" in again.out and "2 of 4 steps done" in again.out, again.out + again.err
    assert (there / "model.safetensors").read_bytes() == repo.files["model.safetensors"]


def test_a_hub_that_fails_does_not_fail_the_training(hub: Hub, client: Any, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "\n\n".join(f"The river number {n} is wide and slow." for n in range(60)), encoding="utf-8"
    )
    hub.fail("commit/checkpoints", 500)
    done = client(
        code=recipe(
            "gpt2_clm",
            words(texts, tmp_path / "out", "--publish.repo", REPO, "--publish.checkpoints", "weights"),
        )
    )
    assert "exit code 0" in done.out and "Published:" in done.out, done.err
    told = done.out + done.err
    assert (
        told.count("was not pushed") == 1
        and "checkpoints that did not arrive" in done.out
        and "Traceback" not in told
    )
    assert (tmp_path / "out/model.safetensors").read_bytes() == hub.repos[REPO].files["model.safetensors"]
