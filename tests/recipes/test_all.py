"""Whatever is shipped in recipes/ can be read: found by walking the folder, and the number found is
asserted."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import hftk
from hftk.config import parse as parsing
from hftk.models.sizes import model_sizes

RECIPES = Path(__file__).parents[2] / "recipes"
SCRIPTS = sorted(RECIPES.glob("*.py"))
FOR_ANY = ("lora", "qlora_4bit", "qlora_8bit")
CONFIGS = [path for path in sorted((RECIPES / "configs").glob("*.yaml")) if path.stem not in FOR_ANY]
LAUNCH = sorted((RECIPES / "accelerate").glob("*.yaml"))


def load(script):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_number_of_files_is_known():
    assert (len(SCRIPTS), len(CONFIGS), len(LAUNCH)) == (4, 18, 8), "added one? count it here"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_recipe_is_a_page_with_a_command_a_task_and_a_config(script):
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 60, "a recipe longer than a page means that a stage is missing"
    assert f"accelerate launch recipes/{script.name}" in ast.get_docstring(ast.parse(source))
    recipe = load(script)
    assert isinstance(recipe.CONFIG, hftk.RunConfig) and not list(recipe.CONFIG.problems())
    task = recipe.TASK(recipe.CONFIG)
    assert recipe.CONFIG.model.size in model_sizes(task.architecture, task.auto_model), (
        "runs with no argument and no network"
    )
    assert callable(recipe.main) and recipe.CONFIG.output == f"out/{script.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_a_part_of_its_recipe(path):
    command = re.search(
        r"accelerate launch recipes/(\w+)\.py --config recipes/configs/(\S+)",
        path.read_text(encoding="utf-8"),
    )
    assert command and command[2] == path.name
    recipe = load(RECIPES / f"{command[1]}.py")
    config = parsing.parse(recipe.CONFIG, ["--config", str(path)])
    assert config != recipe.CONFIG and not list(config.problems())
    assert config.output == f"out/{path.stem}"


@pytest.mark.parametrize("name", FOR_ANY)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_config_for_any_recipe_goes_with_every_recipe_and_every_config(script, name):
    path, recipe = RECIPES / "configs" / f"{name}.yaml", load(script)
    named = re.findall(r"--config recipes/configs/(\S+)", path.read_text(encoding="utf-8"))
    assert path.name in named and all((RECIPES / "configs" / other).is_file() for other in named)
    plain = parsing.parse(recipe.CONFIG, ["--config", str(path)])
    assert plain.model.adapter.method == "lora" and plain.output == recipe.CONFIG.output
    assert not list(plain.problems())
    for other in CONFIGS:
        if f"recipes/{script.name} --config" in other.read_text(encoding="utf-8"):
            both = parsing.parse(recipe.CONFIG, ["--config", str(other), "--config", str(path)])
            assert both.model.quantization == plain.model.quantization and both.output == f"out/{other.stem}"
            assert both.data == parsing.parse(recipe.CONFIG, ["--config", str(other)]).data and not list(
                both.problems()
            )


@pytest.mark.slow  # 10 to 20 s each
@pytest.mark.parametrize("name", FOR_ANY)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_recipe_runs_with_a_config_for_any(script, name, tmp_path):
    for package in ("peft", "bitsandbytes"):
        pytest.importorskip(package)
    recipe = load(script)
    path = RECIPES / "configs" / f"{name}.yaml"
    small = [
        "--train.max_steps",
        "2",
        "--data.max_rows",
        "24",
        "--eval.max_rows",
        "4",
        "--eval.resamples",
        "0",
        "--train.per_device_batch_size",
        "4",
        "--train.global_batch_size",
        "4",
        "--generation.max_new_tokens",
        "4",
        "--model.size",
        "tiny",
        "--output",
        str(tmp_path / "out"),
    ]
    result = recipe.main(parsing.parse(recipe.CONFIG, ["--config", str(path), *small]))
    assert result.model["adapter"] == "lora"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.stem)
def test_a_launch_config_names_its_command(path):
    text = path.read_text(encoding="utf-8")
    assert re.search(rf"accelerate launch --config_file recipes/accelerate/{path.name}", text)
    assert yaml.safe_load(text)["compute_environment"] == "LOCAL_MACHINE"
