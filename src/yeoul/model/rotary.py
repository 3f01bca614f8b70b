"""Angles of rotary positions, and queries and keys turned by them; what decides them is in `yeoul.model.rope`."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from yeoul.model.rope import Rope, RopeScaling


def frequencies(rope: Rope, variant: int = 0) -> tuple[Tensor, float]:
    """Angle of one position for each pair of dimensions, (R / 2,) fp32, and the factor of cosines and sines.

    Args:
        rope: what to compute.
        variant: from `Rope.variant`.
    """
    dim, theta, scaling, _ = rope
    if scaling is not None and scaling.rope_type == "dynamic":
        assert scaling.factor is not None
        stretch = scaling.factor * variant / rope.max_positions - (scaling.factor - 1)
        theta *= stretch ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    inverse = 1.0 / theta**exponents
    if scaling is None or scaling.rope_type == "dynamic":
        return inverse, 1.0
    if scaling.rope_type == "linear":
        assert scaling.factor is not None
        return inverse / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(inverse, scaling), 1.0
    if scaling.rope_type == "yarn":
        return _yarn(rope, scaling), rope.attention_factor()
    factors = scaling.long_factor if variant else scaling.short_factor
    assert factors is not None
    return 1.0 / (torch.tensor(factors) * theta**exponents), rope.attention_factor()


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between interpolated (Llama 3.1)."""
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert original is not None and low is not None and high is not None and scaling.factor is not None
    wavelength = 2 * math.pi / inverse
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * inverse / scaling.factor + smooth * inverse


def _yarn(rope: Rope, scaling: RopeScaling) -> Tensor:
    """NTK by parts (Peng and others 2023, sections 3.2 and 3.3)."""
    dim, theta = rope.dim, rope.theta
    factor, original = scaling.factor, scaling.original_max_position_embeddings
    assert factor is not None and original is not None
    inverse = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(scaling.beta_fast or 32), pair_that_turns(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    stretched = ramp.clamp(0, 1)
    return inverse / factor * stretched + inverse * (1 - stretched)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves training too
def _table(rope: Rope, variant: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    inverse, attention = frequencies(rope, variant)
    angle = torch.outer(torch.arange(rows, dtype=torch.float32, device=device), inverse.to(device))
    return angle.cos() * attention, angle.sin() * attention


def rotary_columns(
    rope: Rope, positions: Tensor | None, columns: int, end: int, lengths: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the columns of a call: each (B or 1, 1, columns, R / 2) fp32.

    Args:
        rope: which rotation.
        positions: (B or 1, columns) int64; None means 0 ... columns-1.
        columns: of the call.
        end: larger than every position.
        lengths: (B or 1, columns or 1) int64, how long the text of each row or column is; None means `end`.
        device: of the result.
    """
    if not rope.by_length:
        return _at(_table(rope, 0, _rows(end), device), positions, columns)
    if lengths is None:
        lengths = torch.tensor([[end]])
    variants = rope.variant(lengths)
    cos, sin = torch.empty(0), torch.empty(0)
    for number, variant in enumerate(variants.unique().tolist()):
        rows = end if rope.kind == "dynamic" and variant > rope.max_positions else _rows(end)
        own = _at(_table(rope, variant, rows, device), positions, columns)
        if number == 0:
            cos, sin = own
        else:
            here = (variants == variant)[:, None, :, None].to(device)
            cos, sin = torch.where(here, own[0], cos), torch.where(here, own[1], sin)
    return cos, sin


def rotary_table(rope: Rope, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions below `end` and maybe more, each (rows, R / 2) fp32; kept for later calls.

    Args:
        rope: one that does not depend on lengths.
        end: larger than every position.
        device: of the result.
    """
    assert not rope.by_length
    return _table(rope, 0, _rows(end), device)


def _rows(end: int) -> int:
    """Rows of a table that is kept for later calls."""
    return max(64, 1 << (end - 1).bit_length())


def _at(table: tuple[Tensor, Tensor], positions: Tensor | None, columns: int) -> tuple[Tensor, Tensor]:
    cos, sin = table
    if positions is None:
        return cos[:columns][None, None], sin[:columns][None, None]
    return cos[positions][:, None], sin[positions][:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first 2R of a head's dimensions by position, halves convention (as GPT-NeoX and Llama in transformers).

    Args:
        x: (B, H, T, D) queries or keys.
        cos: (B or 1, 1, T, R) with 2R <= D.
        sin: as cos.
    """
    r = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x[..., :r], x[..., r : 2 * r]
    parts = [a * cos - b * sin, b * cos + a * sin]
    if 2 * r < x.shape[-1]:
        parts.append(x[..., 2 * r :])
    return torch.cat(parts, dim=-1)
