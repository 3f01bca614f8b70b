"""What pretraining starts from: a new model and its tokenizer, or a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from yeoul.errors import UserError
from yeoul.files import replace_folder, write_json
from yeoul.recipes.options import Say, TextOptions, changed
from yeoul.recipes.run_folder import read_record

if TYPE_CHECKING:
    import torch

    from yeoul.model.decoder import Decoder
    from yeoul.recipes.model_folder import ModelFolder
    from yeoul.recipes.pretrain.config import PretrainConfig, TokenizerOptions
    from yeoul.text.tokenizer import Tokenizer

MADE_FROM = "made_from.json"
"""Next to a tokenizer: what it was trained on and how."""


def open_init(config: PretrainConfig, out: Path) -> ModelFolder | None:
    """The model that --init names, None without one.

    Raises:
        UserError: no such model, an adapter, a model inside --out, quantized weights; a flag that the model decides; a
            training context longer than the model supports.
    """
    from yeoul.recipes.model_folder import ModelFolder

    if config.init is None:
        return None
    if given := changed(config.vocabulary) + changed(config.shape):
        raise UserError("--init already decides the architecture and the tokenizer", given[0], "leave this flag out")
    found = ModelFolder.open_whole(config.init, "--init")
    if found.path.resolve().is_relative_to(out.resolve()):
        raise UserError("the model of --init is inside this folder", f"--out {out}", "choose another --out")
    if found.quantization is not None:
        fix = "give the model that it was made from"
        raise UserError("quantized weights cannot be trained", f"--init {config.init}", fix)
    fix = f"give {found.config.max_position_embeddings} or less"
    found.config.check_context(config.train.context, fix=fix, training=True)
    if found.tokenizer is None:
        raise UserError("the model's folder has no tokenizer", found.path, "copy the tokenizer files into it")
    return found


def init_weights(init: ModelFolder, device: torch.device) -> Decoder:
    """The model to continue training, with all weights trainable and in float32."""
    import torch

    from yeoul.adapt.linearize import train_everything

    model = init.load(device, torch.float32)
    train_everything(model)
    return model


def tokenizer_of(
    options: TokenizerOptions, data: str, text: TextOptions, out: Path, data_key: Any, say: Say
) -> Tokenizer:
    """The tokenizer named, the one trained for this run before, or a new one trained on the data.

    Args:
        data_key: what the data holds, see `yeoul.data.sources.source_key`.
    """
    from yeoul.data.documents import read_documents
    from yeoul.text.tokenizer import Tokenizer
    from yeoul.text.training import TokenizerConfig, train_tokenizer

    if options.tokenizer is not None:
        return Tokenizer.load(options.tokenizer)
    folder = out / "tokenizer"
    wanted = TokenizerConfig(
        vocab_size=options.vocab_size, model_type=options.model_type, character_coverage=options.character_coverage
    )
    origin = {
        "data": data_key, "vocab_size": options.vocab_size, "model_type": options.model_type,
        "character_coverage": options.character_coverage,
    }  # fmt: skip
    if read_record(folder / MADE_FROM) == origin and Tokenizer.exists(folder):
        return Tokenizer.load(folder)
    say(f"Training a tokenizer with a vocabulary of {options.vocab_size:,} ...")
    texts = read_documents(data, text_column=text.text_column, join_by=text.join_by, reading=text.reading)

    def write(target: Path) -> None:
        train_tokenizer(texts, wanted, target)
        write_json(target / MADE_FROM, origin)

    replace_folder(folder, write)
    return Tokenizer.load(folder)
