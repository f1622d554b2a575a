"""A recipe on two hosts, played by network namespaces: it works, and the end of one host ends the other soon,
in plain words."""

import importlib.util
import json
from pathlib import Path

import pytest

import hftk

ROOT = Path(hftk.__file__).parents[1]
TOY = str(ROOT / "tests" / "launch" / "toy_recipe.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


two_hosts = load(ROOT / "benchmarks" / "two_hosts.py")
MISSING = two_hosts.missing()
pytestmark = [pytest.mark.launch, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
LOST = {
    "killed": "ended without a word (killed, or out of memory?)",
    "cut": "cannot be reached any more (no answer for {} s",
}


@pytest.mark.parametrize("fault", ["killed", "cut"])
def test_a_recipe_that_waits_is_ended_when_the_other_host_is_gone(tmp_path, fault):
    """Its main thread sleeps, as it would in a collective operation that never ends."""
    command = [TOY, "--model.name", "wait_long", "--train.peer_timeout", "4"]
    seen = two_hosts.fail(
        fault, "b", tmp_path, command, ready=lambda folder: (folder / "out" / "predictions.jsonl").exists()
    )
    check(seen, "process 1 (on node-b)", LOST[fault].format(4), "there is no checkpoint yet", most=40)


@pytest.mark.slow
@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("host", ["a", "b"])
@pytest.mark.parametrize("fault", ["killed", "cut"])
def test_gpt2_ends_in_under_a_minute_and_both_hosts_go_on_from_there(tmp_path, fault, host, per_host):
    seen = two_hosts.fail(fault, host, tmp_path, per_host=per_host)
    check(seen, LOST[fault].format(30), "the last checkpoint is out/checkpoints/checkpoint-", most=60)
    again = two_hosts.resume(tmp_path, per_host=per_host)
    assert "continuing from" in again["said"]["a"] and again["record"]["processes"] == 2 * per_host
    assert again["record"]["history"][-1]["step"] == 60
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("done", 0)


@pytest.mark.slow
def test_hosts_that_share_no_folder_train_and_go_on_too(tmp_path):
    outputs = {"a": str(tmp_path / "out"), "b": str(tmp_path / "b" / "out")}
    seen = two_hosts.fail("killed", "b", tmp_path, outputs=outputs)
    assert "is not seen on node-b: all is written on the machine of the main process" in seen["said"]["a"]
    check(seen, "process 1 (on node-b)", "the last checkpoint is out/checkpoints/checkpoint-", most=60)
    again = two_hosts.resume(tmp_path, outputs=outputs)
    assert "continuing from" in again["said"]["a"] and again["record"]["history"][-1]["step"] == 60
    assert not list((tmp_path / "b").rglob("checkpoint-*"))


def check(seen, *words, most):
    assert all(seconds < most for seconds in seen["seconds"].values()), seen["seconds"]
    status = seen["status"]
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    for word in (*words, "--machine_rank", "--resume auto"):
        assert word in status["message"]
    for name in seen["seconds"]:
        assert "hftk: failed: " in seen["said"][name]
