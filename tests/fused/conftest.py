import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hftk import console
from hftk.fused import building

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def ops() -> object:
    """The compiled operators, where there is a compiler."""
    try:
        return building.library()
    except building.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    console.forget()
    yield
    torch.set_num_threads(threads)
    console.forget()
