"""The gated delta rule in place of the sum: a state that overwrites what it knows of a key.

Additive states saturate: what was written stays, and every later key reads a little of it. The delta rule takes away
what the state holds for a key before it writes (`yeoul.ops.delta_rule`). Write strength and decay follow from each
token as in Gated DeltaNet (Yang and others 2025, section 3); the features are those of arXiv 2403.19928.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.attention import AttentionContext
from yeoul.model.cache import Gates, StateCache
from yeoul.model.gates import Gate, bias_of_half_life
from yeoul.model.linear_attention import LinearAttention, Positions, Tunable
from yeoul.model.state_updates.registry import STATE_UPDATES
from yeoul.ops.delta_rule import delta_rule, delta_step
from yeoul.ops.window import Terms, soft_cap

FIRST_STRENGTH = 0.3
"""Write strength before training: what is there is corrected by a third, not replaced."""
FIRST_HALF_LIVES = 8192, 131072
"""Half-lives of the state before training in positions, spread over the heads in powers: next to nothing is lost."""
FIRST_READ_SCALE = 2.0
"""Logarithm of what a full hit in the state weighs before training, where a score of 0 in the window weighs 1."""
MOST_READ_SCALE = 3.0
"""Soft cap of m without a window: features have noise, and a read of nothing but noise must not be divided by less
than e^-3. Without it single tokens made alignment explode; with it, before training, nothing is lost."""


@STATE_UPDATES.register
class GatedDeltaAttention(LinearAttention):
    """Linear attention whose state follows the gated delta rule (`yeoul.ops.delta_rule`), as in Gated DeltaNet.

    Features of queries and keys are normalised to length 1, so that their common factors cancel: the weight of the
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

    Parameters beside those of `LinearAttention`: beta_proj and decay_proj (`Gate`), decay_log (G,), read_mass (H,) and
    read_direction (H, D). Arguments are the same; `causal` must be True and the feature map's decay "none".
    """

    takes_signed: ClassVar[bool] = True
    takes_decay: ClassVar[bool] = False
    keep_in_fp32: ClassVar[tuple[str, ...]] = ("decay_log", "read_mass", "read_direction")

    @classmethod
    def state_numbers(cls, features: int, head_dim: int) -> int:
        """S, with a 1 beside each value."""
        return features * (head_dim + 1)

    @classmethod
    def gate_numbers(cls, decay: str) -> int:
        """Write strength and log-decay."""
        return 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.causal:
            raise ValueError("the delta rule has a direction: it needs causal=True")
        for feature_map in self.maps():
            for name, parameter in feature_map.named_parameters():
                if name in feature_map.scale_parameters:  # cancelled by the length of 1
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
        if not self.decay_log.is_meta:
            with torch.no_grad():
                self.decay_log.zero_()
                self.read_mass.fill_(FIRST_READ_SCALE if self.window else 0.0)
                self.read_direction.zero_()

    def gates(self, x: Tensor, context: AttentionContext, k: Tensor, v: Tensor) -> Gates:
        """Write strength and log_decay of each token, (B, G, T) fp32."""
        strength = torch.sigmoid(self.beta_proj(x))
        log_decay = -self.decay_log.to(strength.dtype).exp()[:, None] * F.softplus(self.decay_proj(x))
        return super().gates(x, context, k, v) | {
            "write_strength": strength.contiguous(),
            "log_decay": log_decay.contiguous(),
        }

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
        """See `LinearAttention.read`: r, h and m of this class."""
        features, keys = self.feature_map.unit(q, positions.q), self.feature_map.unit_of_keys(k, positions.k)
        strength, log_decay = _where_written(gates, written)
        read, after = delta_rule(
            features, keys, F.pad(v.to(features.dtype), (0, 1), value=1.0), strength, log_decay,
            mask=mask, seq_ids=seq_ids, initial_state=state.s if state else None, return_state=True,
        )  # fmt: skip
        if state:
            state.s = after
        return Terms(read[..., :-1], read[..., -1:], self.read_log_scale(q, read.dtype))

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
        queries = q.unflatten(1, (self.num_kv_heads, -1)).squeeze(3)  # (B, G, R, D)
        features, key = self.feature_map.unit_of_step(queries, k[:, :, None], positions.q, positions.k)
        strength, log_decay = _where_written(gates, written)
        out, state.s = delta_step(
            features.flatten(1, 2), key, F.pad(v.to(key.dtype), (0, 1), value=1.0), strength, state.s, log_decay,
            inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        read = out[:, :, None]
        return Terms(read[..., :-1], read[..., -1:], self.read_log_scale(q, read.dtype))

    def read_nothing(self, q: Tensor, window: Terms) -> Terms:
        """See `LinearAttention.read_nothing`."""
        nothing = super().read_nothing(q, window)
        return nothing._replace(log_scale=self.read_log_scale(q, window.numerator.dtype))

    def combine(self, read: Terms, window: Terms | None) -> Tensor:
        """The formulas of this class."""
        found = read.denominator
        if window is None:
            floor = torch.exp(-soft_cap(read.log_scale, MOST_READ_SCALE))
            return read.numerator / (floor + found.clamp_min(0))
        return self.join(window, Terms(read.numerator * (found > 0), found.clamp_min(0), read.log_scale))

    def read_log_scale(self, q: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """m of this class for queries (B, H, T, D): (B, H, T, 1)."""
        direction = self.read_direction.to(dtype)[..., None]  # (H, D, 1)
        return torch.matmul(q.to(dtype), direction) + self.read_mass.to(dtype)[:, None, None]

    @torch.no_grad()
    def set_read_scale(self, log_scale: Tensor) -> None:
        """Sets m of every query, (H,)."""
        self.read_mass.copy_(log_scale)

    @torch.no_grad()
    def set_half_lives(self, half_lives: Tensor) -> None:
        """Sets the states' half-lives, (G,) positions, for tokens of which the gates know nothing yet."""
        self.decay_log.zero_()
        self.decay_proj.bias.copy_(torch.tensor([bias_of_half_life(h) for h in half_lives.tolist()]))

    @torch.no_grad()
    def set_write_strengths(self, strengths: Tensor) -> None:
        """Sets the write strengths, (G,) in (0, 1), likewise."""
        self.beta_proj.bias.copy_(torch.logit(strengths))

    def tunables(self) -> list[Tunable]:
        """Half-lives in positions, then write strengths."""
        return [
            Tunable((4.0, 16.0, 64.0, 512.0, 16384.0), self.set_half_lives),
            Tunable((0.03, 0.1, 0.3, 0.8), self.set_write_strengths),
        ]


def _where_written(gates: Gates, written: Tensor | None) -> tuple[Tensor, Tensor]:
    """Write strength and log-decay, both 0 where a key does not enter."""
    strength, log_decay = gates["write_strength"], gates["log_decay"]
    return (strength, log_decay) if written is None else (strength * written, log_decay * written)
