"""Softmax attention with grouped queries, with or without a soft cap of the scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yeoul.ops.window import soft_cap


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scale q k^T) v (Vaswani and others 2017; grouped queries: Ainslie and others 2023, arXiv 2305.13245).

    Args:
        q: (B, H, T, D).
        k: (B, G, S, D), H a multiple of G; neither k nor v is repeated over the query heads.
        v: (B, G, S, E), of any width.
        allowed: (B or 1, 1, T, S) bool, what each query sees; None means all.
        scale: factor of the scores.
        causal: each query sees the keys up to its own place; T = S, and `allowed` is None.
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2); None leaves them.

    Returns:
        (B, H, T, E) in q's dtype.
    """
    (B, H, T, D), G, S = q.shape, k.shape[1], k.shape[2]
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=causal, scale=scale, enable_gqa=G != H
        )
    scores = torch.matmul(q.reshape(B, G, H // G * T, D), k.transpose(-1, -2)).view(B, H, T, S)
    scores = soft_cap(scores * scale, softcap)
    if causal:
        allowed = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
    return torch.matmul(weights.view(B, G, H // G * T, S), v).view(B, H, T, v.shape[3])
