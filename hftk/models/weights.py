"""Loading what exists: weights (plain, from GGUF, in 8 or 4 bits, below an adapter) and tokenizers, by Hub
id, folder or file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.config import InputError, ModelConfig, Problem, QuantizationConfig
from hftk.console import note
from hftk.models import adapter_files, adapters, device_map, quantization
from hftk.models.hub_names import (
    UNLOADABLE,
    explain,
    from_config,
    from_pretrained,
    load_named,
    read_generation_config,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WRAPPERS = ("module.", "_orig_mod.", "model.", "base_model.model.")
"""Prefixes that DataParallel, torch.compile, training loops and PEFT put before the names of weights."""


def check_index(name: str) -> None:
    """Refuse a weight index that names files outside of its own folder.

    Raises:
        InputError: it does, or it is not a JSON object with a ``weight_map``.
    """
    folder = Path(name).expanduser()
    for path in sorted(folder.glob("*.index.json")) if folder.is_dir() else []:
        try:
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            outside = sorted(file for file in files if Path(file).name != file or ".." in file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            message = (
                f"{path} is damaged: expected a JSON object whose weight_map names a file for each weight"
            )
            raise InputError(
                Problem(setting="model.name", message=message, fix="copy or download the file again")
            ) from error
        if outside:
            message = f"{path} names {outside[0]}; expected names of files in the same folder"
            raise InputError(
                Problem(setting="model.name", message=message, fix="copy the weights into the folder")
            )


def check_complete(name: str, model: PreTrainedModel, loading: dict[str, Any], *, new_head: bool) -> None:
    """Refuse weights that do not fit the model: any but those of a new head (with ``new_head``) have to be in
    the checkpoint.

    Raises:
        InputError: some are missing, with their number and the prefix that explains it.
    """
    base = model.base_model_prefix
    inner = f"{base}." if base and hasattr(model, base) else ""
    head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}

    def is_new(key: str) -> bool:
        outside = bool(inner) and not key.startswith(inner)
        crossed = getattr(
            model.config, "add_cross_attention", False
        ) and "crossattention" in key.lower().replace("_", "")
        return outside or key.rpartition(".")[0] in head or ".pooler." in f".{key}" or crossed

    missing = sorted(key for key in loading["missing_keys"] if not (new_head and is_new(key)))
    if not missing:
        return
    found = set(loading["unexpected_keys"])
    total = len(model.state_dict())
    message = (
        f"{len(missing)} of the {total} weights of a {type(model).__name__} are not in {name}"
        f" ({', '.join(missing[:3])})"
    )
    fix = "name a complete checkpoint of this architecture"
    for prefix in WRAPPERS:
        bare = {key.removeprefix(prefix) for key in found if key.startswith(prefix)}
        if bare & {*missing, *(key.removeprefix(inner) for key in missing)}:
            message += f"; its weights are saved with the prefix {prefix!r}"
            fix = (
                f"save them again without it: {{key.removeprefix({prefix!r}): value for key, value in"
                " weights.items()}"
            )
            break
    raise InputError(Problem(setting="model.name", message=message, fix=fix))


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse to train from weights that hold NaN or infinity.

    Raises:
        InputError: some do.
    """
    broken = [
        key
        for key, weight in model.named_parameters()
        if weight.is_floating_point() and not weight.is_meta and not bool(weight.detach().isfinite().all())
    ]
    if broken:
        message = f"{len(broken)} weights in {name} hold NaN or infinity ({', '.join(broken[:3])})"
        raise InputError(Problem(setting="model.name", message=message, fix="use an earlier checkpoint"))


