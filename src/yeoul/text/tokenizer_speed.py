"""How fast a tokenizer turns text into ids and back, on one thread.

Seconds are those of the processor, so that other work on the machine costs nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer

LEAST_SECONDS = 0.05
"""Each measurement repeats the texts until so much of it is over."""
TURNS = 5
MUCH = 10**9
"""Characters: the speed is that of much text."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpeed:
    """UTF-8 megabytes of text in a second of processor time, medians.

    Attributes:
        encode: text to ids, one text after the other.
        decode: ids to the same text.
    """

    encode: float
    decode: float


def tokenizer_speed(tokenizer: Tokenizer, texts: Sequence[str], *, seconds: float | None = None) -> TokenizerSpeed:
    """Measure with the texts read once before, as a server has them.

    Args:
        texts: not all empty.
        seconds: of each of the `TURNS` measurements, at least; None for `LEAST_SECONDS`.
    """
    seconds = LEAST_SECONDS if seconds is None else seconds
    size = sum(len(text.encode()) for text in texts)
    tokenizer.expect(MUCH)
    ids = [tokenizer.encode(text) for text in texts]
    for own in ids:
        tokenizer.decode(own)

    def encode() -> None:
        for text in texts:
            tokenizer.encode(text)

    def decode() -> None:
        for own in ids:
            tokenizer.decode(own)

    return TokenizerSpeed(encode=_rate(encode, size, seconds), decode=_rate(decode, size, seconds))


def _rate(work: Callable[[], None], size: int, seconds: float) -> float:
    rates = []
    for _ in range(TURNS):
        done, start = 0, time.process_time()
        while done == 0 or time.process_time() - start < seconds:
            work()
            done += 1
        rates.append(done * size / (time.process_time() - start) / 1e6)
    return statistics.median(rates)
