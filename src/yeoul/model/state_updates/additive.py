"""DiJiang: softmax attention turned linear by frequency-domain features (arXiv 2403.19928), summed up in a state.

The kernel exp(q.k) is the mean over Gaussian w of exp(w.q - |q|^2/2) exp(w.k - |k|^2/2). DiJiang draws the directions
of w from the rows of an orthonormal discrete cosine transform and its radii by quasi-Monte Carlo, and weights each
feature (equations 12 to 15 of the paper, "WDCF"). Features are handled as logarithms here until attention needs them,
so that the shift of a query cancels exactly and a window of softmax can share one normalisation with the linear part.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.attention import AttentionContext
from yeoul.model.cache import Gates, StateCache
from yeoul.model.feature_maps.config import FeatureMapConfig
from yeoul.model.gates import Gate, bias_of_half_life
from yeoul.model.linear_attention import LinearAttention, Positions
from yeoul.model.state_updates.registry import STATE_UPDATES
from yeoul.ops.linear_attention import linear_attention, linear_sums, recurrent_step
from yeoul.ops.window import LEAST_DENOMINATOR, Terms

MAX_LOG_FEATURE = 50.0
"""Keys' log-features are cut here: e^50 times a million positions still fits fp32."""


@STATE_UPDATES.register
class DiJiangAttention(LinearAttention):
    """Linear attention whose state is a sum: S + phi(k) v^T and z + phi(k), read as phi(q).S / phi(q).z.

    Any feature map that gives logarithms of positive features will do. The state decays as `FeatureMapConfig.decay`
    says. Arguments are those of `LinearAttention`; `causal` may be False.

    Parameters beside those of `LinearAttention`: decay_logit (G,) of decay "fixed" and "learned", decay_proj (`Gate`)
    of "gated".
    """

    keep_in_fp32: ClassVar[tuple[str, ...]] = ("decay_logit",)

    @classmethod
    def state_numbers(cls, features: int, head_dim: int) -> int:
        """S and z."""
        return features * head_dim + features

    @classmethod
    def gate_numbers(cls, decay: str) -> int:
        """A log-decay, where it is gated."""
        return 1 if decay == "gated" else 0

    def __init__(self, *args: Any, feature_map: FeatureMapConfig | None = None, **options: Any) -> None:
        super().__init__(*args, feature_map=feature_map, **options)
        self.decay = (feature_map or FeatureMapConfig()).decay
        self.decay_proj: Gate | None = None
        self.decay_logit: nn.Parameter | None = None
        if self.decay == "gated":
            self.decay_proj = Gate(self.hidden_size, [bias_of_half_life(h) for h in _half_lives(self.num_kv_heads)])
        elif self.decay != "none":
            self.decay_logit = nn.Parameter(torch.empty(self.num_kv_heads), requires_grad=self.decay == "learned")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Decay: the half-lives of `_half_lives`."""
        if self.decay_logit is not None and not self.decay_logit.is_meta:
            with torch.no_grad():
                half_lives = torch.tensor(_half_lives(self.num_kv_heads))
                self.decay_logit.copy_(torch.log(math.log(2) / half_lives))

    @property
    def log_decay(self) -> Tensor | None:
        """Log-decay of each key-value head, (G,) fp32, below 0; None where the state does not decay, or by a gate."""
        return None if self.decay_logit is None else -self.decay_logit.exp()

    @torch.no_grad()
    def set_decay(self, rates: Tensor) -> None:
        """See `LinearAttention.set_decay`; a gate gets it for tokens of which it knows nothing yet."""
        if self.decay == "learned" and self.decay_logit is not None:
            self.decay_logit.copy_(rates.log())
        if self.decay_proj is not None:
            self.decay_proj.bias.copy_(torch.log(torch.expm1(rates)))

    def gates(self, x: Tensor, context: AttentionContext, k: Tensor, v: Tensor) -> Gates:
        """With decay "gated" the log_decay (B, G, T) of each token."""
        gates = super().gates(x, context, k, v)
        if self.decay_proj is not None:
            gates["log_decay"] = -F.softplus(self.decay_proj(x)).contiguous()
        return gates

    def attend_state(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, context: AttentionContext, state: StateCache | None
    ) -> Tensor:
        """See `LinearAttention.attend_state`; normalised where it is summed, and not causal where the layer is not."""
        at = self.positions_of(gates)
        features, _ = _shifted(self.feature_map(q, at))
        keys = _key_features(self.feature_map.of_keys(k, at))
        shared: dict[str, Any] = dict(eps=LEAST_DENOMINATOR, mask=context.mask, seq_ids=context.seq_ids)
        if not self.causal:
            return linear_attention(features, keys, v, causal=False, **shared).to(q.dtype)
        out, after = linear_attention(
            features, keys, v, gates.get("log_decay", self.log_decay),
            initial_state=state.state if state else None, return_state=True, **shared,
        )  # fmt: skip
        if state:
            state.state = after
        return out.to(q.dtype)

    def attend_state_step(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: StateCache) -> Tensor:
        """See `LinearAttention.attend_state_step`."""
        at, decay = self.positions_of(gates), gates.get("log_decay")
        query_logs, key_logs = self.feature_map.of_step(self._by_group(q), k, at, at)
        queries, _ = _shifted(query_logs)
        out, state.state = recurrent_step(
            queries.flatten(1, 2), _key_features(key_logs), v[:, :, 0], state.state,
            self.log_decay if decay is None else decay[:, :, 0],
            eps=LEAST_DENOMINATOR, inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        return out[:, :, None].to(q.dtype)

    def read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: StateCache | None,
        *,
        positions: Positions,
        written: Tensor | None = None,
        mask: Tensor | None = None,
        seq_ids: Tensor | None = None,
    ) -> Terms:
        """See `LinearAttention.read`."""
        B, _, T, _ = q.shape
        features, shift = _shifted(self.feature_map(q, positions.q))
        keys = _key_features(self.feature_map.of_keys(k, positions.k))
        decay = gates.get("log_decay")
        if decay is None and self.log_decay is not None:
            decay = self.log_decay[None, :, None]
        if written is not None:
            keys = keys * written[..., None]
            decay = None if decay is None else decay * written
        terms, after = linear_sums(
            features, keys, v, None if decay is None else decay.expand(B, -1, T), mask=mask, seq_ids=seq_ids,
            initial_state=state.state if state else None,
        )  # fmt: skip
        if state:
            state.state = after
        return Terms(terms[..., :-1], terms[..., -1:], shift)

    def read_step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        state: StateCache,
        *,
        positions: Positions,
        written: Tensor | None = None,
    ) -> Terms:
        """See `LinearAttention.read_step`."""
        query_logs, key_logs = self.feature_map.of_step(self._by_group(q), k[:, :, None], positions.q, positions.k)
        queries, shift = _shifted(query_logs)  # (B, G, R, M)
        features, decay = _key_features(key_logs), gates.get("log_decay", self.log_decay)
        if written is not None:
            features = features * written[..., None]
            decay = None if decay is None else decay * written
        out, state.state = recurrent_step(
            queries.flatten(1, 2), features, v.to(queries.dtype), state.state, decay,
            normalize=False, inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        assert state.z is not None
        found = torch.matmul(queries, state.z[..., None])  # (B, G, R, 1)
        return Terms(out[:, :, None], found.flatten(1, 2)[:, :, None], shift.flatten(1, 2)[:, :, None])

    def _by_group(self, q: Tensor) -> Tensor:
        """(B, H, 1, D) to (B, G, R, D)."""
        return q.unflatten(1, (self.num_kv_heads, -1)).squeeze(3)


def _half_lives(groups: int) -> list[float]:
    """From 32 to 2,048 positions in powers, over the key-value heads, as RetNet's are."""
    return [32 * 64 ** (g / max(1, groups - 1)) for g in range(groups)]


def _shifted(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Features with their largest at 1, (..., M), and the logarithm that was taken out, (..., 1)."""
    shift = logs.detach().amax(-1, keepdim=True)
    return torch.exp(logs - shift), shift


def _key_features(logs: Tensor) -> Tensor:
    return torch.exp(logs.clamp_max(MAX_LOG_FEATURE))
