"""Rows of different lengths in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def pad_batch(
    rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "left"
) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to the length of the longest.

    Args:
        rows: B lists of token ids, of any lengths, not all empty.
        pad_id: written where there is no token; 0 serves as well, since the mask tells them apart.
        side: where the padding goes; "left" for generation, so that the last column holds every row's last token.

    Returns:
        input_ids (B, T) int64 and attention_mask (B, T) int64, 1 for a token and 0 for padding.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be left or right, not {side!r}")
    width = max((len(row) for row in rows), default=0)
    if width == 0:
        raise ValueError("nothing to pad: no row has a token")
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        if not len(row):
            continue
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        input_ids[index, place] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[index, place] = 1
    return input_ids, attention_mask
