"""torch's kernels of few bits on the CPU, each behind all that it asks of what it is given.

They are private functions that check little: given something else they read beyond their rows or end the process with
a segmentation fault. Nothing else of Yeoul but `fused.py` calls a private kernel (a test reads the source). Each
function here asks `takes_*` first and gives None where the answer is no; whoever calls it then multiplies with the
dequantized weight, which is exact.

What is asked for was read in aten/src/ATen/native/cpu/int8mm_kernel.cpp and int4mm_kernel.cpp, for AVX2, AVX-512, NEON
and plain C++ together, whatever this processor is:

| | 8 bits | 4 bits |
|---|---|---|
| inputs K | a multiple of 16: they are read 16 at a time | even, and of whole groups of 32, 64 or 128 |
| outputs N | NEON reads scales four at a time | a multiple of 16: rows of zeros are added |
| addresses | x at a multiple of 32 bytes, the weight of 16: loads are aligned ones | as numbers lie by themselves |
| sizes | M N, M K and N K below 2^31: places are counted in 32 bits | the same |

Shapes: N outputs, K inputs, M rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS_4 = (32, 64, 128)
"""Group sizes that the 4-bit kernel takes, but for 256."""
ALIGNMENT = 64
"""Bytes of a cache line: what torch gives its own tensors, and more than any of the kernels asks for."""
MOST_PLACES = 2**31


class Tiles(NamedTuple):
    """A 4-bit weight as torch's kernel on the CPU wants it.

    Attributes:
        weight: (N, K / 2) uint8, reordered for this processor.
        scales: (K / group, N, 2) bfloat16, each scale with its zero point, which is 0.
    """

    weight: Tensor
    scales: Tensor


def is_aligned(tensor: Tensor) -> bool:
    """Whether the numbers lie one behind the other from an address on that the kernels take."""
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


@torch.inference_mode(False)  # what is kept by a module serves training too
def aligned(tensor: Tensor) -> Tensor:
    """The tensor where `is_aligned`, else a copy: views of a file begin anywhere in it."""
    return tensor if is_aligned(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _small(M: int, N: int, K: int) -> bool:
    return 0 < M * N < MOST_PLACES and 0 < M * K < MOST_PLACES and 0 < N * K < MOST_PLACES


def _takes_rows(x: Tensor) -> bool:
    return x.dim() == 2 and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def takes_int8(x: Tensor, weight: Tensor, scale: Tensor) -> bool:
    """Whether the 8-bit kernel may be given x (M, K), a weight (N, K) and a scale (N, 1); x is aligned for it."""
    if not _takes_rows(x) or weight.dtype != torch.int8 or weight.device.type != "cpu" or weight.dim() != 2:
        return False
    (M, K), N = x.shape, weight.shape[0]
    fits = weight.shape[1] == K and scale.shape == (N, 1) and scale.device.type == "cpu"
    return fits and K % 16 == 0 and _small(M, N, K) and is_aligned(weight)


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor | None:
    """x (M, K) bfloat16 times a transposed weight of 8 bits: (M, N); None where the kernel must not be called."""
    if not takes_int8(x, weight, scale):
        return None
    N = len(scale)
    scales = F.pad(scale[:, 0].to(x.dtype), (0, -N % 4))[:N]  # of a length that may be read four at a time
    y: Tensor = torch.ops.aten._weight_int8pack_mm(aligned(x), weight, scales)
    return y


def takes_int4(x: Tensor, tiles: Tiles, group: int) -> bool:
    """Whether the 4-bit kernel may be given x (M, K) and tiles with so many inputs in a group."""
    if not _takes_rows(x) or group not in GROUPS_4:
        return False
    (M, K), N = x.shape, tiles.weight.shape[0]
    fits = tiles.weight.shape == (N, K // 2) and tiles.scales.shape == (K // group, N, 2)
    return fits and N % 16 == 0 and K % group == 0 and _small(M, N, K)


def int4_product(x: Tensor, tiles: Tiles, group: int) -> Tensor | None:
    """x (M, K) bfloat16 times transposed tiles: (M, N), N of the tiles; None where the kernel must not be called."""
    if not takes_int4(x, tiles, group):
        return None
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(aligned(x), tiles.weight, group, tiles.scales)
    return y


def int4_tiles(q: Tensor, scale: Tensor) -> Tiles | None:
    """A weight for the 4-bit kernel; None where the kernel does not take its groups or its size.

    Args:
        q: (N, K) int8 on the CPU, whole numbers from -8 to 7.
        scale: (N, K / group).
    Returns:
        tiles with a multiple of 16 outputs: those beyond N are 0.
    """
    (N, K), groups = q.shape, scale.shape[1]
    more = -N % 16
    if q.device.type != "cpu" or K % groups or K // groups not in GROUPS_4 or not _small(1, N + more, K):
        return None
    codes = F.pad(q.int() + 8, (0, 0, 0, more)).contiguous()
    padded = F.pad(scale.to(torch.bfloat16), (0, 0, 0, more)).T  # (groups, N)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return Tiles(weight, torch.stack((padded, torch.zeros_like(padded)), dim=-1).contiguous())
