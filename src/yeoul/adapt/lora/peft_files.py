"""The folder of an adapter: where it is, and what is in its two files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.adapt.lora.config import CONFIG, LoraConfig
from yeoul.errors import UserError
from yeoul.hub import local_folder
from yeoul.model.tensor_files import unreadable
from yeoul.safe_json import read_object
from yeoul.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
LEAVES = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude",
          "lora_embedding_A": "embedding_A", "lora_embedding_B": "embedding_B", "base_layer.weight": "base",
          "token_adapter.trainable_tokens_delta": "tokens"}  # fmt: skip
"""Ends of the names of an adapter's tensors -> what they are called here; `base` is a table of the model itself, which
PEFT writes beside its adapter."""


def adapter_name(path: Path | str) -> str:
    """What an adapter is called after its folder: "story" for runs/story/adapter."""
    parts = Path(path).expanduser().resolve().parts
    return re.sub(r"[^\w-]", "-", next((part for part in reversed(parts) if part != "adapter"), "adapter"))


def adapter_folder(folder: Path) -> Path | None:
    """Where the adapter of a folder lies: there, in `adapter/` of a run or in `model/` of one of its checkpoints.

    None where there is none, or a whole model.
    """
    places = (folder, folder / "adapter", folder / "model")
    if any((place / "config.json").is_file() for place in (folder, folder / "model")):
        return None
    return next((place for place in places if (place / CONFIG).is_file()), None)


def found_adapter(path: Path | str) -> Path:
    """The folder that a user calls an adapter: a path, a run that made one, or the id of one on the hub.

    Raises:
        UserError: there is no such folder.
    """
    try:
        folder = local_folder(path)
    except UserError as error:
        raise UserError(f"the adapter is not available: {error.what}", error.where, error.fix) from None
    return adapter_folder(folder) or folder


def tokenizer_beside(path: Path | str) -> Path | None:
    """The folder of an adapter where a tokenizer lies beside it, else None; `path` as for `found_adapter`."""
    folder = found_adapter(path)
    return folder if Tokenizer.exists(folder) else None


def base_folder(folder: Path) -> Path:
    """The base model that the adapter in a folder names.

    Raises:
        UserError: it names none, or one that is not there.
    """
    base = read_lora_config(folder).base_model
    fix = "give the base model, and this folder as its adapter"
    if not base:
        raise UserError("the adapter does not say which model it is for", folder / CONFIG, fix)
    try:
        return local_folder(base)
    except UserError as error:
        raise UserError(f"the adapter is for {base!r}, but {error.what}", folder / CONFIG, fix) from None


def read_lora_config(folder: Path) -> LoraConfig:
    """The description of the adapter in a folder."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"no {CONFIG} in this folder", folder, "give the folder of a PEFT adapter")
    try:
        return LoraConfig.from_dict(read_object(folder / CONFIG))
    except UserError as error:
        if error.where and error.where.startswith(CONFIG):
            raise UserError(error.what, folder / error.where, error.fix) from None
        raise


def read_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """By path in the published model, then by the values of `LEAVES`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").exists():
            fix = "convert it to safetensors first"
            raise UserError("only safetensors are read, and adapter_model.bin is a pickle", folder, fix)
        raise UserError(f"no {WEIGHTS} in this folder", folder)
    try:
        loaded = load_file(file)
    except OSError as error:
        raise unreadable(error, file) from None
    except SafetensorError as error:
        raise UserError(f"damaged or truncated weights: {error}", file) from error
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in loaded.items():
        leaf = next((leaf for leaf in LEAVES if name.endswith(f".{leaf}")), None)
        if leaf is None or not name.startswith(PREFIX):
            raise UserError(f"tensor {name!r} does not belong to a LoRA adapter", file)
        if not tensor.is_floating_point():
            raise UserError(f"tensor {name!r} is {tensor.dtype}, not a floating-point type", file)
        found.setdefault(name[len(PREFIX) : -len(leaf) - 1], {})[LEAVES[leaf]] = tensor
    return found


def full_name(path: str, part: str) -> str:
    return repr(f"{PREFIX}{path}.{next(leaf for leaf, short in LEAVES.items() if short == part)}")
