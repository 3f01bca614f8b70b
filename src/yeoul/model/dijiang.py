"""DiJiang: softmax attention turned linear by frequency-domain features (arXiv 2403.19928).

The kernel exp(q.k) is the mean over Gaussian w of exp(w.q - |q|^2/2) exp(w.k - |k|^2/2). DiJiang draws the directions
of w from the rows of an orthonormal discrete cosine transform and its radii by quasi-Monte Carlo, and weights each
feature (equations 12 to 15 of the paper, "WDCF"). Features are handled as logarithms here until attention needs them,
so that the shift of a query cancels exactly and a window of softmax can share one normalisation with the linear part.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.attention import Layout, ProjectedAttention, SoftmaxAttention, window_columns
from yeoul.model.cache import HybridCache, LayerCache, StateCache
from yeoul.model.config import FeatureMapConfig
from yeoul.model.feature_maps import make_feature_map
from yeoul.model.gates import Gate, bias_of_half_life
from yeoul.model.short_conv import ShortConvolution
from yeoul.ops.linear_attention import LinearState, linear_attention, recurrent_step
from yeoul.ops.window import soft_cap, window_terms

MAX_LOG_FEATURE = 50.0
"""Keys' log-features are cut here: e^50 times a million positions still fits fp32."""
TINY = 1e-30
"""Least denominator: features of the exponential kernel span e^-60 ... e^50, so a usual epsilon would cut real ones."""


