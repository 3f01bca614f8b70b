"""A learned projection of each head, both signs, normalised, after Hedgehog."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.feature_maps.base import Choices, FeatureMap, wide
from yeoul.model.feature_maps.frequencies import spread
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class HedgehogFeatureMap(FeatureMap):
    """log phi(x) = log softmax of (W x, -W x), one W for each head (arXiv 2402.04347, section 4, with the softmax over
    the features that its authors advise for training). Without a bias; x is not scaled.

    W starts as the identity: 2 D features, or fewer, then of evenly spread coordinates.

    Parameters (fp32): directions (G, D, F), W transposed; log_mass (G,).
    """

    choices: ClassVar[Choices] = dict(
        directions=("identity",), radii=("none",), sequence=("none",), pairs=(True,), kernel=("softmax",),
        learn=("directions",),
    )  # fmt: skip
    learned: ClassVar[tuple[str, ...]] = ("directions",)

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        if self.count > self.head_dim:
            raise UserError(
                f"the feature map 'hedgehog' has at most {2 * self.head_dim} features for heads of {self.head_dim}, "
                f"not {self.features}"
            )
        learned = "directions" in self.config.learn
        self.directions = nn.Parameter(torch.empty(self.num_kv_heads, self.head_dim, self.count), requires_grad=learned)
        self.log_mass = nn.Parameter(torch.empty(self.num_kv_heads))

    def reset_parameters(self) -> None:
        """W the identity; nothing on the meta device."""
        if self.directions.is_meta:
            return
        with torch.no_grad():
            self.directions.copy_(torch.eye(self.head_dim)[:, spread(self.count, self.head_dim)])
            self.log_mass.fill_(math.log(self.features) / 2)

    def grouped(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.grouped`."""
        x = wide(x)
        projected = torch.matmul(x, self.directions.to(x.dtype))
        logs = torch.cat((projected, -projected), dim=-1).log_softmax(-1)
        return logs + self.log_mass.to(x.dtype)[:, None, None]
