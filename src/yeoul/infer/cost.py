"""What generating a text has cost, in words, and whether it is longer than those that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from yeoul.units import count, duration, rate, size

if TYPE_CHECKING:
    from yeoul.infer.engine import GenerationResult
    from yeoul.model.config import ModelConfig


def beyond_training(config: ModelConfig, positions: int) -> str | None:
    """A sentence where linear attention remembers a text longer than those it was trained on, else None."""
    trained = config.linear_context
    if trained is None or positions <= trained:
        return None
    return (
        f"This text has {count(positions, 'token')}, but the model's linear attention was trained on texts of up to "
        f"{trained:,}: beyond that it may remember less than it should."
    )


def cost_line(results: Sequence[GenerationResult], seconds: float) -> str:
    """One line: tokens read and written, speed of decoding, bytes of the cache, why the text ended."""
    read, written = sum(r.prompt_tokens for r in results), sum(len(r.ids) for r in results)
    speed, ending = f"{rate(written / max(seconds, 1e-9))} in total", ""
    if len(results) == 1:
        (one,) = results
        speed = f"{rate(one.tokens_per_second)} after {duration(one.prefill_seconds)}"
        ending = f", ended by {one.finish_reason}"
    cache = size(max(r.cache_bytes for r in results))
    guessed, right = sum(r.guessed for r in results), sum(r.right for r in results)
    guesses = f", {right:,} of {guessed:,} guesses right" if guessed else ""
    return f"{count(read, 'token')} read, {written:,} generated, {speed}{guesses}, cache {cache}{ending}"
