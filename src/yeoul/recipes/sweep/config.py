"""Settings of `yeoul.sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from yeoul.config import Settings
from yeoul.errors import UserError
from yeoul.infer.params import SamplingParams

if TYPE_CHECKING:
    from yeoul.evaluate.sampling import Setting


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Which settings of sampling are tried, and on how much text."""

    temperature: tuple[float, ...] = (0.4, 0.7, 1.0, 1.3)
    """Temperatures, one or more. Greedy decoding and plain sampling (1, nothing ruled out) are always measured too."""
    top_k: tuple[int, ...] = (0, 40)
    """Numbers of likeliest tokens to draw from; 0 = all."""
    top_p: tuple[float, ...] = (1.0, 0.95, 0.8)
    """Probabilities that the tokens drawn from must reach together; a lower one keeps fewer tokens, 1 keeps all."""
    min_p: tuple[float, ...] = (0.0, 0.05)
    """Shares of the likeliest token's probability below which tokens are left out; 0 = none."""
    max_tokens: int = 64
    """New tokens of each continuation at most."""
    samples: int = 1
    """Continuations of each prompt under each setting."""
    ignore_eos: bool = False
    """Continue after the end-of-text token, so that all texts are of the same length."""
    self_bleu: bool = True
    """Measure self-BLEU, which needs sacrebleu (extra eval)."""
    batch_size: int = 64
    """Texts generated at a time: prompts of several settings in one batch."""
    seed: int = 0
    """Prompt i draws with seed + i under every setting, so that settings differ in nothing else."""
    dtype: str = "auto"
    """Dtype of the weights: auto, float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        for flag, value in (
            ("max-tokens", self.max_tokens), ("samples", self.samples), ("batch-size", self.batch_size),
        ):  # fmt: skip
            if value < 1:
                raise UserError(f"--{flag} is {value}, but must be at least 1")
        for flag, values in (
            ("temperature", self.temperature), ("top-k", self.top_k), ("top-p", self.top_p), ("min-p", self.min_p),
        ):  # fmt: skip
            if not values:
                raise UserError("no value was given", f"--{flag}", "give one or more")
        if min(self.temperature) == 0:
            raise UserError("a temperature of 0 is greedy decoding, which is always measured", "--temperature")
        drawing = SamplingParams(max_tokens=self.max_tokens, seed=self.seed)
        for t, k, p, m in product(self.temperature, self.top_k, self.top_p, self.min_p):
            replace(drawing, temperature=t, top_k=k, top_p=p, min_p=m)  # names the flag that is out of range

    def grid(self) -> Iterator[Setting]:
        """Every combination once, in the order of the flags."""
        from yeoul.evaluate.sampling import Setting

        values = product(self.temperature, self.top_k, self.top_p, self.min_p)
        yield from dict.fromkeys(Setting(temperature=t, top_k=k, top_p=p, min_p=m) for t, k, p, m in values)
