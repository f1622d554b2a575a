"""The model, its quantized weights and its adapter: ``model.*``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hftk.config.problems import Problem

AdapterMethod = Literal["none", "lora", "rslora", "dora", "pissa", "ia3", "prompt_tuning"]
LORA = ("lora", "rslora", "dora", "pissa")
"""Methods that add a product of two thin matrices to a layer."""
ALL_LINEAR = "all-linear"
_TAKEN: dict[str, tuple[str, ...]] = {
    "rank": LORA,
    "alpha": LORA,
    "dropout": LORA,
    "initialization": LORA,
    "targets": (*LORA, "ia3"),
    "virtual_tokens": ("prompt_tuning",),
}
"""Setting to the methods that it acts on."""


@dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """Frozen weights in 8 or 4 bits (bitsandbytes), on GPUs and CPUs; heads and embeddings are not
    quantized."""

    bits: Literal[8, 4] | None = None
    """Bits of each quantized weight: 8 (LLM.int8, Dettmers et al. 2022) or 4 (QLoRA, Dettmers et al. 2023).
    Training needs an adapter on top, such as --model.adapter.method lora."""
    quant_type: Literal["nf4", "fp4"] | None = None
    """The sixteen values of 4 bits: nf4 (for weights that are normally distributed) or fp4. Default: nf4."""
    double_quant: bool | None = None
    """With 4 bits: quantize the scales too, which saves 0.4 bits per weight. Default: true."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """With 4 bits: type in which de-quantized weights are multiplied. auto: bfloat16 where the hardware
    computes it, else float32."""
    skip_modules: list[str] = field(default_factory=list)
    """More layers to leave unquantized, by name or the end of it, such as layers.0.mlp.down_proj."""

    def problems(self) -> Iterator[Problem]:
        if self.bits not in (None, 8, 4):
            yield Problem(
                setting="model.quantization.bits", message=f"expected 8, 4 or none, found {self.bits}"
            )
        for name in _given(self, "bits"):
            if self.bits is None:
                message, fix = (
                    "acts on quantized weights, and --model.quantization.bits is not set",
                    "add --model.quantization.bits 4, or leave it out",
                )
            elif self.bits == 8 and name != "skip_modules":
                message, fix = (
                    "acts on 4 bits, and --model.quantization.bits is 8",
                    "use --model.quantization.bits 4, or leave it out",
                )
            else:
                continue
            yield Problem(setting=f"model.quantization.{name}", message=message, fix=fix)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A few new weights trained on top of frozen ones (PEFT); new heads and new rows of embeddings are
    trained with them."""

    method: AdapterMethod = "none"
    """none: all weights are trained. lora (Hu et al. 2021), rslora (scaled by 1/sqrt(rank)), dora (magnitude
    and direction apart), pissa (starts from the largest singular vectors), ia3 (one factor per output),
    prompt_tuning (trained input vectors)."""
    rank: int | None = None
    """LoRA: columns of the thin matrices. Default: 8."""
    alpha: float | None = None
    """LoRA: what the adapter adds is multiplied by alpha / rank (rslora: alpha / sqrt(rank)). Default: 2 x
    rank (pissa: the rank)."""
    dropout: float | None = None
    """LoRA: dropout probability of the adapter's input. Default: 0."""
    targets: list[str] | None = None
    """Layers that get an adapter, by name or the end of it, such as q_proj v_proj. Default: all-linear, every
    linear layer but heads (ia3: keys, values and the second layer of feed-forward blocks)."""
    initialization: Literal["gaussian", "orthogonal", "pissa", "olora", "loftq"] | None = None
    """LoRA: where it starts. Default: A as a linear layer, B zero. pissa and olora take the start from the
    frozen weights and need these unquantized. loftq (Li et al. 2023) starts with the best answer of that rank
    to what 8 or 4 bits have rounded away."""
    virtual_tokens: int | None = None
    """prompt_tuning: number of trained vectors before the input; they take that many tokens of the context.
    Default: 16."""

    def problems(self) -> Iterator[Problem]:
        for name in _given(self, "method"):
            if self.method not in _TAKEN[name]:
                methods = " or ".join(_TAKEN[name])
                message = f"is for the adapter {methods}, and --model.adapter.method is {self.method}"
                yield Problem(
                    setting=f"model.adapter.{name}",
                    message=message,
                    fix=f"add --model.adapter.method {_TAKEN[name][0]}, or leave it out",
                )
        for name in ("rank", "alpha", "virtual_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield Problem(setting=f"model.adapter.{name}", message=f"expected more than 0, found {value}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield Problem(
                setting="model.adapter.dropout", message=f"expected 0 <= dropout < 1, found {self.dropout}"
            )
        if self.targets is not None and (not self.targets or not all(self.targets)):
            yield Problem(
                setting="model.adapter.targets",
                message="expected names of layers, found none",
                fix="leave it out for all-linear",
            )
        if self.initialization == "loftq" and self.method not in ("lora", "rslora"):
            message = f"loftq is for the adapter lora or rslora, and --model.adapter.method is {self.method}"
            yield Problem(
                setting="model.adapter.initialization",
                message=message,
                fix="use --model.adapter.method lora, or leave it out",
            )
        if self.method == "pissa" and self.initialization not in (None, "pissa", "loftq"):
            yield Problem(
                setting="model.adapter.initialization",
                message=f"expected pissa for the method pissa, found {self.initialization}",
                fix="leave it out",
            )


def starts_from_weights(adapter: AdapterConfig) -> bool:
    """Whether the adapter's first values are a part of the frozen weights, which then give that part up."""
    return adapter.method == "pissa" or adapter.initialization in ("pissa", "olora")


def _given(config: Any, switch: str) -> list[str]:
    """Names of the settings that are not as the class has them, but for the one that switches the block
    on."""
    default = type(config)()
    return [
        f.name
        for f in fields(config)
        if f.name != switch and getattr(config, f.name) != getattr(default, f.name)
    ]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights and tokenizer: a name of existing ones, or a size made on the spot."""

    name: str | None = None
    """Hub id or local folder of a pre-trained model and its tokenizer."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    size: str | None = None
    """Make an untrained model on the spot: tiny, mini, small, medium, large ... (an unknown name lists those
    of the task)."""
    architecture: str | None = None
    """Model type of a model made on the spot, as transformers names it, such as gpt2 or llama. Default: the
    recipe's."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the model's own config laid over it, such as --model.config.n_layer 4."""
    tokenizer: str | None = None
    """For a model made on the spot: bpe (byte-level BPE), wordpiece or characters, trained on the training
    split; or the Hub id or folder of an existing tokenizer. Default: wordpiece for encoders such as BERT,
    else bpe."""
    vocab_size: int = 4096
    """Entries in a tokenizer trained on the spot, special tokens included (fewer if the data have fewer)."""
    initialization: Literal["default", "xavier", "he"] = "default"
    """Initial weights of the matrices of a model made on the spot: the model's own scheme, Xavier (Glorot)
    uniform, or He (Kaiming) normal."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which weights are held; auto: float32, with --train.precision deciding the type of the
    arithmetic."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; auto: the model's best supported one."""
    device_map: Literal["none", "auto", "balanced", "sequential"] = "none"
    """One process, several GPUs: how the layers of a model too large for one GPU are spread over them. auto
    and balanced: evenly; sequential: one GPU after the other is filled. none: the whole model on one device.
    Without several GPUs, training is as without it."""
    dropout: float | None = None
    """Dropout probability set on all of the model's dropouts. Default: the model's own (0 for a GPT-2 or
    Llama made on the spot)."""
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    frozen: list[str] = field(default_factory=list)
    """Weights that are not trained: embeddings, a number of lower layers such as 6 (with the embeddings), or
    names and parts of names such as encoder.layer.0."""

    def problems(self) -> Iterator[Problem]:
        yield from self.quantization.problems()
        yield from self.adapter.problems()
        yield from self._contradictions()
        if self.name is not None:
            for setting in ("architecture", "tokenizer"):
                if getattr(self, setting) is not None:
                    yield Problem(
                        setting=f"model.{setting}",
                        message=(
                            f"is for a model made on the spot, but --model.name {self.name} is a"
                            " pre-trained one"
                        ),
                        fix=f"leave out --model.{setting}, or use --model.size instead of --model.name",
                    )
            if self.initialization != "default":
                yield Problem(
                    setting="model.initialization",
                    message="is for a model made on the spot; pre-trained weights are not initialized again",
                    fix="leave it out, or use --model.size instead of --model.name",
                )
        if self.vocab_size < 2:
            yield Problem(setting="model.vocab_size", message=f"expected at least 2, found {self.vocab_size}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield Problem(setting="model.dropout", message=f"expected 0 <= dropout < 1, found {self.dropout}")

    def _contradictions(self) -> Iterator[Problem]:
        """Quantization, adapter and frozen weights beside each other."""
        bits, method = self.quantization.bits, self.adapter.method
        if bits is not None and method == "none":
            message = (
                f"weights in {bits} bits cannot be trained themselves: a step is far smaller than the"
                " distance between two values"
            )
            yield Problem(
                setting="model.quantization.bits",
                message=message,
                fix="add --model.adapter.method lora, or leave out --model.quantization.bits",
            )
        if bits is not None and starts_from_weights(self.adapter):
            setting = "method" if method == "pissa" else "initialization"
            message = (
                f"pissa and olora take a part out of the frozen weights, which {bits} bits cannot give up"
            )
            yield Problem(
                setting=f"model.adapter.{setting}",
                message=message,
                fix="use --model.adapter.method lora, or leave out --model.quantization.bits",
            )
        if bits is None and self.adapter.initialization == "loftq":
            message = (
                "loftq starts from what quantization rounds away, and --model.quantization.bits is not set"
            )
            yield Problem(
                setting="model.adapter.initialization",
                message=message,
                fix="add --model.quantization.bits 4, or leave it out",
            )
        if self.frozen and method != "none":
            message = f"the adapter {method} freezes all weights of the model already"
            yield Problem(
                setting="model.frozen",
                message=message,
                fix="leave out --model.frozen; --model.adapter.targets says which layers get an adapter",
            )
