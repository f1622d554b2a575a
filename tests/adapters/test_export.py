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
from adapted_runs import LABELS, TASKS, fit, judge, load, make_config, splits_of

import hftk
from hftk.cli import main
from hftk.config.parse import save_config
from hftk.models.load import load_trained

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
        kind,
        output,
        base,
        model=model,
        data={"path": str(table), "validation_fraction": 0.4, "test_fraction": 0.0},
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
    assert (
        found["difference"] <= found["tolerance"]
        and found["rows"] == 8
        and found.get("trained_in_bits") == bits
    )
    assert not {path.name for path in (tmp_path / "merged").iterdir()} & {
        "adapter_config.json",
        "base_config.json",
    }
    model, tokenizer = load_trained(str(tmp_path / "merged"), auto_model=task.auto_model)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    ours, merged = judge(kind, task, trained.model, trained.tokenizer), judge(kind, task, model, tokenizer)
    near = 1e-4 if bits is None else 0.1
    assert abs(ours - merged).max() <= near * max(1.0, abs(ours).max())


@pytest.mark.parametrize("method", ["rslora", "dora", "pissa", "ia3"])
def test_every_kind_of_adapter_is_merged(method, bases, tmp_path, tiny_runs, capsys):
    rank = {} if method == "ia3" else {"rank": 3}
    finished("gpt2", bases("gpt2"), tmp_path / "out", None, method=method, **rank)
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "merged")]) == 0
    found = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert found["difference"] <= 1e-4 * max(1.0, found["largest_logit"])
    assert found["same_choice"] == 1.0 and found["same_texts"] == found["texts"] == found["rows"]


@pytest.mark.parametrize(
    ("kind", "bits"), [("bert", 4), ("gpt2", 4), ("llama", 4), ("t5", 4), ("gpt2", 8), ("marian", 8)]
)
def test_an_adapter_that_makes_up_for_the_rounding_is_merged_into_what_is_rounded(
    kind, bits, bases, tmp_path, tiny_runs, capsys
):
    """Merged into the weights before, what was rounded away would count twice."""
    task, trained = finished(kind, bases(kind), tmp_path / "out", bits, rank=16, initialization="loftq")
    rows = ["--data", str(tmp_path / f"{kind}.jsonl")] if kind != "bert" else []
    assert main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "merged"), *rows]) == 0
    assert json.loads((tmp_path / "merged" / "export.json").read_text())["base_rounded"]
    model, tokenizer = load_trained(str(tmp_path / "merged"), auto_model=task.auto_model)
    assert all(p.dtype == torch.float32 for p in model.parameters()) and not hasattr(
        model.config, "base_rounded"
    )
    ours, merged = judge(kind, task, trained.model, trained.tokenizer), judge(kind, task, model, tokenizer)
    near = (
        0.02 if bits == 4 else 0.1
    )  # the embeddings are in bfloat16 in training; 8 bits round the inputs of layers too
    assert abs(ours - merged).max() <= near * abs(ours).max()
    again, tokenizer = load_trained(str(tmp_path / "out"), auto_model=task.auto_model)
    assert abs(ours - judge(kind, task, again, tokenizer)).max() <= 1e-5 * abs(ours).max()


def whole(kind: str, output: Path, bases: Any) -> Any:
    """A run's folder with all of its weights, and rows beside it."""
    return finished(kind, bases(kind), output, None, method="none")


@pytest.mark.parametrize("kind", ["bert", "t5", "marian", "gpt2", "llama"])
def test_weights_in_8_bits_predict_nearly_the_same_by_the_usual_commands(
    kind, bases, tmp_path, tiny_runs, capsys
):
    task, trained = whole(kind, tmp_path / "out", bases)
    # The weights of this T5 are four times as large as it was made for: little errors grow.
    allowed = ["--tolerance", "0.6"] if kind == "t5" else []
    assert (
        main(
            ["export", str(tmp_path / "out"), "--output", str(tmp_path / "low"), "--format", "int8", *allowed]
        )
        == 0
    )
    model, tokenizer = load_trained(str(tmp_path / "low"), auto_model=task.auto_model)
    ours, low = judge(kind, task, trained.model, trained.tokenizer), judge(kind, task, model, tokenizer)
    assert 0 < abs(ours - low).mean() < 0.2 * abs(ours).mean()
    assert not (tmp_path / "low" / "model.safetensors").exists()
    asked = ["--prompt", splits_of(kind).train[0]["source" if kind in ("t5", "marian") else "text"]]
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "low"), *asked]) == 0
    assert "prediction" in json.loads(capsys.readouterr().out)


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("kind", ["bert", "t5", "marian", "gpt2", "llama"])
def test_an_onnx_graph_has_the_same_logits_for_rows_of_other_lengths(
    kind, bases, tmp_path, tiny_runs, capsys
):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    whole(kind, tmp_path / "out", bases)
    assert (
        main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "graph"), "--format", "onnx"]) == 0
    )
    found = json.loads((tmp_path / "graph" / "export.json").read_text())
    assert found["difference"] <= found["tolerance"] and found["rows"] == 8


