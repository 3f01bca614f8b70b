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

from yeoul.infer.native.attention import AttentionOperations
from yeoul.infer.native.memory import LayerMemory, Places
from yeoul.infer.native.program import ADD, INT4, INT8, LAYERNORM, NO_WAIT, TYPES, Builder, Unsupported
from yeoul.model.attention import ProjectedAttention
from yeoul.model.decoder import Block, Decoder
from yeoul.model.layers import GELUMLP, GatedMLP, ZeroCenteredRMSNorm, sinusoidal_table
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear
from yeoul.model.rotary import rotary_columns

SILU, GELU_TANH, GELU = range(3)


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
        layers: of each, from its places, (max_rows, PLACES) numpy, to its memory.
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
        self.layers: list[Callable[[Places], LayerMemory]] = []
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
        own = AttentionOperations(
            self.builder, layer, number, (q, k, v), dtype=self.model.dtype, threads=self.threads
        )  # fmt: skip
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
        attended = own.attend()
        self.layers.append(own.memory)
        return attended


def _activation(function: Callable[[Tensor], Tensor]) -> int:
    if function is F.silu:
        return SILU
    if isinstance(function, functools.partial) and function.func is F.gelu:
        return GELU_TANH if function.keywords.get("approximate") == "tanh" else GELU
    raise Unsupported(f"activation {function}")