def load_weights(
    config: ModelConfig, auto_model: str, made: PretrainedConfig, *, training: bool = True, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, in 8 or 4 bits if ``config.quantization`` says so, and what transformers tells about its
    loading.

    Quantized weights are where ``config.device_map`` has them; the others stand in main memory, for
    :func:`hftk.models.device_map.spread`.
    """
    import transformers

    check_index(str(config.name))
    auto = getattr(transformers, auto_model)
    quantized = config.quantization.bits is not None or getattr(made, "quantization_config", None) is not None
    devices = device_map.arguments(config.device_map, training=training) if quantized else {}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention

    def load(name: str, **place: Any) -> Any:
        with device_map.told(devices):
            return from_pretrained(
                auto,
                name,
                config=made,
                dtype=dtype_of(config),
                output_loading_info=True,
                **devices,
                **options,
                **place,
            )

    if config.quantization.bits is None:
        model, loading = load_named(config, load)
        if devices:
            device_map.placed(model)
        return plain(model), loading
    with torch.device("meta"):
        names = from_config(auto, made)
    options["quantization_config"] = quantization.bitsandbytes_config(config.quantization, names)

    def load_quantized(name: str, **place: Any) -> Any:
        if "gguf_file" not in place:
            return load(name, **place)
        # transformers does not load GGUF files into quantized layers: by way of plain weights on the disk.
        whole = plain(from_pretrained(auto, name, dtype=dtype_of(config), **place))
        with tempfile.TemporaryDirectory() as folder, no_progress_bars():
            whole.save_pretrained(folder)
            del whole
            return load(folder)

    model, loading = load_named(config, load_quantized)
    quantization.detach_from_mmap(model)
    quantization.keep_layout(model)
    setattr(made, adapter_files.QUANTIZATION, asdict(config.quantization))
    setattr(model.config, adapter_files.QUANTIZATION, asdict(config.quantization))
    note(
        f"weights in {config.quantization.bits} bits: {quantization.bytes_of(model) / 2**20:.0f} MiB, heads"
        " and embeddings as they are"
    )
    if devices:
        device_map.placed(model)
    return model, loading


def load_adapted(config: ModelConfig, auto_model: str, *, quantized: bool = True) -> PreTrainedModel:
    """The model below an adapter, in 8 or 4 bits if it was trained so (and ``quantized``), with the adapter
    on it."""
    import transformers

    assert config.name is not None
    name, revision = adapter_files.base_name(config.name)
    below = replace(config, name=name, revision=revision)
    made = adapter_files.saved_config(config.name)
    bits = QuantizationConfig(**getattr(made, adapter_files.QUANTIZATION, None) or {})
    rounded = not quantized and bool(
        getattr(made, adapter_files.ROUNDED, False)
    )  # the adapter is for no other weights
    below = replace(below, quantization=bits if quantized else QuantizationConfig())
    rows = made.vocab_size if made is not None and hasattr(made, "vocab_size") else None
    if made is None:
        made = load_named(below, lambda name, **kw: from_pretrained(transformers.AutoConfig, name, **kw))
    elif rows is not None:
        made.vocab_size = load_named(
            below, lambda name, **kw: from_pretrained(transformers.AutoConfig, name, **kw)
        ).vocab_size
    model, loading = load_weights(below, auto_model, made, training=False, ignore_mismatched_sizes=True)
    check_complete(name, model, loading, new_head=True)  # the adapter holds the head
    resized = rows is not None and rows > made.vocab_size
    if resized:
        model.resize_token_embeddings(rows)
    if rounded:
        quantization.round_like(
            load_weights(replace(below, quantization=bits), auto_model, made, ignore_mismatched_sizes=True)[
                0
            ],
            model,
        )
    if below.quantization.bits and not resized:
        quantization.halve_embeddings(model)
    try:
        adapted: PreTrainedModel = adapters.load(model, config.name)
    except UNLOADABLE as error:
        raise InputError(Problem(setting="model.name", **explain(config.name, error))) from error
    spread_adapted(adapted, config.device_map)
    if adapted.can_generate() and (Path(config.name) / "generation_config.json").is_file():
        model.generation_config = read_generation_config(config.name)
    return adapted.eval()


def spread_adapted(adapted: Any, how: str) -> None:
    """Place a model with an adapter on it for prediction, unless its quantized weights are placed already."""
    base = adapters.base_of(adapted)
    if device_map.places(base):
        return
    device_map.spread(base, how, training=False)
    for prompt in getattr(adapted, "prompt_encoder", {}).values():  # virtual tokens are outside of the model
        prompt.to(device_map.device_of(base))


def dtype_of(config: ModelConfig) -> torch.dtype:
    # Not from_pretrained's own "auto": it trains a bf16 checkpoint in pure bf16.
    return torch.float32 if config.dtype == "auto" else getattr(torch, config.dtype)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = load_named(config, lambda name, **kw: from_pretrained(AutoTokenizer, name, **kw))
    return _with_padding(tokenizer)


def existing_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer by Hub id or folder, which may hold nothing else."""
    from transformers import AutoTokenizer

    try:
        return _with_padding(from_pretrained(AutoTokenizer, name))
    except UNLOADABLE as error:
        raise InputError(Problem(setting="model.tokenizer", **explain(name, error))) from error


def _with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A de-quantized GGUF model still refuses to be saved: forget where it came from."""
    method = getattr(getattr(model.config, "quantization_config", None), "quant_method", "")
    if "gguf" in str(method).lower():
        for name in ("hf_quantizer", "is_quantized", "quantization_method"):
            vars(model).pop(name, None)
        del model.config.quantization_config
        note("GGUF weights are de-quantized: the model trains and saves as a plain one")
    return model


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Inside, transformers does not draw its bars, such as one for each file of weights, across that of the
    run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
