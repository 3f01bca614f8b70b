"""Linear attention as the definition says, one number after another, in float64; and how to compare."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor


def _decay(rates: list[float], tokens: list[int], after: int, up_to: int) -> float:
    """Product of the factors at the tokens after a position, up to another."""
    return math.exp(sum(rates[i] for i in tokens if after < i <= up_to))


def definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    causal: bool = True,
    normalize: bool = True,
    eps: float = 1e-12,
    ids: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, T, D), s (B, G, M, D) and z (B, G, M) in float64; ids as seq_ids, -1 at padding."""
    q, k, v = q.detach().double(), k.detach().double(), v.detach().double()
    (b, h, t, m), (g, d) = q.shape, (k.shape[1], v.shape[3])
    out = torch.zeros(b, h, t, d, dtype=torch.float64)
    s_all, z_all = torch.zeros(b, g, m, d, dtype=torch.float64), torch.zeros(b, g, m, dtype=torch.float64)
    for row in range(b):
        sequence = [0] * t if ids is None else [int(i) for i in ids[row]]
        tokens = [i for i in range(t) if sequence[i] >= 0]
        first = sequence[tokens[0]] if tokens else None
        last = sequence[tokens[-1]] if tokens else None
        for head in range(h):
            group = head // (h // g)

            if log_decay is None:
                rates = [0.0] * t
            else:
                rates = (log_decay[row, group] if log_decay.dim() == 3 else log_decay[group].expand(t)).tolist()
            decay = partial(_decay, rates, tokens)

            for i in tokens:
                over, under = torch.zeros(d, dtype=torch.float64), 0.0
                for j in tokens:
                    if sequence[j] == sequence[i] and (j <= i or not causal):
                        weight = decay(j, i) * (q[row, head, i] @ k[row, group, j])
                        over, under = over + weight * v[row, group, j], under + float(weight)
                if state is not None and sequence[i] == first:
                    kept = decay(-1, i)
                    over = over + kept * (q[row, head, i] @ state[0][row, group].double())
                    under = under + kept * float(q[row, head, i] @ state[1][row, group].double())
                out[row, head, i] = over / max(under, eps) if normalize else over
            for j in tokens:
                if sequence[j] == last:
                    weight = decay(j, t) * k[row, group, j]
                    if head % (h // g) == 0:
                        s_all[row, group] += weight[:, None] * v[row, group, j]
                        z_all[row, group] += weight
            if state is not None and first == last and head % (h // g) == 0:
                s_all[row, group] += decay(-1, t) * state[0][row, group].double()
                z_all[row, group] += decay(-1, t) * state[1][row, group].double()
    return out, s_all, z_all


def difference(ours: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference; NaN where ours has one."""
    ours, reference = ours.detach(), reference.detach()
    scale = reference.double().pow(2).mean().sqrt()
    return float((ours.double() - reference.double()).pow(2).mean().sqrt() / scale.clamp(min=1e-30))
