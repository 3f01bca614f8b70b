"""Warnings about a training that did not improve the model, and which of its checkpoints is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from yeoul.train.criterion import BY_LOSS, Criterion

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
    head_rate: float | None = None,
    guess: float | None = None,
    unchanged: str = "the result is the model as it came",
    criterion: Criterion = BY_LOSS,
) -> list[str]:
    """Lines for the beginning of a summary; none where the last state is the best one and better than before.

    Args:
        result: of the training; kept: of `keep_best`.
        before: validation before the training, empty without one.
        rate: the peak learning rate; head_rate: that of --head-lr, where it is given.
        guess: validation loss of what needs no training, where the state before it is of no use.
        unchanged: what the result comes to where the state before the training is kept.
        criterion: what was kept by.
    """
    if not result.validation:
        return []
    if kept.lost:
        return [f"The best checkpoint cannot be read, so the last one, step {kept.step:,}, is kept."]
    first = before if guess is None else {"loss": guess}
    began = "before training" if guess is None else "for guessing by class frequency"
    name, try_this = criterion.name, advice(rate, head_rate)
    shown = [f"{values.get(criterion.key, math.nan):.4f}" for values in (first, kept.validation, result.validation)]
    if kept.step == 0:
        best = "" if result.best is None else f", {result.best.get(criterion.key, math.nan):.4f} at best afterwards"
        return [f"Training made the model worse: {name} {shown[0]} {began}{best}; {unchanged}.", try_this]
    start, best_rank, last = (criterion.rank(values) for values in (first, kept.validation, result.validation))
    if math.isfinite(start[0]) and not best_rank < start:
        return [f"Nothing useful was learned: {name} {shown[1]}, but {shown[0]} {began}.", try_this]
    worse = math.isfinite(start[0]) and start < last
    lines = [f"Training ended worse than it began: {name} {shown[2]}, but {shown[0]} {began}."] if worse else []
    if kept.step != result.step:
        what = f"step {kept.step:,} of {result.step:,}, where the {name} was best"
        lines.append(f"Kept: {what} ({shown[1]}, against {shown[2]} at the end).")
    return [*lines, try_this] if worse else lines


def advice(rate: float, head_rate: float | None = None) -> str:
    """What to try, by name and value."""
    rates = [("--lr", rate)] if head_rate is None else [("--lr", rate), ("--head-lr", head_rate)]
    lower = " ".join(f"{flag} {float(f'{value / LOWER:.0e}'):g}" for flag, value in rates)
    were = " and ".join(f"{value:.2g}" for _, value in rates)
    return f"Try a lower learning rate ({lower}; this run: {were}), fewer --epochs, or more data."
