"""GPTQ: numbers rounded one input after the other, and the error of each made good by the inputs still to come.

For a layer with inputs X (tokens, K) the error of a rounded weight is tr(D H D^T) with D the difference of the weights
and H = X^T X. Rounding input i and moving the rest so that the error stays least costs, with the Cholesky factor U of
H^-1 (U^T U = H^-1, U upper triangular),

    e = (w_i - rounded(w_i)) / U_ii,        w_j -= e U_ij  for j > i

for every output alike (Frantar and others 2022, arXiv 2210.17323, algorithm 1). Inputs are taken in the order of
falling H_ii (their "activation order"), with each group's scale fixed before, so that a group stays what it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yeoul.adapt.rounding import best_scale, limits

BLOCK = 128
"""Inputs after which what was learned is added to those far behind: products in place of sums, the same numbers."""


@torch.no_grad()
def gptq(
    weight: Tensor, hessian: Tensor, bits: int, group: int, *, damping: float = 0.01, ordered: bool = True
) -> tuple[Tensor, Tensor]:
    """Rounds a weight so that what it gives on the inputs behind `hessian` changes least.

    Args:
        weight: (N, K) in any floating-point type.
        hessian: (K, K), X^T X up to a factor.
        bits: 8, 6 or 4.
        group: inputs that share a scale; 0 means all K.
        damping: of its mean that is added to the diagonal of `hessian`.
        ordered: inputs in the order of their size, else as they come.

    Returns:
        q (N, K) int8 and scale (N, groups) bfloat16.
    """
    N, K = weight.shape
    H = hessian.to(torch.float64, copy=True)
    diagonal = H.diagonal()
    dead = diagonal == 0  # inputs that the text never sets: nothing is known of them, and nothing is lost
    H.diagonal()[dead] = 1.0
    importance = diagonal.float()
    H.diagonal().add_(damping * diagonal.mean())
    groups = weight.float().unflatten(1, (-1, group or K))
    scale = best_scale(groups, bits, importance.view(1, -1, group or K))
    steps = scale.float().repeat_interleave(group or K, dim=1)  # (N, K)
    order = torch.argsort(importance, descending=True) if ordered else torch.arange(K, device=weight.device)
    back = torch.argsort(order)
    U = _factor(H[order][:, order]).float()
    q = _rounded(weight.float()[:, order], steps[:, order], U, bits)
    return q[:, back], scale


def _factor(H: Tensor) -> Tensor:
    """U (K, K) fp64, upper triangular with U^T U = H^-1; the diagonal grows until H has one in this precision."""
    mean = H.diagonal().mean()
    for more in (0.0, 0.1, 1.0, 10.0):
        damped = H + more * mean * torch.eye(len(H), dtype=H.dtype, device=H.device) if more else H
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
    return torch.eye(len(H), dtype=H.dtype, device=H.device)  # no input makes good for another: to the nearest


def _rounded(W: Tensor, steps: Tensor, U: Tensor, bits: int) -> Tensor:
    """q (N, K) int8 of a weight (N, K) fp32, which is used up."""
    low, high = limits(bits)
    K = W.shape[1]
    q = torch.empty_like(W)
    for start in range(0, K, BLOCK):
        end = min(start + BLOCK, K)
        errors = torch.empty_like(W[:, start:end])
        for i in range(start, end):
            step = steps[:, i]
            q[:, i] = (W[:, i] / step).round_().clamp_(low, high)
            error = (W[:, i] - q[:, i] * step) / U[i, i]
            W[:, i + 1 : end].addr_(error, U[i, i + 1 : end], alpha=-1)
            errors[:, i - start] = error
        W[:, end:].addmm_(errors, U[start:end, end:], alpha=-1)
    return q.to(torch.int8)
