"""What a tokenizer does to a text, and how well it fits a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from yeoul.text.streaming import is_jamo

if TYPE_CHECKING:
    import numpy as np

    from yeoul.text.tokenizer import Tokenizer

BATCH = 256


@dataclass(frozen=True, kw_only=True)
class PieceOfText:
    """One token of a text.

    Attributes:
        text: what it stands for; U+FFFD where it is a part of a character.
        bytes: the UTF-8 bytes that it stands for.
    """

    id: int
    piece: str
    text: str
    bytes: bytes


@dataclass(frozen=True, kw_only=True)
class CorpusFit:
    """How a tokenizer cuts a corpus.

    Attributes:
        bytes: UTF-8 bytes of the texts.
        characters: code points.
        syllables: precomposed Hangul syllables.
        syllable_tokens: tokens that hold a Hangul syllable or a part of one.
        byte_tokens: tokens that are one byte of a character without a piece.
        words: what white space separates (eojeol in Korean).
        unknown_tokens: tokens that stand for a text which is lost.
        unused: pieces (without special tokens and bytes) that never occur.
        unused_examples: some of them.
        vocab_size: ids.
    """

    documents: int
    bytes: int
    characters: int
    syllables: int
    tokens: int
    syllable_tokens: int
    byte_tokens: int
    unused: int
    unused_examples: tuple[str, ...] = field(default=())
    vocab_size: int
    words: int
    unknown_tokens: int

    @property
    def tokens_per_syllable(self) -> float | None:
        return self.syllable_tokens / self.syllables if self.syllables else None

    @property
    def tokens_per_word(self) -> float | None:
        return self.tokens / self.words if self.words else None

    @property
    def tokens_per_character(self) -> float | None:
        return self.tokens / self.characters if self.characters else None

    @property
    def bytes_per_token(self) -> float | None:
        return self.bytes / self.tokens if self.tokens else None

    @property
    def byte_share(self) -> float | None:
        return self.byte_tokens / self.tokens if self.tokens else None

    def as_dict(self) -> dict[str, Any]:
        """Counts and ratios, ready for JSON."""
        ratios = ("tokens_per_syllable", "tokens_per_word", "tokens_per_character", "bytes_per_token", "byte_share")
        return {**asdict(self), **{name: getattr(self, name) for name in ratios}}


def pieces_of(tokenizer: Tokenizer, text: str) -> list[PieceOfText]:
    """The tokens of a text, in order."""
    found = []
    for token in tokenizer.encode(text):
        own = tokenizer.token_bytes(token)
        shown = own.decode("utf-8", "replace")
        found.append(PieceOfText(id=token, piece=tokenizer.piece(token), text=shown, bytes=own))
    return found


def corpus_fit(tokenizer: Tokenizer, documents: Iterable[str]) -> CorpusFit:
    """Count over documents, which are read once, as they come."""
    import numpy as np

    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    whole, broken = _hangul_flags(tokenizer)
    seen = size = characters = syllables = split = words = 0
    for texts in _batches(documents):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            seen += 1
            size += len(text.encode("utf-8", "replace"))
            characters += len(text)
            syllables += _count_syllables(text)
            words += len(text.split())
            array = np.asarray(ids, dtype=np.int64)
            counts += np.bincount(array, minlength=len(counts))
            split += _split_syllable_tokens(tokenizer, array, broken)
    special, in_bytes = set(tokenizer.special_tokens.values()), tokenizer.byte_ids
    never = np.flatnonzero(counts == 0).tolist()
    unused = [i for i in never if i not in special and i not in in_bytes and tokenizer.piece(i)]
    return CorpusFit(
        documents=seen,
        bytes=size,
        characters=characters,
        syllables=syllables,
        tokens=int(counts.sum()),
        syllable_tokens=int(counts[whole].sum()) + split,
        byte_tokens=int(counts[sorted(in_bytes)].sum()),
        unused=len(unused),
        unused_examples=tuple(tokenizer.piece(i) for i in unused[:: max(1, len(unused) // 12)][:12]),
        vocab_size=tokenizer.vocab_size,
        words=words,
        unknown_tokens=0 if tokenizer.unk_id is None else int(counts[tokenizer.unk_id]),
    )


def _batches(documents: Iterable[str]) -> Iterator[Sequence[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _is_syllable(character: str) -> bool:
    return "가" <= character <= "힣"


def _count_syllables(text: str) -> int:
    import numpy as np

    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return int(np.count_nonzero((codes >= 0xAC00) & (codes <= 0xD7A3)))


def _hangul_flags(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(V,) bool each: tokens that hold a whole Hangul syllable, or jamo of syllables that were taken apart; tokens that
    hold a part of a character."""
    import numpy as np

    whole = np.zeros(tokenizer.vocab_size, dtype=bool)
    broken = np.zeros(tokenizer.vocab_size, dtype=bool)
    for token in range(tokenizer.vocab_size):
        try:
            text = tokenizer.token_bytes(token).decode("utf-8")
            whole[token] = any(_is_syllable(c) or (tokenizer.composes and is_jamo(c)) for c in text)
        except UnicodeDecodeError:
            broken[token] = True
    return whole, broken


def _split_syllable_tokens(tokenizer: Tokenizer, ids: np.ndarray, broken: np.ndarray) -> int:
    """Tokens with a part of a Hangul syllable: neighbours that are not whole characters are read together."""
    import numpy as np

    places = np.flatnonzero(broken[ids])
    if not len(places):
        return 0
    total = 0
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
        parts = [tokenizer.token_bytes(token) for token in ids[run].tolist()]
        hangul: list[bool] = []  # for every byte of the run
        for character in b"".join(parts).decode("utf-8", "surrogateescape"):
            width = len(character.encode("utf-8", "surrogateescape"))
            hangul += [_is_syllable(character)] * width
        ends = np.cumsum([len(part) for part in parts]).tolist()
        total += sum(any(hangul[end - len(part) : end]) for part, end in zip(parts, ends, strict=True))
    return total
