"""The tables of names that people bring along, against the installed transformers and against the settings
there are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from hftk.config import RunConfig, familiar_names, training_arguments
from hftk.config.settings import read_settings

KNOWN = [*read_settings(RunConfig()), "config"]
LATER = {"model.quantization.bits", "model.adapter.method", "model.adapter.rank", "model.adapter.targets"}
OPEN = ("data.columns.", "model.config.", "train.extra.")


@pytest.mark.parametrize("table", [familiar_names.OWN_ARGUMENTS, familiar_names.RENAMED])
def test_every_setting_that_is_recommended_exists(table: dict[str, str]) -> None:
    for old, text in table.items():
        if text.startswith("--"):
            for name in familiar_names.targets(text):
                known = name in KNOWN or name in LATER or name.startswith(OPEN)
                assert known or name == "generation", f"{old} -> {name}"


def test_own_arguments_are_fields_of_the_installed_transformers() -> None:
    assert set(familiar_names.OWN_ARGUMENTS) <= set(training_arguments.argument_types())


def test_renamed_settings_are_no_fields_of_the_installed_transformers() -> None:
    assert set(familiar_names.RENAMED) & set(training_arguments.argument_types()) == {
        "hub_token",  # refused as a secret
        "lr_scheduler_type",
        "optim",  # settings of ours by another name; in train.extra they bring transformers' own
    }


def test_renamed_settings_are_no_settings_of_hftk() -> None:
    assert not set(familiar_names.RENAMED) & set(KNOWN)


def test_every_hftk_setting_that_has_a_counterpart_keeps_it_to_itself() -> None:
    same_name = {name.rpartition(".")[2] for name in KNOWN} & set(training_arguments.argument_types())
    assert same_name <= set(familiar_names.OWN_ARGUMENTS)


def test_fields_read_off_the_source_are_those_of_the_class() -> None:
    from transformers.training_args import TrainingArguments  # slow, and shared with the tests that train

    assert [f.name for f in fields(TrainingArguments)] == list(training_arguments.argument_types())


def test_reading_the_fields_imports_nothing_heavy() -> None:
    script = (
        "import sys; from hftk.config.familiar_names import extra_problems\n"
        "assert list(extra_problems({'neftune_noise_alpha': 'x', 'foo': 1}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_is_read_for_an_empty_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(familiar_names, "argument_types", lambda: pytest.fail("read"))
    assert list(familiar_names.extra_problems({}, KNOWN)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("neftune_noise_alpha", 5),
        ("neftune_noise_alpha", 0.5),
        ("neftune_noise_alpha", None),
        ("run_name", "a"),
        ("ddp_timeout", 2),
        ("tf32", True),
        ("report_to", "none"),
        ("report_to", ["wandb"]),
        ("lr_scheduler_kwargs", {"power": 2}),
        ("fsdp_config", {}),
        ("hub_strategy", "end"),
        ("trackio_static_space_id", False),
    ],
)
def test_extra_takes_values_of_the_type_of_the_field(name: str, value: object) -> None:
    assert list(familiar_names.extra_problems({name: value}, KNOWN)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("neftune_noise_alpha", "x", "expected a number or none, found 'x'"),
        ("ddp_timeout", 2.5, "expected a whole number, found 2.5"),
        ("ddp_timeout", True, "expected a whole number, found True"),
        ("ddp_timeout", None, "expected a whole number, found None"),
        ("tf32", 1, "expected true or false or none, found 1"),
        ("run_name", 5, "expected text or none, found 5"),
        ("lr_scheduler_kwargs", [1], "expected a mapping or text or none, found [1]"),
        ("trackio_static_space_id", 3, "expected true or false or text or none, found 3"),
    ],
)
def test_extra_refuses_values_of_another_type(name: str, value: object, words: str) -> None:
    (problem,) = familiar_names.extra_problems({name: value}, KNOWN)
    assert problem.setting == f"train.extra.{name}"
    assert problem.message.startswith(words)


@pytest.mark.parametrize("name", familiar_names.OWN_ARGUMENTS)
def test_extra_refuses_what_hftk_sets_itself_and_names_its_setting(name: str) -> None:
    (problem,) = familiar_names.extra_problems({name: 1}, KNOWN)
    assert "hftk sets this field itself" in problem.message
    assert familiar_names.OWN_ARGUMENTS[name] in problem.fix


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("neftune_noise_alfa", "did you mean --train.extra.neftune_noise_alpha?"),
        ("ddp-timeout", "did you mean --train.extra.ddp_timeout?"),
        ("learning_rte", "use --train.learning_rate"),
        ("evaluation_strategy", "use --train.eval_steps (transformers 5 calls the argument eval_strategy)"),
        ("zzz", ""),
    ],
)
def test_an_unknown_field_in_extra_gets_the_nearest_name(name: str, fix: str) -> None:
    (problem,) = familiar_names.extra_problems({name: 1}, KNOWN)
    assert "has no such field" in problem.message
    assert problem.fix == fix


@pytest.mark.parametrize(
    "extra",
    [
        {"hub_token": "hf_S"},
        {"api_key": "hf_S"},
        {"wandb_api_key": "hf_S"},
        {"fsdp_config": {"a": {"TOKEN": "hf_S"}}},
    ],
)
def test_extra_refuses_secrets_and_does_not_show_them(extra: dict[str, object]) -> None:
    (problem,) = familiar_names.extra_problems(extra, KNOWN)
    assert "hf auth login" in problem.fix
    assert "hf_S" not in str(problem)


def test_tokens_of_text_are_no_secrets() -> None:
    assert not list(training_arguments.secrets({"include_num_input_tokens_seen": True, "max_tokens": 3}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("evaluation_strategy", "eval_strategy"),
        ("group_by_length", "--train.group_by_length"),
        ("warmup_ratio", "--train.warmup"),
        ("no_cuda", "use_cpu"),
        ("overwrite_output_dir", "--overwrite"),
        ("logging_dir", "TENSORBOARD_LOGGING_DIR"),
        ("save_safetensors", "safetensors"),
        ("include_inputs_for_metrics", "include_for_metrics"),
        ("per_device_train_batch_size", "--train.per_device_batch_size"),
        ("gradient_accumulation_steps", "--train.global_batch_size"),
        ("num_train_epochs", "--train.epochs"),
        ("output_dir", "--output"),
        ("model_name_or_path", "--model.name"),
        ("train_file", "--data.train"),
        ("validation_file", "--data.validation"),
        ("test_file", "--data.test"),
        ("dataset_name", "--data.path"),
        ("text_column", "--data.columns.text"),
        ("summary_column", "--data.columns.target"),
        ("block_size", "--train.max_length"),
        ("max_seq_length", "--train.max_length"),
        ("bf16", "--train.precision bf16"),
        ("fp16", "--train.precision fp16"),
        ("lr_scheduler_type", "--train.schedule"),
        ("load_in_8bit", "--model.quantization.bits"),
        ("max_train_samples", "--data.max_rows"),
        ("lr", "--train.learning_rate"),
        ("hub_token", "HF_TOKEN"),
        ("model", "--model.name"),
        ("n_layer", "--model.config.n_layer"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "train.", "model.", "training_args."])
def test_a_renamed_setting_is_known_under_any_prefix(prefix: str, old: str, new: str) -> None:
    assert new in familiar_names.correct(prefix + old, KNOWN)


def test_a_setting_that_a_recipe_lacks_is_not_recommended() -> None:
    without = [name for name in KNOWN if name != "model.adapter.rank"]
    assert (
        familiar_names.advise("lora_r", without)
        == "its counterpart is --model.adapter.rank, which this recipe does not have"
    )
    assert familiar_names.advise("lora_r", KNOWN) == "use --model.adapter.rank"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.learning_rat", "did you mean --train.learning_rate?"),
        ("per-device-train-batch-size", "use --train.per_device_batch_size"),
        ("train.learning-rate", "did you mean --train.learning_rate?"),
        ("trian.epochs", "did you mean --train.epochs?"),
        ("temperature", "did you mean --generation.temperature?"),
        ("outptu", "did you mean --output?"),
        ("conf", "did you mean --config?"),
        ("neftune_noise_alpha", "did you mean --train.extra.neftune_noise_alpha?"),
        ("train.report_to", "did you mean --train.extra.report_to?"),
        ("resamples", "did you mean --eval.resamples?"),
        ("zzzzz", ""),
        ("generation.zzz", ""),
        ("train.trian", "did you mean --data.train?"),
        ("train.foo", ""),
    ],
)
def test_the_nearest_name_is_offered(wrong: str, right: str) -> None:
    assert familiar_names.correct(wrong, KNOWN) == right


def test_a_name_that_fits_several_settings_offers_them_all() -> None:
    assert set(familiar_names.nearest("max_rows", KNOWN)) == {"data.max_rows", "eval.max_rows"}
