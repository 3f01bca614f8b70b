"""Channels that matter are made large before they are rounded: the scaling of AWQ.

y = W x stays the same with W s and x / s for any s > 0 of each input, and the rounded s-fold of a large input's weights
is nearer to the truth, at the price of its neighbours'. With m the root mean square of each input, s = m^a; the a from
0 to 1 with the least error of what the layers give is taken (Lin and others 2023, arXiv 2306.00978, section 3.2; they
take the mean of |x| for m). 1 / s goes into what comes before: the norm, or the rows of the layer whose outputs these
are, so that nothing is computed beside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from yeoul.adapt.quant_statistics import Site
from yeoul.adapt.rounding import round_to_nearest
from yeoul.model.decoder import Block
from yeoul.model.gates import Gate
from yeoul.model.layers import ZeroCenteredRMSNorm
from yeoul.model.official import OfficialDiJiangAttention
from yeoul.ops.low_bit import dequantize

POWERS = tuple(step / 20 for step in range(21))


@torch.no_grad()
def scale_inputs(block: Block, site: Site, moments: Tensor, bits: int, group: int) -> Tensor:
    """Scales the inputs of a site's layers by the best s = m^a, in place, and what gives these inputs by 1 / s.

    Args:
        block: whose weights are changed; what it computes stays the same.
        site: the layers.
        moments: (K, K), X^T X of their input.
        bits: 8 or 4.
        group: inputs that share a scale.

    Returns:
        X^T X of the scaled input.
    """
    if not site.source:
        return moments
    layers: list[Any] = [block.get_submodule(path) for path in site.linears]
    sizes = moments.diagonal().sqrt().clamp_min(1e-6 * float(moments.diagonal().max()) ** 0.5 + 1e-30)
    best, least = torch.ones_like(sizes), float("inf")
    for power in POWERS:
        s = sizes**power
        s = s / (s.max() * s.min()).sqrt()
        error = sum(_error(layer.weight.float(), s, moments, bits, group) for layer in layers)
        if error < least:
            best, least = s, error
    for layer in layers:
        layer.weight.mul_(best)
    _divide(block, site, best)
    return moments / best / best[:, None]


def _error(weight: Tensor, s: Tensor, moments: Tensor, bits: int, group: int) -> float:
    """tr(D H D^T) of a weight whose inputs are scaled by s and rounded."""
    q, scale = round_to_nearest(weight * s, bits, group, moments.diagonal() / s.square())
    difference = dequantize(q, scale, torch.float32) / s - weight
    return float((difference @ moments * difference).sum())


def _divide(block: Block, site: Site, s: Tensor) -> None:
    """Divides the channels that a site's source gives by s (K,), and makes it good where others read them."""
    source = block.get_submodule(site.source)
    if isinstance(source, nn.Linear):
        source.weight.div_(s[:, None])
        if source.bias is not None:
            source.bias.div_(s)
        return
    weight: Any = source.weight
    if isinstance(source, ZeroCenteredRMSNorm):
        weight.copy_((1 + weight) / s - 1)
    else:
        weight.div_(s)
    if isinstance(source, nn.LayerNorm) and source.bias is not None:
        source.bias.div_(s)
    if site.source == "input_layernorm":
        for module in block.self_attn.modules():
            if isinstance(module, Gate):
                module.weight.mul_(s)
            if isinstance(module, OfficialDiJiangAttention):
                module.W_G.mul_(s[:, None])
