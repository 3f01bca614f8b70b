"""The header of a GGUF file: its metadata, and where each of its tensors lies; nothing is dequantized.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian, in one file or
in parts as llama.cpp splits them. The reader of the package gguf makes an array of NumPy for every string (minutes for
a vocabulary of 262,144) and meets damage with errors of its own; here every length is compared with what is there, and
lists are made when they are asked for.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from yeoul.errors import UserError, shown

MAGIC = b"GGUF"
DAMAGED = "copy or download it again"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
"""Types of values in the metadata, as `struct` writes them; 7 is true or false."""
BOOL, STRING, LIST, FLOAT32 = 7, 8, 9, 6
MOST_VALUES, MOST_TENSORS, MOST_DIMENSIONS, LARGEST = 2**16, 2**20, 4, 2**50
LONGEST_KEY, LONGEST_LIST = 2**16, 2**26
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class Kind(NamedTuple):
    """A type of tensors: its name in ggml, and how many numbers one block of so many bytes holds."""

    name: str
    numbers: int
    nbytes: int


KINDS = {
    0: Kind("F32", 1, 4), 1: Kind("F16", 1, 2), 2: Kind("Q4_0", 32, 18), 3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22), 7: Kind("Q5_1", 32, 24), 8: Kind("Q8_0", 32, 34), 10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110), 12: Kind("Q4_K", 256, 144), 13: Kind("Q5_K", 256, 176), 14: Kind("Q6_K", 256, 210),
    16: Kind("IQ2_XXS", 256, 66), 17: Kind("IQ2_XS", 256, 74), 18: Kind("IQ3_XXS", 256, 98),
    19: Kind("IQ1_S", 256, 50), 20: Kind("IQ4_NL", 32, 18), 21: Kind("IQ3_S", 256, 110), 22: Kind("IQ2_S", 256, 82),
    23: Kind("IQ4_XS", 256, 136), 29: Kind("IQ1_M", 256, 56), 30: Kind("BF16", 1, 2), 34: Kind("TQ1_0", 256, 54),
    35: Kind("TQ2_0", 256, 66), 39: Kind("MXFP4", 32, 17),
}  # fmt: skip
"""Types of weights by their numbers in the file."""


class Tensor(NamedTuple):
    """Where a tensor lies: bytes of a file; `shape` with the rows first, `kind` a name of `KINDS`."""

    file: Path
    shape: tuple[int, ...]
    kind: str
    start: int
    nbytes: int


class Values(NamedTuple):
    """A list in the metadata that is not read yet; `kind` is the type of its elements."""

    file: Path
    kind: int
    length: int
    start: int
    end: int

    def read(self) -> list[Any]:
        """The elements: texts, numbers, or truths.

        Raises:
            UserError: a text is not UTF-8.
        """
        with self.file.open("rb") as opened:
            opened.seek(self.start)
            data = opened.read(self.end - self.start)
        if self.kind != STRING:
            found = struct.unpack(f"<{self.length}{SCALARS[self.kind]}", data)
            return [bool(value) for value in found] if self.kind == BOOL else list(found)
        texts: list[str] = []
        at, length = 0, struct.Struct("<Q").unpack_from
        try:
            for _ in range(self.length):
                (size,) = length(data, at)
                at += 8 + size
                texts.append(data[at - size : at].decode("utf-8"))
        except UnicodeDecodeError:
            raise UserError(f"text {len(texts)} of a list in the metadata is not UTF-8", self.file, DAMAGED) from None
        return texts


T = TypeVar("T")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says.

    Attributes:
        file: the file, or its first part.
        files: all parts.
        metadata: key to number, truth, text or `Values`.
        tensors: by their names in the file.
        used: keys that were asked for.
    """

    file: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    used: set[str] = field(default_factory=set, compare=False)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """A value; `default` where there is none.

        Args:
            kind: int (whole and not negative), float, bool, str or list.

        Raises:
            UserError: it is of another kind.
        """
        self.used.add(key)
        value = self.metadata.get(key)
        if value is None:
            return default
        if kind is list and isinstance(value, Values):
            return value.read()  # type: ignore[return-value]
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not fits or (kind is int and value < 0):
            wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}
            found = "a list" if isinstance(value, Values) else shown(value)
            raise UserError(f"{key} of the metadata must be {wanted[kind]}, not {found}", self.file, DAMAGED)
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """`get`, where there must be one."""
        value = self.get(key, kind)
        if value is None:
            raise UserError(f"the metadata has no {key}", self.file, "convert the model again with a newer llama.cpp")
        return value

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the kind of model."""
        return self.need("general.architecture", str)


def gguf_file(path: str | Path) -> Path | None:
    """The GGUF file that a path means: itself, of a split one the first part, or the only one in a folder.

    None where there is none, or several; a folder with a config.json is a model without it. Files that begin with
    mmproj hold the part of a model that sees images, and stand beside it.
    """
    path = Path(path)
    if path.is_file():
        return _first_part(path) if is_gguf(path) else None
    found = gguf_files(path)
    return found[0] if len(found) == 1 else None


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF models in a folder without a config.json, each by its first part."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    files = (path for path in folder.glob("*.gguf") if path.is_file() and not path.name.startswith("mmproj"))
    return sorted({_first_part(path) for path in files})


def is_gguf(path: Path) -> bool:
    """Whether a file is one by its ending or by its first bytes."""
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as opened:
            return opened.read(4) == MAGIC
    except OSError:
        return False


def _first_part(path: Path) -> Path:
    match = PART.fullmatch(path.name)
    return path if match is None else path.with_name(f"{match[1]}-00001-of-{match[3]}.gguf")


def read_header(file: Path) -> Header:
    """The header of a GGUF file and of the parts that belong to it.

    Raises:
        UserError: it is none, damaged or truncated; of a version or a type that is not known; a part is missing.
    """
    first = _cached(file)
    count = first.get("split.count", int, 1) or 1
    if count == 1:
        return first
    match = PART.fullmatch(file.name)
    if match is None or int(match[3]) != count:
        what = f"this is one of {count} parts of a model, which are found by their names"
        raise UserError(what, file, f"name them NAME-00001-of-{count:05}.gguf and so on")
    parts = [first]
    for number in range(2, count + 1):
        part = file.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise UserError(f"part {number} of {count} is missing: {part.name}", file, "put all parts into one folder")
        parts.append(_cached(part))
    tensors: dict[str, Tensor] = {}
    for number, header in enumerate(parts):
        if header.get("split.no", int) != number or header.get("split.count", int) != count:
            raise UserError(f"its metadata says that this is not part {number + 1} of {count}", header.file, DAMAGED)
        if twice := sorted(set(tensors) & set(header.tensors)):
            raise UserError(f"tensor {shown(twice[0])} is in two parts", header.file, DAMAGED)
        tensors |= header.tensors
    if (promised := first.get("split.tensors.count", int, len(tensors))) != len(tensors):
        raise UserError(f"the parts should hold {promised} tensors, but have {len(tensors)}", file, DAMAGED)
    return Header(file, tuple(header.file for header in parts), first.metadata, tensors)


def _cached(file: Path) -> Header:
    try:
        state = file.stat()
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", file) from None
    found = _read(file, state.st_size, state.st_mtime_ns)
    return Header(found.file, found.files, found.metadata, found.tensors)  # with nothing used yet


@functools.lru_cache(maxsize=8)
def _read(file: Path, size: int, changed: int) -> Header:
    with _mapped(file, size) as data:
        reader = _Reader(file, data)
        try:
            return reader.header()
        except struct.error:
            raise reader.damaged(f"it ends within its header, after {size:,} bytes") from None


@contextlib.contextmanager
def _mapped(file: Path, size: int) -> Iterator[mmap.mmap]:
    try:
        with file.open("rb") as opened:
            first = opened.read(8)
            if first.startswith(b"version "):
                what = "the file is a pointer of Git LFS in place of the model"
                raise UserError(what, file, "run `git lfs pull` in its folder")
            if not first.startswith(MAGIC):
                raise UserError("this is no GGUF file: it does not begin as one", file, "check the name, or " + DAMAGED)
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"the file cannot be read: {' '.join(reason.split())[:200]}", file) from None
    with data:
        yield data


class _Reader:
    """A header, from its beginning to its end."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at, self.size = file, data, len(MAGIC), len(data)

    def damaged(self, what: str) -> UserError:
        return UserError(f"damaged or truncated GGUF file: {what}", self.file, DAMAGED)

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self, longest: int | None = None) -> str:
        size = self.number("Q")
        if size > self.size - self.at or (longest is not None and size > longest):
            raise self.damaged(f"a text of {size:,} bytes at byte {self.at:,}")
        self.at += size
        try:
            return self.data[self.at - size : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"a text at byte {self.at - size:,} is not UTF-8") from None

    def header(self) -> Header:
        version = self.number("I")
        if version not in (2, 3):
            what = f"a GGUF file of version {version} is not read"
            if version and version & 0xFFFF == 0:
                what = "a GGUF file for big-endian machines is not read"
            raise UserError(what, self.file, "convert the model again with a newer llama.cpp")
        tensors, values = self.number("Q"), self.number("Q")
        if tensors > MOST_TENSORS or values > MOST_VALUES:
            raise self.damaged(f"{tensors:,} tensors and {values:,} values in its metadata")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            key = self.text(LONGEST_KEY)
            if key in metadata:
                raise self.damaged(f"its metadata has {shown(key)} twice")
            metadata[key] = self.value(self.number("I"), key)
        found = Header(self.file, (self.file,), metadata, {})
        alignment = found.get("general.alignment", int, 32) or 0
        if alignment < 1 or alignment > 2**20 or alignment & (alignment - 1):
            raise self.damaged(f"its tensors cannot be aligned to {alignment} bytes")
        entries = [self.entry() for _ in range(tensors)]
        base = -(-self.at // alignment) * alignment
        return Header(self.file, (self.file,), metadata, self.tensors(entries, base))

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.text()
        if kind == LIST:
            return self.values(key)
        if kind not in SCALARS:
            raise self.damaged(f"{shown(key)} of its metadata is of type {kind}")
        value = self.number(SCALARS[kind])
        if kind == BOOL:
            return bool(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.damaged(f"{shown(key)} of its metadata is {value}")
        return short(value) if kind == FLOAT32 else value

    def values(self, key: str) -> Values:
        kind, count = self.number("I"), self.number("Q")
        if (kind not in SCALARS and kind != STRING) or count > LONGEST_LIST:
            raise self.damaged(f"{shown(key)} of its metadata is a list of {count:,} values of type {kind}")
        start = self.at
        if kind == STRING:
            length, data, at, size = struct.Struct("<Q").unpack_from, self.data, start, self.size
            for _ in range(count):
                at += 8 + length(data, at)[0]
                if at > size:
                    break
            self.at = at
        else:
            self.at += count * struct.calcsize(SCALARS[kind])
        if self.at > self.size:
            raise self.damaged(f"{shown(key)} of its metadata reaches beyond its end")
        return Values(self.file, kind, count, start, self.at)

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.text(LONGEST_KEY), self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise self.damaged(f"tensor {shown(name)} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if math.prod(max(size, 1) for size in shape) >= LARGEST:
            raise self.damaged(f"tensor {shown(name)} has the shape {shown(shape)}")
        return name, shape, self.number("I"), self.number("Q")

    def tensors(self, entries: list[tuple[str, tuple[int, ...], int, int]], base: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, shape, number, offset in entries:
            if name in found:
                raise self.damaged(f"tensor {shown(name)} is there twice")
            if (kind := KINDS.get(number)) is None:
                what = f"tensor {shown(name)} is of a quantization type that is not known (number {number})"
                raise UserError(what, self.file, "take the model in another quantization, such as Q4_K_M or Q8_0")
            if not shape or shape[-1] % kind.numbers:
                raise self.damaged(f"tensor {shown(name)} of shape {shown(shape)} cannot be of type {kind.name}")
            nbytes = math.prod(shape) // kind.numbers * kind.nbytes
            if base + offset + nbytes > self.size:
                what = f"tensor {shown(name)} ends at byte {base + offset + nbytes:,}, but the file at {self.size:,}"
                raise self.damaged(what)
            found[name] = Tensor(self.file, shape, kind.name, base + offset, nbytes)
        end = 0
        for name, tensor in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if tensor.start < end:
                raise self.damaged(f"tensor {shown(name)} overlaps the one before it")
            end = tensor.start + tensor.nbytes
        return found


def short(value: float) -> float:
    """The number with the fewest digits that is this one in 32 bits: 1e-06 for what was written so and rounded."""
    same: Callable[[float], bool] = lambda number: struct.pack("<f", number) == struct.pack("<f", value)  # noqa: E731
    return next((number for digits in range(1, 10) if same(number := float(f"{value:.{digits}g}"))), value)
