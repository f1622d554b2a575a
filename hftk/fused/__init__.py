"""Layers of small models on a CPU whose forward and backward passes are compiled.

A step of a small model is some thousand calls of torch, and most of its time is not arithmetic but those calls.
:func:`fused_layers` makes encoders and decoders of transformers run the blocks of ``kernels`` on batches without padding for as long as
a training takes; one that has more to do (adapters, quantized weights, hooks, caches, autocast, long sequences) runs as it is.
"""

from __future__ import annotations

from hftk.fused.building import Unavailable
from hftk.fused.installing import active, chosen, fused_layers, looked_at, paused

__all__ = ["Unavailable", "active", "chosen", "fused_layers", "looked_at", "paused"]
