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
    if T == 1 and allowed is not None and q.is_cuda:
        return masked_step(q, k, v, allowed, scale=scale, softcap=softcap)
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


SPLIT = 512
"""Keys that `masked_step` treats apart from others."""


def masked_step(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, *, scale: float, softcap: float | None = None
) -> Tensor:
    """`softmax_attention` of one query with a mask, as products of whole matrices, for GPUs.

    torch's fused kernels take no mask, or no grouped queries, or give one query of a row to one multiprocessor. Here
    the queries of a group are the rows of one product, and pieces of `SPLIT` keys are treated at once and joined by
    their largest scores, as in Flash-Decoding, where the number of keys is a multiple of that.

    Args:
        q: (B, H, 1, D).
        k: (B, G, S, D).
        v: (B, G, S, E).
        allowed: (B or 1, 1, 1, S) bool; of each row something is.
        scale: factor of the scores.
        softcap: of the scores.

    Returns:
        (B, H, 1, E) in q's dtype.
    """
    (B, H, _, D), (_, G, S, E) = q.shape, v.shape
    n = S // SPLIT if S % SPLIT == 0 else 1
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = q.reshape(B, G, 1, H // G, D), k.unflatten(2, (n, -1)), v.unflatten(2, (n, -1))
    scores = torch.matmul(queries, keys.transpose(-1, -2)).to(wide) * scale  # (B, G, n, R, S / n)
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    scores = scores.masked_fill(~allowed.unflatten(3, (n, -1)).transpose(2, 3), torch.finfo(wide).min)
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    share = torch.exp(largest - largest.amax(2, keepdim=True))  # 0 for a piece of which nothing is allowed
    total = (share * weights.sum(-1, keepdim=True)).sum(2)
    y = (share * torch.matmul(weights.to(v.dtype), values).to(wide)).sum(2) / total  # (B, G, R, E)
    return y.view(B, H, 1, E).to(q.dtype)
