"""Caches whose counters are tensors, so that a decoding step is the same work on the same memory for every token.

What `yeoul.model.cache` decides in Python (where a column is written, how many are in use) is here decided on the
device: columns in use become a mask, the slot an index. Such a step can be recorded once as a CUDA graph and replayed
at any position (`yeoul.infer.static_step`). The tensors are laid out as in the caches that they stand for, which may
take them over at any time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.model.cache import Column, Gates, KVCache, WindowCache


class StaticKVCache(KVCache):
    """Keys and values with room for a fixed number of columns; takes one column at a time.

    Args:
        k: (B, G, capacity, D).
        v: (B, G, capacity, D).
        column: (1,) int64, how many columns there are; whoever runs the step adds to it.
    """

    def __init__(self, k: Tensor, v: Tensor, column: Tensor) -> None:
        super().__init__()
        self.k, self.v = k, v
        self.valid = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        self._column, self._places = column, torch.arange(k.shape[2], device=k.device)

    def extend(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Writes one column, (B, G, 1, D); returns all there is room for, and (B, capacity) bool which of it counts."""
        assert self.k is not None and self.v is not None and self.valid is not None and mask is None
        self.k.index_copy_(2, self._column, k)
        self.v.index_copy_(2, self._column, v)
        return self.k, self.v, self.valid & (self._places <= self._column)


class StaticWindowCache(WindowCache):
    """A ring that has its tensors, all of whose sinks are there; takes one column at a time.

    Args:
        like: an allocated cache, whose sizes and types it has.
        column: (1,) int64, how many columns have been pushed; whoever runs the step adds to it.
    """

    def __init__(self, like: WindowCache, column: Tensor) -> None:
        super().__init__(like.window, like.sinks, like.exact)
        assert like.k is not None and like.v is not None
        self.allocate(like.k, like.v, like.gates)
        self.sinks_full = True
        self._column = column

    def next_age(self, like: Tensor) -> Tensor:
        """See `WindowCache.next_age`: larger than all before, because a column can be kept only once."""
        return (self._column + self.exact).to(torch.int32).expand(like.shape)

    def push(self, k: Tensor, v: Tensor, gates: Gates) -> Column:
        """See `WindowCache.push`; while the ring has room, what leaves is no token."""
        assert self.k is not None and self.v is not None and self.valid is not None
        place = self._column % self.window
        slot = place + self.sinks
        at = lambda x, index: x.index_select(2, index)[:, :, 0]  # noqa: E731
        beside = {name: at(gate, place) for name, gate in self.gates.items()}
        left = Column(at(self.k, slot), at(self.v, slot), beside, self.valid.index_select(1, slot))
        left = self._exchange(left) if self.exact else left
        self.k.index_copy_(2, slot, k[:, :, None])
        self.v.index_copy_(2, slot, v[:, :, None])
        for name, gate in gates.items():
            kept = self.gates[name]
            kept.index_copy_(2, place, gate.expand(-1, kept.shape[1], *gate.shape[2:])[:, :, None])
        self.valid.index_fill_(1, slot, True)
        return left

    def columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `WindowCache.columns`: all slots, and which of them hold a token."""
        assert self.k is not None and self.v is not None
        return self.k, self.v, self.valid
