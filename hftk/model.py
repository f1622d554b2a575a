"""Weights and tokenizer: by name (Hub id, folder, GGUF file) or made on the spot from a size and the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from hftk.choices import note
from hftk.config import InputError, ModelConfig, Problem
from hftk.heads import keep_meaning, trained_labels
from hftk.task import Splits, Task
from hftk.tokenizers import SMALLEST_VOCABULARY, train_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LONGEST_DEFAULT = 1024
"""Default limit of ``train.max_length`` and of evaluation windows, for models whose context is longer."""
FALLBACK_CONTEXT = 1024
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
UNLOADABLE = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What transformers raises for files that are missing, damaged, of another model or of none."""


def check_model(config: ModelConfig, task: Task, max_length: int | None = None) -> PretrainedConfig:
    """Find what is wrong with the model settings before any data or weights are read; return the model's config.

    Raises:
        InputError: no such model, no weights in its folder, no network for a Hub id, an unknown size or config field, values
            of which no model can be made, a vocabulary too small for its tokenizer, ``max_length`` above the context.
    """
    made = model_config(config, task)
    context = context_length(made)
    problems = []
    if max_length is not None and max_length > context:
        where = f"--model.name {config.name}" if config.name else f"--model.size {config.size}"
        longer = f"--model.config.{made.attribute_map.get('max_position_embeddings', 'max_position_embeddings')} {max_length}"
        problems.append(
            Problem(
                setting="train.max_length",
                message=f"expected at most {context}, the context of the model ({where}), found {max_length}",
                fix=f"use --train.max_length {context}" + ("" if config.name else f", or a longer context: {longer}"),
            )
        )
    if config.name is not None:
        folder = Path(config.name)
        if folder.is_dir() and not any(next(folder.glob(ending), None) for ending in WEIGHTS):
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
            message = f"expected weights ({', '.join(WEIGHTS)}) in {folder}, found {inside}"
            problems.append(Problem(setting="model.name", message=message, fix="name the folder that a run wrote"))
    else:
        problems += _tokenizer_problems(config, task)
    if config.name is None or config.attention != "auto":
        problems += _build_problems(config, task, made)
    if problems:
        raise InputError(*problems)
    return made


def _tokenizer_problems(config: ModelConfig, task: Task) -> Iterator[Problem]:
    kind = config.tokenizer or task.tokenizer
    smallest = SMALLEST_VOCABULARY.get(kind)
    if smallest is not None:
        smallest += 5 if task.frame != "document" and kind != "wordpiece" else 0
        if kind == "wordpiece" and task.frame == "t5":
            yield Problem(setting="model.tokenizer", message=f"wordpiece has no token that ends a text, which {task.name} needs", fix="use bpe or characters")
        if config.vocab_size < smallest:
            message = f"expected at least {smallest} for --model.tokenizer {kind}, found {config.vocab_size}"
            yield Problem(setting="model.vocab_size", message=message)
        return
    try:
        _existing_tokenizer(kind)
    except InputError as error:
        near = get_close_matches(kind, SMALLEST_VOCABULARY, n=1)
        message = error.problems[0].message + (f"; did you mean {near[0]}?" if near else "")
        yield Problem(setting="model.tokenizer", message=message, fix=f"use {', '.join(SMALLEST_VOCABULARY)}, a folder or a Hub id")


def _build_problems(config: ModelConfig, task: Task, made: PretrainedConfig) -> Iterator[Problem]:
    """Make the model without memory for its weights, to see now and not after an hour of reading data that it can be made."""
    try:
        with torch.device("meta"):
            _from_config(config, task, made)
    except Exception as error:  # whatever an architecture raises when its numbers do not fit together
        at_fault = "model.config" if config.attention == "auto" else "model.attention"
        message = f"a {made.model_type} cannot be made of these settings: {_reason(error)}"
        yield Problem(setting=at_fault, message=message, fix="change or leave out the field that is named")


