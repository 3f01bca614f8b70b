"""How chunked linear attention cuts its inputs: blocks of K chunks of C positions, their rows and weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from yeoul.ops.inputs import sum_dtype

# How many numbers the large arrays of a block hold together: what stays in the cache of a CPU; elsewhere
# starting a kernel costs more than reading memory, so that blocks are larger.
NUMBERS_ON_CPU = 1 << 21
NUMBERS_ELSEWHERE = 1 << 28

# The states of a block's chunks follow from one another in one matrix product: its cost grows with K squared.
MOST_CHUNKS = 64


class Weights(NamedTuple):
    """Factors of one block: decay, and 0 where a border between sequences is crossed. None is 1 everywhere.

    Sizes B, G and K are 1 where the factor does not depend on them ("chain" has K always).
    """

    inside: Tensor | None  # (B, G, K, 1, C, C): from position j to position i >= j of its chunk, 0 for i < j
    read: Tensor | None  # (B, G, K, 1, C, 1): from the state before the chunk to position i
    write: Tensor | None  # (B, G, K, C, 1): from position j to the state after the chunk
    chain: Tensor  # (B, G, K + 1, K + 1), rows: the state before each chunk and after the last; columns: the
    #                state before the block and what each chunk writes


class Blocks:
    """The blocks of one call: where they start, their rows as copies, their weights.

    Rows past T in the last block, and rows at padding, are zeros. They are of the type `products`, weights of `dtype`.
    """

    def __init__(
        self,
        q: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        segment: Tensor | None,
        valid: Tensor | None,
        chunk_size: int,
        dtype: torch.dtype,
        products: torch.dtype,
    ) -> None:
        self.b, self.g, self.r, self.t, self.m = q.shape
        self.d, self.c, self.dtype = v.shape[-1], min(chunk_size, self.t), dtype
        self.products = products
        self.log_decay, self.segment, self.valid = log_decay, segment, valid
        chunks = -(-self.t // self.c)
        rows = self.r * (self.m + self.d + self.c) + 2 * (self.m + self.d)
        one_chunk = self.b * self.g * (self.c * rows + 2 * self.m * self.d)
        numbers = NUMBERS_ON_CPU if q.device.type == "cpu" else NUMBERS_ELSEWHERE
        self.k = max(1, min(chunks, MOST_CHUNKS, numbers // max(one_chunk, 1)))
        self.starts = range(0, self.t, self.k * self.c)
        self.later = torch.ones(self.c, self.c, dtype=torch.bool, device=q.device).triu(1)
        self._steady: dict[int, Weights] = {}

    def chunks(self, start: int) -> int:
        """Number of chunks in the block that begins at position `start`."""
        return min(self.k, -(-(self.t - start) // self.c))

    def length(self, start: int) -> int:
        """Number of positions in the block that begins at position `start`."""
        return min(self.t - start, self.k * self.c)

    def queries(self, x: Tensor, start: int, *, dtype: torch.dtype | None = None) -> Tensor:
        """Rows of x (B, G, R, T, F) -> (B, G, K, R * C, F), of the type `products` or another one."""
        n = self.chunks(start)
        rows = self._rows(x, start).unflatten(3, (n, self.c)).transpose(2, 3)
        out = torch.empty(rows.shape, dtype=dtype or self.products, device=x.device).copy_(rows)
        if self.valid is not None:
            out.masked_fill_(self._padding(self.valid, start)[:, None, :, None, :, None], 0.0)
        return out.flatten(3, 4)

    def keys(self, x: Tensor, start: int, *, last_column: float | None = None) -> Tensor:
        """Rows of x (B, G, T, F) -> (B, G, K, C, F), or F + 1 with a last column of one value."""
        n, f = self.chunks(start), x.shape[-1]
        rows = self._rows(x, start).unflatten(2, (n, self.c))
        width = f if last_column is None else f + 1
        out = torch.empty(*rows.shape[:-1], width, dtype=self.products, device=x.device)
        out[..., :f] = rows
        if self.valid is not None:
            out.masked_fill_(self._padding(self.valid, start)[:, None, :, :, None], 0.0)
        if last_column is not None:
            out[..., f] = last_column
        return out

    def put_queries(self, rows: Tensor, into: Tensor, start: int) -> None:
        """Write rows (B, G, K, R * C, F) to their place in (B, G, R, T, F)."""
        rows = rows.unflatten(3, (self.r, self.c)).transpose(2, 3)  # (B, G, R, K, C, F)
        self._put(rows, into, start)

    def put_keys(self, rows: Tensor, into: Tensor, start: int) -> None:
        """Write rows (B, G, K, C, F) to their place in (B, G, T, F), zeros at padding."""
        if self.valid is not None:
            rows = rows.masked_fill(self._padding(self.valid, start)[:, None, :, :, None], 0.0)
        self._put(rows, into, start)

    def _put(self, rows: Tensor, into: Tensor, start: int) -> None:
        length = self.length(start)
        target = into[..., start : start + length, :]
        if length == self.chunks(start) * self.c:
            target.unflatten(-2, (-1, self.c)).copy_(rows)
        else:
            target.copy_(rows.flatten(-3, -2)[..., :length, :])

    def weights(self, start: int) -> Weights:
        """Decay and borders of the block that begins at position `start`."""
        n = self.chunks(start)
        full = self.length(start) == n * self.c
        nothing = self.log_decay is None and self.segment is None
        # The same for every block of as many chunks.
        steady = nothing or (full and self.segment is None and self.log_decay is not None and self.log_decay.dim() == 1)
        if steady and n in self._steady:
            return self._steady[n]
        if nothing:
            ones = torch.ones(1, 1, n + 1, n + 1, dtype=self.dtype, device=self.later.device)
            weights = Weights(None, None, None, ones.tril_())
        else:
            weights = self._make_weights(start, steady)
        if steady:
            self._steady[n] = weights
        return weights

    def _make_weights(self, start: int, steady: bool) -> Weights:
        n = self.chunks(start)
        hidden = self.later
        unchained = torch.ones(n + 1, n + 1, dtype=torch.bool, device=hidden.device).triu_(1)
        unread = unwritten = None
        if self.segment is not None:
            ids = self._rows(self.segment[:, None, :, None], start, repeat_last=True)
            ids = ids.view(self.b, 1, n, self.c)
            # The state before position 0 belongs to sequence 0.
            previous = self.segment[:, start - 1] if start else torch.zeros_like(self.segment[:, 0])
            before = torch.cat([previous[:, None, None], ids[:, :, :-1, -1]], dim=2)[..., None]
            hidden = hidden | (ids[..., :, None] != ids[..., None, :])
            unread, unwritten = ids != before, ids != ids[..., -1:]
            ends = torch.cat([before[:, :, :1, 0], ids[..., -1]], dim=2)  # (B, 1, K + 1)
            unchained = unchained | (ends[..., :, None] != ends[..., None, :])
        sums = self._decay_sums(start, steady)
        inside = self._exp(sums[..., :, None] - sums[..., None, :], hidden)
        read, write = self._exp(sums, unread), self._exp(sums[..., -1:] - sums, unwritten)
        since = torch.nn.functional.pad(sums[..., -1].expand(-1, -1, n).cumsum(-1), (1, 0))
        chain = self._exp(since[..., :, None] - since[..., None, :], unchained)
        return Weights(inside[:, :, :, None], read[:, :, :, None, :, None], write[..., None], chain)

    def _exp(self, exponent: Tensor, hidden: Tensor | None) -> Tensor:
        """exp, and 0 where hidden. The exponent is replaced before exp: it may be large there."""
        exponent = exponent.to(self.dtype)
        return (exponent if hidden is None else exponent.masked_fill(hidden, -torch.inf)).exp()

    def _decay_sums(self, start: int, steady: bool) -> Tensor:
        """Log-decay summed from the start of its chunk to each position, (B, G, K, C); 0 is added past T."""
        n = self.chunks(start)
        if self.log_decay is None:
            return torch.zeros(1, 1, 1, self.c, dtype=self.dtype, device=self.later.device)
        decay = self.log_decay.to(sum_dtype(self.log_decay))
        if steady:
            return decay[None, :, None, None].expand(1, -1, 1, self.c).cumsum(-1)
        if decay.dim() == 1:
            decay = decay[None, :, None].expand(1, -1, self.t)
        return self._rows(decay[..., None], start)[..., 0].unflatten(2, (n, self.c)).cumsum(-1)

    def _padding(self, valid: Tensor, start: int) -> Tensor:
        """(B, K, C) True at padding and past T."""
        return ~self._rows(valid[..., None], start)[..., 0].unflatten(1, (-1, self.c))

    def _rows(self, x: Tensor, start: int, *, repeat_last: bool = False) -> Tensor:
        """x[..., start:end, :] of the block; past T zeros, or the last row again."""
        x = x[..., start : start + self.length(start), :]
        missing = self.chunks(start) * self.c - x.shape[-2]
        if missing == 0:
            return x
        if repeat_last:
            return torch.cat([x, x[..., -1:, :].expand(*x.shape[:-2], missing, x.shape[-1])], dim=-2)
        return pad(x, (0, 0, 0, missing))
