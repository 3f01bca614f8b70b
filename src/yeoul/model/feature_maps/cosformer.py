"""Rectified features that weigh near positions more, after cosFormer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.feature_maps.base import FeatureMap, wide
from yeoul.model.feature_maps.registry import FEATURE_MAPS

LEAST = 1e-6
"""Least feature before it is a logarithm."""


@FEATURE_MAPS.register
class CosformerFeatureMap(FeatureMap):
    """relu(x) cos(pi i / 2L) and relu(x) sin(pi i / 2L) at position i, so that a key at distance d weighs
    relu(q) . relu(k) cos(pi d / 2L) (Qin and others 2022, arXiv 2202.08791, section 3.3); x is not scaled.

    L is the option "length": positions from it on count as the last of them, because the cosine would turn negative
    there. Features are at least `LEAST`, so that they have logarithms. Parameter (fp32): log_mass (G,).
    """

    options: ClassVar[Mapping[str, float]] = {"length": 8192}
    uses_positions: ClassVar[bool] = True

    @classmethod
    def default_features(cls, head_dim: int, pairs: bool) -> int:
        """Two for each channel."""
        return 2 * head_dim

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        if self.features != 2 * self.head_dim:
            raise UserError(
                f"the feature map 'cosformer' has {2 * self.head_dim} features for heads of {self.head_dim}, "
                f"not {self.features}"
            )
        self.length = self.config.option("length")
        self.log_mass = nn.Parameter(torch.empty(self.num_kv_heads))

    def reset_parameters(self) -> None:
        """Rectified vectors of unit variance have the product D / 2 pi on average; nothing on the meta device."""
        if not self.log_mass.is_meta:
            nn.init.constant_(self.log_mass, -math.log(self.head_dim / (2 * math.pi)) / 2)

    def grouped(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.grouped`; without positions the rows stand at 0, 1, 2, ..."""
        x = wide(x)
        if positions is None:
            positions = torch.arange(x.shape[2], device=x.device)[None]
        positions = positions[:, None] if positions.dim() == 2 else positions  # (B or 1, G or 1, T)
        angle = (positions.to(x.dtype).clamp(0, self.length) * (math.pi / 2 / self.length))[..., None]
        logs = x.clamp_min(LEAST).log() + self.log_mass.to(x.dtype)[:, None, None]
        return torch.cat((logs + angle.cos().clamp_min(LEAST).log(), logs + angle.sin().clamp_min(LEAST).log()), dim=-1)
