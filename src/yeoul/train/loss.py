"""Losses as token sums, and the cross-entropy that never holds the logits of all tokens.

Shapes: N tokens, d width, V vocabulary, C chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from yeoul.data.batch import IGNORE, Batch


@dataclass(kw_only=True)
class Loss:
    """What an objective gives for one micro-batch.

    Attributes:
        total: loss summed over the valid tokens, float32 scalar with a gradient.
        count: number of valid tokens; the loop divides once by the count of the whole step.
        parts: further sums over the same tokens, for the log only.
    """

    total: Tensor
    count: int
    parts: dict[str, float] = field(default_factory=dict)


Objective = Callable[[nn.Module, Batch], Loss]


def language_model_objective(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy of the next token, for a model with `hidden()` and `output_weight`."""
    hidden = cast(Any, model).hidden(batch.input_ids, positions=batch.positions, seq_ids=batch.seq_ids)
    weight = cast(Tensor, model.output_weight)
    labels = batch.labels.flatten()
    total, count = linear_cross_entropy(hidden.flatten(0, 1), weight, labels, softcap=softcap_of(model))
    return Loss(total=total, count=count)


def softcap_of(model: nn.Module) -> float | None:
    """The soft cap of a model's logits, see `linear_cross_entropy`; None where it has none."""
    return cast("float | None", getattr(model, "logit_softcap", None))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int | None = None, softcap: float | None = None
) -> tuple[Tensor, int]:
    """Sum of the cross-entropy of `hidden @ weight.T`, computed a chunk of rows at a time.

    The gradients are made in the forward pass, while a chunk's logits are at hand (as in Liger Kernel,
    arXiv:2410.10989, section 3.2), so memory is O(C V) instead of O(N V). Under autocast, or with bfloat16
    inputs, the products are bfloat16 and everything else is float32.

    Args:
        hidden: (N, d).
        weight: (V, d), the output projection.
        labels: (N,) int64; rows labelled `IGNORE` take no part and cost nothing.
        chunk: rows at a time; None chooses by device and vocabulary. Changes only rounding.
        softcap: logits l become softcap * tanh(l / softcap) (Gemma 2, section 2).

    Returns:
        The sum over valid rows (float32, or float64 for float64 inputs; differentiable once) and their
        number.
    """
    valid = labels != IGNORE
    count = int(valid.sum())
    if count < labels.numel():
        index = valid.nonzero().squeeze(1)
        hidden, labels = hidden.index_select(0, index), labels.index_select(0, index)
    rows = chunk or _rows_at_a_time(hidden.device, weight.shape[0])
    total = _LinearCrossEntropy.apply(hidden, weight, labels, rows, torch.is_grad_enabled(), softcap)
    return cast(Tensor, total), count


def _rows_at_a_time(device: torch.device, vocabulary: int) -> int:
    """Rows enough to keep the products busy: 32 MiB of float32 logits on a CPU, 512 MiB on a GPU."""
    elements = 2**23 if device.type == "cpu" else 2**27
    return max(64, elements // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes the loss and both gradients; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int, grad_enabled: bool, softcap: float | None
    ) -> Tensor:
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.float64 if compute == torch.float64 else torch.float32
        need_hidden = grad_enabled and ctx.needs_input_grad[0]
        need_weight = grad_enabled and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if need_weight else None
        total = torch.zeros((), dtype=exact, device=hidden.device)
        with torch.autocast(device, enabled=False):
            h, w = hidden.to(compute), weight.to(compute)
            for start in range(0, h.shape[0], rows):
                part = slice(start, start + rows)
                logits, slope = capped_((h[part] @ w.t()).to(exact), softcap)  # (C, V)
                total += _loss_then_gradient_(logits, labels[part], need_hidden or need_weight)
                if need_hidden or need_weight:
                    gradient = (logits if slope is None else logits * slope).to(compute)
                    if grad_hidden is not None:
                        grad_hidden[part] = gradient @ w
                    if grad_weight is not None:
                        _add_product_(grad_weight, gradient.t(), h[part])
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_weight = (None if g is None else g * grad_total for g in ctx.saved_tensors)
        return grad_hidden, grad_weight, None, None, None, None


def capped_(logits: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """`logits` capped in place, and the derivative of the cap (None: 1), both of the same shape."""
    if softcap is None:
        return logits, None
    logits.div_(softcap).tanh_()
    slope = 1 - logits.square()
    return logits.mul_(softcap), slope


def _loss_then_gradient_(logits: Tensor, labels: Tensor, need_grad: bool) -> Tensor:
    """Summed cross-entropy of `logits` (C, V), which becomes softmax minus one-hot in place."""
    index = labels.unsqueeze(1)
    top, chosen = logits.amax(dim=1, keepdim=True), logits.gather(1, index)  # (C, 1)
    if not need_grad:
        return (logits.logsumexp(dim=1, keepdim=True) - chosen).sum()
    # One fused pass instead of subtract, exp, sum, divide. The normaliser comes back out of the largest
    # probability, which is at least 1/V and so loses nothing to underflow.
    torch.softmax(logits, dim=1, out=logits)
    loss = (top - logits.amax(dim=1, keepdim=True).log() - chosen).sum()
    logits.scatter_add_(1, index, logits.new_full((), -1.0).expand(index.shape))
    return loss


def _add_product_(accumulator: Tensor, left: Tensor, right: Tensor) -> None:
    """`accumulator += left @ right`; the sum over chunks stays in the accumulator's own precision."""
    if accumulator.dtype == left.dtype:
        accumulator.addmm_(left, right)
    else:
        accumulator.add_(left @ right)
