"""What a model is: one frozen description, from which everything else follows."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

from yeoul.errors import UserError, shown
from yeoul.model.feature_maps.config import FeatureMapConfig as FeatureMapConfig
from yeoul.model.feature_maps.registry import FEATURE_MAPS
from yeoul.model.rope import Rope, RopeScaling
from yeoul.model.state_updates.registry import STATE_UPDATES
from yeoul.model.values import check_choice, check_list, is_positive
from yeoul.model.values import is_whole as is_whole

AttentionKind = Literal["softmax", "sliding", "dijiang", "hybrid", "dijiang-official", "lstm", "gru", "conv"]
ATTENTION_FREE = ("lstm", "gru", "conv")
"""Kinds of layers without attention, see `yeoul.model.attention_free`."""
LINEAR_KINDS = ("dijiang", "hybrid", "dijiang-official")
MOST_LAYERS = 1000
MOST_SINKS = 2**16
MOST_EXACT = 2**20
LONGEST_CONVOLUTION = 64
DILATIONS = 8
"""Convolutions dilate by 1, 2, 4 and so on, so many of them; then again from 1."""
SIZES = {
    "vocab_size": 2**28, "hidden_size": 2**24, "num_layers": MOST_LAYERS, "num_heads": 2**16, "num_kv_heads": 2**16,
    "head_dim": 2**16, "intermediate_size": 2**28, "max_position_embeddings": 2**31, "rotary_dim": 2**16,
    "window": 2**31, "sliding_window": 2**31, "trained_context": 2**31,
}  # fmt: skip
"""The largest value of each, which no model comes near; a larger one comes from a damaged file."""
NUMBERS = (
    "norm_eps", "rope_theta", "rope_local_theta", "embedding_scale", "attention_scale", "attention_softcap",
    "logit_softcap", "initializer_range",
)  # fmt: skip
FLAGS = (
    "norm_zero_centered", "qk_norm", "attention_bias", "attention_output_bias", "mlp_bias", "parallel_residual",
    "tie_embeddings",
)  # fmt: skip


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
            one shared normalisation, "dijiang-official" is what the authors' code computes. "lstm", "gru" and "conv"
            are layers without attention.
        conv_kernel: positions that a "conv" layer combines; dilated by 1, 2, 4 ... 128 from one such layer to the next.
        state_update: how the state of "dijiang" and "hybrid" layers takes in a token: "additive" adds it, "delta" is
            the gated delta rule, see `GatedDeltaAttention`; the names of the files in `yeoul.model.state_updates`.
        short_conv: positions that a convolution over queries, keys and values of "dijiang" and "hybrid" layers spans,
            see `ShortConvolution`; 0 is none.
        window: of "hybrid" layers, and of "sliding" ones where `sliding_window` is None.
        sinks: how many of the first tokens of every text "hybrid" layers always see, beside their window and without
            counting into it (Xiao and others 2023, arXiv 2309.17453); and "sliding" ones where `sliding_sinks` is None.
        exact: how many pairs of key and value each key-value head of "hybrid" layers keeps beside window and sinks, see
            `yeoul.ops.exact_pairs`; one number stands for all of them, otherwise one for each layer of the model.
        attention_scale: factor of the scores; None means 1 / sqrt(head_dim).
        attention_softcap: scores s become cap * tanh(s / cap) (Gemma 2); None leaves them.
        logit_softcap: the same of the logits.
        embedding_scale: factor of the token embeddings (Gemma: the root of the hidden size).
        rotary_dim: how many of a head's dimensions are rotated; None means all.
        mlp: "swiglu", "geglu" or "gelu"; "none" leaves it out, with its norm.
        activation: of the "gelu" and "geglu" MLPs: "gelu" is exact, "gelu_tanh" its tanh approximation.
        other_eos_ids: further tokens that end a text, where config.json lists several.
        trained_context: positions on which linear layers were trained, where that is known and less than
            `max_position_embeddings`; they may run on, but nobody has taught them to. It changes nothing computed.
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
    conv_kernel: int = 4
    window: int = 64
    sliding_window: int | None = None
    sinks: int = 0
    sliding_sinks: int | None = None
    exact: tuple[int, ...] = (0,)
    feature_map: FeatureMapConfig = field(default_factory=FeatureMapConfig)
    state_update: str = "additive"
    short_conv: int = 0
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
    trained_context: int | None = field(default=None, compare=False)
    family: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the one way into a frozen class
        self._check_types()
        kinds = (self.attention,) if isinstance(self.attention, str) else tuple(self.attention)
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
            put("feature_map", _built(FeatureMapConfig, self.feature_map, "feature_map"))
        if isinstance(self.rope_scaling, Mapping):
            put("rope_scaling", _built(RopeScaling, self.rope_scaling, "rope_scaling"))
        put("no_rope_layers", tuple(self.no_rope_layers))
        exact = tuple(self.exact) if any(self.exact) else (0,)
        exact = exact * self.num_layers if len(exact) == 1 else exact
        if len(exact) != self.num_layers:
            raise UserError(f"exact names {len(exact)} layers, but num_layers is {self.num_layers}")
        put("exact", tuple(n if kind == "hybrid" else 0 for n, kind in zip(exact, self.attention, strict=True)))
        for kind in self.attention:
            check_choice("attention", kind, ("softmax", "sliding", *LINEAR_KINDS, *ATTENTION_FREE))
        STATE_UPDATES.check(self.state_update)
        update = STATE_UPDATES.declared(self.state_update)
        feature_map = FEATURE_MAPS.declared(self.feature_map.name)
        if self.feature_map.decay != "none" and not update.takes_decay:
            raise UserError(
                f"the state update {self.state_update!r} has its own decay, so that the feature map has none",
                fix="set its decay to 'none', or state_update to 'additive'",
            )
        if feature_map.signed and not update.takes_signed:
            if any(kind in ("dijiang", "hybrid") for kind in self.attention):
                raise UserError(
                    f"the feature map {self.feature_map.name!r} has both signs, which only the delta rule takes",
                    fix="set state_update to 'delta', or take another map",
                )
        check_choice("norm", self.norm, ("rmsnorm", "layernorm"))
        check_choice("positions", self.positions, ("rotary", "sinusoidal", "learned", "none"))
        check_choice("mlp", self.mlp, ("swiglu", "geglu", "gelu", "none"))
        check_choice("activation", self.activation, ("gelu", "gelu_tanh"))
        check_choice("norm_placement", self.norm_placement, ("pre", "post", "sandwich"))
        if self.mlp == "none" and (self.parallel_residual or self.norm_placement != "pre"):
            raise UserError("blocks without MLP go with norm_placement 'pre' and no parallel residual only")
        if self.parallel_residual and self.norm_placement != "pre":
            raise UserError("a parallel residual goes with norm_placement 'pre' only")
        if self.norm_zero_centered and self.norm != "rmsnorm":
            raise UserError("norm_zero_centered goes with norm 'rmsnorm' only")
        for rope in self.ropes:
            rope.check()

    def _check_types(self) -> None:
        """Refuses what no model has, before anything is built of it."""
        optional = {f.name for f in fields(self) if f.default is None}
        for name, largest in SIZES.items():
            value = getattr(self, name)
            if (value is None and name in optional) or (name == "intermediate_size" and value == 0):
                continue
            if not is_whole(value, 1):
                raise UserError(f"{name} must be a positive whole number, not {shown(value)}")
            if value > largest:
                raise UserError(f"{name} is {value:,}, which is more than any model has ({largest:,})")
        check_list("exact", self.exact, int)
        sinks = (self.sinks, *(() if self.sliding_sinks is None else (self.sliding_sinks,)))
        for name, numbers, most in (("sinks", sinks, MOST_SINKS), ("exact", self.exact, MOST_EXACT)):
            for number in numbers:
                if not is_whole(number, 0) or number > most:
                    raise UserError(f"{name} must be a whole number from 0 to {most:,}, not {shown(number)}")
        for name, least in (("short_conv", 0), ("conv_kernel", 1)):
            size = getattr(self, name)
            if not is_whole(size, least) or size > LONGEST_CONVOLUTION:
                raise UserError(
                    f"{name} must be a whole number from {least} to {LONGEST_CONVOLUTION}, not {shown(size)}"
                )
        for name in NUMBERS:
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not is_positive(value):
                raise UserError(f"{name} must be a positive number, not {shown(value)}")
        for name in FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name in optional):
                raise UserError(f"{name} must be true or false, not {shown(value)}")
        check_list("attention", (self.attention,) if isinstance(self.attention, str) else self.attention, str)
        check_list("no_rope_layers", self.no_rope_layers, int)
        check_list("other_eos_ids", self.other_eos_ids, int)
        object.__setattr__(self, "other_eos_ids", tuple(self.other_eos_ids))
        for name, value in (("bos_id", self.bos_id), ("eos_id", self.eos_id), ("pad_id", self.pad_id),
                            *(("other_eos_ids", token) for token in self.other_eos_ids)):  # fmt: skip
            if value is not None and not is_whole(value, -1):
                raise UserError(f"{name} must be the id of a token, not {shown(value)}")
        for name, kind in (("feature_map", FeatureMapConfig), ("rope_scaling", RopeScaling)):
            if not isinstance(value := getattr(self, name), kind | Mapping) and not (
                value is None and name in optional
            ):
                raise UserError(f"{name} must be an object with fields, not {shown(value)}")
        if self.family is not None and not isinstance(self.family, str):
            raise UserError(f"family must be the name of one, not {shown(self.family)}")

    @property
    def heads(self) -> tuple[int, int, int]:
        """(H, G, D): query heads, key-value heads, head size."""
        return self.num_heads, self.num_kv_heads, self.head_dim  # type: ignore[return-value]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a text, as config.json lists them."""
        return tuple(token for token in (self.eos_id, *self.other_eos_ids) if token is not None)

    @functools.cached_property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotations of the layers: at most two, that of "sliding" layers and that of the others."""
        return tuple(dict.fromkeys(rope for layer in range(self.num_layers) if (rope := self._rope(layer))))

    @property
    def rope_switch(self) -> int | None:
        """The length beyond which a text is turned otherwise from its beginning on (longrope); None without one."""
        lengths = [r.scaling.original_max_position_embeddings for r in self.ropes if r.scaling and r.kind == "longrope"]
        return lengths[0] if lengths else None

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

    @property
    def dilations(self) -> tuple[int, ...]:
        """Of the "conv" layers, first to last."""
        return tuple(2 ** (number % DILATIONS) for number in range(self.attention.count("conv")))

    @property
    def conv_reach(self) -> int:
        """Positions before the present one that all "conv" layers together look back on."""
        return (self.conv_kernel - 1) * sum(self.dilations)

    def check_context(
        self, context: int, where: object = "--context", fix: str | None = "shorten it", *, training: bool = False
    ) -> None:
        """Checks that sequences of `context` tokens fit into the model.

        Args:
            context: tokens.
            where, fix: of the sentence that refuses.
            training: no more than the model says that it is made for, whether or not it could be run further.

        Raises:
            UserError: it has fewer positions, and cannot pass them.
        """
        longest = self.max_position_embeddings if training else self.bounded_context
        if longest is not None and context > longest:
            raise UserError(f"the context of {context:,} is longer than the model's {longest:,} positions", where, fix)

    @property
    def linear_context(self) -> int | None:
        """Positions on which linear layers were trained; None where the model has none."""
        if not any(kind in LINEAR_KINDS for kind in self.attention):
            return None
        return self.trained_context or self.max_position_embeddings

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        values = asdict(self)
        values["feature_map"] = self.feature_map.to_dict()
        values["rope_scaling"] = None if self.rope_scaling is None else self.rope_scaling.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`; an unknown key is a UserError with a suggestion."""
        return _built(cls, values, "the model")


