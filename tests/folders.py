"""A folder with a small random model and a tokenizer trained on the spot; and what headers say of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from yeoul.model.checkpoint import load_config, save_model
from yeoul.model.config import ModelConfig
from yeoul.model.decoder import Decoder, skeleton
from yeoul.model.folder import describe
from yeoul.text.tokenizer import Tokenizer
from yeoul.text.training import TokenizerConfig, train_tokenizer


def write_small_folder(folder: Path, texts: list[str], *, vocab_size: int = 340, **changes: Any) -> Path:
    """Writes the folder: a model of 32 numbers' width and a BPE of these texts."""
    train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size), folder)
    tokenizer = Tokenizer.load(folder)
    torch.manual_seed(5)
    settings: dict[str, Any] = dict(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
        intermediate_size=64, max_position_embeddings=64, window=8, initializer_range=0.1,
        bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    save_model(Decoder(ModelConfig(**settings | changes)), folder)
    return folder


def with_ends(folder: Path, *, before: str = "", after: str = "") -> Path:
    """Gives the tokenizer of a folder a post-processor that puts special tokens around every text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    file = str(folder / "tokenizer.json")
    backend = Backend.from_file(file)
    names = [name for name in (before, after) if name]
    single = " ".join(part for part in (before, "$A", after) if part)
    backend.post_processor = TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=[(name, backend.token_to_id(name)) for name in names]
    )
    backend.save(file)
    return folder


def assert_headers_say_enough(folder: Path) -> None:
    """Headers alone and the model without its weights say the same of a folder."""
    described, config = describe(folder), load_config(folder)
    assert described is not None and described.config == config
    model = skeleton(config)
    assert dict(described.shapes) == {name: tuple(p.shape) for name, p in model.named_parameters()}
