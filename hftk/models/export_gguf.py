"""Language models as one GGUF file, for llama.cpp and what is built on it; transformers reads it too.

The names of settings and tensors are those of the library ``gguf``, which comes from llama.cpp. Two layouts
differ from transformers': llama.cpp turns pairs of neighbouring elements by rotary embeddings where
transformers turns halves, so the rows of Llama's queries and keys change places; and GPT-2's matrices are
transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftk.config.problems import InputError, Problem

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FILE = "model.gguf"
TYPES = ("f32", "f16", "bf16", "q8_0")
"""How matrices are held; of q8_0 each 32 weights share a scale. Vectors stay in float32."""
_ROTATED = ("llama", "mistral")
"""Model types whose queries and keys change places."""
_WITH_ROTARY: Mapping[str, Callable[[Any], Any]] = {
    "context_length": lambda c: c.max_position_embeddings,
    "block_count": lambda c: c.num_hidden_layers,
    "embedding_length": lambda c: c.hidden_size,
    "feed_forward_length": lambda c: c.intermediate_size,
    "attention.head_count": lambda c: c.num_attention_heads,
    "attention.head_count_kv": lambda c: c.num_key_value_heads,
    "attention.layer_norm_rms_epsilon": lambda c: float(c.rms_norm_eps),
    "rope.dimension_count": lambda c: getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads,
    "rope.freq_base": lambda c: float(c.rope_parameters["rope_theta"]),
    "vocab_size": lambda c: c.vocab_size,
}
_GPT2: Mapping[str, Callable[[Any], Any]] = {
    "context_length": lambda c: c.n_positions,
    "block_count": lambda c: c.n_layer,
    "embedding_length": lambda c: c.n_embd,
    "feed_forward_length": lambda c: c.n_inner or 4 * c.n_embd,
    "attention.head_count": lambda c: c.n_head,
    "attention.layer_norm_epsilon": lambda c: float(c.layer_norm_epsilon),
    "vocab_size": lambda c: c.vocab_size,
}
SETTINGS: Mapping[str, tuple[str, Mapping[str, Callable[[Any], Any]]]] = {
    "llama": ("llama", _WITH_ROTARY),
    "mistral": ("llama", _WITH_ROTARY),
    "qwen2": ("qwen2", _WITH_ROTARY),
    "gpt2": ("gpt2", _GPT2),
}
"""Model type to llama.cpp's name for it, and GGUF's settings to where the config has them."""
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
_NORMAL, _CONTROL, _DEFINED, _UNUSED = 1, 3, 4, 5
"""GGUF's kinds of tokens."""


def find_problems(made: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """Why a model cannot be written as GGUF, or not be read from it as what it was."""
    if made.model_type not in SETTINGS:
        message = f"expected one of {', '.join(SETTINGS)} for GGUF, found {made.model_type}"
        yield Problem(setting="format", message=message, fix="use --format safetensors, onnx or int8")
        return
    if made.model_type == "gpt2" and made.n_positions != 1024:
        message = (
            "transformers reads GPT-2 from GGUF with 1024 positions alone, and this one has"
            f" {made.n_positions}"
        )
        yield Problem(setting="format", message=message, fix="use --format safetensors, onnx or int8")
    scaling = (getattr(made, "rope_parameters", None) or {}).get("rope_type", "default")
    if scaling != "default":
        message = f"expected rotary embeddings without scaling for GGUF, found {scaling}"
        yield Problem(
            setting="format", message=message, fix="convert the safetensors by llama.cpp's own script"
        )
    if _merges(tokenizer) is None:
        message = (
            "expected a tokenizer of byte-level BPE for GGUF (as of GPT-2, Llama 3, SmolLM2, Qwen 2), found"
            " another one"
        )
        yield Problem(setting="format", message=message, fix="use --format safetensors, onnx or int8")


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: str) -> None:
    """Write a float32 model and its tokenizer to ``path``, matrices as ``kind`` of :data:`TYPES`.

    Raises:
        InputError: :func:`find_problems`; a matrix whose rows cannot be cut into blocks of 32 for q8_0.
    """
    import gguf

    problems = list(find_problems(model.config, tokenizer))
    if problems:
        raise InputError(*problems)
    name, settings = SETTINGS[model.config.model_type]
    writer = gguf.GGUFWriter(path, name)
    # By the name mistral in it transformers (5.23) would look for an architecture that GGUF does not have.
    writer.add_string("general.name", name)
    for key, read in settings.items():
        value = read(model.config)
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{name}.{key}", value)
    _add_tokenizer(writer, tokenizer, model.config.vocab_size)
    asked = gguf.GGMLQuantizationType[kind.upper()]
    for tensor_name, values in _tensors(model, name):
        held = asked if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        try:
            data = gguf.quants.quantize(values, held)
        except gguf.quants.QuantError as error:
            message = f"{tensor_name} of {values.shape} cannot be held as {kind}: {error}"
            raise InputError(
                Problem(setting="gguf_type", message=message, fix="use --gguf_type f16")
            ) from error
        writer.add_tensor(tensor_name, data, raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF's name and the float32 values of every weight; tied ones once."""
    import gguf

    made = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(arch, made.num_hidden_layers)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for weight, tensor in model.named_parameters(remove_duplicate=False):
        if weight in tied:
            continue
        values = tensor.detach().float().cpu()
        if made.model_type in _ROTATED and weight.endswith(("q_proj.weight", "k_proj.weight")):
            heads = made.num_attention_heads if "q_proj" in weight else made.num_key_value_heads
            values = values.view(heads, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        elif made.model_type == "gpt2" and weight.endswith(_TRANSPOSED):
            values = values.T
        known = names.get_name(weight, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise RuntimeError(f"GGUF has no name for the weight {weight} of a {made.model_type}")
        yield known, values.contiguous().numpy()


def _merges(tokenizer: Any) -> list[str] | None:
    """The merges of a byte-level BPE tokenizer, each two tokens with a space between; None for another
    kind."""
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    made = json.loads(backend.to_str())
    if made["model"]["type"] != "BPE" or '"ByteLevel"' not in json.dumps(made["pre_tokenizer"]):
        return None
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in made["model"]["merges"]]


def _split(tokenizer: Any) -> str:
    """llama.cpp's name for the way in which a tokenizer cuts texts into words, by its regular expression."""
    import json

    text = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"])
    if '"Digits"' in text:
        return "smollm"
    if '"Split"' not in text:
        return "gpt-2"
    return "llama-bpe" if "{1,3}" in text else "qwen2"


def _add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Tokens in the order of their ids, with a made-up one for each row of the embeddings that no token
    has."""
    ids = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, kinds = [], []
    for number in range(rows):
        tokens.append(ids.get(number, f"[PAD{number}]"))
        special = number in added and added[number].special
        kinds.append(
            _UNUSED
            if number not in ids
            else _CONTROL
            if special
            else _DEFINED
            if number in added
            else _NORMAL
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges(tokenizer))
    for name in ("bos", "eos", "pad"):
        value = getattr(tokenizer, f"{name}_token_id")
        if value is not None:
            getattr(writer, f"add_{name}_token_id")(value)
