"""Parameters and bytes of a model by the shapes of its parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yeoul.model.config import ModelConfig

Shapes = Mapping[str, tuple[int, ...]]

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


def skeleton_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by name, asked of the model itself; imports torch."""
    from yeoul.model.decoder import skeleton

    return {name: tuple(parameter.shape) for name, parameter in skeleton(config).named_parameters()}


def _parts(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        yield next((part for word, part in PARTS if word in name), "other"), shape


def count_parameters(shapes: Shapes) -> dict[str, int]:
    """Parameters of each part, tied ones once; parts that a model lacks are left out."""
    counts: Counter[str] = Counter()
    for part, shape in _parts(shapes):
        counts[part] += prod(shape)
    return {part: counts[part] for part in (*(part for _, part in PARTS), "other") if part in counts}


def weight_bytes(shapes: Shapes) -> dict[str, int]:
    """Bytes of the weights in each dtype of `FLOATS` and `BLOCKS`; feature maps are always float32."""
    sizes: Counter[str] = Counter()
    for part, shape in _parts(shapes):
        count = prod(shape)
        for name, width in FLOATS.items():
            sizes[name] += count * (4 if part == "feature maps" else width)
        for name, block in BLOCKS.items():
            packed = len(shape) == 2 and part != "feature maps"
            sizes[name] += -(-count // 32) * block if packed else 4 * count
    return dict(sizes)
