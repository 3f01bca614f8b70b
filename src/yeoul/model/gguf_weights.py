"""From the bytes of a GGUF file to numbers, some rows at a time."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yeoul.model.stored import Stored

if TYPE_CHECKING:
    import numpy as np

TOGETHER = 2**20
"""Numbers that are dequantized at a time: they take some copies in float32."""


def decode(octets: np.ndarray[Any, Any], place: Stored, dtype: torch.dtype) -> Tensor:
    """One tensor on the CPU.

    Args:
        octets: its bytes, (nbytes,) uint8.
        place: what they are.
        dtype: of the result; numbers come to it from float32.
    """
    assert place.encoding is not None
    kind, shift, heads = place.encoding
    columns = place.shape[-1]
    rows = prod(place.shape[:-1])
    found = torch.empty(rows, columns, dtype=dtype)
    step = max(1, TOGETHER // columns)
    for first in range(0, rows, step):
        numbers = _numbers(octets.reshape(rows, -1)[first : first + step], kind).view(-1, columns)
        found[first : first + step] = numbers + shift if shift else numbers
    found = found.view(place.shape)
    return half_pairs(found, heads) if heads else found


def _numbers(octets: np.ndarray[Any, Any], kind: str) -> Tensor:
    """The float32 numbers of (rows, bytes) uint8, of rows one after the other."""
    import numpy as np

    octets = octets.reshape(1, -1)  # blocks know no rows, and the library takes few of these at a time
    if kind == "F32":
        return torch.from_numpy(octets.copy().view(np.float32))
    if kind == "F16":
        return torch.from_numpy(octets.copy().view(np.float16).astype(np.float32))
    if kind == "BF16":
        return torch.from_numpy(octets.copy().view(np.int16)).view(torch.bfloat16).float()
    from gguf import GGMLQuantizationType, quants

    return torch.from_numpy(quants.dequantize(octets, GGMLQuantizationType[kind]))


def half_pairs(values: Tensor, heads: int) -> Tensor:
    """Rows (heads x D, ...) whose pairs to rotate lie side by side, reordered to lie D/2 apart, as ours do."""
    rows = values.shape[0] // heads
    return values.view(heads, rows // 2, 2, -1).transpose(1, 2).reshape(values.shape)
