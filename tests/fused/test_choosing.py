"""When a run has fused layers, and what it says where it cannot have them."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from small_models import make

from hftk import console, fused
from hftk.config import InputError
from hftk.fused import building, installing

CPU = torch.device("cpu")


def chosen(model, asked="auto", **changed):
    given = {"device": CPU, "precision": "fp32", "steps": installing.STEPS, "other": ""} | changed
    return fused.chosen(asked, model, **given)


def is_fused(context) -> bool:
    return not isinstance(context, contextlib.nullcontext)


def test_auto_is_for_runs_that_are_worth_compiling(ops):
    model = make("marian")
    assert is_fused(chosen(model))
    assert not is_fused(chosen(model, steps=installing.STEPS - 1))
    assert is_fused(chosen(model, "always", steps=1))
    assert not is_fused(chosen(model, "never"))


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"device": torch.device("cuda")}, "they are for CPUs, and this run is on cuda"),
        ({"precision": "bf16"}, "they compute in fp32, and this run in bf16"),
        ({"other": "FSDP gathers"}, "FSDP gathers"),
    ],
)
def test_where_they_do_not_go(changed, why):
    model = make("marian")
    assert not is_fused(chosen(model, **changed))
    with pytest.raises(InputError, match=why) as raised:
        chosen(model, "always", **changed)
    assert "leave out --train.fused_layers always" in str(raised.value)


def test_a_model_without_such_layers():
    model = torch.nn.Linear(2, 2)
    assert not is_fused(chosen(model))
    with pytest.raises(InputError, match="Linear has no encoder or decoder"):
        chosen(model, "always")


def test_without_a_compiler_a_run_goes_on_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    building.library.cache_clear()
    try:
        assert not is_fused(chosen(make("t5")))
        assert "no C++ compiler was found" in console.noted()[-1]
        with pytest.raises(InputError, match="apt install g"):
            chosen(make("t5"), "always")
    finally:
        building.library.cache_clear()


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'attention.h:1: error: no' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "kept"))
    building.library.cache_clear()
    try:
        with pytest.raises(building.Unavailable, match=r"could not compile them: attention\.h:1: error: no"):
            building.library()
        assert [path.suffix for path in (tmp_path / "kept" / "hftk").iterdir()] == [".lock"]
    finally:
        building.library.cache_clear()


def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    building.library.cache_clear()
    try:
        with pytest.raises(building.Unavailable, match="file"):
            building.library()
    finally:
        building.library.cache_clear()


@pytest.mark.parametrize("damage", ["cut off", "empty", "no digest"])
def test_a_damaged_library_is_made_again(ops, monkeypatch, tmp_path, damage):
    made = building._place() / f"kernels-{building._key(building._compiler())}.so"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    target, compiled = tmp_path / "hftk" / made.name, []
    target.parent.mkdir()
    for suffix in (".so", ".sha256"):
        shutil.copy(made.with_suffix(suffix), target.with_suffix(suffix))
    if damage == "no digest":
        target.with_suffix(".sha256").unlink()
    else:
        target.write_bytes(made.read_bytes()[: 4096 if damage == "cut off" else 0])
    monkeypatch.setattr(building, "_compile", lambda compiler, path: compiled.append(path) or shutil.copy(made, path))
    building.library.cache_clear()
    try:
        assert building.library() is ops
    finally:
        building.library.cache_clear()
    assert compiled == [target]


def test_importing_hftk_compiles_nothing():
    code = "import sys, hftk, hftk.fused; print('torch.utils.cpp_extension' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.stdout.strip() == "False"
