"""PyTorch's fused softmax attention on the CPU, with the sums that let its result be joined with other parts.

It never holds all scores (Dao and others 2022, arXiv 2205.14135), and gives the logarithm of each query's sum beside
the output, which `scaled_dot_product_attention` keeps to itself. That logarithm has no gradient: it is for inference.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16)


def fuses(q: Tensor, k: Tensor, v: Tensor, *, gradient: bool = False) -> bool:
    """Whether PyTorch has one kernel for these: on the CPU, of one type and width, and not empty.

    `fused_attention` needs that no gradient is asked for, `scaled_dot_product_attention` (`gradient`) does not.
    """
    asked = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return (
        (gradient or not asked)
        and q.device.type == "cpu"
        and q.dtype in TYPES
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] == v.shape[-1]
        and q.numel() > 0
        and k.numel() > 0
    )


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, *, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v of tensors that `fuses` agrees to, and the logarithm of what it was divided by.

    Args:
        q: (B, H, T, D).
        k: (B, G, S, D), H a multiple of G.
        v: (B, G, S, D).
        allowed: (B or 1, H or 1, T, S) bool, what each query sees; None means all.
        scale: factor of the scores.
        causal: each query sees the keys up to its own place; T = S, and `allowed` is None.

    Returns:
        (B, H, T, D) in q's dtype, and (B, H, T, 1) fp32. Both are 0 for a query that sees nothing.

    Raises:
        ValueError: the shapes do not belong together.
    """
    (B, H, T, D), (G, S) = q.shape, k.shape[1:3]
    if k.shape != (B, G, S, D) or v.shape != k.shape or H % G or (causal and (T != S or allowed is not None)):
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not belong together")
    mask = None
    if allowed is not None:
        zero, hidden = q.new_zeros(()), q.new_full((), -torch.inf)
        mask = torch.where(allowed.expand(-1, -1, T, S), zero, hidden)
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, is_causal=causal, attn_mask=mask, scale=scale
    )
    return out, log_sum[..., None]


def causal_after(q: Tensor, k: Tensor, v: Tensor, past: int, scale: float) -> Tensor:
    """Softmax attention of T queries over `past` keys and the T of their own places, of tensors that `fuses` agrees to.

    The two parts are computed without a mask and joined by the logarithms of their sums.

    Args:
        q: (B, H, T, D).
        k: (B, G, past + T, D), H a multiple of G.
        v: (B, G, past + T, D).
        past: keys that every query sees, at least one.
        scale: factor of the scores.

    Returns:
        (B, H, T, D) in q's dtype.
    """
    before, log_before = fused_attention(q, k[:, :, :past], v[:, :, :past], scale=scale)
    own, log_own = fused_attention(q, k[:, :, past:], v[:, :, past:], scale=scale, causal=True)
    return torch.lerp(before.float(), own.float(), torch.sigmoid(log_own - log_before)).to(q.dtype)
