"""The ids of a `tokenizer.json` by the sentencepiece library, which finds them several times as fast as tokenizers.

Only where both are certain to agree, see `yeoul.text.agreement`; and what a text goes through before it is cut is done
here as `tokenizer.json` says: added tokens, composition (by tokenizers' own code), the space before a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from yeoul.runtime import usable_cpus
from yeoul.text.added_tokens import AddedToken
from yeoul.text.agreement import Cutting, Doubt, agreed
from yeoul.text.sentencepiece_model import SPACE, PieceType, SentencePieceModel, only_pieces, read_model

PART = 2000
"""Characters after which a text is cut at the next word: sentencepiece's BPE is slower on longer ones."""
TOGETHER = 500
"""Parts that are encoded together where not all ids are kept at once."""
SMALL = 20_000
"""Characters below which threads are not worth starting."""
WORD_END = re.compile(f"[^ {SPACE}](?= )")
CHECKED = 5_000
"""Pieces that the texts of the self-check are made of, at most."""
ODD = (
    " ", "  a   b\t\n\n c ", f"{SPACE}a{SPACE}{SPACE}b", "\0\x01\x7f\r\n", "<s></s><pad><unk><0x41>",
    "👩\u200d👩\u200d👧🇰🇷☺\ufe0f", "아ㅋㅋㅋㅎㅎㅋㅋ" + "ㅋ" * 9 + "ㅠㅜ" * 7, "\u1112\u1161\u11ab\u1100\u119e\u11ab",
    "e\u0301\u0323 \u00a0\u3000\u200b\ufeff", "漢字 ひらがな",
)  # fmt: skip


