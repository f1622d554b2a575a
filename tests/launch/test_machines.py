import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hftk

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
    common = {
        **os.environ,
        **group,
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("in_two_machines.py")), str(folder), disk]
    started = [subprocess.Popen(command, env={**common, "RANK": rank, "GROUP_RANK": rank}) for rank in "01"]
    assert [process.wait(300) for process in started] == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.launch
def test_an_output_folder_that_a_machine_does_not_see_is_an_error_on_all(tmp_path):
    main, other = two_machines(tmp_path, "apart")
    assert f"which {socket.gethostname()} does not see" in main == other
    assert "choose an --output on a disk that all machines share" in main


@pytest.mark.slow
def test_an_output_folder_that_all_machines_see_is_taken(tmp_path):
    assert two_machines(tmp_path, "shared") == ["", ""]