def model_config(config: ModelConfig, task: Task) -> PretrainedConfig:
    """The transformers config that the settings describe, without weights; ``--model.config`` and ``--model.dropout`` applied."""
    from transformers import AutoConfig

    if config.name is not None:
        made = _named(config, lambda name, **kw: AutoConfig.from_pretrained(name, **kw))
        lay_over(made, config.config)
    else:
        architecture = config.architecture or task.architecture
        size = _size(config, task.sizes(architecture))
        made = AutoConfig.for_model(architecture, **size)
        lay_over(made, config.config)
        # Made anew, so that a field which follows from others (Llama's head_dim from hidden_size) follows from the new ones.
        fields = {made.attribute_map.get(name, name): value for name, value in config.config.items()}
        made = AutoConfig.for_model(architecture, **{**size, **fields})
    if config.dropout is not None:
        set_dropout(made, config.dropout)
    return made


def _size(config: ModelConfig, sizes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if config.size is not None and config.size in sizes:
        return sizes[config.size]
    near = get_close_matches(str(config.size), sizes, n=1)
    raise InputError(
        Problem(
            setting="model.size",
            message=f"expected one of {', '.join(sizes)}, found {config.size or 'nothing'}"
            + (f" (did you mean {near[0]}?)" if near else ""),
            fix="choose one of these, or --model.name with a Hub id or folder",
        )
    )


def lay_over(made: PretrainedConfig, values: Mapping[str, Any]) -> None:
    """Set fields; InputError for those that the config does not have, and for values of another type."""
    known, problems = {*made.to_dict(), *made.attribute_map}, []
    for name, value in values.items():
        message = ""
        if name not in known:
            near = get_close_matches(name, known, n=1)
            message = f"the config of {made.model_type} has no such field" + (f"; did you mean {near[0]}?" if near else "")
        else:
            try:
                setattr(made, name, value)
            except Exception as error:  # transformers checks types; its errors have no base of their own
                message = _reason(error)
        if message:
            problems.append(Problem(setting=f"model.config.{name}", message=message))
    if problems:
        raise InputError(*problems)


POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer", "data2vec-text", "mpnet", "xmod")  # fmt: skip
"""Model types that number positions from the padding's id + 1 on: so many of their position embeddings stand for no token."""


def context_length(config: PretrainedConfig) -> int:
    """Most tokens that the model was made for, by the names that architectures use for it."""
    if config.model_type in POSITIONS_AFTER_PADDING:
        return int(config.max_position_embeddings - (config.pad_token_id or 0) - 1)
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

    A model made on the spot gets a tokenizer trained on the training split. Weights that no file holds come from ``seed``; the
    global random state is left as it was.

    Raises:
        InputError: as :func:`check_model`; or a tokenizer that does not fit the model.
    """
    made = model_config(config, task)
    trained_for = trained_labels(made)
    for name, value in task.model_settings(splits).items():
        setattr(made, name, value)
    with _seeded(seed):
        if config.name is None:
            model, tokenizer = _make(config, task, splits, made)
            task.start(model, tokenizer, splits, [name for name, _ in model.named_parameters()])
            return model, tokenizer
        model, tokenizer, new = _load_named(config, task, made)
        if trained_for is not None:
            keep_meaning(model, trained_for)
        task.start(model, tokenizer, splits, new)
        embeddings: Any = model.get_input_embeddings()
        if len(tokenizer) > embeddings.weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
            note(f"embeddings grown to {len(tokenizer)} rows: the tokenizer has more entries than the model")
        return model, tokenizer


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` on the CPU, where weights are made, and leave all random states as they were."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


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
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Model, tokenizer, and the names of weights that the checkpoint does not hold."""
    import transformers

    auto = getattr(transformers, task.auto_model)
    if getattr(made, "activation_function", None) == "gelu_new":
        made.activation_function = "gelu_pytorch_tanh"
        note("activation gelu_new computed as gelu_pytorch_tanh: the same function in one kernel instead of eight")
    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    # A head for another number of labels is made anew; other weights of another shape stay an error.
    new_head = {"ignore_mismatched_sizes": True} if "SequenceClassification" in task.auto_model else {}
    model, loading = _named(
        config,
        lambda name, **kw: auto.from_pretrained(
            name, config=made, dtype=_dtype(config), output_loading_info=True, **attention, **new_head, **kw
        ),
    )
    wrong = [key for key, _, shape in loading["mismatched_keys"] if list(shape)[:1] != [made.num_labels]]
    if wrong:
        message = f"the weights {', '.join(wrong[:3])} in {config.name} have another shape than its config says"
        raise InputError(Problem(setting="model.name", message=message, fix="leave out --model.config, or name another model"))
    if loading["missing_keys"]:
        note(f"new weights, not in the checkpoint: {', '.join(sorted(loading['missing_keys'])[:4])}")
    new = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    return _plain(model), _tokenizer(config), new


def _make(
    config: ModelConfig, task: Task, splits: Splits, made: PretrainedConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = config.tokenizer or task.tokenizer
    if kind in SMALLEST_VOCABULARY:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(kind, task.texts(splits), config.vocab_size, frame=task.frame)
        note(f"tokenizer: {kind}, trained on the training split, {len(tokenizer)} entries")
    else:
        tokenizer = _existing_tokenizer(kind)
    tokenizer.model_max_length = context_length(made)
    made.vocab_size = max(len(tokenizer), config.config.get("vocab_size", 0))
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if hasattr(made, name):
            setattr(made, name, getattr(tokenizer, name))
    if made.is_encoder_decoder or tokenizer.pad_token_id != tokenizer.eos_token_id:
        made.pad_token_id = tokenizer.pad_token_id
    if made.is_encoder_decoder:
        made.decoder_start_token_id, made.forced_eos_token_id = tokenizer.pad_token_id, None
    if hasattr(made, "decoder_vocab_size"):
        made.decoder_vocab_size = made.vocab_size
    model = _from_config(config, task, made)
    _initialize(model, config.initialization)
    return model, tokenizer


def _from_config(config: ModelConfig, task: Task, made: PretrainedConfig) -> PreTrainedModel:
    import transformers

    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    model: PreTrainedModel = getattr(transformers, task.auto_model).from_config(made, dtype=_dtype(config), **attention)
    return model


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


def set_dropout(config: PretrainedConfig, value: float) -> None:
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
    return _with_padding(tokenizer)


def _existing_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by Hub id or folder, which may hold nothing else."""
    from transformers import AutoTokenizer

    try:
        return _with_padding(AutoTokenizer.from_pretrained(name))
    except UNLOADABLE as error:
        raise InputError(Problem(setting="model.tokenizer", **_explain(name, error))) from error


def _with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
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
    except UNLOADABLE as error:
        raise InputError(Problem(setting="model.name", **_explain(config.name, error))) from error


def _explain(name: str, error: Exception) -> dict[str, str]:
    text = _reason(error)
    if Path(name).exists():
        fix = 'pip install "hftk[gguf]"' if isinstance(error, ImportError) and "gguf" in str(error) else "check the folder's files"
        return {"message": f"{name} cannot be loaded: {text}", "fix": fix}
    return {
        "message": f"there is no folder {name}, and as a Hub id it cannot be loaded: {text}",
        "fix": "check the spelling and the network (HF_HUB_OFFLINE, HF_ENDPOINT); for a private model: hf auth login. "
        "Without a network: --model.name FOLDER of a downloaded model, or --model.size tiny for one made on the spot",
    }


def _reason(error: Exception) -> str:
    """What an exception says, in one line: the last one where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if lines[0].endswith(":") else lines[0]


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """A de-quantized GGUF model still refuses to be saved: forget where it came from."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "")
    if "gguf" in str(method).lower():
        for name in ("hf_quantizer", "is_quantized", "quantization_method"):
            vars(model).pop(name, None)
        del model.config.quantization_config
        note("GGUF weights are de-quantized: the model trains and saves as a plain one")
    return model
