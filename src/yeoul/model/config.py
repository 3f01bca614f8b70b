"""What a model is: one frozen description, from which everything else follows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from yeoul.errors import UserError

AttentionKind = Literal["softmax", "sliding", "dijiang", "hybrid", "dijiang-official"]
LINEAR_KINDS = ("dijiang", "hybrid", "dijiang-official")


def _choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(choices)}"
        raise UserError(f"{name} cannot be {value!r}", fix=hint)


@dataclass(frozen=True, kw_only=True)
class FeatureMapConfig:
    """Frequency-domain feature map of DiJiang attention (arXiv 2403.19928, section 3), see `FrequencyFeatureMap`.

    Attributes:
        features: number of features M of a head; None means twice the head size with `pairs`, else the head size.
        pairs: use every frequency with both signs, which halves the variance of odd terms and keeps features positive.
        radii: distribution of the frequencies: "chi" is that of the norm of a Gaussian vector of the head size
            (what an unbiased estimate of exp(q.k) needs), "normal" a signed scalar normal (the official code).
        sequence: points in (0, 1) behind the radii: "sobol" (quasi-Monte Carlo), "stratified", "random".
        kernel: "softmax" normalises each feature vector to sum 1, a bounded kernel (as the official code; the default
            because it aligned better with a trained teacher); "exp" keeps exp(w.x - |x|^2/2), an estimate of the
            softmax kernel itself.
        learn: which of "weights" (D), "frequencies" (T) and "directions" (C) are trained.
        decay: "none"; "fixed" or "learned", one log-decay for each key-value head.
        seed: seed of "stratified" and "random", and of Sobol's scrambling.
    """

    features: int | None = None
    pairs: bool = True
    radii: str = "chi"
    sequence: str = "sobol"
    kernel: str = "softmax"
    learn: tuple[str, ...] = ("weights", "frequencies", "directions")
    decay: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "learn", tuple(self.learn))
        _choice("radii", self.radii, ("chi", "normal"))
        _choice("sequence", self.sequence, ("sobol", "stratified", "random"))
        _choice("kernel", self.kernel, ("exp", "softmax"))
        _choice("decay", self.decay, ("none", "fixed", "learned"))
        for part in self.learn:
            _choice("learn", part, ("weights", "frequencies", "directions"))
        if self.features is not None and (self.features < 1 or (self.pairs and self.features % 2)):
            raise UserError(f"features must be positive, and even with pairs, not {self.features}")

    def size(self, head_dim: int) -> int:
        """Number of features M for a head of this size."""
        return self.features or head_dim * (2 if self.pairs else 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder-only language model; every choice is a plain value.

    Attributes:
        intermediate_size: width inside the MLP; 0 means four times the hidden size ("gelu") or eight thirds
            ("swiglu"), rounded up to a multiple of 64.
        attention: the kind of each layer; a single name stands for all layers. "softmax" attends to everything
            before, "sliding" to the last `window` positions (itself included), "dijiang" is linear attention,
            "hybrid" is softmax over the last `window` positions and linear attention over what came before, with
            one shared normalisation, "dijiang-official" is what the authors' code computes.
        rotary_dim: how many of a head's dimensions are rotated; None means all.
        activation: of the "gelu" MLP: "gelu" is exact, "gelu_tanh" its tanh approximation.
        decay_length: rows of the decay tables of "dijiang-official" layers.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 0
    max_position_embeddings: int = 2048
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    positions: str = "rotary"
    rope_theta: float = 10000.0
    rotary_dim: int | None = None
    attention: tuple[str, ...] = ("softmax",)
    window: int = 64
    feature_map: FeatureMapConfig = field(default_factory=FeatureMapConfig)
    mlp: str = "swiglu"
    activation: str = "gelu"
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    mlp_bias: bool = False
    parallel_residual: bool = False
    tie_embeddings: bool = True
    initializer_range: float = 0.02
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way into a frozen class
        kinds = (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "max_position_embeddings", "window"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UserError(f"{name} must be a positive whole number, not {getattr(self, name)!r}")
        put("attention", kinds * self.num_layers if len(kinds) == 1 else kinds)
        if len(self.attention) != self.num_layers:
            raise UserError(f"attention names {len(kinds)} layers, but num_layers is {self.num_layers}")
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}",
                fix="choose a head count that divides it, or set head_dim",
            )
        put("head_dim", self.head_dim or self.hidden_size // self.num_heads)
        put("num_kv_heads", self.num_kv_heads or self.num_heads)
        if self.num_heads % self.num_kv_heads:  # type: ignore[operator]
            raise UserError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.intermediate_size:
            wide = 4 * self.hidden_size if self.mlp == "gelu" else 8 * self.hidden_size / 3
            put("intermediate_size", -(-int(wide) // 64) * 64)
        if self.attention_output_bias is None:
            put("attention_output_bias", self.attention_bias)
        put("rotary_dim", self.rotary_dim or self.head_dim)
        if self.positions == "rotary" and (self.rotary_dim % 2 or self.rotary_dim > self.head_dim):  # type: ignore[operator]
            raise UserError(f"rotary_dim {self.rotary_dim} must be even and at most head_dim {self.head_dim}")
        if isinstance(self.feature_map, Mapping):
            put("feature_map", FeatureMapConfig(**self.feature_map))
        for kind in self.attention:
            _choice("attention", kind, ("softmax", "sliding", *LINEAR_KINDS))
        _choice("norm", self.norm, ("rmsnorm", "layernorm"))
        _choice("positions", self.positions, ("rotary", "sinusoidal", "learned", "none"))
        _choice("mlp", self.mlp, ("swiglu", "gelu"))
        _choice("activation", self.activation, ("gelu", "gelu_tanh"))

    @property
    def heads(self) -> tuple[int, int, int]:
        """(H, G, D): query heads, key-value heads, head size."""
        return self.num_heads, self.num_kv_heads, self.head_dim  # type: ignore[return-value]

    @property
    def is_linear(self) -> bool:
        """True where no layer's cache grows with the length of the text."""
        return all(kind != "softmax" for kind in self.attention)

    @property
    def bounded_context(self) -> int | None:
        """Positions that the model cannot pass: its table's length; None where positions may run on."""
        if self.positions in ("learned", "sinusoidal") or not self.is_linear:
            return self.max_position_embeddings
        return None

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; an unknown key is a UserError with a suggestion."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise UserError(f"unknown model setting {key!r}", fix=f"did you mean {near[0]!r}" if near else None)
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"incomplete or ill-typed model settings: {error}") from error


