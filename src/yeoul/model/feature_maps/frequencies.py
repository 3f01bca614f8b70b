"""Exponentials of projections with frequencies, and where directions and frequencies come from: all of DiJiang's kin.

The maps themselves are `dijiang`, `performer`, `pff`, `wpff`, `dcf`, `wdcf` and `dijiang_code`.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from yeoul.model.feature_maps.base import FeatureMap, VectorStatistics, wide
from yeoul.model.feature_maps.config import FeatureMapConfig

SEQUENCES = ("sobol", "stratified", "random")
LEARNED = ("weights", "frequencies", "directions")


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept here serves training too
def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II matrix (size, size) fp32: row i is the i-th frequency (Ahmed, Natarajan, Rao 1974)."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def quasi_random(count: int, config: FeatureMapConfig, stream: int) -> Tensor:
    """`count` points in (0, 1), (count,) float64, by the sequence that the configuration names.

    Args:
        count: number of points.
        config: `sequence` and `seed` are read.
        stream: index of an independent scrambling: one for each head.
    """
    seed = _seed(config, stream)
    generator = torch.Generator().manual_seed(seed)
    if config.sequence == "random":
        points = torch.rand(count, dtype=torch.float64, generator=generator)
    elif config.sequence == "stratified":
        strata = torch.randperm(count, generator=generator).double()
        points = (strata + torch.rand(count, dtype=torch.float64, generator=generator)) / count
    else:
        points = torch.quasirandom.SobolEngine(1, scramble=True, seed=seed).draw(count, dtype=torch.float64)[:, 0]
    return points.clamp(1e-6, 1 - 1e-6)


def random_directions(head_dim: int, count: int, config: FeatureMapConfig, stream: int) -> Tensor:
    """Unit vectors as columns, (D, count) float64, each uniform on the sphere.

    Args:
        head_dim: D.
        count: number of vectors.
        config: with `directions` "orthogonal" every D of them are orthogonal to one another (Performer's blocks);
            with "random" all are independent. `seed` is read.
        stream: index of an independent draw: one for each head.
    """
    generator = torch.Generator().manual_seed(_seed(config, stream) + 500_009)  # radii must not share these numbers
    if config.directions == "random":
        gaussian = torch.randn(head_dim, count, dtype=torch.float64, generator=generator)
        return gaussian / gaussian.norm(dim=0)
    blocks = torch.randn(-(-count // head_dim), head_dim, head_dim, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(blocks)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # without it not uniform (Mezzadri 2007)
    return q.transpose(0, 1).reshape(head_dim, -1)[:, :count]


def chi_quantile(u: Tensor, degrees: int) -> Tensor:
    """Inverse distribution function of the norm of a Gaussian vector; u and result of any shape, float64.

    Bisection on the regularised incomplete gamma function: P(|w| <= r) = P(degrees / 2, r^2 / 2).
    """
    low, high = torch.zeros_like(u), torch.full_like(u, math.sqrt(degrees) + 8)
    shape = torch.full_like(u, degrees / 2)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle**2 / 2) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _seed(config: FeatureMapConfig, stream: int) -> int:
    return config.seed * 1_000_003 + stream


class FrequencyFeatureMap(FeatureMap):
    """Exponentials of projections on F directions c_i with frequencies t_i.

    log phi_i(x) = log w_i + t_i c_i . x' - |x'|^2 / 2 (kernel "exp"), so that phi(q) . phi(k) estimates
    exp(scale q.k); with `pairs` each frequency also appears with -t_i. Kernel "softmax" normalises the features of
    a vector to sum 1. The maps are choices within this
    formula, each in the file of its name.

    With `mass` "learned" a vector's features of kernel "softmax" do not sum to the same for all vectors, but to the
    exponential of log_mass + mass_direction . x' + temper (L - log M), where L is the logarithm of the sum before
    the normalisation. temper 0 is the softmax kernel, 1 the exponential one without its term in |x'|^2 / 2; what
    queries and keys have in common (their means) is a mass_direction, see `yeoul.adapt.linear_init`.

    Parameters (fp32): frequencies (G, F), log_weights (G, M); directions (G, D, F) unless they are the DCT's and not
    learned; log_mass (G,) of kernel "softmax", and with a learned mass mass_direction (G, D) and temper (G,).
    """

    learns_mass: ClassVar[bool] = True
    scale_parameters: ClassVar[tuple[str, ...]] = ("log_mass", "mass_direction", "temper")
    has_norm_term: ClassVar[bool] = True
    """Whether the logarithms of kernel "exp" have the term -|x'|^2 / 2."""

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        config, trained, G, D = self.config, self.config.learn, self.num_kv_heads, self.head_dim
        self.frequencies = nn.Parameter(torch.empty(G, self.count), requires_grad="frequencies" in trained)
        self.log_weights = nn.Parameter(torch.empty(G, self.features), requires_grad="weights" in trained)
        self.directions: nn.Parameter | None = None
        if config.directions != "dct" or "directions" in trained:
            self.directions = nn.Parameter(torch.empty(G, D, self.count), requires_grad="directions" in trained)
        if config.kernel == "softmax":
            self.log_mass = nn.Parameter(torch.empty(G))
            if config.mass == "learned":
                self.mass_direction = nn.Parameter(torch.empty(G, D))
                self.temper = nn.Parameter(torch.empty(G))

    def reset_parameters(self) -> None:
        """Frequencies and directions by the configuration, equal weights; nothing on the meta device."""
        if self.frequencies.is_meta:
            return
        with torch.no_grad():
            for g in range(self.num_kv_heads):
                u = quasi_random(self.count, self.config, g)
                if self.config.radii == "chi":
                    radii = chi_quantile(u, self.head_dim)
                else:
                    radii = math.sqrt(2) * torch.erfinv(2 * u - 1)
                self.frequencies[g] = radii
                if self.directions is not None and self.config.directions != "dct":
                    self.directions[g] = random_directions(self.head_dim, self.count, self.config, g)
            self.log_weights.fill_(-math.log(self.features) / 2)
            if self.directions is not None and self.config.directions == "dct":
                self.directions.copy_(self.dct(self.directions.device))
            if self.config.kernel == "softmax":
                self.log_mass.fill_(math.log(self.features) / 2)
                if self.config.mass == "learned":
                    self.mass_direction.zero_()
                    self.temper.zero_()

    def dct(self, device: torch.device) -> Tensor:
        """(D, F): rows of the DCT as columns, every one in turn; with fewer frequencies than rows, evenly spread."""
        return dct_columns(self.head_dim, self.count, device)

    def grouped(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.grouped`."""
        x = wide(x) * self.shrink
        directions = self.directions if self.directions is not None else self.dct(x.device)
        frequencies = directions.to(x.dtype) * self.frequencies.to(x.dtype)[:, None]  # (G, D, F)
        projected = torch.matmul(x, frequencies)  # (B, G, N, F)
        if self.config.pairs:
            projected = torch.cat((projected, -projected), dim=-1)
        logs = projected + self.log_weights.to(x.dtype)[:, None]
        if self.config.kernel == "softmax":
            return self._normalised(logs, x)
        return logs - x.square().sum(-1, keepdim=True) / 2 if self.has_norm_term else logs

    @torch.no_grad()
    def init_from(self, statistics: VectorStatistics) -> None:
        """Turns and centres the features as `yeoul.adapt.linear_init` derives it; directions of the DCT stay.

        With a learned weight, what the means contribute is exact: a.k' of each key, b.q' - a.b of each query.
        """
        if self.directions is None:
            return
        directions = statistics.turn.to(self.directions) @ self.directions
        self.directions.copy_(directions)
        shift = (statistics.centre.to(directions)[:, None] @ directions)[:, 0] * self.frequencies  # (G, F)
        self.log_weights.sub_(torch.cat((shift, -shift), -1) if self.config.pairs else shift)
        if self.config.mass == "learned":
            self.mass_direction.copy_(statistics.other)
            self.log_mass.sub_(statistics.product.to(self.log_mass) / 2)

    def _normalised(self, logs: Tensor, x: Tensor) -> Tensor:
        """Kernel "softmax": log-features (B, G, N, M) of x' (B, G, N, D) whose sum is the vector's weight."""
        per_head = lambda parameter: parameter.to(x.dtype)[:, None, None]  # noqa: E731
        log_scale = per_head(self.log_mass)
        if self.config.mass == "constant":
            return logs.log_softmax(-1) + log_scale
        total = logs.logsumexp(-1, keepdim=True)
        linear = torch.matmul(x, self.mass_direction.to(x.dtype)[..., None])  # (B, G, N, 1)
        return logs - total + log_scale + linear + per_head(self.temper) * (total - math.log(self.features))


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # as above
def dct_columns(size: int, count: int, device: torch.device, *, rows: bool = True) -> Tensor:
    """(size, count) fp32: rows of the DCT matrix as columns, or its columns, spread; brought to a device once."""
    matrix = dct_matrix(size)
    return (matrix.T if rows else matrix)[:, spread(count, size)].to(device)


def spread(count: int, size: int) -> Tensor:
    """`count` indices below `size`: every one in turn, or evenly spread where there are fewer."""
    index = torch.arange(count)
    return (index * size // count if count < size else index) % size
