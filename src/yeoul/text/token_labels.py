"""Tokens under names that a person can read: where a character lies in several tokens, each shows the whole of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yeoul.foreign_text import visible
from yeoul.text.sentencepiece_model import SPACE
from yeoul.text.tokenizer import Tokenizer

SHOWN = {" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥", "\u00a0": "␣", "\u3000": "␣", SPACE: "␣"}
"""White space as a sign of its own."""
LONGEST = 40
"""Characters of a token that are shown; runs of spaces are longer."""


@dataclass(frozen=True, kw_only=True)
class TokenLabel:
    """How a token of a text is shown.

    Attributes:
        text: the characters that it stands for, white space and control characters as signs; of one that holds only a
            part of a character that whole character; bytes of no character as <0xEB>.
        piece: "2/3" for the second of three tokens that share a character, "" for a token of whole characters.
        special: whether it is a special token, shown as the vocabulary writes it.
    """

    text: str
    piece: str = ""
    special: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.piece})" if self.piece else self.text


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[TokenLabel]:
    """The tokens of a text, in order; what they show comes from the text and must be escaped in HTML."""
    own = [tokenizer.token_bytes(token) for token in ids]
    labels: list[TokenLabel] = []
    start = 0
    while start < len(ids):
        end = start + 1
        while end < len(ids) and own[end] and not _whole(b"".join(own[start:end])):
            end += 1
        run = own[start:end]
        if not run[0]:
            labels.append(TokenLabel(text=_clean(tokenizer.piece(ids[start])) or f"<{ids[start]}>", special=True))
        elif _whole(b"".join(run)):
            labels += _labels_of(run)
        else:  # bytes that no token completes
            end = start + 1
            labels += _labels_of(run[:1])
        start = end
    return labels


def _whole(data: bytes) -> bool:
    """Whether the bytes end where a character ends; bytes that begin none count as such."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # the first of several
            return back >= (4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2)
        if byte < 0x80:
            return True
    return True


def _labels_of(run: Sequence[bytes]) -> list[TokenLabel]:
    """Labels of tokens whose bytes together end with a whole character, or with one that is never completed."""
    spans: list[tuple[int, int, str]] = []  # first byte, end, character
    at = 0
    for character in b"".join(run).decode("utf-8", "surrogateescape"):
        width = len(character.encode("utf-8", "surrogateescape"))
        code = ord(character)
        spans.append((at, at + width, f"<0x{code - 0xDC00:02X}>" if 0xDC80 <= code <= 0xDCFF else character))
        at += width
    ends = [sum(map(len, run[: i + 1])) for i in range(len(run))]
    holders = [
        [i for i, end in enumerate(ends) if first < end and end - len(run[i]) < last] for first, last, _ in spans
    ]
    labels = []
    for i, end in enumerate(ends):
        first = end - len(run[i])
        mine = [n for n, (begin, last, _) in enumerate(spans) if begin < end and first < last]
        shared = next((n for n in mine if len(holders[n]) > 1), None)
        piece = "" if shared is None else f"{holders[shared].index(i) + 1}/{len(holders[shared])}"
        labels.append(TokenLabel(text=_clean("".join(spans[n][2] for n in mine)), piece=piece))
    return labels


def _clean(text: str) -> str:
    shown = visible("".join(SHOWN.get(character, character) for character in text))
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
