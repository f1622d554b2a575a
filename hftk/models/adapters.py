"""Adapters by PEFT: which layers get one, and what is trained beside it."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.config.model import ALL_LINEAR, LORA, AdapterConfig, starts_from_weights
from hftk.config.problems import InputError, Problem
from hftk.console import note
from hftk.models.adapter_files import ROUNDED
from hftk.models.architectures import kind_of
from hftk.models.heads import head_layers, linear_layers
from hftk.models.quantization import count, dequantized, is_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}
PROMPTED = ("CAUSAL_LM", "SEQ_CLS")
"""Kinds of tasks for which virtual tokens work here; a PEFT encoder-decoder gets some in the decoder too,
where nothing reads them."""
KEYS_AND_VALUES = frozenset(
    (
        "key",
        "value",
        "k",
        "v",
        "k_proj",
        "v_proj",
        "k_lin",
        "v_lin",
        "c_attn",
        "Wqkv",
        "qkv",
        "qkv_proj",
        "query_key_value",
        "key_proj",
        "value_proj",
    )
)
"""Names of attention's keys and values, or of one layer for both and the queries."""
RANK = 8
START: dict[str | None, bool] = {None: True, "loftq": True}
"""Initialization to PEFT's word for it, where that is not the same; of loftq, :func:`make_up_for_rounding`
does the rest."""
VIRTUAL_TOKENS = 16


def find_problems(adapter: AdapterConfig, model: PreTrainedModel, auto_model: str) -> Iterator[Problem]:
    """What is wrong with the settings for this model, which may be on the meta device."""
    if adapter.method == "none":
        return
    if importlib.util.find_spec("peft") is None:
        yield Problem(
            setting="model.adapter.method",
            message=f"{adapter.method} comes from peft, which is not installed",
            fix='pip install "hftk[peft]"',
        )
    task_type = TASK_TYPES.get(auto_model)
    if adapter.method == "prompt_tuning" and task_type not in PROMPTED:
        message = f"prompt_tuning is for decoders and classifiers, found {auto_model}"
        yield Problem(
            setting="model.adapter.method", message=message, fix="use --model.adapter.method lora or ia3"
        )
    if adapter.method == "prompt_tuning":
        if task_type == "SEQ_CLS" and kind_of(model.config) != "encoder":
            # It reads the last token, which it does not find where vectors are given in place of tokens.
            message = (
                "prompt_tuning of a classifier needs an encoder such as BERT, found"
                f" {model.config.model_type}"
            )
            yield Problem(
                setting="model.adapter.method", message=message, fix="use --model.adapter.method lora or ia3"
            )
        most = (getattr(model.config, "max_position_embeddings", None) or 2**31) // 2
        if (adapter.virtual_tokens or VIRTUAL_TOKENS) > most:
            message = (
                f"expected at most {most}, half of the model's context, found"
                f" {adapter.virtual_tokens or VIRTUAL_TOKENS}"
            )
            yield Problem(setting="model.adapter.virtual_tokens", message=message)
        return
    layers = linear_layers(model)
    for wanted in adapter.targets or ():
        if wanted != ALL_LINEAR and not any(_matches(name, wanted) for name in layers):
            ends = list(
                dict.fromkeys(name.rpartition(".")[2] for name in layers if name not in head_layers(model))
            )
            message = (
                f"no linear layer of {type(model).__name__} is called {wanted}; there are"
                f" {', '.join(ends[:16])}"
            )
            yield Problem(
                setting="model.adapter.targets",
                message=message,
                fix="name some of these, or leave it out for all-linear",
            )
    if not adapter.targets and not targets(adapter, model):
        kind = "linear layer" if adapter.method != "ia3" else "layer with keys, values or feed-forward"
        message = f"{adapter.method} finds no {kind} in {type(model).__name__}"
        yield Problem(
            setting="model.adapter.method",
            message=message,
            fix="use another method, or name layers by --model.adapter.targets",
        )


def targets(adapter: AdapterConfig, model: PreTrainedModel) -> list[str]:
    """Full names of the layers that get an adapter."""
    layers, heads = linear_layers(model), set(head_layers(model))
    inner = [name for name in layers if name not in heads]
    wanted = adapter.targets or ([] if adapter.method == "ia3" else [ALL_LINEAR])
    if ALL_LINEAR in wanted:
        return inner
    if wanted:
        return [name for name in layers if any(_matches(name, target) for target in wanted)]
    return [name for name in inner if _end(name) in KEYS_AND_VALUES or _is_second(name, layers[name])]


