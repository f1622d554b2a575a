import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hftk
from hftk.launch import machines

ROOT = Path(hftk.__file__).parents[1]


def two_machines(folder, disk):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    common = {**os.environ, **group, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("in_two_machines.py")), str(folder), disk]
    started = [subprocess.Popen(command, env={**common, "RANK": rank, "GROUP_RANK": rank}) for rank in "01"]
    assert [process.wait(300) for process in started] == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.launch
def test_a_machine_that_does_not_see_the_checkpoint_gets_its_files(tmp_path):
    main, other = two_machines(tmp_path, "apart")
    assert main["same"] and not other["same"] and other["name"] == "checkpoint-4"
    assert main["files"] == other["files"] and set(main["files"]) == {
        "manifest.json",
        "model.safetensors",
        "empty",
        "parts/one",
    }
    assert not (tmp_path / "machine1" / "out").exists()
    for strategy in ("fsdp", "deepspeed"):
        assert f"is not seen on {socket.gethostname()}" in main["problems"][strategy] == other["problems"][strategy]
    assert main["problems"]["ddp"] == "" and any(
        "written on the machine of the main process" in line for line in main["noted"]
    )


@pytest.mark.slow
def test_machines_that_share_a_disk_copy_nothing(tmp_path):
    for found in two_machines(tmp_path, "shared"):
        assert found["same"] and not any(found["problems"].values()) and found["noted"] == []


def test_a_single_process_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert machines.bring(tmp_path) == tmp_path and machines.bring(None) is None
