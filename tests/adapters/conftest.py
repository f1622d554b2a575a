import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hftk import console

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")
sys.path.insert(0, str(Path(__file__).parent))  # adapted_runs


@pytest.fixture(autouse=True)
def _no_earlier_choices() -> Iterator[None]:
    console.clear_notes()
    yield
    console.clear_notes()


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory):
    """Kind of model to the folder of a small pre-trained one, made when first asked for."""
    from adapted_runs import make_base

    made: dict[str, str] = {}

    def base(kind: str) -> str:
        if kind not in made:
            made[kind] = make_base(kind, tmp_path_factory.mktemp("base") / kind)
        return made[kind]

    return base
