"""Gradients that are written out and cannot be differentiated themselves: asking for that is an error, never a zero."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def first_order(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Decorate the `backward` of an autograd function whose own derivative is not known.

    `torch.autograd.function.once_differentiable` complains only where the incoming gradient has a graph. Where the loss
    is linear in the output it has none, and second-order gradients come out as if the first ones were constants. So
    `create_graph=True` is refused as such.

    Raises:
        RuntimeError: the gradient is wanted with a graph of its own.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor) -> Gradients:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this operation has no second-order gradients, so create_graph=True is not possible "
                '(linear attention and the delta rule have them with mode="recurrent" or "quadratic")'
            )
        return backward(ctx, *gradients)

    return wrapper
