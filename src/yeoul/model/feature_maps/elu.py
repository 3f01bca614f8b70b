"""elu + 1, the first map of linear attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.feature_maps.base import FeatureMap, wide
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class EluFeatureMap(FeatureMap):
    """phi(x) = elu(x) + 1, as many features as channels (arXiv 2006.16236, equation 7); x is not scaled.

    Its logarithm is x below 0 and log(1 + x) above. Parameter (fp32): log_mass (G,).
    """

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        if self.features != self.head_dim:
            raise UserError(
                f"the feature map 'elu' has {self.head_dim} features for heads of {self.head_dim}, not {self.features}"
            )
        self.log_mass = nn.Parameter(torch.empty(self.num_kv_heads))

    def reset_parameters(self) -> None:
        """The weight; nothing on the meta device."""
        if not self.log_mass.is_meta:
            nn.init.constant_(self.log_mass, -math.log(self.features) / 2)

    def grouped(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.grouped`."""
        x = wide(x)
        return x.clamp_max(0) + x.clamp_min(0).log1p() + self.log_mass.to(x.dtype)[:, None, None]
