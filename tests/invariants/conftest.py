import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_runs


@pytest.fixture(autouse=True)
def always_tiny_runs(tiny_runs):
    yield


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """What ``in_two_processes.py`` found: one launch serves all tests of this folder that compare with two
    processes."""
    import small_runs
    import torch

    folder = tmp_path_factory.mktemp("two_processes")
    small_runs.launch_two("in_two_processes.py", str(folder), cwd=folder)
    return torch.load(folder / "found.pt", weights_only=False)
