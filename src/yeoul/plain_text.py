"""Bytes of text files as text: the marks that name an encoding, and where a line ends."""

from __future__ import annotations

import codecs

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks at the beginning of a file, and what they say."""


def marked_encoding(data: bytes) -> tuple[str, int] | None:
    """The encoding that a byte-order mark names and the length of the mark; None where there is none."""
    return next(((name, len(mark)) for mark, name in MARKS if data.startswith(mark)), None)


def decode_marked(data: bytes, encoding: str = "utf-8") -> str:
    """The text of a whole file: in `encoding`, or in the one that a byte-order mark names; the mark is dropped.

    Raises:
        UnicodeDecodeError: its bytes are not in that encoding.
    """
    name, length = marked_encoding(data) or (encoding, 0)
    return data[length:].decode(name)


def without_mark(data: bytes) -> bytes:
    """A file's bytes without a byte-order mark; text in UTF-16 or UTF-32 that begins with one is made UTF-8.

    Bytes that are not text are handed back as they are, for whoever reads them to complain.
    """
    name, length = marked_encoding(data) or ("utf-8", 0)
    if name == "utf-8":
        return data[length:]
    try:
        return data[length:].decode(name).encode()
    except UnicodeError:
        return data


def split_lines(text: str) -> list[str]:
    """The lines of a text, without their ends: LF, or CR and LF.

    `str.splitlines` also ends a line at form feeds, U+0085, U+2028 and others, which stand inside people's sentences.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
