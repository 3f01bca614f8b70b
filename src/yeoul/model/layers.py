"""Norms, positions, MLPs: what a decoder is made of besides attention."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yeoul.model.config import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019: no mean subtraction, no bias) or LayerNorm over the hidden size."""
    kind = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is kept here serves training too
def rotary_table(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su and others 2021), each (length, dim / 2) fp32."""
    inverse = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first 2R of a head's dimensions by position, halves convention (as GPT-NeoX and Llama in transformers).

    Args:
        x: (B, H, T, D) queries or keys.
        cos: (B or 1, 1, T, R) with 2R <= D.
        sin: as cos.
    """
    r = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x[..., :r], x[..., r : 2 * r]
    parts = [a * cos - b * sin, b * cos + a * sin]
    if 2 * r < x.shape[-1]:
        parts.append(x[..., 2 * r :])
    return torch.cat(parts, dim=-1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def sinusoidal_table(length: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions of Vaswani and others 2017 (section 3.5): (length, dim) fp32, sines even, cosines odd."""
    inverse = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim]


def table_length(needed: int, maximum: int) -> int:
    """Rows to build of a table of positions: the maximum, or where a linear model runs past it a power of two."""
    return maximum if needed <= maximum else 1 << (needed - 1).bit_length()


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, inner, bias=bias)
        self.up_proj = nn.Linear(d, inner, bias=bias)
        self.down_proj = nn.Linear(inner, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELUMLP(nn.Module):
    """down(gelu(up(x))), the MLP of GPT."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))


def make_mlp(config: ModelConfig) -> nn.Module:
    """The MLP that the configuration names."""
    return SwiGLU(config) if config.mlp == "swiglu" else GELUMLP(config)
