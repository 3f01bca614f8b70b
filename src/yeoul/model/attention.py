"""Softmax attention: many heads or grouped queries, over everything before or over a sliding window.

The projections around it are those of every kind of attention; linear attention is `yeoul.model.linear_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.cache import Gates, KVCache, LayerCache, WindowCache
from yeoul.model.rotary import rotate
from yeoul.ops.fused import causal_after, fuses
from yeoul.ops.softmax import softmax_attention
from yeoul.ops.window import Sinks, sinks_of, sliding_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
"""What every kind of attention has, under the names of transformers' Llama and Qwen 3."""


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What attention has to know of the columns of a call; made once for all layers.

    Attributes:
        mask: (B, T) bool, which columns are tokens; None means all.
        seq_ids: (B, T) int64, packed sequences, -1 for padding; None means one sequence a row.
        rotary: cosines and sines, each (B or 1, 1, T, R), of every rotation that the layers use.
        positions: (B or 1, T) int64; None means 0 ... T-1.
    """

    mask: Tensor | None = None
    seq_ids: Tensor | None = None
    rotary: tuple[tuple[Tensor, Tensor], ...] = ()
    positions: Tensor | None = None

    @functools.cached_property
    def causal_mask(self) -> Tensor:
        """(B, 1, T, T) bool without a cache. A padded query sees itself, so that no row of the softmax is empty."""
        ids = self.seq_ids if self.seq_ids is not None else self.mask
        assert ids is not None
        T = ids.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
        if self.seq_ids is not None:
            allowed = ids[:, :, None] == ids[:, None, :]
        else:
            allowed = ids[:, None, :] | torch.eye(T, dtype=torch.bool, device=ids.device)
        return (allowed & causal)[:, None]


class ProjectedAttention(nn.Module):
    """The projections around attention, alike for every kind: `attend` is what the kinds differ in.

    Args:
        hidden_size: width of input and output.
        num_heads: query heads H.
        num_kv_heads: key-value heads G; None means H.
        head_dim: D; None means hidden_size / num_heads.
        bias: biases of the query, key and value projections.
        output_bias: bias of the output projection; None means as `bias`.
        qk_norm: makes the norm of queries and of keys over a head's D channels; None leaves them as projected.
        scale: factor of the scores; None means 1 / sqrt(D).
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2); None leaves them.
        rope: index of the layer's rotation in `AttentionContext.rotary`; None means that the layer has no positions.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        output_bias: bool | None = None,
        qk_norm: Callable[[], nn.Module] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        rope: int | None = 0,
    ) -> None:
        super().__init__()
        if head_dim is None and hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {hidden_size}: give head_dim, or other heads")
        if num_heads % (num_kv_heads or num_heads):
            raise ValueError(f"{num_kv_heads} key-value heads do not divide {num_heads} heads")
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim or hidden_size // num_heads
        self.scale = scale or self.head_dim**-0.5
        self.softcap, self.rope = softcap, rope
        inner, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(hidden_size, kv, bias=bias)
        self.v_proj = nn.Linear(hidden_size, kv, bias=bias)
        self.o_proj = nn.Linear(inner, hidden_size, bias=bias if output_bias is None else output_bias)
        self.q_norm = qk_norm() if qk_norm else None
        self.k_norm = qk_norm() if qk_norm else None

    def added_parameters(self) -> dict[str, nn.Parameter]:
        """What the layer has beside the projections of softmax attention, by name: what a conversion adds."""
        return {name: p for name, p in self.named_parameters() if name.partition(".")[0] not in PROJECTIONS}

    def channels(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, hidden) to the channels of queries (B, T, H D), keys and values (B, T, G D)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def project(
        self, x: Tensor, context: AttentionContext, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, hidden) to queries (B, H, T, D), keys and values (B, G, T, D), norms and positions applied.

        `cache` is read and written by layers whose projections look back (`LinearAttention.short_conv`).
        """
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in self.channels(x, context, cache))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rotary and self.rope is not None:
            cos, sin = context.rotary[self.rope]
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, k, v

    def gates(self, x: Tensor, context: AttentionContext, k: Tensor, v: Tensor) -> Gates:
        """What travels beside keys and values (B, G, T, D), by name, each (B, G, T, ...): of softmax attention nothing.

        Args:
            x: (B, T, hidden), the layer's input, of which `project` made k and v.
            context: of the call.
            k: keys.
            v: values.
        """
        return {}

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        context: AttentionContext | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attention proper: (B, H, T, D) from queries (B, H, T, D), keys and values (B, G, T, D) and their gates."""
        raise TypeError(f"{type(self).__name__} has no attend()")

    def new_cache(self) -> LayerCache:
        """An empty cache of the kind that this layer needs."""
        raise TypeError(f"{type(self).__name__} has no cache")

    def forward(self, x: Tensor, context: AttentionContext | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden); appends to `cache` where one is given."""
        context = context or AttentionContext()
        q, k, v = self.project(x, context, cache)
        return self.output(self.attend(q, k, v, self.gates(x, context, k, v), context, cache))

    def output(self, y: Tensor) -> Tensor:
        """(B, H, T, D) to what the layer gives, (B, T, hidden)."""
        return self.o_proj(y.transpose(1, 2).flatten(2))


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, context: AttentionContext, *, scale: float, softcap: float | None = None
) -> Tensor:
    """Softmax attention of (B, H, T, D) queries over the (B, G, T, D) keys of the same call, as its context says.

    Without padding and packing the call stays on the fast path.
    """
    if context.mask is None and context.seq_ids is None:
        return softmax_attention(q, k, v, causal=True, scale=scale, softcap=softcap)
    return softmax_attention(q, k, v, context.causal_mask, scale=scale, softcap=softcap)


class SoftmaxAttention(ProjectedAttention):
    """softmax(q k / sqrt(D)) v over every earlier position."""

    def new_cache(self) -> KVCache:
        """Keys and values of every position."""
        return KVCache()

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        context: AttentionContext | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """See `ProjectedAttention.attend`."""
        context = context or AttentionContext()
        if cache is None:
            return causal_attention(q, k, v, context, scale=self.scale, softcap=self.softcap)
        assert isinstance(cache, KVCache)
        T, past = q.shape[2], cache.length
        k, v, valid = cache.extend(k, v, context.mask)
        if past == 0 and valid is None:
            return softmax_attention(q, k, v, causal=True, scale=self.scale, softcap=self.softcap)
        if T == 1:
            allowed = None if valid is None else valid[:, None, None, :]
        elif valid is None and self.softcap is None and fuses(q, k, v):
            return causal_after(q, k, v, past, self.scale)
        else:
            row = torch.arange(past, past + T, device=q.device)[:, None]
            column = torch.arange(past + T, device=q.device)[None]
            allowed = (column <= row)[None, None]
            if valid is not None:
                allowed = (allowed & valid[:, None, None, :]) | (column == row)
        return softmax_attention(q, k, v, allowed, scale=self.scale, softcap=self.softcap)


class SlidingAttention(ProjectedAttention):
    """Softmax attention over the last `window` positions, itself included (as Mistral), in linear time.

    With `sinks` s > 0 the first s tokens of every text stay in sight and do not count into the window (StreamingLLM:
    Xiao and others 2023, arXiv 2309.17453; their positions are those of the text, not of the cache).
    """

    def __init__(self, *, window: int, sinks: int = 0, **projections: object) -> None:
        super().__init__(**projections)  # type: ignore[arg-type]
        self.window, self.sinks = window, sinks

    def new_cache(self) -> WindowCache:
        """A ring of `window` keys and values, and the sinks."""
        return WindowCache(self.window, self.sinks)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        context: AttentionContext | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """See `ProjectedAttention.attend`."""
        T, context = q.shape[2], context or AttentionContext()
        memory = cache if isinstance(cache, WindowCache) else None
        if memory and memory.sinks_full and T == 1 and context.mask is None:
            memory.push(k[:, :, 0], v[:, :, 0], {})
            keys, values, valid = memory.columns()
            allowed = None if valid is None else valid[:, None, None, :]
            return softmax_attention(q, keys, values, allowed, scale=self.scale, softcap=self.softcap)
        if memory is None and T <= self.window:
            return causal_attention(q, k, v, context, scale=self.scale, softcap=self.softcap)
        seen = window_columns(k, v, {}, self.window, self.sinks, context, memory)
        return sliding_attention(
            q, seen.k, seen.v, self.window, self.scale, valid=seen.valid, seq_ids=context.seq_ids,
            key_seq_ids=seen.seq_ids, softcap=self.softcap, sinks=seen.sinks,
        )  # fmt: skip


class WindowColumns(NamedTuple):
    """What the queries of a call see by softmax: the w columns before the first of them, then their own.

    Attributes:
        k: (B, G, w + T, D).
        v: (B, G, w + T, D).
        gates: each (B, G, w + T, ...).
        valid: (B or 1, w + T) bool, which columns are tokens.
        seq_ids: (B, w + T), with packed sequences.
        sinks: what is seen beside the window; None where a layer has none.
    """

    k: Tensor
    v: Tensor
    gates: Gates
    valid: Tensor
    seq_ids: Tensor | None
    sinks: Sinks | None

    def leaving(self, T: int, seq_ids: Tensor | None) -> Tensor:
        """(B or 1, T) bool: key t leaves the window at query t, (B, T) of which `seq_ids` are. A sink never does."""
        left = self.valid[:, :T]
        if self.sinks is not None:
            left = left & ~self.sinks.is_sink[:, :T]
        if seq_ids is not None and self.seq_ids is not None:
            left = left & (self.seq_ids[:, :T] == seq_ids)
        return left


def window_columns(
    k: Tensor, v: Tensor, gates: Gates, window: int, sinks: int, context: AttentionContext, cache: WindowCache | None
) -> WindowColumns:
    """The columns that queries over (B, G, T, D) keys and values see; without a cache the window before is empty."""
    if cache is not None:
        keys, values, beside, valid, first = cache.extend(k, v, gates, context.mask)
        return WindowColumns(keys, values, beside, valid, None, first)
    T, ids = k.shape[2], context.seq_ids
    mask = context.mask if context.mask is not None else torch.ones(1, T, dtype=torch.bool, device=k.device)
    texts = None  # the sequences' numbers, negative at padding
    if ids is not None:
        mask = mask & (ids >= 0)
        texts = ids.masked_fill(~mask, -1)
    elif context.mask is not None:
        texts = mask.long() - 1
    before = lambda x: F.pad(x, (*(0, 0) * (x.dim() - 3), window, 0))  # noqa: E731
    return WindowColumns(
        before(k), before(v), {name: before(gate) for name, gate in gates.items()}, F.pad(mask, (window, 0)),
        None if ids is None else F.pad(ids, (window, 0), value=-1),
        sinks_of(k, v, window, sinks, texts) if sinks else None,
    )  # fmt: skip
