"""One feature for each code of a codebook: a key counts for the code that it is nearest to."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.feature_maps.base import Choices, FeatureMap, wide
from yeoul.model.feature_maps.registry import FEATURE_MAPS


@FEATURE_MAPS.register
class CodebookFeatureMap(FeatureMap):
    """Keys are quantized: with key k' and query q' times the root of the scale,

        c(k) = argmax_m (a_m . k' + b_m),    log phi_m(k) = w . k' - u_m  where m = c(k), otherwise -inf,
        log phi_m(q) = r_m . q' + s_m,

    so that a state holds for each code the sum of its keys' values, and a query weighs the codes. With r_m the mean of
    a code's keys, w the mean of the queries and u_m = w . r_m this is exp(q'.k') but for what (q' - w) makes of the
    distance of k' from r_m. That keys may be quantized and softmax attention becomes linear is Transformer-VQ's (Lingle
    2023, arXiv 2309.16354, section 3); there the codes are learned with the model. Here they are found among the keys
    of a trained teacher, in the metric of its queries, and each query head weighs them by an r and s of its own
    (`yeoul.adapt.codebook_init`).

    It is linear attention with non-negative features, but no estimate by random features: where a teacher's scores
    spread widely the variance of those is what is wrong with them.

    Parameters (fp32): assign (G, M, D) and assign_bias (G, M), a and b, which are not trained, as a choice has no
    gradient; key_direction (G, D) and key_bias (G, M), w and u; directions (H, M, D) and read_bias (H, M), r and s.
    """

    choices: ClassVar[Choices] = dict(
        directions=("codebook",), radii=("none",), sequence=("none",), pairs=(False,), kernel=("none",),
        learn=("directions", "weights"),
    )  # fmt: skip
    learned: ClassVar[tuple[str, ...]] = ("directions", "weights")
    scale_parameters: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def default_features(cls, head_dim: int, pairs: bool) -> int:
        """Four for each channel."""
        return 4 * head_dim

    def make_parameters(self) -> None:
        """See `FeatureMap.make_parameters`."""
        if self.config.separate:
            raise UserError("the feature map 'codebook' has both sides in one: separate must be false")
        G, H, M, D = self.num_kv_heads, self.num_heads, self.features, self.head_dim
        reads, weights = "directions" in self.config.learn, "weights" in self.config.learn
        self.assign = nn.Parameter(torch.empty(G, M, D), requires_grad=False)
        self.assign_bias = nn.Parameter(torch.empty(G, M), requires_grad=False)
        self.key_direction = nn.Parameter(torch.empty(G, D), requires_grad=weights)
        self.key_bias = nn.Parameter(torch.empty(G, M), requires_grad=weights)
        self.directions = nn.Parameter(torch.empty(H, M, D), requires_grad=reads)
        self.read_bias = nn.Parameter(torch.empty(H, M), requires_grad=weights)

    def reset_parameters(self) -> None:
        """Codes at random, of the length that keys of unit variance have; nothing on the meta device."""
        if self.assign.is_meta:
            return
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            codes = torch.randn(self.assign.shape, generator=generator) * self.shrink
            self.put_codes(codes, -codes.square().sum(-1) / 2, codes)
            self.key_direction.zero_()
            self.key_bias.zero_()

    @torch.no_grad()
    def put_codes(self, assign: Tensor, assign_bias: Tensor, means: Tensor) -> None:
        """Sets a and b, and for every query head r to the means of the codes, all (G, M, D) or (G, M), and s to 0."""
        self.assign.copy_(assign)
        self.assign_bias.copy_(assign_bias)
        self.directions.copy_(means.repeat_interleave(self.num_heads // self.num_kv_heads, 0))
        self.read_bias.zero_()

    def codes(self, k: Tensor) -> Tensor:
        """Keys (B, G, N, D) to their codes (B, G, N) int64."""
        k = wide(k) * self.shrink
        near = torch.matmul(k, self.assign.to(k.dtype).transpose(1, 2)) + self.assign_bias.to(k.dtype)[:, None]
        return near.argmax(-1)

    def of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.of_keys`."""
        code, x = self.codes(x.detach())[..., None], wide(x) * self.shrink
        weight = torch.matmul(x, self.key_direction.to(x.dtype)[..., None])  # (B, G, N, 1)
        weight = weight - self.key_bias.to(x.dtype)[None, :, None].expand(*x.shape[:3], -1).gather(3, code)
        return weight.new_full((*x.shape[:3], self.features), -torch.inf).scatter(3, code, weight)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.forward`."""
        x = wide(x) * self.shrink
        return torch.matmul(x, self.directions.to(x.dtype).transpose(1, 2)) + self.read_bias.to(x.dtype)[:, None]

    def of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.of_step`."""
        return self.forward(q.flatten(1, 2)[:, :, None]).view(*q.shape[:3], self.features), self.of_keys(k)[:, :, 0]

    def unit(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.unit`."""
        return _unit(self.forward(x))

    def unit_of_keys(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """See `FeatureMap.unit_of_keys`."""
        return _unit(self.of_keys(x))

    def unit_of_step(
        self, q: Tensor, k: Tensor, q_positions: Tensor | None = None, k_positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `FeatureMap.unit_of_step`."""
        queries, key = self.of_step(q, k)
        return _unit(queries), _unit(key)


def _unit(logs: Tensor) -> Tensor:
    return nn.functional.normalize(torch.exp(logs - logs.detach().amax(-1, keepdim=True)), dim=-1)
