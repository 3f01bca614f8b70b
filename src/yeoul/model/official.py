"""DiJiang exactly as its authors' code computes it, in linear time.

Their layer evaluates (softmax(q P) D1[i]) . (softmax(k P) D2[j]) over all pairs, with tables D1[h, n] = gamma^n and
D2[h, n] = gamma^-n that training has moved. Here D1[i] D2[j] = exp(g_(j+1) + ... + g_i) |D1[j]| D2[j], with
g_t = log |D1[t] / D1[t-1]|: a decay at each position and a strength of each write, which a scan can follow.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.attention import AttentionContext, ProjectedAttention
from yeoul.model.cache import Gates, LayerCache, StateCache
from yeoul.model.feature_maps.frequencies import dct_matrix
from yeoul.ops.linear_attention import linear_attention


class OfficialDiJiangAttention(ProjectedAttention):
    """The layer of the authors' GPT-NeoX models: feature-softmax, decay tables, group norm, output gate.

    Parameters are those of their checkpoints: proj_matrix (D, D), D1 and D2 (1, H, length, 1), W_G (hidden, hidden),
    group_norm over the hidden channels in D groups.
    """

    keep_in_fp32: ClassVar[tuple[str, ...]] = ("D1", "D2")

    def __init__(self, *, length: int, **projections: object) -> None:
        super().__init__(**projections)  # type: ignore[arg-type]
        if self.num_heads != self.num_kv_heads or self.num_heads * self.head_dim != self.hidden_size:
            raise ValueError("official DiJiang layers have as many key-value heads as heads, which fill the width")
        self.length = length
        self.proj_matrix = nn.Parameter(torch.empty(self.head_dim, self.head_dim), requires_grad=False)
        self.D1 = nn.Parameter(torch.empty(1, self.num_heads, length, 1))
        self.D2 = nn.Parameter(torch.empty(1, self.num_heads, length, 1))
        self.W_G = nn.Parameter(torch.empty(self.hidden_size, self.hidden_size))
        self.group_norm = nn.GroupNorm(self.head_dim, self.hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initial values: DCT times normal frequencies, RetNet's decays, a small gate."""
        if self.D1.is_meta:
            return
        with torch.no_grad():
            frequencies = torch.special.ndtri(torch.rand(self.head_dim, dtype=torch.float64)).float()
            self.proj_matrix.copy_(dct_matrix(self.head_dim) * frequencies)
            gamma = 1 - torch.exp(torch.linspace(math.log(1 / 32), math.log(1 / 512), self.num_heads))
            powers = gamma.double()[:, None] ** torch.arange(self.length)
            self.D1.copy_(powers[None, :, :, None])
            self.D2.copy_(1 / powers[None, :, :, None])
            nn.init.xavier_uniform_(self.W_G, gain=2**-2.5)

    def new_cache(self) -> StateCache:
        """A linear state."""
        return StateCache()

    def _decay(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-decay (B, H, T) of the step into each position, sign of its reads and strength of its writes."""
        if int(positions.max()) >= self.length:
            raise ValueError(f"position {int(positions.max())} is beyond the decay tables' {self.length} rows")
        d1, d2 = self.D1[0, :, :, 0].float(), self.D2[0, :, :, 0].float()  # (H, length)
        logs = d1.abs().clamp_min(torch.finfo(torch.float32).tiny).log()
        steps = F.pad(logs[:, 1:] - logs[:, :-1], (1, 0))
        tables = torch.stack((steps, d1.sign(), d1.abs() * d2))  # (3, H, length)
        step, sign, strength = tables[:, :, positions].transpose(1, 2)  # each (B or 1, H, T)
        return step, sign, strength

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates | None = None,
        context: AttentionContext | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """See `ProjectedAttention.attend`."""
        context = context or AttentionContext()
        B, _, T, _ = q.shape
        positions = context.positions
        if positions is None:
            positions = torch.arange(T, device=q.device)[None]
        step, sign, strength = self._decay(positions)
        features = torch.softmax(torch.matmul(q, self.proj_matrix).float(), dim=-1) * sign[..., None]
        keys = torch.softmax(torch.matmul(k, self.proj_matrix).float(), dim=-1) * strength[..., None]
        state = cache.state if isinstance(cache, StateCache) else None
        out, state = linear_attention(
            features, keys, v.float(), step.expand(B, -1, -1), normalize=False, mask=context.mask,
            seq_ids=context.seq_ids, initial_state=state, return_state=True,
        )  # fmt: skip
        if isinstance(cache, StateCache):
            cache.state = state
        return out.to(q.dtype)

    def forward(self, x: Tensor, context: AttentionContext | None = None, cache: LayerCache | None = None) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden); appends to `cache` where one is given."""
        B, T, width = x.shape
        context = context or AttentionContext()
        q, k, v = self.project(x, context)
        y = self.attend(q, k, v, None, context, cache).transpose(1, 2).reshape(B * T, width)
        y = self.group_norm(y).view(B, T, width)
        return self.o_proj(F.silu(x @ self.W_G) * y)
