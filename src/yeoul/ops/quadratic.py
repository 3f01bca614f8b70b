"""Linear attention as its definition, with all T x T scores; and not causal, where it is linear at once."""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.ops.inputs import Inputs, LinearState, sum_dtype


def normalized(numerator: Tensor, denominator: Tensor, eps: float, valid: Tensor | None) -> Tensor:
    """numerator (B, G, R, T, D) / max(denominator (B, G, R, T, 1), eps), with 1 below at padding."""
    denominator = denominator.clamp(min=eps)
    if valid is not None:
        # Above it stands 0, so any denominator gives 0; but a gradient through 1 / eps might overflow.
        denominator = denominator.masked_fill(~valid[:, None, None, :, None], 1.0)
    return numerator / denominator


def quadratic(x: Inputs, *, normalize: bool, eps: float) -> tuple[Tensor, LinearState]:
    """Causal linear attention in O(T^2): sum over j <= i of exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j.

    Returns:
        Output (B, G, R, T, D) and final state, in the dtype of the arithmetic.
    """
    q, k, v = x.masked()
    t = k.shape[2]
    sums = _decay_sums(x)
    hidden = torch.ones(t, t, dtype=torch.bool, device=q.device).triu(1)
    if x.segment is not None:
        hidden = hidden | (x.segment[:, :, None] != x.segment[:, None, :])[:, None]  # (B, 1, T, T)
    # The exponent is masked before exp: exp of a large positive number would be inf, and inf * 0 is NaN.
    exponent = (sums[..., :, None] - sums[..., None, :]).masked_fill(hidden, -torch.inf).to(x.dtype)
    scores = torch.einsum("bgrim,bgjm->bgrij", q, k) * exponent.exp()[:, :, None]
    numerator = torch.einsum("bgrij,bgjd->bgrid", scores, v)
    denominator = scores.sum(-1, keepdim=True)
    to_end = sums[..., -1:] - sums  # (B or 1, G, T)
    if x.segment is not None:
        to_end = to_end.masked_fill((x.segment != x.segment[:, -1:])[:, None], -torch.inf)
    written = k * to_end.to(x.dtype).exp()[..., None]
    s, z = written.transpose(-1, -2) @ v, written.sum(-2)
    if x.state is not None:
        since_start = sums
        if x.segment is not None:
            since_start = sums.masked_fill((x.segment != 0)[:, None], -torch.inf)
        decayed = since_start.to(x.dtype).exp()[:, :, None, :, None]
        read = q * decayed
        numerator = numerator + torch.einsum("bgrim,bgmd->bgrid", read, x.state.s)
        denominator = denominator + torch.einsum("bgrim,bgm->bgri", read, x.state.z)[..., None]
        kept = decayed[:, :, 0, -1]  # (B or 1, G, 1)
        s, z = s + kept[..., None] * x.state.s, z + kept * x.state.z
    out = normalized(numerator, denominator, eps, x.valid) if normalize else numerator
    return out, LinearState(s, z)


def _decay_sums(x: Inputs) -> Tensor:
    """Log-decay summed from the first position to each, (B or 1, G, T), in float64."""
    if x.log_decay is None:
        return torch.zeros(1, *x.k.shape[1:3], dtype=x.dtype, device=x.k.device)
    decay = x.log_decay.to(sum_dtype(x.log_decay))
    if decay.dim() == 1:
        decay = decay[None, :, None].expand(1, -1, x.k.shape[2])
    return decay.cumsum(-1)


def everything_sees_everything(x: Inputs, *, normalize: bool, eps: float) -> tuple[Tensor, LinearState]:
    """Linear attention that is not causal, as its definition: every token of a sequence sees all of it.

    Returns:
        As `quadratic`; the state is the sum over the last sequence of each row.
    """
    q, k, v = x.masked()
    scores = torch.einsum("bgrim,bgjm->bgrij", q, k)
    last = k
    if x.segment is not None:
        other = (x.segment[:, :, None] != x.segment[:, None, :])[:, None, None]
        scores = scores.masked_fill(other, 0.0)
        last = k.masked_fill((x.segment != x.segment[:, -1:])[:, None, :, None], 0.0)
    numerator = torch.einsum("bgrij,bgjd->bgrid", scores, v)
    state = LinearState(last.transpose(-1, -2) @ v, last.sum(-2))
    if not normalize:
        return numerator, state
    return normalized(numerator, scores.sum(-1, keepdim=True), eps, x.valid), state


def bidirectional(x: Inputs, *, normalize: bool, eps: float) -> tuple[Tensor, LinearState]:
    """The same as `everything_sees_everything` in linear time: O = A (K^T V) / (A (K^T 1)) per sequence."""
    q, k, v = x.masked()
    if x.segment is None:
        numerator, denominator, s, z = _all_to_all(q, k, v)
    else:
        # One row at a time, cut with split: its gradient is one cat, not a full-size tensor a sequence.
        rows = []
        for row, ids in enumerate(x.segment):
            lengths = torch.bincount(ids).tolist()
            parts = zip(
                q[row : row + 1].split(lengths, dim=3),
                k[row : row + 1].split(lengths, dim=2),
                v[row : row + 1].split(lengths, dim=2),
                strict=True,
            )
            results = [_all_to_all(*part) for part in parts]
            over = torch.cat([r[0] for r in results], dim=3)
            under = torch.cat([r[1] for r in results], dim=3)
            rows.append((over, under, results[-1][2], results[-1][3]))
        numerator, denominator, s, z = (torch.cat(column) for column in zip(*rows, strict=True))
    out = normalized(numerator, denominator, eps, x.valid) if normalize else numerator
    return out, LinearState(s, z)


def _all_to_all(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numerator, denominator, K^T V and K^T 1 of one sequence a row."""
    s, z = k.transpose(-1, -2) @ v, k.sum(-2)
    return (
        torch.einsum("bgrim,bgmd->bgrid", q, s),
        torch.einsum("bgrim,bgm->bgri", q, z)[..., None],
        s,
        z,
    )
