"""Weights and tokenizer: by name (Hub id, folder, GGUF file) or made on the spot from a size and the data."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.config import InputError, ModelConfig, Problem, QuantizationConfig
from hftk.console import note
from hftk.launch import on_main
from hftk.launch.random_state import preserve_rng_state
from hftk.models import adapter_files, adapters, export_int8, layers, quantization
from hftk.models import device_map as placement
from hftk.models.architectures import LONGEST_DEFAULT, halves, kind_of, positions
from hftk.models.encoder_decoder import freeze_unread, half_problems, joined_config, warm_start
from hftk.models.heads import keep_meaning, trained_labels
from hftk.models.hub_names import from_config, from_pretrained, load_named, read_config, reason
from hftk.models.sizes import model_sizes
from hftk.models.tokenizers import SMALLEST_VOCABULARY, train_tokenizer
from hftk.models.weights import (
    check_complete,
    check_finite,
    check_index,
    dtype_of,
    existing_tokenizer,
    load_adapted,
    load_tokenizer,
    load_weights,
    no_progress_bars,
    plain,
)
from hftk.task import Splits, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FALLBACK_CONTEXT = 1024
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def check_model(config: ModelConfig, task: Task, max_length: int | None = None) -> PretrainedConfig:
    """Find what is wrong with the model settings before any data or weights are read; return the model's
    config.

    Raises:
        InputError: no such model, no weights in its folder, no network for a Hub id, an unknown size or
            config field, values of which no model can be made, a vocabulary too small for its tokenizer,
            ``max_length`` above the context.
    """
    made = model_config(config, task)
    context = context_length(made)
    problems = []
    if max_length is not None and max_length > context:
        where = f"--model.name {config.name}" if config.name else f"--model.size {config.size}"
        longer = (
            f"--model.config.{made.attribute_map.get('max_position_embeddings', 'max_position_embeddings')}"
            f" {max_length}"
        )
        problems.append(
            Problem(
                setting="train.max_length",
                message=f"expected at most {context}, the context of the model ({where}), found {max_length}",
                fix=f"use --train.max_length {context}"
                + ("" if config.name else f", or a longer context: {longer}"),
            )
        )
    if config.name is not None:
        folder = Path(config.name)
        if folder.is_dir() and not any(next(folder.glob(ending), None) for ending in WEIGHTS):
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
            message = f"expected weights ({', '.join(WEIGHTS)}) in {folder}, found {inside}"
            problems.append(
                Problem(setting="model.name", message=message, fix="name the folder that a run wrote")
            )
        if _from_encoder(task, made):
            problems += half_problems(made)
        problems += _quantized_problems(config, made)
    else:
        problems += _tokenizer_problems(config, task)
    joined = config.name is not None and _from_encoder(task, made)
    if joined and (config.quantization.bits or config.adapter.method != "none"):
        message = (
            f"{made.model_type} becomes both halves of an encoder-decoder, whose new weights no adapter keeps"
        )
        fix = "train all weights first and name that --output, or use T5, BART or Marian"
        problems.append(Problem(setting="model.adapter.method", message=message, fix=fix))
    elif config.name is None or config.attention != "auto" or _is_adapted(config):
        problems += _build_problems(config, task, made)
    if problems:
        raise InputError(*problems)
    return made


def _quantized_problems(config: ModelConfig, made: PretrainedConfig) -> Iterator[Problem]:
    """Weights that were quantized before they were saved."""
    if getattr(made, "quantization_config", None) is None:
        return
    if config.quantization.bits is not None:
        message = f"the weights in {config.name} are quantized already"
        yield Problem(
            setting="model.quantization.bits",
            message=message,
            fix="leave it out, or name the model's full-precision original",
        )
    if config.adapter.method == "none":
        message = f"the weights in {config.name} are quantized, and cannot be trained themselves"
        yield Problem(
            setting="model.name",
            message=message,
            fix="add --model.adapter.method lora, or name the model's full-precision original",
        )


def _tokenizer_problems(config: ModelConfig, task: Task) -> Iterator[Problem]:
    kind = config.tokenizer or task.tokenizer_kind
    smallest = SMALLEST_VOCABULARY.get(kind)
    if smallest is not None:
        smallest += 5 if task.token_frame != "document" and kind != "wordpiece" else 0
        if kind == "wordpiece" and task.token_frame == "t5":
            yield Problem(
                setting="model.tokenizer",
                message=f"wordpiece has no token that ends a text, which {task.name} needs",
                fix="use bpe or characters",
            )
        if config.vocab_size < smallest:
            message = f"expected at least {smallest} for --model.tokenizer {kind}, found {config.vocab_size}"
            yield Problem(setting="model.vocab_size", message=message)
        return
    try:
        existing_tokenizer(kind)
    except InputError as error:
        near = get_close_matches(kind, SMALLEST_VOCABULARY, n=1)
        message = error.problems[0].message + (f"; did you mean {near[0]}?" if near else "")
        yield Problem(
            setting="model.tokenizer",
            message=message,
            fix=f"use {', '.join(SMALLEST_VOCABULARY)}, a folder or a Hub id",
        )


def _build_problems(config: ModelConfig, task: Task, made: PretrainedConfig) -> Iterator[Problem]:
    """Make the model without memory for its weights, to see now and not after an hour of reading data that it
    can be made."""
    try:
        model = _on_meta(config, task, made)
    except Exception as error:  # whatever an architecture raises when its numbers do not fit together
        at_fault = "model.config" if config.attention == "auto" else "model.attention"
        message = f"a {made.model_type} cannot be made of these settings: {reason(error)}"
        yield Problem(setting=at_fault, message=message, fix="change or leave out the field that is named")
    else:
        yield from quantization.find_problems(config.quantization, model)
        yield from adapters.find_problems(config.adapter, model, task.auto_model)
        yield from layers.find_problems(config.frozen, model)


def _is_adapted(config: ModelConfig) -> bool:
    """Whether settings act on layers by their names."""
    return bool(config.quantization.bits or config.adapter.method != "none" or config.frozen)


def _on_meta(config: ModelConfig, task: Task, made: PretrainedConfig) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return _new_model(config, task, made)


def model_config(config: ModelConfig, task: Task) -> PretrainedConfig:
    """The transformers config that the settings describe, without weights; ``--model.config`` and
    ``--model.dropout`` applied."""
    from transformers import AutoConfig

    if config.name is not None:
        if adapter_files.has_adapter(config.name):
            message = f"{config.name} holds an adapter, not the weights of a model"
            fix = f"hftk export {config.name} --output MERGED, and --model.name MERGED"
            raise InputError(Problem(setting="model.name", message=message, fix=fix))
        made = read_config(config)
        lay_over(made, config.config)
    else:
        architecture = config.architecture or task.architecture
        size = _size(config, model_sizes(architecture, task.auto_model))
        made = AutoConfig.for_model(architecture, **size)
        lay_over(made, config.config)
        # Made anew, so that a field which follows from others (Llama's head_dim from hidden_size) follows
        # from the new ones.
        fields = {made.attribute_map.get(name, name): value for name, value in config.config.items()}
        made = AutoConfig.for_model(architecture, **{**size, **fields})
    if config.dropout is not None:
        for half in halves(made):
            set_dropout(half, config.dropout)
    if config.adapter.method == "prompt_tuning":
        made.virtual_tokens = config.adapter.virtual_tokens or adapters.VIRTUAL_TOKENS
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
            message = f"the config of {made.model_type} has no such field" + (
                f"; did you mean {near[0]}?" if near else ""
            )
        else:
            try:
                setattr(made, name, value)
            except Exception as error:  # transformers checks types; its errors have no base of their own
                message = reason(error)
        if message:
            problems.append(Problem(setting=f"model.config.{name}", message=message))
    if problems:
        raise InputError(*problems)


def context_length(config: PretrainedConfig) -> int:
    """Most tokens that the model was made for, by the names that architectures use for it; virtual tokens
    take up some of them."""
    found = [
        positions(config),
        *(getattr(config, name, None) for name in ("n_positions", "n_ctx", "max_seq_len", "seq_length")),
    ]
    context = next((value for value in found if isinstance(value, int) and value > 0), FALLBACK_CONTEXT)
    return context - int(getattr(config, "virtual_tokens", 0))


def default_length(config: PretrainedConfig) -> int:
    """``train.max_length`` where none is given: the context, at most :data:`LONGEST_DEFAULT`."""
    return min(context_length(config), LONGEST_DEFAULT)


def decoder_positions(config: PretrainedConfig) -> int | None:
    """Most tokens that a decoder can write, its start token included; None where positions are relative and
    have no end."""
    return positions(config.get_text_config(decoder=True))


def load_model(
    config: ModelConfig, task: Task, splits: Splits, *, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model (in float32 unless ``model.dtype`` says otherwise, on the CPU unless ``model.device_map``
    does) and its tokenizer.

    A model made on the spot gets a tokenizer trained on the training split. Weights that no file holds come
    from ``seed``; the global random state is left as it was.

    Raises:
        InputError: as :func:`check_model`; or a tokenizer that does not fit the model.
    """
    task = task.with_config(model=config)
    made = model_config(config, task)
    trained_for = trained_labels(made)
    for name, value in task.model_settings(splits).items():
        setattr(made, name, value)
    with _seeded(seed):
        if config.name is None:
            model, tokenizer = _make(config, task, splits, made)
            task.initialize(model, tokenizer, splits, [name for name, _ in model.named_parameters()])
            if config.adapter.method == "none":
                layers.freeze(config.frozen, model)
                placement.spread(model, config.device_map, training=True)
                return model, tokenizer
            config = _keep_base(config, task, model, tokenizer)
            del model  # it is loaded again, and two would take twice the memory
        model, tokenizer, new = _load_named(config, task, made)
        if trained_for is not None:
            keep_meaning(model, trained_for)
        task.initialize(model, tokenizer, splits, new)
        new_tokens = _fit_vocabulary(model, len(tokenizer))
        layers.freeze(config.frozen, model)
        if not placement.places(model):
            placement.spread(model, config.device_map, training=True)
        if config.quantization.bits and not len(new_tokens):
            quantization.halve_embeddings(model)
        if config.adapter.method != "none":
            assert config.name is not None
            model = adapters.add(
                config.adapter,
                model,
                task.auto_model,
                config.name,
                config.revision,
                new=new,
                new_tokens=new_tokens,
            )
            if config.adapter.initialization == "loftq":
                held = str(getattr(made, "dtype", None)).removeprefix("torch.")
                # As it is in the file, from which it is read when it is needed.
                unrounded = replace(
                    config,
                    quantization=QuantizationConfig(),
                    dtype=held if held in ("bfloat16", "float16") else config.dtype,  # type: ignore[arg-type]
                )
                whole = load_weights(
                    unrounded, task.auto_model, model_config(unrounded, task), ignore_mismatched_sizes=True
                )[0]
                adapters.make_up_for_rounding(model, whole)
        return model, tokenizer


