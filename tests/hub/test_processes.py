"""Publishing on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub


@pytest.mark.launch
@pytest.mark.parametrize("fails", [False, True])
def test_one_process_sends_and_both_hear_how_it_ended(
    hub: Hub, finished: Path, tmp_path: Path, fails: bool
) -> None:
    if fails:
        hub.fail("commit", 503)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    script = str(Path(__file__).with_name("in_two_processes.py"))
    done = subprocess.run(
        [sys.executable, *command, script, str(finished)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = (
        [(tmp_path / f"said_{rank}.txt").read_text() for rank in (0, 1)]
        if done.returncode == 0
        else done.stderr
    )
    assert said == (
        ["failed: the push to somebody/rivers did not finish"[:40]] * 2
        if fails
        else [f"{hub.url}/somebody/rivers"] * 2
    )
    assert hub.count("POST /api/models/.*/commit") == 1 and TOKEN not in done.stdout + done.stderr