def _matches(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _is_second(name: str, layer: Any) -> bool:
    """Whether a layer is the second one of a feed-forward block: it makes what comes in narrower, and is no
    key or value."""
    inputs, outputs = _shape(layer)
    return inputs > outputs and _end(name) not in KEYS_AND_VALUES


def _shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer or Conv1D."""
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else (layer.nx, layer.nf)


def add(
    adapter: AdapterConfig,
    model: PreTrainedModel,
    auto_model: str,
    base: str,
    revision: str | None,
    *,
    new: Collection[str],
    new_tokens: range,
) -> Any:
    """``model``, frozen, with a new adapter on it: a ``PeftModel``.

    ``new`` names weights that no checkpoint holds and ``new_tokens`` rows of the embeddings that were added:
    both are trained and saved with the adapter, and so are the heads of a task. ``base`` is what ``model``
    was loaded from, as it was typed.

    Raises:
        InputError: PEFT or the model refuses; new tokens with a method that cannot train their embeddings.
    """
    from peft import get_peft_model

    saved = trained_besides(model, auto_model, new)
    chosen = [
        name
        for name in targets(adapter, model)
        if not any(name == s or name.startswith(f"{s}.") for s in saved)
    ]
    settings: dict[str, Any] = {
        "task_type": TASK_TYPES.get(auto_model),
        "base_model_name_or_path": base,
        "revision": revision,
    }
    if len(new_tokens) and adapter.method not in LORA:
        message = (
            f"the tokenizer has {len(new_tokens)} tokens that the model does not know, and {adapter.method}"
            " cannot train their embeddings"
        )
        raise InputError(
            Problem(setting="model.adapter.method", message=message, fix="use --model.adapter.method lora")
        )
    model.name_or_path = base  # which PEFT writes down
    with _quiet():
        made: Any = get_peft_model(model, _peft_config(adapter, model, chosen, saved, new_tokens, settings))
    made.peft_config["default"].base_model_name_or_path = base
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    _accept_other_types(made)
    _tell(adapter, made, chosen, saved, new_tokens)
    return (
        made.eval()
    )  # as from_pretrained does: PEFT marks the outside alone as training, which hides that the inside is not


def _peft_config(
    adapter: AdapterConfig,
    model: Any,
    chosen: list[str],
    saved: list[str],
    new_tokens: range,
    settings: dict[str, Any],
) -> Any:
    import peft

    if adapter.method == "prompt_tuning":
        tokens = adapter.virtual_tokens or VIRTUAL_TOKENS
        return peft.PromptTuningConfig(
            num_virtual_tokens=tokens, modules_to_save=[*saved] or None, **_dimensions(model), **settings
        )
    settings |= {"target_modules": chosen, "modules_to_save": [*saved] or None}
    if adapter.method == "ia3":
        layers = linear_layers(model)
        return peft.IA3Config(
            feedforward_modules=[name for name in chosen if _is_second(name, layers[name])], **settings
        )
    rank = adapter.rank or RANK
    # PiSSA starts from the weights' own part of that rank: with another scale it would be another part.
    alpha = adapter.alpha or (rank if starts_from_weights(adapter) else 2 * rank)
    if len(new_tokens):
        settings["trainable_token_indices"] = list(new_tokens)
    start: Any = (
        "pissa" if adapter.method == "pissa" else START.get(adapter.initialization, adapter.initialization)
    )
    return peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout or 0.0,
        use_rslora=adapter.method == "rslora",
        use_dora=adapter.method == "dora",
        init_lora_weights=start,
        **settings,
    )


def _dimensions(model: Any) -> dict[str, Any]:
    """What PEFT guesses by the names of a few architectures' settings."""
    width = int(model.get_input_embeddings().weight.shape[1])
    return {"token_dim": width, "num_transformer_submodules": 1}


def trained_besides(model: PreTrainedModel, auto_model: str, new: Collection[str]) -> list[str]:
    """Names of modules that are trained and saved whole: heads of a task, and what no checkpoint holds."""
    heads = set(head_layers(model))
    # A language model's output layer is no new head: it comes with the weights.
    of_task = (
        set()
        if auto_model in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
        else {name.split(".")[0] for name in heads if "pooler" not in name.split(".")}
    )
    found = {name.rpartition(".")[0] for name in new} | of_task
    tops = {name.split(".")[0] for name in of_task}
    found = {name.split(".")[0] if name.split(".")[0] in tops else name for name in found if name}
    return sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))


