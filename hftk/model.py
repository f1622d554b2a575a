"""Weights and tokenizer: by name (Hub id, folder, GGUF file) or made on the spot from a size and the data."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.choices import note
from hftk.config import InputError, ModelConfig, Problem
from hftk.task import Splits, Task
from hftk.tokenizers import train_byte_bpe, train_characters

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LONGEST_DEFAULT = 1024
"""Default limit of ``train.max_length`` and of evaluation windows, for models whose context is longer."""
FALLBACK_CONTEXT = 1024


def check_model(config: ModelConfig, task: Task, max_length: int | None = None) -> PretrainedConfig:
    """Find what is wrong with the model settings before any data or weights are read; return the model's config.

    Raises:
        InputError: no such model, no network for a Hub id, an unknown size or config field, ``max_length`` above the context.
    """
    made = model_config(config, task)
    context = context_length(made)
    if max_length is not None and max_length > context:
        where = f"--model.name {config.name}" if config.name else f"--model.size {config.size}"
        raise InputError(
            Problem(
                setting="train.max_length",
                message=f"expected at most {context}, the context of the model ({where}), found {max_length}",
                fix=f"use --train.max_length {context}" + ("" if config.name else ", or a longer context: --model.config."
                    + f"{'n_positions' if 'gpt2' in (config.architecture or task.architecture) else 'max_position_embeddings'} {max_length}"),
            )
        )  # fmt: skip
    return made


def model_config(config: ModelConfig, task: Task) -> PretrainedConfig:
    """The transformers config that the settings describe, without weights; ``--model.config`` and ``--model.dropout`` applied."""
    from transformers import AutoConfig

    if config.name is not None:
        made = _named(config, lambda name, **kw: AutoConfig.from_pretrained(name, **kw))
    else:
        architecture = config.architecture or task.architecture
        sizes = task.sizes(architecture)
        if config.size is None or config.size not in sizes:
            near = get_close_matches(str(config.size), sizes, n=1)
            raise InputError(
                Problem(
                    setting="model.size",
                    message=f"expected one of {', '.join(sizes)}, found {config.size}"
                    + (f" (did you mean {near[0]}?)" if near else ""),
                    fix="choose one of these, or --model.name with a Hub id or folder",
                )
            )
        made = AutoConfig.for_model(architecture, **sizes[config.size])
    known = made.to_dict()
    problems = []
    for name, value in config.config.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            problems.append(
                Problem(
                    setting=f"model.config.{name}",
                    message=f"the config of {made.model_type} has no such field" + (f"; did you mean {near[0]}?" if near else ""),
                )
            )  # fmt: skip
        setattr(made, name, value)
    if problems:
        raise InputError(*problems)
    if config.dropout is not None:
        _set_dropout(made, config.dropout)
    return made


def context_length(config: PretrainedConfig) -> int:
    """Most tokens that the model was made for, by the names that architectures use for it."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return FALLBACK_CONTEXT


def default_length(config: PretrainedConfig) -> int:
    """``train.max_length`` where none is given: the context, at most :data:`LONGEST_DEFAULT`."""
    return min(context_length(config), LONGEST_DEFAULT)