class DiJiangAttention(ProjectedAttention):
    """Linear attention with frequency-domain features, with or without a softmax window; for any model, causal or not.

    With `window` w > 0 the last w positions are attended to by softmax and everything before them by the linear part;
    both are summed as estimates of the same exp(q.k / sqrt(D)) and normalised once. Training, prefill and decoding
    compute the same function. With `sinks` the first tokens of every text are attended to by softmax too, for ever:
    they neither count into the window nor enter the state (arXiv 2309.17453).

    Args:
        hidden_size: width of input and output.
        num_heads: query heads H.
        num_kv_heads: key-value heads G, each with one state; None means H.
        head_dim: D; None means hidden_size / num_heads.
        window: w; 0 means linear attention alone.
        sinks: how many of the first tokens stay in the softmax; they need a window.
        causal: False lets every position see all others (vision, audio, encoders); it excludes a window, decay and a
            short convolution.
        feature_map: the features and what of them is trained.
        short_conv: positions that a causal convolution over queries, keys and values spans; 0 is none.
        bias: biases of the query, key and value projections.
        output_bias: bias of the output projection; None means as `bias`.
        options: qk_norm, scale, softcap and rope of `ProjectedAttention`. A soft cap is kept in the window; the
            linear part has none.
    """

    linear_enabled = True
    """False computes the window alone: what the linear part is worth is measured so."""
    window_enabled = True
    """False computes the linear part alone."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        window: int = 0,
        sinks: int = 0,
        causal: bool = True,
        feature_map: FeatureMapConfig | None = None,
        short_conv: int = 0,
        bias: bool = False,
        output_bias: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            bias=bias, output_bias=output_bias, **options,
        )  # fmt: skip
        config = feature_map or FeatureMapConfig()
        if not causal and (window or short_conv or config.decay != "none"):
            raise ValueError("a window, a decay and a convolution have a direction: they need causal=True")
        if sinks and not window:
            raise ValueError("sinks stand beside a window: they need window > 0")
        self.window, self.sinks, self.causal = window, sinks, causal
        self.feature_map = make_feature_map(self.head_dim, self.num_kv_heads, config, self.scale)
        channels = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.short_conv = ShortConvolution(channels, short_conv) if short_conv else None
        self.gate = config.decay == "gated"
        if self.gate:
            self.decay_proj = Gate(hidden_size, [bias_of_half_life(h) for h in _half_lives(self.num_kv_heads)])
        elif config.decay != "none":
            self.decay_logit = nn.Parameter(torch.empty(self.num_kv_heads), requires_grad=config.decay == "learned")
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Decay: the half-lives of `_half_lives`."""
        if hasattr(self, "decay_logit") and not self.decay_logit.is_meta:
            with torch.no_grad():
                half_lives = torch.tensor(_half_lives(self.num_kv_heads))
                self.decay_logit.copy_(torch.log(math.log(2) / half_lives))

    @classmethod
    def from_softmax(
        cls,
        layer: ProjectedAttention,
        *,
        window: int = 0,
        sinks: int = 0,
        feature_map: FeatureMapConfig | None = None,
        causal: bool = True,
        short_conv: int = 0,
    ) -> Self:
        """A linear layer that has taken over (shares) the projections of a softmax layer."""
        new = cls(
            layer.hidden_size, layer.num_heads, layer.num_kv_heads, layer.head_dim,
            window=window, sinks=sinks, feature_map=feature_map, causal=causal, short_conv=short_conv,
            scale=layer.scale, softcap=layer.softcap, rope=layer.rope,
        )  # fmt: skip
        new.q_norm, new.k_norm = layer.q_norm, layer.k_norm
        new.q_proj, new.k_proj, new.v_proj, new.o_proj = layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj
        return new.to(layer.q_proj.weight.device)

    @property
    def log_decay(self) -> Tensor | None:
        """Log-decay of each key-value head, (G,) fp32, below 0; None where the state does not decay, or by a gate."""
        return -self.decay_logit.exp() if hasattr(self, "decay_logit") else None

    def new_cache(self) -> StateCache | HybridCache:
        """A linear state, and with a window the ring of its keys and values."""
        return HybridCache(self.window, self.sinks) if self.window else StateCache()

    def forward(
        self,
        x: Tensor,
        layout: Layout | None = None,
        cache: LayerCache | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden).

        Args:
            x: hidden states.
            layout: positions, padding and packing, where a model has made them.
            cache: memory from `new_cache`, appended to.
            attention_mask: (B, T), 1 for tokens and 0 for padding: in place of a layout.
        """
        if isinstance(layout, Tensor):
            raise TypeError("a mask is given by name: attention_mask=mask")
        if cache is not None and not self.causal:
            raise ValueError("a layer that sees all positions (causal=False) has no cache")
        if layout is None and attention_mask is not None:
            layout = Layout(mask=attention_mask.bool())
        return super().forward(x, layout, cache)

    def channels(self, x: Tensor, layout: Layout, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `ProjectedAttention.channels`; behind the short convolution, where there is one."""
        q, k, v = super().channels(x, layout, cache)
        if self.short_conv is None:
            return q, k, v
        memory = cache.linear if isinstance(cache, HybridCache) else cache
        assert memory is None or isinstance(memory, StateCache)
        mixed = self.short_conv(torch.cat((q, k, v), dim=-1), layout.mask, layout.seq_ids, memory)
        q, k, v = mixed.split((q.shape[-1], k.shape[-1], v.shape[-1]), dim=-1)
        return q, k, v

    def project(self, x: Tensor, layout: Layout, cache: LayerCache | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """See `ProjectedAttention.project`; the values are those of `gated`."""
        q, k, v = super().project(x, layout, cache)
        return q, k, self.gated(v, x)

    def gated(self, v: Tensor, x: Tensor) -> Tensor:
        """Values with what their tokens' gates say as more channels: cached, padded and shifted as the values are.

        Args:
            v: (B, G, T, D).
            x: (B, T, hidden), what the layer is given.

        Returns:
            (B, G, T, D) as they are, or with `decay` "gated" (B, G, T, D + 1): the log-decay behind them.
        """
        if not self.gate:
            return v
        return torch.cat((v, -F.softplus(self.decay_proj(x)).to(v.dtype)), dim=-1)

    def _parted(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values (..., D) and log-decay, (...) from a gate or (G,) or None, of what `gated` gave."""
        return (v[..., :-1], v[..., -1]) if self.gate else (v, self.log_decay)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """See `ProjectedAttention.mix`; v is that of `gated`."""
        if self.window:
            one_token = q.shape[2] == 1 and layout.mask is None
            if isinstance(cache, HybridCache) and cache.window.sinks_full and one_token:
                return self._decode_hybrid(q, k, v, cache)
            if self._all_in_window(q, cache):
                return SoftmaxAttention.mix(self, q, k, v[..., : self.head_dim], layout, None)  # type: ignore[arg-type]
            return self._hybrid(q, k, v, layout, cache)
        if not self.linear_enabled:
            return torch.zeros_like(q)
        if isinstance(cache, StateCache) and q.shape[2] == 1 and layout.mask is None:
            return self._decode(q, k, v, cache)
        features, _ = _shifted(self.feature_map(q))
        keys = _key_features(self.feature_map.of_keys(k))
        values, log_decay = self._parted(v)
        shared: dict[str, Any] = dict(eps=TINY, mask=layout.mask, seq_ids=layout.seq_ids)
        if not self.causal:
            return linear_attention(features, keys, values, causal=False, **shared).to(q.dtype)
        memory = cache if isinstance(cache, StateCache) else None
        out, state = linear_attention(
            features, keys, values, log_decay,
            initial_state=memory.state if memory else None, return_state=True, **shared,
        )  # fmt: skip
        if memory:
            memory.state = state
        return out.to(q.dtype)

    def _all_in_window(self, q: Tensor, cache: LayerCache | None) -> bool:
        """Whether the queries (B, H, T, D) see all there is by softmax, so that the state would stay empty."""
        return cache is None and q.shape[2] <= self.window and self.window_enabled

    def _hybrid(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: LayerCache | None) -> Tensor:
        """Window and linear part over whole sequences. Key t of the linear part is the one that leaves the window
        at query t: the keys shifted by w."""
        T, memory = q.shape[2], cache if isinstance(cache, HybridCache) else None
        seen = window_columns(k, v, self.window, self.sinks, layout, memory.window if memory else None)
        numerator, denominator, top = window_terms(
            q, seen.k, self._parted(seen.v)[0], self.window, self.scale, valid=seen.valid, seq_ids=layout.seq_ids,
            key_seq_ids=seen.seq_ids, softcap=self.softcap,
            sinks=None if seen.sinks is None else seen.sinks._replace(v=self._parted(seen.sinks.v)[0]),
        )  # fmt: skip
        left = seen.leaving(T, layout.seq_ids)
        features, shift = _shifted(self.feature_map(q))
        key_features = _key_features(self.feature_map.of_keys(seen.k[:, :, :T])) * left[:, None, :, None]
        values, log_decay = self._parted(seen.v[:, :, :T])
        if log_decay is not None:
            rates = log_decay if self.gate else log_decay[None, :, None]
            log_decay = (rates * left[:, None]).expand(q.shape[0], -1, T)
        initial = memory.linear.state if memory else None
        outgoing = F.pad(values.to(numerator.dtype), (0, 1), value=1.0)  # ones give the denominator
        terms, state = linear_attention(
            features, key_features, outgoing, log_decay, normalize=False, seq_ids=layout.seq_ids,
            initial_state=None if initial is None else _with_ones(initial), return_state=True,
        )  # fmt: skip
        if memory:
            memory.linear.state = LinearState(state.s[..., :-1].contiguous(), state.s[..., -1].contiguous())
        return self._join(numerator, denominator, top, terms[..., :-1], terms[..., -1:], shift).to(q.dtype)

    def _join(self, window: Tensor, window_sum: Tensor, top: Tensor, linear: Tensor, linear_sum: Tensor,
              shift: Tensor) -> Tensor:  # fmt: skip
        """One normalisation for both parts: their shifts are brought to the larger of the two."""
        common = torch.maximum(top, shift)
        a = torch.exp(top - common) * self.window_enabled
        b = torch.exp(shift - common) * self.linear_enabled
        return (a * window + b * linear) / (a * window_sum + b * linear_sum).clamp_min(TINY)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, cache: StateCache) -> Tensor:
        """One token of linear attention alone: (B, H, 1, D)."""
        query_logs, key_logs = self._of_step(q, k)
        queries, _ = _shifted(query_logs)
        values, log_decay = self._parted(v[:, :, 0])
        out, cache.state = recurrent_step(
            queries.flatten(1, 2), _key_features(key_logs), values, cache.state, log_decay,
            eps=TINY, inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        return out[:, :, None].to(q.dtype)

    def _decode_hybrid(self, q: Tensor, k: Tensor, v: Tensor, cache: HybridCache) -> Tensor:
        """One token: (B, H, 1, D). What leaves the ring enters the state, which is read at once."""
        (B, H, _, D), G = q.shape, self.num_kv_heads
        wide = torch.promote_types(q.dtype, torch.float32)
        gone = cache.window.push(k[:, :, 0], v[:, :, 0])
        keys, values, valid = cache.window.columns()
        scores = torch.matmul(q.view(B, G, H // G, D), keys.transpose(-1, -2)).to(wide) * self.scale  # (B, G, R, w)
        if self.softcap is not None:
            scores = soft_cap(scores, self.softcap)
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        top = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - top)
        window = torch.matmul(weights.to(values.dtype), self._parted(values)[0]).to(wide)
        window_sum = weights.sum(-1, keepdim=True)
        if gone is None:  # the state is empty: nothing has left the window
            linear, linear_sum, shift = torch.zeros_like(window), torch.zeros_like(top), top
        else:
            linear, linear_sum, shift = self._absorb_and_read(q, *gone, cache.linear)
        return self._join(window, window_sum, top, linear, linear_sum, shift).view(B, H, 1, D).to(q.dtype)

    def _absorb_and_read(
        self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None, linear: StateCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds a key and a value, (B, G, D), to the state where valid, then reads it for queries (B, H, 1, D).

        Returns:
            numerator (B, G, R, D), denominator and shift (B, G, R, 1).
        """
        B, H, _, D = q.shape
        query_logs, key_logs = self._of_step(q, k[:, :, None])
        queries, shift = _shifted(query_logs)  # (B, G, R, M)
        features, (v, decay) = _key_features(key_logs), self._parted(v)
        if valid is not None:
            features = features * valid[:, None, None]
            decay = None if decay is None else decay * valid[:, None]
        out, linear.state = recurrent_step(
            queries.flatten(1, 2), features, v.to(queries.dtype), linear.state, decay,
            normalize=False, inplace=not torch.is_grad_enabled(),
        )  # fmt: skip
        assert linear.z is not None
        return (
            out.view(B, self.num_kv_heads, H // self.num_kv_heads, D),
            torch.matmul(queries, linear.z[..., None]),
            shift,
        )

    def _of_step(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Log-features of a step's queries (B, H, 1, D) and key (B, G, 1, D): (B, G, R, M) and (B, G, M)."""
        return self.feature_map.of_step(q.unflatten(1, (self.num_kv_heads, -1)).squeeze(3), k)


def _half_lives(groups: int) -> list[float]:
    """From 32 to 2,048 positions in powers, over the key-value heads, as RetNet's are."""
    return [32 * 64 ** (g / max(1, groups - 1)) for g in range(groups)]


def _shifted(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Features with their largest at 1, (..., M), and the logarithm that was taken out, (..., 1)."""
    shift = logs.detach().amax(-1, keepdim=True)
    return torch.exp(logs - shift), shift


def _key_features(logs: Tensor) -> Tensor:
    return torch.exp(logs.clamp_max(MAX_LOG_FEATURE))


def _with_ones(state: LinearState) -> LinearState:
    """The state of values with a one appended: z is the state of that one."""
    return LinearState(torch.cat((state.s, state.z[..., None]), dim=-1), state.z)
