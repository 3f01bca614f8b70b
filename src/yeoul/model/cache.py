"""What a layer remembers between calls: keys and values, a rolling window of them, or a linear state."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul.ops.exact_pairs import NOTHING, take
from yeoul.ops.linear_attention import LinearState
from yeoul.ops.window import Sinks

Gates = dict[str, Tensor]
"""Numbers of each token that travel beside its key and value, by name, each (B, G, T, ...): write strength and
log-decay in fp32, and whatever else a layer's state is told of a token when it takes it in."""

SCORE = "score"
"""Among the gates of layers that keep exact pairs: how much a key is worth keeping when it leaves the window."""


YOUNGEST = 2**31 - 1
"""Age of an empty slot."""


class LayerCache:
    """Memory of one layer. Tensors hang on attributes, so that `nbytes`, `reorder` and `reset` serve every kind."""

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, by attribute."""
        own = vars(self).items()
        return {name: value for name, value in own if isinstance(value, Tensor) and not name.startswith("_")}

    def parts(self) -> tuple[LayerCache, ...]:
        """The memories that this one is made of: itself, unless it holds others."""
        return (self,)

    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def reorder(self, index: Tensor) -> None:
        """Keeps the given rows, (B',) int64, in that order."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.index_select(0, index))

    def fork(self, index: Tensor) -> Self:
        """The given rows, (B',) int64, each as often as it is named, as a memory of their own; this one stays."""
        other = copy.copy(self)
        other.reorder(index)
        return other

    def snapshot(self) -> Self:
        """This memory as it is now. Once one of the two has gone on, going on with the other ends it."""
        other = copy.copy(self)
        for name, tensor in self.tensors().items():
            setattr(other, name, tensor.clone())
        return other

    def resumed(self, columns: int) -> Self:
        """A copy to go on with, for texts of so many columns; this one stays, and may be gone on with as well."""
        return self.snapshot()

    # -- rows of texts of any length, which come and go (`yeoul.infer.rows`): counters are those of each text

    def room(self, rows: int) -> Self:
        """Empty memory such as this one, for so many rows, of which each will be given what `put` puts there."""
        other = copy.copy(self)
        for name, tensor in self.tensors().items():
            setattr(other, name, tensor.new_zeros(rows, *tensor.shape[1:]))
        return other

    def put(self, row: int, text: Self, length: int) -> None:
        """Copies the memory of one text of so many tokens into a row."""
        given = text.tensors()
        for name, tensor in self.tensors().items():
            if name in given:
                tensor[row] = given[name][0]
            else:  # the text is too short for it
                tensor[row] = 0

    def lone(self, row: int, length: int) -> Self:
        """A copy of a row whose text has so many tokens, as the memory of that text alone."""
        other = copy.copy(self)
        for name, tensor in self.tensors().items():
            setattr(other, name, tensor[row : row + 1].clone())
        return other

    def move(self, source: int, target: int, length: int) -> None:
        """Copies a row, whose text has so many tokens, over another."""
        for tensor in self.tensors().values():
            tensor[target] = tensor[source]


class KVCache(LayerCache):
    """All keys and values so far; grows by doubling, so that a step costs no copy of the past."""

    def __init__(self) -> None:
        self.k: Tensor | None = None  # (B, G, capacity, D)
        self.v: Tensor | None = None
        self.valid: Tensor | None = None  # (B, capacity) bool; None while no padding has been seen
        self.length = 0

    def nbytes(self) -> int:
        """Bytes of the columns in use, without the room kept for growth."""
        if self.k is None or not self.length:
            return 0
        return super().nbytes() * self.length // self.k.shape[2]

    def snapshot(self) -> Self:
        """See `LayerCache.snapshot`; without a copy, for what is written behind `length` changes nothing before it."""
        return copy.copy(self)

    def resumed(self, columns: int) -> Self:
        """See `LayerCache.resumed`; with room for so many columns and no more."""
        other = copy.copy(self)
        size = max(columns, self.length)
        for name, old in (("k", self.k), ("v", self.v)):
            if old is not None:
                new = _untouched(old, (*old.shape[:2], size, old.shape[3]))
                new[:, :, : self.length] = old[:, :, : self.length]
                setattr(other, name, new)
        if self.valid is not None:
            other.valid = F.pad(self.valid[:, : self.length], (0, size - self.length), value=True)
        return other

    def _grow(self, tensor: Tensor, room: int, dim: int) -> Tensor:
        size = list(tensor.shape)
        size[dim] = room
        larger = tensor.new_zeros(size)
        larger.narrow(dim, 0, self.length).copy_(tensor.narrow(dim, 0, self.length))
        return larger

    def reserve(self, rows: int, heads: int, columns: int, dim: int, like: Tensor) -> None:
        """Makes room for more columns of so many rows, heads and channels, of the type and on the device of `like`."""
        end = self.length + columns
        if self.k is None or self.v is None:
            self.k, self.v = (like.new_zeros(rows, heads, end, dim) for _ in range(2))
        if end > self.k.shape[2]:
            room = max(end, min(2 * self.length, self.length + 4096), 64)
            self.k, self.v = self._grow(self.k, room, 2), self._grow(self.v, room, 2)
        if self.valid is not None and self.valid.shape[1] < self.k.shape[2]:
            self.valid = F.pad(self.valid, (0, self.k.shape[2] - self.valid.shape[1]), value=True)

    def extend(self, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Appends (B, G, T, D) keys and values; returns all so far, and which columns are tokens (None: all)."""
        (B, G, T, D), start = k.shape, self.length
        end = start + T
        self.reserve(B, G, T, D, k)
        assert self.k is not None and self.v is not None
        if mask is not None and self.valid is None and not bool(mask.all()):
            self.valid = torch.ones(B, self.k.shape[2], dtype=torch.bool, device=k.device)
        self.k[:, :, start:end], self.v[:, :, start:end] = k, v
        if self.valid is not None and mask is not None:
            self.valid[:, start:end] = mask
        self.length = end
        valid = None if self.valid is None else self.valid[:, :end]
        return self.k[:, :, :end], self.v[:, :, :end], valid

    def room(self, rows: int) -> Self:
        """See `LayerCache.room`: columns are made by `widen`, each row's text begins at the first."""
        assert self.k is not None and self.v is not None
        other = copy.copy(self)
        other.k, other.v = (x.new_zeros(rows, x.shape[1], 0, x.shape[3]) for x in (self.k, self.v))
        other.valid, other.length = None, 0
        return other

    def widen(self, columns: int, lengths: Sequence[int]) -> None:
        """Makes room for so many columns, and some more; of each row as many are kept as its text has tokens.

        Memory behind a text is not touched, so that on most systems it takes none.
        """
        assert self.k is not None and self.v is not None
        if columns <= self.k.shape[2]:
            return
        size = max(64, columns, min(2 * self.k.shape[2], columns + 4096))
        for name, old in (("k", self.k), ("v", self.v)):
            new = _untouched(old, (*old.shape[:2], size, old.shape[3]))
            for row, length in enumerate(lengths):
                new[row, :, :length] = old[row, :, :length]
            setattr(self, name, new)

    def put(self, row: int, text: Self, length: int) -> None:
        """See `LayerCache.put`; there is room for the text."""
        assert self.k is not None and self.v is not None and text.k is not None and text.v is not None
        start = text.length - length  # behind padding
        self.k[row, :, :length], self.v[row, :, :length] = (x[0, :, start : text.length] for x in (text.k, text.v))

    def lone(self, row: int, length: int) -> Self:
        """See `LayerCache.lone`."""
        assert self.k is not None and self.v is not None
        other = copy.copy(self)
        other.k, other.v = (x[row : row + 1, :, :length].clone() for x in (self.k, self.v))
        other.length = length
        return other

    def move(self, source: int, target: int, length: int) -> None:
        """See `LayerCache.move`."""
        assert self.k is not None and self.v is not None
        for x in (self.k, self.v):
            x[target, :, :length] = x[source, :, :length]

    def front(self, length: int) -> Self:
        """The memory of the first tokens of a text that stands alone, without a copy; see `snapshot`."""
        other = self.snapshot()
        other.length = length
        return other


def _untouched(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of the type and on the device of `like`; on the CPU memory that the system hands out when it is touched."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


class Columns(NamedTuple):
    """Columns that stand one behind the other.

    Attributes:
        k: (B, G, N, D).
        v: (B, G, N, D).
        gates: each (B, G, N, ...).
        valid: (B, N) bool, which of them are tokens.
        sinks: what is seen beside them; None where there is nothing.
    """

    k: Tensor
    v: Tensor
    gates: Gates
    valid: Tensor
    sinks: Sinks | None


class Column(NamedTuple):
    """One of them: k and v (B, G, D), gates (B, G, ...), valid (B, G or 1) bool, None where it surely is a token."""

    k: Tensor
    v: Tensor
    gates: Gates
    valid: Tensor | None


class WindowCache(LayerCache):
    """The last w keys and values, in a ring, behind the first s of each text, its sinks; and the gates of the ring.

    Slots 0 ... s-1 hold the sinks and column c lies in slot s + c mod w. A sink passes through the ring too, so that
    all rows keep step, but counts there as no token. Sinks need no gates: they never leave. Behind the ring, L slots
    hold the pairs that are kept when they leave it, in any order (`yeoul.ops.exact_pairs`).
    """

    def __init__(self, window: int, sinks: int = 0, exact: int = 0) -> None:
        self.window, self.sinks, self.exact = window, sinks, exact
        self.k: Tensor | None = None  # (B, G, s + w + L, D)
        self.v: Tensor | None = None  # (B, G, s + w + L, D)
        self.gates: Gates = {}  # each (B, G, w + L, ...), the score of an empty slot is NOTHING
        self.valid: Tensor | None = None  # (B, s + w + L) bool: the slot holds a token
        self.age: Tensor | None = None  # (B, G, L) int32: smaller is older, YOUNGEST in an empty slot
        self.clock = exact  # the age of the next pair that is kept
        self.free = exact  # slots that may be empty in some row
        self.length = 0
        self.padded = 0  # pushes until the last padded column has left the ring
        self.sinks_full = sinks == 0  # every row has all its sinks

    def nbytes(self) -> int:
        """Bytes of keys, values and gates."""
        return super().nbytes() + sum(gate.numel() * gate.element_size() for gate in self.gates.values())

    def reorder(self, index: Tensor) -> None:
        """Keeps the given rows, (B',) int64, in that order."""
        super().reorder(index)
        self.gates = {name: gate.index_select(0, index) for name, gate in self.gates.items()}

    def snapshot(self) -> Self:
        """See `LayerCache.snapshot`."""
        other = super().snapshot()
        other.gates = {name: gate.clone() for name, gate in self.gates.items()}
        return other

    def allocate(self, k: Tensor, v: Tensor, gates: Gates) -> None:
        """Makes the tensors, for columns such as (B, G, N, D) keys and values and (B, G, N, ...) gates."""
        (B, G, _, D), slots = k.shape, self.sinks + self.window + self.exact
        self.k, self.v = k.new_zeros(B, G, slots, D), v.new_zeros(B, G, slots, v.shape[3])
        self.gates = {name: gate.new_zeros(B, G if self.exact else gate.shape[1], self.window + self.exact,
                                           *gate.shape[3:]) for name, gate in gates.items()}  # fmt: skip
        self.valid = torch.zeros(B, slots, dtype=torch.bool, device=k.device)
        if self.exact:
            self.gates[SCORE][:, :, self.window :] = NOTHING
            self.age = torch.full((B, G, self.exact), YOUNGEST, dtype=torch.int32, device=k.device)

    def extend(self, k: Tensor, v: Tensor, gates: Gates, mask: Tensor | None) -> Columns:
        """Appends (B, G, T, D) keys and values and (B, G, T, ...) gates, where `mask` (B, T) says that tokens stand.

        Returns:
            The w columns before and the new ones, oldest first. Where there are sinks, the w columns before that are
            sinks are not valid.
        """
        (B, _, T, _), w, s = k.shape, self.window, self.sinks
        if self.k is None:
            self.allocate(k, v, gates)
        assert self.k is not None and self.v is not None and self.valid is not None
        turn, ring = -(self.length % w), slice(s, s + w)
        new = torch.ones(B, T, dtype=torch.bool, device=k.device) if mask is None else mask
        keys = torch.cat((self.k[:, :, ring].roll(turn, 2), k), dim=2)
        values = torch.cat((self.v[:, :, ring].roll(turn, 2), v), dim=2)
        beside = {name: torch.cat((self.gates[name][:, :, :w].roll(turn, 2), gate.expand(-1, heads, -1)), dim=2)
                  for name, gate in gates.items() for heads in (self.gates[name].shape[1],)}  # fmt: skip
        valid = torch.cat((self.valid[:, ring].roll(turn, 1), new), dim=1)
        taken = self._take_sinks(k, v, new) if s else None
        kept = valid if taken is None else valid & ~taken[0].is_sink
        self.length += T
        turn = self.length % w
        recent = min(self.length, w)
        self.padded = 0 if bool(kept[:, -recent:].all()) else w
        sinks, there = (None, valid[:, :0]) if taken is None else taken
        if sinks is not None:
            self.sinks_full = bool(there.all())
        first = (k[:, :, :0], v[:, :, :0]) if sinks is None else (sinks.k[:, :, 0], sinks.v[:, :, 0])
        self.k = torch.cat((first[0], keys[:, :, -w:].roll(turn, 2), self.k[:, :, s + w :]), 2)
        self.v = torch.cat((first[1], values[:, :, -w:].roll(turn, 2), self.v[:, :, s + w :]), 2)
        self.gates = {name: torch.cat((gate[:, :, -w:].roll(turn, 2), self.gates[name][:, :, w:]), 2)
                      for name, gate in beside.items()}  # fmt: skip
        self.valid = torch.cat((there, kept[:, -w:].roll(turn, 1), self.valid[:, s + w :]), 1)
        return Columns(keys, values, beside, valid, sinks)

    def kept(self) -> Columns:
        """The pairs that are kept, oldest first: L columns, of which the empty ones come last and are not valid."""
        assert self.k is not None and self.v is not None and self.valid is not None and self.age is not None
        order, slots = self.age.sort(dim=-1, stable=True).indices, self.sinks + self.window
        gates = {name: take(gate[:, :, self.window :], order) for name, gate in self.gates.items()}
        keys, values = (take(x[:, :, slots:], order) for x in (self.k, self.v))
        return Columns(keys, values, gates, self.valid[:, slots:], None)

    def keep(self, pairs: Columns) -> None:
        """Puts L columns, oldest first, in place of the pairs that are kept."""
        assert self.k is not None and self.v is not None and self.valid is not None and self.age is not None
        slots = self.sinks + self.window
        self.k[:, :, slots:], self.v[:, :, slots:] = pairs.k, pairs.v
        self.valid[:, slots:] = pairs.valid
        for name, gate in pairs.gates.items():
            self.gates[name][:, :, self.window :] = gate
        there = pairs.valid[:, None]
        self.gates[SCORE][:, :, self.window :].masked_fill_(~there, NOTHING)
        ages = torch.arange(self.exact, dtype=torch.int32, device=self.age.device)
        self.age.copy_(torch.where(there, ages, YOUNGEST))
        self.clock = self.exact
        self.free = self.exact - int(pairs.valid.sum(1).min()) if len(pairs.valid) else 0

    def _exchange(self, left: Column) -> Column:
        """Keeps a pair that has left the ring if it scores higher than another; what is evicted, where something is."""
        assert self.k is not None and self.v is not None and self.valid is not None and self.age is not None
        w, slots = self.window, self.sinks + self.window
        scores = self.gates[SCORE][:, :, w:]  # (B, G, L)
        lowest = scores.amin(-1, keepdim=True)
        place = torch.where(scores == lowest, self.age, -1).argmax(-1, keepdim=True)  # (B, G, 1), of equals the newest
        better = left.gates[SCORE][..., None] > lowest  # (B, G, 1)
        there: Tensor | None = None
        if left.valid is not None:
            better = better & left.valid[..., None]
        if self.free or left.valid is not None:
            there = lowest[..., 0] > NOTHING
            there = there if left.valid is None else there & left.valid
            full = self.valid[:, slots:].scatter(1, place[:, 0], better[:, 0])  # empty slots are filled in all heads
            self.valid[:, slots:] |= full
            self.free = self.free if left.valid is not None else max(0, self.free - 1)

        def swapped(held: Tensor, new: Tensor) -> Tensor:
            """Puts (B, G, ...) into (B, G, L, ...) where it is better, and gives what does not stay."""
            shape = (*place.shape, *(1 for _ in new.shape[2:]))
            index, win = place.view(shape).expand(-1, -1, 1, *new.shape[2:]), better.view(shape)
            old, new = held.gather(2, index), new[:, :, None]
            held.scatter_(2, index, torch.where(win, new, old))
            return torch.where(win, old, new)[:, :, 0]

        k, v = swapped(self.k[:, :, slots:], left.k), swapped(self.v[:, :, slots:], left.v)
        gates = {name: swapped(self.gates[name][:, :, w:], gate) for name, gate in left.gates.items()}
        swapped(self.age, self.next_age(place[..., 0]))
        return Column(k, v, gates, there)

    def next_age(self, like: Tensor) -> Tensor:
        """The age of the next pair that is kept, int32, as often as `like` has numbers."""
        self.clock += 1
        return torch.full_like(like, self.clock - 1, dtype=torch.int32)

    def _take_sinks(self, k: Tensor, v: Tensor, new: Tensor) -> tuple[Sinks, Tensor]:
        """The sinks after new columns, of which `new` (B, T) are tokens; and which of them there are by now, (B, s)."""
        assert self.k is not None and self.v is not None and self.valid is not None
        (B, G, T, _), s, device = k.shape, self.sinks, k.device
        known = self.valid[:, :s].sum(1, keepdim=True)  # (B, 1)
        ordinal = known + new.long().cumsum(1) - 1
        is_sink = new & (ordinal < s)
        slot = torch.arange(s, device=device)
        column = slot - known + new.long().argmax(1, keepdim=True)  # (B, s): tokens stand together
        old, arrives = slot < known, (slot >= known) & (slot <= ordinal[:, -1:])
        there = column.clamp(0, T - 1)[:, None, :, None]
        at = lambda x: x.gather(2, there.expand(B, G, s, x.shape[3]))  # noqa: E731
        keys = torch.where(arrives[:, None, :, None], at(k), self.k[:, :, :s])
        values = torch.where(arrives[:, None, :, None], at(v), self.v[:, :, :s])
        column = torch.where(old, -1, torch.where(arrives, column, T))
        sinks = Sinks(keys[:, :, None], values[:, :, None], column[:, None], F.pad(is_sink, (self.window, 0)))
        return sinks, old | arrives

    def push(self, k: Tensor, v: Tensor, gates: Gates) -> Column | None:
        """Writes one token, (B, G, D) and gates (B, G, ...), in place of the ring's oldest; the sinks must be full.

        Returns:
            The column that left, or the pair that is no longer kept in its place; None while the ring had room.
        """
        if self.k is None:
            self.allocate(k[:, :, None], v[:, :, None], {name: gate[:, :, None] for name, gate in gates.items()})
        assert self.k is not None and self.v is not None and self.valid is not None and self.sinks_full
        place = self.length % self.window
        slot, left = self.sinks + place, None
        if self.length >= self.window:
            valid = self.valid[:, slot, None].clone() if self.padded else None
            beside = {name: gate[:, :, place].clone() for name, gate in self.gates.items()}
            left = Column(self.k[:, :, slot].clone(), self.v[:, :, slot].clone(), beside, valid)
            left = self._exchange(left) if self.exact else left
        self.k[:, :, slot], self.v[:, :, slot] = k, v
        for name, gate in gates.items():
            self.gates[name][:, :, place] = gate
        if self.length < self.window or self.padded:
            self.valid[:, slot] = True
        self.length += 1
        self.padded = max(0, self.padded - 1)
        return left

    def pushed(self) -> None:
        """Moves the counters as `push` does, behind a token that something else has written into the tensors."""
        if self.length >= self.window and self.exact:
            self.clock += 1
            if not self.padded:
                self.free = max(0, self.free - 1)
        self.length += 1
        self.padded = max(0, self.padded - 1)

    def columns(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values in use, (B, G, up to s + w + L, D), in the order of the slots; valid (B, same), None: all."""
        assert self.k is not None and self.v is not None and self.valid is not None
        full = self.length >= self.window
        used = self.sinks + (self.window + self.exact if full else self.length)
        valid = self.valid[:, :used] if self.padded or (self.free and full) else None
        return self.k[:, :, :used], self.v[:, :, :used], valid

    def room(self, rows: int) -> Self:
        """See `LayerCache.room`: column c of each row's text lies where it would alone."""
        other = super().room(rows)
        other.gates = {name: gate.new_zeros(rows, *gate.shape[1:]) for name, gate in self.gates.items()}
        other.sinks_full = True
        return other

    def put(self, row: int, text: Self, length: int) -> None:
        """See `LayerCache.put`; all sinks of the text are there."""
        assert text.sinks_full and text.valid is not None
        super().put(row, text, length)
        for name, gate in self.gates.items():
            gate[row] = text.gates[name][0]
        turn = (length - text.length) % self.window  # columns of padding
        if turn:
            s, w = self.sinks, self.window
            for x, first, dim in (
                (self.k, s, 1),
                (self.v, s, 1),
                (self.valid, s, 0),
                *((g, 0, 1) for g in self.gates.values()),
            ):
                assert x is not None
                ring = x[row].narrow(dim, first, w)
                ring.copy_(ring.roll(turn, dim))

    def lone(self, row: int, length: int) -> Self:
        """See `LayerCache.lone`."""
        other = super().lone(row, length)
        other.gates = {name: gate[row : row + 1].clone() for name, gate in self.gates.items()}
        assert other.valid is not None
        ring, kept = other.valid[:, self.sinks : self.sinks + self.window], other.valid[:, self.sinks + self.window :]
        other.length, other.clock = length, self.exact + length
        other.padded, other.free = 0 if bool(ring.all()) else self.window, self.exact - int(kept.sum())
        return other

    def move(self, source: int, target: int, length: int) -> None:
        """See `LayerCache.move`."""
        super().move(source, target, length)
        for gate in self.gates.values():
            gate[target] = gate[source]


class StateCache(LayerCache):
    """The state of linear attention: constant size, fp32; and what a short convolution before it looks back on."""

    def __init__(self) -> None:
        self.s: Tensor | None = None  # (B, G, M, D)
        self.z: Tensor | None = None  # (B, G, M), of layers that keep a denominator
        self.recent: Tensor | None = None  # (B, K - 1, channels) of a short convolution

    @property
    def state(self) -> LinearState | None:
        """The state so far of an additive layer; None before the first token."""
        return None if self.s is None or self.z is None else LinearState(self.s, self.z)

    @state.setter
    def state(self, value: LinearState) -> None:
        self.s, self.z = value


class HybridCache(LayerCache):
    """A window of keys and values, with the sinks before it and the pairs kept of what has left it; a state of the
    rest."""

    def __init__(self, window: int, sinks: int = 0, exact: int = 0) -> None:
        self.window = WindowCache(window, sinks, exact)
        self.linear = StateCache()

    def parts(self) -> tuple[LayerCache, ...]:
        """See `LayerCache.parts`."""
        return self.window, self.linear

    def nbytes(self) -> int:
        """Bytes of both."""
        return self.window.nbytes() + self.linear.nbytes()

    def reorder(self, index: Tensor) -> None:
        """Keeps the given rows, (B',) int64, in that order."""
        self.window.reorder(index)
        self.linear.reorder(index)

    def fork(self, index: Tensor) -> Self:
        """See `LayerCache.fork`."""
        other = copy.copy(self)
        other.window, other.linear = self.window.fork(index), self.linear.fork(index)
        return other

    def snapshot(self) -> Self:
        """See `LayerCache.snapshot`."""
        other = copy.copy(self)
        other.window, other.linear = self.window.snapshot(), self.linear.snapshot()
        return other

    def resumed(self, columns: int) -> Self:
        """See `LayerCache.resumed`."""
        other = copy.copy(self)
        other.window, other.linear = self.window.resumed(columns), self.linear.resumed(columns)
        return other

    def room(self, rows: int) -> Self:
        """See `LayerCache.room`."""
        other = copy.copy(self)
        other.window, other.linear = self.window.room(rows), self.linear.room(rows)
        return other

    def put(self, row: int, text: Self, length: int) -> None:
        """See `LayerCache.put`."""
        self.window.put(row, text.window, length)
        self.linear.put(row, text.linear, length)

    def lone(self, row: int, length: int) -> Self:
        """See `LayerCache.lone`."""
        other = copy.copy(self)
        other.window, other.linear = self.window.lone(row, length), self.linear.lone(row, length)
        return other

    def move(self, source: int, target: int, length: int) -> None:
        """See `LayerCache.move`."""
        self.window.move(source, target, length)
        self.linear.move(source, target, length)


class Cache:
    """The memory of a whole model: one `LayerCache` a layer, and where each row's text stands."""

    def __init__(self, layers: list[LayerCache], next_position: Tensor) -> None:
        self.layers = layers
        self.next_position = next_position  # (B, 1) int64
        self.length = 0  # columns seen, padding included
        self.aligned = True  # no padding so far: every row stands at position `length`
        self._text_length: Tensor | None = None  # (B, 1) int64, what rotations by length go by

    def nbytes(self) -> int:
        """Bytes remembered by all layers."""
        return sum(layer.nbytes() for layer in self.layers)

    def reorder(self, index: Tensor) -> None:
        """Keeps the given rows, (B',) int64, in that order: drops finished sequences, or follows beams."""
        for layer in self.layers:
            layer.reorder(index)
        self.next_position = self.next_position.index_select(0, index)
        if self._text_length is not None:
            self._text_length = self._text_length.index_select(0, index)

    def fork(self, index: Tensor) -> Cache:
        """A snapshot to go on from: the given rows, (B',) int64, each as often as it is named; this cache stays as it
        is, and may be forked again."""
        other = copy.copy(self)
        other.layers = [layer.fork(index) for layer in self.layers]
        other.next_position = self.next_position.index_select(0, index)
        if self._text_length is not None:
            other._text_length = self._text_length.index_select(0, index)
        return other

    def snapshot(self) -> Cache:
        """The memory as it is now, to go back to. Once one of the two has gone on, going on with the other ends it."""
        other = copy.copy(self)
        other.layers = [layer.snapshot() for layer in self.layers]
        return other

    def resumed(self, columns: int) -> Cache:
        """A copy to go on with, for texts of so many columns; this one stays, and may be gone on with as well."""
        other = copy.copy(self)
        other.layers = [layer.resumed(columns) for layer in self.layers]
        return other

    def front(self, length: int) -> Cache:
        """The memory of the first tokens of the only text, which has no padding; of softmax attention alone, whose
        memory is shared: go on with a copy (`resumed`)."""
        assert self.aligned and len(self.next_position) == 1
        other = copy.copy(self)
        other.layers = []
        for layer in self.layers:
            assert isinstance(layer, KVCache) and length <= layer.length
            other.layers.append(layer.front(length))
        other.length, other.next_position = length, self.next_position.new_full((1, 1), length)
        return other

    def expect(self, lengths: Tensor) -> None:
        """How long the text of each row is, (B,) int64, where it is read in pieces: before the first of them."""
        self._text_length = lengths[:, None].to(self.next_position.device)

    def decided(self) -> Tensor:
        """How long each row's text was when its first columns were read, or what `expect` was told: (B, 1) int64."""
        if self._text_length is None:
            self._text_length = self.next_position.clone()
        return self._text_length

    def advance(self, mask: Tensor | None, columns: int) -> Tensor | None:
        """Takes note of new columns; returns their positions (B, T), or None where all rows stand at `length`."""
        if mask is not None and mask.dim() == 2 and not bool(mask.all()):
            if not bool(mask[:, -1].all()):
                raise ValueError("with a cache, padding must be on the left: the last column of a row is padding")
            self.aligned = False
        start = self.length
        self.length += columns
        if self.aligned:
            self.next_position = self.next_position.new_full(self.next_position.shape, self.length)
            return None if start == 0 else torch.arange(start, self.length, device=self.next_position.device)[None]
        if mask is None:
            steps = torch.arange(columns, device=self.next_position.device)[None]
            positions = self.next_position + steps
            self.next_position = self.next_position + columns
            return positions
        positions = self.next_position + (mask.long().cumsum(1) - 1).clamp_min(0)
        self.next_position = self.next_position + mask.long().sum(1, keepdim=True)
        return positions
