"""What `tokenizer.model` holds, read and rewritten without protobuf's runtime.

The file is a `ModelProto` of sentencepiece's `sentencepiece_model.proto`; the few fields that Yeoul needs are
read straight from protobuf's wire format (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum

SPACE = "▁"
"""U+2581, which sentencepiece writes for a space inside pieces; a literal one in a text becomes a space."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, int | bytes]
"""Number, wire type, and value: an int for VARINT, raw bytes for the rest."""


class PieceType(IntEnum):
    """`ModelProto.SentencePiece.Type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """`TrainerSpec.ModelType`."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """The content of a `tokenizer.model` that decides how text becomes ids.

    Attributes:
        charsmap: sentencepiece's compiled normalization rules, empty for identity.
        space_behind: spaces belong to the word before them.
    """

    pieces: tuple[Piece, ...]
    type: ModelType
    byte_fallback: bool
    add_dummy_prefix: bool
    charsmap: bytes
    space_behind: bool = False


def read_model(data: bytes) -> SentencePieceModel:
    """Read a serialized `ModelProto`.

    Raises:
        ValueError: `data` is empty, cut short or something else.
    """
    model = list(_fields(data))
    pieces = tuple(_piece(_as_bytes(value)) for number, _, value in model if number == 1)
    trainer = {n: v for number, _, value in model if number == 2 for n, _, v in _fields(_as_bytes(value))}
    norm = {n: v for number, _, value in model if number == 3 for n, _, v in _fields(_as_bytes(value))}
    if not pieces or not any(number == 3 for number, _, _ in model):
        raise ValueError("it has no pieces or no normalizer, or is not a sentencepiece model")
    return SentencePieceModel(
        pieces=pieces,
        type=ModelType(_as_int(trainer.get(3, 1))),
        byte_fallback=bool(trainer.get(35, 0)),
        add_dummy_prefix=bool(norm.get(3, 1)),
        charsmap=_as_bytes(norm.get(2, b"")),
        space_behind=bool(trainer.get(24, 0)),
    )


def rewrite_model(data: bytes, score: Callable[[Piece], float]) -> bytes:
    """The same model with other scores, and without the path of the rule file it was trained with.

    Args:
        data: a serialized `ModelProto`.
        score: the new score of a piece.
    """
    parts: list[bytes] = []
    for number, kind, value in _fields(data):
        if number == 1:
            value = _with_score(_as_bytes(value), score)
        elif number == 3:
            kept = (field for field in _fields(_as_bytes(value)) if field[0] != 6)
            value = b"".join(_encoded(*field) for field in kept)
        parts.append(_encoded(number, kind, value))
    return b"".join(parts)


def without_text(data: bytes, hidden: Collection[int], *, dummy_prefix: bool) -> bytes:
    """The same model, which makes some pieces of no text any more.

    Args:
        data: a serialized `ModelProto`.
        hidden: ids of pieces that become control pieces.
        dummy_prefix: False takes away the space that the model puts before a text.
    """
    parts: list[bytes] = []
    count = 0
    for number, kind, value in _fields(data):
        if number == 1:
            value = _with_field(_as_bytes(value), 3, PieceType.CONTROL) if count in hidden else value
            count += 1
        elif number == 3 and not dummy_prefix:
            value = _with_field(_as_bytes(value), 3, 0)
        parts.append(_encoded(number, kind, value))
    return b"".join(parts)


def only_pieces(data: bytes, hidden: Collection[int]) -> bytes:
    """The same pieces under a model that takes a text as it is: spaces become `SPACE`, and nothing else changes.

    Args:
        data: a serialized `ModelProto`.
        hidden: ids of pieces that become control pieces.
    """
    parts: list[bytes] = []
    for number, kind, value in _fields(without_text(data, hidden, dummy_prefix=False)):
        if number == 4:  # examples of what the model makes of texts, which loading would compare
            continue
        if number == 3:
            # Rules, the spaces that they take away and the file that they come from; a space stays a mark.
            kept = b"".join(_encoded(*field) for field in _fields(_as_bytes(value)) if field[0] not in (2, 4, 5, 6))
            value = kept + _encoded(4, VARINT, 0) + _encoded(5, VARINT, 1)
        parts.append(_encoded(number, kind, value))
    return b"".join(parts)


def with_unused(data: bytes, unused: Collection[int], score: float) -> bytes:
    """The same model, which no longer uses some of its pieces.

    Args:
        data: a serialized `ModelProto`.
        unused: their ids.
        score: they get it, too, for readers that pass over types.
    """
    parts: list[bytes] = []
    count = 0
    for number, kind, value in _fields(data):
        if number == 1:
            if count in unused:
                value = _with_field(_with_score(_as_bytes(value), lambda _: score), 3, PieceType.UNUSED)
            count += 1
        parts.append(_encoded(number, kind, value))
    return b"".join(parts)


def _with_field(data: bytes, number: int, value: int) -> bytes:
    kept = b"".join(_encoded(*field) for field in _fields(data) if field[0] != number)
    return kept + _encoded(number, VARINT, value)


def _piece(data: bytes) -> Piece:
    values = {number: value for number, _, value in _fields(data)}
    return Piece(
        text=_as_bytes(values[1]).decode("utf-8"),
        score=struct.unpack("<f", _as_bytes(values.get(2, b"\0\0\0\0")))[0],
        type=PieceType(_as_int(values.get(3, 1))),
    )


def _with_score(data: bytes, score: Callable[[Piece], float]) -> bytes:
    raw = struct.pack("<f", score(_piece(data)))
    return b"".join(_encoded(n, kind, raw if n == 2 else value) for n, kind, value in _fields(data))


def _fields(data: bytes) -> Iterator[Field]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"it is not a sentencepiece model (wire type {kind})")
        if number == 0 or at + size > len(data):
            raise ValueError("it is truncated, or not a sentencepiece model")
        yield number, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("it is truncated, or not a sentencepiece model")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _encoded(number: int, kind: int, value: int | bytes) -> bytes:
    head = _encoded_varint(number << 3 | kind)
    if isinstance(value, int):
        return head + _encoded_varint(value)
    return head + (_encoded_varint(len(value)) if kind == BYTES else b"") + value


def _encoded_varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes belong")
    return value


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value
