"""Bytes that a model's cache takes, by its description alone."""

from __future__ import annotations

from collections import Counter

import torch

from yeoul.model.config import LINEAR_KINDS, ModelConfig
from yeoul.model.decoder import Decoder


def cache_bytes(config: ModelConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the cache of one sequence: what stands from the first token on, and what each token adds.

    Asked of the caches of one small layer of each kind, with windows of one and of two positions: what a window
    holds grows evenly with its length. Windows count as full.
    """
    fixed = growing = 0
    for kind, layers in Counter(config.attention).items():
        window = (config.sliding_window or config.window) if kind == "sliding" else config.window
        one, growth = _layer_cache(config, kind, 1, dtype)
        two, _ = _layer_cache(config, kind, 2, dtype)
        fixed += layers * (one + (window - 1) * (two - one))
        growing += layers * growth
    return fixed, growing


def _layer_cache(config: ModelConfig, kind: str, window: int, dtype: torch.dtype) -> tuple[int, int]:
    """The same for one layer of a kind, with the model's heads and convolution and next to nothing else."""
    heads, groups, size = config.heads
    linear = kind in LINEAR_KINDS
    small = ModelConfig(
        vocab_size=2, hidden_size=2 * size, num_layers=1, num_heads=heads, num_kv_heads=groups, head_dim=size,
        intermediate_size=2, attention=(kind,), window=window, feature_map=config.feature_map, positions="none",
        state_update=config.state_update, max_position_embeddings=config.max_position_embeddings,
        sinks=config.sinks, short_conv=config.short_conv if linear else 0,
    )  # fmt: skip
    model = Decoder(small).to(dtype).eval()
    sizes = []
    with torch.inference_mode():
        cache = model.new_cache(1)
        for columns in (window + config.sinks + 1, 1):
            model(torch.zeros(1, columns, dtype=torch.int64), cache=cache, logits_to_keep=1)
            sizes.append(cache.nbytes())
    growing = sizes[1] - sizes[0]
    return sizes[0] - (window + config.sinks + 1) * growing, growing
