"""Softmax attention over the last w positions, in blocks: linear time, and in terms that a linear part can join."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves training too
def _band(window: int, device: torch.device) -> Tensor:
    """(w, 2w) bool: query i of a block sees the w keys that end with itself, which is key w + i of its two blocks."""
    i = torch.arange(window, device=device)[:, None]
    j = torch.arange(2 * window, device=device)[None]
    return (j > i) & (j <= i + window)


def soft_cap(scores: Tensor, cap: float) -> Tensor:
    """cap * tanh(scores / cap), any shape: keeps scores within (-cap, cap) (Gemma 2, section 2)."""
    return torch.tanh(scores / cap) * cap


def window_terms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scale: float,
    *,
    valid: Tensor | None = None,
    seq_ids: Tensor | None = None,
    key_seq_ids: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Numerator, denominator and shift of softmax attention over the last `window` keys.

    The result of attention is `numerator / denominator`; both hold exp(score - shift), so that terms of another
    kernel can be added to them after the shift is made common.

    Args:
        q: (B, H, T, D).
        k: (B, G, w + T, D), the w keys before the first query, then those of the queries.
        v: (B, G, w + T, D).
        window: w, how many keys a query sees, itself included.
        scale: factor of the scores.
        valid: (B or 1, w + T) bool, keys that exist; None means all.
        seq_ids: (B, T) int64, packed sequences; a query sees only keys of its own.
        key_seq_ids: (B, w + T), with `seq_ids`.
        softcap: of the scores, see `soft_cap`.

    Returns:
        numerator (B, H, T, D), denominator (B, H, T, 1), shift (B, H, T, 1), in fp32 (fp64 for fp64 inputs).
        A query without any key has numerator and denominator 0 and shift 0.
    """
    (B, H, T, D), G, w = q.shape, k.shape[1], window
    R, n = H // G, -(-T // w)
    pad = n * w - T
    wide = torch.promote_types(q.dtype, torch.float32)
    q = F.pad(q, (0, 0, 0, pad)).view(B, G, R, n, w, D).transpose(2, 3).reshape(B, G, n, R * w, D)
    keys = F.pad(k, (0, 0, 0, pad)).unfold(2, 2 * w, w)  # (B, G, n, D, 2w)
    values = F.pad(v, (0, 0, 0, pad)).unfold(2, 2 * w, w).transpose(-1, -2)  # (B, G, n, 2w, D)
    allowed = _band(w, q.device).view(1, 1, 1, 1, w, 2 * w)
    if valid is not None:
        blocks = F.pad(valid, (0, pad)).unfold(1, 2 * w, w)
        allowed = allowed & blocks[:, None, :, None, None]  # (B, 1, n, 1, w, 2w)
    if seq_ids is not None and key_seq_ids is not None:
        mine = F.pad(seq_ids, (0, pad), value=-1).view(B, 1, n, 1, w, 1)
        theirs = F.pad(key_seq_ids, (0, pad), value=-2).unfold(1, 2 * w, w).view(B, 1, n, 1, 1, 2 * w)
        allowed = allowed & (mine == theirs)
    scores = torch.matmul(q, keys).to(wide).view(B, G, n, R, w, 2 * w) * scale
    if softcap is not None:
        scores = soft_cap(scores, softcap)
    scores = scores.masked_fill(~allowed, -torch.inf)
    shift = scores.detach().amax(-1, keepdim=True)
    shift = shift.masked_fill(shift == -torch.inf, 0)
    weights = torch.exp(scores - shift)
    numerator = torch.matmul(weights.view(B, G, n, R * w, 2 * w).to(v.dtype), values).to(wide)
    unblock = lambda x: x.view(B, G, n, R, w, -1).transpose(2, 3).reshape(B, H, n * w, -1)[:, :, :T]  # noqa: E731
    return unblock(numerator), unblock(weights.sum(-1, keepdim=True)), unblock(shift)


def sliding_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scale: float,
    *,
    valid: Tensor | None = None,
    seq_ids: Tensor | None = None,
    key_seq_ids: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention over the last `window` keys, O(T w); arguments as `window_terms`. Returns (B, H, T, D)."""
    numerator, denominator, _ = window_terms(
        q, k, v, window, scale, valid=valid, seq_ids=seq_ids, key_seq_ids=key_seq_ids, softcap=softcap
    )
    return (numerator / denominator.clamp_min(1e-30)).to(q.dtype)
