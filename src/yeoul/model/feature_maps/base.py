"""What attention asks of a feature map, and what a map says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.feature_maps.config import FeatureMapConfig
from yeoul.model.feature_maps.registry import FEATURE_MAPS

Choices = Mapping[str, tuple[Any, ...]]


class VectorStatistics(NamedTuple):
    """What a teacher's queries or keys say of the map that will take them in, fp64, of x' = x sqrt(scale).

    Attributes:
        turn: (G, D, D), by what they are multiplied so that queries and keys have one covariance, their product kept.
        centre: (G, D), their mean.
        other: (G, D), the mean of those on the other side.
        length: (G,), root mean square of their length, centred and turned.
        product: (G,), of the two means.
    """

    turn: Tensor
    centre: Tensor
    other: Tensor
    length: Tensor
    product: Tensor


class FeatureMap(nn.Module):
    """What attention asks of a map; one for each key-value head. A new one is a file in this folder:

    a subclass under `@FEATURE_MAPS.register` with `choices`, `make_parameters`, `reset_parameters` and `grouped`, and
    where it can begin on a teacher's vectors, `init_from`. Nothing else names it.

    Maps that do not estimate exp(q.k) itself (all but kernel "exp") have one learned weight for each head, whose
    logarithm is log_mass (G,) fp32: it says how much they weigh against a softmax window, and cancels without one. Its
    first value makes phi(0) . phi(0) = exp(0).

    Args:
        head_dim: D.
        num_kv_heads: G.
        config: which features, how many, and what of them is trained.
        scale: factor of the scores q.k; None means 1 / sqrt(D).
        num_heads: query heads H; None means G.

    Raises:
        UserError: the map cannot have as many features as the configuration asks for.
    """

    choices: ClassVar[Choices] = dict(
        directions=("none",), radii=("none",), sequence=("none",), pairs=(False,), kernel=("none",), learn=()
    )
    """What the settings of `FeatureMapConfig` may be; the first is the default."""
    learned: ClassVar[tuple[str, ...]] = ()
    """Which of `choices["learn"]` are learned unless the configuration says otherwise."""
    options: ClassVar[Mapping[str, float]] = {}
    """Settings that only this map has (`FeatureMapConfig.options`), and their defaults."""
    learns_mass: ClassVar[bool] = False
    """Whether kernel "softmax" may have a learned weight for each vector."""
    signed: ClassVar[bool] = False
    """Whether features have both signs: then their sum is no denominator, and only unit features are given."""
    uses_positions: ClassVar[bool] = False
    """Whether features depend on the position; otherwise positions are not given."""
    keep_in_fp32: ClassVar[tuple[str, ...]] = ("*",)
    """All parameters: few numbers that stand in exponents."""
    scale_parameters: ClassVar[tuple[str, ...]] = ("log_mass",)
    """Those that only multiply a vector's features, which a length of 1 cancels."""
    bandwidths: ClassVar[tuple[float, ...]] = ()
    """Factors of the bandwidth that are worth trying on a teacher's vectors, see `scale_bandwidth`."""

    @classmethod
    def default_features(cls, head_dim: int, pairs: bool) -> int:
        """Number of features where the configuration gives none."""
        return head_dim * (2 if pairs else 1)

    def __init__(
        self,
        head_dim: int,
        num_kv_heads: int,
        config: FeatureMapConfig,
        scale: float | None = None,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.head_dim, self.num_kv_heads = config, head_dim, num_kv_heads
        self.num_heads = num_heads or num_kv_heads
        self.shrink = (scale or head_dim**-0.5) ** 0.5
        self.features = config.size(head_dim)
        self.count = self.features // 2 if config.pairs else self.features  # frequencies F
        self.make_parameters()
        self.reset_parameters()

    def make_parameters(self) -> None:
        """Makes the parameters, without values.

        Raises:
            UserError: the map cannot be what its configuration says.
        """
        raise TypeError(f"{type(self).__name__} has no make_parameters()")

    def grouped(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Log-features of any rows of each key-value head.

        Args:
            x: (B, G, N, D).
            positions: (B or 1, N) int64, of maps with `uses_positions`.

        Returns:
            (B, G, N, M), in fp32 (fp64 for fp64 inputs).
        """
        raise TypeError(f"{type(self).__name__} has no grouped()")

    def grouped_unit(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """The same as features of length 1, which the delta rule reads and writes by."""
        logs = self.grouped(x, positions)
        return F.normalize(torch.exp(logs - logs.detach().amax(-1, keepdim=True)), dim=-1)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Queries (B, H, T, D), H a multiple of G, to log-features (B, H, T, M); positions (B or 1, T)."""
        return self._of_queries(self.grouped, x, positions)

    def of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Log-features of keys (B, G, T, D): (B, G, T, M)."""
        return self.grouped(x, positions)

    def of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-features of one token's queries and of one key, which may be another token's.

        Args:
            q: (B, G, R, D).
            k: (B, G, 1, D).
            q_positions: (B or 1, 1).
            k_positions: (B or 1, 1).

        Returns:
            (B, G, R, M) and (B, G, M).
        """
        return self._of_step(self.grouped, q, k, q_positions, k_positions)

    def unit(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """As `forward`, features of length 1."""
        return self._of_queries(self.grouped_unit, x, positions)

    def unit_of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """As `of_keys`, features of length 1."""
        return self.grouped_unit(x, positions)

    def unit_of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `of_step`, features of length 1."""
        return self._of_step(self.grouped_unit, q, k, q_positions, k_positions)

    @property
    def log_scale(self) -> nn.Parameter | None:
        """Logarithm of the weight of each head's features, (G,); None of maps that estimate exp(q.k) itself."""
        return getattr(self, "log_mass", None)

    def reset_parameters(self) -> None:
        """Initial values; nothing on the meta device."""
        raise TypeError(f"{type(self).__name__} has no reset_parameters()")

    @torch.no_grad()
    def init_from(self, statistics: VectorStatistics) -> None:
        """Initial values by the vectors of a teacher, for a map that takes in queries or keys alone."""

    @torch.no_grad()
    def scale_bandwidth(self, factors: Tensor) -> None:
        """Multiplies the bandwidth of each head, (G,), of maps with `bandwidths`."""
        raise TypeError(f"{type(self).__name__} has no scale_bandwidth()")

    def _of_queries(self, grouped: _Grouped, x: Tensor, positions: Tensor | None) -> Tensor:
        (B, H, T, D), G = x.shape, self.num_kv_heads
        if positions is None and self.uses_positions:
            positions = torch.arange(T, device=x.device)[None]
        repeated = None if positions is None else positions.repeat(1, H // G)
        return grouped(x.reshape(B, G, H // G * T, D), repeated).view(B, H, T, self.features)

    def _of_step(
        self, grouped: _Grouped, q: Tensor, k: Tensor, q_positions: Tensor | None, k_positions: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        positions = None
        if q_positions is not None and k_positions is not None:
            both = torch.broadcast_tensors(q_positions.expand(-1, q.shape[2])[..., None], k_positions[..., None])
            positions = torch.cat((both[0][..., 0], both[1][:, :1, 0]), dim=1)
        features = grouped(torch.cat((q, k), dim=2), positions)
        return features[:, :, :-1], features[:, :, -1]


_Grouped = Callable[[Tensor, Tensor | None], Tensor]


class SeparateFeatureMaps(nn.Module):
    """One map for queries and another of the same kind for keys; they begin alike. Interface of `FeatureMap`.

    Args:
        make: makes a map.
    """

    def __init__(self, make: Callable[[], FeatureMap]) -> None:
        super().__init__()
        self.query_map, self.key_map = make(), make()
        self.features = self.query_map.features
        self.uses_positions, self.signed = self.query_map.uses_positions, self.query_map.signed

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Of queries, (B, H, T, D) to (B, H, T, M)."""
        return self.query_map(x, positions)

    def of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.of_keys`."""
        return self.key_map.of_keys(x, positions)

    def of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.of_step`."""
        return self.query_map.grouped(q, _for_all(q, q_positions)), self.key_map.grouped(k, k_positions)[:, :, 0]

    def unit(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.unit`."""
        return self.query_map.unit(x, positions)

    def unit_of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.unit_of_keys`."""
        return self.key_map.unit_of_keys(x, positions)

    def unit_of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.unit_of_step`."""
        unit_q = self.query_map.grouped_unit(q, _for_all(q, q_positions))
        return unit_q, self.key_map.grouped_unit(k, k_positions)[:, :, 0]

    def reset_parameters(self) -> None:
        """See `FeatureMap.reset_parameters`."""
        self.query_map.reset_parameters()
        self.key_map.reset_parameters()


def _for_all(q: Tensor, positions: Tensor | None) -> Tensor | None:
    """The position of a token for each of its queries (B, G, R, D): (B or 1, R)."""
    return None if positions is None else positions.expand(-1, q.shape[2])


def wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def make_feature_map(
    head_dim: int,
    num_kv_heads: int,
    config: FeatureMapConfig,
    scale: float | None = None,
    num_heads: int | None = None,
) -> FeatureMap | SeparateFeatureMaps:
    """The map, or two of them, that the configuration names; arguments and errors are those of `FeatureMap`."""
    kind: type[FeatureMap] = FEATURE_MAPS[config.name]
    make = lambda: kind(head_dim, num_kv_heads, config, scale, num_heads)  # noqa: E731
    return SeparateFeatureMaps(make) if config.separate else make()