def _accept_other_types(model: Any) -> None:
    """Let trained heads in float32 read what a base in another type gives; autocast does so by itself."""
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_pre_hook(_to_float)


def _to_float(module: torch.nn.Module, inputs: Any) -> Any:
    return tuple(
        (
            x.float()
            if isinstance(x, torch.Tensor)
            and x.dtype in (torch.bfloat16, torch.float16)
            and not torch.is_autocast_enabled(x.device.type)
            else x
        )
        for x in inputs
    )


def _tell(adapter: AdapterConfig, model: Any, chosen: list[str], saved: list[str], new_tokens: range) -> None:
    share = 100 * count(model, trained=True) / count(model)
    what = f"{adapter.virtual_tokens or VIRTUAL_TOKENS} virtual tokens"
    if adapter.method != "prompt_tuning":
        rank = f" of rank {adapter.rank or RANK}" if adapter.method in LORA else ""
        what = f"{rank.lstrip()} on {len(chosen)} linear layers".removeprefix(" ").removeprefix("of ")
    besides = [*saved, *([f"{len(new_tokens)} new tokens"] if len(new_tokens) else [])]
    beside = f", with {', '.join(besides)}" if besides else ""
    note(
        f"adapter {adapter.method}: {what}{beside}; {share:.{max(1, 1 - math.floor(math.log10(share)))}f} %"
        " of the parameters are trained"
    )


@torch.no_grad()
def make_up_for_rounding(model: Any, whole: PreTrainedModel) -> None:
    """Start each LoRA on a quantized layer with the product of its rank that is nearest to what the
    quantization has rounded away.

    ``whole`` is the model before. The step of LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1 with T =
    1) by a randomized singular value decomposition (Halko et al. 2011), which is always the same: what is
    left is within 2 % of the least (tested).
    """
    from transformers.pytorch_utils import Conv1D

    base, lost, left = base_of(model), 0.0, 0.0
    for name, layer in base.named_modules():
        if not hasattr(layer, "lora_A") or not is_quantized(layer.get_base_layer().weight):
            continue
        source: Any = whole.get_submodule(name)
        rounded = dequantized(layer.get_base_layer(), source)
        error = source.weight.to(rounded) - rounded
        error = error.T if isinstance(source, Conv1D) else error  # LoRA sees a linear layer
        rank = layer.r["default"]
        with torch.random.fork_rng(devices=[error.device] if error.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(error, q=min(rank + 8, *error.shape), niter=4)
        root = (s[:rank] / layer.scaling["default"]).sqrt()
        layer.lora_A["default"].weight.data[: len(root)] = (v[:, :rank] * root).T
        layer.lora_B["default"].weight.data[:, : len(root)] = u[:, :rank] * root
        lost += float(error.square().sum())
        left += max(0.0, float(error.square().sum() - s[:rank].square().sum()))
    if not lost:
        raise InputError(
            Problem(
                setting="model.adapter.initialization",
                message="expected an adapter on quantized layers for loftq, found none",
                fix="leave it out, or change --model.adapter.targets",
            )
        )
    settings: Any = base.config.quantization_config
    setattr(base.config, ROUNDED, {"unquantized": list(settings.llm_int8_skip_modules or ())})
    note(
        f"the adapter starts with what makes up for {100 * (1 - math.sqrt(left / lost)):.1f} % of the"
        " rounding"
    )


def is_adapter(model: Any) -> bool:
    """Whether a model in memory is one with an adapter of PEFT on it."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_of(model: Any) -> Any:
    """The transformers model below an adapter, or the model itself."""
    return model.get_base_model() if is_adapter(model) else model


def load(model: PreTrainedModel, folder: str | Path) -> Any:
    """``model`` with the adapter in ``folder`` on it, for prediction."""
    from peft import PeftModel

    with _quiet(), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            made = PeftModel.from_pretrained(
                model, str(Path(folder).expanduser()), torch_device=str(model.device)
            )
        except UserWarning as error:
            raise RuntimeError(
                str(error).replace("while loading the checkpoint", "in adapter_model.safetensors")
            ) from error
    _accept_other_types(made)
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT (0.21) asks transformers by names that those of 5.23 warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
