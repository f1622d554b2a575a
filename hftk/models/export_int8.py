"""Models with weights in 8 bits for prediction on a CPU: what ``hftk export --format int8`` writes and ``hftk
predict`` reads.

Linear layers inside the base model hold one byte for each weight and a scale for each output (symmetric);
inputs are rounded to 7 bits as they come, by one scale for the whole input (dynamic quantization, with
torch's kernels for it). Heads, embeddings and norms stay in float32. For prediction alone: to train on
weights in 8 bits, use ``model.quantization.bits 8``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hftk.config.problems import InputError, Problem
from hftk.models.heads import head_layers, linear_layers
from hftk.models.hub_names import from_config, from_pretrained, read_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "int8.safetensors"
"""All weights of such a model, beside its config.json."""
WEIGHT, SCALES, BIAS = ".weight_int8", ".scales", ".bias"
LARGEST = 127


class Int8Linear(torch.nn.Module):
    """``x @ W.T + bias`` with ``W`` (outputs, inputs) in int8, ``scales`` (outputs,) and ``bias`` (outputs,)
    in float32."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # Some models ask for the type of a layer's weight; of int8 they know that it says nothing about the
        # input's.
        self.register_buffer("weight", torch.empty(0, dtype=torch.int8), persistent=False)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with (
            warnings.catch_warnings()
        ):  # torch (2.13) means to replace its quantized tensors; what is saved are plain ones
            warnings.simplefilter("ignore", UserWarning)
            held = torch._make_per_channel_quantized_tensor(weight, scales.double(), zeros, 0)
        self._packed = torch.ops.quantized.linear_prepack(held, bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # Inputs in 7 bits: with 8, sums of two products overflow on processors without VNNI instructions.
        out: torch.Tensor = torch.ops.quantized.linear_dynamic(input.float(), self._packed, reduce_range=True)
        return out.to(input.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What :meth:`__init__` takes, by the end of its name in the file."""
        held, bias = torch.ops.quantized.linear_unpack(self._packed)
        found = {WEIGHT: held.int_repr(), SCALES: held.q_per_channel_scales().float()}
        return found if bias is None else {**found, BIAS: bias.detach()}


def is_int8(folder: str | Path) -> bool:
    """Whether a folder holds a model that :func:`save` wrote."""
    return (Path(folder).expanduser() / FILE).is_file()


def quantize(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the linear layers (GPT-2's Conv1D too) of a float32 model, in place, all but heads."""
    heads = set(head_layers(model))
    for name, layer in linear_layers(model).items():
        if name in heads:
            continue
        weight: Any = layer.weight
        matrix = (weight if hasattr(layer, "in_features") else weight.T).detach().float()
        scales = (matrix.abs().amax(1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = (matrix / scales[:, None]).round().clamp_(-LARGEST, LARGEST).to(torch.int8)
        bias: Any = layer.bias
        _put(model, name, Int8Linear(rounded, scales, None if bias is None else bias.detach().float()))
    return model


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a model that :func:`quantize` made: config, generation settings and :data:`FILE`; tied weights
    once."""
    from safetensors.torch import save_file

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tensors = {name: t.contiguous() for name, t in model.state_dict().items() if name not in tied}
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear):
            tensors |= {f"{name}{end}": t.contiguous() for end, t in layer.tensors().items()}
    save_file(tensors, folder / FILE)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def load(folder: str | Path, auto_model: str) -> PreTrainedModel:
    """The model in ``folder``, on the CPU, for prediction.

    Raises:
        InputError: the file does not hold the weights of the model that its config describes.
    """
    import transformers
    from safetensors.torch import load_file
    from transformers.initialization import no_init_weights

    path = Path(folder).expanduser()
    made = from_pretrained(transformers.AutoConfig, path)
    with no_init_weights():
        model: Any = from_config(getattr(transformers, auto_model), made, dtype=torch.float32)
    tensors = load_file(path / FILE)
    layers = linear_layers(model)
    for name in [key.removesuffix(WEIGHT) for key in tensors if key.endswith(WEIGHT)]:
        if name not in layers:
            raise _damaged(path, f"{name} is no layer of a {type(model).__name__}")
        _put(
            model,
            name,
            Int8Linear(
                tensors.pop(name + WEIGHT), tensors.pop(name + SCALES), tensors.pop(name + BIAS, None)
            ),
        )
    model.tie_weights()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    wrong = [*(name for name in missing if name not in tied), *unknown]
    if wrong:
        raise _damaged(path, f"it differs from a {type(model).__name__} in {', '.join(wrong[:5])}")
    if model.can_generate() and (path / "generation_config.json").is_file():
        model.generation_config = read_generation_config(path)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _damaged(path: Path, what: str) -> InputError:
    return InputError(Problem(setting="model.name", message=f"{path / FILE}: {what}", fix="export it again"))


def _put(model: Any, name: str, layer: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
