"""Adapters by PEFT: which layers get one, what is trained beside it, and how it is found again."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.adaptation import ALL_LINEAR, LORA, AdapterConfig, starts_from_weights
from hftk.choices import note
from hftk.heads import head_layers, linear_layers
from hftk.problems import InputError, Problem
from hftk.quantization import count

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER = "adapter_config.json"
BASE_CONFIG = "base_config.json"
"""The config of the model below, as it was trained: labels, thresholds, vocabulary, quantization. Not called config.json: a folder
with that name in it is taken by transformers for a model of its own weights."""
QUANTIZATION = "base_quantization"
"""Field of that config: the settings of ``model.quantization``."""
TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS", "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM", "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}  # fmt: skip
PROMPTED = ("CAUSAL_LM", "SEQ_CLS")
"""Kinds of tasks for which virtual tokens work here; a PEFT encoder-decoder gets some in the decoder too, where nothing reads them."""
KEYS_AND_VALUES = frozenset(
    ("key", "value", "k", "v", "k_proj", "v_proj", "k_lin", "v_lin", "c_attn", "Wqkv", "qkv", "qkv_proj", "query_key_value", "key_proj", "value_proj")
)  # fmt: skip
"""Names of attention's keys and values, or of one layer for both and the queries."""
RANK = 8
VIRTUAL_TOKENS = 16


def find_problems(adapter: AdapterConfig, model: PreTrainedModel, auto_model: str) -> Iterator[Problem]:
    """What is wrong with the settings for this model, which may be on the meta device."""
    if adapter.method == "none":
        return
    if importlib.util.find_spec("peft") is None:
        yield Problem(setting="model.adapter.method", message=f"{adapter.method} comes from peft, which is not installed", fix='pip install "hftk[peft]"')
    task_type = TASK_TYPES.get(auto_model)
    if adapter.method == "prompt_tuning" and task_type not in PROMPTED:
        message = f"prompt_tuning is for decoders and classifiers, found {auto_model}"
        yield Problem(setting="model.adapter.method", message=message, fix="use --model.adapter.method lora or ia3")
    if adapter.method == "prompt_tuning":
        most = (getattr(model.config, "max_position_embeddings", None) or 2**31) // 2
        if (adapter.virtual_tokens or VIRTUAL_TOKENS) > most:
            message = f"expected at most {most}, half of the model's context, found {adapter.virtual_tokens or VIRTUAL_TOKENS}"
            yield Problem(setting="model.adapter.virtual_tokens", message=message)
        return
    layers = linear_layers(model)
    for wanted in adapter.targets or ():
        if wanted != ALL_LINEAR and not any(_matches(name, wanted) for name in layers):
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in layers if name not in head_layers(model)))
            message = f"no linear layer of {type(model).__name__} is called {wanted}; there are {', '.join(ends[:16])}"
            yield Problem(setting="model.adapter.targets", message=message, fix="name some of these, or leave it out for all-linear")
    if not adapter.targets and not targets(adapter, model):
        kind = "linear layer" if adapter.method != "ia3" else "layer with keys, values or feed-forward"
        message = f"{adapter.method} finds no {kind} in {type(model).__name__}"
        yield Problem(setting="model.adapter.method", message=message, fix="use another method, or name layers by --model.adapter.targets")


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
    """Whether a layer is the second one of a feed-forward block: it makes what comes in narrower, and is no key or value."""
    inputs, outputs = _shape(layer)
    return inputs > outputs and _end(name) not in KEYS_AND_VALUES


def _shape(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer or Conv1D."""
    return (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else (layer.nx, layer.nf)


def add(
    adapter: AdapterConfig, model: PreTrainedModel, auto_model: str, base: str, revision: str | None, *,
    new: Collection[str], new_tokens: range,
) -> Any:  # fmt: skip
    """``model``, frozen, with a new adapter on it: a ``PeftModel``.

    ``new`` names weights that no checkpoint holds and ``new_tokens`` rows of the embeddings that were added: both are trained
    and saved with the adapter, and so are the heads of a task. ``base`` is what ``model`` was loaded from, as it was typed.

    Raises:
        InputError: PEFT or the model refuses; new tokens with a method that cannot train their embeddings.
    """
    from peft import get_peft_model

    saved = trained_besides(model, auto_model, new)
    chosen = [name for name in targets(adapter, model) if not any(name == s or name.startswith(f"{s}.") for s in saved)]
    settings: dict[str, Any] = {"task_type": TASK_TYPES.get(auto_model), "base_model_name_or_path": base, "revision": revision}
    if len(new_tokens) and adapter.method not in LORA:
        message = f"the tokenizer has {len(new_tokens)} tokens that the model does not know, and {adapter.method} cannot train their embeddings"
        raise InputError(Problem(setting="model.adapter.method", message=message, fix="use --model.adapter.method lora"))
    model.name_or_path = base  # which PEFT writes down
    made: Any = get_peft_model(model, _peft_config(adapter, model, chosen, saved, new_tokens, settings))
    made.peft_config["default"].base_model_name_or_path = base
    for parameter in made.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    _accept_other_types(made)
    _tell(adapter, made, chosen, saved, new_tokens)
    return made


def _peft_config(
    adapter: AdapterConfig, model: Any, chosen: list[str], saved: list[str], new_tokens: range, settings: dict[str, Any]
) -> Any:
    import peft

    if adapter.method == "prompt_tuning":
        tokens = adapter.virtual_tokens or VIRTUAL_TOKENS
        return peft.PromptTuningConfig(num_virtual_tokens=tokens, modules_to_save=[*saved] or None, **_dimensions(model), **settings)
    settings |= {"target_modules": chosen, "modules_to_save": [*saved] or None}
    if adapter.method == "ia3":
        layers = linear_layers(model)
        return peft.IA3Config(feedforward_modules=[name for name in chosen if _is_second(name, layers[name])], **settings)
    rank = adapter.rank or RANK
    # PiSSA starts from the weights' own part of that rank: with another scale it would be another part.
    alpha = adapter.alpha or (rank if starts_from_weights(adapter) else 2 * rank)
    if len(new_tokens):
        settings["trainable_token_indices"] = list(new_tokens)
    return peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=adapter.dropout or 0.0,  # type: ignore[arg-type]
        use_rslora=adapter.method == "rslora", use_dora=adapter.method == "dora",
        init_lora_weights="pissa" if adapter.method == "pissa" else adapter.initialization or True,  # type: ignore[arg-type]
        **settings,
    )  # fmt: skip


def _dimensions(model: Any) -> dict[str, Any]:
    """What PEFT guesses by the names of a few architectures' settings."""
    width = int(model.get_input_embeddings().weight.shape[1])
    return {"token_dim": width, "num_transformer_submodules": 1}


def trained_besides(model: PreTrainedModel, auto_model: str, new: Collection[str]) -> list[str]:
    """Names of modules that are trained and saved whole: heads of a task, and what no checkpoint holds."""
    heads = set(head_layers(model))
    # A language model's output layer is no new head: it comes with the weights.
    of_task = set() if auto_model in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM") else {
        name.split(".")[0] for name in heads if "pooler" not in name.split(".")
    }  # fmt: skip
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
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(x.device.type) else x for x in inputs)  # fmt: skip


