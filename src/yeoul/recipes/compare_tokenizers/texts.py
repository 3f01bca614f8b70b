"""The text that tokenizers are compared on: what is trained on, what is held out, and both as sequences of bytes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from yeoul.errors import UserError
from yeoul.recipes.compare_tokenizers.config import CompareTokenizersConfig
from yeoul.text.tokenizer import without_surrogates

EVERY = 10
"""One document of so many is held out, until there is enough."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text in NFC.

    Attributes:
        train, held_out: documents.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def read_corpus(data: str, config: CompareTokenizersConfig) -> Corpus:
    """As much text as is asked for; the rest of the data is not read.

    Raises:
        UserError: it cannot be read, or nothing is left for one of the two parts.
    """
    if config.val_data is not None:
        held_out = _first_bytes(config.text.documents(config.val_data), config.val_bytes)
        train = _first_bytes(config.text.documents(data), config.train_bytes)
    else:
        train, held_out = _divided(config.text.documents(data), config.train_bytes, config.val_bytes)
    if not held_out:
        raise UserError("there is too little text to hold some of it out", f"--data {data}", "give --val-data")
    if config.train_bytes and not train:
        raise UserError("there is no text to train a model on", f"--data {data}", "give more, or --train-bytes 0")
    return Corpus(train=tuple(train), held_out=tuple(held_out))


def segments(documents: Iterable[str], size: int) -> list[str]:
    """Documents with a line break behind each, one after the other, in parts of at most so many bytes.

    A part ends behind a line break, or before a space, or between two characters.
    """
    parts: list[str] = []
    held = ""
    for document in documents:
        held += document + "\n"
        while len(held.encode()) > size:
            cut = _cut(held, size)
            parts.append(held[:cut])
            held = held[cut:]
    return [*parts, held] if held else parts


def _cut(text: str, size: int) -> int:
    most = len(text.encode()[:size].decode("utf-8", "ignore"))
    line = text.rfind("\n", 0, most) + 1
    if line > most // 2:
        return line
    space = text.rfind(" ", 1, most)
    return space if space > most // 2 else max(1, most)


def _divided(documents: Iterator[str], train_bytes: int, val_bytes: int) -> tuple[list[str], list[str]]:
    train: list[str] = []
    held_out: list[str] = []
    left = [train_bytes, val_bytes]
    for number, document in enumerate(map(_clean, documents)):
        part = 1 if number % EVERY == EVERY - 1 else 0
        if left[part] > 0:
            own = _shortened(document, left[part])
            (train, held_out)[part].append(own)
            left[part] -= len(own.encode()) + 1
        if max(left) <= 0:
            break
    return train, held_out


def _first_bytes(documents: Iterator[str], size: int) -> list[str]:
    found: list[str] = []
    for document in map(_clean, documents):
        if size <= 0:
            break
        own = _shortened(document, size)
        found.append(own)
        size -= len(own.encode()) + 1
    return found


def _clean(document: str) -> str:
    return unicodedata.normalize("NFC", without_surrogates(document))


def _shortened(document: str, size: int) -> str:
    """Its beginning, cut where a sequence might be, so that one long document does not exceed what is asked for."""
    return document if len(document.encode()) <= size else document[: _cut(document, max(4, size))]
