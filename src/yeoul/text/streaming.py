"""Ids to text one at a time, without ever showing half a character."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence

from yeoul.text.sentencepiece_model import SPACE

LONGEST_CLUSTER = 32
"""Code points that are withheld at most; real emoji have up to ten."""
JOINER = "\u200d"


class StreamDecoder:
    """Text of a growing sequence of tokens.

    What `push` returns and what `flush` returns at the end are together exactly `Tokenizer.decode` of the
    ids. Withheld until it is whole: a character whose UTF-8 bytes come in several tokens; an emoji that a
    modifier, a joiner or the second half of a flag may still follow; conjoining jamo. An ordinary syllable or
    letter is shown at once. A push costs the length of its token, whatever came before.

    Args:
        table: bytes of each id, empty for tokens without text.
        space_mark: whether U+2581 in decoded bytes stands for a space.
        strip_first_space: whether one space at the very beginning belongs to the tokenizer.
        composes: whether jamo become syllables, and letters with marks one character (NFC); all that may still be
            composed is then withheld too.
    """

    def __init__(
        self, table: Sequence[bytes], *, space_mark: bool = False, strip_first_space: bool = False,
        composes: bool = False,
    ) -> None:  # fmt: skip
        self._table = table
        self._space_mark = space_mark
        self._strip_first_space = strip_first_space
        self._composes = composes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, token: int) -> str:
        """Text that `token` completes; often its own, sometimes "", sometimes more."""
        return self._show(self._utf8.decode(token_bytes(self._table, token)), final=False)

    def flush(self) -> str:
        """What is still withheld, incomplete bytes as U+FFFD; call it once after the last token."""
        return self._show(self._utf8.decode(b"", final=True), final=True)

    def _show(self, new: str, final: bool) -> str:
        if not new and not final:
            return ""
        if self._space_mark:
            new = new.replace(SPACE, " ")
        if self._strip_first_space and new:
            new, self._strip_first_space = new.removeprefix(" "), False
        text = self._held + new
        closed = len(text) if final or not self._composes else _closed_length(text)
        text, rest = (composed(text[:closed]), text[closed:]) if self._composes else (text, "")
        end = len(text) if final else whole_length(text)
        self._held = text[end:] + rest
        return text[:end]


def composed(text: str) -> str:
    """The text in NFC."""
    return unicodedata.normalize("NFC", text)


def composed_bytes(text: bytes) -> int:
    """How many bytes of composed text a piece of decomposed text stands for, so that the sum over pieces is right.

    Vowels and finals of today's Hangul add nothing to the three bytes of a syllable, which count with its first jamo; a
    combining mark counts as one byte, so that a letter of the Latin alphabet comes out with its two.
    """
    whole = text.decode("utf-8", "surrogateescape")
    return sum(_own_bytes(character) for character in whole)


def _own_bytes(character: str) -> int:
    if "\u1161" <= character <= "\u1175" or "\u11a8" <= character <= "\u11c2":
        return 0
    if "\u0300" <= character <= "\u036f":
        return 1
    return len(character.encode("utf-8", "surrogateescape"))


def _closed_length(text: str) -> int:
    """Length of the beginning that nothing which may follow composes with: all but the last letter and its marks."""
    for end in range(len(text) - 1, max(-1, len(text) - 1 - LONGEST_CLUSTER), -1):
        follows = "\u1161" <= text[end] <= "\u11ff" or unicodedata.category(text[end]).startswith("M")
        if not follows:
            return end
    return len(text) if len(text) > LONGEST_CLUSTER else 0


def token_bytes(table: Sequence[bytes], token: int) -> bytes:
    """Bytes of an id; none beyond the vocabulary, where a model with a rounded-up one may end."""
    return table[token] if 0 <= token < len(table) else b""


def whole_length(text: str) -> int:
    """Length of the longest beginning of `text` that nothing which may follow changes the look of.

    This is Unicode's grapheme rule (UAX 29) as far as emoji, flags and jamo go: the last cluster is left out
    when it is an emoji, half a flag, conjoining jamo, or ends with a joiner.
    """
    end = len(text)
    at = end
    while at and end - at < LONGEST_CLUSTER:
        character = text[at - 1]
        if _extends(character) or (is_jamo(character) and at >= 2 and is_jamo(text[at - 2])):
            at -= 1
        elif _is_emoji(character) and at >= 2 and text[at - 2] == JOINER:
            at -= 1
        elif _is_flag_letter(character):
            return _flags_end(text, at)
        elif _is_emoji(character) or is_jamo(character) or text[-1] == JOINER:
            return at - 1
        else:
            return end
    return end


def _flags_end(text: str, at: int) -> int:
    """Two regional indicators are a flag: what is withheld is a last one without its partner."""
    start = at
    while start and at - start < LONGEST_CLUSTER and _is_flag_letter(text[start - 1]):
        start -= 1
    return at - 1 if (at - start) % 2 else len(text)


def _extends(character: str) -> bool:
    """Joiner, variation selector, skin tone, keycap, tag."""
    code = ord(character)
    return (
        code in (0x200D, 0x20E3) or 0xFE00 <= code <= 0xFE0F or 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F
    )


def _is_emoji(character: str) -> bool:
    """Blocks in which the emoji with sequences are, with some other symbols."""
    code = ord(character)
    return 0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or 0x2300 <= code <= 0x23FF


def _is_flag_letter(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def is_jamo(character: str) -> bool:
    """Whether it is a conjoining jamo, of which syllables are made, those of old Hangul too."""
    code = ord(character)
    return 0x1100 <= code <= 0x11FF or 0xA960 <= code <= 0xA97C or 0xD7B0 <= code <= 0xD7FB
