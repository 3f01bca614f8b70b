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

from yeoul.model.attention import Layout, window_prefix
from yeoul.model.cache import HybridCache, LayerCache, StateCache
from yeoul.model.dijiang import TINY, DiJiangAttention
from yeoul.ops.delta_rule import delta_rule, delta_step
from yeoul.ops.window import soft_cap, window_terms

FIRST_STRENGTH = 0.12
"""Write strength before training: what is there is corrected by an eighth, not replaced."""
FIRST_HALF_LIVES = 512, 8192
"""Half-lives of the state before training in positions, spread over the heads in powers: next to nothing is lost."""
FIRST_READ_WEIGHT = 0.1
"""Weight of the state beside a window before training: little against the window, and not 0, where nothing learns."""


class Gate(nn.Module):
    """A number of each token for each key-value head: weight (G, hidden) and bias (G,), (B, T, hidden) to (B, G, T, 1).

    The weight begins at 0, so that all tokens begin with the same, `start`, before the caller's nonlinearity.
    """

    def __init__(self, hidden_size: int, start: list[float]) -> None:
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.empty(len(start), hidden_size))
        self.bias = nn.Parameter(torch.empty(len(start)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As said of the class; nothing on the meta device."""
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight.zero_()
                self.bias.copy_(torch.tensor(self.start))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (B, G, T, 1), in fp32 (fp64 for fp64 inputs)."""
        y = F.linear(x, self.weight, self.bias).transpose(1, 2)[..., None]
        return y.to(torch.promote_types(y.dtype, torch.float32))


class DeltaDiJiangAttention(DiJiangAttention):
    """DiJiang attention whose state follows the gated delta rule.

    Features of queries and keys are normalised to length 1, so that their common factors cancel: the mass of the
    "softmax" kernel and -|x|^2/2 of the "exp" kernel have no effect. The read S^T q has no denominator and no factor.
    A token has the write strength sigmoid(beta_proj(x)) and the log-decay -exp(decay_log) softplus(decay_proj(x)).

    With a window the output is softmax(window) + read_weight S^T q, with one learned weight for each query head, and S
    is the delta rule over the tokens that have left the window, each with its own gates. The additive layer's shared
    normalisation needs a denominator, which the delta rule has not; this sum is our choice.

    Parameters beside those of `DiJiangAttention`: beta_proj and decay_proj (`Gate`), decay_log (G,) fp32 and, with a
    window, read_weight (H,). Arguments are the same; `causal` must be True and the feature map's decay "none".
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.causal or hasattr(self, "decay_logit"):
            raise ValueError("the delta rule is causal, and has a gate of its own in place of the feature map's decay")
        if hasattr(self.feature_map, "log_mass"):  # cancelled by the length of 1: its gradient is rounding
            self.feature_map.log_mass.requires_grad_(False)
        G = self.num_kv_heads
        shortest, longest = FIRST_HALF_LIVES
        half_lives = [shortest * (longest / shortest) ** (g / max(1, G - 1)) for g in range(G)]
        self.beta_proj = Gate(self.hidden_size, [math.log(FIRST_STRENGTH / (1 - FIRST_STRENGTH))] * G)
        self.decay_proj = Gate(self.hidden_size, [math.log(math.expm1(math.log(2) / h)) for h in half_lives])
        self.decay_log = nn.Parameter(torch.empty(G))
        if self.window:
            self.read_weight = nn.Parameter(torch.empty(self.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Remembers nearly everything and writes gently: the three constants above; nothing on the meta device."""
        if hasattr(self, "decay_log") and not self.decay_log.is_meta:
            with torch.no_grad():
                self.decay_log.zero_()
                if self.window:
                    self.read_weight.fill_(FIRST_READ_WEIGHT)

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

    def project(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """See `ProjectedAttention.project`; the values are those of `gated`."""
        q, k, v = super().project(x, layout)
        return q, k, self.gated(v, x)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """See `ProjectedAttention.mix`; v is (B, G, T, D + 2) from `gated`."""
        one_token = q.shape[2] == 1 and layout.mask is None
        if self.window:
            if isinstance(cache, HybridCache) and one_token:
                return self._decode_hybrid(q, k, v, cache)
            return self._hybrid(q, k, v, layout, cache)
        if not self.linear_enabled:
            return torch.zeros_like(q)
        memory = cache if isinstance(cache, StateCache) else None
        if memory and one_token:
            return self._write_and_read(q, k[:, :, 0], v[:, :, 0], None, memory)[:, :, None].to(q.dtype)
        values, beta, log_decay = _parted(v)
        out, state = delta_rule(
            _unit(self.feature_map(q)), _unit(self.feature_map(k)), values, beta, log_decay,
            mask=layout.mask, seq_ids=layout.seq_ids, initial_state=memory.s if memory else None, return_state=True,
        )  # fmt: skip
        if memory:
            memory.s = state
        return out.to(q.dtype)

    def _hybrid(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """Whole sequences. Key t of the delta rule is the one that leaves the window at query t."""
        T, memory = q.shape[2], cache if isinstance(cache, HybridCache) else None
        if memory:
            keys, values, valid = memory.window.extend(k, v, layout.mask)
            key_ids = None
        else:
            keys, values, valid, key_ids = window_prefix(k, v, self.window, layout)
        numerator, denominator, _ = window_terms(
            q, keys, values[..., :-2], self.window, self.scale, valid=valid, seq_ids=layout.seq_ids,
            key_seq_ids=key_ids, softcap=self.softcap,
        )  # fmt: skip
        left = valid[:, :T]  # (B or 1, T): a token leaves the window at this column
        if layout.seq_ids is not None and key_ids is not None:
            left = left & (key_ids[:, :T] == layout.seq_ids)
        outgoing, beta, log_decay = _parted(values[:, :, :T])
        read, state = delta_rule(
            _unit(self.feature_map(q)), _unit(self.feature_map(keys[:, :, :T])), outgoing.to(numerator.dtype),
            beta * left[:, None], log_decay * left[:, None], seq_ids=layout.seq_ids,
            initial_state=memory.linear.s if memory else None, return_state=True,
        )  # fmt: skip
        if memory:
            memory.linear.s = state
        return self._add(numerator / denominator.clamp_min(TINY), read).to(q.dtype)

    def _add(self, window: Tensor, read: Tensor) -> Tensor:
        """Window and weighted read, each (B, H, T, D)."""
        weight = self.read_weight.to(read.dtype)[:, None, None]
        return window * self.window_enabled + weight * read * self.linear_enabled

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
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        window = torch.matmul(weights, values[..., :-2]).view(B, H, 1, D).to(scores.dtype)
        if gone is None:  # nothing has left the window: the state is empty
            read = torch.zeros_like(window)
        else:
            read = self._write_and_read(q, *gone, cache.linear)[:, :, None]
        return self._add(window, read).to(q.dtype)

    def _write_and_read(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, memory: StateCache) -> Tensor:
        """Writes a key (B, G, D) with its value (B, G, D + 2) where valid (B,), then reads for q (B, H, 1, D).

        Returns:
            (B, H, D) in fp32.
        """
        logs = self._log_features_together(q, k[:, :, None])  # (B, G, R + 1, M)
        features = _unit(logs)
        values, beta, log_decay = _parted(v)
        if valid is not None:
            beta, log_decay = beta * valid[:, None], log_decay * valid[:, None]
        out, memory.s = delta_step(
            features[:, :, :-1].flatten(1, 2), features[:, :, -1], values.to(features.dtype), beta, memory.s, log_decay,
            inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        return out


def _unit(logs: Tensor) -> Tensor:
    """Features of length 1, (..., M), from their logarithms."""
    return F.normalize(torch.exp(logs - logs.detach().amax(-1, keepdim=True)), dim=-1)


def _parted(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (..., D), write strength (...) and log-decay (...) of what `gated` gave."""
    return v[..., :-2], v[..., -2], v[..., -1]
