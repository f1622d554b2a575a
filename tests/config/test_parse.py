"""Flags and YAML files over a recipe's config: precedence, types, merging, and every mistake at once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from hftk.config import DataConfig, InputError, ModelConfig, Problem, RunConfig, TrainConfig, setting
from hftk.config.parse import dump_config, parse


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Small trained matrices beside frozen ones.

    A second paragraph.
    """

    method: Literal["none", "lora"] = "none"
    """Kind of adapter; 100 % of the model is trained without one."""
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
    kind: Literal["none", "some"] | None = None
    """A choice of which "none" is one."""


def flags(line: str, config: Any = None) -> Any:
    return parse(Recipe() if config is None else config, shlex.split(line))


def mistakes(line: str, config: Any = None) -> dict[str, Problem]:
    with pytest.raises(InputError) as caught:
        flags(line, config)
    found = {problem.setting: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "a setting is complained about twice"
    return found


def mistake(line: str, config: Any = None) -> Problem:
    (problem,) = mistakes(line, config).values()
    return problem


@pytest.fixture
def yaml_file(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# --- precedence


def test_without_arguments_the_config_is_the_recipe_s() -> None:
    config = Recipe(output="o", train=TrainConfig(epochs=2.0, extra={"tf32": True}))
    assert parse(config, []) == config


def test_flags_win_over_files_and_later_files_over_earlier_ones(yaml_file: Any) -> None:
    one = yaml_file("train: {seed: 1, warmup: 1, weight_decay: 1}\n", "one.yaml")
    two = yaml_file("train:\n  seed: 2\n  warmup: 2\n", "two.yaml")
    config = Recipe(train=TrainConfig(seed=9, warmup=9, weight_decay=9, max_grad_norm=9))
    for line in (
        f"--train.seed 3 --config {one} --config={two}",
        f"--config {one} --config {two} --train.seed 3",
    ):
        train = flags(line, config).train
        assert (train.seed, train.warmup, train.weight_decay, train.max_grad_norm) == (3, 2, 1, 9)


def test_of_a_repeated_flag_the_last_one_counts() -> None:
    assert flags("--train.seed 1 --train.seed 2").train.seed == 2


def test_an_empty_file_and_empty_sections_change_nothing(yaml_file: Any) -> None:
    for text in (
        "",
        "# nothing\n",
        "train:\n  # epochs: 3\ndata:\n  columns:\n",
        "---\n",
        b"\xef\xbb\xbf# BOM\n",
    ):
        assert flags(f"--config {yaml_file(text)}") == Recipe()


def test_dotted_names_work_in_yaml(yaml_file: Any) -> None:
    path = yaml_file("train.seed: 3\ndata.columns.text: body\ntrain:\n  extra.run_name: x\n")
    config = flags(f"--config {path}")
    assert (config.train.seed, config.data.columns, config.train.extra) == (
        3,
        {"text": "body"},
        {"run_name": "x"},
    )


def test_yaml_anchors_and_merge_keys_work(yaml_file: Any) -> None:
    path = yaml_file("<<: {output: o}\ndata: &d\n  seed: 5\neval:\n  <<: *d\n  max_rows: 2\n")
    config = flags(f"--config {path}")
    assert (config.output, config.data.seed, config.eval.seed, config.eval.max_rows) == ("o", 5, 5, 2)


# --- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.learning_rate", "1e-3", 1e-3),
        ("train.learning_rate", "5e-5", 5e-5),
        ("train.epochs", "3", 3.0),
        ("train.epochs", ".5", 0.5),
        ("train.max_steps", "1_000", 1000),
        ("train.max_steps", "1e3", 1000),
        ("train.max_steps", "3.0", 3),
        ("train.max_steps", "none", None),
        ("train.epochs", "null", None),
        ("train.max_grad_norm", "0", 0.0),
        ("data.seed", "-3", -3),
        ("data.path", "none", None),
        ("data.path", "a b/ü.txt", "a b/ü.txt"),
        ("data.path", "5", "5"),
        ("data.path", "true", "true"),
        ("data.path", "a: b", "a: b"),
        ("data.path", "# x", "# x"),
        ("output", "2024-01-01", "2024-01-01"),
        ("data.unicode", "none", "none"),
        ("train.schedule", "cosine", "cosine"),
        ("overwrite", "true", True),
        ("overwrite", "False", False),
        ("overwrite", "yes", True),
        ("maybe", "none", None),
        ("kind", "none", "none"),
        ("kind", "null", None),
        ("maybe", "no", False),
        ("sizes", "[3, 4]", (3, 4)),
        ("adapter.bits", "4", 4),
        ("adapter.targets", "all", "all"),
        ("adapter.targets", "[q, v]", ["q", "v"]),
        ("adapter.targets", "q", ["q"]),
    ],
)
def test_a_value_means_the_same_as_a_flag_and_in_yaml(
    yaml_file: Any, name: str, text: str, value: Any
) -> None:
    quoted = "'" + text + "'" if text[0] == "#" or ": " in text else text
    path = yaml_file(f"{name}: {quoted}\n")
    for argv in ([f"--{name}", text], [f"--{name}={text}"], ["--config", str(path)]):
        found = setting(parse(Recipe(), argv), name)
        assert found == value
        assert type(found) is type(value)