PRESETS: dict[str, dict[str, Any]] = {
    "1m": dict(hidden_size=128, num_layers=3, num_heads=4, intermediate_size=384),
    "3m": dict(hidden_size=192, num_layers=5, num_heads=6, intermediate_size=512),
    "5m": dict(hidden_size=256, num_layers=5, num_heads=4, intermediate_size=704),
    "10m": dict(hidden_size=384, num_layers=4, num_heads=6, intermediate_size=1024),
    "15m": dict(hidden_size=384, num_layers=6, num_heads=6, intermediate_size=1024),
    "30m": dict(hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=4, intermediate_size=1408),
    "125m": dict(hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=4, intermediate_size=2560),
    "350m": dict(hidden_size=1024, num_layers=24, num_heads=16, num_kv_heads=8, intermediate_size=3072),
    "1b": dict(hidden_size=2048, num_layers=20, num_heads=32, num_kv_heads=8, intermediate_size=6144),
    "gpt-classic": dict(
        hidden_size=384, num_layers=6, num_heads=6, norm="layernorm", positions="sinusoidal", mlp="gelu",
        attention_bias=True, mlp_bias=True,
    ),
}  # fmt: skip
"""Sizes by name, about that many parameters with a vocabulary of about 8,000 (the last three: 32,000)."""


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The `ModelConfig` of a preset; `vocab_size` and anything else may be given."""
    _choice("preset", name, tuple(PRESETS))
    return ModelConfig.from_dict({**PRESETS[name], **overrides})
