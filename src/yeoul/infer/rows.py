"""Texts of any length that decode together: they join and leave at any step, and nothing is padded.

Each layer has memory for all rows (`LayerCache.room`). A text that joins is copied behind the rows that are there, and
when one leaves, the last takes its place: the rows in use are always the first ones. Column c of a text lies where it
would lie if the text were alone, and all that changes with a token (slots of rings, columns in use, ages of exact
pairs) follows from the number of tokens of each row. So joining and leaving copy one row and move nobody else.

On the CPU the native library takes a token of each row in one call (`NativeDecoder.step_apart`). On a GPU a step over
all rows, in use or not, is recorded as a CUDA graph (`yeoul.infer.static_step`), which has to be done again only for
twice the keys of softmax attention. What neither can do PyTorch does, by that step over the rows in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from yeoul import runtime
from yeoul.infer.cuda_graph import recorded
from yeoul.infer.native.decoder import MOST_ROWS, NativeDecoder, decoder_of
from yeoul.infer.static_step import FEWEST_COLUMNS, StaticStep, Unsupported, check, parts, probed, room
from yeoul.model.cache import Cache, KVCache, LayerCache, WindowCache
from yeoul.model.decoder import Decoder
from yeoul.model.static_cache import StaticKVCache

LARGE = 4096
"""Columns of softmax attention whose memory is given back when the last text has left."""


def joinable(text: Cache) -> bool:
    """Whether a text may join: it has all the sinks that it will have. Before that it has to be read alone."""
    return all(part.sinks_full for part in parts(text.layers) if isinstance(part, WindowCache))


class Rows:
    """Rows of memory for a model, and the step that takes a token of each.

    Args:
        model: whose weights stay as they are meanwhile.
        most: rows at most.
        native: False leaves all to PyTorch.
        fixed: steps over all rows by one step that is made once, which on a GPU is recorded; None does on a GPU.

    Attributes:
        count: rows in use, which are the first ones.
        lengths: (most,) int64 numpy, tokens of each row's text that have been read.
        native: whether the native library takes the tokens.
    """

    def __init__(self, model: Decoder, most: int, *, native: bool = True, fixed: bool | None = None) -> None:
        self.model, self.most, self.count = model, most, 0
        self.lengths = np.zeros(most, np.int64)
        self._decoder: NativeDecoder | None = decoder_of(model, most) if native and most <= MOST_ROWS else None
        self._static: StaticStep | None = None
        self._graph: Any = None  # torch.cuda.CUDAGraph of it
        self._logits, self._read = torch.empty(0), list[Tensor]()
        self._fixed = (model.device.type == "cuda" and runtime.native_allowed()) if fixed is None else fixed
        self.layers: list[LayerCache] = [layer.room(most) for layer in probed(model, 1)]
        self._columns = [part for part in parts(self.layers) if isinstance(part, KVCache)]
        if self._fixed:
            self._fix(0, 0)

    @property
    def native(self) -> bool:
        """See the class."""
        return self._decoder is not None

    def join(self, text: Cache) -> int:
        """Takes a text in, as a copy of the memory that it has alone; the number of its row.

        Args:
            text: of one row, that is `joinable`.
        """
        row, length = self.count, int(text.next_position)
        assert row < self.most and len(text.next_position) == 1
        self._widen(length)
        for layer, given in zip(self.layers, text.layers, strict=True):
            layer.put(row, given, length)
        self.lengths[row] = length
        self.count += 1
        self._changed()
        return row

    def leave(self, row: int, *, wipe: bool = False) -> int:
        """Lets a row go, and puts the last in its place; the number that this one has had.

        Args:
            row: its number.
            wipe: leaves no numbers behind, which would not be seen unless they are not finite.
        """
        assert 0 <= row < self.count
        last = self.count - 1
        for part in self._columns if wipe else ():
            for x in (part.k, part.v):
                assert x is not None
                x[row] = 0
        if row != last:
            for layer in self.layers:
                layer.move(last, row, int(self.lengths[last]))
            self.lengths[row] = self.lengths[last]
        self.count = last
        self._changed()
        if not last and not self._fixed:
            for part in self._columns:
                if part.k is not None and part.k.shape[2] > LARGE:
                    part.k, part.v = (
                        x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in (part.k, part.v) if x is not None
                    )
        return last

    def lone(self, row: int) -> Cache:
        """A copy of a row's memory, as its text would have it alone; this one goes on as before."""
        assert 0 <= row < self.count
        length = int(self.lengths[row])
        position = torch.full((1, 1), length, dtype=torch.int64, device=self.model.device)
        text = Cache([layer.lone(row, length) for layer in self.layers], position)
        text.length = length
        return text

    def nbytes(self) -> int:
        """Bytes that the rows in use have of all memory."""
        columns = sum(
            2 * part.k[0, :, 0].numel() * part.k.element_size() if part.k is not None and part.k.shape[2] else 0
            for part in self._columns
        )
        constant = sum(part.nbytes() for part in parts(self.layers) if not isinstance(part, KVCache))
        return constant // self.most * self.count + columns * int(self.lengths[: self.count].sum())

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) fp32 behind one more token of each row in use.

        Args:
            tokens: (B,) int64, B = `count`.
        """
        lengths = self.lengths[: self.count]
        self._widen(int(lengths.max()) + 1)
        if self._decoder is not None:
            logits = self._decoder.step_apart(tokens, self.layers, lengths, self.most)
        else:
            logits = self._by_pytorch(tokens, lengths)
        lengths += 1
        return logits

    def _by_pytorch(self, tokens: Tensor, lengths: np.ndarray) -> Tensor:
        columns, rows = int(lengths.max()) + 1, self.count
        if self._fixed and (self._static is None or columns > self._static.end):
            self._fix(0, columns)
        if self._static is None or columns > self._static.end:
            self._static = StaticStep(self.model, rows=rows, columns=columns, end=2 * room(columns), memory=self.layers)
        step = self._static
        known = torch.from_numpy(self.lengths[: step.rows])  # of rows not in use nothing that goes on growing
        step.lengths.copy_(known)
        step.positions.copy_(known[:, None])
        step.tokens[:rows].copy_(tokens)
        if self._graph is not None:
            self._graph.replay()
            return self._logits[:rows].clone()
        for part in parts(step.layers):
            if isinstance(part, StaticKVCache):
                part.used = columns
        return step.run()[:rows]

    def _changed(self) -> None:
        """Rows have come or gone: a step over those in use is another one."""
        if not self._fixed:
            self._static = None

    def _widen(self, columns: int) -> None:
        """Makes room for so many columns of softmax attention."""
        wide = all(part.k is not None and part.k.shape[2] >= columns for part in self._columns)
        if wide:
            return
        if self._fixed:
            self._fix(room(columns), columns)
            return
        for part in self._columns:
            part.widen(columns, self.lengths[: self.count].tolist())
        self._static = None

    def _fix(self, columns: int, end: int) -> None:
        """Makes the step over all rows, with memory for so many columns and texts, and keeps what is in it.

        Recording runs the step, which may leave anything in its memory: rows in use are copied behind that.
        """
        old, self._graph = self.layers, None
        self.layers = [layer.room(self.most) for layer in old]
        self._columns = [part for part in parts(self.layers) if isinstance(part, KVCache)]
        capacity = max(
            (part.k.shape[2] for part in parts(old) if isinstance(part, KVCache) and part.k is not None), default=0
        )
        for part in self._columns:
            part.widen(max(columns, capacity, FEWEST_COLUMNS), [])
        end = 2 * room(max(end, self.model.config.max_position_embeddings))
        try:
            check(self.model)
            self._static = StaticStep(self.model, rows=self.most, columns=columns, end=end, memory=self.layers)
            if self.model.device.type == "cuda":
                self._graph, self._logits, self._read = recorded(self._static)
        except Unsupported:
            self._fixed, self._static = False, None
        for row in range(self.count):
            length = int(self.lengths[row])
            for layer, before in zip(self.layers, old, strict=True):
                layer.put(row, before.lone(row, length), length)
