"""In which type the products run, and whether the model is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from yeoul.errors import UserError
from yeoul.train.config import TrainConfig


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type that autocast computes products in, or None for no autocast.

    Raises:
        UserError: it would be float16, whose range needs loss scaling, which the loop does not have.
    """
    from yeoul.runtime import resolve_dtype

    chosen = resolve_dtype(config.dtype, device)
    if chosen == torch.float16:
        raise UserError("training in float16 loses small gradients", where="--dtype", fix="take bfloat16 or float32")
    return None if chosen == torch.float32 else chosen


def compile_model(model: nn.Module) -> Callable[[], None]:
    """Compile what objectives call, `hidden` where there is one, else `forward`; returns what undoes it."""
    name = "hidden" if hasattr(model, "hidden") else "forward"
    # On the instance and not by wrapping: the names of parameters stay as they are.
    model.__dict__[name] = torch.compile(cast(Any, getattr(model, name)))
    return lambda: model.__dict__.pop(name, None)
