"""What the counted step does as the planned device does it: dropout, attention and masks; and the operations of its kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from hftk.dropout import fast_dropout


@contextmanager
def kernels_of(processor: bool) -> Iterator[None]:
    """Inside, dropout keeps what it keeps on the planned device: on a processor that of :mod:`hftk.dropout`; on a GPU one byte for each
    element, and nothing of attention's scores (torch's fused attention draws the same numbers again in the backward pass)."""
    if processor:
        with fast_dropout(torch.device("cpu")):
            yield
        return
    own_dropout, own_attention = functional.dropout, functional.scaled_dot_product_attention

    def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else own_dropout(input, p, training)

    def attention(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> torch.Tensor:
        return own_attention(*args, **kwargs)

    replace: Any = functional
    replace.dropout, replace.scaled_dot_product_attention = dropout, attention
    try:
        yield
    finally:
        replace.dropout, replace.scaled_dot_product_attention = own_dropout, own_attention


@contextmanager
def masks_as_in(batch: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A run makes no mask where the rows are neither padded nor packed; transformers, which cannot look at values here, would make one."""
    from transformers import masking_utils

    found = masking_utils.find_packed_sequence_indices
    if not {"attention_mask", "position_ids"} & set(batch):
        masking_utils.find_packed_sequence_indices = lambda *_: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    """Five products where the forward pass has two, as scores are computed again (Dao et al. 2022)."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape) * 5 // 2)


FLOPS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operation to the function that counts its multiplications and additions, as torch's FlopCounterMode has it."""
