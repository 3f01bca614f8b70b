"""Numbers as people read them, in one way everywhere: sizes, durations, speeds, and how many of what.

Sizes are in binary units (1 KiB = 1,024 bytes), as memory is. JSON holds plain bytes, seconds and numbers instead.
"""

from __future__ import annotations


def size(count_of_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    if round(abs(count_of_bytes)) < 1024:
        return f"{count_of_bytes:,.0f} B"
    value = count_of_bytes / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if round(abs(value), 1) < 1024:
            return f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def duration(seconds: float) -> str:
    """0.012 -> "12 ms", 3.21 -> "3.2 s", 75 -> "1 min 15 s", 3700 -> "1 h 1 min"; "0 s" for nothing or less."""
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, rest = divmod(round(whole / 60), 60)
    if hours < 48:
        return f"{hours} h {rest} min"
    days, rest = divmod(round(whole / 3600), 24)
    return f"{days} d {rest} h"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """(1, "token") -> "1 token", (1234, "token") -> "1,234 tokens", (2, "class", "classes") -> "2 classes"."""
    return f"{number:,} {noun if abs(number) == 1 else plural or noun + 's'}"


def rate(number: float, noun: str = "tokens") -> str:
    """Tokens (or whatever is named) a second: "9.3 tokens/s", "1,234 tokens/s"."""
    return f"{number:,.1f} {noun}/s" if round(abs(number), 1) < 100 else f"{number:,.0f} {noun}/s"


def short(number: float) -> str:
    """1500 -> "1.5k", 2000000 -> "2M": for the axes of plots."""
    for magnitude, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= magnitude:
            return f"{number / magnitude:.3g}{letter}"
    return f"{number:.3g}"


def spelled(number: float) -> str:
    """1234567 -> "1.23 million"; small numbers in full: for sentences."""
    if number >= 1e9:
        return f"{number / 1e9:.3g} billion"
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,.0f}"
