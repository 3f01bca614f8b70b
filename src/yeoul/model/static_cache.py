"""Caches whose counters are tensors, so that a decoding step is the same work on the same memory for every token.

What `yeoul.model.cache` decides in Python (where a column is written, how many are in use) is here decided on the
device: columns in use become a mask, the slot an index, for each row its own. Such a step can be recorded once as a
CUDA graph and replayed at any position (`yeoul.infer.static_step`). The tensors are laid out as in the caches that they
stand for, which may take them over at any time.
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
        column: (B,) int64, how many columns there are of each row; whoever runs the step adds to it.

    Attributes:
        used: columns that are looked at, where all others are known to be behind every text.
    """

    def __init__(self, k: Tensor, v: Tensor, column: Tensor) -> None:
        super().__init__()
        self.k, self.v, self.used = k, v, k.shape[2]
        self.valid = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        self._column, self._places = column, torch.arange(k.shape[2], device=k.device)

    def extend(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Writes one column, (B, G, 1, D); returns what is looked at, and (B, used) bool which of it counts."""
        assert self.k is not None and self.v is not None and self.valid is not None and mask is None
        _put(self.k, self._column, k)
        _put(self.v, self._column, v)
        there = self.valid[:, : self.used] & (self._places[: self.used] <= self._column[:, None])
        return self.k[:, :, : self.used], self.v[:, :, : self.used], there


class StaticWindowCache(WindowCache):
    """A ring that has its tensors, all of whose sinks are there; takes one column at a time.

    Args:
        like: an allocated cache, whose sizes and types it has.
        column: (B,) int64, how many columns have been pushed into each row; whoever runs the step adds to it.
        shares: works on that cache's tensors, of as many rows as `column` has, or else on tensors of its own.
    """

    def __init__(self, like: WindowCache, column: Tensor, *, shares: bool = False) -> None:
        super().__init__(like.window, like.sinks, like.exact)
        assert like.k is not None and like.v is not None
        if shares:
            rows = len(column)
            for name, tensor in like.tensors().items():
                setattr(self, name, tensor[:rows])
            self.gates = {name: gate[:rows] for name, gate in like.gates.items()}
        else:
            self.allocate(like.k, like.v, like.gates)
        self.sinks_full = True
        self._column = column

    def next_age(self, like: Tensor) -> Tensor:
        """See `WindowCache.next_age`: larger than all before, because a column can be kept only once."""
        return (self._column + self.exact).to(torch.int32)[:, None].expand(like.shape)

    def push(self, k: Tensor, v: Tensor, gates: Gates) -> Column:
        """See `WindowCache.push`; while the ring has room, what leaves is no token."""
        assert self.k is not None and self.v is not None and self.valid is not None
        place = self._column % self.window
        slot = place + self.sinks
        beside = {name: _at(gate, place) for name, gate in self.gates.items()}
        left = Column(_at(self.k, slot), _at(self.v, slot), beside, self.valid.gather(1, slot[:, None]))
        left = self._exchange(left) if self.exact else left
        _put(self.k, slot, k[:, :, None])
        _put(self.v, slot, v[:, :, None])
        for name, gate in gates.items():
            kept = self.gates[name]
            _put(kept, place, gate.expand(-1, kept.shape[1], *gate.shape[2:])[:, :, None])
        self.valid.scatter_(1, slot[:, None], True)
        return left

    def columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `WindowCache.columns`: all slots, and which of them hold a token."""
        assert self.k is not None and self.v is not None
        return self.k, self.v, self.valid


def _index(x: Tensor, slot: Tensor) -> Tensor:
    """(B,) slots as an index of the third dimension of (B, G, S, ...)."""
    return slot.view(-1, *(1 for _ in x.shape[1:])).expand(-1, x.shape[1], 1, *x.shape[3:])


def _at(x: Tensor, slot: Tensor) -> Tensor:
    """(B, G, ...): of each row of (B, G, S, ...) the slot of its own."""
    return x.gather(2, _index(x, slot))[:, :, 0]


def _put(x: Tensor, slot: Tensor, value: Tensor) -> None:
    """Writes (B, G, 1, ...) into each row's own slot of (B, G, S, ...)."""
    x.scatter_(2, _index(x, slot), value.to(x.dtype))
