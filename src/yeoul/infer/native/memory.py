"""What of a layer's cache a native step reads and writes: tensors, and numbers that change with every token.

The counters are those of `yeoul.model.cache`, which move as its `push` and `extend` move them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from yeoul.model.cache import HybridCache, KVCache, LayerCache, StateCache, WindowCache

Places = Any
"""Some of `Program.places` for every token, numpy int64 (max_rows, n)."""
SLOT, LEAVES, CLOCK = 0, 1, 3
"""Places of PUSH."""
USED, EMPTY = 0, 1
"""Places of ATTEND, in a row of their own: which follows from those of PUSH only in Python."""
BEGUN = 0
"""Place of STATE, DELTA and JOIN: whether the state has been written to."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a layer: key-value heads, channels of a head, type of keys and values."""

    heads: int
    dim: int
    dtype: torch.dtype


class Columns:
    """Places for a token of each row, of rows whose texts have so many columns each: made once for all layers alike.

    Args:
        lengths: (B,) int64 numpy, columns of each text before the token.
    """

    def __init__(self, lengths: Any) -> None:
        self.lengths = lengths
        self._rings: dict[tuple[int, int, int], tuple[Any, Any, Any]] = {}

    def ring(self, window: int, sinks: int, exact: int) -> tuple[Any, Any, Any]:
        """Of PUSH (B, 4), of ATTEND (B, 2), and of what reads the state (B, 1)."""
        key = window, sinks, exact
        if key not in self._rings:
            before, rows = self.lengths, len(self.lengths)
            after = before + 1
            push, attend = np.zeros((rows, 4), np.int64), np.empty((rows, 2), np.int64)
            push[:, SLOT], push[:, LEAVES] = sinks + before % window, before >= window
            push[:, CLOCK] = exact + before  # larger than that of all pairs that are kept
            attend[:, USED] = sinks + np.where(after >= window, window + exact, after)
            attend[:, EMPTY] = (after < window + sinks) | (exact > 0)
            self._rings[key] = push, attend, push[:, LEAVES : LEAVES + 1]
        return self._rings[key]


class LayerMemory(Protocol):
    """The memory of a layer."""

    def prepare(self, cache: LayerCache, rows: int, columns: int) -> bool:
        """Makes room for tokens; whether the tensors are others than those of the last time."""
        ...

    def tensors(self) -> list[Tensor]:
        """The tensors, in the order of the program's slots."""
        ...

    def sizes(self) -> Sequence[tuple[int, int, int]]:
        """(operation, number, value) that go with them."""
        ...

    def advance(self, cache: LayerCache, token: int) -> None:
        """Writes the places for a token of this number, and moves the cache's counters behind it."""
        ...

    def apart(self, cache: LayerCache, columns: Columns) -> None:
        """Writes the places for a token of each row, by the columns of its own, not by the cache's counters."""
        ...


