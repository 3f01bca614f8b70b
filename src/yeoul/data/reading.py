"""How text files are read: in which encoding, and how much of one is held in memory at once."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from yeoul.errors import UserError, shown
from yeoul.plain_text import marked_encoding
from yeoul.units import size

_KOREAN = ("euc_kr", "cp949", "ks_c-5601", "ks_c_5601", "ks_c_5601_1987", "ksc5601", "korean", "ms949", "uhc", "949")
_FOR_NO_FILES = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "unicode-escape",
                 "raw-unicode-escape")  # fmt: skip
_WITHOUT_MARK = {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}
"""A byte-order mark is read and dropped before; without one Python's decoders would miss it."""
_MOSTLY = 0.7
"""Share of the 2,350 usual syllables among what is not ASCII; in EUC-JP, GB2312 or Latin-1 it is lower."""
AS_CP949 = "add --encoding cp949"
_LOOKED_AT = 1 << 16


Row = tuple[str, Any]
"""The place of a record, and its value; or the `UserError` that says what is wrong with it."""


class Columns(NamedTuple):
    """The columns of a table, and those of them that hold text; None where only the rows would say."""

    names: list[str]
    textual: list[str] | None = None


CheckColumns = Callable[[Columns, Path], Sequence[str] | None]
"""Raises where a table lacks columns that are needed; returns those that are, None for all."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files of data are read."""

    encoding: str = "utf-8"
    """Encoding of text, such as cp949 (Korean from older Windows); a byte-order mark takes precedence."""
    record_mib: int = 64
    """Longest line, row or record of a file in MiB; a .json file, which is read whole, may have 8 times as much."""

    def __post_init__(self) -> None:
        if self.record_mib < 1:
            raise UserError(f"--record-mib is {self.record_mib}, but must be at least 1")
        if self.codec is None:
            fix = "give for example utf-8, cp949 or utf-16"
            raise UserError(f"the encoding {shown(self.encoding)} is not known", "--encoding", fix)

    @property
    def codec(self) -> str | None:
        """Python's name of the encoding; EUC-KR is read as CP949, which has all of it and what people add to it."""
        if self.encoding.lower().replace("-", "_") in _KOREAN:
            return "cp949"
        try:
            found = codecs.lookup(self.encoding)
            with suppress(UnicodeDecodeError):
                b"a".decode(self.encoding)  # refuses what is known, but no encoding of text
        except (LookupError, ValueError):
            return None
        if found.incrementaldecoder is None or found.name in _FOR_NO_FILES:
            return None
        return _WITHOUT_MARK.get(found.name, found.name)

    @property
    def largest_record(self) -> int:
        """Bytes of a line, a row of a table or a record, decompressed."""
        return self.record_mib * 2**20

    @property
    def largest_whole(self) -> int:
        """Bytes of a file that has to be read whole."""
        return 8 * self.largest_record

    @property
    def most_values(self) -> int:
        """Values in the JSON of one record: what bounds the memory that its objects take."""
        return self.largest_record // 32

    def too_large(self, what: str, where: object) -> UserError:
        """The error for a record beyond the bound."""
        return UserError(
            f"{what} is larger than {size(self.largest_record)}", where, "if it has to be, raise --record-mib"
        )


DEFAULT = Reading()


def not_text(data: bytes, error: UnicodeDecodeError, codec: str, place: str, offset: int | None = None) -> UserError:
    """The error for bytes that are not in the encoding; it says so where they look like Korean in CP949.

    Args:
        data: what could not be decoded, a line or more.
        codec: the encoding that was tried.
        place: file and line.
        offset: of `data` in the file, when that is known.
    """
    what = f"the text is not {codec.upper()}"
    if offset is not None:
        what += f" at byte {offset + error.start}"
    if codec != "cp949" and looks_like_cp949(data[error.start :]):
        return UserError(f"{what}, but reads as Korean in CP949", place, AS_CP949)
    return UserError(what, place, "name its encoding with --encoding, or convert it to UTF-8")


def text_of(data: bytes, where: str, reading: Reading = DEFAULT) -> str:
    """The text of bytes that a byte-order mark may begin.

    Raises:
        UserError: they are not in the encoding; names `where` and the line.
    """
    codec, length = marked_encoding(data) or (reading.codec or "utf-8", 0)
    try:
        return data[length:].decode(codec)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, length + error.start) + 1
        raise not_text(data[length:], error, codec, f"{where}, line {line}") from None


def looks_like_cp949(data: bytes) -> bool:
    """Whether bytes that are not UTF-8 are CP949 (EUC-KR) with mostly Hangul; only their beginning is looked at.

    They may begin or end within a character.
    """
    for begin in (0, 1):
        try:
            text = codecs.getincrementaldecoder("cp949")().decode(data[begin : begin + _LOOKED_AT])
        except UnicodeDecodeError:
            continue
        foreign = [char.encode("cp949") for char in text if not char.isascii()]
        usual = sum(0xB0 <= char[0] <= 0xC8 and char[1] >= 0xA1 for char in foreign)
        if foreign and usual >= _MOSTLY * len(foreign):
            return True
    return False
