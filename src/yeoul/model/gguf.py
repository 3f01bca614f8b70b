"""A decoder's tensors as a GGUF file has them that llama.cpp runs: one walk over ours.

Names are those of the GGUF specification; which architecture it is says `yeoul.model.gguf_plan`. What differs only in
how weights are written is converted exactly: fused projections, Gemma's norms stored as w - 1, the order of rotated
pairs, attention scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.gguf_names import FUSED, TOP, layer_names
from yeoul.model.gguf_plan import ARCHITECTURES
from yeoul.model.quantized import refuse_quantized
from yeoul.model.rotary import frequencies


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the file: its shape, whether it is a matrix of the chosen type, and its fp32 values, made late."""

    name: str
    shape: tuple[int, ...]
    matrix: bool
    make: Callable[[], Tensor]


def _rope_factors(config: ModelConfig) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by, for a scaling that its metadata cannot say; (R / 2,) fp32."""
    if config.rope_scaling is None or config.rope_scaling.rope_type != "llama3":
        return None
    rope = config.ropes[0]
    return frequencies(rope._replace(scaling=None))[0] / frequencies(rope)[0]


def entries(model: Decoder, architecture: str) -> Iterator[Entry]:
    """The tensors of the file, in order; each is converted when it is asked for."""
    refuse_quantized(model, "written as GGUF")
    config, row = model.config, ARCHITECTURES[architecture]
    state = model.state_dict()
    factors = _rope_factors(config)
    if factors is not None:
        yield Entry(name="rope_freqs.weight", shape=tuple(factors.shape), matrix=False, make=lambda: factors)
    for name in list(state):
        stem, leaf = name.rsplit(".", 1)
        if stem in TOP:
            yield _entry(f"{TOP[stem]}.{leaf}", state[name], config, matrix=stem == "model.embed_tokens")
    if row.own_output or not config.tie_embeddings:
        yield _entry("output.weight", model.output_weight.detach(), config)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for entry in _layer_entries(part, config, architecture):
            yield Entry(name=f"blk.{layer}.{entry.name}", shape=entry.shape, matrix=entry.matrix, make=entry.make)


def _layer_entries(part: dict[str, Tensor], config: ModelConfig, architecture: str) -> Iterator[Entry]:
    row = ARCHITECTURES[architecture]
    names = layer_names(config.norm_placement)
    scale = _query_scale(config, architecture)
    if row.fused:
        for stem in ("self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", *(f"self_attn.{x}_proj" for x in "qkv")):
            part.setdefault(f"{stem}.bias", torch.zeros(part[f"{stem}.weight"].shape[0]))
        for leaf in ("weight", "bias"):
            q, k, v = (part.pop(f"self_attn.{letter}_proj.{leaf}") for letter in "qkv")
            shape = (q.shape[0] + k.shape[0] + v.shape[0], *q.shape[1:])
            make = lambda q=q, k=k, v=v: torch.cat([q.float() * scale, k.float(), v.float()])  # noqa: E731
            yield Entry(name=f"{FUSED}.{leaf}", shape=shape, matrix=leaf == "weight", make=make)
    for name, tensor in part.items():
        stem, leaf = name.rsplit(".", 1)
        scaled = stem == ("self_attn.q_norm" if config.qk_norm else "self_attn.q_proj")
        heads = {"self_attn.q_proj": config.heads[0], "self_attn.k_proj": config.heads[1]}.get(stem)
        yield _entry(
            f"{names[stem]}.{leaf}",
            tensor,
            config,
            scale=scale if scaled else 1.0,
            heads=heads if row.neighbours else None,
        )


def _entry(
    name: str, tensor: Tensor, config: ModelConfig, *, matrix: bool = True, scale: float = 1.0, heads: int | None = None
) -> Entry:
    """A tensor as it is, but for Gemma's norms (+ 1), a scale, and the order of rotated rows."""

    def make() -> Tensor:
        values = tensor.detach().float()
        if config.norm_zero_centered and name.endswith("norm.weight"):
            values = values + 1.0
        if heads is not None:
            values = neighbouring_pairs(values, heads)
        return values * scale if scale != 1.0 else values

    return Entry(name=name, shape=tuple(tensor.shape), matrix=matrix and tensor.dim() == 2, make=make)


def neighbouring_pairs(values: Tensor, heads: int) -> Tensor:
    """Rows (heads x D, ...) of a projection whose pairs to rotate lie D/2 apart, reordered to lie side by side."""
    rows = values.shape[0] // heads
    return values.view(heads, 2, rows // 2, -1).transpose(1, 2).reshape(values.shape)


def _query_scale(config: ModelConfig, architecture: str) -> float:
    """What queries are multiplied by so that llama.cpp's own scale gives the model's."""
    H, _, D = config.heads
    # llama.cpp takes Gemma 27B's scale from the number of layers.
    wide = {"gemma2": 46, "gemma3": 62}.get(architecture) == config.num_layers
    theirs = (config.hidden_size // H if wide else D) ** -0.5
    ours = D**-0.5 if config.attention_scale is None else config.attention_scale
    return 1.0 if math.isclose(ours, theirs, rel_tol=1e-6) else ours / theirs
