"""Linear attention as a layer: projections, a state, and beside it a window of softmax; alike for every state update.

With a window w the last w positions are attended to by softmax and everything before them by the state; both are
summed as estimates of the same exp(q.k / sqrt(D)) and normalised once. A key enters the state when it leaves the
window, with the gates that its own token gave it. Training, prefill and decoding compute the same function.

How a token enters the state and how it is read is what subclasses add, see `yeoul.model.state_updates`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from yeoul.model.attention import (
    AttentionContext,
    ProjectedAttention,
    WindowColumns,
    causal_attention,
    window_columns,
)
from yeoul.model.cache import SCORE, Columns, Gates, HybridCache, LayerCache, StateCache
from yeoul.model.exact_score import ExactScore
from yeoul.model.feature_maps.base import FeatureMap, make_feature_map
from yeoul.model.feature_maps.config import FeatureMapConfig
from yeoul.model.short_conv import ShortConvolution
from yeoul.ops.exact_pairs import NOTHING, Kept, select_pairs, take
from yeoul.ops.window import Terms, join_terms, ring_terms, window_terms

POSITIONS = "positions"
"""Under this name the positions travel among the gates, (B or 1, 1, T) int64, where the feature map asks for them."""


class Positions(NamedTuple):
    """Of queries (B or 1, T) and of the keys that enter the state with them, (B or 1, T) or of each key-value head
    (B, G, T), int64; None where nobody asks."""

    q: Tensor | None = None
    k: Tensor | None = None


class Tunable(NamedTuple):
    """A number of each key-value head that `yeoul.adapt.linear_init` may choose by how near a teacher is.

    Attributes:
        values: what is tried.
        put: sets it, given (G,).
    """

    values: Sequence[float]
    put: Callable[[Tensor], None]


class LinearAttention(ProjectedAttention):
    """Linear attention, with or without a softmax window; for any model. A new state update is a subclass with

    - `gates`: what each token says when it is taken in (none unless overridden);
    - `read`: whole sequences through the state, and `read_step`: one token;
    - `combine`: what these give, beside a window or alone, as output (the usual quotient unless overridden);
    - `set_decay` and `tunables`, where it can begin on what is known of a teacher.

    With `sinks` the first tokens of every text always stay in the softmax, too: they neither count into the
    window nor enter the state (arXiv 2309.17453). With `exact` so do, of all keys that have left the window, the ones
    that score highest (`ExactScore`); a key enters the state when a better one takes its place, not before.

    Args:
        hidden_size: width of input and output.
        num_heads: query heads H.
        num_kv_heads: key-value heads G, each with one state; None means H.
        head_dim: D; None means hidden_size / num_heads.
        window: w; 0 means linear attention alone.
        sinks: how many of the first tokens stay in the softmax; they need a window.
        exact: how many pairs of key and value each key-value head keeps beside its window; they need one.
        causal: False lets every position see all others (vision, audio, encoders), where the state update can; it
            excludes a window, decay and a short convolution.
        feature_map: the features and what of them is trained.
        short_conv: positions that a causal convolution over queries, keys and values spans; 0 is none.
        bias: biases of the query, key and value projections.
        output_bias: bias of the output projection; None means as `bias`.
        options: qk_norm, scale, softcap and rope of `ProjectedAttention`. A soft cap is kept in the window; the
            linear part has none.
    """

    takes_signed: ClassVar[bool] = False
    """Whether features may have both signs."""
    takes_decay: ClassVar[bool] = True
    """Whether the decay of `FeatureMapConfig` is this state's; False where it has a gate of its own, or none."""

    @classmethod
    def state_numbers(cls, features: int, head_dim: int) -> int:
        """How many numbers (fp32) the state of a key-value head has."""
        raise TypeError(f"{cls.__name__} has no state_numbers()")

    @classmethod
    def gate_numbers(cls, decay: str) -> int:
        """How many numbers (fp32) of a key-value head `gates` gives to each token, with this decay of
        `FeatureMapConfig`; positions do not count."""
        return 0

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
        exact: int = 0,
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
        if (sinks or exact) and not window:
            raise ValueError("sinks and exact pairs stand beside a window: they need window > 0")
        if config.decay != "none" and not self.takes_decay:
            raise ValueError("the state has a decay of its own in place of the feature map's")
        self.window, self.sinks, self.exact, self.causal = window, sinks, exact, causal
        self.feature_map = make_feature_map(self.head_dim, self.num_kv_heads, config, self.scale, self.num_heads)
        if self.feature_map.signed and not self.takes_signed:
            raise ValueError(f"the feature map {config.name!r} has both signs, which only the delta rule takes")
        channels = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.short_conv = ShortConvolution(channels, short_conv) if short_conv else None
        self.exact_score = ExactScore(self.hidden_size, self.num_kv_heads, self.head_dim) if exact else None

    # -- what state updates say of themselves

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
        """Takes in a sequence of tokens, and reads for a query behind each.

        Args:
            q: (B, H, T, D).
            k: (B, G, T, D), the key that enters with each query: its own, or the one that leaves the window.
            v: (B, G, T, D).
            gates: of the tokens of k and v, from `gates`: each (B, G, T, ...).
            state: what came before; takes what comes out. None is nothing, and nothing is kept.
            positions: of q and k, where the feature map asks for them.
            written: (B or 1, G or 1, T) bool, which of the keys enter; a column that does not lets nothing decay. None:
                all.
            mask: (B, T) bool, False at padding, whose output is 0.
            seq_ids: (B, T) int64, packed sequences, each with a state of its own.
        """
        raise TypeError(f"{type(self).__name__} has no read()")

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
        """The same of one token: q (B, H, 1, D), k and v (B, G, D), gates (B, G, ...), written (B, G or 1) bool."""
        raise TypeError(f"{type(self).__name__} has no read_step()")

    def combine(self, read: Terms, window: Terms | None) -> Tensor:
        """(B, H, T, D) from what the state gave, and beside a window from that as well."""
        if window is None:
            return read.numerator / read.denominator
        return self.join(window, read)

    def set_decay(self, rates: Tensor) -> None:
        """Lets each key-value head forget by e^-rate a position, (G,); nothing where that is not learned."""

    def tunables(self) -> list[Tunable]:
        """What linear_init chooses by trying, in this order, each together with `set_read_scale`; empty: nothing."""
        return []

    def read_log_scale(self, q: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Of layers with `tunables`: log_scale of what is read for queries (B, H, T, D), (B, H, T, 1)."""
        raise TypeError(f"{type(self).__name__} has no read_log_scale()")

    def set_read_scale(self, log_scale: Tensor) -> None:
        """Of layers with `tunables`: sets what `read_log_scale` gives before training, (H,)."""
        raise TypeError(f"{type(self).__name__} has no set_read_scale()")

    # -- what is alike for all of them

    def maps(self) -> list[FeatureMap]:
        """The feature map, or both where queries and keys have their own."""
        return [module for module in self.feature_map.modules() if isinstance(module, FeatureMap)]

    def new_cache(self) -> StateCache | HybridCache:
        """A linear state, and with a window the ring of its keys, values and gates."""
        return HybridCache(self.window, self.sinks, self.exact) if self.window else StateCache()

    def forward(
        self,
        x: Tensor,
        context: AttentionContext | None = None,
        cache: LayerCache | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, hidden) -> (B, T, hidden).

        Args:
            x: hidden states.
            context: positions, padding and packing, where a model has made them.
            cache: memory from `new_cache`, appended to.
            attention_mask: (B, T), 1 for tokens and 0 for padding: in place of a context.
        """
        if isinstance(context, Tensor):
            raise TypeError("a mask is given by name: attention_mask=mask")
        if cache is not None and not self.causal:
            raise ValueError("a layer that sees all positions (causal=False) has no cache")
        if context is None and attention_mask is not None:
            context = AttentionContext(mask=attention_mask.bool())
        context = context or AttentionContext()
        if context.positions is None and isinstance(cache, HybridCache) and cache.window.length:
            later = torch.arange(x.shape[1], device=x.device) + cache.window.length
            context = dataclasses.replace(context, positions=later[None])
        return super().forward(x, context, cache)

    def channels(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """See `ProjectedAttention.channels`; behind the short convolution, where there is one."""
        q, k, v = super().channels(x, context, cache)
        if self.short_conv is None:
            return q, k, v
        memory = cache.linear if isinstance(cache, HybridCache) else cache
        assert memory is None or isinstance(memory, StateCache)
        mixed = self.short_conv(torch.cat((q, k, v), dim=-1), context.mask, context.seq_ids, memory)
        q, k, v = mixed.split((q.shape[-1], k.shape[-1], v.shape[-1]), dim=-1)
        return q, k, v

    def gates(self, x: Tensor, context: AttentionContext, k: Tensor, v: Tensor) -> Gates:
        """What each token says beside its key and value, by name: each (B, G, T, ...), numbers in fp32 at least."""
        gates: Gates = {}
        positions = context.positions
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        if self.exact_score is not None:
            gates[SCORE] = self.exact_score(x, k, v, positions)
        if self.feature_map.uses_positions:
            gates[POSITIONS] = positions.expand(x.shape[0], -1)[:, None]
        return gates

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
        context, gates = context or AttentionContext(), gates or {}
        one_token = q.shape[2] == 1 and context.mask is None
        if not self.window:
            if not self.linear_enabled:
                return torch.zeros_like(q)
            state = cache if isinstance(cache, StateCache) else None
            if state is not None and one_token:
                return self.attend_state_step(q, k, v, gates, state)
            return self.attend_state(q, k, v, gates, context, state)
        memory = cache if isinstance(cache, HybridCache) else None
        if memory is not None and memory.window.sinks_full and one_token:
            return self._hybrid_step(q, k, v, gates, memory)
        if self.all_in_window(q, memory):
            return causal_attention(q, k, v, context, scale=self.scale, softcap=self.softcap)
        window, read = self.parts(q, k, v, gates, context, memory)
        return self.combine(read, window).to(q.dtype)

    def all_in_window(self, q: Tensor, cache: LayerCache | None = None) -> bool:
        """Whether the queries (B, H, T, D) see all there is by softmax, so that the state would stay empty."""
        return cache is None and q.shape[2] <= self.window + self.exact and self.window_enabled

    def parts(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        context: AttentionContext,
        cache: HybridCache | None = None,
        *,
        window: Terms | None = None,
    ) -> tuple[Terms | None, Terms]:
        """What the window gives, None without one, and what the state gives, of whole sequences: `combine` joins them.

        Arguments as `attend`; `window` is what the window gives, where that is known. Key t of the state is the one
        that leaves the window at query t, keys shifted by w, or the pair that is evicted then.
        """
        if not self.window:
            positions = Positions(_of(gates), _of(gates))
            return None, self.read(
                q, k, v, gates, None, positions=positions, mask=context.mask, seq_ids=context.seq_ids
            )
        T = q.shape[2]
        before = cache.window.kept() if cache and self.exact and cache.window.k is not None else None
        seen = window_columns(k, v, gates, self.window, self.sinks, context, cache.window if cache else None)
        leaving = self._leaving(seen, T, context, before, cache)
        if window is None:
            window = window_terms(
                q, seen.k, seen.v, self.window, self.scale, valid=seen.valid, seq_ids=context.seq_ids,
                key_seq_ids=seen.seq_ids, softcap=self.softcap, sinks=seen.sinks, kept=leaving.kept,
            )  # fmt: skip
        read = self.read(
            q, leaving.k, leaving.v, leaving.gates, cache.linear if cache else None,
            positions=Positions(_of(gates), _of(leaving.gates)), written=leaving.written, seq_ids=context.seq_ids,
        )  # fmt: skip
        return window, read

    def _leaving(
        self, seen: WindowColumns, T: int, context: AttentionContext, before: Columns | None, cache: HybridCache | None
    ) -> _Leaving:
        """What enters the state at each of T queries, and what is seen of the rest; `before` is what was kept."""
        left = seen.leaving(T, context.seq_ids)
        if not self.exact:
            gates = {name: gate[:, :, :T] for name, gate in seen.gates.items()}
            return _Leaving(seen.k[:, :, :T], seen.v[:, :, :T], gates, left[:, None], None)
        scores = seen.gates[SCORE][:, :, :T]
        keys, values, gates = seen.k, seen.v, seen.gates
        if before is not None:
            keys, values = torch.cat((before.k, keys), 2), torch.cat((before.v, values), 2)
            gates = {name: torch.cat((before.gates[name], gate), 2) for name, gate in gates.items()}
        chosen = select_pairs(
            scores, left, self.exact, self.window, seq_ids=context.seq_ids,
            before=None if before is None else before.gates[SCORE].masked_fill(~before.valid[:, None], NOTHING),
        )  # fmt: skip
        at = lambda columns: (take(keys, columns), take(values, columns))  # noqa: E731
        of = lambda columns: {name: take(gate, columns) for name, gate in gates.items()}  # noqa: E731
        if cache is not None:
            cache.window.keep(Columns(*at(chosen.last), of(chosen.last), chosen.last_valid[:, 0], None))
        kept = Kept(*at(chosen.kept), chosen.seen)
        return _Leaving(*at(chosen.evicted), of(chosen.evicted), chosen.written, kept)

    def join(self, window: Terms, read: Terms) -> Tensor:
        """One normalisation for both parts, of which either may be switched off."""
        return join_terms(window, read, use_first=self.window_enabled, use_second=self.linear_enabled)

    def attend_state(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, context: AttentionContext, state: StateCache | None
    ) -> Tensor:
        """Linear attention alone over whole sequences: (B, H, T, D)."""
        read = self.read(
            q, k, v, gates, state, positions=Positions(_of(gates), _of(gates)), mask=context.mask,
            seq_ids=context.seq_ids,
        )  # fmt: skip
        return self.combine(read, None).to(q.dtype)

    def attend_state_step(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: StateCache) -> Tensor:
        """One token of linear attention alone: (B, H, 1, D)."""
        positions = Positions(_of(gates), _of(gates))
        read = self.read_step(q, k[:, :, 0], v[:, :, 0], _first(gates), state, positions=positions)
        return self.combine(read, None).to(q.dtype)

    def positions_of(self, gates: Gates) -> Tensor | None:
        """The positions that travel among gates (B, G, T, ...): (B or 1, T), or (B, G, T) where heads differ."""
        return _of(gates)

    def _hybrid_step(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, cache: HybridCache) -> Tensor:
        """One token: (B, H, 1, D). What leaves the ring enters the state, which is read at once."""
        left = cache.window.push(k[:, :, 0], v[:, :, 0], _first(gates))
        window = ring_terms(q, *cache.window.columns(), scale=self.scale, softcap=self.softcap)
        if left is None:  # nothing has left the window: the state is empty
            read = self.read_nothing(q, window)
        else:
            at = left.gates.get(POSITIONS)
            read = self.read_step(
                q, left.k, left.v, left.gates, cache.linear, positions=Positions(_of(gates), at), written=left.valid
            )
        return self.combine(read, window).to(q.dtype)

    def read_nothing(self, q: Tensor, window: Terms) -> Terms:
        """What an empty state gives beside a window."""
        return Terms(
            torch.zeros_like(window.numerator), torch.zeros_like(window.denominator),
            torch.full_like(window.log_scale, -torch.inf),
        )  # fmt: skip


class _Leaving(NamedTuple):
    """Of T queries: the pair that enters the state at each, (B, G, T, ...), whether one does, and what is seen."""

    k: Tensor
    v: Tensor
    gates: Gates
    written: Tensor
    kept: Kept | None


def _of(gates: Gates) -> Tensor | None:
    """The positions that travel among gates: (B or 1, T), or (B, G, T) where heads differ."""
    positions = gates.get(POSITIONS)
    return None if positions is None else positions[:, 0] if positions.shape[1] == 1 else positions


def _first(gates: Gates) -> Gates:
    """Of one token: (B, G, 1, ...) to (B, G, ...)."""
    return {name: gate[:, :, 0] for name, gate in gates.items()}
