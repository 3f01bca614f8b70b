"""Feature maps of linear attention behind one interface: vectors in, logarithms of positive features out.

Every map turns x (B, G, N, D) into log phi(x) (B, G, N, M), and attention weighs a key by phi(q) . phi(k). Which map is
meant stands in `FeatureMapConfig.name`:

| name | log phi_i(x) | source |
|---|---|---|
| performer | w_i . x' - |x'|^2 / 2 - log(M) / 2, w_i Gaussian | Choromanski and others, arXiv 2009.14794, Lemma 1 |
| pff | r_i v_i . x' - |x'|^2 / 2 - log(M) / 2, v_i on the sphere, r_i quasi-random | arXiv 2403.19928, section 3.2 |
| wpff | the same with a learned weight in place of 1 / sqrt(M) | the same, section 3.2 |
| dcf, wdcf | t_i c_i . x' + log d_i, c_i rows of the DCT | the same, section 3.3: D exp(T C x) |
| dijiang-code | x . (column i of the DCT) t_i, then log-softmax | the authors' code |
| dijiang | see `FrequencyFeatureMap` | this package |
| hedgehog | log-softmax of (W x, -W x) | Zhang and others, arXiv 2402.04347, section 4 |
| elu | log(elu(x_i) + 1) | Katharopoulos and others, arXiv 2006.16236, equation 7 |
| fourier | no logarithm: cos and sin of t_i c_i . x' + p_i, see `FourierFeatureMap` | Rahimi and Recht 2007 |

x' = x sqrt(scale) with scale 1 / sqrt(D) unless given, so that q' . k' is the score of softmax attention.

Two well-known ones are not here. cosFormer's features (arXiv 2202.08791) depend on the position, of which the window of
a hybrid keeps none, and end at a fixed length. RetNet (arXiv 2307.08621) has signed features without a denominator, so
there is no logarithm and nothing that a softmax window could share; its decay is `FeatureMapConfig.decay`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.config import FeatureMapConfig
from yeoul.ops.fourier import fourier_features

BANDWIDTH = 1.5
"""Of "fourier", over the root mean square length of the vectors: two unrelated ones of the same kind give
exp(-1.5^2) = 0.1, and those that match give much more (found on the heads of a trained model)."""


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


class FeatureMap(nn.Module):
    """What attention asks of a map; one for each key-value head.

    Maps that do not estimate exp(q.k) itself (all but kernel "exp") have one learned mass for each head, log_mass (G,)
    fp32: it says how much they weigh against a softmax window, and cancels without one. Its first value makes
    phi(0) . phi(0) = exp(0).

    Args:
        head_dim: D.
        num_kv_heads: G.
        config: which features, how many, and what of them is trained.
        scale: factor of the scores q.k; None means 1 / sqrt(D).

    Raises:
        UserError: the map cannot have as many features as the configuration asks for.
    """

    def __init__(self, head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None) -> None:
        super().__init__()
        self.config, self.head_dim, self.num_kv_heads = config, head_dim, num_kv_heads
        self.shrink = (scale or head_dim**-0.5) ** 0.5
        self.features = config.size(head_dim)
        self.count = self.features // 2 if config.pairs else self.features  # frequencies F

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, T, D), H a multiple of G, to log-features (B, H, T, M), in fp32 (fp64 for fp64 inputs)."""
        B, H, T, D = x.shape
        return self.grouped(x.reshape(B, self.num_kv_heads, H // self.num_kv_heads * T, D)).view(B, H, T, self.features)

    def grouped(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to log-features (B, G, N, M)."""
        raise TypeError(f"{type(self).__name__} has no grouped()")

    def of_keys(self, x: Tensor) -> Tensor:
        """Log-features of keys (B, G, T, D): (B, G, T, M)."""
        return self(x)

    def of_step(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Log-features of one token's queries (B, G, R, D) and key (B, G, 1, D): (B, G, R, M) and (B, G, M)."""
        logs = self.grouped(torch.cat((q, k), dim=2))
        return logs[:, :, :-1], logs[:, :, -1]

    def grouped_unit(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to features of length 1, (B, G, N, M)."""
        logs = self.grouped(x)
        return F.normalize(torch.exp(logs - logs.detach().amax(-1, keepdim=True)), dim=-1)

    def unit(self, x: Tensor) -> Tensor:
        """(B, H, T, D) queries to features of length 1, (B, H, T, M): what the delta rule reads by."""
        B, H, T, D = x.shape
        return self.grouped_unit(x.reshape(B, self.num_kv_heads, H // self.num_kv_heads * T, D)).view(
            B, H, T, self.features
        )

    def unit_of_keys(self, x: Tensor) -> Tensor:
        """The same of keys (B, G, T, D): (B, G, T, M)."""
        return self.grouped_unit(x)

    def unit_of_step(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """As `of_step`, features of length 1."""
        features = self.grouped_unit(torch.cat((q, k), dim=2))
        return features[:, :, :-1], features[:, :, -1]

    def reset_parameters(self) -> None:
        """Initial values; nothing on the meta device."""
        raise TypeError(f"{type(self).__name__} has no reset_parameters()")


class SeparateFeatureMaps(nn.Module):
    """One map for queries and another of the same kind for keys; they begin alike. Interface of `FeatureMap`.

    Args:
        make: makes a map.
    """

    def __init__(self, make: Callable[[], FeatureMap]) -> None:
        super().__init__()
        self.query_map, self.key_map = make(), make()
        self.features = self.query_map.features

    def forward(self, x: Tensor) -> Tensor:
        """Of queries, (B, H, T, D) to (B, H, T, M)."""
        return self.query_map(x)

    def of_keys(self, x: Tensor) -> Tensor:
        """See `FeatureMap.of_keys`."""
        return self.key_map(x)

    def of_step(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.of_step`."""
        return self.query_map.grouped(q), self.key_map.grouped(k)[:, :, 0]

    def unit(self, x: Tensor) -> Tensor:
        """See `FeatureMap.unit`."""
        return self.query_map.unit(x)

    def unit_of_keys(self, x: Tensor) -> Tensor:
        """See `FeatureMap.unit_of_keys`."""
        return self.key_map.unit_of_keys(x)

    def unit_of_step(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.unit_of_step`."""
        return self.query_map.grouped_unit(q), self.key_map.grouped_unit(k)[:, :, 0]

    def reset_parameters(self) -> None:
        """See `FeatureMap.reset_parameters`."""
        self.query_map.reset_parameters()
        self.key_map.reset_parameters()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class FrequencyFeatureMap(FeatureMap):
    """Exponentials of projections on F directions c_i with frequencies t_i: all maps but "hedgehog" and "elu".

    log phi_i(x) = log w_i + t_i c_i . x' - |x'|^2 / 2 (kernel "exp"), so that phi(q) . phi(k) estimates
    exp(scale q.k); with `pairs` each frequency also appears with -t_i. Kernel "softmax" normalises the features of
    a vector to sum 1. The maps are choices within this formula:

    - "dijiang": DCT rows, chi radii from a Sobol sequence, pairs, kernel "softmax"; everything may be chosen.
    - "performer": w = t c is Gaussian: chi radii and directions uniform on the sphere, both random, the directions
      orthogonal in blocks of D unless `directions` is "random". With `pairs` it is Performer's hyperbolic variant.
    - "pff", "wpff": radii from a low-discrepancy sequence, independent directions on the sphere. The paper prints
      exp(-|x|^2); what estimates exp(q.k) is exp(-|x|^2 / 2), which is used.
    - "dcf", "wdcf": DCT rows, chi radii from a low-discrepancy sequence and, as the paper's formula, no term in
      |x|^2: the kernel is exp(q.k) exp(|q|^2 / 2) exp(|k|^2 / 2) up to its error, so long keys weigh more.
    - "dijiang-code": the columns of the DCT matrix (x @ C, where the paper has C x), signed normal radii, x not scaled.

    With `mass` "learned" a vector's features of kernel "softmax" do not sum to the same for all vectors, but to the
    exponential of log_mass + mass_direction . x' + temper (L - log M), where L is the logarithm of the sum before
    the normalisation. temper 0 is the softmax kernel, 1 the exponential one without its term in |x'|^2 / 2; what
    queries and keys have in common (their means) is a mass_direction, see `yeoul.adapt.linear_init`.

    Parameters (fp32): frequencies (G, F), log_weights (G, M); directions (G, D, F) unless they are the DCT's and not
    learned; log_mass (G,) of kernel "softmax", and with a learned mass mass_direction (G, D) and temper (G,).
    """

    def __init__(self, head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None) -> None:
        super().__init__(head_dim, num_kv_heads, config, scale)
        self.is_official = config.name == "dijiang-code"
        self.has_norm_term = config.kernel == "exp" and config.name not in ("dcf", "wdcf")
        if self.is_official:
            self.shrink = 1.0
        trained = config.learn
        G = num_kv_heads
        self.frequencies = nn.Parameter(torch.empty(G, self.count), requires_grad="frequencies" in trained)
        self.log_weights = nn.Parameter(torch.empty(G, self.features), requires_grad="weights" in trained)
        if config.directions != "dct" or "directions" in trained:
            self.directions = nn.Parameter(torch.empty(G, head_dim, self.count), requires_grad="directions" in trained)
        if config.kernel == "softmax":
            self.log_mass = nn.Parameter(torch.empty(G))
            if config.mass == "learned":
                self.mass_direction = nn.Parameter(torch.empty(G, head_dim))
                self.temper = nn.Parameter(torch.empty(G))
        self.reset_parameters()

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
                if self.config.directions != "dct":
                    self.directions[g] = random_directions(self.head_dim, self.count, self.config, g)
            self.log_weights.fill_(-math.log(self.features) / 2)
            if self.config.directions == "dct" and "directions" in self.config.learn:
                self.directions.copy_(self._dct())
            if self.config.kernel == "softmax":
                self.log_mass.fill_(math.log(self.features) / 2)
                if self.config.mass == "learned":
                    self.mass_direction.zero_()
                    self.temper.zero_()

    def _dct(self) -> Tensor:
        """(D, F): rows of the DCT as columns, every one in turn; with fewer frequencies than rows, evenly spread."""
        matrix = dct_matrix(self.head_dim)
        return (matrix if self.is_official else matrix.T)[:, _spread(self.count, self.head_dim)]

    def grouped(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to log-features (B, G, N, M)."""
        x = _wide(x) * self.shrink
        directions = self.directions if hasattr(self, "directions") else self._dct().to(x.device)
        frequencies = directions.to(x.dtype) * self.frequencies.to(x.dtype)[:, None]  # (G, D, F)
        projected = torch.matmul(x, frequencies)  # (B, G, N, F)
        if self.config.pairs:
            projected = torch.cat((projected, -projected), dim=-1)
        logs = projected + self.log_weights.to(x.dtype)[:, None]
        if self.config.kernel == "softmax":
            return self._normalised(logs, x)
        return logs - x.square().sum(-1, keepdim=True) / 2 if self.has_norm_term else logs

    def _normalised(self, logs: Tensor, x: Tensor) -> Tensor:
        """Kernel "softmax": log-features (B, G, N, M) of x' (B, G, N, D) whose sum is the vector's mass."""
        per_head = lambda parameter: parameter.to(x.dtype)[:, None, None]  # noqa: E731
        mass = per_head(self.log_mass)
        if self.config.mass == "constant":
            return logs.log_softmax(-1) + mass
        total = logs.logsumexp(-1, keepdim=True)
        linear = torch.matmul(x, self.mass_direction.to(x.dtype)[..., None])  # (B, G, N, 1)
        return logs - total + mass + linear + per_head(self.temper) * (total - math.log(self.features))


class HedgehogFeatureMap(FeatureMap):
    """log phi(x) = log softmax of (W x, -W x), one W for each head (arXiv 2402.04347, section 4, with the softmax over
    the features that its authors advise for training). Without a bias; x is not scaled.

    W starts as the identity: 2 D features, or fewer, then of evenly spread coordinates.

    Parameters (fp32): directions (G, D, F), W transposed; log_mass (G,).
    """

    def __init__(self, head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None) -> None:
        super().__init__(head_dim, num_kv_heads, config, scale)
        if self.count > head_dim:
            raise UserError(
                f"the feature map 'hedgehog' has at most {2 * head_dim} features for heads of {head_dim}, "
                f"not {self.features}"
            )
        learned = "directions" in config.learn
        self.directions = nn.Parameter(torch.empty(num_kv_heads, head_dim, self.count), requires_grad=learned)
        self.log_mass = nn.Parameter(torch.empty(num_kv_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W the identity; nothing on the meta device."""
        if self.directions.is_meta:
            return
        with torch.no_grad():
            self.directions.copy_(torch.eye(self.head_dim)[:, _spread(self.count, self.head_dim)])
            self.log_mass.fill_(math.log(self.features) / 2)

    def grouped(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to log-features (B, G, N, M)."""
        x = _wide(x)
        projected = torch.matmul(x, self.directions.to(x.dtype))
        logs = torch.cat((projected, -projected), dim=-1).log_softmax(-1)
        return logs + self.log_mass.to(x.dtype)[:, None, None]


class EluFeatureMap(FeatureMap):
    """phi(x) = elu(x) + 1, as many features as channels (arXiv 2006.16236, equation 7); x is not scaled.

    Its logarithm is x below 0 and log(1 + x) above. Parameter (fp32): log_mass (G,).
    """

    def __init__(self, head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None) -> None:
        super().__init__(head_dim, num_kv_heads, config, scale)
        if self.features != head_dim:
            raise UserError(
                f"the feature map 'elu' has {head_dim} features for heads of {head_dim}, not {self.features}"
            )
        self.log_mass = nn.Parameter(torch.empty(num_kv_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The mass; nothing on the meta device."""
        if not self.log_mass.is_meta:
            nn.init.constant_(self.log_mass, -math.log(self.features) / 2)

    def grouped(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to log-features (B, G, N, M)."""
        x = _wide(x)
        return x.clamp_max(0) + x.clamp_min(0).log1p() + self.log_mass.to(x.dtype)[:, None, None]


class FourierFeatureMap(FeatureMap):
    """cos and sin of projections: features of length 1 whose product is a bell of the distance, for the delta rule.

    phi(x) = (w_i cos(t_i c_i . x' + p_i), w_i sin(t_i c_i . x' + p_i)) with the squares of w summing to 1, so that
    phi(q) . phi(k) is the mean of cos(t_i c_i . (q' - k')), near exp(-bandwidth^2 |q' - k'|^2 / 2) for Gaussian t c
    (Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines", section 3). Their error does not grow
    with the norms of queries and keys, as that of exponential features does; but the features have both signs, so that
    no sum of them can be a denominator: only the delta rule takes them.

    Parameters (fp32): directions (G, D, F), frequencies (G, F), phases (G, F), log_weights (G, F); M = 2 F.
    """

    def __init__(self, head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None) -> None:
        super().__init__(head_dim, num_kv_heads, config, scale)
        G, count, trained = num_kv_heads, self.count, config.learn
        self.frequencies = nn.Parameter(torch.empty(G, count), requires_grad="frequencies" in trained)
        self.directions = nn.Parameter(torch.empty(G, head_dim, count), requires_grad="directions" in trained)
        self.phases = nn.Parameter(torch.empty(G, count), requires_grad="directions" in trained)
        self.log_weights = nn.Parameter(torch.empty(G, count), requires_grad="weights" in trained)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bandwidth `BANDWIDTH` for vectors of unit variance, no phases, equal weights; nothing on the meta device."""
        if self.frequencies.is_meta:
            return
        with torch.no_grad():
            for g in range(self.num_kv_heads):
                u = quasi_random(self.count, self.config, g)
                self.frequencies[g] = chi_quantile(u, self.head_dim) * BANDWIDTH / (self.head_dim**0.5 * self.shrink)
                if self.config.directions == "dct":
                    self.directions[g] = dct_matrix(self.head_dim).T[:, _spread(self.count, self.head_dim)]
                else:
                    self.directions[g] = random_directions(self.head_dim, self.count, self.config, g)
            self.phases.zero_()
            self.log_weights.zero_()

    def grouped_unit(self, x: Tensor) -> Tensor:
        """(B, G, N, D), any rows of each key-value head, to features of length 1, (B, G, N, M)."""
        x = _wide(x) * self.shrink
        waves = self.directions.to(x.dtype) * self.frequencies.to(x.dtype)[:, None]  # (G, D, F)
        angles = torch.matmul(x, waves) + self.phases.to(x.dtype)[:, None]  # (B, G, N, F)
        weights = self.log_weights.to(x.dtype).softmax(-1).sqrt()[:, None]
        return fourier_features(angles, weights)


def _spread(count: int, size: int) -> Tensor:
    """`count` indices below `size`: every one in turn, or evenly spread where there are fewer."""
    index = torch.arange(count)
    return (index * size // count if count < size else index) % size


def make_feature_map(
    head_dim: int, num_kv_heads: int, config: FeatureMapConfig, scale: float | None = None
) -> FeatureMap | SeparateFeatureMaps:
    """The map, or two of them, that the configuration names; arguments and errors are those of `FeatureMap`."""
    kinds: dict[str, type[FeatureMap]] = {
        "hedgehog": HedgehogFeatureMap, "elu": EluFeatureMap, "fourier": FourierFeatureMap,
    }  # fmt: skip
    make = lambda: kinds.get(config.name, FrequencyFeatureMap)(head_dim, num_kv_heads, config, scale)  # noqa: E731
    return SeparateFeatureMaps(make) if config.separate else make()
