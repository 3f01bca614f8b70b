"""Layers that mix positions without attention: what language models were before Transformers.

LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho and others 2014, arXiv 1406.1078) carry a state from token to token;
a gated convolution (Dauphin and others 2017, arXiv 1612.08083), dilated as in WaveNet (van den Oord and others 2016,
arXiv 1609.03499), sees a fixed number of tokens before. They stand in a block where attention does, behind its norm and
beside its residual connection.

Shapes: B rows, T columns, N texts of at most L tokens, d the hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from yeoul.model.attention import AttentionContext
from yeoul.model.cache import LayerCache
from yeoul.model.config import ModelConfig


class RecurrentCache(LayerCache):
    """The state behind the last token of each row."""

    def __init__(self) -> None:
        self.h: Tensor | None = None  # (B, d)
        self.c: Tensor | None = None  # (B, d), of an LSTM


class RecentCache(LayerCache):
    """The last inputs of each row that a convolution reaches."""

    def __init__(self) -> None:
        self.recent: Tensor | None = None  # (B, reach, d)


class _Texts(NamedTuple):
    """Where the texts of a call stand, each to begin in a row of its own.

    Attributes:
        tokens: (B, T) bool, which columns are tokens.
        row: (tokens,) int64, the text that each of them belongs to.
        place: (tokens,) int64, and where in it.
        lengths: (N,) int64.
    """

    tokens: Tensor
    row: Tensor
    place: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, context: AttentionContext, rows: int) -> _Texts | None:
        """The texts of a call; None where each row is one, without padding."""
        if context.seq_ids is not None:
            tokens = context.seq_ids >= 0 if context.mask is None else (context.seq_ids >= 0) & context.mask
            keys = context.seq_ids + torch.arange(rows, device=tokens.device)[:, None] * (context.seq_ids.max() + 1)
            row = keys[tokens].unique(return_inverse=True)[1]
            lengths = torch.bincount(row)
        elif context.mask is not None:
            tokens, lengths = context.mask, context.mask.sum(1)
            row = torch.arange(rows, device=tokens.device)[:, None].expand_as(tokens)[tokens]
        else:
            return None
        # Sorted by text, its first token is as many behind the first of all as earlier texts have.
        order, before = row.argsort(stable=True), lengths.cumsum(0) - lengths
        place = torch.empty_like(row)
        place[order] = torch.arange(len(row), device=row.device) - before[row[order]]
        return cls(tokens, row, place, lengths)

    def apart(self, x: Tensor) -> Tensor:
        """(B, T, d) to (N, L, d), zeros behind each text."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        rows = x.new_zeros(len(self.lengths), longest, x.shape[2])
        rows[self.row, self.place] = x[self.tokens]
        return rows

    def together(self, y: Tensor) -> Tensor:
        """(N, L, d) to (B, T, d), zeros where there is no token."""
        columns = y.new_zeros(*self.tokens.shape, y.shape[2])
        columns[self.tokens] = y[self.row, self.place]
        return columns


