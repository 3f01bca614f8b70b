"""A model and its folder: config.json, generation_config.json, model.safetensors or shards with an index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from yeoul.errors import UserError, shown
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.families import read_config, write_config
from yeoul.model.remote_code import AUTO_MAP, remote_code_files
from yeoul.model.tensor_files import (
    INDEX,
    SINGLE,
    Stored,
    read_json,
    read_tensors,
    stored_tensors,
    weight_files,
)
from yeoul.model.tensor_names import count_layers, published_name, to_ours, to_published

__all__ = [
    "load_config", "load_model", "load_weights", "model_folder", "read_json", "save_model", "stored_dtype",
    "weight_files",
]  # fmt: skip
SHARD_BYTES = 5 * 10**9
"""Largest file of a saved model, as in transformers."""


def model_folder(path: Path | str) -> Path:
    """The folder that holds config.json: the one given, or `model/` inside a run's folder."""
    path = Path(path)
    if not path.exists():
        raise UserError("no such model folder", path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise UserError("no config.json in this folder", path, "give a Hugging Face model folder or a finished run")


def load_config(path: Path | str) -> ModelConfig:
    """The description of a model without its weights; only headers are read."""
    return _examine(model_folder(path))[1]


def stored_dtype(path: Path | str) -> torch.dtype:
    """The type of most of a folder's weights."""
    sizes: dict[torch.dtype, int] = {}
    for place in stored_tensors(model_folder(path)).values():
        sizes[place.dtype] = sizes.get(place.dtype, 0) + place.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else torch.float32


def _examine(folder: Path) -> tuple[str, ModelConfig, dict[str, Stored]]:
    """Family, description and tensors of a folder, which agree with one another; nothing is allocated."""
    stored = stored_tensors(folder)
    published = read_json(folder / "config.json")
    try:
        family, config = read_config(published, frozenset(stored))
    except UserError as error:
        raise UserError(error.what, folder / "config.json", error.fix) from None
    layers = count_layers(stored, family)
    if config.num_layers != layers:  # told apart from wrong shapes, and before a list of so many layers is made
        raise UserError(f"config.json asks for {config.num_layers} layers, the weights have {layers}", folder)
    given = {name: _ours_on_meta(name, place, config, family) for name, place in stored.items()}
    expected = dict(_skeleton(config, folder).state_dict())
    _check(given, expected, folder)
    if missing := set(expected).difference(name for pairs in given.values() for name, _ in pairs):
        name = published_name(min(missing), family)
        raise UserError(f"tensor {shown(name)} of the model that config.json describes is missing", folder)
    return family, config, {name: stored[name] for name, pairs in given.items() if pairs}


def _skeleton(config: ModelConfig, folder: Path) -> Decoder:
    """The model without memory for its weights."""
    try:
        return skeleton(config)
    except (RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.json describes an impossible model: {reason}", folder) from None


def _ours_on_meta(name: str, place: Stored, config: ModelConfig, family: str) -> list[tuple[str, Tensor]]:
    """Our names and shapes of what a header promises, as tensors without memory."""
    return list(to_ours(name, torch.empty(place.shape, dtype=place.dtype, device="meta"), config, family))


def _check(given: dict[str, list[tuple[str, Tensor]]], expected: dict[str, Tensor], folder: Path) -> None:
    """Compares what the headers promise, our tensors by published name, with the model."""
    seen = set()
    for published, pairs in given.items():
        for name, tensor in pairs:
            if name not in expected:
                raise UserError(
                    f"tensor {shown(published)} does not belong to the model that config.json describes", folder
                )
            if name in seen:
                raise UserError(f"tensor {shown(published)} is there twice", folder)
            seen.add(name)
            if tensor.shape != expected[name].shape:
                there, wanted = (shown(tuple(t.shape)) for t in (tensor, expected[name]))
                what = f"tensor {shown(published)} has shape {there}, config.json asks for {wanted}"
                if name != published:
                    what += f" as {shown(name)}"
                raise UserError(what, folder)
            if not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"tensor {shown(published)} is {kind}, not a floating-point type", folder)


def load_model(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A model from its folder, in eval mode.

    Headers and config.json are compared before anything is allocated. On the CPU, tensors whose bytes are used as they
    are stay views of the mapped file (private: training does not write to it); the others are made one by one, and
    their part of the file is let go.

    Args:
        path: Hugging Face folder, or a run's folder with `model/` inside.
        device: where it goes.
        dtype: of the weights; None keeps the file's. Feature maps and decays stay fp32.

    Raises:
        UserError: a missing, damaged or unknown folder; tensors that are missing, superfluous or of another shape.
    """
    folder, target = model_folder(path), torch.device(device)
    family, config, stored = _examine(folder)

    model = _skeleton(config, folder)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for published, tensor in read_tensors(stored):
        for name, ours in to_ours(published, tensor, config, family):
            wanted = torch.float32 if stays_fp32(name) else dtype
            tensors[name] = _own(ours.to(device=target, dtype=wanted))
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    return model.eval()


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, and not a part of a larger tensor that would stay in memory; the tensor itself where it is that."""
    part = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if part else tensor.contiguous()


def stays_fp32(name: str) -> bool:
    """Frequencies, feature weights and decays: few numbers that stand in exponents."""
    return ".feature_map." in name or name.endswith(
        ("decay_logit", "decay_log", "read_mass", "read_direction", ".D1", ".D2")
    )


def load_weights(model: Decoder, path: Path | str) -> None:
    """Copies the weights of a folder into a model of the same shape: for resuming a run."""
    saved = load_model(path)
    with torch.no_grad():
        for (name, parameter), (other, value) in zip(model.named_parameters(), saved.named_parameters(), strict=True):
            if name != other or parameter.shape != value.shape:
                raise UserError(f"tensor {shown(name)} of the checkpoint does not fit the model", path)
            parameter.copy_(value)


def save_model(model: Decoder, folder: Path | str, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes config.json, generation_config.json and the weights into a folder, which is made if need be.

    Names and config.json are those of the family that the model came from, as long as it can say what the model is.
    Each file is written beside and renamed, so that a model may be saved where it was loaded from; who needs all files
    or none writes into another folder and renames that.

    Args:
        model: on any device.
        folder: target.
        shard_bytes: a larger model is cut into files of at most this size, with an index.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    if set(model.state_dict()) != set(_skeleton(config, folder).state_dict()):
        raise ValueError("the model carries adapters: merge them (merge_and_unload), or save them alone (save_adapter)")
    description = write_config(config, model.output_weight.dtype)
    family = description["model_type"]
    texts: dict[str, Any] = {}
    if family == "yeoul":
        description["auto_map"] = AUTO_MAP
        texts |= remote_code_files()
    generation = {key: value for key, value in description.items() if key in GENERATION and value is not None}
    for name, value in (("config.json", description), ("generation_config.json", generation)):
        texts[name] = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    plain = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    files = _save_tensors(to_published(plain, config, family), folder, shard_bytes)
    for name, text in texts.items():
        beside = folder / f".{name}.{os.getpid()}.tmp"
        beside.write_text(text, encoding="utf-8")
        beside.replace(folder / name)
    for stale in [*folder.glob("model*.safetensors"), folder / INDEX, *folder.glob("modeling_yeoul.py")]:
        if stale.name not in {*files, *texts}:
            stale.unlink(missing_ok=True)


GENERATION = ("bos_token_id", "eos_token_id", "pad_token_id")


def _save_tensors(tensors: dict[str, Tensor], folder: Path, shard_bytes: int) -> set[str]:
    """Writes one file, or shards and their index; returns the names of the files."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    many = len(shards) > 1
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" if many else SINGLE for i in range(1, len(shards) + 1)]
    beside = [folder / f".{file}.{os.getpid()}.tmp" for file in files]
    try:
        for names, path in zip(shards, beside, strict=True):
            part = {name: tensors[name].contiguous().cpu() for name in names}
            save_file(part, path, metadata={"format": "pt"})
        for path, file in zip(beside, files, strict=True):
            path.replace(folder / file)
    finally:
        for path in beside:
            path.unlink(missing_ok=True)
    if not many:
        return set(files)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2)
    temporary = folder / f".{INDEX}.{os.getpid()}.tmp"
    temporary.write_text(index + "\n", encoding="utf-8")
    temporary.replace(folder / INDEX)
    return {*files, INDEX}
