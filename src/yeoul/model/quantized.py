"""Layers whose weights are 8 or 4 bits, in the place of linear layers and embeddings.

What a folder of them looks like is in `yeoul.model.quantized_folder`, what the numbers mean in `yeoul.ops.low_bit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import torch
from torch import Tensor, nn

from yeoul.errors import UserError
from yeoul.model.quantization import check_shape
from yeoul.ops.low_bit import dequantize, low_bit_linear, make_tiles, pack, suits_kernel
from yeoul.ops.native import Tiles, aligned


class QuantizedLinear(nn.Module):
    """A linear layer with a frozen weight of 8, 6 or 4 bits: y = x W^T + bias, see `yeoul.ops.low_bit`.

    The type of x decides how it computes: bfloat16 is fast, fp32 and fp64 are exact. x gets its gradient, the weight
    has none. Under autocast it computes in autocast's type, as linear layers do.

    Args:
        in_features: K, a multiple of 8 with 4 bits and of the group size.
        out_features: N.
        bits: 8, 6 or 4; 6 bits take 8 in memory.
        group_size: inputs that share a scale; 0 means all of them.
        bias: whether there is one.
    """

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, bits: int, group_size: int = 0, bias: bool = False):
        super().__init__()
        check_shape(in_features, bits, group_size)
        self.in_features, self.out_features, self.bits, self.group_size = in_features, out_features, bits, group_size
        if bits == 4:
            packed = torch.zeros(out_features, in_features // 8, dtype=torch.int32)
        else:
            packed = torch.zeros(out_features, in_features, dtype=torch.int8)
        groups = in_features // (group_size or in_features)
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", torch.zeros(out_features, groups, dtype=torch.bfloat16))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._tiles: Tiles | None = None

    @classmethod
    def of(cls, q: Tensor, scale: Tensor, bits: int, bias: nn.Parameter | None = None) -> Self:
        """A layer from its parts: whole numbers q (N, K) int8, scale (N, groups), bias (N,)."""
        (N, K), groups = q.shape, scale.shape[1]
        with torch.device("meta"):
            layer = cls(K, N, bits=bits, group_size=0 if groups == 1 else K // groups)
        layer.weight_packed, layer.weight_scale, layer.bias = pack(q, 4) if bits == 4 else q, scale, bias
        return layer

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (N, K) in a floating-point type; exact in fp32 and fp64."""
        return dequantize(self.weight_packed, self.weight_scale, dtype)

    def product(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N), without the bias."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        tiles = self._kernel_form(x)
        return low_bit_linear(x, self.weight_packed, self.weight_scale, tiles)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _kernel_form(self, x: Tensor) -> Tiles | None:
        """What the kernels want beside the weight, made when it is first needed.

        Of 8 bits that is nothing, but the weight itself must be aligned: a view of a file becomes a copy.
        """
        if not suits_kernel(x, self.weight_packed):
            return None
        if self.bits != 4:
            self.weight_packed = aligned(self.weight_packed)
        elif self._tiles is None:
            self._tiles = make_tiles(self.weight_packed, self.weight_scale)
        return self._tiles

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to a device; the scales keep their type whatever is asked for: rounding them would change weights."""
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        self._tiles = None
        return self

    def extra_repr(self) -> str:
        """For `print(model)`."""
        group = f"groups of {self.group_size}" if self.group_size else "a scale for each output"
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, {group}, bias={self.bias is not None}"


class QuantizedEmbedding(QuantizedLinear):
    """An embedding with rows of few bits: ids (...) -> (..., K). Tied to the output it is that too: `product`.

    Args:
        in_features: K, the width.
        out_features: N, the vocabulary.
        bits: 8, 6 or 4.
        group_size: numbers of a row that share a scale; 0 means all of them.
    """

    dtype = torch.float32
    """Of what is looked up; follows the type that the module is given (`to`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Rows of the table, by ids x (...) int64: (..., K)."""
        ids = x.reshape(-1)
        rows = dequantize(self.weight_packed[ids], self.weight_scale[ids], self.dtype)
        return rows.view(*x.shape, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of the class above; the type that is asked for becomes that of the rows."""
        self.dtype = fn(torch.zeros((), dtype=self.dtype, device=self.weight_scale.device)).dtype
        return super()._apply(fn, recurse)


def quantized_modules(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """(path, module) of what is quantized in a model."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield path, module


def refuse_quantized(model: nn.Module, deed: str) -> None:
    """A UserError where a model has low-bit weights; `deed` completes "so it cannot be"."""
    if next(quantized_modules(model), None) is not None:
        raise UserError(f"the model is quantized, so it cannot be {deed}", fix="give the model that it was made from")


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in another's place."""
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)
