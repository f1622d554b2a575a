"""Whole trainings with fused layers: the same as without them, continued bit for bit, and looked into when they diverge."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import hftk
from hftk.config import InputError, ModelConfig, override
from hftk.task import Splits
from hftk.training.divergence import TrainingDiverged

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))  # made_pairs
import made_pairs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("ops")


def splits() -> Splits:
    return Splits(train=made_pairs.rows_of(96), validation=made_pairs.rows_of(16, seed=1))


def config(output: Path, architecture: str, **train):
    return made_pairs.make_config(output, architecture, train={"fused_layers": "always", **train})


def trained(given, data=None, **more):
    data = data or splits()
    task, model, tokenizer = made_pairs.load(given, data)
    return hftk.fit(task, model, tokenizer, data, given, **more)


@pytest.mark.parametrize("architecture", ["t5", "marian"])
@pytest.mark.parametrize("micro", [16, 5])
def test_a_training_is_the_same_with_and_without(tmp_path, architecture, micro):
    changes = {"max_grad_norm": 0.5, "label_smoothing": 0.1, "per_device_batch_size": micro}
    with_them = trained(config(tmp_path / "with", architecture, **changes))
    without = trained(config(tmp_path / "without", architecture, fused_layers="never", **changes))
    assert any("compiled forward and backward passes, without padding" in line for line in with_them.choices)
    for one, other in zip(with_them.history, without.history, strict=True):
        for name in ("loss", "eval_loss", "grad_norm"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-4)
    weights = [dict(run.model.named_parameters()) for run in (with_them, without)]
    assert made_pairs.difference(*({n: p.detach() for n, p in w.items()} for w in weights)) < 1e-5
    assert not any("forward" in vars(module) or "zero_grad" in vars(module) for module in with_them.model.modules())


def test_a_continued_run_ends_with_the_same_bits(tmp_path):
    changes = {"max_steps": 6, "save_steps": 3, "optimizer": "adamw", "max_grad_norm": 1.0, "keep_checkpoints": 5}
    given = override(config(tmp_path / "whole", "marian", **changes), {"model": {"dropout": 0.2}})

    def keep(folder: Path) -> None:
        if folder.name.endswith("-3"):
            shutil.copytree(folder, tmp_path / "kept" / folder.name)

    whole = trained(given, on_checkpoint=keep)
    torch.rand(100)
    again = trained(override(given, {"output": str(tmp_path / "again"), "resume": str(next((tmp_path / "kept").iterdir()))}))
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_diverged_step_is_looked_into_module_by_module(tmp_path):
    with pytest.raises(TrainingDiverged) as raised:
        trained(config(tmp_path, "marian", learning_rate=1e20, max_steps=5))
    assert "layers." in str(raised.value)


def test_gradient_checkpointing_keeps_the_own_layers(tmp_path):
    given = config(tmp_path / "auto", "marian", fused_layers="auto", gradient_checkpointing=True, max_steps=1)
    assert trained(given).history
    with pytest.raises(InputError, match="gradient checkpointing"):
        trained(config(tmp_path / "always", "marian", gradient_checkpointing=True))


def test_a_model_without_fused_layers_is_refused_where_they_are_asked_for(tmp_path):
    given = hftk.CausalLMConfig(
        model=ModelConfig(size="tiny", architecture="gpt2", tokenizer="characters"), output=str(tmp_path / "out")
    )  # fmt: skip
    given = override(given, {"train": {"fused_layers": "always", "max_steps": 2, "precision": "fp32"}})
    data = Splits(train=Dataset.from_dict({"text": ["some words"] * 40}))
    task = hftk.CausalLM(given)
    model, tokenizer = hftk.load_model(given.model, task, data)
    with pytest.raises(InputError, match="GPT2LMHeadModel has no encoder or decoder"):
        hftk.fit(task, model, tokenizer, data, given)


@pytest.mark.launch
def test_two_processes_learn_what_one_does(tmp_path):
    """DistributedDataParallel sees one gradient of a tied weight, and no other."""
    rows = made_pairs.rows_of(48)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"source": r["source"], "target": r["target"]}) + "\n" for r in rows))
    flags = {
        "data.path": "pairs.jsonl", "model.size": "tiny", "model.vocab_size": 60, "model.tokenizer": "characters", "model.dropout": 0.0,
        "train.max_steps": 4, "train.global_batch_size": 12, "train.optimizer": "sgd", "train.learning_rate": 0.05, "train.precision": "fp32",
        "train.label_smoothing": 0.1, "generation.max_new_tokens": 2, "eval.resamples": 0, "train.eval_steps": 4,
    }  # fmt: skip
    weights = {}
    for name, launcher in (("one", []), ("two", ["--config_file", str(ROOT / "recipes/accelerate/two_processes.yaml")])):
        words = [word for key, value in (flags | {"train.fused_layers": "always", "output": name}).items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(ROOT / "recipes/marian_translation.py"), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    assert made_pairs.difference(weights["one"], weights["two"]) < 1e-5
