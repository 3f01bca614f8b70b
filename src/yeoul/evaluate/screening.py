"""How often a screen errs: false positives and false negatives by threshold, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """Errors among cases, and the interval that holds the true rate with the confidence asked for."""

    errors: int
    cases: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Share of the cases; NaN without any."""
        return self.errors / self.cases if self.cases else math.nan


@dataclass(frozen=True)
class ScreenErrors:
    """At one threshold: harmless texts that are refused, and harmful ones that pass."""

    threshold: float
    false_positives: Rate
    false_negatives: Rate

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        rates = {"false_positives": self.false_positives, "false_negatives": self.false_negatives}
        return {"threshold": self.threshold} | {
            name: asdict(rate) | {"rate": rate.value if rate.cases else None} for name, rate in rates.items()
        }


def wilson(errors: int, cases: int, z: float = 1.959964) -> Rate:
    """A rate with Wilson's score interval (1927), which holds for few errors, too.

    Args:
        errors: how many of the cases; cases: all of them. Without any the interval is 0 to 1.
        z: quantile of the normal distribution; 1.96 for 95 %.
    """
    if not 0 <= errors <= cases:
        raise ValueError(f"{errors} of {cases}")
    if not cases:
        return Rate(0, 0, 0.0, 1.0)
    share, weight = errors / cases, z * z / cases
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / cases + weight / (4 * cases)) / (1 + weight)
    # At the ends the bound is exact, but for rounding.
    return Rate(errors, cases, centre - half if errors else 0.0, centre + half if errors < cases else 1.0)


def screen_errors(
    probabilities: Sequence[float], harmful: Sequence[bool], thresholds: Iterable[float]
) -> list[ScreenErrors]:
    """Errors at each threshold.

    Args:
        probabilities: of the texts, that they are to be refused; a text is refused from the threshold on.
        harmful: whether they are, one for each.
        thresholds: any.
    """
    pairs = list(zip(probabilities, harmful, strict=True))
    good = [p for p, is_harmful in pairs if not is_harmful]
    bad = [p for p, is_harmful in pairs if is_harmful]
    found = []
    for threshold in thresholds:
        refused, passed = sum(p >= threshold for p in good), sum(p < threshold for p in bad)
        found.append(ScreenErrors(threshold, wilson(refused, len(good)), wilson(passed, len(bad))))
    return found
