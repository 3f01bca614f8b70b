"""The safetensors files of a folder: found, checked by their headers, and read without more memory than they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yeoul.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST_JSON = 64 * 2**20
"""No config.json or index comes near it."""
DAMAGED = "copy or download it again"


class Stored(NamedTuple):
    """One tensor of a file: where its bytes lie and what they are."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    nbytes: int


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object; UserError that names the file where it is none."""
    try:
        if file.stat().st_size > LARGEST_JSON:
            raise UserError(f"a JSON file of more than {LARGEST_JSON // 2**20} MiB is not read", file)
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"not readable as JSON: {reason}", file) from None
    if not isinstance(value, dict):
        raise UserError("not a JSON object", file)
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each inside it.

    Raises:
        UserError: none, only pickles, or an index that names a file which is not there or not inside.
    """
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
    """Tensor -> file, as the index says; every file is there and inside the folder."""
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise UserError("the index has no weight_map of tensors and files", folder / INDEX, DAMAGED)
    for name in sorted(set(listed.values())):
        if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise UserError(f"the index names {name!r}, which is not a file of this folder", folder / INDEX)
        if not name.endswith(".safetensors"):
            raise UserError(f"the index names {name!r}, which is no safetensors file", folder / INDEX)
        if not (folder / name).is_file():
            raise UserError(f"shard {name!r} is not in this folder", folder / INDEX, "download the missing shard")
    return listed


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its published name, from the headers alone.

    The safetensors library checks lengths, offsets and gaps of each header; here they are compared with the index.

    Raises:
        UserError: a damaged file, a tensor in two files, or an index that says something else.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        for name, stored in _header(file).items():
            if name in found:
                raise UserError(f"tensor {name!r} is in two files", file, DAMAGED)
            found[name] = stored
    if (folder / INDEX).is_file():
        listed = _weight_map(folder)
        for name, shard in listed.items():
            if name not in found or found[name].file.name != shard:
                raise UserError(f"the index says that tensor {name!r} is in {shard}, but it is not", folder / INDEX)
        if unlisted := sorted(set(found) - set(listed)):
            raise UserError(f"tensor {unlisted[0]!r} is not in the index", folder / INDEX)
    return found


def _header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, framework="pt"):  # the library's checks of header, offsets and size
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"damaged or truncated weights: {reason}", file, DAMAGED) from None
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            if entry["dtype"] in ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64"):
                dtype = {"BOOL": torch.bool, "U8": torch.uint8}.get(entry["dtype"], torch.int64)
            else:
                raise UserError(f"tensor {name!r} is of type {entry['dtype']}, which is not read", file)
        else:
            dtype = DTYPES[entry["dtype"]]
        start, end = entry["data_offsets"]
        out[name] = Stored(file, tuple(entry["shape"]), dtype, 8 + length + start, end - start)
    return out


def read_tensors(stored: dict[str, Stored], is_mapped: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU, file by file in the order of their bytes.

    Args:
        stored: from `stored_tensors`.
        is_mapped: of a name: whether the tensor may stay a private view of the mapped file, whose pages come when they
            are used; else its bytes are copied, and the file takes no memory.
    """
    files: dict[Path, list[str]] = {}
    for name, place in stored.items():
        files.setdefault(place.file, []).append(name)
    for file, names in files.items():
        names.sort(key=lambda name: stored[name].start)
        mapped = [name for name in names if is_mapped(name)]
        try:
            if mapped:
                with safe_open(file, framework="pt") as opened:
                    for name in mapped:
                        yield name, opened.get_tensor(name)
            with file.open("rb", buffering=0) as raw:
                for name in names:
                    if not is_mapped(name):
                        yield name, _copied(raw, stored[name])
        except (SafetensorError, OSError, EOFError) as error:
            raise UserError(f"damaged or truncated weights: {error}", file, DAMAGED) from None


def _copied(raw: Any, place: Stored) -> Tensor:
    buffer = torch.empty(place.nbytes, dtype=torch.uint8)
    view, done = memoryview(buffer.numpy().data), 0
    raw.seek(place.start)
    while done < place.nbytes:
        count = raw.readinto(view[done:])
        if not count:
            raise EOFError("the file ends too early")
        done += count
    return buffer.view(place.dtype).view(place.shape)
