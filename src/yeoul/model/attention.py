"""Softmax attention: many heads or grouped queries, over everything before or over a sliding window."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.cache import KVCache, LayerCache, WindowCache
from yeoul.model.layers import rotate
from yeoul.ops.window import sliding_attention


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What attention has to know of the columns of a call; made once for all layers.

    Attributes:
        mask: (B, T) bool, which columns are tokens; None means all.
        seq_ids: (B, T) int64, packed sequences, -1 for padding; None means one sequence a row.
        cos: (B or 1, 1, T, R) rotary cosines; None without rotary positions.
        sin: as cos.
        positions: (B or 1, T) int64; None means 0 ... T-1.
    """

    mask: Tensor | None = None
    seq_ids: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
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
    """The projections around attention, alike for every kind: `mix` is what the kinds differ in."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        output_bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim or hidden_size // num_heads
        self.scale = self.head_dim**-0.5
        inner, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(hidden_size, kv, bias=bias)
        self.v_proj = nn.Linear(hidden_size, kv, bias=bias)
        self.o_proj = nn.Linear(inner, hidden_size, bias=bias if output_bias is None else output_bias)

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, hidden) to queries (B, H, T, D), keys and values (B, G, T, D), positions applied."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if layout.cos is not None and layout.sin is not None:
            q, k = rotate(q, layout.cos, layout.sin), rotate(k, layout.cos, layout.sin)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """Attention proper: (B, H, T, D) from queries, keys and values."""
        raise TypeError(f"{type(self).__name__} has no mix()")

    def new_cache(self) -> LayerCache:
        """An empty cache of the kind that this layer needs."""
        raise TypeError(f"{type(self).__name__} has no cache")

    def forward(self, x: Tensor, layout: Layout | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden); appends to `cache` where one is given."""
        B, T, _ = x.shape
        layout = layout or Layout()
        q, k, v = self.project(x, layout)
        y = self.mix(q, k, v, layout, cache)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim))


class SoftmaxAttention(ProjectedAttention):
    """softmax(q k / sqrt(D)) v over every earlier position (Vaswani and others 2017; grouped queries: Ainslie 2023)."""

    def new_cache(self) -> KVCache:
        """Keys and values of every position."""
        return KVCache()

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """See `ProjectedAttention.mix`. Without padding the call stays on the fast path."""
        grouped = self.num_kv_heads != self.num_heads
        if cache is None:
            if layout.mask is None and layout.seq_ids is None:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=layout.causal_mask, enable_gqa=grouped)
        assert isinstance(cache, KVCache)
        T, past = q.shape[2], cache.length
        k, v, valid = cache.extend(k, v, layout.mask)
        if past == 0 and valid is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        if T == 1:
            allowed = None if valid is None else valid[:, None, None, :]
        else:
            row = torch.arange(past, past + T, device=q.device)[:, None]
            column = torch.arange(past + T, device=q.device)[None]
            allowed = (column <= row)[None, None]
            if valid is not None:
                allowed = (allowed & valid[:, None, None, :]) | (column == row)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=grouped)


class SlidingAttention(ProjectedAttention):
    """Softmax attention over the last `window` positions, itself included (as Mistral), in linear time."""

    def __init__(self, *, window: int, **projections: object) -> None:
        super().__init__(**projections)  # type: ignore[arg-type]
        self.window = window

    def new_cache(self) -> WindowCache:
        """A ring of `window` keys and values."""
        return WindowCache(self.window)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """See `ProjectedAttention.mix`."""
        B, _, T, _ = q.shape
        if cache is not None:
            assert isinstance(cache, WindowCache)
            if T == 1 and layout.mask is None:
                cache.push(k[:, :, 0], v[:, :, 0])
                keys, values, valid = cache.columns()
                allowed = None if valid is None else valid[:, None, None, :]
                grouped = self.num_kv_heads != self.num_heads
                return F.scaled_dot_product_attention(q, keys, values, attn_mask=allowed, enable_gqa=grouped)
            keys, values, valid = cache.extend(k, v, layout.mask)
            return sliding_attention(q, keys, values, self.window, self.scale, valid=valid)
        if T <= self.window:
            return SoftmaxAttention.mix(self, q, k, v, layout, None)  # type: ignore[arg-type]
        keys, values, valid, key_ids = window_prefix(k, v, self.window, layout)
        return sliding_attention(
            q, keys, values, self.window, self.scale, valid=valid, seq_ids=layout.seq_ids, key_seq_ids=key_ids
        )


def window_prefix(k: Tensor, v: Tensor, window: int, layout: Layout) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Keys and values with an empty window before the first, as a fresh `WindowCache` would give them.

    Returns:
        keys and values (B, G, w + T, D), valid (B or 1, w + T) bool, sequence ids (B, w + T) or None.
    """
    T = k.shape[2]
    mask = layout.mask if layout.mask is not None else torch.ones(1, T, dtype=torch.bool, device=k.device)
    ids = None if layout.seq_ids is None else F.pad(layout.seq_ids, (window, 0), value=-1)
    if layout.seq_ids is not None:
        mask = mask & (layout.seq_ids >= 0)
    return F.pad(k, (0, 0, window, 0)), F.pad(v, (0, 0, window, 0)), F.pad(mask, (window, 0)), ids