def test_quoted_text_in_yaml_is_text(yaml_file: Any) -> None:
    path = yaml_file("data: {path: 'none', subset: 'null', sample: ~}\nmodel: {config: {a: '2', b: 2}}\n")
    config = flags(f"--config {path}")
    assert (config.data.path, config.data.subset, config.data.sample) == ("none", "null", None)
    assert config.model.config == {"a": "2", "b": 2}


def test_a_switch_needs_no_value() -> None:
    on = flags("--overwrite --data.streaming --train.max_steps 5 --no-data.deduplicate")
    assert (on.overwrite, on.data.streaming, on.data.deduplicate) == (True, True, False)
    assert flags("--no-overwrite", replace(Recipe(), overwrite=True)).overwrite is False
    assert flags("--overwrite --maybe").maybe is True


def test_several_values_make_a_list() -> None:
    config = flags("--adapter.targets q_proj v_proj --sizes 3 4 5 --overwrite")
    assert (config.adapter.targets, config.sizes, config.overwrite) == (["q_proj", "v_proj"], (3, 4, 5), True)


def test_a_value_that_begins_with_a_hyphen_needs_an_equals_sign() -> None:
    assert flags("--output=-x --train.weight_decay=-0").output == "-x"
    found = mistakes("--output -x")
    assert "--output=VALUE" in found["output"].fix


def test_negative_numbers_are_values() -> None:
    for text in ("-1", "-1e-3", "-.5"):
        assert f"found {float(text)}" in mistake(f"--train.weight_decay {text}").message


# --- dictionaries


def test_values_of_dictionaries_are_read_as_yaml() -> None:
    line = (
        "--model.config.a 5 --model.config.b 1e-3 --model.config.c true --model.config.d '\"2\"'"
        " --model.config.e text"
    )
    line += (
        " --model.config.f none --model.config.g null --model.config.h '[1, {x: 2}]' --model.config.i 1_000"
    )
    line += " --model.config.j no --model.config.k 010 --model.config.l '' --model.config.m '[x'"
    assert flags(line).model.config == {
        "a": 5,
        "b": 1e-3,
        "c": True,
        "d": "2",
        "e": "text",
        "f": "none",
        "g": None,
        "h": [1, {"x": 2}],
        "i": 1000,
        "j": "no",
        "k": "010",
        "l": "",
        "m": "[x",
    }


def test_values_of_a_dictionary_of_text_stay_text(yaml_file: Any) -> None:
    path = yaml_file("data: {columns: {a: 5, b: true, c: no}}\n")
    config = flags(f"--config {path} --data.columns.d 7 --data.columns.e=1e3 --data.columns '{{f: x}}'")
    assert config.data.columns == {"a": "5", "b": "true", "c": "no", "d": "7", "e": "1e3", "f": "x"}


