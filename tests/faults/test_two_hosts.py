"""A recipe on two hosts, played by network namespaces: it works, and the end of one host ends the other soon, in plain words."""

import importlib.util
import json
from pathlib import Path

import pytest

import hftk.config

ROOT = Path(hftk.config.__file__).parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


two_hosts = load(ROOT / "benchmarks" / "two_hosts.py")
MISSING = two_hosts.missing()
pytestmark = [pytest.mark.launch, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


def test_killing_one_host_ends_the_other_at_once_and_both_go_on_from_there(tmp_path):
    seen = two_hosts.fail("killed", "b", tmp_path)
    check(seen, tmp_path, "process 1 (on node-b) ended without a word", most=30)
    again = two_hosts.resume(tmp_path)
    assert "continuing from" in again["said"]["a"] and again["record"]["processes"] == 2
    assert [entry["step"] for entry in again["record"]["history"]][-1] == 60
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("done", 0)


@pytest.mark.slow
@pytest.mark.parametrize("per_host", [1, 2])
@pytest.mark.parametrize("host", ["a", "b"])
@pytest.mark.parametrize("fault", ["killed", "cut"])
def test_every_fault_of_a_host_ends_the_other_in_under_a_minute(tmp_path, fault, host, per_host):
    seen = two_hosts.fail(fault, host, tmp_path, per_host=per_host)
    numbers = {("a", 1): "the main process", ("a", 2): "", ("b", 1): "process 1 (on node-b)", ("b", 2): "(on node-b)"}[
        host, per_host
    ]
    if fault == "killed":
        check(seen, tmp_path, numbers, "ended without a word", most=30)
    else:
        check(seen, tmp_path, "cannot be reached any more (no answer for 30 s", most=60)
    again = two_hosts.resume(tmp_path, per_host=per_host)
    assert "continuing from" in again["said"]["a"]


def check(seen, folder, *words, most):
    assert all(seconds < most for seconds in seen["seconds"].values()), seen["seconds"]
    status = seen["status"]
    assert (status["state"], status["exit_code"], status["processes"]) == ("failed", 1, status["processes"])
    for word in (*words, "the last checkpoint is out/checkpoints/checkpoint-", "--machine_rank", "--resume auto"):
        assert word in status["message"]
    for name in seen["seconds"]:
        assert "hftk: failed: " in seen["said"][name]
