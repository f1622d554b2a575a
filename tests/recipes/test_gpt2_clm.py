"""The GPT-2 recipe: its whole output, and every setting of training for three steps."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import hftk
from hftk.config import override
from hftk.config.train import Optimizer, Schedule
from hftk.task import Splits
from hftk.training import schedules

ROOT = Path(__file__).parents[2]
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64}
LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("gpt2_clm", ROOT / "recipes/gpt2_clm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents():
    who, what, where = (
        ("cat", "dog", "bird", "fox"),
        ("sat", "slept", "sang", "ate"),
        ("mat", "hill", "roof", "tree"),
    )
    return [
        f"The {a} {b} on the {c}, and then {n} times more."
        for a in who
        for b in what
        for c in where
        for n in range(5)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    return path


def small(config, source, output, **changes):
    config = override(
        config,
        {
            "data": {"sample": None, "path": str(source)},
            "model": {"config": SHAPE, "vocab_size": 300},
            "train": {"epochs": None, "max_steps": 20, "precision": "fp32", "learning_rate": 1e-2},
            "eval": {"resamples": 50},
            "generation": {"max_new_tokens": 8},
            "output": str(output),
        },
    )
    return override(config, changes)


# --- The whole recipe


@pytest.fixture(scope="module")
def done(recipe, source, tmp_path_factory):
    """(folder, what main returned) of one run through the very function that the shell calls."""
    folder = tmp_path_factory.mktemp("run") / "out"
    returned = []
    hftk.run(lambda config: returned.append(recipe.main(config)), small(recipe.CONFIG, source, folder), [])
    return folder, returned[0]


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def test_all_files_are_there(done):
    folder, _ = done
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.yaml",
        "record.json",
        "predictions.jsonl",
        "report.html",
        "status.json",
        "checkpoints",
    }
    assert (folder / "checkpoints/checkpoint-20/manifest.json").exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_the_record_holds_what_is_promised(done):
    record = record_of(done[0])
    assert set(record) >= {
        "hftk",
        "task",
        "config",
        "command",
        "data",
        "history",
        "scores",
        "samples",
        "seconds",
        "tokens_per_second",
        "peak_memory_bytes",
        "processes",
        "hardware",
        "versions",
        "git",
    }
    assert record["task"] == "causal_lm" and record["processes"] == 1 and record["hftk"] == hftk.__version__
    assert set(record["seconds"]) == {"load", "train", "evaluate", "save", "total"}
    assert (
        record["seconds"]["train"] > 0
        and record["tokens_per_second"] > 0
        and record["peak_memory_bytes"] > 1e7
    )
    promised = {"step", "epoch", "loss", "learning_rate", "tokens", "seconds"}
    assert all(set(point) >= promised for point in record["history"])
    assert [point["step"] for point in record["history"]] == list(range(1, 21))
    assert "eval_loss" in record["history"][-1]
    for score in record["scores"]:
        assert set(score) >= {
            "name",
            "value",
            "unit",
            "higher_is_better",
            "n",
            "interval",
            "signature",
            "split",
            "when",
        }
        low, high = score["interval"]
        assert low <= score["value"] <= high
    assert {score["when"] for score in record["scores"]} == {
        "before",
        "after",
        "baseline:unigram",
        "baseline:bigram",
    }
    assert len(record["samples"]) == 3 and all("prediction" in sample for sample in record["samples"])


def test_perplexity_falls(done):
    value = {(s["name"], s["when"]): s["value"] for s in record_of(done[0])["scores"]}
    assert value["perplexity", "after"] < 0.5 * value["perplexity", "before"]
    assert done[1].main_score.value == value["perplexity", "after"]


def test_the_seconds_of_the_stages_do_not_overlap(done):
    seconds = record_of(done[0])["seconds"]
    assert sum(value for name, value in seconds.items() if name != "total") <= seconds["total"] + 1e-6


def test_the_folder_loads_with_transformers_alone(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = done
    ours, _ = hftk.load_trained(str(folder))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["The cat sat on the roof", "The dog"], return_tensors="pt", padding=True)
    assert torch.equal(model.eval()(**batch).logits, ours(**batch).logits)
    assert model.config.use_cache and model.config.vocab_size == len(tokenizer)
    text = tokenizer.decode(batch["input_ids"][0])
    assert text == "The cat sat on the roof"
    checkpoint = AutoModelForCausalLM.from_pretrained(folder / "checkpoints/checkpoint-20")
    assert (
        torch.equal(checkpoint.eval()(**batch).logits, ours(**batch).logits) and checkpoint.config.use_cache
    )


def test_its_config_fed_back_gives_the_same_weights(recipe, done, tmp_path):
    folder, _ = done
    flags = ["--config", str(folder / "config.yaml"), "--output", str(tmp_path / "again")]
    hftk.run(recipe.main, recipe.CONFIG, flags)
    first, again = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    timeless = [
        [{**point, "seconds": 0} for point in record_of(path)["history"]]
        for path in (folder, tmp_path / "again")
    ]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_continued_without_training(recipe, done, capsys):
    folder, _ = done
    weights = (folder / "model.safetensors").read_bytes()
    before = record_of(folder)
    hftk.run(recipe.main, recipe.CONFIG, ["--config", str(folder / "config.yaml"), "--resume", "auto"])
    assert (folder / "model.safetensors").read_bytes() == weights
    assert record_of(folder)["history"] == before["history"]
    assert "20 of 20 steps done" in capsys.readouterr().out


# --- Every setting of training, three steps each

SETTINGS = {
    **{f"schedule {name}": {"schedule": name} for name in Schedule.__args__},
    **{f"optimizer {name}": {"optimizer": name, "learning_rate": 1e-3} for name in Optimizer.__args__},
    "warm-up and a least learning rate": {"schedule": "cosine", "warmup": 1.0, "min_learning_rate": 1e-3},
    "bf16": {"precision": "bf16"},
    "auto precision": {"precision": "auto"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"per_device_batch_size": 3, "global_batch_size": 16},
    "token budget": {"max_tokens_per_batch": 128},
    "global batch in tokens": {"global_batch_size": None, "global_batch_tokens": 500},
    "short blocks": {"max_length": 32},
    "weight decay": {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.9},
    "penalty and smoothing": {"l1_penalty": 1e-4, "label_smoothing": 0.1},
    "no clipping": {"max_grad_norm": 0.0},
    "noise on the embeddings": {"extra": {"neftune_noise_alpha": 5.0}},
    "logging by Trainer": {"extra": {"report_to": "none", "log_level": "error"}},
}


@pytest.fixture(scope="module")
def shared(recipe):
    """Splits, and a task that encodes them once for each tokenizer and block size."""
    texts = documents()
    splits = Splits(
        train=Dataset.from_dict({"text": texts[:-20]}), validation=Dataset.from_dict({"text": texts[-20:]})
    )
    encoded = {}

    class CausalLM(recipe.TASK):
        def encode(self, rows, tokenizer, *, max_length, training):
            key = (id(rows), len(tokenizer), max_length, training)
            if key not in encoded:
                encoded[key] = super().encode(rows, tokenizer, max_length=max_length, training=training)
            return encoded[key]

    return CausalLM, splits


def three_steps(recipe, shared, output, *, model=None, **train):
    task_class, splits = shared
    train = {"max_steps": 3, "log_steps": 1, "eval_steps": 1, "save_steps": 0, **train}
    config = small(recipe.CONFIG, "unused", output, train=train, model=model or {})
    model, tokenizer = hftk.load_model(config.model, task_class(config), splits)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = hftk.fit(task_class(config), model, tokenizer, splits, config)
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return config, trained


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_trains(recipe, shared, name, tmp_path):
    if name == "optimizer lion":
        pytest.importorskip("bitsandbytes")
    config, trained = three_steps(recipe, shared, tmp_path, **SETTINGS[name])
    assert [point["step"] for point in trained.history] == [1, 2, 3]
    assert all(
        math.isfinite(point[key]) for point in trained.history for key in ("loss", "eval_loss", "grad_norm")
    )
    train = config.train
    if train.schedule != "reduce_on_plateau":
        warmup = schedules.warmup_steps(train.warmup, 3)
        shares = [
            schedules.schedule_factor(
                train.schedule, step, 3, warmup, train.min_learning_rate / train.learning_rate
            )
            for step in range(3)
        ]
        assert [p["learning_rate"] for p in trained.history] == pytest.approx(
            [train.learning_rate * s for s in shares]
        )


@pytest.mark.parametrize("scheme", ["default", "xavier", "he"])
def test_every_initialization_trains(recipe, shared, scheme, tmp_path):
    three_steps(recipe, shared, tmp_path, model={"initialization": scheme})


def test_the_first_loss_goes_by_the_initialization(recipe, shared, tmp_path):
    first = {
        scheme: (
            three_steps(recipe, shared, tmp_path / scheme, model={"initialization": scheme})[1].history[0][
                "loss"
            ]
        )
        for scheme in ("default", "xavier", "he")
    }
    assert len(set(first.values())) == 3


@pytest.mark.parametrize(
    "settings", [{}, {"dropout": 0.1}, {"attention": "eager"}, {"tokenizer": "characters"}]
)
def test_llama_and_settings_of_the_model_train(recipe, shared, settings, tmp_path):
    three_steps(recipe, shared, tmp_path / "gpt2", model=settings)
    if "dropout" not in settings:  # Llama has none but in its attention
        config = small(recipe.CONFIG, "unused", tmp_path / "llama")
        config = override(config, {"train": {"max_steps": 3}, "model": {"architecture": "llama", **settings}})
        from dataclasses import replace

        config = replace(config, model=replace(config.model, config=LLAMA))
        task_class, splits = shared
        model, tokenizer = hftk.load_model(config.model, task_class(config), splits)
        trained = hftk.fit(task_class(config), model, tokenizer, splits, config)
        assert type(model).__name__ == "LlamaForCausalLM" and trained.history[-1]["step"] == 3


def test_epochs_and_steps_say_the_same(recipe, shared, tmp_path):
    by_steps = three_steps(recipe, shared, tmp_path / "steps", max_steps=6)[1]
    by_epochs = three_steps(
        recipe, shared, tmp_path / "epochs", max_steps=None, epochs=by_steps.history[-1]["epoch"]
    )[1]
    assert [p["loss"] for p in by_epochs.history] == [p["loss"] for p in by_steps.history]
    assert by_steps.history[-1]["epoch"] > 0.2


def test_a_stream_trains_and_goes_on_where_it_stopped(recipe, source, tmp_path):
    config = small(
        recipe.CONFIG,
        source,
        tmp_path / "out",
        data={"streaming": True},
        train={"max_steps": 3, "log_steps": 1, "save_steps": 2},
    )
    task = recipe.TASK(config)
    splits = hftk.load_splits(config.data, task)
    assert not hasattr(splits.train, "__len__")
    model, tokenizer = hftk.load_model(config.model, task, splits)
    trained = hftk.fit(task, model, tokenizer, splits, config)
    assert [point["step"] for point in trained.history] == [1, 2, 3]
    import shutil

    shutil.rmtree(tmp_path / "out/checkpoints/checkpoint-3")
    other, _ = hftk.load_model(config.model, task, splits, seed=5)
    again = hftk.fit(task, other, tokenizer, splits, override(config, {"resume": "auto"}))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert [p["loss"] for p in again.history] == [p["loss"] for p in trained.history]


@pytest.mark.slow
def test_a_compiled_model_trains_alike(recipe, shared, tmp_path):
    plain = three_steps(recipe, shared, tmp_path / "plain")[1]
    compiled = three_steps(recipe, shared, tmp_path / "compiled", torch_compile=True)[1]
    assert [p["loss"] for p in compiled.history] == pytest.approx(
        [p["loss"] for p in plain.history], rel=1e-4
    )
    assert set(load_file(tmp_path / "compiled/model.safetensors")) == set(
        load_file(tmp_path / "plain/model.safetensors")
    )


@pytest.mark.slow
def test_full_determinism_trains_alike(recipe, shared, tmp_path):
    plain = three_steps(recipe, shared, tmp_path / "plain")[1]
    try:
        strict = three_steps(recipe, shared, tmp_path / "strict", deterministic=True)[1]
    finally:
        torch.use_deterministic_algorithms(False)
    assert [p["loss"] for p in strict.history] == [p["loss"] for p in plain.history]


def test_gradient_checkpointing_and_accumulation_change_no_loss(recipe, shared, tmp_path):
    plain = [p["loss"] for p in three_steps(recipe, shared, tmp_path / "plain")[1].history]
    for name, changes in (
        ("checkpointing", {"gradient_checkpointing": True}),
        ("accumulation", {"per_device_batch_size": 3}),
    ):
        losses = [p["loss"] for p in three_steps(recipe, shared, tmp_path / name, **changes)[1].history]
        assert losses == pytest.approx(plain, rel=1e-5)
