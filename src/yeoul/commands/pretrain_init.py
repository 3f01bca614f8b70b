"""What `yeoul pretrain --init` starts from: a model with its tokenizer, which goes on learning from plain text."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError

if TYPE_CHECKING:
    import torch

    from yeoul.commands.pretrain import Config
    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.text.tokenizer import Tokenizer

GIVEN_BY_THE_MODEL = (
    "tokenizer", "vocab_size", "model_type", "character_coverage", "preset", "hidden_size", "layers", "heads",
    "kv_heads", "intermediate_size", "attention", "window", "positions", "norm", "mlp", "tie_embeddings",
    "max_positions",
)  # fmt: skip
"""Fields of `yeoul pretrain` that say what --init decides."""
LOWER_RATE = 5e-4
"""Above it, what a trained model knows is soon lost; it is said."""


def init_folder(config: Config) -> Path:
    """The folder of the model that --init names.

    Raises:
        UserError: no such model, an adapter, or one in --out; a flag that the model decides.
    """
    from yeoul.adapt.lora.peft_files import adapter_folder
    from yeoul.hub import local_folder
    from yeoul.model.checkpoint import model_folder

    assert config.init is not None
    for field in fields(config):
        if field.name in GIVEN_BY_THE_MODEL and getattr(config, field.name) != field.default:
            flag = "--" + field.name.replace("_", "-")
            raise UserError("--init brings its own shape and its own tokenizer", flag, "leave this flag out")
    top = local_folder(config.init)
    if adapter_folder(top) is not None:
        fix = f"merge it first (yeoul export {config.init} --format hf --out FOLDER) and give FOLDER"
        raise UserError("this is an adapter, not a model", f"--init {config.init}", fix)
    folder = model_folder(top)
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(config.out)):
        raise UserError("the model lies in this folder", f"--out {config.out}", "choose another --out")
    return folder


def init_shape(config: Config) -> ModelConfig:
    """The shape of the model that --init names.

    Raises:
        UserError: as `init_folder`; weights of few bits; a training context that the model is not made for.
    """
    from yeoul.model.checkpoint import load_config, load_quantization

    folder, context = init_folder(config), config.train.context
    if load_quantization(folder) is not None:
        fix = "give the model that it was made from"
        raise UserError("weights of few bits do not learn", f"--init {config.init}", fix)
    shape = load_config(folder)
    if context > (longest := shape.max_position_embeddings):
        what = f"the training context of {context:,} is longer than the model's {longest:,} positions"
        raise UserError(what, "--context", f"give {longest} or less")
    return shape


def init_model(config: Config, device: torch.device) -> Decoder:
    """The model that --init names, to be trained: all weights in float32."""
    import torch

    from yeoul.adapt.linearize import train_everything
    from yeoul.model.checkpoint import load_model

    model = load_model(init_folder(config), device, torch.float32)
    train_everything(model)
    if config.train.lr > LOWER_RATE:
        print(f"A trained model usually wants a lower learning rate than {config.train.lr:g}, such as --lr 1e-4.")
    return model


def as_saved(config: Config, model: Decoder) -> Decoder:
    """The model in the number type of the files that --init names; itself without --init."""
    if config.init is None:
        return model
    from yeoul.commands.recipe import plain
    from yeoul.model.checkpoint import stored_dtype

    return plain(model, stored_dtype(init_folder(config)))


def init_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer in the folder of that model."""
    from yeoul.model.checkpoint import load_config
    from yeoul.text.tokenizer import Tokenizer

    folder = init_folder(config)
    if not Tokenizer.exists(folder):
        raise UserError("the model's folder has no tokenizer", folder, "copy its tokenizer's files there")
    tokenizer = Tokenizer.load(folder)
    tokenizer.check_fits(load_config(folder).vocab_size)
    return tokenizer
