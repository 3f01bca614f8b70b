"""Memory of a text in one piece of its own, which the system gets back whole.

A cache has many small tensors. Thousands of them that live long between others that live for a step leave the heap full
of holes: conversations took 1.5 times what their tensors have. So what is kept for long is copied into one anonymous
mapping.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Iterator

import torch
from torch import Tensor

from yeoul.model.cache import Cache, KVCache, LayerCache, WindowCache

ALIGNED = 64
"""Bytes to which each tensor begins."""


def packed(cache: Cache) -> Cache:
    """The same memory of one row, whose tensors lie in one mapping; on a GPU the cache itself.

    Go on with a copy (`resumed`): columns that only make room are left out.
    """
    if cache.next_position.device.type != "cpu":
        return cache
    other = copy.copy(cache)
    other.layers = [_copied(layer) for layer in cache.layers]
    places = list(_places(other.layers))
    sizes = [-(-tensor.numel() * tensor.element_size() // ALIGNED) * ALIGNED for _, _, tensor in places]
    if not sum(sizes):
        return cache
    whole, start = torch.frombuffer(mmap.mmap(-1, sum(sizes)), dtype=torch.uint8), 0
    for (owner, name, tensor), size in zip(places, sizes, strict=True):
        part = whole[start : start + tensor.numel() * tensor.element_size()].view(tensor.dtype).view(tensor.shape)
        owner[name] = part.copy_(tensor)
        start += size
    return other


def _copied(layer: LayerCache) -> LayerCache:
    """The same layer with dictionaries of its own."""
    other = copy.copy(layer)
    for name, value in vars(other).items():
        if isinstance(value, LayerCache):
            setattr(other, name, _copied(value))
    if isinstance(other, WindowCache):
        other.gates = dict(other.gates)
    return other


def _places(layers: list[LayerCache]) -> Iterator[tuple[dict[str, Tensor], str, Tensor]]:
    """Every tensor with the dictionary that it stands in; keys and values without the room behind them."""
    for layer in layers:
        for part in layer.parts():
            columns = part.length if isinstance(part, KVCache) else None
            for name, tensor in part.tensors().items():
                if columns is not None:
                    tensor = tensor[:, :, :columns] if tensor.dim() == 4 else tensor[:, :columns]
                if tensor.numel():
                    yield vars(part), name, tensor
            if isinstance(part, WindowCache):
                for name, gate in part.gates.items():
                    yield part.gates, name, gate
