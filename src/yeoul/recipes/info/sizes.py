"""Parameters and bytes of a model by its description alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from yeoul.model.config import ModelConfig
from yeoul.model.decoder import skeleton

PARTS = (
    ("embed", "embeddings"),
    ("lm_head", "output"),
    ("feature_map", "feature maps"),
    ("self_attn", "attention"),
    ("mlp", "MLP"),
    ("norm", "norms"),
)
"""What a parameter's name contains -> the part it belongs to; the first that fits."""
FLOATS = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCKS = {"8-bit": 34, "4-bit": 18}
"""Bytes of 32 numbers of a matrix with their float16 scale, as GGUF's Q8_0 and Q4_0; the rest stays float32."""


def _parts(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in skeleton(config).named_parameters():
        yield next((part for word, part in PARTS if word in name), "other"), parameter


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part, tied ones once; parts that a model lacks are left out."""
    counts: Counter[str] = Counter()
    for part, parameter in _parts(config):
        counts[part] += parameter.numel()
    return {part: counts[part] for part in (*(part for _, part in PARTS), "other") if part in counts}


def weight_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights in each dtype of `FLOATS` and `BLOCKS`; feature maps are always float32."""
    sizes: Counter[str] = Counter()
    for part, parameter in _parts(config):
        count = parameter.numel()
        for name, width in FLOATS.items():
            sizes[name] += count * (4 if part == "feature maps" else width)
        for name, block in BLOCKS.items():
            packed = parameter.dim() == 2 and part != "feature maps"
            sizes[name] += -(-count // 32) * block if packed else 4 * count
    return dict(sizes)
