"""No process of a run outlives its launcher."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import hftk
from hftk.launch import launcher

ROOT = Path(hftk.__file__).parents[1]
TOY = ROOT / "tests" / "launch" / "toy_recipe.py"
TWO = ROOT / "recipes" / "accelerate" / "two_processes.yaml"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "accelerate, one process": [
        *ACCELERATE,
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ],
    "accelerate, two processes": [*ACCELERATE, "--config_file", str(TWO)],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}
pytestmark = [pytest.mark.launch, pytest.mark.skipif(os.name == "nt", reason="SIGKILL")]


def started(command, folder, act):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            [*command, str(TOY), "--model.name", act], cwd=folder, env=environment, stdout=said, stderr=said
        )


def wait_until(condition, seconds, folder):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (folder / "said.txt").read_text()[-2000:]
        time.sleep(0.02)


def left_of(children, seconds):
    """The processes that have not ended by themselves after so long; they are killed."""
    _, alive = psutil.wait_procs(children, timeout=seconds)
    for child in alive:
        child.kill()
    return alive


@pytest.mark.parametrize("command", LAUNCHERS.values(), ids=LAUNCHERS.keys())
def test_nothing_is_left_when_the_launcher_is_killed(tmp_path, command):
    process = started(command, tmp_path, "wait")
    wait_until((tmp_path / "out" / "predictions.jsonl").exists, 300, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    expected = 1 if "one_process" in str(command) or "--num_processes" in command else 2
    assert len([child for child in children if str(TOY) in child.cmdline()]) == expected
    process.kill()
    process.wait()
    assert left_of(children, 60) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHERS.values(), ids=LAUNCHERS.keys())
@pytest.mark.parametrize("after", [0.0, 0.2, 1.0])
def test_nothing_is_left_when_it_is_killed_while_its_processes_begin(tmp_path, command, after):
    process = started(command, tmp_path, "wait")
    mine = psutil.Process(process.pid)
    wait_until(
        lambda: any(str(TOY) in child.cmdline() for child in mine.children(recursive=True)), 120, tmp_path
    )
    time.sleep(after)
    children = mine.children(recursive=True)
    process.kill()
    process.wait()
    assert left_of(children, 90) == []


class Parent:
    def __init__(self, pid, name):
        self.pid, self._name = pid, name

    def parent(self):
        return self

    def name(self):
        return self._name


@pytest.mark.parametrize(
    ("pid", "name", "variable", "orphan"),
    [
        (1, "bash", "TORCHELASTIC_RUN_ID", True),
        (7, "systemd", "ACCELERATE_MIXED_PRECISION", True),
        (7, "bash", "TORCHELASTIC_RUN_ID", False),
        (1, "bash", "SOMETHING_ELSE", False),
    ],
)
def test_a_process_whose_launcher_is_gone_before_it_looks_is_an_orphan(
    monkeypatch, pid, name, variable, orphan
):
    for known in launcher._SET_BY_LAUNCHERS:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(psutil, "Process", lambda: Parent(pid, name))
    assert launcher.is_orphan(None) == orphan
    assert not launcher.is_orphan(launcher.Launcher(name="torchrun", pid=3))
