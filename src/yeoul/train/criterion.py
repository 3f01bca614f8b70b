"""By which of its values one validation is better than another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What the kept state of a run is chosen by.

    Not always the loss: losses of vectors also fall when all vectors become alike, which is of no use.

    Attributes:
        key: of the value that decides; of two that are equal the one with the lower loss is better.
        name: of it, for people.
        higher: larger is better.
    """

    key: str = "loss"
    name: str = "validation loss"
    higher: bool = False

    def rank(self, values: Mapping[str, float]) -> tuple[float, float]:
        """Smaller is better; infinite where the value is missing or not finite."""
        value, loss = (float(values.get(key, math.nan)) for key in (self.key, "loss"))
        if not math.isfinite(value):
            return math.inf, math.inf
        return -value if self.higher else value, loss if math.isfinite(loss) else math.inf


BY_LOSS = Criterion()
