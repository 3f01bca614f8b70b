"""Random Fourier features, for the delta rule."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from yeoul.model.feature_maps.base import Choices, FeatureMap, VectorStatistics, wide
from yeoul.model.feature_maps.frequencies import (
    LEARNED,
    SEQUENCES,
    chi_quantile,
    dct_matrix,
    quasi_random,
    random_directions,
    spread,
)  # fmt: skip
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.ops.fourier import fourier_features

BANDWIDTH = 1.5
"""Of "fourier", over the root mean square length of the vectors: two unrelated ones of the same kind give
exp(-1.5^2) = 0.1, and those that match give much more (found on the heads of a trained model)."""


@FEATURE_MAPS.register
class FourierFeatureMap(FeatureMap):
    """cos and sin of projections: features of length 1 whose product is a bell of the distance, for the delta rule.

    phi(x) = (w_i cos(t_i c_i . x' + p_i), w_i sin(t_i c_i . x' + p_i)) with the squares of w summing to 1, so that
    phi(q) . phi(k) is the mean of cos(t_i c_i . (q' - k')), near exp(-bandwidth^2 |q' - k'|^2 / 2) for Gaussian t c
    (Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines", section 3). Their error does not grow
    with the norms of queries and keys, as that of exponential features does; but the features have both signs, so that
    no sum of them can be a denominator: only the delta rule takes them.

    Parameters (fp32): directions (G, D, F), frequencies (G, F), phases (G, F), log_weights (G, F); M = 2 F.
    """

    choices: ClassVar[Choices] = dict(
        directions=("orthogonal", "dct", "random"), radii=("chi",), sequence=SEQUENCES, pairs=(True,),
        kernel=("cosine",), learn=LEARNED,
    )  # fmt: skip
    learned: ClassVar[tuple[str, ...]] = LEARNED
    signed: ClassVar[bool] = True
    scale_parameters: ClassVar[tuple[str, ...]] = ()
    bandwidths: ClassVar[tuple[float, ...]] = (0.7, 1.0, 1.4)

    @classmethod
    def default_features(cls, head_dim: int, pairs: bool) -> int:
        """Eight for each channel."""
        return head_dim * 8

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        G, count, trained = self.num_kv_heads, self.count, self.config.learn
        self.frequencies = nn.Parameter(torch.empty(G, count), requires_grad="frequencies" in trained)
        self.directions = nn.Parameter(torch.empty(G, self.head_dim, count), requires_grad="directions" in trained)
        self.phases = nn.Parameter(torch.empty(G, count), requires_grad="directions" in trained)
        self.log_weights = nn.Parameter(torch.empty(G, count), requires_grad="weights" in trained)

    def reset_parameters(self) -> None:
        """Bandwidth `BANDWIDTH` for vectors of unit variance, no phases, equal weights; nothing on the meta device."""
        if self.frequencies.is_meta:
            return
        with torch.no_grad():
            for g in range(self.num_kv_heads):
                u = quasi_random(self.count, self.config, g)
                self.frequencies[g] = chi_quantile(u, self.head_dim) * BANDWIDTH / (self.head_dim**0.5 * self.shrink)
                if self.config.directions == "dct":
                    self.directions[g] = dct_matrix(self.head_dim).T[:, spread(self.count, self.head_dim)]
                else:
                    self.directions[g] = random_directions(self.head_dim, self.count, self.config, g)
            self.phases.zero_()
            self.log_weights.zero_()

    def grouped_unit(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.grouped_unit`."""
        x = wide(x) * self.shrink
        waves = self.directions.to(x.dtype) * self.frequencies.to(x.dtype)[:, None]  # (G, D, F)
        angles = torch.matmul(x, waves) + self.phases.to(x.dtype)[:, None]  # (B, G, N, F)
        weights = self.log_weights.to(x.dtype).softmax(-1).sqrt()[:, None]
        return fourier_features(angles, weights)

    @torch.no_grad()
    def init_from(self, statistics: VectorStatistics) -> None:
        """Turns and centres the features, and narrows them so that two unrelated vectors of this teacher have the
        product that `BANDWIDTH` says, whatever their lengths are."""
        directions = statistics.turn.to(self.directions) @ self.directions
        self.directions.copy_(directions)
        narrowed = (self.head_dim**0.5 * self.shrink) / statistics.length
        self.frequencies.mul_(narrowed.to(directions)[:, None])
        self.phases.sub_((statistics.centre.to(directions)[:, None] @ directions)[:, 0] * self.frequencies)

    @torch.no_grad()
    def scale_bandwidth(self, factors: Tensor) -> None:
        """See `FeatureMap.scale_bandwidth`: the centre stays."""
        self.frequencies.mul_(factors[:, None])
        self.phases.mul_(factors[:, None])
