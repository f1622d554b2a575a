"""Files of settings: what is saved is read again, and what is broken is named with its line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from hftk.config import DataConfig, InputError, ModelConfig, Problem, RunConfig, TrainConfig, override
from hftk.config.parse import (
    dump_changed,
    dump_config,
    load_config,
    parse,
    print_changed,
    print_config,
    save_config,
)
from hftk.config.settings import Setting, read_settings


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Small trained matrices beside frozen ones."""

    targets: list[str] | Literal["all"] = "all"
    """Names of the layers."""
    bits: Literal[0, 4, 8] = 0
    """Bits per weight."""


@dataclass(frozen=True, kw_only=True)
class Recipe(RunConfig):
    """A recipe with fields of its own."""

    adapter: Adapter = field(default_factory=Adapter)
    sizes: tuple[int, ...] = (1, 2)
    """Sizes in bytes."""
    maybe: bool | None = None
    """True, false, or left to the model."""
    folder: Path = Path("x")
    """A folder."""


def mistake(path: Path) -> Problem:
    with pytest.raises(InputError) as caught:
        load_config(RunConfig(), path)
    (problem,) = caught.value.problems
    return problem


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("a: [1\nb: 2\n", "line 2: is not valid YAML", ""),
        ("train:\n\tseed: 1\n", "line 2: is not valid YAML", "indent with spaces"),
        ("- a\n", "line 1: expected lines of the form `name: value`, found a list", ""),
        ("\njust text\n", "line 2: expected lines of the form `name: value`, found the single value", ""),
        (
            "data: {seed: 1}\n\ndata: {seed: 2}\n",
            "line 3: 'data' is given twice, first in line 1",
            "leave out one",
        ),
        (
            "model:\n  config:\n    a: 1\n    a: 2\n",
            "line 4: 'a' is given twice, first in line 3",
            "leave out one",
        ),
        ("model: {config: {a: [{b: 1, b: 2}]}}\n", "line 1: 'b' is given twice", "leave out one"),
        ("output: x\n---\noutput: y\n", "is not valid YAML", ""),
        ("output: !!python/object:os.system x\n", "line 1: is not valid YAML", ""),
        ("output: &a [*a]\n", "is not valid YAML", ""),
        ("? [a]\n: 1\n", "line 1: expected the name of a setting", ""),
        (b"output: a\ntrain: \xff\n", "line 2: expected UTF-8 text", "UTF-8"),
        (b"output: a\x00\n", "is not valid YAML", ""),
        ("[" * 1000, "is not valid YAML", ""),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    yaml_file: Any, text: str | bytes, message: str, fix: str
) -> None:
    path = yaml_file(text)
    problem = mistake(path)
    assert problem.message.startswith(str(path))
    assert message in problem.message
    assert fix in problem.fix


def test_a_missing_file_or_a_folder_is_named(yaml_file: Any, tmp_path: Path) -> None:
    near = yaml_file("", "shakespeare.yaml")
    missing = mistake(tmp_path / "shakespear.yaml")
    assert "there is no such file" in missing.message
    assert missing.fix == f"did you mean {near}?"
    assert "found a folder" in mistake(tmp_path).message
    assert "there is no such file" in mistake(Path("no/such/folder/x.yaml")).message


AWKWARD = [
    "none",
    "null",
    "true",
    "5",
    "1e-3",
    "~",
    "",
    " x ",
    "a: b",
    "# x",
    "über 数据 🙂",
    "a\nb\n",
    "'\"",
    "2024-01-01",
    "no",
    "-",
    "=x",
    "\udcff",
    "x" * 300,
]


def other_value(item: Setting) -> Any:
    """A valid value that differs from the one the setting has."""
    kind = item.members[0]
    if item.mapping is str:
        return {"text": "数据", "label": "5", "none": "none"}
    if item.mapping is not None:
        return (
            {"a": 5, "b": "5", "c": 1e-5, "d": {"e": [None, True, "x"]}}
            if item.name != "train.extra"
            else {"run_name": "5"}
        )
    by_type = {int: 7, float: 0.3, bool: not item.value, str: "none"}
    if item.is_list and item.name not in ("sizes", "adapter.targets"):
        return ["q", "5"]
    choices = [
        choice
        for member in item.members
        for choice in getattr(member, "__args__", ())
        if choice != item.value
    ]
    return {"folder": Path("y"), "sizes": (7, 8), "adapter.targets": ["q", "5"]}.get(
        item.name, by_type.get(kind, choices[-1] if choices else None)
    )


