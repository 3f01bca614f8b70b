"""Norms, positions, MLPs: what a decoder is made of besides attention."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.config import ModelConfig


class ZeroCenteredRMSNorm(nn.Module):
    """RMSNorm whose stored weight is the distance from 1 (Gemma), multiplied in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        wide = x.float() if x.dtype != torch.float64 else x
        return F.rms_norm(wide, self.weight.shape, 1 + self.weight.to(wide.dtype), self.eps).to(x.dtype)


def make_norm(config: ModelConfig, size: int | None = None) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019: no mean subtraction, no bias) or LayerNorm; over the hidden size by default."""
    size = size or config.hidden_size
    if config.norm_zero_centered:
        return ZeroCenteredRMSNorm(size, config.norm_eps)
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(size, eps=config.norm_eps)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def sinusoidal_table(length: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions of Vaswani and others 2017 (section 3.5): (length, dim) fp32, sines even, cosines odd."""
    inverse = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim]


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020): SiLU for SwiGLU, GELU for GeGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, inner, bias=bias)
        self.up_proj = nn.Linear(d, inner, bias=bias)
        self.down_proj = nn.Linear(inner, d, bias=bias)
        self.activation: Callable[[Tensor], Tensor] = F.silu if config.mlp == "swiglu" else _gelu(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class GELUMLP(nn.Module):
    """down(gelu(up(x))), the MLP of GPT."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = _gelu(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


def _gelu(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    return functools.partial(F.gelu, approximate="tanh" if config.activation == "gelu_tanh" else "none")


def make_mlp(config: ModelConfig) -> nn.Module | None:
    """The MLP that the configuration names; None where blocks have none."""
    if config.mlp == "none":
        return None
    return GELUMLP(config) if config.mlp == "gelu" else GatedMLP(config)
