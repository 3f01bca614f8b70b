"""A model and its folder: config.json, generation_config.json, model.safetensors or shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from yeoul.errors import UserError
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder
from yeoul.model.families import Tensors, read_config, write_config

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def model_folder(path: Path | str) -> Path:
    """The folder that holds config.json: the one given, or `model/` inside a run's folder."""
    path = Path(path)
    if not path.exists():
        raise UserError("no such model folder", path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise UserError("no config.json in this folder", path, "give a Hugging Face model folder or a finished run")


def read_json(file: Path) -> dict[str, Any]:
    """One JSON object; UserError that names the file where it is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"not readable as JSON: {error}", file) from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", file)
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each inside it."""
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map", {}).values()
        files = [folder / str(name) for name in sorted(set(map(str, names)))]
        for file in files:
            if file.resolve().parent != folder.resolve() or not file.is_file():
                raise UserError(f"shard {file.name!r} is not in this folder", folder / INDEX)
        return files
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickled = next((f.name for f in sorted(folder.glob("*")) if f.suffix in (".bin", ".pt", ".pth")), None)
    if pickled:
        raise UserError(
            f"only safetensors are read, and {pickled} is a pickle", folder, "convert it to safetensors first"
        )
    raise UserError("no model.safetensors in this folder", folder)


def _read_tensors(folder: Path) -> tuple[Tensors, frozenset[str]]:
    tensors: Tensors = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    tensors[name] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"damaged or truncated weights: {error}", file) from error
    return tensors, frozenset(tensors)


def load_config(path: Path | str) -> ModelConfig:
    """The description of a model without its weights (only the names of the tensors are read)."""
    folder = model_folder(path)
    names: set[str] = set()
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                names.update(opened.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"damaged or truncated weights: {error}", file) from error
    return read_config(read_json(folder / "config.json"), frozenset(names))[1]


def load_model(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
    """A model from its folder, in eval mode.

    Args:
        path: Hugging Face folder, or a run's folder with `model/` inside.
        device: where it goes.
        dtype: of the weights; None keeps the file's. Feature maps and decays stay fp32.

    Raises:
        UserError: a missing, damaged or unknown folder; tensors that are missing, superfluous or of another shape.
    """
    folder = model_folder(path)
    published, names = _read_tensors(folder)
    family, config = read_config(read_json(folder / "config.json"), names)
    with torch.device("meta"):
        model = Decoder(config)
    tensors: Tensors = {}
    for name in sorted(published):
        tensors.update(family.load(name, published.pop(name), config))
    expected = dict(model.state_dict())
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    for name in expected:
        if name not in tensors:
            raise UserError(f"tensor {name!r} is missing", folder)
    for name, tensor in tensors.items():
        if name not in expected:
            raise UserError(f"tensor {name!r} does not belong to this model", folder)
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, config.json asks for {tuple(expected[name].shape)}",
                folder,
            )
        if not tensor.is_floating_point():
            raise UserError(f"tensor {name!r} is {tensor.dtype}, not a floating-point type", folder)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
        keep = _stays_fp32(name)
        parameter.data = parameter.data.to(device=device, dtype=torch.float32 if keep else dtype)
    return model.eval()


def _stays_fp32(name: str) -> bool:
    """Frequencies, feature weights and decays: few numbers that stand in exponents."""
    return ".feature_map." in name or name.endswith(("decay_logit", ".D1", ".D2"))


def load_weights(model: Decoder, path: Path | str) -> None:
    """Copies the weights of a folder into a model of the same shape: for resuming a run."""
    saved = load_model(path)
    with torch.no_grad():
        for (name, parameter), (other, value) in zip(model.named_parameters(), saved.named_parameters(), strict=True):
            if name != other or parameter.shape != value.shape:
                raise UserError(f"tensor {name!r} of the checkpoint does not fit the model", path)
            parameter.copy_(value)


def save_model(model: Decoder, folder: Path | str) -> None:
    """Writes config.json, generation_config.json and model.safetensors into a folder, which is made if need be.

    The files are written in place: who needs all or nothing writes into a folder beside and renames it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    description = write_config(config, model.output_weight.dtype)
    generation = {"bos_token_id": config.bos_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id}
    generation = {key: value for key, value in generation.items() if value is not None}
    for name, value in (("config.json", description), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
