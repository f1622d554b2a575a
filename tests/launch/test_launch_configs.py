"""Every launch config that is shipped: accelerate accepts it, and hftk finds nothing in it that would not
run."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from hftk.config import RunConfig, TrainConfig
from hftk.launch import launcher, strategies

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes/accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
EXPECTED = {
    "ddp": (8, "", True),
    "fsdp2": (8, "fsdp", True),
    "fsdp2_lora": (8, "fsdp", True),
    "one_process_cpu": (1, "", False),
    "several_nodes": (16, "", True),
    "two_processes": (2, "", False),
    "zero2": (8, "deepspeed", True),
    "zero3": (8, "deepspeed", True),
}
"""Processes, strategy, and whether GPUs are asked for."""


def command_of(path):
    """The first command in a config's comment, as words."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#")]
    found = re.search(r"accelerate launch .*?[^\\](?=\n|$)", "\n".join(lines), re.DOTALL)
    return shlex.split(found[0].replace("\\\n", " "))


def environment_of(path):
    """What accelerate hands on to the processes that a config's own command starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    words = command_of(path)[2:]
    args = launch_command_parser().parse_args(
        [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
    )
    args, defaults, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    if args.use_deepspeed:
        return launch.prepare_deepspeed_cmd_env(args)[1]
    return (
        launch.prepare_multi_gpu_env(args)
        if args.multi_gpu or args.use_fsdp
        else launch.prepare_simple_launcher_cmd_env(args)[1]
    )


def test_every_config_is_expected():
    assert {path.stem for path in FILES} == set(EXPECTED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_says_when_and_how_and_is_taken_by_accelerate_and_by_hftk(path, monkeypatch):
    words = command_of(path)
    assert f"recipes/accelerate/{path.name}" in words, "the comment's command is that of another file"
    assert (ROOT / next(word for word in words if word.endswith(".py"))).is_file()
    monkeypatch.setattr(sys, "argv", ["recipes/gpt2_clm.py"])
    options = [str(ROOT / word) if word.startswith("recipes/accelerate") else word for word in words[2:]]
    asked = launcher._asked_of_accelerate(launcher._before_script(options), ROOT)
    processes, strategy, gpus = EXPECTED[path.stem]
    assert (asked["processes"], asked["strategy"], asked["gpus"], asked["cpu"]) == (
        processes,
        strategy,
        gpus,
        not gpus,
    )
    for name, value in environment_of(path).items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    assert launcher.strategy_in_environment() == strategy
    assert strategies.zero_stage() == (int(path.stem[-1]) if strategy == "deepspeed" else 0)
    assert strategies.find_problems(RunConfig()) == []


def test_no_config_sets_what_flags_of_hftk_decide():
    for path in FILES:
        made = yaml.safe_load(path.read_text())
        assert made["mixed_precision"] == "no" and "dynamo_config" not in made
        assert not {"gradient_accumulation_steps", "gradient_clipping"} & set(
            made.get("deepspeed_config", {})
        )


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.mark.parametrize(
    ("environment", "train", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "mixed_precision: bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"precision": "bf16"}, "mixed_precision: fp16"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, {}, "gradient_accumulation_steps: 4"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, "dynamo_backend: inductor"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            {},
            "tensor parallelism of 2",
        ),
        ({**FSDP, "FSDP_VERSION": "1"}, {}, "fsdp_version: 2"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "True"}, {}, "ram_efficient_loading: false"),
        (FSDP, {"optimizer": "lion"}, "shards of FSDP2"),
        (FSDP, {"optimizer": "adafactor"}, "shards of FSDP2"),
        ({**ZERO, "ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {}, "gradient_clipping: 0.5"),
        (ZERO, {"optimizer": "adafactor"}, "adafactor"),
        (ZERO, {"l1_penalty": 0.1}, "L1 penalty"),
        (ZERO, {"on_non_finite": "skip"}, "in the backward pass"),
    ],
)
def test_what_a_launch_config_says_and_would_not_be_done_is_told(environment, train, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (problem,) = strategies.find_problems(RunConfig(train=TrainConfig(**train)))
    assert said in str(problem) and problem.fix


@pytest.mark.parametrize(
    ("environment", "train"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"precision": "bf16"}),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_DYNAMO_BACKEND": "NO"}, {}),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}, {}),
        (FSDP, {"optimizer": "rmsprop", "l1_penalty": 0.1}),
        (
            {**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "ACCELERATE_GRADIENT_CLIPPING": "1.0"},
            {"l1_penalty": 0.1},
        ),
    ],
)
def test_what_a_launch_config_says_and_is_done_passes(environment, train, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert strategies.find_problems(RunConfig(train=TrainConfig(**train))) == []


def test_sections_of_deepspeed_own_file_that_hftk_decides_are_told(tmp_path, monkeypatch):
    path = tmp_path / "ds.json"
    said = {
        "zero_optimization": {"stage": 3},
        "optimizer": {"type": "Adam"},
        "scheduler": {},
        "bf16": {"enabled": True},
        "gradient_accumulation_steps": 2,
        "gradient_clipping": "auto",
        "fp16": {"enabled": "auto"},
    }
    path.write_text(json.dumps(said))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    told = [problem.setting for problem in strategies.find_problems(RunConfig())]
    assert told == ["train.optimizer", "train.schedule", "train.precision", "train.global_batch_size"]
    assert strategies.zero_stage() == 3


def test_what_a_checkpoint_depends_on_is_the_way_weights_are_held(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert strategies.in_words() == "whole weights on every process"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert strategies.in_words() == "whole weights on every process"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert strategies.in_words() == "shards of FSDP2"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert strategies.in_words() == "DeepSpeed ZeRO-2 on 4 processes"
