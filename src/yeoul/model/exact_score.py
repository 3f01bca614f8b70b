"""How much a key is worth keeping when it leaves the window: known when the key is, so that eviction needs no look
ahead."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExactScore(nn.Module):
    """A number of each key for each key-value head, linear in the layer's input, the key, the value and the position.

    As in KVzap (arXiv 2601.07891) it stands for the logarithm of the most attention that a query beyond the window
    will pay to the key; what a key is worth falls with its age, by `recency` a position. That all keys lose, so that
    which of two is worth more never changes, and the score can say it once: younger keys begin with more. Computed in
    fp32, autocast or not. Before it is fitted all keys are worth 0, and the oldest stay.

    Parameters: weight (G, hidden + 2 D), of x, k and v; recency (G,), a position, 0 in models without it.
    """

    keep_in_fp32: ClassVar[tuple[str, ...]] = ("*",)
    zero_if_absent: ClassVar[tuple[str, ...]] = ("recency",)

    def __init__(self, hidden_size: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.sizes = hidden_size, head_dim, head_dim
        self.weight = nn.Parameter(torch.empty(num_kv_heads, sum(self.sizes)), requires_grad=False)
        self.recency = nn.Parameter(torch.empty(num_kv_heads), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros; nothing on the meta device."""
        if not self.weight.is_meta:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.recency)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """x (B, T, hidden), k and v (B, G, T, D), positions (B or 1, T) to (B, G, T) fp32 (fp64 for fp64 weights)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        of_x, of_k, of_v = self.weight.to(wide).split(self.sizes, dim=1)
        with torch.autocast(x.device.type, enabled=False):
            score = F.linear(x.to(wide), of_x).transpose(1, 2)
            score = score + torch.matmul(k.to(wide), of_k[..., None])[..., 0]
            score = score + torch.matmul(v.to(wide), of_v[..., None])[..., 0]
            return score + self.recency.to(wide)[:, None] * positions[:, None].to(wide)