def test_dictionaries_are_merged_key_by_key_over_all_levels(yaml_file: Any) -> None:
    recipe = Recipe(
        data=DataConfig(columns={"text": "a", "label": "b"}),
        train=TrainConfig(extra={"lr_scheduler_kwargs": {"power": 1, "x": 0}}),
    )
    path = yaml_file(
        "data: {columns: {label: c}}\ntrain: {extra: {lr_scheduler_kwargs: {power: 2}, run_name: r}}\n"
    )
    config = flags(
        f"--train.extra.lr_scheduler_kwargs.y=3 --config {path} --train.extra.lr_scheduler_kwargs.z 4", recipe
    )
    assert config.data.columns == {"text": "a", "label": "c"}
    assert config.train.extra == {
        "lr_scheduler_kwargs": {"power": 2, "x": 0, "y": 3, "z": 4},
        "run_name": "r",
    }
    assert recipe.train.extra == {"lr_scheduler_kwargs": {"power": 1, "x": 0}}


# --- alternatives


def test_a_flag_unsets_what_excludes_it_in_lower_levels(yaml_file: Any) -> None:
    recipe = Recipe(
        data=DataConfig(sample="s"), model=ModelConfig(size="tiny"), train=TrainConfig(epochs=1.0)
    )
    config = flags("--data.path p --model.name n --train.max_steps 5", recipe)
    assert (config.data.sample, config.model.size, config.train.epochs) == (None, None, None)
    assert (config.data.path, config.model.name, config.train.max_steps) == ("p", "n", 5)


def test_every_file_is_a_level_of_its_own(yaml_file: Any) -> None:
    one, two = (
        yaml_file("data: {path: p}\n", "1.yaml"),
        yaml_file("data: {train: t, validation: v, test: w}\n", "2.yaml"),
    )
    data = flags(f"--config {one} --config {two}").data
    assert (data.path, data.train, data.validation, data.test) == (None, "t", "v", "w")
    data = flags(f"--config {two} --config {one}").data
    assert (data.path, data.train, data.validation, data.test) == ("p", None, None, None)
    data = flags(f"--config {two} --data.train other").data
    assert (data.train, data.validation) == ("other", "v")
    assert flags(f"--config {two} --data.sample python_docs").data == DataConfig(sample="python_docs")


def test_two_alternatives_on_one_level_are_a_conflict(yaml_file: Any) -> None:
    assert mistake("--train.epochs 1 --train.max_steps 5").setting == "train.max_steps"
    problem = mistake(f"--config {yaml_file('data: {path: p, sample: s}')}")
    assert "run.yaml, line 1" in problem.message


def test_setting_none_unsets_nothing_else() -> None:
    recipe = Recipe(train=TrainConfig(epochs=1.0))
    assert flags("--train.max_steps none", recipe).train.epochs == 1.0


def test_what_belongs_to_a_model_made_on_the_spot_goes_with_it() -> None:
    made = ModelConfig(
        size="tiny", tokenizer="characters", initialization="he", config={"n_layer": 2}, dropout=0.1
    )
    recipe = Recipe(model=made)
    assert flags("--model.name gpt2", recipe).model == ModelConfig(name="gpt2", dropout=0.1)
    assert flags("--model.size mini", recipe).model == replace(made, size="mini")
    assert mistake("--model.name gpt2 --model.tokenizer bpe", recipe).setting == "model.tokenizer"
    named = Recipe(model=ModelConfig(name="gpt2", revision="v1", config={"a": 1}))
    assert flags("--model.size tiny", named).model == ModelConfig(size="tiny", config={"a": 1})


def test_a_given_split_takes_the_place_of_its_fraction() -> None:
    fractions = Recipe(data=DataConfig(train="t", validation_fraction=0.1, test_fraction=0.2))
    data = flags("--data.validation v", fractions).data
    assert (data.validation, data.validation_fraction, data.test_fraction) == ("v", None, 0.2)
    files = Recipe(data=DataConfig(train="t", validation="v"))
    assert flags("--data.validation_fraction 0.3", files).data.validation is None
    assert flags("--data.validation_fraction 0", files).data.validation == "v"


