"""A linear layer with a low-rank part beside it, and how it computes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.adapt.lora.config import LoraConfig
from yeoul.errors import UserError
from yeoul.model.quantized import QuantizedLinear


class Adapter(nn.Module):
    """One low-rank part. Its numbers are fp32 over a base of fewer bits, as PEFT's are.

    Args:
        A: (r, in); a parameter may serve several parts.
        B: (out, r); likewise.
        scaling: of B A.
        dropout: of the input, while training.
        magnitude: (out,) the length of each row, with DoRA.
    """

    A: nn.Parameter
    B: nn.Parameter
    magnitude: nn.Parameter | None

    def __init__(self, A: Tensor, B: Tensor, scaling: float, dropout: float, magnitude: Tensor | None = None) -> None:
        super().__init__()
        self.A = A if isinstance(A, nn.Parameter) else nn.Parameter(A)
        self.B = B if isinstance(B, nn.Parameter) else nn.Parameter(B)
        self.register_parameter("magnitude", None if magnitude is None else nn.Parameter(magnitude))
        self.scaling, self.dropout = scaling, dropout

    def merged_weight(self, base: Tensor) -> Tensor:
        """(out, in): the base weight and this part in one, in the precision of this part."""
        weight = base.to(self.A.dtype) + self.B @ self.A * self.scaling
        if self.magnitude is None:
            return weight
        return (self.magnitude / torch.linalg.norm(weight, dim=1))[:, None] * weight

    def forward(self, x: Tensor, y: Tensor, base: Any) -> Tensor:
        """What `base` gave for x (..., in), y (..., out), with this part added."""
        x = x.to(self.A.dtype)
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.linear(F.linear(dropped, self.A), self.B) * self.scaling
        if self.magnitude is None:
            return (y + low).to(y.dtype)
        weight = dense(base).to(x.dtype)
        # The length is a constant for the gradient (DoRA, section 4.3).
        length = torch.linalg.norm(weight + self.scaling * (self.B @ self.A).detach(), dim=1)
        scale = self.magnitude / length
        if self.training and self.dropout:  # as PEFT, which drops inputs of both terms
            straight = F.linear(dropped, weight)
        else:
            straight = y if base.bias is None else y - base.bias
        return (y + (scale - 1) * straight + scale * low).to(y.dtype)


class LoraLinear(nn.Module):
    """A linear layer with adapters by name, of which one or none is active.

    Args:
        base: `nn.Linear` or `QuantizedLinear`; any module with `in_features`, `out_features`, `bias` and the same
            call will do without DoRA. Merging needs it to be `nn.Linear`.
    """

    original: Tensor | None

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.configs: dict[str, LoraConfig] = {}
        self.active: str | None = None
        self.register_buffer("original", None, persistent=False)  # the base's weight while another is in its place

    @property
    def weight(self) -> Tensor:
        """(out, in) of the base; with the active adapter in it while merged."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """(out,) of the base."""
        return self.base.bias

    @property
    def merged(self) -> bool:
        """Whether the active adapter is in the base's weight."""
        return self.original is not None

    def adapter(self, name: str) -> Adapter:
        """The adapter of this name."""
        return self.adapters[name]  # type: ignore[return-value]

    def check_mergeable(self) -> None:
        """UserError where the base is quantized."""
        dense_weight(self.base)

    @torch.no_grad()
    def merge(self) -> None:
        """Puts a weight with the active adapter in it in the base's place; the original is kept until `unmerge`."""
        if self.active is None or self.merged:
            return
        weight = dense_weight(self.base)
        self.original = weight.data
        weight.data = self.adapter(self.active).merged_weight(weight).to(weight.dtype)

    def unmerge(self) -> None:
        """The base's weight is the one before `merge`, bit for bit."""
        if self.original is not None:
            self.base.weight.data, self.original = self.original, None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.base(x)
        if self.active is None or self.merged:
            return y
        return self.adapter(self.active)(x, y, self.base)


def dense(base: nn.Module) -> Tensor:
    """(out, in) weight of a linear layer; of a quantized one what it stands for, in fp32."""
    return base.dequantized() if isinstance(base, QuantizedLinear) else dense_weight(base)


def dense_weight(base: nn.Module) -> Tensor:
    """(out, in) weight of a linear layer into which adapters can be merged; UserError where it is quantized."""
    if not isinstance(base, nn.Linear):
        raise UserError(
            "the base model is quantized, so no adapter can be merged into it",
            fix="keep the adapter beside it, or give the model that it was made from",
        )
    return base.weight
