"""Small models of every kind, and the measure of agreement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from yeoul.adapt.linearize import Conversion
from yeoul.model.config import FeatureMapConfig, ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.exact_score import ExactScore
from yeoul.model.feature_maps.frequencies import FrequencyFeatureMap
from yeoul.model.gates import Gate
from yeoul.model.short_conv import ShortConvolution
from yeoul.model.state_updates.delta import GatedDeltaAttention

VOCAB = 101
KINDS: dict[str, dict[str, Any]] = {
    "softmax": dict(attention=("softmax",)),
    "classic": dict(norm="layernorm", positions="sinusoidal", mlp="gelu", attention_bias=True, mlp_bias=True),
    "learned": dict(positions="learned", num_kv_heads=4, tie_embeddings=False),
    "no-positions": dict(positions="none", parallel_residual=True),
    "partial-rotary": dict(rotary_dim=4),
    "sliding": dict(attention=("sliding",)),
    "sliding-sinks": dict(attention=("sliding",), sinks=3),
    "dijiang": dict(attention=("dijiang",), feature_map=dict(kernel="exp")),
    "dijiang-decay": dict(attention=("dijiang",), feature_map=dict(decay="learned", features=12)),
    "dijiang-bounded": dict(
        attention=("dijiang",), feature_map=dict(kernel="softmax", pairs=False, radii="normal", learn=("weights",))
    ),
    "hybrid": dict(attention=("hybrid",), feature_map=dict(kernel="exp")),
    "hybrid-decay": dict(attention=("hybrid",), feature_map=dict(decay="fixed", sequence="stratified")),
    "hybrid-bounded": dict(attention=("hybrid",), feature_map=dict(kernel="softmax")),
    "hybrid-sinks": dict(attention=("hybrid",), sinks=7, attention_softcap=2.0, feature_map=dict(decay="learned")),
    "separate": dict(attention=("dijiang",), feature_map=dict(separate=True, mass="learned", decay="learned")),
    "hybrid-separate": dict(attention=("hybrid",), sinks=2, feature_map=dict(separate=True, mass="learned")),
    "performer-hybrid": dict(attention=("hybrid",), feature_map=dict(name="performer", features=12)),
    "pff": dict(attention=("dijiang",), feature_map=dict(name="pff")),
    "wdcf-hybrid": dict(attention=("hybrid",), feature_map=dict(name="wdcf", decay="fixed")),
    "hedgehog-hybrid": dict(attention=("hybrid",), feature_map=dict(name="hedgehog")),
    "elu": dict(attention=("dijiang",), feature_map=dict(name="elu", decay="learned")),
    "gemma-like": dict(
        attention=("sliding", "softmax"),
        sliding_window=7,
        norm_placement="sandwich",
        norm_zero_centered=True,
        mlp="geglu",
        activation="gelu_tanh",
        attention_softcap=2.0,
        logit_softcap=4.0,
        attention_scale=0.3,
        embedding_scale=8.0,
        rope_local_theta=300.0,
        head_dim=24,
    ),
    "gemma-like-hybrid": dict(
        attention=("sliding", "hybrid"),
        sliding_window=7,
        norm_placement="sandwich",
        norm_zero_centered=True,
        mlp="geglu",
        attention_softcap=2.0,
        logit_softcap=4.0,
        attention_scale=0.3,
        qk_norm=True,
        rope_local_theta=300.0,
        rope_scaling=dict(rope_type="linear", factor=4.0),
    ),
    "exaone-like": dict(
        attention=("sliding", "dijiang"), sliding_window=3, norm_placement="post", qk_norm=True, no_rope_layers=(1,)
    ),
    "delta": dict(attention=("dijiang",), state_update="delta"),
    "delta-hybrid": dict(attention=("hybrid",), state_update="delta", feature_map=dict(kernel="exp")),
    "delta-hybrid-sinks": dict(attention=("hybrid",), state_update="delta", sinks=4, feature_map=dict(separate=True)),
    "fourier": dict(attention=("dijiang",), state_update="delta", feature_map=dict(name="fourier", features=20)),
    "fourier-hybrid": dict(
        attention=("hybrid",), state_update="delta", sinks=1, feature_map=dict(name="fourier", separate=True)
    ),
    "gated": dict(attention=("dijiang",), feature_map=dict(decay="gated")),
    "gated-hybrid": dict(attention=("hybrid",), sinks=2, feature_map=dict(decay="gated", separate=True)),
    "convolution": dict(attention=("dijiang",), short_conv=4, feature_map=dict(decay="learned")),
    "delta-convolution": dict(
        attention=("dijiang",), state_update="delta", short_conv=3, feature_map=dict(name="fourier", separate=True)
    ),
    "hybrid-convolution": dict(
        attention=("hybrid",), state_update="delta", short_conv=4, sinks=2, feature_map=dict(name="fourier")
    ),
    "exact": dict(attention=("hybrid",), exact=(6,), feature_map=dict(decay="learned")),
    "exact-sinks": dict(attention=("hybrid",), exact=(3,), sinks=2, num_kv_heads=1, feature_map=dict(decay="gated")),
    "exact-delta": dict(
        attention=("hybrid",),
        exact=(4, 9),
        state_update="delta",
        short_conv=4,
        sinks=2,
        feature_map=dict(name="fourier"),
    ),
    "codebook": dict(attention=("dijiang",), feature_map=dict(name="codebook", decay="learned")),
    "exact-codebook": dict(attention=("hybrid",), exact=(5,), sinks=1, feature_map=dict(name="codebook")),
    "exact-positions": dict(attention=("hybrid",), exact=(1, 4), feature_map=dict(name="cosformer")),
    "exact-beside-sliding": dict(
        attention=("sliding", "hybrid"),
        sliding_window=7,
        sliding_sinks=0,
        sinks=4,
        exact=(5,),
        qk_norm=True,
        attention_softcap=2.0,
        rope_local_theta=300.0,
        state_update="delta",
        feature_map=dict(separate=True),
    ),
    "mixed": dict(attention=("softmax", "hybrid", "sliding"), num_layers=3),
    "lstm": dict(attention=("lstm",), positions="none", mlp="none"),
    "gru": dict(attention=("gru",), positions="none", mlp="none"),
    "conv": dict(attention=("conv",), positions="none", mlp="none", conv_kernel=3),
    "rnn-beside-softmax": dict(attention=("gru", "softmax", "conv", "lstm"), num_layers=4),
}


def rms_ratio(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    value, reference = value.double(), reference.double()
    return ((value - reference).square().mean().sqrt() / reference.square().mean().sqrt()).item()


def make(kind: str) -> Decoder:
    """A small random model by kind, with weights large enough for attention to be sharp."""
    torch.manual_seed(1)
    settings = dict(num_layers=2, num_kv_heads=2) | KINDS[kind]
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=64, num_heads=4, window=5, max_position_embeddings=128,
        initializer_range=0.15, **settings,
    )  # fmt: skip
    model = Decoder(config).eval()
    for module in model.modules():
        if isinstance(module, Gate):  # which begins with weights of 0: tokens would not differ
            torch.nn.init.normal_(module.weight, std=0.3)
            torch.nn.init.uniform_(module.bias, -3, 1)
        if isinstance(module, ExactScore):  # which begins with 0: the oldest would stay
            torch.nn.init.normal_(module.weight, std=0.3)
            torch.nn.init.uniform_(module.recency, 0, 0.1)
        if isinstance(module, ShortConvolution):
            torch.nn.init.normal_(module.weight, std=0.5)
        if isinstance(module, GatedDeltaAttention):
            torch.nn.init.normal_(module.read_mass)
            torch.nn.init.normal_(module.read_direction, std=0.3)
        if isinstance(module, FrequencyFeatureMap) and module.config.mass == "learned":  # begins as a constant mass
            torch.nn.init.normal_(module.mass_direction, std=0.3)
            torch.nn.init.uniform_(module.temper, 0, 0.5)
            torch.nn.init.normal_(module.log_weights)
    return model


def bare_conversion(**changes: Any) -> Conversion:
    """A conversion to sums of features, without sinks and short convolution, unless `changes` say otherwise."""
    plain: dict[str, Any] = {
        "sinks": 0, "exact": (0,), "feature_map": FeatureMapConfig(), "state_update": "additive", "short_conv": 0,
    }  # fmt: skip
    return Conversion(**(plain | changes))
