"""Saving a model: adapters merged, in the dtype of its checkpoint, with its tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from yeoul.adapt.lora.api import lora_layers
from yeoul.adapt.lora.layers import dense
from yeoul.errors import UserError
from yeoul.files import replace_folder
from yeoul.model.checkpoint import save_model
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.parameters import fp32_parameters

if TYPE_CHECKING:
    from yeoul.text.tokenizer import Tokenizer


def save_folder(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Model and tokenizer as one Hugging Face folder, written in place."""
    save_model(model, folder)
    if tokenizer is not None:
        tokenizer.save(folder)


def save(model: Decoder, folder: str | Path, tokenizer: Tokenizer | None = None, *, overwrite: bool = False) -> Path:
    """Save a model, and its tokenizer if given, as a Hugging Face folder, atomically.

    Args:
        model: with or without adapters; active ones are merged.
        folder: where to save it.
        tokenizer: of the model.
        overwrite: replace an existing folder.

    Returns:
        The folder.

    Raises:
        UserError: the folder is not empty, the disk is full or not writable, or weights are not finite.
    """
    folder = Path(folder).expanduser()
    if not overwrite and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError("the folder already exists", folder, "choose another folder, or give overwrite=True")
    merged = merged_model(model)
    replace_folder(folder, lambda new: save_folder(merged, tokenizer, new))
    return folder


def merged_model(model: Decoder, dtype: torch.dtype | None = None) -> Decoder:
    """The model with its low-rank parts merged and its weights in `dtype`; what need not change is shared.

    Args:
        model: with adapters or without.
        dtype: of the weights; None leaves them, and what stays fp32 in a checkpoint always does.
    """
    tensors = {name.replace(".base.", "."): tensor for name, tensor in model.state_dict().items()}
    for path, layer in lora_layers(model).items():
        for name in [name for name in tensors if name.startswith(f"{path}.adapters.")]:
            del tensors[name]
        if layer.active is not None:
            with torch.no_grad():
                tensors[f"{path}.weight"] = layer.adapter(layer.active).merged_weight(dense(layer.base))
    result = skeleton(model.config)
    if dtype is not None:
        kept = fp32_parameters(result)
        tensors = {name: t if name in kept else t.to(dtype) for name, t in tensors.items()}
    result.load_state_dict(tensors, assign=True)
    return result.requires_grad_(False).eval()


def weights_digest(model: Decoder) -> str:
    """A fingerprint of a model's weights: a resumed run must start from the same ones."""
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
