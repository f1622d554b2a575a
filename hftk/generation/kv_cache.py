"""A key-value cache that is written in place: no copy of the whole at every token, as transformers' dynamic
one makes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 16
"""Tokens by which a layer's store grows."""


class RoomyLayer(DynamicLayer):
    """As :class:`DynamicLayer`, with room behind the last token: ``keys`` and ``values`` are the front of
    larger tensors."""

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[torch.Tensor] = []  # keys and values, (rows, heads, room, size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds (rows, heads, tokens, size) keys and values; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._stores = [key_states[:, :, :0], value_states[:, :, :0]]
            self.keys, self.values = self._stores
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for place, (old, new) in enumerate(
            zip((self.keys, self.values), (key_states, value_states), strict=True)
        ):
            store = self._stores[place]
            if end > store.shape[2]:
                rows, heads, _, size = new.shape
                store = self._stores[place] = new.new_empty(rows, heads, -(-end // BLOCK) * BLOCK, size)
                store[:, :, :start] = old
            store[:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` is; there may be more or fewer rows afterwards."""
        if self.is_initialized:
            length = self.keys.shape[2]
            self._stores = [store.index_select(0, beam_idx) for store in self._stores]
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self._stores)


def make_cache(config: Any) -> DynamicCache:
    """The cache that ``generate`` makes for a decoder's ``config``, its plain layers replaced by roomy
    ones."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
