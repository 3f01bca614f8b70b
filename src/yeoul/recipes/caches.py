"""Bytes that a model's cache takes, by its description alone."""

from __future__ import annotations

from collections import Counter

from yeoul.model.config import ModelConfig
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.state_updates.registry import STATE_UPDATES

STATE_WIDTH = 4
"""Bytes of a number of a linear state: always fp32."""
POSITION_WIDTH = 8
"""Bytes of a position that travels with a token, int64."""


def cache_bytes(config: ModelConfig, width: int) -> tuple[int, int]:
    """Bytes of the cache of one sequence: what stands from the first token on, and what each token adds.

    Windows count as full.

    Args:
        config: of the model.
        width: bytes of a number of the model's type.
    """
    fixed = growing = 0
    _, G, D = config.heads
    pair = 2 * G * D * width  # the key and the value of a token
    for kind, layers in Counter(config.attention).items():
        if kind == "softmax":
            growing += layers * pair
        elif kind == "sliding":
            fixed += layers * _slots(config, config.sliding_window or config.window, pair)
        elif kind == "dijiang-official":
            fixed += layers * G * (D * D + D) * STATE_WIDTH
        else:
            ring = _slots(config, config.window, pair) + config.window * _gates(config) if kind == "hybrid" else 0
            fixed += layers * (ring + _state(config, width))
    return fixed, growing


def _slots(config: ModelConfig, window: int, pair: int) -> int:
    """A window and its sinks: keys, values, and whether the place is taken."""
    return (window + config.sinks) * (pair + 1)


def _gates(config: ModelConfig) -> int:
    """What travels with a token through the window."""
    _, G, _ = config.heads
    positions = POSITION_WIDTH if FEATURE_MAPS.declared(config.feature_map.name).uses_positions else 0
    numbers: int = STATE_UPDATES.declared(config.state_update).gate_numbers(config.feature_map.decay)
    return positions + G * numbers * STATE_WIDTH


def _state(config: ModelConfig, width: int) -> int:
    """The states of a layer, and what a short convolution looks back on."""
    H, G, D = config.heads
    numbers: int = STATE_UPDATES.declared(config.state_update).state_numbers(config.feature_map.size(D), D)
    recent = (config.short_conv - 1) * (H + 2 * G) * D * width if config.short_conv else 0
    return G * numbers * STATE_WIDTH + recent
