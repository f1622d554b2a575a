"""Invariant 10: asked for two processes, two run and one writes; and what they find is what one finds."""

import importlib.util
import json

import pytest
import small_runs
from safetensors.torch import load_file

import hftk
from hftk.config import parse as parsing

FLAGS = {
    "model.config.n_layer": 2,
    "model.config.n_embd": 32,
    "model.config.n_head": 2,
    "model.config.n_positions": 64,
    "model.tokenizer": "characters",
    "train.max_steps": 6,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.05,
    "train.precision": "fp32",
    "train.log_steps": 1,
    "train.eval_steps": 3,
    "train.restore_best": True,
    "generation.max_new_tokens": 8,
    "eval.resamples": 20,
}

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the recipe's output by one process and by two, and the folder that the second process stood
    in."""
    here, elsewhere = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("elsewhere")
    texts = here / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in small_runs.many_to_a_block(300)))
    flags = [
        "--data.path",
        str(texts),
        *(word for name, value in FLAGS.items() for word in (f"--{name}", str(value))),
    ]
    sizes = ["--train.per_device_batch_size", "8", "--output", "two"]
    printed = small_runs.launch_two("recipe_elsewhere.py", str(elsewhere), *flags, *sizes, cwd=here)
    spec = importlib.util.spec_from_file_location("gpt2_clm", small_runs.ROOT / "recipes/gpt2_clm.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    recipe.main(parsing.parse(recipe.CONFIG, [*flags, "--output", str(here / "one")]))
    return here / "one", here / "two", elsewhere, printed


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def test_two_processes_run(runs):
    one, two, _, _ = runs
    status = json.loads((two / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["processes"]) == ("done", 0, 2)
    assert record_of(two)["processes"] == 2 and record_of(one)["processes"] == 1
    manifest = json.loads((two / "checkpoints/checkpoint-6/manifest.json").read_text())
    assert manifest["processes"] == 2 and {"rng_state_0.pth", "rng_state_1.pth"} <= set(manifest["files"])


def test_the_main_process_alone_writes_and_prints(runs):
    one, two, elsewhere, printed = runs
    assert not list(elsewhere.rglob("*")), "the second process wrote into its own folder"
    only_by_run = {"config.yaml", "status.json"}  # main() itself was called for one process
    assert {path.name for path in two.iterdir()} - only_by_run == {path.name for path in one.iterdir()}
    assert not [path for path in two.rglob("*") if path.name.startswith(".")], "nothing half done is left"
    assert printed.count("train.precision: fp32") == 1


def test_two_processes_find_what_one_finds(runs):
    one, two = (record_of(folder) for folder in runs[:2])
    assert [p["step"] for p in one["history"]] == [p["step"] for p in two["history"]] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "epoch"):
        values = [[point[name] for point in record["history"] if name in point] for record in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-5) and values[0]
    key = [(score["name"], score["when"], score["split"]) for score in one["scores"]]
    assert key == [(score["name"], score["when"], score["split"]) for score in two["scores"]] and len(key) > 6
    for mine, other in zip(one["scores"], two["scores"], strict=True):
        assert other["value"] == pytest.approx(mine["value"], rel=1e-5)
        assert other["interval"] == pytest.approx(mine["interval"], rel=1e-5)
    assert small_runs.difference(*(load_file(folder / "model.safetensors") for folder in runs[:2])) < 1e-5


def test_what_two_processes_saved_loads_in_one(runs):
    model, tokenizer = hftk.load_trained(str(runs[1]))
    assert model.config.n_layer == 2 and len(tokenizer) == record_of(runs[1])["model"]["vocabulary"]
