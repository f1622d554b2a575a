"""The config classes: what they call contradictory, and how values are read from and laid over them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from hftk.config import (
    ALTERNATIVES,
    DataConfig,
    EvalConfig,
    GenerationSettings,
    InputError,
    ModelConfig,
    Problem,
    RunConfig,
    TrainConfig,
    override,
    setting,
    to_dict,
)


def named(config: Any) -> list[str]:
    return [problem.setting for problem in config.problems()]


def test_the_defaults_have_no_problem() -> None:
    assert list(RunConfig().problems()) == []


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DataConfig(validation_fraction=0.6), "data.validation_fraction"),
        (DataConfig(test_fraction=-0.1), "data.test_fraction"),
        (DataConfig(max_rows=0), "data.max_rows"),
        (DataConfig(train="a", test="b", test_fraction=0.1), "data.test_fraction"),
        (DataConfig(validation="a"), "data.train"),
        (ModelConfig(name="gpt2", architecture="llama"), "model.architecture"),
        (ModelConfig(name="gpt2", tokenizer="bpe"), "model.tokenizer"),
        (ModelConfig(name="gpt2", initialization="he"), "model.initialization"),
        (ModelConfig(vocab_size=1), "model.vocab_size"),
        (ModelConfig(dropout=1.0), "model.dropout"),
        (TrainConfig(epochs=0), "train.epochs"),
        (TrainConfig(learning_rate=float("nan")), "train.learning_rate"),
        (TrainConfig(weight_decay=-1), "train.weight_decay"),
        (TrainConfig(label_smoothing=1), "train.label_smoothing"),
        (TrainConfig(learning_rate=1e-4, min_learning_rate=1e-3), "train.min_learning_rate"),
        (TrainConfig(schedule="reduce_on_plateau", warmup=0.1), "train.warmup"),
        (EvalConfig(batch_size=0), "eval.batch_size"),
        (EvalConfig(resamples=-1), "eval.resamples"),
        (GenerationSettings(max_new_tokens=-1), "generation.max_new_tokens"),
        (GenerationSettings(temperature=0.0, do_sample=True), "generation.temperature"),
        (GenerationSettings(top_p=0.0, do_sample=True), "generation.top_p"),
        (GenerationSettings(top_k=-1, do_sample=True), "generation.top_k"),
        (GenerationSettings(top_k=5), "generation.do_sample"),
        (RunConfig(resume="auto", overwrite=True), "overwrite"),
        (RunConfig(data=DataConfig(streaming=True)), "train.max_steps"),
    ],
)
def test_a_contradiction_names_its_setting(config: Any, name: str) -> None:
    assert named(config) == [name]


@pytest.mark.parametrize("group", ALTERNATIVES)
def test_two_alternatives_exclude_each_other(group: tuple[str, ...]) -> None:
    config = RunConfig()
    for name in group[:2]:
        section, last = name.split(".")
        config = override(config, {section: {last: "x" if section != "train" else 1}})
    problems = list(config.problems())
    assert [problem.setting for problem in problems] == [group[1]]
    assert f"--{group[0]}" in problems[0].message


def test_every_part_is_asked_for_its_problems() -> None:
    config = RunConfig(
        data=DataConfig(max_rows=0),
        model=ModelConfig(vocab_size=0),
        train=TrainConfig(epochs=-1),
        eval=EvalConfig(batch_size=0),
        generation=GenerationSettings(num_beams=0),
    )
    assert named(config) == [
        "data.max_rows",
        "model.vocab_size",
        "train.epochs",
        "eval.batch_size",
        "generation.num_beams",
    ]


def test_problems_are_shown_together() -> None:
    first, second = (
        Problem(setting="train.epochs", message="no", fix="yes"),
        Problem(setting="", message="other"),
    )
    error = InputError(first, second, "plain")
    assert str(error) == "--train.epochs: no\n    yes\nother\nplain"
    assert [problem.message for problem in error.problems] == ["no", "other", "plain"]


def test_a_setting_is_found_by_its_dotted_name() -> None:
    config = RunConfig(model=ModelConfig(config={"n_layer": 4}))
    assert setting(config, "train.seed") == 0
    assert setting(config, "model.config.n_layer") == 4
    with pytest.raises(AttributeError):
        setting(config, "train.sed")
    with pytest.raises(KeyError):
        setting(config, "model.config.n_head")


def test_values_laid_over_a_config_leave_it_as_it_was() -> None:
    config = RunConfig(data=DataConfig(columns={"text": "body"}))
    other = override(config, {"data": {"columns": {"label": "y"}, "seed": 3}, "output": "o"})
    assert other.data.columns == {"text": "body", "label": "y"}
    assert (other.data.seed, other.output) == (3, "o")
    assert config == RunConfig(data=DataConfig(columns={"text": "body"}))


def test_configs_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        RunConfig().output = "x"  # type: ignore[misc]


def test_the_dictionary_of_a_config_has_every_field() -> None:
    def keys(config: Any) -> dict[str, Any]:
        return {
            f.name: keys(getattr(config, f.name)) if is_dataclass(getattr(config, f.name)) else None
            for f in fields(config)
        }

    def shape(values: Any, like: Any) -> Any:
        return {name: shape(values[name], like[name]) if like[name] is not None else None for name in values}

    assert shape(to_dict(RunConfig()), keys(RunConfig())) == keys(RunConfig())


def test_every_alternative_is_a_setting_that_can_be_unset() -> None:
    for group in ALTERNATIVES:
        assert all(setting(RunConfig(), name) is None for name in group)


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"length_penalty": 2.0}, "generation.num_beams"),
        ({"early_stopping": "never"}, "generation.num_beams"),
        ({"no_repeat_ngram_size": -1}, "generation.no_repeat_ngram_size"),
        ({"repetition_penalty": 0.0}, "generation.repetition_penalty"),
    ],
)
def test_settings_of_generation_that_do_nothing_or_make_no_sense_are_found(
    settings: dict[str, Any], setting: str
) -> None:
    assert [problem.setting for problem in GenerationSettings(**settings).problems()] == [setting]
    assert not list(GenerationSettings(num_beams=4, length_penalty=2.0, early_stopping=True).problems())
