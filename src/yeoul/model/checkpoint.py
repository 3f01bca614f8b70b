"""A model and its folder: config.json, generation_config.json, model.safetensors or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from yeoul.errors import UserError, shown
from yeoul.files import new_file, write_json, write_text
from yeoul.model.config import LINEAR_KINDS, ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.families import write_config
from yeoul.model.finite import check_to_save
from yeoul.model.folder import load_quantization, model_folder, read_description, read_family, said_by
from yeoul.model.parameters import absent_parameters, fill_absent, fp32_parameters
from yeoul.model.quantization import FIELD, Quantization
from yeoul.model.quantized import QuantizedEmbedding, QuantizedLinear, quantized_modules
from yeoul.model.quantized_folder import (
    families_for,
    from_stored,
    prepare,
    quantization_of,
    stored_layout,
    to_stored,
)
from yeoul.model.remote_code import AUTO_MAP, remote_code_files
from yeoul.model.tensor_files import (
    INDEX,
    SINGLE,
    Stored,
    read_tensors,
    stored_tensors,
    weight_files,
)
from yeoul.model.tensor_names import count_layers, names_of, published_name, stored_name, to_ours, to_published

__all__ = [
    "load_config", "load_model", "load_quantization", "load_weights", "model_folder", "save_model",
    "stored_dtype", "weight_files",
]  # fmt: skip
SHARD_BYTES = 5 * 10**9
"""Largest file of a saved model, as in transformers."""


def load_config(path: Path | str) -> ModelConfig:
    """The description of a model without its weights; only headers are read."""
    return _examine(model_folder(path)).config


def stored_dtype(path: Path | str) -> torch.dtype:
    """The type of a folder's weights, those of few bits and their scales aside; of several as `one_dtype` chooses."""
    folder = model_folder(path)
    stored, described = stored_tensors(folder), read_description(folder)
    sizes = _sizes(stored, _kept_in_fp32(stored, described, folder))
    return _chosen(sizes, described) if sizes else torch.float32


def _kept_in_fp32(stored: Mapping[str, Stored], described: Mapping[str, Any], folder: Path) -> frozenset[str]:
    """The published names of what stays fp32; none where the folder is no model of ours: whoever reads it says so."""
    try:
        family, config = read_family(described, stored, folder)
        if config.num_layers != count_layers(stored, family) or not any(
            kind in LINEAR_KINDS for kind in config.attention
        ):
            return frozenset()
        return published_in_fp32(_skeleton(config, folder, None), family)
    except UserError:
        return frozenset()


def published_in_fp32(model: Decoder, family: str) -> frozenset[str]:
    """The names under which a family's folder has what stays fp32."""
    return frozenset(published_name(name, family) for name in fp32_parameters(model))


def one_dtype(stored: Mapping[str, Stored], described: Mapping[str, Any], kept: Container[str]) -> torch.dtype | None:
    """The type that weights of several types are brought to; None where they have one already.

    That which config.json names, as in transformers, or else that of most bytes: the products of a layer take one type.

    Args:
        stored: tensors by their published names.
        described: config.json.
        kept: the published names of those that have a type of their own.
    """
    sizes = _sizes(stored, kept)
    return _chosen(sizes, described) if len(sizes) > 1 else None


def _sizes(stored: Mapping[str, Stored], kept: Container[str]) -> dict[torch.dtype, int]:
    """Bytes of each type, without what keeps a type of its own."""
    sizes: dict[torch.dtype, int] = {}
    for name, place in stored.items():
        if place.dtype.is_floating_point and not name.endswith(".weight_scale") and name not in kept:
            sizes[place.dtype] = sizes.get(place.dtype, 0) + place.nbytes
    return sizes


def _chosen(sizes: Mapping[torch.dtype, int], described: Mapping[str, Any]) -> torch.dtype:
    named = str(described.get("dtype") or described.get("torch_dtype")).removeprefix("torch.")
    return next(
        (dtype for dtype in sizes if str(dtype) == f"torch.{named}"), max(sizes, key=lambda dtype: sizes[dtype])
    )


class _Folder(NamedTuple):
    """What the headers and config.json of a folder say, which agree with one another."""

    family: str
    config: ModelConfig
    quantization: Quantization | None
    stored: dict[str, Stored]
    mixed: torch.dtype | None  # what weights of several types are brought to


def _examine(folder: Path) -> _Folder:
    """A folder whose parts agree with one another; nothing is allocated. A head that differs from the embeddings to
    which config.json ties it is a head of its own, as in transformers."""
    stored = stored_tensors(folder)
    published = read_description(folder)
    family, config = read_family(published, stored, folder)
    if config.tie_embeddings and not _is_tied(stored, family):
        config = config.with_(tie_embeddings=False)
    quantization = load_quantization(folder)
    layers = count_layers(stored, family)
    if config.num_layers != layers:  # told apart from wrong shapes, and before a list of so many layers is made
        raise UserError(f"{said_by(folder)} asks for {config.num_layers} layers, the weights have {layers}", folder)
    if quantization is not None and names_of(family).fused:
        raise UserError(f"quantized weights are not read for model_type {shown(family)}", folder / "config.json")
    model = _skeleton(config, folder, quantization)
    expected = stored_layout(model)
    given = {name: _ours_on_meta(name, place, config, family) for name, place in stored.items()}
    _check(given, expected, folder)
    there = absent_parameters(model).union(name for pairs in given.values() for name, _ in pairs)
    if missing := set(expected) - there:
        name = published_name(min(missing), family)
        raise UserError(f"tensor {shown(name)} of the model that {said_by(folder)} describes is missing", folder)
    used = {name: stored[name] for name, pairs in given.items() if pairs}
    return _Folder(family, config, quantization, used, one_dtype(used, published, published_in_fp32(model, family)))


