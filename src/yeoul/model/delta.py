"""DiJiang's features with the gated delta rule in place of the sum: a state that overwrites what it knows of a key.

Additive states saturate: what was written stays, and every later key reads a little of it. The delta rule takes away
what the state holds for a key before it writes (`yeoul.ops.delta_rule`). Write strength and decay follow from each
token as in Gated DeltaNet (Yang and others 2025, section 3); the features are those of arXiv 2403.19928.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.attention import Layout, SoftmaxAttention, window_columns
from yeoul.model.cache import HybridCache, LayerCache, StateCache
from yeoul.model.dijiang import DiJiangAttention
from yeoul.model.gates import Gate, bias_of_half_life
from yeoul.ops.delta_rule import delta_rule, delta_step
from yeoul.ops.window import soft_cap, window_terms

FIRST_STRENGTH = 0.3
"""Write strength before training: what is there is corrected by a third, not replaced."""
FIRST_HALF_LIVES = 8192, 131072
"""Half-lives of the state before training in positions, spread over the heads in powers: next to nothing is lost."""
FIRST_READ_MASS = 2.0
"""Logarithm of what a full hit in the state weighs before training, where a score of 0 in the window weighs 1."""
MOST_MASS = 3.0
"""Soft cap of m without a window: features have noise, and a read of nothing but noise must not be divided by less
than e^-3. Without it single tokens made alignment explode; with it, before training, nothing is lost."""


class DeltaDiJiangAttention(DiJiangAttention):
    """DiJiang attention whose state follows the gated delta rule.

    Features of queries and keys are normalised to length 1, so that their common factors cancel: the mass of the
    "softmax" kernel and -|x|^2/2 of the "exp" kernel have no effect. A token has the write strength
    sigmoid(beta_proj(x)) and the log-decay -exp(decay_log) softplus(decay_proj(x)).

    The state also holds a 1 beside each value, so that a read comes with its own measure h of how much of the query's
    key is there: 1 for one that was just written, near 0 for one that never was. Without a window

        o = r / (e^-m' + max(h, 0)),    (r, h) = S^T phi(q),    m = read_mass + read_direction . q,
                                                                m' = 3 tanh(m / 3)

    which is r e^m' where e^m' is small, and for a large one the mean of the values found, as softmax with one more key
    of score 0 and value 0 would have it. With a window both parts share one normalisation, as in the additive layer:
    with the window's sums N and d of exp(score) v and exp(score),

        o = (N + e^m r [h > 0]) / (d + e^m max(h, 0))

    so that a hit takes the place of the far positions' share in the softmax, and where nothing is found the window
    stands alone. S is the delta rule over the tokens that have left the window, each with its own gates. The sum of the
    additive layer cannot be that measure here, because the delta rule takes away what it has written. This joint
    normalisation is our own; nobody has published it that we know of.

    Parameters beside those of `DiJiangAttention`: beta_proj and decay_proj (`Gate`), decay_log (G,), read_mass (H,) and
    read_direction (H, D), all fp32. Arguments are the same; `causal` must be True and the feature map's decay "none".
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.causal or self.gate or hasattr(self, "decay_logit"):
            raise ValueError("the delta rule is causal, and has a gate of its own in place of the feature map's decay")
        for name, parameter in self.feature_map.named_parameters():
            if name.endswith(("log_mass", "mass_direction", "temper")):  # cancelled by the length of 1
                parameter.requires_grad_(False)
        G = self.num_kv_heads
        shortest, longest = FIRST_HALF_LIVES
        half_lives = [shortest * (longest / shortest) ** (g / max(1, G - 1)) for g in range(G)]
        self.beta_proj = Gate(self.hidden_size, [math.log(FIRST_STRENGTH / (1 - FIRST_STRENGTH))] * G)
        self.decay_proj = Gate(self.hidden_size, [bias_of_half_life(h) for h in half_lives])
        self.decay_log = nn.Parameter(torch.empty(G))
        self.read_mass = nn.Parameter(torch.empty(self.num_heads))
        self.read_direction = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Remembers nearly everything and writes gently: the three constants above; nothing on the meta device."""
        if hasattr(self, "decay_log") and not self.decay_log.is_meta:
            with torch.no_grad():
                self.decay_log.zero_()
                self.read_mass.fill_(FIRST_READ_MASS if self.window else 0.0)
                self.read_direction.zero_()

    @torch.no_grad()
    def forget(self, half_lives: Tensor) -> None:
        """Sets the states' half-lives, (G,) positions, for tokens of which the gates know nothing yet."""
        self.decay_log.zero_()
        self.decay_proj.bias.copy_(torch.tensor([bias_of_half_life(h) for h in half_lives.tolist()]))

    @torch.no_grad()
    def write(self, strengths: Tensor) -> None:
        """Sets the write strengths, (G,) in (0, 1), likewise."""
        self.beta_proj.bias.copy_(torch.logit(strengths))

    def gated(self, v: Tensor, x: Tensor) -> Tensor:
        """Values with write strength and log-decay as two more channels: cached, padded and shifted as the values are.

        Args:
            v: (B, G, T, D).
            x: (B, T, hidden), what the layer is given.

        Returns:
            (B, G, T, D + 2) in v's dtype.
        """
        beta = torch.sigmoid(self.beta_proj(x))
        log_decay = -self.decay_log.to(beta.dtype).exp()[:, None, None] * F.softplus(self.decay_proj(x))
        return torch.cat((v, beta.to(v.dtype), log_decay.to(v.dtype)), dim=-1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """See `ProjectedAttention.mix`; v is (B, G, T, D + 2) from `gated`."""
        one_token = q.shape[2] == 1 and layout.mask is None
        if self.window:
            if isinstance(cache, HybridCache) and cache.window.sinks_full and one_token:
                return self._decode_hybrid(q, k, v, cache)
            if self._all_in_window(q, cache):
                return SoftmaxAttention.mix(self, q, k, v[..., : self.head_dim], layout, None)  # type: ignore[arg-type]
            return self._hybrid(q, k, v, layout, cache)
        if not self.linear_enabled:
            return torch.zeros_like(q)
        memory = cache if isinstance(cache, StateCache) else None
        if memory and one_token:
            return self._alone(q, self._write_and_read(q, k[:, :, 0], v[:, :, 0], None, memory)[:, :, None])
        values, beta, log_decay = _parted(v)
        features = self.feature_map.unit(q)
        read, state = delta_rule(
            features, self.feature_map.unit_of_keys(k), F.pad(values.to(features.dtype), (0, 1), value=1.0), beta,
            log_decay, mask=layout.mask, seq_ids=layout.seq_ids,
            initial_state=memory.s if memory else None, return_state=True,
        )  # fmt: skip
        if memory:
            memory.s = state
        return self._alone(q, read)

    def _hybrid(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """Whole sequences. Key t of the delta rule is the one that leaves the window at query t."""
        T, memory = q.shape[2], cache if isinstance(cache, HybridCache) else None
        seen = window_columns(k, v, self.window, self.sinks, layout, memory.window if memory else None)
        sinks = None if seen.sinks is None else seen.sinks._replace(v=seen.sinks.v[..., :-2])
        numerator, denominator, top = window_terms(
            q, seen.k, seen.v[..., :-2], self.window, self.scale, valid=seen.valid, seq_ids=layout.seq_ids,
            key_seq_ids=seen.seq_ids, softcap=self.softcap, sinks=sinks,
        )  # fmt: skip
        left = seen.leaving(T, layout.seq_ids)
        outgoing, beta, log_decay = _parted(seen.v[:, :, :T])
        read, state = delta_rule(
            self.feature_map.unit(q), self.feature_map.unit_of_keys(seen.k[:, :, :T]),
            F.pad(outgoing.to(numerator.dtype), (0, 1), value=1.0), beta * left[:, None],
            log_decay * left[:, None], seq_ids=layout.seq_ids,
            initial_state=memory.linear.s if memory else None, return_state=True,
        )  # fmt: skip
        if memory:
            memory.linear.s = state
        return self._joined(q, numerator, denominator, top, read).to(q.dtype)

    def _mass(self, q: Tensor, dtype: torch.dtype) -> Tensor:
        """m of this class for queries (B, H, T, D): (B, H, T, 1)."""
        direction = self.read_direction.to(dtype)[..., None]  # (H, D, 1)
        return torch.matmul(q.to(dtype), direction) + self.read_mass.to(dtype)[:, None, None]

    def _alone(self, q: Tensor, read: Tensor) -> Tensor:
        """The formula of this class without a window; `read` is (B, H, T, D + 1), its last channel h."""
        floor = torch.exp(-soft_cap(self._mass(q, read.dtype), MOST_MASS))
        return (read[..., :-1] / (floor + read[..., -1:].clamp_min(0))).to(q.dtype)

    def _joined(self, q: Tensor, window: Tensor, window_sum: Tensor, top: Tensor, read: Tensor) -> Tensor:
        """The formula of this class with a window for (B, H, T, ...) terms; the last channel of `read` is h."""
        found = read[..., -1:]
        mass = self._mass(q, read.dtype)
        return self._join(window, window_sum, top, read[..., :-1] * (found > 0), found.clamp_min(0), mass)

    def _decode_hybrid(self, q: Tensor, k: Tensor, v: Tensor, cache: HybridCache) -> Tensor:
        """One token: (B, H, 1, D). What leaves the ring enters the state, which is read at once."""
        (B, H, _, D), G = q.shape, self.num_kv_heads
        gone = cache.window.push(k[:, :, 0], v[:, :, 0])
        keys, values, valid = cache.window.columns()
        scores = torch.matmul(q.view(B, G, H // G, D), keys.transpose(-1, -2)) * self.scale  # (B, G, R, w)
        scores = scores.to(torch.promote_types(q.dtype, torch.float32))
        if self.softcap is not None:
            scores = soft_cap(scores, self.softcap)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        top = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - top)
        window = torch.matmul(weights.to(values.dtype), values[..., :-2]).to(scores.dtype)
        window, window_sum, top = (x.flatten(1, 2)[:, :, None] for x in (window, weights.sum(-1, keepdim=True), top))
        if gone is None:  # nothing has left the window: the state is empty
            read = q.new_zeros((B, H, 1, D + 1), dtype=scores.dtype)
        else:
            read = self._write_and_read(q, *gone, cache.linear)[:, :, None]
        return self._joined(q, window, window_sum, top, read).to(q.dtype)

    def _write_and_read(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, memory: StateCache) -> Tensor:
        """Writes a key (B, G, D) with its value (B, G, D + 2) where valid (B,), then reads for q (B, H, 1, D).

        Returns:
            (B, H, D + 1) in fp32, see the class.
        """
        queries, key = self.feature_map.unit_of_step(q.unflatten(1, (self.num_kv_heads, -1)).squeeze(3), k[:, :, None])
        values, beta, log_decay = _parted(v)
        values = F.pad(values.to(key.dtype), (0, 1), value=1.0)
        if valid is not None:
            beta, log_decay = beta * valid[:, None], log_decay * valid[:, None]
        out, memory.s = delta_step(
            queries.flatten(1, 2), key, values, beta, memory.s, log_decay,
            inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        return out


def _parted(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (..., D), write strength (...) and log-decay (...) of what `gated` gave."""
    return v[..., :-2], v[..., -2], v[..., -1]
