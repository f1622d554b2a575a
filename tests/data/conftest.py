"""Fake tasks (columns alone; rows stay as they are) and the folder of shared data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hftk.config import InputError
from hftk.task import Column, Prepared

if TYPE_CHECKING:
    from hftk.task import Place, Table


@dataclass(frozen=True)
class FakeTask:
    columns: Mapping[str, Column]

    def prepare(
        self, tables: Mapping[str, Table], places: Mapping[str, Sequence[Place]], columns: Mapping[str, str]
    ) -> Prepared:
        return Prepared(tables=tables)


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
