"""What a token says of itself beside its key and value: how strongly it is written, how much is forgotten."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """A number of each token for each key-value head: weight (G, hidden) and bias (G,), (B, T, hidden) to (B, G, T).

    The weight begins at 0, so that all tokens begin with the same, `start`, before the caller's nonlinearity. It is
    computed in fp32, autocast or not, and the bias stays fp32 in a model of bf16: a softplus and an exponential follow,
    and a half-life of some thousand positions is a bias near -9, of which bf16 knows only every sixteenth.
    """

    keep_in_fp32: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(self, hidden_size: int, start: list[float]) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(len(start), hidden_size))
        self.bias = nn.Parameter(torch.empty(len(start)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As said of the class; nothing on the meta device."""
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.zero_()
                self.bias.copy_(torch.tensor(self.start))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (B, G, T), in fp32 (fp64 for fp64 weights)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide)).transpose(1, 2)


def bias_of_half_life(positions: float) -> float:
    """Bias of a gate whose log-decay is -softplus: half of what is remembered is gone after so many positions."""
    return math.log(math.expm1(math.log(2) / positions))
