"""The settings of sampling. Without torch, so that a command's --help is quick."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from yeoul.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a text is continued.

    Raises:
        UserError: a value outside its range; the message names the flag.
    """

    max_tokens: int = 128
    """New tokens at most."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0 = all."""
    top_p: float = 0.95
    """Draw from the smallest set of tokens whose probability reaches p; 1 = all."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability; 0 = none."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and of the answer so far less likely; 1 = off."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer has so far, as OpenAI has it; 0 = off."""
    frequency_penalty: float = 0.0
    """Taken from its logit once for each time that the answer has it so far; 0 = off."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logit of a token, as pairs of id and bias; -100 rules it out and 100 leaves nothing else."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    seed: int | None = None
    """Row i of a batch draws with seed + i, so a row can be had again alone; None = new each time."""
    ignore_eos: bool = False
    """Continue after the end-of-text token."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        else:
            object.__setattr__(self, "stop", tuple(self.stop or ()))
        _require(_is_int(self.max_tokens) and self.max_tokens >= 1, "max-tokens", self.max_tokens, "at least 1")
        _require(_in(self.temperature, 0, math.inf), "temperature", self.temperature, "0 or more")
        _require(_is_int(self.top_k) and self.top_k >= 0, "top-k", self.top_k, "0 (off) or more")
        _require(_in(self.top_p, 0, 1) and self.top_p > 0, "top-p", self.top_p, "above 0 and at most 1")
        _require(_in(self.min_p, 0, 1), "min-p", self.min_p, "between 0 and 1")
        penalty = self.repetition_penalty
        _require(_in(penalty, 0, math.inf) and penalty > 0, "repetition-penalty", penalty, "above 0")
        for flag, value in (("presence-penalty", self.presence_penalty), ("frequency-penalty", self.frequency_penalty)):
            _require(_in(value, -2, 2), flag, value, "between -2 and 2")
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias
        for token, bias in pairs:
            _require(_is_int(token) and token >= 0, "logit-bias", token, "of ids of tokens")
            _require(_in(bias, -100, 100), "logit-bias", bias, "between -100 and 100")
        object.__setattr__(
            self, "logit_bias", tuple(sorted((token, float(bias)) for token, bias in dict(pairs).items()))
        )
        _require(
            self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**62),
            "seed", self.seed, "an integer of 0 or more",
        )  # fmt: skip
        for text in self.stop:
            _require(isinstance(text, str) and text != "", "stop", repr(text), "a text of at least one character")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _in(value: object, low: float, high: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type,operator]


def _require(valid: bool, flag: str, value: object, wanted: str) -> None:
    if not valid:
        raise UserError(f"--{flag} is {value}, but must be {wanted}")
