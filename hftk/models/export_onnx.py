"""The forward pass of a model as an ONNX graph, from token ids to logits, for onnxruntime and other
programs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hftk.config.problems import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def find_problems() -> Iterator[Problem]:
    """What is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        yield Problem(setting="format", message=message, fix='pip install "hftk[onnx]"')


class _Logits(torch.nn.Module):
    """A model from named tensors, in a fixed order, to its logits."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, tensors, strict=True))
        more = {"use_cache": False} if getattr(self.model.config, "use_cache", None) is not None else {}
        logits: torch.Tensor = self.model(**inputs, **more).logits
        return logits


def write(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the graph of a float32 model that was called with ``inputs``, each (rows, tokens); both may
    differ in every call.

    The inputs of the graph have the same names; the only output is ``logits``.
    """
    names = list(inputs)
    # Two rows and as many tokens as there are: torch takes a size of 1 for one that is always 1.
    tensors = tuple(tensor.repeat(2, 1) if len(tensor) == 1 else tensor for tensor in inputs.values())
    rows = torch.export.Dim("rows")
    lengths = {"decoder": torch.export.Dim("target_tokens"), "encoder": torch.export.Dim("tokens")}
    shapes = tuple(
        {0: rows, 1: lengths["decoder" if name.startswith("decoder_") else "encoder"]} for name in names
    )
    if model.config.is_encoder_decoder:
        # torch (2.13) loses the layout of what fused attention returns when it takes it apart, and cannot
        # join T5's heads any more.
        model.set_attn_implementation("eager")
    torch.onnx.export(
        _Logits(model, names).eval(),
        tensors,
        str(path),
        input_names=names,
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=(shapes,),
        external_data=False,
        verbose=False,
    )


class Session:
    """A written graph in onnxruntime, on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(rows, ..., outputs) logits in float32."""
        (logits,) = self._session.run(["logits"], {name: inputs[name].numpy() for name in self._names})
        return torch.from_numpy(logits)
