"""Folders that this program wrote, which are never read as data: runs, models, adapters, tokenizers, tokens."""

from __future__ import annotations

import os
from pathlib import Path

from yeoul.errors import UserError
from yeoul.files import is_own_run

_MARKS: tuple[tuple[str, ...], ...] = (
    ("config.yaml", "prepared.json"),
    ("config.yaml", "stages"),
    ("metrics.jsonl", "checkpoints"),
    ("demo.json", "pretrain"),
    ("settings.json", "results.jsonl"),
    ("tokens.bin", "meta.json"),
    ("config.json", "*.safetensors"),
    ("*.gguf",),
    ("adapter_config.json",),
    ("tokenizer_config.json",),
    ("tokenizer.model",),
)
"""Names that are only found together where a command left its result."""


def is_result(folder: Path) -> bool:
    """Whether a folder is a run's or a result's, or that of the run which is about to begin."""
    return is_own_run(folder) or any(all(any(folder.glob(name)) for name in names) for names in _MARKS)


def refuse_result(folder: Path) -> None:
    """Raises `UserError` where such a folder is given as data."""
    if is_own_run(folder):
        raise UserError("the folder of the run is that of the data", f"--out {folder}", "choose another --out")
    if is_result(folder):
        raise UserError("this is the folder of a run or a model, not of data", folder, "name the folder of its text")


def refuse_inside(out: Path | None, data: str | None) -> None:
    """Raises `UserError` where a result would lie in a folder of data, and be read with it the next time."""
    if out is None or data is None:
        return
    for part in filter(None, map(str.strip, data.split(","))):
        if Path(part).is_dir() and Path(os.path.realpath(out)).is_relative_to(Path(part).resolve()):
            raise UserError("the result would lie inside the data", f"--out {out}", "choose another --out")
