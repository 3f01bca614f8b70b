"""A model whose tokens are decoded by the native library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yeoul.infer.native.binding import APART, IN_STEP, ONE_TEXT, instruction_sets, native_library
from yeoul.infer.native.layers import Translation
from yeoul.infer.native.memory import Columns, ready
from yeoul.infer.native.program import Program, Unsupported
from yeoul.model.cache import Cache, LayerCache
from yeoul.model.decoder import Decoder
from yeoul.model.rotary import rotary_table

MOST_ROWS = 64
"""Rows of a batch at most."""


class NativeDecoder:
    """Decodes one token of every row of a batch, as `Decoder.forward` does with a cache, in one call.

    Weights are read where the model has them, but norms, biases and feature maps as they are now: after a change to the
    model there must be a new one. Activations are fp32 whatever the weights are; products with weights of few bits take
    inputs as whole numbers of 16 bits, so that their error is that of fp16 at most.

    Args:
        model: on the CPU.
        rows: of the batch at most.
        threads: None is torch's number.
        isa: an instruction set of `instruction_sets`; None is the best.

    Raises:
        Unsupported: the library is not there, or does not do all that the model does.
    """

    def __init__(self, model: Decoder, rows: int = 1, *, threads: int | None = None, isa: str | None = None) -> None:
        if native_library() is None:
            raise Unsupported("there is no native library")
        if not 1 <= rows <= MOST_ROWS:
            raise Unsupported(f"{rows} rows")
        threads = threads or torch.get_num_threads()
        whole = Translation(model, threads)
        self.model = model
        self.program = Program(
            whole.builder, whole.result, model.config.vocab_size, layers=len(model.layers), max_rows=rows,
            threads=threads, isa=isa or instruction_sets()[0],
        )  # fmt: skip
        self._rotations, self._ropes = whole.rotations, model.config.ropes
        self._layers = [make(self.program.places[:, number]) for number, make in enumerate(whole.layers)]
        self._rows, self._end = 0, 0

    def takes(self, cache: Cache, rows: int) -> bool:
        """Whether it can go on from a cache with so many rows; else PyTorch must."""
        dtype = self.model.dtype
        return rows <= self.program.max_rows and all(ready(layer, dtype) for layer in cache.layers)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) fp32 behind one token of each row, which `cache` has then taken in.

        Args:
            tokens: (B,) int64.
            cache: one that `takes` agrees to.

        Raises:
            NativeError: an id or a position is out of range.
        """
        B = len(tokens)
        found = cache.advance(None, 1)
        positions = torch.zeros(B, dtype=torch.int64) if found is None else found.expand(B, 1)[:, 0].contiguous()
        return self._run(tokens, positions, cache, rows=B, columns=1)

    def read(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Logits (T, V) fp32 behind each of several tokens (T,) of a batch of one; otherwise as `step`."""
        T = len(tokens)
        found = cache.advance(None, T)
        positions = torch.arange(T) if found is None else found[0].contiguous()
        return self._run(tokens, positions, cache, rows=1, columns=T)

    def step_apart(self, tokens: Tensor, layers: Sequence[LayerCache], lengths: Any, capacity: int) -> Tensor:
        """Logits (B, V) fp32 behind one token of each of the first rows of memory whose texts are of any length.

        Args:
            tokens: (B,) int64.
            layers: memory for `capacity` rows (`LayerCache.room`), with columns for one more token of each text.
            lengths: (B,) int64 numpy, tokens of each text so far.
            capacity: rows of the memory; those behind the first B are let be.
        """
        end = int(lengths.max()) + 1
        changed = capacity != self._rows or (bool(self._rotations) and end > self._end)
        columns = Columns(lengths)
        for layer, memory in zip(layers, self._layers, strict=True):
            changed = memory.prepare(layer, capacity, 1) or changed
            memory.apart(layer, columns)
        if changed:
            self._bind(capacity, end)
        logits = torch.empty(len(tokens), self.program.width)
        self.program.run(tokens.contiguous(), torch.from_numpy(lengths), logits, order=APART)
        return logits

    def _run(self, tokens: Tensor, positions: Tensor, cache: Cache, *, rows: int, columns: int) -> Tensor:
        end = cache.length  # no position is beyond it
        changed = rows != self._rows or (bool(self._rotations) and end > self._end)
        for layer, memory in zip(cache.layers, self._layers, strict=True):
            changed = memory.prepare(layer, rows, columns) or changed
        if changed:
            self._bind(rows, end)
        for layer, memory in zip(cache.layers, self._layers, strict=True):
            for token in range(columns):
                memory.advance(layer, token)
        logits = torch.empty(len(tokens), self.program.width)
        self.program.run(tokens.contiguous(), positions, logits, order=ONE_TEXT if columns > 1 else IN_STEP)
        return logits

    def _bind(self, rows: int, end: int) -> None:
        sizes: list[tuple[int, int, int]] = []
        memory: list[Tensor] = []
        for rope, turned in zip(self._ropes, self._rotations, strict=True):
            cos, sin = rotary_table(rope, end, self.model.device)
            memory += [cos, sin]
            sizes += [(operation, 4, len(cos)) for operation in turned.operations]
            self._end = len(cos)
        for layer in self._layers:
            memory += layer.tensors()
            sizes += layer.sizes()
        self.program.bind(rows, memory, sizes)
        self._rows = rows


def decoder_of(model: Decoder, rows: int) -> NativeDecoder | None:
    """A native decoder for a model and so many rows; None where PyTorch has to do it."""
    if native_library() is None:
        return None
    try:
        return NativeDecoder(model, rows)
    except Unsupported:
        return None