class Everything:
    """Keys and values of all positions (`KVCache`).

    Args:
        shape: of the layer.
        operations: numbers of PUSH and ATTEND, in which the number of slots is the third and the fourth.
        places: of both.
    """

    def __init__(self, shape: Shape, operations: tuple[int, int], places: tuple[Places, Places]) -> None:
        self.shape, self.operations, (self.push, self.attend) = shape, operations, places
        self._k: Tensor | None = None
        self._valid: Tensor | None = None
        self._tensors: list[Tensor] = []

    def prepare(self, cache: LayerCache, rows: int, columns: int) -> bool:
        """See `LayerMemory`."""
        assert isinstance(cache, KVCache)
        if cache.k is None or cache.length + columns > cache.k.shape[2]:
            cache.reserve(rows, self.shape.heads, columns, self.shape.dim, torch.empty(0, dtype=self.shape.dtype))
        if cache.k is self._k and cache.valid is self._valid:
            return False
        assert cache.k is not None and cache.v is not None
        cache.k, cache.v = cache.k.contiguous(), cache.v.contiguous()
        self._k, self._valid = cache.k, cache.valid
        self._tensors = [cache.k, cache.v, cache.k.new_empty(0) if cache.valid is None else cache.valid]
        return True

    def tensors(self) -> list[Tensor]:
        """See `LayerMemory`."""
        return self._tensors

    def sizes(self) -> Sequence[tuple[int, int, int]]:
        """See `LayerMemory`."""
        assert self._k is not None
        push, attend = self.operations
        return (push, 2, self._k.shape[2]), (attend, 3, self._k.shape[2])

    def advance(self, cache: LayerCache, token: int) -> None:
        """See `LayerMemory`."""
        assert isinstance(cache, KVCache)
        self.push[token, SLOT] = cache.length
        cache.length += 1
        self.attend[token, USED], self.attend[token, EMPTY] = cache.length, self._valid is not None

    def apart(self, cache: LayerCache, columns: Columns) -> None:
        """See `LayerMemory`."""
        rows = len(columns.lengths)
        self.push[:rows, SLOT] = columns.lengths
        self.attend[:rows, USED], self.attend[:rows, EMPTY] = columns.lengths + 1, 0


class Window:
    """A ring of keys and values with what stands beside it (`WindowCache`).

    Args:
        shape: of the layer.
        gates: names of the gates.
        places: of PUSH, of ATTEND, and of what reads the state (None without one).
    """

    def __init__(self, shape: Shape, gates: tuple[str, ...], places: tuple[Places, Places, Places | None]) -> None:
        self.shape, self.gates, (self.push, self.attend, self.state) = shape, gates, places
        self._k: Tensor | None = None
        self._tensors: list[Tensor] = []

    def prepare(self, cache: LayerCache, rows: int, columns: int) -> bool:
        """See `LayerMemory`."""
        assert isinstance(cache, WindowCache)
        if cache.k is None:
            nothing = torch.zeros(rows, self.shape.heads, 1, self.shape.dim, dtype=self.shape.dtype)
            cache.allocate(nothing, nothing, {name: nothing[..., 0].float() for name in self.gates})
        if cache.k is self._k:
            return False
        assert cache.k is not None and cache.v is not None and cache.valid is not None
        cache.k, cache.v, cache.valid = cache.k.contiguous(), cache.v.contiguous(), cache.valid.contiguous()
        cache.gates = {name: gate.contiguous() for name, gate in cache.gates.items()}
        age = [] if cache.age is None else [cache.age]
        self._tensors = [cache.k, cache.v, cache.valid, *age, *(cache.gates[name] for name in self.gates)]
        self._k = cache.k
        return True

    def tensors(self) -> list[Tensor]:
        """See `LayerMemory`."""
        return self._tensors

    def sizes(self) -> Sequence[tuple[int, int, int]]:
        """See `LayerMemory`."""
        return ()

    def advance(self, cache: LayerCache, token: int) -> None:
        """See `LayerMemory`."""
        assert isinstance(cache, WindowCache) and cache.sinks_full
        w = cache.window
        leaves = cache.length >= w
        self.push[token, SLOT] = cache.sinks + cache.length % w
        self.push[token, LEAVES], self.push[token, CLOCK] = leaves, cache.clock
        cache.pushed()
        full = cache.length >= w
        self.attend[token, USED] = cache.sinks + (w + cache.exact if full else cache.length)
        self.attend[token, EMPTY] = bool(cache.padded) or bool(cache.free and full)
        if self.state is not None:
            self.state[token, BEGUN] = leaves

    def apart(self, cache: LayerCache, columns: Columns) -> None:
        """See `LayerMemory`."""
        assert isinstance(cache, WindowCache)
        rows = len(columns.lengths)
        push, attend, begun = columns.ring(cache.window, cache.sinks, cache.exact)
        self.push[:rows], self.attend[:rows] = push, attend
        if self.state is not None:
            self.state[:rows] = begun


