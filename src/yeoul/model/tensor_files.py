"""The weights of a model: found, checked by their headers, and read without more memory than they need.

They lie in the safetensors files of a folder, or in a GGUF file, which then stands where the folder does.
"""

from __future__ import annotations

import errno
import itertools
import math
import mmap
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from yeoul.errors import UserError, shown
from yeoul.model.stored import Stored as Stored
from yeoul.safe_json import DAMAGED, MOST_VALUES, JSONError, parse_object, read_object
from yeoul.safe_json import LARGEST as LARGEST_JSON

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types in a header -> what torch calls them."""
INTEGERS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
}  # fmt: skip
"""Types of tensors that are recomputed, such as masks; no weight is of one."""
WIDTHS = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4, "uint64": 8, "int64": 8, "float64": 8,
}  # fmt: skip
"""Bytes of a number of each."""
LARGEST = 2**50
"""No tensor has so many numbers."""
COMPARED = 2**23
"""Bytes of two tensors that are compared at a time."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each inside it; of a GGUF file, all its parts.

    Raises:
        UserError: none, only pickles, or an index that names a file which is not there or not inside.
    """
    if folder.is_file():
        from yeoul.model.gguf_folder import gguf_parts

        return gguf_parts(folder)
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = next((f.name for f in sorted(folder.glob("*")) if f.suffix in PICKLES), None)
    if pickled:
        raise UserError(
            f"the weights are a pickle, {pickled}, which can run code when it is read", folder,
            f"if you trust its maker: yeoul export {folder} --format hf --unsafe-pickle --out NEW-FOLDER",
        )  # fmt: skip
    raise UserError("no model.safetensors in this folder", folder)


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> file, as the index says; every file is there, under its bare name.

    What has that name may be a link to elsewhere: in the hub's cache every file is one.
    """
    listed = read_object(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("the index has no weight_map of tensors and files", folder / INDEX, DAMAGED)
    for name in sorted(set(listed.values())):
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise UserError(f"the index names {shown(name)}, which is not a file of this folder", folder / INDEX)
        if not name.endswith(".safetensors"):
            raise UserError(f"the index names {shown(name)}, which is no safetensors file", folder / INDEX)
        if not (folder / name).is_file():
            raise UserError(f"shard {shown(name)} is not in this folder", folder / INDEX, "download the missing shard")
    return listed


def stored_tensors(folder: Path, *, twice: bool = True) -> dict[str, Stored]:
    """Every tensor of a folder by its published name, from the headers alone.

    Lengths, types, shapes and offsets are compared with one another, with the size of the file and with the index.

    Args:
        folder: with safetensors files; or a GGUF file, whose tensors have our own names.
        twice: let the library of safetensors check each header too, by its own rules; it imports NumPy for that.

    Raises:
        UserError: a damaged file, a tensor in two files, or an index that says something else.
    """
    if folder.is_file():
        from yeoul.model.gguf_folder import gguf_stored

        return gguf_stored(folder)
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, stored in _header(file, twice).items():
            if name in found:
                raise UserError(f"tensor {shown(name)} is in two files", file, DAMAGED)
            found[name] = stored
    if (folder / INDEX).is_file():
        listed = _weight_map(folder)
        for name, shard in listed.items():
            if name not in found or found[name].file.name != shard:
                raise UserError(
                    f"the index says that tensor {shown(name)} is in {shown(shard)}, but it is not", folder / INDEX
                )
        if unlisted := sorted(set(found) - set(listed)):
            raise UserError(f"tensor {shown(unlisted[0])} is not in the index", folder / INDEX)
    return found


def _header(file: Path, twice: bool) -> dict[str, Stored]:
    """The tensors of one file; nothing else of it is read (https://github.com/huggingface/safetensors#format)."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            first = opened.read(8)
            if first == b"version ":
                what = "the file is a pointer of Git LFS in place of the weights"
                raise UserError(what, file, "run `git lfs pull` in this folder")
            length = int.from_bytes(first, "little")
            if size < 8 or length > size - 8:
                what = f"a header of {length:,} bytes does not fit into a file of {size:,}"
                raise UserError(f"damaged or truncated weights: {what}", file, DAMAGED)
            if length > LARGEST_JSON:
                raise UserError(f"a header of {length:,} bytes is not read", file, DAMAGED)
            header = parse_object(opened.read(length), most_values=MOST_VALUES)
    except JSONError as error:
        raise UserError(f"the header {error.reason}", file, DAMAGED) from None
    except OSError as error:
        raise unreadable(error, file) from None
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"damaged weights: __metadata__ of the header is {shown(metadata)}", file, DAMAGED)
    found = {name: _entry(name, entry, 8 + length, file) for name, entry in header.items()}
    end = 8 + length
    for name, place in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if place.start != end:
            how = "overlaps the one before it" if place.start < end else "leaves a gap before it"
            raise UserError(f"damaged weights: tensor {shown(name)} {how}", file, DAMAGED)
        end += place.nbytes
    if end != size:
        what = f"the file should be {end:,} bytes long, but has {size:,}"
        raise UserError(f"damaged or truncated weights: {what}", file, DAMAGED)
    if not twice:
        return found
    try:
        with safe_open(file, framework="np"):  # reads the same header once more
            pass
    except OSError as error:
        raise unreadable(error, file) from None
    except SafetensorError as error:
        raise UserError(f"damaged weights: {' '.join(str(error).split())[:200]}", file, DAMAGED) from None
    return found


def _entry(name: str, entry: Any, base: int, file: Path) -> Stored:
    """One tensor of a header; `base` is where the tensors' bytes begin."""

    def wrong(what: str) -> UserError:
        return UserError(f"damaged weights: tensor {shown(name)} {what}", file, DAMAGED)

    if not isinstance(entry, dict):
        raise wrong(f"is described by {shown(entry)}")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(_is_count(size, LARGEST) for size in shape)
        or math.prod(max(size, 1) for size in shape) >= LARGEST
    ):
        raise wrong(f"has the shape {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(place, 2**63) for place in offsets):
        raise wrong(f"has the offsets {shown(offsets)}")
    dtype_name = (FLOATS | INTEGERS).get(kind) if isinstance(kind, str) else None
    if dtype_name is None:
        raise UserError(f"tensor {shown(name)} is of type {shown(kind)}, which is not read", file)
    start, end = offsets
    if start > end:
        raise wrong(f"has the offsets {shown(offsets)}")
    if end - start != (nbytes := math.prod(shape) * WIDTHS[dtype_name]):
        raise wrong(f"of shape {shown(shape)} and type {kind} takes {nbytes:,} bytes, not {end - start:,}")
    return Stored(file, tuple(shape), dtype_name, base + start, nbytes)


def _is_count(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def read_tensors(stored: dict[str, Stored], dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU, file by file in the order of their bytes. Each file is opened and mapped once.

    Each is a private view of the mapped file: its pages come when they are used and go with the tensor, and writing to
    it changes no file. Where numbers do not lie as the processor wants those of their type, they are copied.

    Args:
        stored: by name.
        dtype: of those that are encoded, which are made anew; None takes `Stored.dtype`. The others keep their own.
    """
    import torch

    ordered = sorted(stored.items(), key=lambda item: (item[1].file, item[1].start))
    for file, places in itertools.groupby(ordered, key=lambda item: item[1].file):
        mapped = None
        for name, place in places:
            if not place.nbytes:
                yield name, torch.empty(place.shape, dtype=place.dtype)
                continue
            mapped = mapped or _mapped(file)
            yield name, _view(mapped, place, dtype)


def same_numbers(one: Stored, other: Stored) -> bool | None:
    """Whether two tensors have one shape and the same numbers, asked without torch; None where that cannot be told.

    Raises:
        UserError: a file cannot be read.
    """
    import numpy as np

    types = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
    if one.encoding or other.encoding or one.dtype_name != other.dtype_name or one.dtype_name not in types:
        return None
    if one.shape != other.shape:
        return False
    for at in range(0, one.nbytes, COMPARED):
        pieces = []
        for place in (one, other):
            try:
                with place.file.open("rb") as file:
                    file.seek(place.start + at)
                    octets = file.read(min(COMPARED, place.nbytes - at))
            except OSError as error:
                raise unreadable(error, place.file) from None
            pieces.append(np.frombuffer(octets, types[place.dtype_name]))
        if one.dtype_name == "bfloat16":  # the upper half of a float32
            pieces = [(piece.astype(np.uint32) << 16).view(np.float32) for piece in pieces]
        if not np.array_equal(pieces[0], pieces[1]):
            return False
    return True


def _view(mapped: mmap.mmap, place: Stored, dtype: torch.dtype | None) -> Tensor:
    import numpy as np
    import torch

    octets = np.frombuffer(mapped, dtype=np.uint8, count=place.nbytes, offset=place.start)
    if place.encoding is not None:
        from yeoul.model.gguf_weights import decode

        found = decode(octets, place, dtype or place.dtype)
        if hasattr(mapped, "madvise"):
            _let_go(mapped, place.start, place.start + place.nbytes)
        return found
    if octets.ctypes.data % place.dtype.itemsize:
        octets = octets.copy()
    elif hasattr(mapped, "madvise"):
        weakref.finalize(octets, _let_go, mapped, place.start, place.start + place.nbytes).atexit = False
    return torch.from_numpy(octets).view(place.dtype).view(place.shape)


def _let_go(mapped: mmap.mmap, start: int, end: int) -> None:
    """Gives back the pages that a tensor which is no more had for itself."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def _mapped(file: Path) -> mmap.mmap:
    """A file as private memory."""
    more: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # needs no descriptor then
    try:
        with file.open("rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY, **more)
    except (OSError, ValueError) as error:
        raise unreadable(error, file) from None


def unreadable(error: Exception, file: Path) -> UserError:
    """What to say of a file that could not be opened or mapped: too many open files are no damage."""
    many = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    if many or f"os error {errno.EMFILE}" in str(error):
        what = "the file cannot be opened because this process has too many open files"
        return UserError(what, file, "allow more of them (ulimit -n 4096) and start again")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"the file cannot be read: {' '.join(reason.split())[:200]}", file)
