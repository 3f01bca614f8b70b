"""Files as streams of UTF-8 text, compressed or not, in pieces of bounded size; errors name the file and the line."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from yeoul.data.reading import DEFAULT, Reading, not_text
from yeoul.errors import UserError
from yeoul.plain_text import marked_encoding
from yeoul.units import size

COMPRESSED = (".xz", ".gz", ".zst")
"""Suffixes that may follow the suffix of a format, as in `reviews.tsv.xz`."""

_READ_SIZE = 1 << 20
_PIECE = 1 << 8
"""Bytes of a Zstandard file that are decompressed at once: four of them can hold 128 KiB."""
_LZMA_MEMORY = 1 << 28
"""The largest dictionary that `xz -9` writes needs a quarter of it."""
_LONGEST_MARK = 4
_DAMAGED_CHARACTER = "yeoul-damaged"
codecs.register_error(_DAMAGED_CHARACTER, lambda error: ("\udcff", getattr(error, "end", 0)))
# A lone surrogate, whose bytes are not UTF-8: whoever decodes the line finds the damage there.


class _Pieces(io.RawIOBase):
    """A raw stream of what `next_piece` gives, b"" at its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._piece, self._place = b"", 0

    @abstractmethod
    def next_piece(self) -> bytes:
        """More bytes, none at the end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._place == len(self._piece):
            self._piece, self._place = self.next_piece(), 0
            while 0 < len(self._piece) < _LONGEST_MARK and (more := self.next_piece()):  # for who peeks
                self._piece += more
        taken = self._piece[self._place : self._place + len(buffer)]
        self._place += len(taken)
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self.file.close()
        super().close()


class _ZstdPieces(_Pieces):
    """Zstandard frames as one stream; zstandard's own reader takes a cut-off frame for the end of the data."""

    def __init__(self, file: IO[bytes], decompressor: Any) -> None:
        super().__init__(file)
        self._decompressor = decompressor
        self._frame: Any = None
        self._rest = b""

    def next_piece(self) -> bytes:
        while True:
            chunk = self._rest or self.file.read(_PIECE)
            self._rest = b""
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return b""
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            output: bytes = self._frame.decompress(chunk)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
            if output:
                return output


class _XzPieces(_Pieces):
    """The streams of an .xz file as one, with a bound for the memory of the dictionary, which `lzma.open` has not."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._stream: lzma.LZMADecompressor | None = None
        self._rest = b""

    def next_piece(self) -> bytes:
        while True:
            chunk = b""
            if self._stream is None:
                chunk = self._rest or self.file.read(_READ_SIZE)
                self._rest = b""
                if not chunk:
                    return b""
                chunk = chunk.lstrip(b"\0")  # padding between streams
                if not chunk:
                    continue
                self._stream = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
            elif self._stream.needs_input:
                chunk = self.file.read(_READ_SIZE)
                if not chunk:
                    raise EOFError("the last stream is cut off")
            output = self._stream.decompress(chunk, _READ_SIZE)
            if self._stream.eof:
                self._rest, self._stream = self._stream.unused_data, None
            if output:
                return output


class _Utf8Pieces(_Pieces):
    """Text in another encoding as UTF-8; each run of bytes that are not text becomes one that is not UTF-8."""

    def __init__(self, file: IO[bytes], codec: str) -> None:
        super().__init__(file)
        self._decoder = codecs.getincrementaldecoder(codec)(_DAMAGED_CHARACTER)

    def next_piece(self) -> bytes:
        while True:
            data = self.file.read(_READ_SIZE)
            output = self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
            if output or not data:
                return output


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise UserError("reading .zst needs the package zstandard", path, "pip install zstandard") from error
    return io.BufferedReader(_ZstdPieces(path.open("rb"), zstandard.ZstdDecompressor()), _READ_SIZE)


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
            file = io.BufferedReader(_XzPieces(path.open("rb")), _READ_SIZE)
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


class TextStream(NamedTuple):
    """A file as UTF-8, whatever its encoding.

    Attributes:
        file: behind the byte-order mark.
        codec: the encoding that the file itself is in.
        offset: bytes of the file before; None where offsets are not those of the file, because it was re-encoded.
    """

    file: IO[bytes]
    codec: str
    offset: int | None


@contextmanager
def open_text(path: Path, reading: Reading = DEFAULT) -> Iterator[TextStream]:
    """Open a text file, decompressed; a byte-order mark is dropped, and says the encoding where there is one.

    Raises:
        UserError: as `open_bytes`.
    """
    with open_bytes(path) as file:
        peek: bytes = file.peek(_LONGEST_MARK)  # type: ignore[attr-defined]
        codec, length = marked_encoding(peek[:_LONGEST_MARK]) or (reading.codec or "utf-8", 0)
        file.read(length)
        if codec == "utf-8":
            yield TextStream(file, codec, length)
        else:
            yield TextStream(io.BufferedReader(_Utf8Pieces(file, codec), _READ_SIZE), codec, None)


class Line(NamedTuple):
    """A line of a file, numbered from 1: its text without its end, or what is wrong with it.

    Attributes:
        text: with a lone surrogate for each byte that is not text.
        error: it is not in the file's encoding, or too long; then there may be less text.
    """

    number: int
    text: str
    error: UserError | None


def lines_of(path: Path, reading: Reading = DEFAULT) -> Iterator[Line]:
    """The lines of a text file, each with what is wrong with it.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    with open_text(path, reading) as (file, codec, offset):
        largest, number = reading.largest_record, 0
        while raw := file.readline(largest + 1):
            number += 1
            length = len(raw)
            if length > largest and not raw.endswith(b"\n"):
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_READ_SIZE)
                    length += len(raw)
                yield Line(number, "", reading.too_large("the line", f"{path}:{number}"))
            else:
                try:
                    yield Line(number, raw.decode().rstrip("\r\n"), None)
                except UnicodeDecodeError as error:
                    wrong = not_text(raw, error, codec, f"{path}:{number}", offset)
                    yield Line(number, raw.decode("utf-8", "surrogateescape").rstrip("\r\n"), wrong)
            offset = None if offset is None else offset + length


def read_whole(path: Path, reading: Reading = DEFAULT) -> tuple[bytes, str, int | None]:
    """A text file as UTF-8, with its encoding and the length of its byte-order mark, as in `TextStream`.

    Raises:
        UserError: it cannot be read, or has more than `reading.largest_whole` bytes.
    """
    with open_text(path, reading) as (file, codec, offset):
        return read_bounded(file, path, reading), codec, offset


def read_bounded(file: IO[bytes], path: Path, reading: Reading) -> bytes:
    """All that comes of a stream.

    Raises:
        UserError: it is more than `reading.largest_whole` bytes.
    """
    pieces, left = [], reading.largest_whole + 1
    while left > 0 and (piece := file.read(min(left, _READ_SIZE))):
        pieces.append(piece)
        left -= len(piece)
    if left <= 0:
        what = f"the file is read whole, and is larger than {size(reading.largest_whole)}"
        raise UserError(what, path, "write its records into .jsonl, one a line, or raise --record-mib")
    return b"".join(pieces)
