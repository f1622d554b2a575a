"""The settings of quantization and adapters: what contradicts itself is told before anything is loaded."""

from __future__ import annotations

import pytest

from hftk.config import AdapterConfig, InputError, ModelConfig, QuantizationConfig
from hftk.config.parse import parse
from hftk.tasks.classification import ClassificationConfig


def told(*argv: str) -> str:
    with pytest.raises(InputError) as error:
        parse(ClassificationConfig(), argv)
    return str(error.value)


def test_one_block_of_flags_sets_both():
    flags = (
        "--model.quantization.bits 4 --model.adapter.method lora --model.adapter.rank 16"
        " --model.adapter.targets q_proj v_proj"
    )
    model = parse(ClassificationConfig(), ["--model.name", "m", *flags.split()]).model
    assert (model.quantization.bits, model.adapter.rank, model.adapter.targets) == (
        4,
        16,
        ["q_proj", "v_proj"],
    )


def test_quantized_weights_need_an_adapter():
    assert "--model.adapter.method lora" in told("--model.name", "m", "--model.quantization.bits", "8")


def test_three_bits_are_refused_with_those_there_are():
    assert "expected one of 8, 4 or none, found '3'" in told("--model.quantization.bits", "3")
    assert [p.setting for p in QuantizationConfig(bits=3).problems()] == ["model.quantization.bits"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "setting"),
    [
        (["--model.adapter.rank", "16"], "model.adapter.rank"),
        (["--model.adapter.method", "ia3", "--model.adapter.alpha", "16"], "model.adapter.alpha"),
        (
            ["--model.adapter.method", "lora", "--model.adapter.virtual_tokens", "4"],
            "model.adapter.virtual_tokens",
        ),
        (["--model.adapter.method", "lora", "--model.adapter.rank", "0"], "model.adapter.rank"),
        (["--model.adapter.method", "lora", "--model.adapter.dropout", "1"], "model.adapter.dropout"),
        (["--model.quantization.quant_type", "nf4"], "model.quantization.quant_type"),
        (
            [
                "--model.quantization.bits",
                "8",
                "--model.adapter.method",
                "lora",
                "--model.quantization.double_quant",
                "false",
            ],
            "model.quantization.double_quant",
        ),
        (["--model.quantization.bits", "8", "--model.adapter.method", "pissa"], "model.adapter.method"),
        (
            ["--model.adapter.method", "lora", "--model.adapter.initialization", "loftq"],
            "model.adapter.initialization",
        ),
        (
            [
                "--model.quantization.bits",
                "4",
                "--model.adapter.method",
                "dora",
                "--model.adapter.initialization",
                "loftq",
            ],
            "model.adapter.initialization",
        ),
        (
            [
                "--model.quantization.bits",
                "4",
                "--model.adapter.method",
                "dora",
                "--model.adapter.initialization",
                "olora",
            ],
            "model.adapter.initialization",
        ),
        (["--model.frozen", "2", "--model.adapter.method", "lora"], "model.frozen"),
        (["--train.layer_decay", "0"], "train.layer_decay"),
    ],
)
def test_a_setting_that_would_do_nothing_or_harm_is_named(flags, setting):
    assert f"--{setting}:" in told("--model.name", "m", *flags)


def test_the_defaults_have_no_problems():
    assert not [*ModelConfig().problems(), *ModelConfig(adapter=AdapterConfig(method="dora")).problems()]
