"""A model folder, opened once: its path, configuration, dtype, quantization, adapter and tokenizer."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from yeoul.errors import UserError

if TYPE_CHECKING:
    import torch

    from yeoul.model.config import ModelConfig
    from yeoul.model.decoder import Decoder
    from yeoul.model.quantization import Quantization
    from yeoul.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelFolder:
    """What a user calls a model, found on this machine; what is asked of it is read once.

    Attributes:
        name: as the user wrote it.
        top: the folder that this names: the model's own, or that of a run.
        path: the folder that holds config.json, or a GGUF file in its place; of an adapter, that of its base model.
        adapter: folder of the adapter that the name means; None for a whole model.
    """

    name: str
    top: Path
    path: Path
    adapter: Path | None = None

    @classmethod
    def open(cls, name: str | Path) -> ModelFolder:
        """The folder of a path or a hub id, or the GGUF file of a path.

        Raises:
            UserError: there is no such model, or neither a config.json nor one GGUF file in it.
        """
        from yeoul.adapt.lora.peft_files import base_folder
        from yeoul.model.folder import model_folder

        top, adapter = cls._found(name)
        return cls(str(name), top, model_folder(top if adapter is None else base_folder(adapter)), adapter)

    @staticmethod
    def _found(name: str | Path) -> tuple[Path, Path | None]:
        """The folder that a name means, and that of the adapter in it."""
        from yeoul.adapt.lora.peft_files import adapter_folder
        from yeoul.hub import local_folder

        top = local_folder(name)
        return top, adapter_folder(top)

    @classmethod
    def open_whole(cls, name: str | Path, flag: str = "", *, otherwise: str = "") -> ModelFolder:
        """`open`, where an adapter will not do.

        Args:
            flag: by which the model is given, for the sentence that refuses.
            otherwise: what can be done with an adapter instead, at the end of that sentence.
        """
        if cls._found(name)[1] is not None:  # whose base model may not be there
            fix = f"merge it first (yeoul export {shlex.quote(str(name))} --format hf --out FOLDER) and give FOLDER"
            fix += f"; {otherwise}" if otherwise else ""
            raise UserError("this is an adapter, not a model", f"{flag} {name}".strip(), fix)
        return cls.open(name)

    @cached_property
    def config(self) -> ModelConfig:
        """Configuration of the model; only headers are read."""
        from yeoul.model.checkpoint import load_config

        return load_config(self.path)

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """Dtype of the weights in the files."""
        from yeoul.model.checkpoint import stored_dtype

        return stored_dtype(self.path)

    @cached_property
    def quantization(self) -> Quantization | None:
        """Which weights are quantized; None if none are."""
        from yeoul.model.folder import load_quantization

        return load_quantization(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the adapter, where it brings one, or of the model; None where there is none.

        Raises:
            UserError: it is damaged, or of another model.
        """
        from yeoul.text.tokenizer import Tokenizer

        for folder in (self.adapter, self.path):
            if folder is not None and Tokenizer.exists(folder):
                tokenizer = Tokenizer.load(folder)
                tokenizer.check_fits(self.config.vocab_size)
                return tokenizer
        return None

    def needed_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            UserError: there is none.
        """
        if self.tokenizer is None:
            raise UserError("the model's folder has no tokenizer", self.name, "copy the tokenizer files into it")
        return self.tokenizer

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
        """The weights, without the adapter; `dtype` None keeps that of the files."""
        from yeoul.model.checkpoint import load_model

        return load_model(self.path, device, dtype)

    def holds(self, folder: Path) -> bool:
        """Whether a folder is the model's own or one around it, so that nothing else may be written there."""
        resolved, own = folder.resolve(), [self.path.resolve()]
        own += [] if self.adapter is None else [self.adapter.resolve()]
        return any(resolved == path or resolved in path.parents for path in own)


def model_name(model: str | Path) -> str:
    """What a model is called: the last part of its path or hub id, the run's where it is a run's `model` folder.

    A GGUF file is called without its ending, and a split one without the number of its part.
    """
    path = Path(str(model).partition("@")[0]).expanduser()
    parts = [part for part in (path.resolve() if path.is_dir() else path).parts if part not in ("/", "model")]
    name = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", parts[-1]) if parts else "model"
    return re.sub(r"[^\w.-]+", "-", name)
