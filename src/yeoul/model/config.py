"""What a model is: one frozen description, from which everything else follows."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from yeoul.errors import UserError
from yeoul.model.rope import Rope, RopeScaling

AttentionKind = Literal["softmax", "sliding", "dijiang", "hybrid", "dijiang-official"]
LINEAR_KINDS = ("dijiang", "hybrid", "dijiang-official")
SIZES = (
    "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "rotary_dim", "window", "sliding_window",
)  # fmt: skip
NUMBERS = (
    "norm_eps", "rope_theta", "rope_local_theta", "embedding_scale", "attention_scale", "attention_softcap",
    "logit_softcap",
)  # fmt: skip
FLAGS = (
    "norm_zero_centered", "qk_norm", "attention_bias", "attention_output_bias", "mlp_bias", "parallel_residual",
    "tie_embeddings",
)  # fmt: skip
LARGEST = 2**31
"""No size of a model reaches it; one that does comes from a damaged file."""


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
            ("swiglu", "geglu"), rounded up to a multiple of 64.
        norm_zero_centered: RMSNorm weights are stored as their distance from 1 (Gemma).
        norm_placement: "pre" normalises what enters attention and MLP (GPT-2, Llama), "post" what leaves them
            (EXAONE 4), "sandwich" both (Gemma 2).
        qk_norm: RMSNorm over each head of queries and keys, before they are rotated (Qwen 3).
        rope_scaling: how the rotary frequencies are stretched; None leaves them.
        rope_local_theta: rotary base of "sliding" layers, unstretched (Gemma 3); None means as the others.
        no_rope_layers: layers without rotary positions (the full layers of EXAONE 4).
        attention: the kind of each layer; a single name stands for all layers. "softmax" attends to everything
            before, "sliding" to the last `window` positions (itself included), "dijiang" is linear attention,
            "hybrid" is softmax over the last `window` positions and linear attention over what came before, with
            one shared normalisation, "dijiang-official" is what the authors' code computes.
        window: of "hybrid" layers, and of "sliding" ones where `sliding_window` is None.
        attention_scale: factor of the scores; None means 1 / sqrt(head_dim).
        attention_softcap: scores s become cap * tanh(s / cap) (Gemma 2); None leaves them.
        logit_softcap: the same of the logits.
        embedding_scale: factor of the token embeddings (Gemma: the root of the hidden size).
        rotary_dim: how many of a head's dimensions are rotated; None means all.
        activation: of the "gelu" and "geglu" MLPs: "gelu" is exact, "gelu_tanh" its tanh approximation.
        other_eos_ids: further tokens that end a text, where config.json lists several.
        family: the published model_type that it was read from; saving prefers it. It changes nothing computed and
            does not count in comparisons.
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
    norm_zero_centered: bool = False
    norm_placement: str = "pre"
    positions: str = "rotary"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None
    no_rope_layers: tuple[int, ...] = ()
    rotary_dim: int | None = None
    attention: tuple[str, ...] = ("softmax",)
    window: int = 64
    sliding_window: int | None = None
    feature_map: FeatureMapConfig = field(default_factory=FeatureMapConfig)
    mlp: str = "swiglu"
    activation: str = "gelu"
    qk_norm: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    mlp_bias: bool = False
    parallel_residual: bool = False
    tie_embeddings: bool = True
    initializer_range: float = 0.02
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    other_eos_ids: tuple[int, ...] = ()
    family: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way into a frozen class
        kinds = (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
        self._check_types()
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
        if isinstance(self.rope_scaling, Mapping):
            put("rope_scaling", RopeScaling(**self.rope_scaling))
        put("no_rope_layers", tuple(self.no_rope_layers))
        for kind in self.attention:
            _choice("attention", kind, ("softmax", "sliding", *LINEAR_KINDS))
        _choice("norm", self.norm, ("rmsnorm", "layernorm"))
        _choice("positions", self.positions, ("rotary", "sinusoidal", "learned", "none"))
        _choice("mlp", self.mlp, ("swiglu", "geglu", "gelu"))
        _choice("activation", self.activation, ("gelu", "gelu_tanh"))
        _choice("norm_placement", self.norm_placement, ("pre", "post", "sandwich"))
        if self.parallel_residual and self.norm_placement != "pre":
            raise UserError("a parallel residual goes with norm_placement 'pre' only")
        if self.norm_zero_centered and self.norm != "rmsnorm":
            raise UserError("norm_zero_centered goes with norm 'rmsnorm' only")

    def _check_types(self) -> None:
        """Refuses what no model has, before anything is built of it."""
        optional = {f.name for f in fields(self) if f.default is None} | {"intermediate_size"}
        for name in SIZES:
            value = getattr(self, name)
            if not value and name in optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < LARGEST:
                raise UserError(f"{name} must be a positive whole number, not {value!r}")
        for name in NUMBERS:
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UserError(f"{name} must be a positive number, not {value!r}")
        for name in FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name in optional):
                raise UserError(f"{name} must be true or false, not {value!r}")
        object.__setattr__(self, "other_eos_ids", tuple(self.other_eos_ids))
        for name, value in (("bos_id", self.bos_id), ("eos_id", self.eos_id), ("pad_id", self.pad_id),
                            *(("other_eos_ids", token) for token in self.other_eos_ids)):  # fmt: skip
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise UserError(f"{name} must be a whole number, not {value!r}")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(H, G, D): query heads, key-value heads, head size."""
        return self.num_heads, self.num_kv_heads, self.head_dim  # type: ignore[return-value]

    @functools.cached_property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotations of the layers: at most two, that of "sliding" layers and that of the others."""
        return tuple(dict.fromkeys(rope for layer in range(self.num_layers) if (rope := self._rope(layer))))

    def rope_index(self, layer: int) -> int | None:
        """Index in `ropes` of a layer's rotation; None where it has none."""
        rope = self._rope(layer)
        return None if rope is None else self.ropes.index(rope)

    def _rope(self, layer: int) -> Rope | None:
        if self.positions != "rotary" or layer in self.no_rope_layers:
            return None
        assert self.rotary_dim is not None
        if self.attention[layer] == "sliding" and self.rope_local_theta is not None:
            return Rope(self.rotary_dim, self.rope_local_theta, None, self.max_position_embeddings)
        return Rope(self.rotary_dim, self.rope_theta, self.rope_scaling, self.max_position_embeddings)

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
        values = asdict(self)
        values["rope_scaling"] = None if self.rope_scaling is None else self.rope_scaling.to_dict()
        return values

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