class SentencePieceIds:
    """See the module; it never changes.

    Attributes:
        processor: sentencepiece's, of pieces alone.
    """

    def __init__(self, cutting: Cutting, added: Sequence[AddedToken], data: bytes, model: SentencePieceModel) -> None:
        from sentencepiece import SentencePieceProcessor

        symbols = {i for i, piece in enumerate(model.pieces) if piece.type == PieceType.USER_DEFINED}
        self.processor: Any = SentencePieceProcessor(model_proto=only_pieces(data, symbols))
        self._cutting = cutting
        self._part = PART if cutting.longest is None else min(PART, cutting.longest // 2)
        self._ids = {token.content: token.id for token in added if not token.special}
        self._added: re.Pattern[str] | None = None
        if self._ids:
            # Special tokens are found, too, and stay text: what is within them is no other token.
            contents = sorted((token.content for token in added if not token.normalized), key=len, reverse=True)
            self._added = re.compile("|".join(map(re.escape, contents)))
        self._goes_in = self._added is None and cutting.prefix == "never"
        self._changing = None if cutting.form is None else changing(cutting.form).search
        if cutting.form is not None:
            from tokenizers import normalizers

            self._normalizer: Any = normalizers.NFC() if cutting.form == "NFC" else normalizers.NFD()

    @classmethod
    def where_certain(
        cls,
        spec: Mapping[str, Any],
        added: Sequence[AddedToken],
        data: bytes,
        encode: Callable[[str], list[int]],
    ) -> SentencePieceIds | None:
        """None where the ids of some text could be others.

        Args:
            spec: `tokenizer.json`.
            added: all added tokens, those of other files too.
            data: `tokenizer.model`.
            encode: by tokenizers, for a last check.
        """
        try:
            model = read_model(data)
            made = cls(agreed(spec, added, model), added, data, model)
            texts = [*ODD, *_samples(model)]
            found = made.encode_batch(texts)
            # None: a text that is left to tokenizers.
            same = all(ids is None or ids == encode(text) for ids, text in zip(found, texts, strict=True))
        except (Doubt, ValueError, RuntimeError, LookupError, TypeError, AttributeError, UnicodeError):
            return None
        return made if same else None

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text; None where tokenizers has to find them.

        Raises:
            TypeError, RuntimeError or UnicodeEncodeError: half a surrogate pair.
        """
        # Written out: two calls more are felt in a short text.
        if self._goes_in and len(text) <= self._part and (self._changing is None or self._changing(text) is None):
            ids: list[int] = self.processor.encode(text)
            return ids
        parts = self._parts(text)
        return None if parts is None else self._joined(parts, iter(self.processor.encode(_texts(parts), num_threads=1)))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int] | None]:
        """As `encode`, on all cores."""
        whole = "".join(texts)
        threads = usable_cpus() if len(whole) > SMALL else 1
        found: list[list[int] | None]
        if len(max(texts, key=len, default="")) <= self._part and self._is_plain(whole):
            found = self.processor.encode(list(texts), num_threads=threads)
            return found
        plans = [self._parts(text) for text in texts]
        parts = [part for plan in plans if plan is not None for part in _texts(plan)]
        encoded = iter(self.processor.encode(parts, num_threads=threads))
        return [None if plan is None else self._joined(plan, encoded) for plan in plans]

    def _is_plain(self, text: str) -> bool:
        """Whether nothing happens to a text before it is cut."""
        return self._goes_in and (self._changing is None or text.isascii() or self._changing(text) is None)

    @staticmethod
    def _joined(parts: list[str | int], encoded: Iterator[list[int]]) -> list[int]:
        """The ids of a text from those of its parts, which are texts and ids of added tokens."""
        if len(parts) == 1 and isinstance(parts[0], str):
            return next(encoded)
        ids: list[int] = []
        for part in parts:
            ids += next(encoded) if isinstance(part, str) else (part,)
        return ids

    def encode_in_parts(self, text: str) -> Iterator[list[int]] | None:
        """As `encode`, some ids at a time, for texts whose ids would take too much memory at once; on all cores."""
        parts = self._parts(text)
        return None if parts is None else self._in_parts(parts)

    def _in_parts(self, parts: list[str | int]) -> Iterator[list[int]]:
        for at in range(0, len(parts), TOGETHER):
            some = parts[at : at + TOGETHER]
            yield self._joined(some, iter(self.processor.encode(_texts(some), num_threads=usable_cpus())))

    def _parts(self, text: str) -> list[str | int] | None:
        """Texts for sentencepiece and ids of added tokens; None where sums of scores would not be exact."""
        if len(text) <= self._part and self._is_plain(text):
            return [text]
        parts: list[str | int] = []
        if self._added is None:
            return parts if self._cut(self._prefixed(text), parts) else None
        at = 0
        for match in self._added.finditer(text):
            token = self._ids.get(match[0])
            if token is None:
                continue
            if not self._cut(text[at : match.start()], parts):
                return None
            parts.append(token)
            at = match.end()
        return parts if self._cut(text[at:], parts) else None

    def _prefixed(self, text: str) -> str:
        """The text with the space that belongs before it; composition leaves a space and what follows it apart."""
        prefix = self._cutting.prefix
        if prefix == "never" or not text or (prefix == "missing" and text[0] in (" ", SPACE)):
            return text
        return SPACE + text

    def _cut(self, text: str, parts: list[str | int]) -> bool:
        """Adds the text to `parts`, composed, a long one in pieces that begin with the space before a word.

        A space is never composed with what is before it, so that pieces can be composed by themselves.

        False where sums of scores would not be exact.
        """
        at = 0
        while self._cutting.by_word and len(text) - at > self._part:
            match = WORD_END.search(text, at + self._part)
            if match is None:
                break
            if not self._add(text[at : match.end()], parts):
                return False
            at = match.end()
        return self._add(text[at:] if at else text, parts)

    def _add(self, text: str, parts: list[str | int]) -> bool:
        if self._changing is not None and self._changing(text) is not None:
            text = self._normalizer.normalize_str(text)
        if text:
            parts.append(text)
        return self._cutting.longest is None or len(text) <= self._cutting.longest


def _texts(parts: list[str | int]) -> list[str]:
    return [part for part in parts if isinstance(part, str)]


@cache
def changing(form: Literal["NFC", "NFD"]) -> re.Pattern[str]:
    """Finds characters that a form of Unicode may change, or may if others are beside them.

    Not found are those of Unicode 3.2, whose forms no later version changes, and emoji, as far as they stay what they
    are, never compose with the character before them and are not sorted.
    """
    early = unicodedata.ucd_3_2_0
    seconds = {0x1160 + n for n in range(0xA0)}  # vowels and final consonants of Hangul
    plain = []
    for code in range(0x10000):
        character = chr(code)
        parts = unicodedata.decomposition(character).split()
        if parts and not parts[0].startswith("<"):
            seconds.update(int(part, 16) for part in parts[1:])
        known = early.category(character) not in ("Cn", "Cs") and not unicodedata.combining(character)
        if known and unicodedata.normalize(form, character) == character:
            plain.append(code)
    ranges = [*_ranges(code for code in plain if code not in seconds), (0x1F000, 0x1FAFF)]
    return re.compile("[^" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]")


def _ranges(codes: Iterator[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of numbers."""
    first = last = next(codes)
    for code in codes:
        if code != last + 1:
            yield first, last
            first = code
        last = code
    yield first, last


def _samples(model: SentencePieceModel) -> list[str]:
    """Texts made of the model's pieces, in other orders than words have."""
    pieces = [piece.text.replace(SPACE, " ") for piece in model.pieces]
    step = max(1, len(pieces) // CHECKED)
    chosen = pieces[::step]
    stride = next(n for n in range(int(len(chosen) * 0.618) + 1, 2 * len(chosen) + 2) if n % 2 or len(chosen) == 1)
    mixed = [chosen[i * stride % len(chosen)] for i in range(len(chosen))]
    return [glue.join(mixed[i : i + 40]) for glue in ("", " ") for i in range(0, len(mixed), 40)]