T = TypeVar("T", ModelConfig, FeatureMapConfig, RopeScaling)


def _built(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """The object of a mapping; a UserError where a key is not known or a needed one is not there."""
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(shown(key).strip("'"), known, n=1)
            raise UserError(
                f"unknown setting {shown(key)} of {where}", fix=f"did you mean {near[0]!r}" if near else None
            )
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and name not in values:
            raise UserError(f"the setting {name!r} of {where} is missing")
    return kind(**values)


RECURRENT: dict[str, Any] = dict(hidden_size=384, num_heads=1, positions="none", mlp="none")
"""What the presets without attention share: as wide as "10m", with as many parameters."""
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
    "lstm-10m": dict(**RECURRENT, num_layers=6, attention="lstm"),
    "gru-10m": dict(**RECURRENT, num_layers=8, attention="gru"),
    "cnn-10m": dict(**RECURRENT, num_layers=6, attention="conv"),
    "gpt-classic": dict(
        hidden_size=384, num_layers=6, num_heads=6, norm="layernorm", positions="sinusoidal", mlp="gelu",
        attention_bias=True, mlp_bias=True,
    ),
}  # fmt: skip
"""Sizes by name, about that many parameters with a vocabulary of about 8,000 (the last three: 32,000)."""


def preset(name: str, **overrides: Any) -> ModelConfig:
    """The `ModelConfig` of a preset; `vocab_size` and anything else may be given."""
    check_choice("preset", name, tuple(PRESETS))
    return ModelConfig.from_dict({**PRESETS[name], **overrides})