def load_model(
    config: ModelConfig, task: Task, splits: Splits, *, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (in float32 unless ``model.dtype`` says otherwise, on the CPU) and its tokenizer.

    A model made on the spot gets a tokenizer trained on the training split and weights from ``seed``; the global random state
    is left as it was.

    Raises:
        InputError: as :func:`check_model`; or a tokenizer that does not fit the model.
    """
    made = model_config(config, task)
    for name, value in task.model_settings(splits).items():
        setattr(made, name, value)
    if config.name is not None:
        model, tokenizer = _load_named(config, task, made)
    else:
        model, tokenizer = _make(config, task, splits, made, seed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > embeddings.weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
        note(f"embeddings grown to {len(tokenizer)} rows: the tokenizer has more entries than the model")
    return model, tokenizer


def load_trained(
    folder: str, *, auto_model: str = "AutoModelForCausalLM", dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned (or any) model and its tokenizer from a folder or Hub id, for prediction and evaluation."""
    import transformers

    config = ModelConfig(name=folder, dtype=dtype)  # type: ignore[arg-type]
    auto = getattr(transformers, auto_model)
    model = _named(config, lambda name, **kw: auto.from_pretrained(name, dtype=_dtype(config), **kw))
    return _plain(model).eval(), _tokenizer(config)


def is_pretrained(config: ModelConfig) -> bool:
    """Whether the run starts from existing weights."""
    return config.name is not None


def _load_named(
    config: ModelConfig, task: Task, made: PretrainedConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers

    auto = getattr(transformers, task.auto_model)
    if getattr(made, "activation_function", None) == "gelu_new":
        made.activation_function = "gelu_pytorch_tanh"
        note("activation gelu_new computed as gelu_pytorch_tanh: the same function in one kernel instead of eight")
    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    model = _named(config, lambda name, **kw: auto.from_pretrained(name, config=made, dtype=_dtype(config), **attention, **kw))
    return _plain(model), _tokenizer(config)


def _make(
    config: ModelConfig, task: Task, splits: Splits, made: PretrainedConfig, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers

    kind = config.tokenizer or "bpe"
    if kind in ("bpe", "characters"):
        train = train_byte_bpe if kind == "bpe" else train_characters
        tokenizer: PreTrainedTokenizerBase = train(task.texts(splits), config.vocab_size)
        note(f"tokenizer: {kind}, trained on the training split, {len(tokenizer)} entries")
    else:
        tokenizer = _tokenizer(ModelConfig(name=kind))
    tokenizer.model_max_length = context_length(made)
    made.vocab_size = len(tokenizer)
    made.bos_token_id, made.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        made.pad_token_id = tokenizer.pad_token_id
    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, task.auto_model).from_config(made, dtype=_dtype(config), **attention)
        _initialize(model, config.initialization)
    return model, tokenizer


def _initialize(model: PreTrainedModel, scheme: str) -> None:
    """Glorot & Bengio 2010 (xavier) or He et al. 2015 (he) on every matrix but the embeddings; biases and norms stay."""
    if scheme == "default":
        return
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or id(parameter) in embeddings:
            continue
        # transformers' Conv1D (GPT-2) keeps its weight as (inputs, outputs), torch's Linear as (outputs, inputs).
        conv1d = type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        if scheme == "xavier":
            torch.nn.init.xavier_uniform_(parameter)
        else:
            inputs = parameter.shape[0] if conv1d else parameter.shape[1]
            torch.nn.init.normal_(parameter, std=math.sqrt(2 / inputs))


def _set_dropout(config: PretrainedConfig, value: float) -> None:
    """Every probability of dropout that the config has: fields called *dropout* or *_pdrop that hold a number or None."""
    names = [n for n, v in config.to_dict().items() if ("dropout" in n or n.endswith("pdrop")) and (v is None or isinstance(v, int | float)) and not isinstance(v, bool)]  # fmt: skip
    if not names:
        raise InputError(
            Problem(setting="model.dropout", message=f"{config.model_type} has no dropout", fix="leave it out")
        )
    for name in names:
        setattr(config, name, value)


def _dtype(config: ModelConfig) -> torch.dtype:
    # Not from_pretrained's own "auto": it trains a bf16 checkpoint in pure bf16.
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def _tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = _named(config, lambda name, **kw: AutoTokenizer.from_pretrained(name, **kw))
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _named(config: ModelConfig, load: Any) -> Any:
    """Call ``load(name, **arguments)`` for a Hub id, a folder, or a folder with nothing but a GGUF file, or such a file."""
    assert config.name is not None
    path = Path(config.name)
    arguments: dict[str, Any] = {}
    name = config.name
    if path.suffix == ".gguf" and path.is_file():
        name, arguments["gguf_file"] = str(path.parent), path.name
    elif path.is_dir():
        gguf = sorted(path.glob("*.gguf"))
        if gguf and not (path / "config.json").exists():
            arguments["gguf_file"] = gguf[0].name
        elif not (path / "config.json").exists():
            inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise InputError(
                Problem(
                    setting="model.name",
                    message=f"expected a folder with config.json, weights and tokenizer; {name} has {inside}",
                    fix="name the folder that a run or save_pretrained wrote",
                )
            )
    else:
        arguments["revision"] = config.revision or "main"
    try:
        return load(name, **arguments)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(Problem(setting="model.name", **_explain(config, path, error))) from error


def _explain(config: ModelConfig, path: Path, error: Exception) -> dict[str, str]:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if path.exists():
        fix = 'pip install "hftk[gguf]"' if isinstance(error, ImportError) and "gguf" in str(error) else "check the folder's files"
        return {"message": f"{config.name} cannot be loaded: {text}", "fix": fix}
    return {
        "message": f"there is no folder {config.name}, and as a Hub id it cannot be loaded: {text}",
        "fix": "check the spelling and the network (HF_HUB_OFFLINE, HF_ENDPOINT); for a private model: hf auth login. "
        "Without a network: --model.name FOLDER of a downloaded model, or --model.size tiny for one made on the spot",
    }


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A de-quantized GGUF model still refuses to be saved: forget where it came from."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "")
    if "gguf" in str(method).lower():
        for name in ("hf_quantizer", "is_quantized", "quantization_method"):
            vars(model).pop(name, None)
        del model.config.quantization_config
        note("GGUF weights are de-quantized: the model trains and saves as a plain one")
    return model
