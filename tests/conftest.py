"""For every test: no network, and one thread, since small tensors only wait for a second one."""

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parent))  # for small_writers


@pytest.fixture
def tiny_runs():
    """For tests that train: no search for garbage among what is there already. Trainer begins with
    ``gc.collect()``, which takes more time than five steps of a tiny model."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def alone(monkeypatch):
    """This process by itself, with nothing joined or remembered."""
    from accelerate.state import AcceleratorState

    from hftk import launch
    from hftk.launch import launcher

    for name in (*launcher.RANK, *launcher.WORLD_SIZE, *launcher.LOCAL_RANK, "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launcher, "find_launcher", lambda: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    launch.launched.cache_clear()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    launch.launched.cache_clear()
