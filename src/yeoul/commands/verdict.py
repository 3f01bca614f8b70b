"""What is said first of a training that did not do what it was for, and which of its states is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yeoul.train.kept import Kept
    from yeoul.train.loop import TrainResult

LOWER = 5
"""What a learning rate that was too high is divided by in the advice."""


def verdict(
    result: TrainResult,
    kept: Kept,
    before: Mapping[str, float],
    *,
    rate: float,
    guess: float | None = None,
    unchanged: str = "the result is the model as it came",
) -> list[str]:
    """Lines for the beginning of a summary; none where the last state is the best one and better than before.

    Args:
        result: of the training; kept: of `keep_best`.
        before: validation before the training, empty without one.
        rate: the peak learning rate.
        guess: validation loss of what needs no training, where the state before it is of no use.
        unchanged: what the result comes to where the state before the training is kept.
    """
    last, best = result.validation.get("loss", math.nan), kept.validation.get("loss", math.nan)
    first = before.get("loss", math.nan) if guess is None else guess
    began = "before the training" if guess is None else "by guessing from how frequent the classes are"
    if not result.validation:
        return []
    if kept.lost:
        return [
            f"The checkpoint with the lowest validation loss cannot be read: step {kept.step:,}, the last, is kept."
        ]
    if kept.step == 0:
        lowest = "never finite since" if result.best is None else f"{result.best['loss']:.4f} at best since"
        return [
            f"The training made it worse: validation loss {first:.4f} {began}, {lowest}; {unchanged}.",
            advice(rate),
        ]
    if not best < first and math.isfinite(first):
        return [f"Nothing useful was learned: validation loss {best:.4f}, but {first:.4f} {began}.", advice(rate)]
    lines = []
    if last > first:
        lines.append(f"The training ended worse than it began: validation loss {last:.4f}, but {first:.4f} {began}.")
    if kept.step != result.step:
        lines.append(
            f"Kept is step {kept.step:,} of {result.step:,}, where the validation loss was lowest: {best:.4f}, against "
            f"{last:.4f} at the end."
        )
    return [*lines, advice(rate)] if last > first else lines


def advice(rate: float) -> str:
    """What to try, by name and value."""
    lower = float(f"{rate / LOWER:.0e}")
    return f"Try a lower learning rate (--lr {lower:g}; this run's was {rate:.2g}), fewer --epochs, or more data."