def byte_level(kind: str, folder: Path, **shape: Any) -> Path:
    """A small model with a tokenizer that GGUF knows, and a file of texts beside it."""
    texts = [f"row {i}: länger 日本 text {i * i} don't" for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = make_config(
        kind,
        folder / "made",
        None,
        model={"tokenizer": "bpe", "vocab_size": 300, "config": shape, "initialization": "he"},
        data={"path": str(folder / "rows.jsonl")},
    )
    task = TASKS[kind][0](config)
    model, tokenizer = hftk.load_model(config.model, task, hftk.load_splits(config.data, task))
    model.save_pretrained(folder / "made")
    tokenizer.save_pretrained(folder / "made")
    return folder / "made"


WIDE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
}
GGUF_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 1024},
    "llama": WIDE,
}


@pytest.mark.parametrize(("kind", "held"), [("gpt2", "f32"), ("llama", "f32"), ("llama", "q8_0")])
def test_a_gguf_file_is_read_back_as_the_same_model(kind, held, tmp_path, capsys):
    pytest.importorskip("gguf")
    folder = byte_level(kind, tmp_path, **GGUF_SHAPES[kind])
    words = ["--data", str(tmp_path / "rows.jsonl"), "--format", "gguf", "--gguf_type", held]
    assert main(["export", str(folder), "--output", str(tmp_path / "gguf"), *words]) == 0
    found = json.loads((tmp_path / "gguf" / "export.json").read_text())
    assert found["difference"] <= found["tolerance"]
    if held == "f32":
        assert (
            found["difference"] < 1e-3 * max(1.0, found["largest_logit"])
            and found["same_texts"] == found["texts"]
        )
    (_, tokens), (_, theirs) = load_trained(str(folder)), load_trained(str(tmp_path / "gguf"))
    text = "länger 日本 don't 123 "
    assert theirs(text).input_ids == tokens(text).input_ids and theirs.eos_token_id == tokens.eos_token_id


def test_a_wrong_layout_is_not_exported(tmp_path, capsys, monkeypatch):
    gguf_file = pytest.importorskip("hftk.models.export_gguf")
    folder = byte_level("llama", tmp_path, **WIDE)
    monkeypatch.setattr(gguf_file, "_ROTATED", ())
    words = ["--data", str(tmp_path / "rows.jsonl"), "--format", "gguf", "--gguf_type", "f32"]
    assert main(["export", str(folder), "--output", str(tmp_path / "gguf"), *words]) == 1
    assert "computes something else" in capsys.readouterr().err
    assert not (tmp_path / "gguf").exists()


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
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = [json.loads(line)["probabilities"] for line in ended.stdout.splitlines()]
    logits = torch.tensor(judge("bert", task, trained.model, trained.tokenizer)[:3])
    for line, row in zip(said, logits.softmax(-1).tolist(), strict=True):
        assert [line[name] for name in LABELS] == pytest.approx(row, abs=2e-6)


def test_what_cannot_be_exported_is_told(bases, tmp_path, tiny_runs, capsys):
    def told(*words: Any) -> str:
        assert main(["export", *map(str, words)]) == 2
        return capsys.readouterr().err

    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one two", "summary": "one"}\n', encoding="utf-8")
    assert "there is nothing to merge" in told(bases("bert"), "--output", tmp_path / "m")
    assert "expected one of llama, mistral, qwen2, gpt2" in told(
        bases("t5"), "--output", tmp_path / "m", "--format", "gguf", "--data", texts
    )
    assert "0 <= tolerance < 1" in told(
        bases("bert"), "--output", tmp_path / "m", "--format", "int8", "--tolerance", 3
    )
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
    from hftk.models.heads import divide_logits

    config = make_config("bert", tmp_path, bases("bert"), model={"adapter": {"method": "lora", "rank": 3}})
    task, model, tokenizer = load("bert", config)
    before = judge("bert", task, model, tokenizer)
    divide_logits(model, 2.0)
    assert judge("bert", task, model, tokenizer) == pytest.approx(before / 2, abs=1e-6)
