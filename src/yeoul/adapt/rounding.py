"""Numbers to whole numbers and scales: what every way to quantize a weight ends in."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKS = tuple(1 - 0.025 * step for step in range(17))
"""Factors of the largest scale of a group that are tried below 8 bits: a few clipped numbers for finer steps."""


def limits(bits: int) -> tuple[int, int]:
    """Least and largest whole number. Only with 4 bits is the one that has no opposite worth having."""
    most = 2 ** (bits - 1) - 1
    return (-most - 1 if bits == 4 else -most), most


def round_to_nearest(weight: Tensor, bits: int, group: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each number to the nearest multiple of its group's scale.

    Args:
        weight: (N, K) in any floating-point type.
        bits: 8, 6 or 4.
        group: inputs that share a scale; 0 means all K.
        importance: (K,) what squared errors count in the choice of the scales; None counts all alike.

    Returns:
        q (N, K) int8 and scale (N, groups) bfloat16.
    """
    size = group or weight.shape[1]
    groups = weight.float().unflatten(1, (-1, size))
    scale = best_scale(groups, bits, None if importance is None else importance.view(1, -1, size))
    return round_by(groups, scale, bits).flatten(1), scale


def round_by(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Numbers (N, groups, group) by scales (N, groups) to whole numbers in range, int8."""
    return (groups / scale.float()[..., None]).round_().clamp_(*limits(bits)).to(torch.int8)


def best_scale(groups: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """Scales (N, groups) bfloat16 of numbers (N, groups, group) fp32.

    8 bits: the largest of a group becomes 127. Fewer: the largest becomes the end of the range or lies beyond it; of
    several scales the one with the least squared error. With 4 bits that end is -8, so that scales may be negative.

    Args:
        groups: the numbers.
        bits: 8, 6 or 4.
        importance: what the squared errors count, of a shape that goes with `groups`; None counts all alike.
    """
    low, high = limits(bits)
    if bits == 4:
        place = groups.abs().argmax(-1, keepdim=True)
        largest = groups.gather(-1, place)[..., 0] / low
    else:
        largest = groups.abs().amax(-1) / high
    largest = torch.where(largest != 0, largest, 1.0)
    best, least = largest.to(torch.bfloat16), torch.full_like(largest, torch.inf)
    if bits == 8:
        return best
    for shrink in SHRINKS:
        scale = (largest * shrink).to(torch.bfloat16)
        error = (round_by(groups, scale, bits) * scale.float()[..., None] - groups).square_()
        total = (error if importance is None else error * importance).sum(-1)
        better = total < least
        best, least = torch.where(better, scale, best), torch.where(better, total, least)
    return best
