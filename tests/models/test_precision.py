"""The faster arithmetic is found out, with a reason, and never guessed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hftk.config import InputError
from hftk.models import precision
from hftk.models.precision import autocast, choose_precision

CPU = torch.device("cpu")


def working_for(seconds: dict[bool, float]) -> Any:
    """A micro-batch that takes so long under autocast (True) and without."""
    return lambda: time.sleep(seconds[torch.is_autocast_enabled("cpu")])


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_flags(found: set[str] | None) -> None:
        monkeypatch.setattr(precision, "cpu_flags", lambda: found)

    return set_flags


def test_what_is_asked_for_is_taken() -> None:
    assert choose_precision("fp32", CPU) == ("fp32", "as asked")
    assert choose_precision("bf16", CPU) == ("bf16", "as asked")
    assert choose_precision("fp16", torch.device("cuda"))[0] == "fp16"


def test_fp16_without_a_gpu_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"fp16 needs a GPU\n.*--train\.precision auto, bf16 or fp32"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("found", [{"sse2", "avx512_bf16"}, None])
def test_auto_takes_what_is_measured_to_be_faster(flags: Any, found: set[str] | None) -> None:
    flags(found)
    chosen, reason = choose_precision("auto", CPU, working_for({True: 0.001, False: 0.02}))
    assert chosen == "bf16" and reason.startswith("measured on one micro-batch: fp32 ") and "bf16" in reason
    assert choose_precision("auto", CPU, working_for({True: 0.02, False: 0.001}))[0] == "fp32"


def test_auto_does_not_measure_where_the_processor_has_no_bf16(flags: Any) -> None:
    flags({"sse2", "avx2"})

    def never() -> None:
        raise AssertionError("measured")

    assert choose_precision("auto", CPU, never) == ("fp32", "this processor has no bf16 instructions")


def test_auto_without_anything_to_measure_is_fp32(flags: Any) -> None:
    flags({"amx_bf16"})
    assert choose_precision("auto", CPU) == ("fp32", "nothing to measure with")


@pytest.mark.parametrize(("supported", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_on_a_gpu_bf16_is_taken_where_it_is_in_hardware(
    monkeypatch: pytest.MonkeyPatch, supported: bool, chosen: str
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    found, reason = choose_precision("auto", torch.device("cuda"))
    assert found == chosen and "this GPU" in reason


def test_on_other_devices_nothing_is_promised() -> None:
    assert choose_precision("auto", torch.device("mps")) == (
        "fp32",
        "bf16 autocast is not established on mps",
    )


def test_the_warm_up_run_is_not_timed(flags: Any) -> None:
    flags(None)
    calls = {True: 0, False: 0}

    def first_is_slow() -> None:
        on = torch.is_autocast_enabled("cpu")
        calls[on] += 1
        time.sleep(0.05 if on and calls[on] == 1 else 0.001 if on else 0.005)

    assert choose_precision("auto", CPU, first_is_slow)[0] == "bf16"


def test_autocast_computes_products_in_bf16_and_fp32_changes_nothing() -> None:
    a = torch.ones(2, 2)
    with autocast("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 avx2\nbugs\t: none", {"fpu", "amx_bf16", "avx2"}),
        ("Features\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}),
        ("processor: 0\n", None),
    ],
)
def test_processor_flags_are_read_from_linux(
    monkeypatch: pytest.MonkeyPatch, text: str, found: set[str] | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: text)
    assert precision.cpu_flags() == found


def test_a_system_that_does_not_tell_its_flags_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **kwargs: Any) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert precision.cpu_flags() is None