def _tell(adapter: AdapterConfig, model: Any, chosen: list[str], saved: list[str], new_tokens: range) -> None:
    share = 100 * count(model, trained=True) / count(model)
    what = f"{adapter.virtual_tokens or VIRTUAL_TOKENS} virtual tokens"
    if adapter.method != "prompt_tuning":
        rank = f" of rank {adapter.rank or RANK}" if adapter.method in LORA else ""
        what = f"{rank.lstrip()} on {len(chosen)} linear layers".removeprefix(" ").removeprefix("of ")
    besides = [*saved, *([f"{len(new_tokens)} new tokens"] if len(new_tokens) else [])]
    beside = f", with {', '.join(besides)}" if besides else ""
    note(f"adapter {adapter.method}: {what}{beside}; {share:.{max(1, 1 - math.floor(math.log10(share)))}f} % of the parameters are trained")


# What a run leaves, and finding the way back ---------------------------------------------------------------------------


def is_adapter(model: Any) -> bool:
    """Whether a model in memory is one with an adapter of PEFT on it."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_of(model: Any) -> Any:
    """The transformers model below an adapter, or the model itself."""
    return model.get_base_model() if is_adapter(model) else model


def has_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and not the weights of a model."""
    path = Path(folder).expanduser()
    return (path / ADAPTER).is_file() and not (path / "config.json").is_file()


def save_config(model: Any, folder: Path) -> None:
    """Beside a saved adapter: the config and generation settings of the model below, without which its outputs mean nothing."""
    base = base_of(model)
    kept = base.config.to_dict()
    kept.pop("quantization_config", None)
    (folder / BASE_CONFIG).write_text(json.dumps(kept, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    if base.can_generate():
        base.generation_config.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form with nothing filled in


def saved_config(folder: str | Path) -> PretrainedConfig | None:
    """The config of the model below an adapter as it was trained; None for an adapter of other origin."""
    from transformers import AutoConfig

    path = Path(folder).expanduser() / BASE_CONFIG
    if not path.is_file():
        return None
    made = json.loads(path.read_text(encoding="utf-8"))
    return type(AutoConfig.for_model(made["model_type"])).from_dict(made)


def base_name(folder: str | Path) -> tuple[str, str | None]:
    """What the model below a saved adapter was loaded from, and its revision.

    A relative path counts from the working directory or, where nothing is there, from the adapter's folder: a base that was made
    on the spot is kept inside of it.

    Raises:
        InputError: the adapter does not name it, or it is a folder that is gone.
    """
    path = Path(folder).expanduser()
    made = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
    name, revision = made.get("base_model_name_or_path"), made.get("revision")
    if not name:
        raise InputError(Problem(setting="model.name", message=f"{path / ADAPTER} does not say which model it belongs to", fix="write the name into its base_model_name_or_path"))  # fmt: skip
    for place in (Path(name).expanduser(), *(parent / Path(name).name for parent in (path, *path.resolve().parents[:2]))):
        if place.is_dir() or place.is_file():
            return str(place), revision
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        message = f"{path} is an adapter for the model in {name}, and there is nothing"
        raise InputError(Problem(setting="model.name", message=message, fix=f"bring it back, or write where it is now into base_model_name_or_path of {path / ADAPTER}"))  # fmt: skip
    return str(name), revision


def load(model: PreTrainedModel, folder: str | Path) -> Any:
    """``model`` with the adapter in ``folder`` on it, for prediction."""
    from peft import PeftModel

    made = PeftModel.from_pretrained(model, str(Path(folder).expanduser()), torch_device=str(model.device))
    _accept_other_types(made)
    return made