# --- mistakes


@pytest.mark.parametrize(
    ("line", "setting", "message", "fix"),
    [
        (
            "--train.learning_rat 1",
            "train.learning_rat",
            "there is no such setting",
            "did you mean --train.learning_rate?",
        ),
        (
            "--train.learning-rate 1",
            "train.learning-rate",
            "there is no such",
            "did you mean --train.learning_rate?",
        ),
        ("--learning_rate=1", "learning_rate", "there is no such setting", "use --train.learning_rate"),
        ("--lr 1", "lr", "there is no such setting", "use --train.learning_rate"),
        (
            "--temperatur 1",
            "temperatur",
            "there is no such setting",
            "did you mean --generation.temperature?",
        ),
        ("--out x", "out", "there is no such setting", "use --output"),
        ("--conf x.yaml", "conf", "there is no such setting", "did you mean --config?"),
        ("--data.column.text b", "data.column.text", "no such setting", "did you mean --data.columns.text?"),
        (
            "--neftune_noise_alpha 1",
            "neftune_noise_alpha",
            "no such",
            "did you mean --train.extra.neftune_noise_alpha?",
        ),
        ("--zzz 1 2 3", "zzz", "there is no such setting", "--help lists all settings"),
        ("--model gpt2", "model", "not the whole section", "use --model.name"),
        ("--generation 1", "generation", "not the whole section", "--generation.max_new_tokens"),
        ("--train.epochs.x 1", "train.epochs.x", "there is no such setting", ""),
        ("--no-output", "no-output", "there is no such setting", "did you mean --output?"),
        ("--no-overwrite true", "no-overwrite", "takes no value, found 'true'", "--overwrite true"),
        ("-lr 1", "lr", "two hyphens, found '-lr'", "use --train.learning_rate"),
        ("—output x", "output", "two hyphens, found '—output'", "did you mean --output?"),
        ("--train.epochs x", "train.epochs", "expected a number or none, found 'x'", ""),
        ("--train.epochs 1:30", "train.epochs", "expected a number or none, found '1:30'", ""),
        ("--train.epochs ''", "train.epochs", "expected a number or none, found ''", ""),
        ("--train.seed none", "train.seed", "expected a whole number, found 'none'", ""),
        ("--train.seed 1.5", "train.seed", "expected a whole number, found '1.5'", ""),
        ("--train.seed true", "train.seed", "expected a whole number, found 'true'", ""),
        ("--overwrite maybe", "overwrite", "expected true or false, found 'maybe'", ""),
        ("--overwrite 1", "overwrite", "expected true or false, found '1'", ""),
        (
            "--train.schedule cosin",
            "train.schedule",
            "expected one of linear, cosine, ",
            "did you mean cosine?",
        ),
        ("--train.schedule LINEAR", "train.schedule", "found 'LINEAR'", "did you mean linear?"),
        ("--adapter.bits 5", "adapter.bits", "expected one of 0, 4, 8, found '5'", ""),
        ("--sizes 1 x", "sizes", "expected a list, found ['1', 'x']", ""),
        ("--output", "output", "expected text, found no value", "--output VALUE"),
        ("--output --overwrite", "output", "expected text, found no value", "--output VALUE"),
        (
            "--data.columns.text",
            "data.columns.text",
            "expected text, found no value",
            "--data.columns.text VALUE",
        ),
        (
            "--data.columns x",
            "data.columns",
            "expected a mapping, found 'x'",
            "use --data.columns.NAME VALUE",
        ),
        ("--data.columns.a.b x", "data.columns.a.b", "expected text, found {'b': 'x'}", ""),
        ("--config", "config", "expected a YAML file, found nothing", "--config FILE.yaml"),
        (
            "--train.extra.learning_rate 1",
            "train.extra.learning_rate",
            "sets this field itself",
            "use --train.learning_rate",
        ),
        ("left over", "", "expected --NAME VALUE, found 'left' on its own", ""),
        ("train.seed=3", "", "found 'train.seed=3' on its own", "did you mean --train.seed?"),
        ("--", "", "found '--' on its own", ""),
        ("small.yaml", "", "on its own", "--config small.yaml"),
    ],
)
def test_a_mistake_says_what_was_expected_and_what_to_type(
    line: str, setting: str, message: str, fix: str
) -> None:
    with pytest.raises(InputError) as caught:
        flags(line)
    problem = caught.value.problems[0]
    assert problem.setting == setting
    assert message in problem.message
    assert fix in problem.fix


