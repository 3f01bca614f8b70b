"""Texts of any length that decode together: they join and leave at any step, and nothing is padded.

Each layer has memory for all rows (`LayerCache.room`). A text that joins is copied behind the rows that are there, and
when one leaves, the last takes its place: the rows in use are always the first ones. Column c of a text lies where it
would lie if the text were alone, and all that changes with a token (slots of rings, columns in use, ages of exact
pairs) follows from the number of tokens of each row. So joining and leaving copy one row and move nobody else.

On the CPU the native library takes a token of each row in one call (`NativeDecoder.step_apart`), and PyTorch does it by
the same step that a GPU records (`yeoul.infer.static_step`) where the library cannot.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from yeoul.infer.native.decoder import MOST_ROWS, NativeDecoder, decoder_of
from yeoul.infer.static_step import StaticStep, parts, probed
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

    Attributes:
        count: rows in use, which are the first ones.
        lengths: (most,) int64 numpy, tokens of each row's text that have been read.
        native: whether the native library takes the tokens.
    """

    def __init__(self, model: Decoder, most: int, *, native: bool = True) -> None:
        self.model, self.most, self.count = model, most, 0
        self.lengths = np.zeros(most, np.int64)
        self._decoder: NativeDecoder | None = decoder_of(model, most) if native and most <= MOST_ROWS else None
        self._static: StaticStep | None = None
        self.layers: list[LayerCache] = [layer.room(most) for layer in probed(model, 1)]
        self._columns = [part for part in parts(self.layers) if isinstance(part, KVCache)]

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
        self.count, self._static = self.count + 1, None
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
        self.count, self._static = last, None
        if not last:
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
        columns = int(lengths.max()) + 1
        if self._static is None or columns > self._static.end:
            end = 1 << columns.bit_length()
            self._static = StaticStep(self.model, rows=self.count, columns=columns, end=end, memory=self.layers)
            self._static.lengths.copy_(torch.from_numpy(lengths))
            self._static.positions.copy_(torch.from_numpy(lengths)[:, None])
        for part in parts(self._static.layers):
            if isinstance(part, StaticKVCache):
                part.used = columns
        self._static.tokens.copy_(tokens)
        return self._static.run()

    def _widen(self, columns: int) -> None:
        """Makes room for so many columns of softmax attention."""
        for part in self._columns:
            assert part.k is not None
            if part.k.shape[2] < columns:
                part.widen(columns, self.lengths[: self.count].tolist())
                self._static = None
