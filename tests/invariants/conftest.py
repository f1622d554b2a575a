import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_runs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet_threads():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What ``in_two_processes.py`` found: one launch serves all tests of this folder that compare with two processes."""
    import torch

    folder = tmp_path_factory.mktemp("two_processes")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/two_processes.yaml"),
        str(Path(__file__).with_name("in_two_processes.py")), str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(folder / "found.pt", weights_only=False)
