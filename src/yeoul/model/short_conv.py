"""A short causal convolution over queries, keys and values: what a linear state is bad at, the last few tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.cache import StateCache


class ShortConvolution(nn.Module):
    """y_t = sum over j < K of weight[:, j] x_{t-j}, each channel by itself; before a text's first token all is 0.

    Fast-weight layers have it as H3 (Fu and others 2022, arXiv 2212.14052) and Gated DeltaNet (2024, arXiv 2412.06464)
    do, but without their activation and with the identity at first, so that a converted layer begins as what it was.

    Parameters: weight (C, K).
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity; nothing on the meta device."""
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.zero_()
                self.weight[:, 0] = 1

    def forward(
        self, x: Tensor, mask: Tensor | None = None, seq_ids: Tensor | None = None, cache: StateCache | None = None
    ) -> Tensor:
        """(B, T, C) to the same.

        Args:
            x: the channels of each column.
            mask: (B, T) bool, which columns are tokens; None means all. Their texts are not interrupted by padding.
            seq_ids: (B, T), packed sequences that do not reach into one another.
            cache: remembers the last K - 1 columns in `recent`, (B, K - 1, C).
        """
        T, reach = x.shape[1], self.size - 1
        if mask is not None:
            x = x * mask[..., None]
        before = None if cache is None else cache.recent
        past = F.pad(x, (0, 0, reach, 0)) if before is None else torch.cat((before, x), dim=1)
        if cache is not None:
            cache.recent = past[:, T:]
        weight = self.weight.to(x.dtype)
        if seq_ids is None:
            y = x * weight[:, 0]
            for j in range(1, self.size):
                y = torch.addcmul(y, past[:, reach - j : reach - j + T], weight[:, j])
            return y
        y = x * weight[:, 0]
        ids = F.pad(seq_ids, (reach, 0), value=-1)
        for j in range(1, self.size):
            same = (ids[:, reach - j : reach - j + T] == seq_ids)[..., None]
            y = y + past[:, reach - j : reach - j + T] * weight[:, j] * same
        return y
