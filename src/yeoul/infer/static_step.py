"""One token of every row as a function of fixed tensors: the same kernels on the same addresses at every position.

That is what a CUDA graph can record (`yeoul.infer.cuda_graph`). Layers of a constant state (linear, hybrid and sliding
attention, recurrent layers) need one such step for all lengths of text. Softmax attention needs room for all keys, so
that there is one for each power of two: keys that are not there yet are masked.

Run as it is, on any device, the step computes what the recorded one does.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from yeoul.model.attention import AttentionContext
from yeoul.model.attention_free import RecentCache, RecurrentCache
from yeoul.model.cache import Cache, HybridCache, KVCache, LayerCache, StateCache, WindowCache
from yeoul.model.decoder import Decoder
from yeoul.model.official import OfficialDiJiangAttention
from yeoul.model.rotary import rotary_columns
from yeoul.model.static_cache import StaticKVCache, StaticWindowCache

FEWEST_COLUMNS = 64
"""Room for keys of softmax attention at least."""

CARRIED = StateCache, RecurrentCache, RecentCache
"""Memories that have no counters: what a layer leaves in them is copied to where it was."""


class Unsupported(Exception):
    """A model, or a moment of it, of which there is no static step."""


def check(model: Decoder) -> None:
    """Raises `Unsupported` where a model has a layer, a rotation or a hook that only Python can follow."""
    if any(rope.by_length for rope in model.config.ropes):
        raise Unsupported("rotations that depend on the length of the text")
    for name, module in model.named_modules():
        if isinstance(module, OfficialDiJiangAttention):
            raise Unsupported("the layer of DiJiang's authors")
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"the hook of {name or 'the model'}")


def parts(layers: Sequence[LayerCache]) -> Iterator[LayerCache]:
    """The memories of all layers, those of a hybrid layer one by one."""
    for layer in layers:
        yield from layer.parts()


def ready(cache: Cache, dtype: torch.dtype) -> bool:
    """Whether a static step may go on with a cache: all sinks are there, and keys and values, of this type."""
    for part in parts(cache.layers):
        if isinstance(part, KVCache | WindowCache):
            if part.k is None or part.k.dtype != dtype or (isinstance(part, WindowCache) and not part.sinks_full):
                return False
        elif not isinstance(part, CARRIED):
            return False
    return True


def columns_needed(cache: Cache) -> int:
    """Columns that softmax attention needs room for once one more token is read; 0 without such layers."""
    return max((part.length + 1 for part in parts(cache.layers) if isinstance(part, KVCache)), default=0)


def room(needed: int) -> int:
    """A power of two that leaves room for so many columns or rows of a table; 0 for none."""
    return max(FEWEST_COLUMNS, 1 << (needed - 1).bit_length()) if needed else 0


def probed(model: Decoder, rows: int) -> list[LayerCache]:
    """Memories of all layers for so many rows, with every tensor that they may come to have; they hold noise."""
    with torch.no_grad():
        cache = model.new_cache(rows)  # two tokens make every tensor that a layer has
        model.hidden(torch.zeros(rows, 2, dtype=torch.int64, device=model.device), cache=cache)
    return cache.layers


class StaticStep:
    """Tensors for so many rows, and the step that works on them.

    Args:
        model: one that `check` agrees to.
        rows: R.
        columns: room for keys and values of softmax attention.
        end: larger than every position.
        memory: of the layers, for R rows or more, on whose first R it works; None makes tensors of its own.

    Attributes:
        tokens: (R,) int64, what is read next.
        positions: (R, 1) int64, where it stands; `run` adds 1.
        lengths: (R,) int64, columns of each row so far; `run` adds 1.
        layers: the memories, on which `run` works.
    """

    def __init__(
        self, model: Decoder, *, rows: int, columns: int, end: int, memory: Sequence[LayerCache] | None = None
    ) -> None:
        self.model, self.rows, self.columns, self.end = model, rows, columns, end
        self._shares, probe = memory is not None, memory
        if probe is None:
            probe = probed(model, rows)
        with torch.inference_mode(False), torch.no_grad():  # tensors that may be written to in any mode
            self.tokens = torch.zeros(rows, dtype=torch.int64, device=model.device)
            self.positions = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)
            self.lengths = torch.zeros(rows, dtype=torch.int64, device=model.device)
        with contextlib.nullcontext() if self._shares else torch.inference_mode(False), torch.no_grad():
            self.layers = [self._static(layer) for layer in probe]
        self._carried = [
            (part, name, tensor)
            for part in parts(self.layers)
            if isinstance(part, CARRIED)
            for name, tensor in part.tensors().items()
        ]

    def _static(self, probe: LayerCache) -> LayerCache:
        """A memory of fixed tensors such as this one."""
        if isinstance(probe, HybridCache):
            hybrid = copy.copy(probe)
            window, state = self._static(probe.window), self._static(probe.linear)
            assert isinstance(window, WindowCache) and isinstance(state, StateCache)
            hybrid.window, hybrid.linear = window, state
            return hybrid
        if isinstance(probe, KVCache):
            assert probe.k is not None and probe.v is not None
            return StaticKVCache(self._columns(probe.k), self._columns(probe.v), self.lengths)
        if isinstance(probe, WindowCache):
            return StaticWindowCache(probe, self.lengths, shares=self._shares)
        other = copy.copy(probe)
        for name, tensor in probe.tensors().items():
            empty = None if self._shares else torch.zeros_like(tensor, memory_format=torch.contiguous_format)
            setattr(other, name, tensor[: self.rows] if empty is None else empty)
        return other

    def _columns(self, given: Tensor) -> Tensor:
        """Keys or values of all columns that there is room for."""
        if self._shares:
            return given[: self.rows]
        return given.new_zeros(self.rows, given.shape[1], self.columns, given.shape[3])

    def count_from(self, cache: Cache) -> None:
        """Sets the counters to where a cache stands, of as many rows or fewer."""
        self.lengths.fill_(max((getattr(part, "length", 0) for part in parts(cache.layers)), default=0))
        known = cache.next_position
        self.positions.copy_(torch.cat((known, known[:1].expand(self.rows - len(known), 1))))

    def run(self) -> Tensor:
        """Reads `tokens`: logits (R, V) fp32 behind them. Gradients must be off."""
        model, config = self.model, self.model.config
        rotary = tuple(
            rotary_columns(
                rope, self.positions, 1, self.end, self.positions + 1 if rope.by_length else None, self.tokens.device
            )
            for rope in config.ropes
        )
        context = AttentionContext(positions=self.positions, rotary=rotary)
        x = model.embed(self.tokens[:, None], self.positions, min(self.end, config.max_position_embeddings))
        for block, memory in zip(model.layers, self.layers, strict=True):
            x = block(x, context, memory)
        logits = model.unembed(model.model.norm(x))[:, -1]
        for part, name, tensor in self._carried:
            left = getattr(part, name)
            if left is not tensor:
                tensor.copy_(left)
                setattr(part, name, tensor)
        self.positions.add_(1)
        self.lengths.add_(1)
        return logits
