"""Checkpoints in PyTorch's pickle format, turned into safetensors once, when a user who trusts them asks for it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from yeoul.errors import UserError
from yeoul.files import write_json
from yeoul.model.tensor_files import INDEX, SINGLE
from yeoul.safe_json import read_object

PICKLE_INDEX = "pytorch_model.bin.index.json"
PATTERNS = ("pytorch_model*.bin", "model.pt", "model.pth", "consolidated*.pth")


def pickle_files(folder: Path) -> list[Path]:
    """The pickles of a folder that together hold a model's weights.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    if (folder / PICKLE_INDEX).is_file():
        listed = read_object(folder / PICKLE_INDEX).get("weight_map")
        names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        for name in names:
            if "/" in name or not (folder / name).is_file():
                raise UserError(f"part {name!r} is not in this folder", folder / PICKLE_INDEX)
        return [folder / name for name in names]
    for pattern in PATTERNS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError("there is no pickled checkpoint in this folder", folder, "leave --unsafe-pickle out")


def to_safetensors(folder: Path, target: Path) -> None:
    """Writes the weights of a folder's pickles as safetensors into `target`, with copies of its other small files.

    `torch.load(weights_only=True)` reads the pickles, which refuses anything but tensors and plain containers. One
    file is in memory at a time.

    Raises:
        UserError: a damaged pickle, or one that holds something else.
    """
    files, total = pickle_files(folder), 0
    where: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        tensors = _load(file)
        name = SINGLE if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(tensors, target / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(target / INDEX, index, indent=2)
    for pattern in ("*.json", "*.model", "*.jinja", "*.txt", "README.md"):
        for file in folder.glob(pattern):
            if file.name not in (PICKLE_INDEX, INDEX) and file.is_file():
                shutil.copyfile(file, target / file.name)


def _load(file: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the pickle cannot be read as tensors alone: {reason}", file) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("model", loaded.get("state_dict")), dict):
        loaded = loaded.get("model", loaded.get("state_dict"))
    if not isinstance(loaded, dict) or not loaded:
        raise UserError("the pickle holds no tensors by name", file)
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"the pickle holds {name!r}, which is no tensor", file)
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in loaded.items()}
