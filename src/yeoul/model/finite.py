"""Weights that are not finite: found before a result is made of them, and again before one is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from yeoul.errors import UserError, shown
from yeoul.model.decoder import Decoder
from yeoul.model.quantized_folder import to_stored
from yeoul.model.tensor_names import published_name

PIECE = 2**22
"""Numbers that are looked at together."""


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity."""
    if not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(PIECE))


def _first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    return next((name for name, tensor in tensors if not is_finite(tensor)), None)


def check_to_save(tensors: Iterable[tuple[str, Tensor]], where: Path | str) -> None:
    """A UserError that names the first tensor that holds NaN or an infinity; each comes with its published name."""
    if (name := _first_not_finite(tensors)) is not None:
        raise UserError(f"tensor {shown(name)} has numbers that are not finite, so it is not saved", where)


def check_finite(model: Decoder, where: Path | str | None, deed: str) -> None:
    """Looks at every weight of a model before something long is made of it.

    Args:
        model: on any device.
        where: its folder, for the message; None where it has none.
        deed: completes "so the model cannot be".

    Raises:
        UserError: a weight is NaN or infinite; it says which one, by the name that it has in the folder.
    """
    name = _first_not_finite(to_stored(dict(model.state_dict()), model).items())
    if name is not None:
        published = published_name(name, model.config.family or "yeoul")
        raise UserError(
            f"tensor {shown(published)} has numbers that are not finite, so the model cannot be {deed}", where,
            "give a checkpoint from before its training diverged",
        )  # fmt: skip
