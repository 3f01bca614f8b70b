"""Rotary positions (Su and others 2021) and the ways in which models were stretched beyond their first length: what
decides them, without tensors. Angles, and what they turn, are in `yeoul.model.rotary`.

Two of these ways depend on how long a text is. That is asked of each text by itself, of a row of a batch or a sequence
of a packed row, so that neighbours and padding change no answer:

- "longrope" turns all of a text by `short_factor` while it has at most `original_max_position_embeddings` tokens, and
  all of it by `long_factor` when it has more; keys that were turned one way and queries turned the other do not fit
  together. So it is decided once for what a cache holds, when its first columns are read. A text that outgrows that
  length while it is written is read once more from its beginning (`yeoul.infer.generation`): each token is drawn as
  the model would have it for the text so far, whatever was read before in which pieces, as transformers does for
  Phi-3. (vLLM decides once for a whole server, by the longest text that it would take, so that short texts are turned
  by `long_factor` there.)
- "dynamic" has another base for every length beyond `max_position_embeddings`; keys keep that of the moment when they
  were read, as in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from yeoul.errors import UserError, shown

if TYPE_CHECKING:
    from torch import Tensor

NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": ("original_max_position_embeddings", "short_factor", "long_factor"),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": (),
    "longrope": ("factor", "attention_factor"),
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched; fields are named as in `config.json`.

    Attributes:
        rope_type: "linear" (Chen and others 2023: positions divided by `factor`), "dynamic" (NTK-aware: the base grows
            with the length of the text once it passes `max_position_embeddings`), "yarn" (Peng and others 2023),
            "llama3" (Llama 3.1), "longrope" (Ding and others 2024: `long_factor` in texts that reach beyond
            `original_max_position_embeddings`, else `short_factor`); see above for both that look at lengths.
        short_factor: one divisor for each frequency, as `long_factor`.
    """

    rope_type: str
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rope_type, str) or self.rope_type not in NEEDED:
            raise UserError(
                f"rotary positions of type {shown(self.rope_type)} are not known", fix=f"known are {', '.join(NEEDED)}"
            )
        allowed = ("rope_type", *NEEDED[self.rope_type], *OPTIONAL[self.rope_type])
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                if field.name in NEEDED[self.rope_type]:
                    raise UserError(f"rotary positions of type {shown(self.rope_type)} need {shown(field.name)}")
                continue
            if field.name not in allowed:
                raise UserError(f"rotary positions of type {shown(self.rope_type)} have no {shown(field.name)}")
            if field.name in ("short_factor", "long_factor"):
                if not isinstance(value, list | tuple) or not all(_is_positive(number) for number in value):
                    raise UserError(f"{field.name} of rotary positions must be a list of positive numbers")
                object.__setattr__(self, field.name, tuple(float(number) for number in value))
            elif field.name == "original_max_position_embeddings":
                if not _is_positive(value) or value < 2 or value != int(value):
                    raise UserError(f"{field.name} of rotary positions must be a length, not {shown(value)}")
            elif field.name == "truncate":
                if not isinstance(value, bool):
                    raise UserError(f"truncate of rotary positions must be true or false, not {shown(value)}")
            elif field.name != "rope_type" and not _is_positive(value):
                raise UserError(f"{field.name} of rotary positions must be a positive number, not {shown(value)}")
        if self.rope_type == "llama3" and not self.low_freq_factor < self.high_freq_factor:  # type: ignore[operator]
            raise UserError("low_freq_factor of rotary positions must be smaller than high_freq_factor")

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v is not None}


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


class Rope(NamedTuple):
    """All that decides the rotation of one layer: turned dimensions R, base, stretching, and the model's length."""

    dim: int
    theta: float
    scaling: RopeScaling | None
    max_positions: int

    def check(self) -> None:
        """UserError where no frequencies follow from it."""
        if self.theta <= 1:
            raise UserError(f"the base of rotary positions must be larger than 1, not {shown(self.theta)}")
        if self.scaling is None:
            return
        if self.scaling.rope_type == "dynamic" and self.dim < 4:
            raise UserError("rotary positions of type 'dynamic' must turn more than two dimensions")
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.scaling, name)
            if factors is not None and len(factors) != self.dim // 2:
                raise UserError(f"rotary positions turn {self.dim // 2} pairs, but {name} has {len(factors)} numbers")

    @property
    def kind(self) -> str | None:
        """The `rope_type` of the stretching; None without one."""
        return None if self.scaling is None else self.scaling.rope_type

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on how long a text is."""
        return self.kind in ("dynamic", "longrope")

    def variant(self, lengths: Tensor) -> Tensor:
        """What of the lengths of texts decides the frequencies: equal numbers, equal frequencies."""
        if self.kind == "dynamic":
            return lengths.clamp_min(self.max_positions)
        if self.kind == "longrope":
            assert self.scaling is not None and self.scaling.original_max_position_embeddings is not None
            return (lengths > self.scaling.original_max_position_embeddings).long()
        return lengths.new_zeros(lengths.shape)

    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by: the temperature of attention that goes with some stretchings."""
        scaling = self.scaling
        if scaling is None or scaling.rope_type not in ("yarn", "longrope"):
            return 1.0
        if scaling.attention_factor is not None:
            return scaling.attention_factor
        factor, original = scaling.factor, scaling.original_max_position_embeddings
        assert original is not None
        if scaling.rope_type == "longrope":
            factor = factor or self.max_positions / original
            return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        assert factor is not None
        temperature = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
        if scaling.mscale and scaling.mscale_all_dim:
            return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
        return temperature(1)
