"""A GGUF file where a model's folder may stand: its description as a config.json would have it, and its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from yeoul.errors import UserError
from yeoul.gguf_header import read_header
from yeoul.model.gguf_config import gguf_config
from yeoul.model.gguf_tensors import gguf_tensors, stored_type
from yeoul.model.stored import Stored


def gguf_description(file: Path) -> dict[str, Any]:
    """What config.json of the same model in our own format says; its `family` is the published one.

    Raises:
        UserError: as `gguf_config`; a damaged file.
    """
    header = read_header(file)
    return {"model_type": "yeoul", "dtype": stored_type(header), **gguf_config(header).to_dict()}


def gguf_stored(file: Path) -> dict[str, Stored]:
    """The tensors by our names, which are those of our own format.

    Raises:
        UserError: as `gguf_config` and `gguf_tensors`; a damaged file.
    """
    header = read_header(file)
    return gguf_tensors(header, gguf_config(header))


def gguf_parts(file: Path) -> list[Path]:
    """The files of a model: one, or the parts of a split one."""
    return list(read_header(file).files)


def gguf_pooling(file: Path) -> Literal["mean", "last"] | None:
    """How a model for vectors makes one of a text's states; None where the file does not say, as models that write.

    Raises:
        UserError: in a way that is not known here.
    """
    header = read_header(file)
    kind = header.get(f"{header.architecture}.pooling_type", int, 0)
    if kind not in (0, 1, 3):
        fix = "choose one with --pooling"
        raise UserError(f"the GGUF file pools states in a way that is not known here (type {kind})", file, fix)
    return {1: "mean", 3: "last"}.get(kind)  # type: ignore[return-value]