def test_every_mistake_is_reported_at_once(yaml_file: Any, tmp_path: Path) -> None:
    good = yaml_file(
        "train:\n  epochs: x\n  trian: 1\nevaluation_strategy: steps\neval: {batch_size: 0}\nmodel: 5\n"
    )
    bad = yaml_file("train: [1\n", "bad.yaml")
    line = (
        f"--lr 1 --config {good} --config {bad} --config {tmp_path / 'no.yaml'} --train.schedule x"
        " --train.warmup -1"
    )
    with pytest.raises(InputError) as caught:
        flags(f"{line} --train.extra.foo 1 stray")
    found = [(p.setting, p.message) for p in caught.value.problems]
    assert [name for name, _ in found] == [
        "lr",
        "train.schedule",
        "",
        "train.epochs",
        "train.trian",
        "evaluation_strategy",
        "model",
        "config",
        "config",
        "train.extra.foo",
        "train.warmup",
        "eval.batch_size",
    ]
    lines = {name: message for name, message in found if name != "config"}
    assert f"{good}, line 2" in lines["train.epochs"]
    assert f"{good}, line 3" in lines["train.trian"]
    assert f"{good}, line 4" in lines["evaluation_strategy"]
    assert f"{good}, line 5" in lines["eval.batch_size"]
    assert f"{good}, line 6" in lines["model"]


def test_a_setting_that_could_not_be_read_is_not_complained_about_twice() -> None:
    assert set(mistakes("--data.streaming --train.max_steps x")) == {"train.max_steps"}
    assert set(mistakes("--data.streaming --train.max_step 5")) == {"train.max_step"}
    assert set(
        mistakes(
            "--train.learning_rate x --train.min_learning_rate 1",
            Recipe(train=TrainConfig(learning_rate=0.1)),
        )
    ) == {"train.learning_rate"}


@pytest.mark.parametrize(
    "line",
    [
        "--train.extra.hub_token hf_SECRETSECRETSECRETSECRETSECRETSECR",
        "--hub_token hf_SECRETSECRETSECRETSECRETSECRETSECR",
        "--token=hf_SECRETSECRETSECRETSECRETSECRETSECR",
        "--train.extra '{hub_token: hf_SECRETSECRETSECRETSECRETSECRETSECR}'",
        "--train.extra.api_key = hf_SECRETSECRETSECRETSECRETSECRETSECR",
        "hf_SECRETSECRETSECRETSECRETSECRETSECR",
        "hub_token=SECRETSECRET",
        "--train.seed hf_SECRETSECRETSECRETSECRETSECRETSECR",
    ],
)
def test_a_secret_is_refused_and_never_shown(line: str) -> None:
    with pytest.raises(InputError) as caught:
        flags(line)
    assert "SECRETSECRET" not in str(caught.value)


def test_a_secret_in_the_recipe_is_refused_and_not_saved() -> None:
    config = Recipe(train=TrainConfig(extra={"hub_token": "hf_S", "fsdp_config": {"api_key": "k", "a": 1}}))
    assert set(mistakes("", config)) == {"train.extra.hub_token", "train.extra.fsdp_config.api_key"}
    saved = dump_config(config)
    assert "hf_S" not in saved and "api_key" not in saved and "a: 1" in saved


def test_a_file_may_name_a_setting_of_an_earlier_version_which_is_ignored_with_a_note(
    yaml_file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = yaml_file("train:\n  fused_layers: never\n  seed: 7\n")
    assert parse(RunConfig(), ["--config", str(path)]).train.seed == 7
    assert "train.fused_layers: ignored" in capsys.readouterr().out
