"""Files as streams of UTF-8 text, compressed or not, with errors that name the file and the line."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from yeoul.errors import UserError

COMPRESSED = (".xz", ".gz", ".zst")
"""Suffixes that may follow the suffix of a format, as in `reviews.tsv.xz`."""

_READ_SIZE = 1 << 20


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as one raw stream; zstandard's own reader takes a cut-off frame for the end of the data."""

    def __init__(self, file: IO[bytes], decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        self._pending, self._output = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            chunk = self._pending or self._file.read(_READ_SIZE)
            self._pending = b""
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            self._output = self._frame.decompress(chunk)
            if self._frame.eof:
                self._pending, self._frame = self._frame.unused_data, None
        taken, self._output = self._output[: len(buffer)], self._output[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError("reading .zst needs the package zstandard", path, "pip install zstandard") from error
    return io.BufferedReader(_ZstdReader(path.open("rb"), zstandard.ZstdDecompressor()), _READ_SIZE)


def _damage_errors() -> tuple[type[BaseException], ...]:
    """What the decompressors raise for a damaged or truncated archive."""
    errors: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    try:
        import zstandard
    except ImportError:
        return errors
    return (*errors, zstandard.ZstdError)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its last suffix.

    Raises:
        UserError: the file cannot be opened, or reading inside the `with` block meets a damaged archive.
    """
    suffix = path.suffix.lower()
    try:
        file: Any
        if suffix == ".xz":
            file = lzma.open(path, "rb")
        elif suffix == ".gz":
            file = gzip.open(path, "rb")
        elif suffix == ".zst":
            file = _open_zstd(path)
        else:
            file = path.open("rb")
        with file:
            yield file
    except _damage_errors() as error:
        raise UserError(f"the archive is damaged or cut off: {error}", path, "download or copy it again") from error
    except FileNotFoundError as error:
        raise UserError("no such file", path) from error
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", path) from error


def decode(data: bytes, path: Path, line: int = 1, offset: int = 0) -> str:
    """UTF-8 bytes as text.

    Args:
        data: bytes that start at line `line` and byte `offset` of the (decompressed) file.

    Raises:
        UserError: not UTF-8; names file, line and byte offset.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = line + data.count(b"\n", 0, error.start)
        raise UserError(
            f"the text is not UTF-8 at byte {offset + error.start}",
            f"{path}:{row}",
            "convert it, for example with: iconv -f CP949 -t UTF-8",
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file, numbered from 1, without their line ends; a byte-order mark is dropped."""
    with open_bytes(path) as file:
        offset = 0
        for number, raw in enumerate(file, 1):
            line = decode(raw, path, number, offset)
            offset += len(raw)
            yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")


def read_all(path: Path) -> str:
    """The whole of a text file; a byte-order mark is dropped."""
    with open_bytes(path) as file:
        return decode(file.read(), path).removeprefix("\ufeff")