class State:
    """The state of linear attention, and what its convolution looks back on (`StateCache`).

    Args:
        numbers: of the state, (G, M, D) or (G, M, D + 1).
        sums: whether there is a denominator, (G, M).
        recent: columns and channels of the convolution's memory, and their type; None without one.
        places: of what reads the state where it stands alone; None beside a window.
    """

    def __init__(
        self,
        numbers: tuple[int, int, int],
        sums: bool,
        recent: tuple[int, int, torch.dtype] | None,
        places: Places | None,
    ) -> None:
        self.numbers, self.sums, self.recent, self.places = numbers, sums, recent, places
        self.columns: list[Tensor] = []
        self.state_tensors: list[Tensor] = []
        self._s: Tensor | None = None
        self._recent: Tensor | None = None

    def prepare(self, cache: LayerCache, rows: int, columns: int) -> bool:
        """See `LayerMemory`."""
        assert isinstance(cache, StateCache)
        if cache.s is self._s and cache.recent is self._recent and cache.s is not None:
            return False
        cache.s = torch.zeros(rows, *self.numbers) if cache.s is None else cache.s.contiguous()
        self.state_tensors = [cache.s]
        if self.sums:
            cache.z = torch.zeros(rows, *self.numbers[:2]) if cache.z is None else cache.z.contiguous()
            self.state_tensors.append(cache.z)
        if self.recent is not None:
            taps, channels, dtype = self.recent
            recent = torch.zeros(rows, taps, channels, dtype=dtype) if cache.recent is None else cache.recent
            cache.recent = recent.contiguous()
            self.columns = [cache.recent]
        self._s, self._recent = cache.s, cache.recent
        return True

    def tensors(self) -> list[Tensor]:
        """See `LayerMemory`: the convolution comes before the state."""
        return self.columns + self.state_tensors

    def sizes(self) -> Sequence[tuple[int, int, int]]:
        """See `LayerMemory`."""
        return ()

    def advance(self, cache: LayerCache, token: int) -> None:
        """See `LayerMemory`."""
        if self.places is not None:
            self.places[token, BEGUN] = 1

    def apart(self, cache: LayerCache, columns: Columns) -> None:
        """See `LayerMemory`."""
        if self.places is not None:
            self.places[: len(columns.lengths), BEGUN] = 1


class Hybrid:
    """A window and a state (`HybridCache`)."""

    def __init__(self, window: Window, state: State) -> None:
        self.window, self.state = window, state

    def prepare(self, cache: LayerCache, rows: int, columns: int) -> bool:
        """See `LayerMemory`."""
        assert isinstance(cache, HybridCache)
        other = self.window.prepare(cache.window, rows, columns)
        return self.state.prepare(cache.linear, rows, columns) or other

    def tensors(self) -> list[Tensor]:
        """See `LayerMemory`."""
        return self.state.columns + self.window.tensors() + self.state.state_tensors

    def sizes(self) -> Sequence[tuple[int, int, int]]:
        """See `LayerMemory`."""
        return ()

    def advance(self, cache: LayerCache, token: int) -> None:
        """See `LayerMemory`."""
        assert isinstance(cache, HybridCache)
        self.window.advance(cache.window, token)

    def apart(self, cache: LayerCache, columns: Columns) -> None:
        """See `LayerMemory`."""
        assert isinstance(cache, HybridCache)
        self.window.apart(cache.window, columns)


def ready(cache: LayerCache, dtype: torch.dtype) -> bool:
    """Whether a native step may go on with a cache: keys and values are of this type, and all sinks are there."""
    window = cache.window if isinstance(cache, HybridCache) else cache
    if isinstance(window, StateCache):
        return True
    assert isinstance(window, KVCache | WindowCache)
    if window.k is not None and window.k.dtype != dtype:  # autocast has been there
        return False
    return isinstance(window, KVCache) or window.sinks_full
