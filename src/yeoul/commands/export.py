"""`yeoul export`: a model for other programs: one GGUF file, or a folder of plain safetensors."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from yeoul.config import Place
from yeoul.recipes.export import ExportConfig
from yeoul.units import size


@dataclass(frozen=True)
class Config:
    """Write a model with its tokenizer for other programs.

    gguf: one file for llama.cpp and programs built on it. Works for softmax models of the Llama, Mistral, Qwen 2 and
    3, Gemma 1 to 3, EXAONE 4, GPT-2 and GPT-NeoX families, whoever made them; a model that llama.cpp would compute
    differently is refused with the reason. hf: a Hugging Face folder of safetensors, with an adapter merged, in
    another dtype, or made from a pickle.
    """

    model: Place
    """Model: a Hugging Face folder, a GGUF file, a run's folder, or an id on the hub; or an adapter, merged into its
    model."""
    _: KW_ONLY
    settings: Annotated[ExportConfig, Parameter(name="*")] = field(default_factory=ExportConfig)
    """What it is written as."""
    out: Path | None = None
    """The file or folder; when not given, MODEL-F16.gguf or MODEL-hf in the current folder, after the model's name."""
    overwrite: bool = False
    """Replace the output if it exists."""
    config: Path | None = None
    """YAML file with any of these settings; flags take precedence."""


def run(config: Config) -> int:
    """Write the file or folder and say what is in it."""
    from yeoul.recipes.export import export, export_name

    out = config.out or Path(export_name(config.model, config.settings))
    done = export(config.model, out, config.settings, overwrite=config.overwrite)
    tokenizer = "" if done.tokenizer is None else f", tokenizer {done.tokenizer}"
    print(f"{done.path}: {done.architecture}, {done.dtype}, {size(done.nbytes)}{tokenizer}")
    for note in done.notes:
        print(f"note: {note}")
    return 0