@pytest.mark.parametrize("name", read_settings(Recipe()))
def test_a_saved_field_is_read_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RunConfig, "problems", lambda self: ()
    )  # some fields contradict the rest when they stand alone
    value = other_value(read_settings(Recipe())[name])
    for part in reversed(name.split(".")):
        value = {part: value}
    config = override(Recipe(), value)
    assert config != Recipe()
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Recipe(), tmp_path / "config.yaml") == config


def test_a_saved_config_given_back_makes_an_equal_config(tmp_path: Path) -> None:
    line = (
        "--data.train t --data.validation ü --data.columns.text 5 --model.name gpt2 --train.max_steps 5"
        " --train.learning_rate 1e-5 --train.extra.lr_scheduler_kwargs '{power: 1e-4}' --data.unicode none"
        " --output 'a: b' --adapter.targets q v --sizes 9"
    )
    config = parse(Recipe(), shlex.split(line))
    save_config(config, tmp_path / "config.yaml")
    recipe = Recipe(
        data=DataConfig(sample="s"), model=ModelConfig(size="tiny"), train=TrainConfig(epochs=3.0)
    )
    assert parse(Recipe(), ["--config", str(tmp_path / "config.yaml")]) == config
    assert parse(recipe, ["--config", str(tmp_path / "config.yaml")]) == config
    assert load_config(recipe, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_is_saved_and_read_again(tmp_path: Path, text: str) -> None:
    config = Recipe(
        output=text, data=DataConfig(path=text, columns={"text": text}), model=ModelConfig(config={"a": text})
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Recipe(), tmp_path / "config.yaml") == config


def test_saved_text_reads_the_same_to_other_yaml_readers() -> None:
    for text in AWKWARD:
        assert yaml.safe_load(dump_config(Recipe(output=text)))["output"] == text


def test_text_in_other_scripts_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_config(Recipe(output="数据/ü " * 30))
    assert "output: '" + "数据/ü " * 30 + "'\n" in capsys.readouterr().out


def test_a_terminal_without_the_characters_gets_escapes() -> None:
    script = (
        "from hftk.config import RunConfig; from hftk.config.parse import print_config;"
        " print_config(RunConfig(output='数'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={"PYTHONIOENCODING": "ascii"}, check=True
    )
    assert b'output: "\\u6570"' in done.stdout


RECIPE = Recipe(
    data=DataConfig(sample="toy", validation_fraction=0.1),
    train=TrainConfig(epochs=2, warmup=0.1),
    output="out/x",
)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "",
            {
                "data": {"sample": "toy", "validation_fraction": 0.1},
                "train": {"epochs": 2, "warmup": 0.1},
                "output": "out/x",
            },
        ),
        (
            "--data.path a.csv",
            {"data": {"path": "a.csv"}, "train": {"epochs": 2, "warmup": 0.1}, "output": "out/x"},
        ),
        # back to the default of the class, which the user gave
        (
            "--train.warmup 0",
            {
                "data": {"sample": "toy", "validation_fraction": 0.1},
                "train": {"epochs": 2, "warmup": 0.0},
                "output": "out/x",
            },
        ),
        (
            "--output 数 --train.max_steps 3 --adapter.targets a b",
            {
                "data": {"sample": "toy", "validation_fraction": 0.1},
                "train": {"max_steps": 3, "warmup": 0.1},
                "output": "数",
                "adapter": {"targets": ["a", "b"]},
            },
        ),
    ],
)
def test_a_run_shows_what_differs_from_the_defaults_or_the_recipe_in_a_line_or_two_each(
    line: str, shown: dict[str, Any], tmp_path: Path
) -> None:
    config = parse(RECIPE, shlex.split(line))
    text = dump_changed(config, RECIPE)
    assert yaml.safe_load(text) == shown and len(text.splitlines()) <= 5
    (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
    assert (
        load_config(RECIPE, tmp_path / "shown.yaml") == config
    )  # what is shown is enough to make the run again


def test_nothing_is_shown_where_nothing_differs_and_long_lines_are_broken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dump_changed(Recipe(), Recipe()) == ""
    print_changed(Recipe(train=TrainConfig(extra={f"field_{i}": "数据" for i in range(30)})), Recipe())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3 and max(map(len, lines)) < 130


def test_a_secret_is_not_shown() -> None:
    text = dump_changed(Recipe(train=TrainConfig(extra={"hub_token": "hf_S", "adafactor": True})), Recipe())
    assert "hf_S" not in text and "adafactor: true" in text