def _is_tied(stored: Mapping[str, Stored], family: str) -> bool:
    """Whether a folder has no output projection, or one that is its embeddings once more, number for number."""
    head, table = (stored_name(stored, name, family) for name in ("lm_head.weight", "model.embed_tokens.weight"))
    if head is None:
        return not any(name.startswith("lm_head.weight_") for name in stored)
    if table is None or stored[head].shape != stored[table].shape:
        return False
    both = dict(read_tensors({name: stored[name] for name in (head, table)}))
    pieces = (both[name].split(PIECE) for name in (head, table))
    return all(bool((one == other).all()) for one, other in zip(*pieces, strict=True))


PIECE = 4096
"""Rows that are compared at a time: their pages are in memory together."""


def _skeleton(config: ModelConfig, folder: Path, quantization: Quantization | None) -> Decoder:
    """The model without memory for its weights."""
    try:
        model = skeleton(config)
        if quantization is not None:
            with torch.device("meta"):
                prepare(model, quantization)
    except UserError as error:
        raise UserError(error.what, folder, error.fix) from None
    except (RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{said_by(folder)} describes an impossible model: {reason}", folder) from None
    return model


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
                    f"tensor {shown(published)} does not belong to the model that {said_by(folder)} describes", folder
                )
            if name in seen:
                raise UserError(f"tensor {shown(published)} is there twice", folder)
            seen.add(name)
            if tensor.shape != expected[name].shape:
                there, wanted = (shown(tuple(t.shape)) for t in (tensor, expected[name]))
                what = f"tensor {shown(published)} has shape {there}, {said_by(folder)} asks for {wanted}"
                if name != published:
                    what += f" as {shown(name)}"
                raise UserError(what, folder)
            kind, wanted_kind = (str(t.dtype).removeprefix("torch.") for t in (tensor, expected[name]))
            if not expected[name].is_floating_point() and kind != wanted_kind:
                raise UserError(f"tensor {shown(published)} is {kind}, {FIELD} asks for {wanted_kind}", folder)
            if expected[name].is_floating_point() and not tensor.is_floating_point():
                raise UserError(f"tensor {shown(published)} is {kind}, not a floating-point type", folder)


def load_model(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A model from its folder, in eval mode.

    Headers and config.json are compared before anything is allocated. On the CPU, tensors whose bytes are used as they
    are stay views of the mapped file (private: training does not write to it); the others are made one by one, and
    their part of the file is let go.

    Args:
        path: Hugging Face folder, or a run's folder with `model/` inside.
        device: where it goes.
        dtype: of the weights; None keeps the file's, or of several `one_dtype`. Feature maps and decays stay fp32,
            weights of few bits and their scales as they are.

    Raises:
        UserError: a missing, damaged or unknown folder; tensors that are missing, superfluous or of another shape.
    """
    folder, target = model_folder(path), torch.device(device)
    family, config, quantization, stored, mixed = _examine(folder)
    dtype = dtype or mixed
    model = _skeleton(config, folder, quantization)
    kept = fp32_parameters(model)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    low = dict(quantized_modules(model))
    tensors: dict[str, Tensor] = {}
    for published, tensor in read_tensors(stored, dtype):
        for name, ours in _to_model(published, tensor, family, config, low, folder):
            fixed = name.endswith((".weight_packed", ".weight_scale"))
            wanted = torch.float32 if name in kept else None if fixed else dtype
            tensors[name] = _own(ours.to(device=target, dtype=wanted))
    fill_absent(tensors, model, target)
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
    if isinstance(table := model.model.embed_tokens, QuantizedEmbedding):
        table.dtype = model.dtype
    return model.eval()


def _to_model(
    published: str, tensor: Tensor, family: str, config: ModelConfig, low: Mapping[str, QuantizedLinear], folder: Path
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors of one in a folder."""
    for name, part in to_ours(published, tensor, config, family):
        try:
            found = from_stored(name, part, low)
        except UserError as error:
            raise UserError(error.what, folder, error.fix) from None
        if found is not None:
            yield found


def _own(tensor: Tensor) -> Tensor:
    """Contiguous, and not a part of a larger tensor that would stay in memory; the tensor itself where it is that."""
    part = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if part else tensor.contiguous()


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

    Raises:
        UserError: a weight is NaN or infinite; nothing is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    quantization = quantization_of(model)
    if set(model.state_dict()) != set(_skeleton(config, folder, quantization).state_dict()):
        raise ValueError("the model carries adapters: merge them (merge_and_unload), or save them alone (save_adapter)")
    if quantization is None:
        description = write_config(config, model.dtype)
    else:
        description = write_config(config, model.dtype, quantization.to_json(), families=families_for(model))
    family = description["model_type"]
    texts: dict[str, Any] = {}
    if family == "yeoul":
        description["auto_map"] = AUTO_MAP
        texts |= remote_code_files()
    generation = {key: value for key, value in description.items() if key in GENERATION and value is not None}
    for name, value in (("config.json", description), ("generation_config.json", generation)):
        texts[name] = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    plain = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    stored = to_stored(plain, model)
    check_to_save(((published_name(name, family), tensor) for name, tensor in stored.items()), folder)
    files = _save_tensors(to_published(stored, config, family), folder, shard_bytes)
    for name, text in texts.items():
        write_text(folder / name, text)
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
    with ExitStack() as stack:  # all are written before the first is renamed
        for names, file in zip(shards, files, strict=True):
            part = {name: tensors[name].contiguous().cpu() for name in names}
            save_file(part, stack.enter_context(new_file(folder / file)), metadata={"format": "pt"})
    if not many:
        return set(files)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / INDEX, index, indent=2)
    return {*files, INDEX}