class AttentionFree(nn.Module, ABC):
    """What the layers share: texts of a call are told apart, so that none runs into another and padding is nothing."""

    @abstractmethod
    def scan(self, x: Tensor, lengths: Tensor | None, cache: LayerCache | None) -> Tensor:
        """The layer over texts that begin where `cache` stands and stand from the left on.

        Args:
            x: (N, L, d).
            lengths: (N,) int64, tokens of each, perhaps none; None means L.
            cache: is brought behind the last token of each.

        Returns:
            (N, L, d); what it has behind a text is not looked at.
        """

    @abstractmethod
    def new_cache(self) -> LayerCache:
        """An empty cache of the kind that this layer needs."""

    def forward(self, x: Tensor, context: AttentionContext | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden); `cache` is moved on where one is given."""
        texts = _Texts.of(context or AttentionContext(), len(x))
        if texts is None:
            return self.scan(x, None, cache)
        return texts.together(self.scan(texts.apart(x), texts.lengths, cache))


class Recurrent(AttentionFree):
    """One layer of torch's LSTM or GRU.

    Args:
        hidden_size: width of input, state and output.
        kind: "lstm" or "gru".
    """

    def __init__(self, hidden_size: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rnn: nn.RNNBase = (nn.LSTM if kind == "lstm" else nn.GRU)(hidden_size, hidden_size, batch_first=True)
        bias: Any = self.rnn.bias_ih_l0
        if kind == "lstm" and not bias.is_meta:
            with torch.no_grad():  # forget gates begin open (Jozefowicz and others 2015, section 2.2)
                bias[hidden_size : 2 * hidden_size] = 1

    def new_cache(self) -> RecurrentCache:
        """See `AttentionFree`."""
        return RecurrentCache()

    def scan(self, x: Tensor, lengths: Tensor | None, cache: LayerCache | None) -> Tensor:
        """See `AttentionFree`."""
        assert cache is None or isinstance(cache, RecurrentCache)
        before = self._before(x, cache)
        if lengths is None or cache is None:  # what stands behind a text changes nothing within it
            y, after = self.rnn(x, before)
        else:
            packed = pack_padded_sequence(
                x, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False
            )  # fmt: skip
            y, after = self.rnn(packed, before)
            y = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]
        if cache is not None:
            ended = None if lengths is None else (lengths == 0)[:, None]
            old = before if isinstance(before, tuple) else (before,)
            new = after if isinstance(after, tuple) else (after,)
            states = [a[0] if ended is None else torch.where(ended, b[0], a[0]) for a, b in zip(new, old, strict=True)]
            cache.h, cache.c = states[0], states[1] if len(states) > 1 else None
        return y

    def _before(self, x: Tensor, cache: RecurrentCache | None) -> Tensor | tuple[Tensor, Tensor]:
        """The state, each part (1, N, d), with which the texts x (N, L, d) begin."""
        if cache is not None and cache.h is not None:
            return cache.h[None] if cache.c is None else (cache.h[None], cache.c[None])
        none = x.new_zeros(1, len(x), x.shape[2])
        return (none, none) if self.kind == "lstm" else none


class GatedConvolution(AttentionFree):
    """a * sigmoid(b), with a and b (d each) from a causal dilated convolution over all channels.

    Args:
        hidden_size: width of input and output.
        kernel: taps.
        dilation: columns by which they are apart.
    """

    def __init__(self, hidden_size: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel - 1) * dilation
        """Tokens before the present one that are seen."""
        self.conv = nn.Conv1d(hidden_size, 2 * hidden_size, kernel, dilation=dilation)

    def new_cache(self) -> RecentCache:
        """See `AttentionFree`."""
        return RecentCache()

    def scan(self, x: Tensor, lengths: Tensor | None, cache: LayerCache | None) -> Tensor:
        """See `AttentionFree`."""
        assert cache is None or isinstance(cache, RecentCache)
        past = F.pad(x, (0, 0, self.reach, 0))
        if cache is not None:
            if cache.recent is not None:
                past = torch.cat((cache.recent, x), 1)
            if lengths is None:
                cache.recent = past[:, x.shape[1] :]
            else:
                places = lengths[:, None] + torch.arange(self.reach, device=x.device)  # (N, reach)
                cache.recent = past.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        return F.glu(self.conv(past.transpose(1, 2)), dim=1).transpose(1, 2)


def make_attention_free(config: ModelConfig, layer: int) -> AttentionFree:
    """The layer of this number, of one of the kinds in `yeoul.model.config.ATTENTION_FREE`."""
    kind = config.attention[layer]
    if kind == "conv":
        dilation = config.dilations[config.attention[:layer].count("conv")]
        return GatedConvolution(config.hidden_size, config.conv_kernel, dilation)
    return Recurrent(config.hidden_size, kind)
