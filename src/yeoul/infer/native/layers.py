"""From a model's modules to operations of the native library: what it can do is said here, and nowhere else.

Everything that is not exactly one of the modules below (an adapter, a hook, a layer that only PyTorch has) is
`Unsupported`, and the whole model stays with PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.infer.native.memory import Everything, Hybrid, LayerMemory, Shape, State, Window
from yeoul.infer.native.program import (
    ADD,
    FP32,
    INT4,
    INT8,
    LAYERNORM,
    NO_INPUT_NORM,
    NO_WAIT,
    PLACES,
    TYPES,
    Builder,
)
from yeoul.model.attention import ProjectedAttention, SlidingAttention, SoftmaxAttention
from yeoul.model.cache import SCORE
from yeoul.model.decoder import Block, Decoder
from yeoul.model.feature_maps.base import FeatureMap, SeparateFeatureMaps
from yeoul.model.feature_maps.codebook import CodebookFeatureMap
from yeoul.model.feature_maps.fourier import FourierFeatureMap
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap
from yeoul.model.layers import GELUMLP, GatedMLP, ZeroCenteredRMSNorm, sinusoidal_table
from yeoul.model.linear_attention import LinearAttention
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear
from yeoul.model.rotary import rotary_columns
from yeoul.model.state_updates.additive import DiJiangAttention
from yeoul.model.state_updates.delta import GatedDeltaAttention
from yeoul.model.state_updates.retention import RetentionAttention

SILU, GELU_TANH, GELU = range(3)
SIGMOID, SOFTPLUS, SCALED_SOFTPLUS, POSITION = range(4)
"""Functions of GATE."""
QUERY, KEY, UNIT = range(3)
"""What FEATURES gives: queries' with their shift, keys', or of length 1."""


class Unsupported(Exception):
    """The library does not do this."""


class Rotation(NamedTuple):
    """A rotation that layers share.

    Attributes:
        cos, sin: slots of its tables.
        operations: numbers of the operations whose table it is.
        half: R, numbers of a row.
    """

    cos: int
    sin: int
    operations: list[int]
    half: int


class Translation:
    """A model as a `Builder`'s program.

    Attributes:
        builder: the program.
        layers: makes of the places, (layers + 1, PLACES) numpy, the memory of each layer.
        rotations: of the model, in the order of `ModelConfig.ropes`.
        result: the activation with the logits.

    Args:
        model: on the CPU, in fp32 or bf16.
        threads: that will run it.

    Raises:
        Unsupported: the library does not do all that the model does.
    """

    def __init__(self, model: Decoder, threads: int) -> None:
        self.model, self.threads = model, threads
        self._check()
        self.config = model.config
        self.builder = Builder()
        self.layers: list[Callable[[Any], LayerMemory]] = []
        self.rotations = self._rotations()
        self.x = self.builder.activation(self.config.hidden_size)
        self._embed()
        for number, block in enumerate(model.layers):
            self._block(number, block)
        self.result = self._unembed()

    def _check(self) -> None:
        if type(self.model) is not Decoder:  # it may compute something else
            raise Unsupported(type(self.model).__name__)
        if self.model.device.type != "cpu" or self.model.dtype not in TYPES:
            raise Unsupported(f"{self.model.device.type} and {self.model.dtype}")
        for name, module in self.model.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise Unsupported(f"a hook on {name}")
            if "forward" in vars(module):
                raise Unsupported(f"another forward of {name}")

    # -- parts that all models have

    def _rotations(self) -> list[Rotation]:
        found = []
        for rope in self.config.ropes:
            if rope.by_length:
                raise Unsupported(f"rotations of kind {rope.kind}")
            cos, _ = rotary_columns(rope, None, 1, 1, None, self.model.device)
            found.append(Rotation(self.builder.slot(), self.builder.slot(), [], cos.shape[-1]))
        return found

    def _table(self, module: nn.Module) -> tuple[int, int, list[int]]:
        """Weight, scales and (outputs, inputs, type, group) of a linear layer or an embedding."""
        if type(module) in (QuantizedLinear, QuantizedEmbedding):
            assert isinstance(module, QuantizedLinear)
            group = module.group_size or module.in_features
            kind = INT4 if module.bits == 4 else INT8
            if kind == INT4 and group % 8:
                raise Unsupported(f"groups of {group}")
            packed = self.builder.constant(module.weight_packed, None)
            scale = self.builder.constant(module.weight_scale, torch.bfloat16)
            return packed, scale, [module.out_features, module.in_features, kind, group]
        if type(module) not in (nn.Linear, nn.Embedding):
            raise Unsupported(type(module).__name__)
        weight: Any = module.weight
        if weight.dtype not in TYPES:
            raise Unsupported(f"weights of {weight.dtype}")
        return self.builder.constant(weight, None), -1, [*weight.shape, TYPES[weight.dtype], 1]

    def _linear(self, x: int, module: nn.Module, out: int, flags: int = 0) -> None:
        weight, scale, numbers = self._table(module)
        bias = self.builder.constant(getattr(module, "bias", None))
        self.builder.add("LINEAR", (x, weight, scale, bias, out), numbers, flags=flags)

    def _norm(self, x: int, module: nn.Module, out: int, *, count: int = 1, flags: int = 0) -> None:
        bias = None
        if type(module) is ZeroCenteredRMSNorm:
            weight, eps = 1 + module.weight.float(), module.eps
        elif type(module) is nn.RMSNorm:
            eps = torch.finfo(module.weight.dtype).eps if module.eps is None else module.eps
            weight = module.weight.float()
        elif type(module) is nn.LayerNorm:
            weight, bias, eps, flags = module.weight.float(), module.bias, module.eps, flags | LAYERNORM
        else:
            raise Unsupported(type(module).__name__)
        own = (x, self.builder.constant(weight), self.builder.constant(bias), out)
        self.builder.add("NORM", own, (count, len(weight)), (eps,), flags=flags)

    def _embed(self) -> None:
        config, table = self.config, self.model.model.embed_tokens
        weight, scale, numbers = self._table(table)
        factor = float(torch.tensor(config.embedding_scale, dtype=self.model.dtype))
        positions, count = -1, 0
        if config.positions == "learned":
            added: Tensor = self.model.model.embed_positions.weight
            positions, count = self.builder.constant(added), len(added)
        elif config.positions == "sinusoidal":
            factor *= config.hidden_size**0.5
            count = config.max_position_embeddings
            positions = self.builder.constant(sinusoidal_table(count, config.hidden_size, self.model.device))
        self.builder.add("EMBED", (weight, scale, positions, self.x), (*numbers, count), (factor,))

    def _unembed(self) -> int:
        normed, logits = (self.builder.activation(n) for n in (self.config.hidden_size, self.config.vocab_size))
        self._norm(self.x, self.model.model.norm, normed)
        self._linear(normed, self.model.output_table, logits)
        if self.config.logit_softcap is not None:
            self.builder.add("CAP", (logits,), (self.config.vocab_size,), (self.config.logit_softcap,))
        return logits

    def _block(self, number: int, block: Block) -> None:
        if type(block) is not Block:
            raise Unsupported(type(block).__name__)
        x, width = self.x, self.config.hidden_size
        inner, beside = self.builder.activation(width), self.builder.activation(width)
        before = x
        if block.placement != "post":
            before = inner
            self._norm(x, block.input_layernorm, inner, flags=NO_WAIT if block.parallel and block.mlp else 0)
        if block.mlp is not None and block.parallel:
            self._norm(x, block.post_attention_layernorm, beside)
        attended = self._attention(number, block.self_attn, before)
        output: Any = block.self_attn.o_proj
        if block.mlp is None or block.parallel or block.placement == "pre":
            self._linear(attended, output, x, flags=ADD)
        else:
            whole = self.builder.activation(width)
            self._linear(attended, output, whole)
            self._norm(whole, block.post_attention_layernorm, x, flags=ADD)
        if block.mlp is None:
            return
        if block.parallel:
            return self._mlp(beside, block.mlp, x, flags=ADD)
        if block.placement == "pre":
            self._norm(x, block.post_attention_layernorm, inner)
            return self._mlp(inner, block.mlp, x, flags=ADD)
        if block.placement == "sandwich":
            self._norm(x, block.pre_feedforward_layernorm, inner)
        self._mlp(x if block.placement == "post" else inner, block.mlp, beside)
        self._norm(beside, block.post_feedforward_layernorm, x, flags=ADD)

    def _mlp(self, x: int, mlp: nn.Module, out: int, flags: int = 0) -> None:
        if type(mlp) is GatedMLP:
            up, gate = (self.builder.activation(mlp.up_proj.out_features) for _ in range(2))
            self._linear(x, mlp.gate_proj, gate, flags=NO_WAIT)
            self._linear(x, mlp.up_proj, up)
            width = mlp.up_proj.out_features
            self.builder.add("GLU", (gate, up, gate), (width, _activation(mlp.activation)))
            self._linear(gate, mlp.down_proj, out, flags=flags)
        elif type(mlp) is GELUMLP:
            inner, width = self.builder.activation(mlp.up_proj.out_features), mlp.up_proj.out_features
            self._linear(x, mlp.up_proj, inner)
            self.builder.add("GLU", (inner, -1, inner), (width, _activation(mlp.activation)))
            self._linear(inner, mlp.down_proj, out, flags=flags)
        else:
            raise Unsupported(type(mlp).__name__)

    # -- attention

    def _attention(self, number: int, layer: nn.Module, x: int) -> int:
        """What goes into the output projection: an activation of H D numbers."""
        if not isinstance(layer, ProjectedAttention):
            raise Unsupported(type(layer).__name__)
        H, G, D = layer.num_heads, layer.num_kv_heads, layer.head_dim
        q, k, v = (self.builder.activation(n * D) for n in (H, G, G))
        own = _Attention(self, layer, number, q, k, v)
        own.gates_of_input(x)
        self._linear(x, layer.q_proj, q, flags=NO_WAIT)
        self._linear(x, layer.k_proj, k, flags=NO_WAIT)
        self._linear(x, layer.v_proj, v)
        own.convolve()
        if layer.q_norm is not None and layer.k_norm is not None:
            self._norm(q, layer.q_norm, q, count=H, flags=NO_WAIT)
            self._norm(k, layer.k_norm, k, count=G)
        if self.rotations and layer.rope is not None:
            turned = self.rotations[layer.rope]
            numbers = (H, G, D, turned.half, 1)
            turned.operations.append(self.builder.add("ROPE", (q, k, turned.cos, turned.sin), numbers))
        return own.attend()


def _activation(function: Callable[[Tensor], Tensor]) -> int:
    if function is F.silu:
        return SILU
    if isinstance(function, functools.partial) and function.func is F.gelu:
        return GELU_TANH if function.keywords.get("approximate") == "tanh" else GELU
    raise Unsupported(f"activation {function}")


class _Attention:
    """Attention of one layer: what stands between its projections."""

    def __init__(self, whole: Translation, layer: ProjectedAttention, number: int, q: int, k: int, v: int) -> None:
        self.whole, self.builder, self.layer, self.number = whole, whole.builder, layer, number
        self.q, self.k, self.v = q, k, v
        self.sizes = layer.num_heads, layer.num_kv_heads, layer.head_dim
        self.dtype = whole.model.dtype
        self.gates: dict[str, int] = {}
        self.recent = -1
        self.splits = 1 if self.sizes[1] % whole.threads == 0 else whole.threads
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
        self.recent = self.builder.slot()
        weight = self.builder.constant(conv.weight)
        numbers = (H * D, G * D, conv.size, TYPES[self.dtype])
        self.builder.add("CONV", (self.q, self.k, self.v, weight, self.recent), numbers)

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
            partial, _ = self._window(layer.window, layer.sinks, 0, (), None)
            places = lambda p: (p[:, self.number, :4], p[:, self.number, 4:6], None)  # noqa: E731
            self.whole.layers.append(lambda p: Window(self._shape, (), places(p)))
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
        self.whole.layers.append(
            lambda p: Everything(self._shape, (push, attend), (p[:, self.number, :4], p[:, self.number, 4:6]))
        )
        return self._merge(partial)[0]

    def _attend(self, k: int, v: int, valid: int, slots: int) -> tuple[int, int]:
        """Number of the operation, and the activation with its parts."""
        H, G, D = self.sizes
        partial = self.builder.activation(H * self.splits * (D + 2))
        numbers = (H, G, D, slots, TYPES[self.dtype], self.splits)
        factors = (self.layer.scale, self.layer.softcap or 0.0)
        own = (self.q, partial, k, v, valid)
        return self.builder.add("ATTEND", own, numbers, factors, places=self.place + 4), partial

    def _merge(self, partial: int, terms: bool = False) -> tuple[int, int, int]:
        """The quotient, or with `terms` numerator, denominator and log scale."""
        H, _, D = self.sizes
        out = self.builder.activation(H * D)
        below, scale = (self.builder.activation(H) if terms else -1 for _ in range(2))
        self.builder.add("MERGE", (partial, out, below, scale), (H, D, self.splits))
        return out, below, scale

    def _window(
        self, window: int, sinks: int, exact: int, names: tuple[str, ...], left: _Left | None
    ) -> tuple[int, tuple[int, ...]]:
        """PUSH and ATTEND of a ring: its parts, and the slots of its tensors."""
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
        _, partial = self._attend(k, v, valid, slots)
        return partial, (k, v, valid, age, *gates)

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
        left = _Left(
            self.builder.activation(G * D), self.builder.activation(G * D), self.builder.activation(G),
            {name: self.builder.activation(G) for name in names},
        )  # fmt: skip
        self.builder.in_order = True
        partial, _ = self._window(layer.window, layer.sinks, layer.exact, names, left)
        window = self._merge(partial, terms=True)
        keys = self._keys(layer, left.k)
        read = self._read(layer, queries, keys, left.v, left.gates, left.written)
        out = self._join(layer, read, window)
        self.builder.in_order = False
        memory = self._state_memory(layer)
        places = lambda p: (p[:, self.number, :4], p[:, self.number, 4:6], p[:, self.number, 6:7])  # noqa: E731
        self.whole.layers.append(lambda p: Hybrid(Window(self._shape, names, places(p)), memory(None)))
        return out

    def _linear_alone(self, layer: LinearAttention, queries: tuple[int, int]) -> int:
        keys = self._keys(layer, self.k)
        self.builder.in_order = True
        read = self._read(layer, queries, keys, self.v, self.gates, -1)
        out = self._join(layer, read, (-1, -1, -1))
        self.builder.in_order = False
        memory = self._state_memory(layer)
        self.whole.layers.append(lambda p: memory(p[:, self.number, 6:7]))
        return out

    def _state_memory(self, layer: LinearAttention) -> Callable[[Any], State]:
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
        directions = of.directions if of.directions is not None else of.dct()
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


class _Left(NamedTuple):
    """What leaves a window: key, value, whether anything does, and its gates; activations."""

    k: int
    v: int
    written: int
    gates: dict[str, int]
