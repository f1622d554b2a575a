"""``hftk predict`` and ``hftk export`` on a folder that holds an adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_runs import LABELS, fit, judge, load, make_config, splits_of

from hftk.cli import main
from hftk.model import load_trained
from hftk.parsing import save_config

ROOT = Path(__file__).parents[2]


def finished(kind: str, base: str, output: Path, bits: int | None, **adapter: Any) -> Any:
    """A run's folder as the recipes leave it, with hardly a record; its data are in a file."""
    rows = splits_of(kind)
    table = output.parent / f"{kind}.jsonl"
    lines = [dict(row) for split in (rows.train, rows.validation) for row in split]
    lines = [line | ({"label": LABELS[line["label"]]} if "label" in line else {}) for line in lines]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = {"adapter": {"method": "lora", **adapter}, "quantization": {"bits": bits}}
    config = make_config(
        kind, output, base, model=model, data={"path": str(table), "validation_fraction": 0.4, "test_fraction": 0.0}
    )
    task, trained = fit(kind, config)
    save_config(config, output / "config.yaml")
    (output / "record.json").write_text(json.dumps({"hftk": "0.1.0", "task": task.name}))
    return task, trained


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("kind", ["bert", "t5", "marian", "gpt2"])
def test_the_merged_model_computes_what_the_adapter_did(kind, bits, bases, tmp_path, tiny_runs, capsys):
    task, trained = finished(kind, bases(kind), tmp_path / "out", bits)
    assert (
        main(
            [
                "export",
                str(tmp_path / "out"),
                "--output",
                str(tmp_path / "merged"),
                *(["--data", str(tmp_path / f"{kind}.jsonl")] if kind != "bert" else []),
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert json.loads((tmp_path / "merged" / "record.json").read_text())["export"] == found
    assert found["difference"] <= found["tolerance"] and found["rows"] == 8 and found.get("trained_in_bits") == bits
    assert not {path.name for path in (tmp_path / "merged").iterdir()} & {"adapter_config.json", "base_config.json"}
    model, tokenizer = load_trained(str(tmp_path / "merged"), auto_model=task.auto_model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    ours, merged = judge(kind, task, trained.model, trained.tokenizer), judge(kind, task, model, tokenizer)
    near = 1e-4 if bits is None else 0.1
    assert abs(ours - merged).max() <= near * max(1.0, abs(ours).max())


def test_another_process_predicts_the_same(bases, tmp_path, tiny_runs):
    task, trained = finished("bert", bases("bert"), tmp_path / "out", 8)
    texts = splits_of("bert").validation["text"][:3]
    command = [
        sys.executable,
        "-m",
        "hftk",
        "predict",
        str(tmp_path / "out"),
        *(w for t in texts for w in ("--prompt", t)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = [json.loads(line)["probabilities"] for line in ended.stdout.splitlines()]
    logits = torch.tensor(judge("bert", task, trained.model, trained.tokenizer)[:3])
    for line, row in zip(said, logits.softmax(-1).tolist(), strict=True):
        assert [line[name] for name in LABELS] == pytest.approx(row, abs=2e-6)


def test_what_cannot_be_exported_is_told(bases, tmp_path, tiny_runs, capsys):
    def told(*words: Any) -> str:
        assert main(["export", *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "there is nothing to merge" in told(bases("bert"), "--output", tmp_path / "m")
    finished("bert", bases("bert"), tmp_path / "out", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert "new or empty folder" in told(tmp_path / "out", "--output", tmp_path / "full")
    low = shutil.copytree(bases("bert"), tmp_path / "low")
    settings = json.loads((low / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
    (low / "config.json").write_text(json.dumps(settings))
    adapter = tmp_path / "out" / "adapter_config.json"
    adapter.write_text(json.dumps({**json.loads(adapter.read_text()), "base_model_name_or_path": str(low)}))
    assert "is quantized itself" in told(tmp_path / "out", "--output", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_calibration_reaches_the_trained_head(bases, tmp_path, tiny_runs):
    from hftk.heads import divide_logits

    config = make_config("bert", tmp_path, bases("bert"), model={"adapter": {"method": "lora", "rank": 3}})
    task, model, tokenizer = load("bert", config)
    before = judge("bert", task, model, tokenizer)
    divide_logits(model, 2.0)
    assert judge("bert", task, model, tokenizer) == pytest.approx(before / 2, abs=1e-6)
