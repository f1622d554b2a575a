import gc

import pytest


@pytest.fixture
def tiny_runs():
    """For tests that train: one thread (two wait for each other beside a busy neighbour), and no search for garbage among what
    is there already, for which Trainer spends more time than on five steps of a tiny model."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
