"""Products with weights of few bits: how they lie in memory, and how they are multiplied.

A weight W (N, K) is whole numbers q with a scale for every group of inputs: W[n, k] = q[n, k] scale[n, k // group].
Scales are bfloat16, (N, K / group), and may be negative; one group of all inputs is a scale for each output. In memory
q is (N, K) int8, or with 4 bits (N, K / 8) int32: eight numbers q + 8 in each, the first in the lowest bits.

Inputs in bfloat16 go through torch's own low-bit kernels while there are few rows, and through the dequantized weight
where there are many; both add up in fp32. Inputs in fp32 and fp64 always take the dequantized weight, which is exact in
them: a token alone and a token among others give the same numbers.

Shapes: N outputs, K inputs, M rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yeoul.ops.native import Tiles, int4_product, int4_tiles, int8_product
from yeoul.runtime import has_native_bf16


def pack(q: Tensor, bits: int) -> Tensor:
    """Whole numbers (N, K) int8 of so many bits, densely: (N, ceil(K bits / 32)) int32.

    Number k of a row is q + 2^(bits - 1) in the bits from k * bits on, counted from the lowest of the first int32, as
    in the format "pack-quantized" of compressed-tensors.
    """
    if bits == 4 and q.shape[1] % 8 == 0:
        nibbles = (q + 8).to(torch.uint8).unflatten(1, (-1, 2))
        return (nibbles[..., 0] | (nibbles[..., 1] << 4)).contiguous().view(torch.int32)
    places, eight = (torch.arange(count, dtype=torch.uint8, device=q.device) for count in (bits, 8))
    codes = (q.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    row = ((codes[..., None] >> places) & 1).flatten(1)  # bits of a row
    row = F.pad(row, (0, -row.shape[1] % 32)).unflatten(1, (-1, 8))
    return (row << eight).sum(-1, dtype=torch.uint8).view(torch.int32)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of `pack`: (N, width) int8."""
    octets = packed.contiguous().view(torch.uint8)
    if bits == 4:
        return (torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1).to(torch.int8) - 8)[:, :width]
    eight, places = (torch.arange(count, dtype=torch.uint8, device=packed.device) for count in (8, bits))
    row = ((octets[..., None] >> eight) & 1).flatten(1)[:, : width * bits].unflatten(1, (width, bits))
    return ((row << places).sum(-1, dtype=torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def unpack_4(packed: Tensor) -> Tensor:
    """A 4-bit weight (N, K / 8) int32 as whole numbers, (N, K) int8."""
    return unpack(packed, 4, 8 * packed.shape[1])


def dequantize(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (N, K) in a floating-point type; exact in fp32 and fp64.

    Args:
        packed: (N, K) int8 or (N, K / 8) int32, which says how many bits there are.
        scale: (N, K / group) bfloat16.
        dtype: of the result.
    """
    weight = torch.empty(packed.shape[0], _width(packed), dtype=dtype, device=packed.device)
    first = 0
    for piece in _pieces(packed, scale, dtype):
        rows = weight[first : first + len(piece)]
        if packed.dtype == torch.int32:
            rows.unflatten(1, (-1, 2)).copy_(piece.unflatten(1, (2, -1)).transpose(1, 2))
        else:
            rows.copy_(piece)
        first += len(piece)
    return weight.mul_(scale.to(dtype)) if scale.shape[1] == 1 else weight


def _width(packed: Tensor) -> int:
    return packed.shape[1] * (8 if packed.dtype == torch.int32 else 1)


def _pieces(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The weight some rows at a time, (n, K), each in the memory of the one before.

    A scale that is alone in its row is left out: whole numbers are exact in every type, and it can wait. With 4 bits
    even inputs come first, then odd ones (`_even_first`), which takes half the time.
    """
    groups = scale.shape[1]
    rows = max(16, PIECE // _width(packed))
    buffer = torch.empty(min(rows, packed.shape[0]), _width(packed), dtype=dtype, device=packed.device)
    for part, own in zip(packed.split(rows), scale.to(dtype).split(rows), strict=True):
        piece = buffer[: len(part)]
        if packed.dtype == torch.int32:
            octets = part.contiguous().view(torch.uint8)
            q = torch.stack((octets & 15, octets >> 4), dim=1).sub_(8).view(torch.int8)
            piece.unflatten(1, (2, -1)).copy_(q)
            if groups > 1:
                piece.unflatten(1, (2, groups, -1)).mul_(own[:, None, :, None])
        else:
            piece.copy_(part)
            if groups > 1:
                piece.unflatten(1, (groups, -1)).mul_(own[..., None])
        yield piece


def _even_first(x: Tensor) -> Tensor:
    """(M, K) with its even columns first, then its odd ones."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)


def make_tiles(packed: Tensor, scale: Tensor) -> Tiles | None:
    """A 4-bit weight for torch's kernel; None where the kernel does not take it."""
    return int4_tiles(unpack_4(packed), scale)


MOST_ROWS = {8: 16, 4: 48}
"""Rows up to which the kernels are faster than dequantizing, by bits. Measured on one core of an AMD EPYC with AVX-512,
2048 x 2048, ms for 4, 8, 16, 48 and 128 rows: bf16 0.52, 0.61, 0.68, 1.3, 2.7; the kernel of 8 bits 0.35, 0.55, 0.91,
2.7, 6.3, and dequantized 0.80, 1.0, 0.96, 1.8, 3.1; the kernel of 4 bits 0.23, 0.42, 0.79, 2.4, 10. Making bf16 of the
4 bits takes 2.0 by itself."""
PIECE = 2**20
"""Numbers that are dequantized at a time: what fits into a cache is not written to memory and read again, and takes no
new pages. 6144 x 2048, one row in fp32: 22 and 28 ms with 8 and 4 bits whole, 1.4 and 4.3 in pieces."""


def suits_kernel(x: Tensor, packed: Tensor) -> bool:
    """Whether torch's kernels are the faster way for x (..., K); what they take is in `yeoul.ops.native`."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    return x.numel() // x.shape[-1] <= MOST_ROWS[4 if packed.dtype == torch.int32 else 8]


def _kernel_product(x: Tensor, packed: Tensor, scale: Tensor, tiles: Tiles | None) -> Tensor | None:
    """`product` by one of torch's kernels; None where none of them is the faster way, or takes this."""
    if not suits_kernel(x, packed):
        return None
    if packed.dtype == torch.int8:
        return int8_product(x, packed, scale)
    y = None if tiles is None else int4_product(x, tiles, _width(packed) // scale.shape[1])
    return None if y is None else y[:, : scale.shape[0]]


def product(x: Tensor, packed: Tensor, scale: Tensor, tiles: Tiles | None = None) -> Tensor:
    """x (M, K) times the transposed weight: (M, N) in x's dtype. See `low_bit_linear` for gradients."""
    fast = _kernel_product(x, packed, scale, tiles)
    if fast is not None:
        return fast
    given = x.dtype
    if given == torch.bfloat16 and not _has_native_bf16(x.device):
        x = x.float()  # emulated products take several times as long
    if packed.dtype == torch.int32:
        x = _even_first(x)
    y = torch.cat([F.linear(x, piece) for piece in _pieces(packed, scale, x.dtype)], dim=1)
    return (y.mul_(scale[:, 0].to(x.dtype)) if scale.shape[1] == 1 else y).to(given)


@functools.lru_cache(maxsize=8)
def _has_native_bf16(device: torch.device) -> bool:
    return has_native_bf16(device)


class _Linear(torch.autograd.Function):
    """`product` with a gradient for x; the weight is dequantized again for it, and nothing else is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, tiles: Tiles | None) -> Tensor:
        ctx.weight = packed, scale
        return product(x, packed, scale, tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        packed, scale = ctx.weight
        return grad @ dequantize(packed, scale, grad.dtype), None, None, None


def low_bit_linear(x: Tensor, packed: Tensor, scale: Tensor, tiles: Tiles | None = None) -> Tensor:
    """x (..., K) times the transposed weight: (..., N) in x's dtype, with a gradient for x.

    Args:
        x: bfloat16 is fast; float32 and float64 are exact.
        packed: (N, K) int8 or (N, K / 8) int32. Few rows are fast where 8 bits are `native.aligned`.
        scale: (N, K / group) bfloat16.
        tiles: what `make_tiles` made of a 4-bit weight; without it few rows are dequantized too.
    """
    rows = x.reshape(-1, x.shape[-1])  # (M, K)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Linear.apply(rows, packed, scale, tiles)
    else:
        y = product(rows, packed, scale, tiles)
    return y.unflatten(0, x.shape[:-1]) if x.dim() != 2 else y
