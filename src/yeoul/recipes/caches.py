"""Bytes that a model's cache takes, by its description alone."""

from __future__ import annotations

from collections import Counter

from yeoul.model.config import ATTENTION_FREE, ModelConfig
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.state_updates.registry import STATE_UPDATES

STATE_WIDTH = 4
"""Bytes of a number of a linear state: always fp32."""
AGE_WIDTH = 4
"""Bytes of the age of an exact pair, int32."""
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
    for (kind, exact), layers in Counter(zip(config.attention, config.exact, strict=True)).items():
        if kind == "softmax":
            growing += layers * pair
        elif kind == "sliding":
            sinks = config.sinks if config.sliding_sinks is None else config.sliding_sinks
            fixed += layers * ((config.sliding_window or config.window) + sinks) * (pair + 1)
        elif kind in ATTENTION_FREE:
            fixed += layers * config.hidden_size * width * {"lstm": 2, "gru": 1}.get(kind, 0)
        elif kind == "dijiang-official":
            fixed += layers * G * (D * D + D) * STATE_WIDTH
        else:
            ring = _ring(config, exact, pair) if kind == "hybrid" else 0
            fixed += layers * (ring + _state(config, width))
    return fixed + config.conv_reach * config.hidden_size * width, growing


def _ring(config: ModelConfig, exact: int, pair: int) -> int:
    """A window, its sinks and the exact pairs: keys, values, and whether the place is taken; and what travels with a
    token, of exact pairs its age too."""
    _, G, _ = config.heads
    heads = G if exact else 1
    positions = POSITION_WIDTH * heads if FEATURE_MAPS.declared(config.feature_map.name).uses_positions else 0
    numbers: int = STATE_UPDATES.declared(config.state_update).gate_numbers(config.feature_map.decay)
    gates = positions + G * (numbers + (exact > 0)) * STATE_WIDTH
    places = config.window + config.sinks + exact
    return places * (pair + 1) + (config.window + exact) * gates + exact * G * AGE_WIDTH


def _state(config: ModelConfig, width: int) -> int:
    """The states of a layer, and what a short convolution looks back on."""
    H, G, D = config.heads
    numbers: int = STATE_UPDATES.declared(config.state_update).state_numbers(config.feature_map.size(D), D)
    recent = (config.short_conv - 1) * (H + 2 * G) * D * width if config.short_conv else 0
    return G * numbers * STATE_WIDTH + recent
