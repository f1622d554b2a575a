"""Adapters and 8-bit models, and a whole recipe: pushed to the Hub on loopback and used from there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_server import USER, Hub
from recipe_runs import code_of
from recipe_runs import run as recipe

REPO, BASE = f"{USER}/rivers", f"{USER}/base"


def beside(finished: Path, folder: Path) -> Path:
    """Tokenizer and record of the finished run in a folder that holds weights already."""
    for name in ("tokenizer.json", "tokenizer_config.json", "record.json"):
        shutil.copy(finished / name, folder / name)
    return folder


def test_an_adapter_is_loaded_back_over_its_base(
    hub: Hub, client: Any, finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    assert client("push", finished, "--repo", BASE).code == 0
    made = client(
        code=f"""
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model = get_peft_model(AutoModelForCausalLM.from_pretrained({BASE!r}), LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, task_type="CAUSAL_LM"))
model.save_pretrained({str(tmp_path)!r})
print(model.eval()(torch.arange(10)[None]).logits.double().sum().item())
"""
    )
    assert made.code == 0, made.err
    pushed = client("push", beside(finished, tmp_path), "--repo", REPO)
    assert pushed.code == 0, pushed.err
    files = hub.repos[REPO].files
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == BASE
    assert (
        f"base_model: {BASE}" in files["README.md"].decode()
        and b"More Information Needed" not in files["README.md"]
    )
    used = client(
        code=code_of(files["README.md"])
        + "\nprint(model(torch.arange(10)[None]).logits.double().sum().item())"
    )
    assert used.code == 0, used.err
    assert float(used.out.splitlines()[-1]) == pytest.approx(float(made.out.splitlines()[-1]), rel=1e-5)


def test_an_8_bit_model_is_loaded_back_in_8_bits(
    hub: Hub, client: Any, finished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    made = client(
        code=f"""
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
model = AutoModelForCausalLM.from_pretrained({str(finished)!r}, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
model.save_pretrained({str(tmp_path)!r})
print(model(torch.arange(10)[None]).logits.double().sum().item())
"""
    )
    assert made.code == 0, made.err
    pushed = client("push", beside(finished, tmp_path), "--repo", REPO)
    assert pushed.code == 0, pushed.err
    used = client(
        code=code_of(hub.repos[REPO].files["README.md"])
        + "\nprint(model(torch.arange(10)[None]).logits.double().sum().item(), model.is_loaded_in_8bit)"
    )
    assert used.code == 0, used.err
    value, in_8_bits = used.out.splitlines()[-1].split()
    assert in_8_bits == "True" and float(value) == pytest.approx(float(made.out.splitlines()[-1]), rel=1e-4)


def test_a_recipe_publishes_as_its_last_act_and_a_failure_there_loses_nothing(
    hub: Hub, client: Any, tmp_path: Path
) -> None:
    texts, output = tmp_path / "texts.txt", tmp_path / "out"
    texts.write_text(
        "\n\n".join(f"The river number {n} is wide and slow." for n in range(60)), encoding="utf-8"
    )
    words = [
        "--data.path",
        str(texts),
        "--model.vocab_size",
        "300",
        "--model.config.n_layer",
        "1",
        "--model.config.n_embd",
        "16",
        "--model.config.n_head",
        "2",
        "--train.max_steps",
        "2",
        "--train.precision",
        "fp32",
        "--eval.resamples",
        "0",
        "--output",
        str(output),
        "--publish.repo",
        REPO,
        "--publish.language",
        "en",
    ]
    wrong = client(code=recipe("gpt2_clm", words), token=None)
    assert (
        "exit code 2" in wrong.out and "hf auth login" in wrong.err and not list(output.glob("*.safetensors"))
    ), "before the slow part"
    hub.fail("commit", 500)
    failed = client(code=recipe("gpt2_clm", [*words, "--overwrite"]))
    assert "exit code 1" in failed.out and "Traceback" not in failed.err, failed.err
    status = json.loads((output / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["exit_code"]) == ("failed", 1) and f"--repo {REPO}" in status["message"]
    assert (output / "model.safetensors").is_file() and (output / "report.html").is_file()
    hub.faults.clear()
    found = re.search(r"hftk push [^\n]*", failed.err)
    assert found, failed.err
    finished = client(*shlex.split(found[0])[1:])
    assert finished.code == 0, finished.err
    files = hub.repos[REPO].files
    assert (
        files["model.safetensors"] == (output / "model.safetensors").read_bytes()
        and b"language: en" in files["README.md"]
    )
    used = client(code=code_of(files["README.md"]))
    assert used.code == 0 and used.out.strip(), used.err
    again = client("push", output)  # its own settings name the repository
    assert again.code == 0 and str(tmp_path).encode() not in b"".join(files.values()), again.err
