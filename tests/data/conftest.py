"""Fake tasks (columns only) and the folder of shared data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from hftk.config import InputError
from hftk.task import Column


@dataclass(frozen=True)
class FakeTask:
    columns: Mapping[str, Column]


@pytest.fixture
def lm() -> FakeTask:
    return FakeTask({"text": Column(usual_names=("text", "content", "document"))})


@pytest.fixture
def classification() -> FakeTask:
    return FakeTask(
        {
            "text": Column(usual_names=("text", "sentence", "sentence1")),
            "text_pair": Column(usual_names=("text_pair", "sentence2"), required=False),
            "label": Column(usual_names=("label", "labels"), kind="label", identity=False),
        }
    )


@pytest.fixture
def translation() -> FakeTask:
    return FakeTask(
        {"source": Column(usual_names=("source",)), "target": Column(usual_names=("target",), identity=False)}
    )


@pytest.fixture
def shared() -> Path:
    folder = Path(os.environ.get("HFTK_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no shared data sets (HFTK_SHARED_DATA)")
    return folder


@pytest.fixture
def refusal() -> Callable[..., str]:
    """Call something that must raise InputError, and return its message."""

    def call(function: Callable[..., object], *args: object, **kwargs: object) -> str:
        with pytest.raises(InputError) as caught:
            function(*args, **kwargs)
        return str(caught.value)

    return call
