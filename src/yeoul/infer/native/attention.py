"""From the attention of a layer to operations of the native library."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from yeoul.infer.native.memory import Everything, Hybrid, LayerMemory, Places, Shape, State, Window
from yeoul.infer.native.program import ADD, FP32, NO_INPUT_NORM, NO_WAIT, PLACES, TYPES, Builder, Unsupported
from yeoul.model.attention import ProjectedAttention, SlidingAttention, SoftmaxAttention
from yeoul.model.cache import SCORE
from yeoul.model.feature_maps.base import FeatureMap, SeparateFeatureMaps
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.feature_maps.fourier import FourierFeatureMap
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.model.state_updates.delta import GatedDeltaAttention
from yeoul.model.state_updates.retention import RetentionAttention

SIGMOID, SOFTPLUS, SCALED_SOFTPLUS, POSITION = range(4)
"""Functions of GATE."""
QUERY, KEY, UNIT = range(3)
"""What FEATURES gives: queries' with their shift, keys', or of length 1."""


class Left(NamedTuple):
    """What leaves a window: key, value, whether anything does, and its gates; activations."""

    k: int
    v: int
    written: int
    gates: dict[str, int]


class AttentionOperations:
    """Attention of one layer: what stands between its projections.

    Attributes:
        memory: from the layer's places, (max_rows, PLACES) numpy, to its memory; there after `attend`.

    Args:
        builder: gets the operations.
        layer: of the model.
        number: of the layer in it.
        projected: activations of queries, keys and values.
        dtype: of keys and values in the cache.
        threads: that will run the program.

    Raises:
        Unsupported: the library does not do all that the layer does.
    """

    memory: Callable[[Places], LayerMemory]

    def __init__(
        self,
        builder: Builder,
        layer: ProjectedAttention,
        number: int,
        projected: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        threads: int,
    ) -> None:
        self.builder, self.layer, self.number, self.dtype = builder, layer, number, dtype
        self.q, self.k, self.v = projected
        self.sizes = layer.num_heads, layer.num_kv_heads, layer.head_dim
        self.gates: dict[str, int] = {}
        self.splits = 1 if self.sizes[1] % threads == 0 else threads
        if not isinstance(layer, LinearAttention):
            if type(layer) not in (SoftmaxAttention, SlidingAttention):
                raise Unsupported(type(layer).__name__)
        elif type(layer) not in (DiJiangAttention, RetentionAttention, GatedDeltaAttention):
            raise Unsupported(type(layer).__name__)
        elif not (layer.causal and layer.linear_enabled and layer.window_enabled):
            raise Unsupported("a part that is switched off")

    @property
    def place(self) -> int:
        """Where the layer's changing numbers begin: those of PUSH, two for ATTEND, one for the state."""
        return self.number * PLACES

    def gates_of_input(self, x: int) -> None:
        """What follows from the layer's input alone; nobody waits for it yet."""
        layer = self.layer
        if not isinstance(layer, LinearAttention):
            return
        if layer.exact_score is not None:
            of_x = layer.exact_score.weight[:, : layer.exact_score.sizes[0]]
            self._gate(SCORE, x, of_x, None)
        for name, gate in (("write_strength", "beta_proj"), ("log_decay", "decay_proj")):
            module = getattr(layer, gate, None)
            if module is not None:
                self._gate(name, x, module.weight, module.bias)

    def _gate(self, name: str, x: int, weight: Tensor, bias: Tensor | None) -> None:
        out = self.gates[name] = self.builder.activation(len(weight))
        own = (x, self.builder.constant(weight), -1, self.builder.constant(bias), out)
        self.builder.add("LINEAR", own, (*weight.shape, FP32, 1), flags=NO_WAIT)

    def convolve(self) -> None:
        """The short convolution, where there is one."""
        conv = getattr(self.layer, "short_conv", None)
        if conv is None:
            return
        H, G, D = self.sizes
        numbers = (H * D, G * D, conv.size, TYPES[self.dtype])
        own = (self.q, self.k, self.v, self.builder.constant(conv.weight), self.builder.slot())
        self.builder.add("CONV", own, numbers)

    def attend(self) -> int:
        """Memory, and what is read of it; an activation of H D numbers."""
        layer = self.layer
        if isinstance(layer, LinearAttention):
            self._finish_gates(layer)
            queries = self._queries(layer)
            return self._hybrid(layer, queries) if layer.window else self._linear_alone(layer, queries)
        self.builder.in_order = True
        out = self._softmax_or_window(layer)
        self.builder.in_order = False
        return out

    def _softmax_or_window(self, layer: ProjectedAttention) -> int:
        if isinstance(layer, SlidingAttention):
            partial = self._window(layer.window, layer.sinks, 0, (), None)
            self.memory = lambda p: Window(self._shape, (), (*_of_window(p), None))
            return self._merge(partial)[0]
        return self._softmax()

    @property
    def _shape(self) -> Shape:
        return Shape(heads=self.sizes[1], dim=self.sizes[2], dtype=self.dtype)

    def _softmax(self) -> int:
        H, G, D = self.sizes
        k, v, valid = (self.builder.slot() for _ in range(3))
        kind = TYPES[self.dtype]
        buffers = {0: self.k, 1: self.v, 11: k, 12: v}
        push = self.builder.add("PUSH", buffers, (G, D, 1, 0, 0, 0, 0, kind, -1), places=self.place)
        attend, partial = self._attend(k, v, valid, 1)
        self.memory = lambda p: Everything(self._shape, (push, attend), _of_window(p))
        return self._merge(partial)[0]

    def _attend(self, k: int, v: int, valid: int, slots: int) -> tuple[int, int]:
        """Number of the operation, and the activation with its parts."""
        H, G, D = self.sizes
        partial = self.builder.activation(H * self.splits * (D + 2))
        numbers = (H, G, D, slots, TYPES[self.dtype], self.splits)
        factors = (self.layer.scale, self.layer.softcap or 0.0)
        own = (self.q, partial, k, v, valid)
        return self.builder.add("ATTEND", own, numbers, factors, places=self.place + 4), partial

    def _merge(self, partial: int, *, terms: bool = False) -> tuple[int, int, int]:
        """The quotient, or with `terms` numerator, denominator and log scale."""
        H, _, D = self.sizes
        out = self.builder.activation(H * D)
        below, scale = (self.builder.activation(H) if terms else -1 for _ in range(2))
        self.builder.add("MERGE", (partial, out, below, scale), (H, D, self.splits))
        return out, below, scale

    def _window(self, window: int, sinks: int, exact: int, names: tuple[str, ...], left: Left | None) -> int:
        """PUSH and ATTEND of a ring: the activation with its parts."""
        _, G, D = self.sizes
        k, v, valid = (self.builder.slot() for _ in range(3))
        age = self.builder.slot() if exact else -1
        gates = [self.builder.slot() for _ in names]
        buffers = {0: self.k, 1: self.v, 11: k, 12: v, 13: valid, 14: age}
        buffers |= {2 + i: self.gates[name] for i, name in enumerate(names)}
        buffers |= {15 + i: slot for i, slot in enumerate(gates)}
        if left is not None:
            buffers |= {5: left.k, 6: left.v, 10: left.written}
            buffers |= {7 + i: left.gates[name] for i, name in enumerate(names)}
        slots, score = sinks + window + exact, names.index(SCORE) if exact else -1
        numbers = (G, D, slots, window, sinks, exact, len(names), TYPES[self.dtype], score)
        self.builder.add("PUSH", buffers, numbers, places=self.place)
        return self._attend(k, v, valid, slots)[1]

    # -- linear attention

    def _finish_gates(self, layer: LinearAttention) -> None:
        """What a score has of key, value and position; the functions of the other gates."""
        _, G, D = self.sizes
        if layer.exact_score is not None:
            _, of_k, of_v = layer.exact_score.weight.split(layer.exact_score.sizes, dim=1)
            for x, weight in ((self.k, of_k), (self.v, of_v)):
                own = (x, self.builder.constant(weight), -1, self.gates[SCORE])
                self.builder.add("HEADS", own, (G, 1, 1, D), flags=ADD)
            self._function(SCORE, POSITION, layer.exact_score.recency)
        if "write_strength" in self.gates:
            self._function("write_strength", SIGMOID, None)
        if "log_decay" in self.gates:
            scaled = getattr(layer, "decay_log", None)
            self._function("log_decay", SOFTPLUS if scaled is None else SCALED_SOFTPLUS, scaled)

    def _function(self, gate: str, function: int, parameter: Tensor | None) -> None:
        own = (self.gates[gate], self.builder.constant(parameter))
        self.builder.add("GATE", own, (self.sizes[1], function))

    def _hybrid(self, layer: LinearAttention, queries: tuple[int, int]) -> int:
        _, G, D = self.sizes
        names = tuple(name for name in (SCORE, "write_strength", "log_decay") if name in self.gates)
        left = Left(
            self.builder.activation(G * D), self.builder.activation(G * D), self.builder.activation(G),
            {name: self.builder.activation(G) for name in names},
        )  # fmt: skip
        self.builder.in_order = True
        partial = self._window(layer.window, layer.sinks, layer.exact, names, left)
        window = self._merge(partial, terms=True)
        keys = self._keys(layer, left.k)
        read = self._read(layer, queries, keys, left.v, left.gates, left.written)
        out = self._join(layer, read, window)
        self.builder.in_order = False
        state = self._state_memory(layer)
        self.memory = lambda p: Hybrid(Window(self._shape, names, (*_of_window(p), _of_state(p))), state(None))
        return out

    def _linear_alone(self, layer: LinearAttention, queries: tuple[int, int]) -> int:
        keys = self._keys(layer, self.k)
        self.builder.in_order = True
        read = self._read(layer, queries, keys, self.v, self.gates, -1)
        out = self._join(layer, read, (-1, -1, -1))
        self.builder.in_order = False
        state = self._state_memory(layer)
        self.memory = lambda p: state(_of_state(p))
        return out

    def _state_memory(self, layer: LinearAttention) -> Callable[[Places | None], State]:
        H, G, D = self.sizes
        delta = isinstance(layer, GatedDeltaAttention)
        recent = None
        if layer.short_conv is not None:
            recent = layer.short_conv.size - 1, (H + 2 * G) * D, self.dtype
        numbers = (G, layer.feature_map.features, D + delta)
        return lambda places: State(numbers, not delta, recent, places)

    def _queries(self, layer: LinearAttention) -> tuple[int, int]:
        """Queries' features, and the log scale of what they read."""
        H, _, D = self.sizes
        delta = isinstance(layer, GatedDeltaAttention)
        of = layer.feature_map.query_map if isinstance(layer.feature_map, SeparateFeatureMaps) else layer.feature_map
        queries, shift = self._features(of, self.q, H, UNIT if delta else QUERY)
        if isinstance(layer, GatedDeltaAttention):
            shift = self.builder.activation(H)
            weight = self.builder.constant(layer.read_direction)
            own = (self.q, weight, self.builder.constant(layer.read_mass), shift)
            self.builder.add("HEADS", own, (H, 1, 1, D))
        return queries, shift

    def _keys(self, layer: LinearAttention, k: int) -> int:
        """Features of the keys that enter the state."""
        of = layer.feature_map.key_map if isinstance(layer.feature_map, SeparateFeatureMaps) else layer.feature_map
        return self._features(of, k, self.sizes[1], UNIT if isinstance(layer, GatedDeltaAttention) else KEY)[0]

    def _read(
        self, layer: LinearAttention, queries: tuple[int, int], keys: int, v: int, gates: dict[str, int], written: int
    ) -> tuple[int, int, int]:
        """Takes in keys' features and values, and reads: numerator, denominator, log scale."""
        H, G, D = self.sizes
        out, below, s = self.builder.activation(H * D), self.builder.activation(H), self.builder.slot()
        decay, numbers, place = gates.get("log_decay", -1), (H, G, layer.feature_map.features, D), self.place + 6
        if isinstance(layer, GatedDeltaAttention):
            own = [queries[0], keys, v, decay, gates["write_strength"], written, out, below, s]
            self.builder.add("DELTA", own, numbers, places=place)
        else:
            fixed = self.builder.constant(getattr(layer, "log_decay", None)) if decay < 0 else -1
            own = [queries[0], keys, v, decay, fixed, written, out, below, s, self.builder.slot()]
            self.builder.add("STATE", own, numbers, places=place)
        return out, below, queries[1]

    def _join(self, layer: LinearAttention, read: tuple[int, ...], window: tuple[int, ...]) -> int:
        H, _, D = self.sizes
        out = self.builder.activation(H * D)
        delta = isinstance(layer, GatedDeltaAttention)
        self.builder.add("JOIN", (*read, window[0], window[1], window[2], out), (H, D, delta), places=self.place + 6)
        return out

    def _features(self, of: nn.Module, x: int, heads: int, mode: int) -> tuple[int, int]:
        """Features and shift (-1 for none) of vectors of so many heads."""
        G, D = self.sizes[1:]
        assert isinstance(of, FeatureMap)
        M, share = of.features, heads // G
        out = self.builder.activation(heads * M)
        shift = self.builder.activation(heads) if mode == QUERY else -1
        if type(of) is CodebookFeatureMap:
            return self._codes(of, x, heads, mode, out, shift)
        count = of.count
        if type(of) is FourierFeatureMap:
            waves = (of.directions * of.frequencies[:, None]).transpose(1, 2) * of.shrink
            projected = self._heads(x, waves, of.phases, heads, share)
            weights = self.builder.constant(of.log_weights.softmax(-1).sqrt())
            own = {0: projected, 1: x, 2: weights, 6: out}
            self.builder.add("FEATURES", own, (heads, share, count, M, D, 2, mode))
            return out, shift
        if not isinstance(of, FrequencyFeatureMap) or type(of).grouped is not FrequencyFeatureMap.grouped:
            raise Unsupported(f"the feature map {of.config.name}")
        directions = of.directions if of.directions is not None else of.dct(torch.device("cpu"))
        waves = (directions * of.frequencies[:, None]).transpose(1, 2) * of.shrink  # (G, F, D)
        projected = self._heads(x, waves, None, heads, share)
        own = {0: projected, 1: x, 2: self.builder.constant(of.log_weights), 6: out, 7: shift}
        kernel = int(of.config.kernel == "softmax")
        if kernel:
            own[3] = self.builder.constant(of.log_mass)
            if of.config.mass == "learned":
                own[4], own[5] = self.builder.constant(of.mass_direction), self.builder.constant(of.temper)
        flags = 0 if of.has_norm_term else NO_INPUT_NORM
        self.builder.add("FEATURES", own, (heads, share, count, M, D, kernel, mode), (of.shrink,), flags=flags)
        return out, shift

    def _codes(self, of: CodebookFeatureMap, x: int, heads: int, mode: int, out: int, shift: int) -> tuple[int, int]:
        """Of a codebook: queries weigh all codes, a key has one."""
        (_, G, D), M = self.sizes, of.features
        reads = x == self.q
        if reads:
            projected = self._heads(x, of.directions * of.shrink, of.read_bias, heads, 1)
            own = {0: projected, 1: x, 2: self.builder.constant(torch.zeros(G, M)), 6: out, 7: shift}
            numbers = (heads, heads // G, M, M, D, 0, mode)
            self.builder.add("FEATURES", own, numbers, (of.shrink,), flags=NO_INPUT_NORM)
            return out, shift
        near = self._heads(x, of.assign * of.shrink, of.assign_bias, heads, 1)
        direction, bias = self.builder.constant(of.key_direction), self.builder.constant(of.key_bias)
        self.builder.add("CODE", (near, x, direction, bias, out), (G, M, D, int(mode == UNIT)), (of.shrink,))
        return out, shift

    def _heads(self, x: int, weight: Tensor, bias: Tensor | None, heads: int, share: int) -> int:
        """Each head's vector times its own weight (heads / share, F, D)."""
        count = weight.shape[1]
        out = self.builder.activation(heads * count)
        own = (x, self.builder.constant(weight), self.builder.constant(bias), out)
        self.builder.add("HEADS", own, (heads, share, count, self.sizes[2]))
        return out


def _of_window(places: Places) -> tuple[Places, Places]:
    """The places of PUSH and of ATTEND among those of a layer."""
    return places[:, :4], places[:, 4:6]


def _of_state(places: Places) -> Places:
    """That of what reads the state."""
    return places[:, 6:7]