def _fit_vocabulary(model: PreTrainedModel, entries: int) -> range:
    """Give the embeddings a row for each entry of the tokenizer; the new rows."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if entries > rows:
        model.resize_token_embeddings(entries)
        note(f"embeddings grown to {entries} rows: the tokenizer has more entries than the model")
    return range(rows, max(rows, entries))


def _keep_base(
    config: ModelConfig, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> ModelConfig:
    """Keep a model made on the spot in the output folder, since an adapter holds its own weights alone;
    settings that name it."""
    folder = Path(task.config.output) / adapter_files.BASE

    def write() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with no_progress_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    on_main(write)
    note(f"the untrained model below the adapter is kept in {folder}")
    return replace(config, name=str(folder), size=None)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` on the CPU, where weights are made, and leave all random states as they were."""
    with preserve_rng_state():
        torch.default_generator.manual_seed(seed)
        yield


def load_trained(
    folder: str, *, auto_model: str = "AutoModelForCausalLM", dtype: str = "auto", device_map: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fine-tuned (or any) model and its tokenizer from a folder or Hub id, for prediction and evaluation.

    With ``device_map`` its layers are spread over the GPUs, and what they cannot hold stays in main memory.
    """
    import transformers

    config = ModelConfig(name=folder, dtype=dtype, device_map=device_map)  # type: ignore[arg-type]
    if adapter_files.has_adapter(folder):
        return load_adapted(config, auto_model), load_tokenizer(config)
    if export_int8.is_int8(folder):
        if device_map != "none":
            note(f"model.device_map {device_map} has no effect: weights in int8 are for CPUs")
        return export_int8.load(folder, auto_model), load_tokenizer(config)
    auto = getattr(transformers, auto_model)
    quantized = (
        getattr(read_config(config), "quantization_config", None) is not None
        if device_map != "none"
        else False
    )
    place = placement.arguments(device_map, training=False) if quantized else {}

    def load(name: str, **arguments: Any) -> Any:
        with placement.told(place):
            return from_pretrained(
                auto, name, dtype=dtype_of(config), output_loading_info=True, **place, **arguments
            )

    check_index(folder)
    loaded, loading = load_named(config, load)
    check_complete(folder, loaded, loading, new_head=False)
    model = plain(loaded).eval()
    if place:
        placement.placed(model)
    elif not quantized:
        placement.spread(model, device_map, training=False)
    return model, load_tokenizer(config)


def is_pretrained(config: ModelConfig) -> bool:
    """Whether the run starts from existing weights."""
    return config.name is not None


def _load_named(
    config: ModelConfig, task: Task, made: PretrainedConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, set[str]]:
    """Model, tokenizer, and the names of weights that the checkpoint does not hold."""
    if getattr(made, "activation_function", None) == "gelu_new":
        made.activation_function = "gelu_pytorch_tanh"
        note(
            "activation gelu_new computed as gelu_pytorch_tanh: the same function in one kernel instead of"
            " eight"
        )
    if _from_encoder(task, made):
        tokenizer = load_tokenizer(config)
        joined, made_anew = warm_start(
            made, tokenizer, lambda auto, half: load_weights(config, auto.__name__, half)
        )
        return joined, tokenizer, made_anew
    # A head for another number of labels is made anew; other weights of another shape stay an error.
    new_head = {"ignore_mismatched_sizes": True} if task.new_head else {}
    model, loading = load_weights(config, task.auto_model, made, **new_head)
    wrong = [key for key, _, shape in loading["mismatched_keys"] if list(shape)[:1] != [made.num_labels]]
    if wrong:
        message = (
            f"the weights {', '.join(wrong[:3])} in {config.name} have another shape than its config says"
        )
        raise InputError(
            Problem(
                setting="model.name", message=message, fix="leave out --model.config, or name another model"
            )
        )
    check_complete(str(config.name), model, loading, new_head=True)
    check_finite(str(config.name), model)
    if loading["missing_keys"]:
        note(f"new weights, not in the checkpoint: {', '.join(sorted(loading['missing_keys'])[:4])}")
    new = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    freeze_unread(model)
    return model, load_tokenizer(config), new


def _from_encoder(task: Task, made: PretrainedConfig) -> bool:
    """Whether an encoder such as BERT has to become both halves of an encoder-decoder."""
    return task.auto_model == "AutoModelForSeq2SeqLM" and kind_of(made) == "encoder"


def _make(
    config: ModelConfig, task: Task, splits: Splits, made: PretrainedConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    kind = config.tokenizer or task.tokenizer_kind
    if kind in SMALLEST_VOCABULARY:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(
            kind, task.tokenizer_texts(splits), config.vocab_size, frame=task.token_frame
        )
        note(f"tokenizer: {kind}, trained on the training split, {len(tokenizer)} entries")
    else:
        tokenizer = existing_tokenizer(kind)
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
    model = _new_model(config, task, made)
    _initialize(model, config.initialization)
    return model, tokenizer


def _new_model(config: ModelConfig, task: Task, made: PretrainedConfig) -> PreTrainedModel:
    import transformers

    attention = {} if config.attention == "auto" else {"attn_implementation": config.attention}
    made = joined_config(made) if _from_encoder(task, made) else made
    model: PreTrainedModel = from_config(
        getattr(transformers, task.auto_model), made, dtype=dtype_of(config), **attention
    )
    return model


def _initialize(model: PreTrainedModel, scheme: str) -> None:
    """Glorot & Bengio 2010 (xavier) or He et al. 2015 (he) on every matrix but the embeddings; biases and
    norms stay."""
    if scheme == "default":
        return
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or id(parameter) in embeddings:
            continue
        # transformers' Conv1D (GPT-2) keeps its weight as (inputs, outputs), torch's Linear as (outputs,
        # inputs).
        conv1d = type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
        if scheme == "xavier":
            torch.nn.init.xavier_uniform_(parameter)
        else:
            inputs = parameter.shape[0] if conv1d else parameter.shape[1]
            torch.nn.init.normal_(parameter, std=math.sqrt(2 / inputs))


def set_dropout(config: PretrainedConfig, value: float) -> None:
    """Every probability of dropout that the config has: fields called *dropout* or *_pdrop that hold a number
    or None."""
    names = [
        n
        for n, v in config.to_dict().items()
        if ("dropout" in n or n.endswith("pdrop"))
        and (v is None or isinstance(v, int | float))
        and not isinstance(v, bool)
    ]
    if not names:
        raise InputError(
            Problem(
                setting="model.dropout", message=f"{config.model_type} has no dropout", fix="leave it out"
            )
        )
    for name in names:
        setattr(config, name, value)
