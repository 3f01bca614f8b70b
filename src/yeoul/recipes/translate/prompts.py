"""How a translation is asked for: by examples in a pattern of lines, or in turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence


def pattern(examples: Sequence[tuple[str, str]], source: str, languages: tuple[str, str]) -> str:
    """Lines "Korean: ..." and "English: ..." of each example, and the line that is to be continued."""
    first, second = languages
    shown = [f"{first}: {a}\n{second}: {b}\n\n" for a, b in examples]
    return "".join(shown) + f"{first}: {source}\n{second}:"


def instruction(source: str, languages: tuple[str, str]) -> str:
    """What a chat model is asked."""
    return f"Translate from {languages[0]} to {languages[1]}:\n{source}"


def turns(pairs: Sequence[tuple[str, str]], languages: tuple[str, str]) -> list[dict[str, str]]:
    """A question and an answer for each pair; without the answer where there is none."""
    found = []
    for source, target in pairs:
        found.append({"role": "user", "content": instruction(source, languages)})
        if target:
            found.append({"role": "assistant", "content": target})
    return found
