"""Folders that carry code or weights that do not fit: refused in a sentence, and nothing of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hftk.config import InputError, ModelConfig
from hftk.models.load import load_trained
from hftk.models.weights import load_weights

TREE = Path(__file__).parents[2] / "hftk"


def tiny(kind: str) -> tuple[Any, str]:
    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 40, "n_positions": 16},
        "bert": {
            "hidden_size": 8,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 16,
            "vocab_size": 40,
        },
        "t5": {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 40},
    }
    auto = {
        "gpt2": "AutoModelForCausalLM",
        "bert": "AutoModelForSequenceClassification",
        "t5": "AutoModelForSeq2SeqLM",
    }[kind]
    made = transformers.AutoConfig.for_model(kind, **sizes[kind])
    return getattr(transformers, auto).from_config(made), auto


@pytest.fixture(params=["gpt2", "bert", "t5"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    model, auto = tiny(request.param)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model", auto


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_every_load_goes_through_one_function_that_trusts_no_code() -> None:
    call = re.compile(r"(?<!def )(\w+)\.(from_pretrained|from_config)\(")
    found = {
        f"{path.relative_to(TREE)}: {match[0]}"
        for path in TREE.rglob("*.py")
        if path.name not in ("hub_names.py", "usage.py")
        for match in call.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == {
        "models/adapters.py: PeftModel.from_pretrained("
    }  # which takes the model that was loaded


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "recipe"])
def test_a_folder_with_code_of_its_own_is_refused_and_its_code_is_not_run(
    command: str, terminal: bool, tmp_path: Path
) -> None:
    folder, mark, data = tmp_path / "model", tmp_path / "mark", tmp_path / "d.txt"
    folder.mkdir()
    data.write_text("some text\n" * 20)
    auto_map = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": [None, "own.T"],
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (folder / "model.safetensors").write_bytes(b"")
    arguments = {
        "predict": ["-m", "hftk", "predict", str(folder), "--prompt", "some"],
        "evaluate": ["-m", "hftk", "evaluate", str(folder), "--data", str(data)],
        "export": [
            "-m",
            "hftk",
            "export",
            str(folder),
            "--output",
            str(tmp_path / "out"),
            "--format",
            "onnx",
        ],
        "recipe": [
            str(TREE.parent / "recipes/gpt2_clm.py"),
            "--model.name",
            str(folder),
            "--data.path",
            str(data),
            "--output",
            str(tmp_path / "run"),
        ],
    }[command]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    above, below = pty.openpty()
    try:
        os.write(above, b"y\ny\ny\n")
        ended = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            **({"stdin": below} if terminal else {"input": "y\ny\ny\n"}),
        )
    finally:
        os.close(above)
        os.close(below)
    assert not mark.exists()
    assert ended.returncode == 2, ended.stderr
    assert "does not run" in ended.stderr and "Traceback" not in ended.stderr and "[y/N]" not in ended.stdout


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return open, (self.mark, "w")


def test_a_pickle_with_a_payload_is_refused_and_not_run(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, auto = saved
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Payload(tmp_path / "mark")}, file)
    with pytest.raises(InputError, match=r"pytorch_model.bin"):
        load_trained(str(folder), auto_model=auto)
    assert not (tmp_path / "mark").exists()


def test_auto_map_of_a_known_architecture_loads_the_class_of_the_library(saved: tuple[Path, str]) -> None:
    folder, auto = saved
    made = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**made, "auto_map": {"AutoConfig": "own.Config", auto: "own.Model"}})
    )
    config = ModelConfig(name=str(folder))
    model, _ = load_weights(
        config, auto, transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    )
    assert type(model).__module__.startswith("transformers.")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_under_a_prefix_are_refused_by_its_name(saved: tuple[Path, str], prefix: str) -> None:
    folder, auto = saved
    rewrite(folder, lambda weights: {prefix + key: value for key, value in weights.items()})
    with pytest.raises(InputError, match=prefix):
        load_trained(str(folder), auto_model=auto)


def test_prediction_accepts_no_missing_weights(saved: tuple[Path, str]) -> None:
    folder, auto = saved
    rewrite(folder, lambda weights: {key: weights[key] for key in sorted(weights)[::2]})
    with pytest.raises(InputError, match=r"\d+ of the \d+ weights"):
        load_trained(str(folder), auto_model=auto)


def test_a_weight_index_does_not_point_outside_of_its_folder(saved: tuple[Path, str]) -> None:
    folder, auto = saved
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    names = load_file(folder.parent / "x.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="same folder"):
        load_trained(str(folder), auto_model=auto)


def test_weights_with_nan_are_named_before_training() -> None:
    from hftk.models.weights import check_finite

    model, _ = tiny("gpt2")
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        check_finite("model", model)
