"""Weighted cosines and sines, whose gradient is made of the result: no sine or cosine is computed twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fourier_features(angles: Tensor, weights: Tensor) -> Tensor:
    """(w cos a, w sin a), one behind the other; differentiable in both.

    Args:
        angles: (..., F).
        weights: any shape that broadcasts to that of the angles, in their dtype.

    Returns:
        (..., 2 F).
    """
    features: Tensor = _Fourier.apply(angles, weights)
    return features


class _Fourier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, angles: Tensor, weights: Tensor) -> Tensor:
        out = torch.cat((angles.cos(), angles.sin()), dim=-1)
        out.unflatten(-1, (2, -1)).mul_(weights.unsqueeze(-2))
        ctx.save_for_backward(out, weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        out, weights = ctx.saved_tensors
        (cos, sin), (d_cos, d_sin) = out.chunk(2, dim=-1), gradient.chunk(2, dim=-1)
        d_angles = torch.mul(d_sin, cos).addcmul_(d_cos, sin, value=-1)
        if not ctx.needs_input_grad[1]:
            return d_angles, None
        total = torch.mul(d_cos, cos).addcmul_(d_sin, sin).sum_to_size(weights.shape)
        return d_angles, torch.where(weights == 0, 0.0, total / weights)
