"""``hftk env`` tells what a launch really gave, and stops where it is less than was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hftk.cli import main

ROOT = Path(__file__).parents[2]


def test_one_process_is_told_with_its_device_threads_memory_and_versions(alone, capsys):
    import torch

    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    device = "cpu" if not torch.accelerator.is_available() else torch.accelerator.current_accelerator().type
    assert (found["processes"], found["machines"], found["strategy"], found["backend"]) == (
        1,
        1,
        "none",
        None,
    )
    assert found["device"] == device and found["ranks"][0]["threads"] == torch.get_num_threads()
    assert 0 < found["ranks"][0]["free_bytes"] <= found["ranks"][0]["memory_bytes"]
    assert {"hftk", "torch", "transformers", "accelerate"} <= set(found["versions"])
    assert {"bitsandbytes", "flash-attn", "deepspeed"} <= set(found["optional"])
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert (
        "1 on 1 machine\n" in shown and "train.precision auto: " in shown and os.uname().nodename not in shown
    )


def test_a_launch_config_that_would_not_be_heeded_is_told(alone, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["env"]) == 2
    assert "expected fsdp_version: 2" in capsys.readouterr().err


def launched_env(*options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("ACCELERATE_USE_CPU", None)
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "hftk", "env"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.launch
def test_two_processes_are_told_once():
    done = launched_env("--config_file", "recipes/accelerate/two_processes.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = dict(
        line.split(maxsplit=1)
        for line in done.stdout.splitlines()
        if not line.startswith(("started", "rank"))
    )
    assert (lines["processes"], lines["strategy"], lines["backend"]) == ("2 on 1 machine", "ddp", "gloo")
    assert "accelerate, asked for 2 processes" in done.stdout and done.stdout.count("rank ") == 2


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cpu", "--num_processes", "2"], "expected 2 processes"),
        (["--config_file", "recipes/accelerate/fsdp2.yaml", "--num_processes", "2"], "expected GPUs"),
        (["--config_file", "recipes/accelerate/ddp.yaml", "--num_processes", "2"], "expected GPUs"),
    ],
)
def test_less_than_was_asked_for_is_told(options, said):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has what is asked for")
    done = launched_env(*options)
    assert done.returncode and said in done.stderr
